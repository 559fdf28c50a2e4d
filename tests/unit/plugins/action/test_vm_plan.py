# Copyright: the topovirt.kvm authors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import pytest
import yaml
from ansible.errors import AnsibleActionFail
from ansible.parsing.dataloader import DataLoader
from ansible.playbook.task import Task
from ansible.template import Templar
from ansible_collections.topovirt.kvm.plugins.action.vm_plan import ARGUMENT_SPEC, ActionModule
from ansible_collections.topovirt.kvm.plugins.modules import vm_plan as stub
from ansible_collections.topovirt.kvm.tests.unit.plugins.plugin_utils.hosts import host, request


def documented(options: dict[str, Any]) -> dict[str, Any]:
    """An argument specification from documentation, in the spelling of the specification."""
    spec: dict[str, Any] = {}
    for name, option in options.items():
        entry = {key: option[key] for key in ("type", "elements", "required", "choices", "default") if key in option}
        if "suboptions" in option:
            entry["options"] = documented(option["suboptions"])
        spec[name] = entry
    return spec


def test_documentation_is_the_argument_spec() -> None:
    assert documented(yaml.safe_load(stub.DOCUMENTATION)["options"]) == ARGUMENT_SPEC


def test_documentation_names_every_key_of_a_request() -> None:
    text = " ".join(yaml.safe_load(stub.DOCUMENTATION)["options"]["requests"]["description"])
    for key in (
        "name",
        "gpus",
        "nics",
        "nvme",
        "vcpus",
        "memory",
        "boot",
        "hostdev_properties",
        "pv_eoi",
        "pcie",
        "gpu_p2p",
    ):
        assert f"C({key})" in text


class Answers:
    """Stands for the host: what its modules return."""

    def __init__(self, **answers: dict[str, Any]) -> None:
        self.answers = answers
        self.asked: list[tuple[str, dict[str, Any]]] = []

    def __call__(self, module_name: str, module_args: dict[str, Any], task_vars: dict[str, Any]) -> dict[str, Any]:
        self.asked.append((module_name, module_args))
        return self.answers[module_name.rpartition(".")[2]]


def run(arguments: dict[str, Any], answers: Answers | None = None) -> dict[str, Any]:
    loader = DataLoader()
    task = Task()
    task.action, task.args = "topovirt.kvm.vm_plan", arguments
    action = ActionModule(
        task=task,
        connection=SimpleNamespace(_shell=SimpleNamespace(tmpdir="/nowhere")),
        play_context=None,
        loader=loader,
        templar=Templar(loader=loader),
        shared_loader_obj=None,
    )
    action._execute_module = answers or Answers()
    result: dict[str, Any] = action.run(task_vars={"inventory_hostname": "gpu-host-1"})
    return result


GIVEN: dict[str, Any] = {"fabric_model": "shared_nvswitch", "requests": [request("a", 4)]}


def test_given_data_need_no_host() -> None:
    answers = Answers()
    result = run({**GIVEN, "topology": host(), "domains": []}, answers)
    assert not answers.asked
    assert result["changed"] is False
    assert result["plan"]["vms"][0]["placement"]["partition"]["id"] == 1


def test_what_is_left_out_is_read_on_the_host_and_not_returned() -> None:
    answers = Answers(topology_info={"topology": host()}, vm_info={"domains": []})
    result = run(GIVEN, answers)
    assert answers.asked == [
        ("topovirt.kvm.topology_info", {}),
        ("topovirt.kvm.vm_info", {"missing_ok": False}),
    ]
    assert "topology" not in result
    assert set(result["plan"]) == {"schema", "basis", "fabric_model", "vms"}


def test_a_host_may_lack_libvirt_before_its_conversion() -> None:
    answers = Answers(topology_info={"topology": host()}, vm_info={"domains": []})
    run({**GIVEN, "state": "unconverted"}, answers)
    assert answers.asked[1] == ("topovirt.kvm.vm_info", {"missing_ok": True})


def test_a_failing_module_is_named_with_its_reason() -> None:
    answers = Answers(topology_info={"failed": True, "msg": "no sysfs"})
    with pytest.raises(AnsibleActionFail, match=r"topovirt\.kvm\.topology_info failed on the host: no sysfs"):
        run(GIVEN, answers)


@pytest.mark.parametrize(
    "change,expected",
    [
        ({"requests": [request("a", 16)]}, "this machine has 8"),
        ({"fabric_model": "vgpu"}, "must be one of"),
        ({"requests": [{"name": "a", "gpus": 1}]}, r"requests\[0\] \(a\)\.boot"),
        ({"topology": {"schema": 2}}, "schema 2"),
        ({"policy": {"colour": "red"}}, "colour"),
    ],
)
def test_bad_input_is_one_clear_failure(change: dict[str, Any], expected: str) -> None:
    with pytest.raises(AnsibleActionFail, match=expected):
        run({**GIVEN, "topology": host(), "domains": [], **change})
