# Copyright: the topovirt.kvm authors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""guest_compare, the filters and the reading modules as a play sees them."""

from __future__ import annotations

import json
import os
import subprocess
from typing import Any

import pytest
import yaml
from ansible_collections.topovirt.kvm.plugins.action.guest_compare import ARGUMENT_SPEC
from ansible_collections.topovirt.kvm.plugins.modules import guest_compare as stub
from ansible_collections.topovirt.kvm.tests.tools import workspace
from ansible_collections.topovirt.kvm.tests.unit.plugins.module_utils._topology.machine import two_level_machine

GPU_A = "0000:25:00.0"
NIC_A = "0000:26:00.0"
GPU_D = "0000:91:00.0"
COMPARE: dict[str, Any] = {
    "topology": "{{ host.topology }}",
    "guest_topology": "{{ host.topology }}",
    "identity": {GPU_A: GPU_A, NIC_A: NIC_A, GPU_D: GPU_D},
    "node_map": {0: 0, 1: 1},
}
SWAPPED = {**COMPARE, "identity": {GPU_A: GPU_D, NIC_A: NIC_A, GPU_D: GPU_A}}
TASKS: dict[str, dict[str, Any]] = {
    "host": {"topovirt.kvm.topology_info": {"root": "{{ machine }}"}},
    "wrong_roles": {"topovirt.kvm.topology_info": {"root": "{{ machine }}", "roles": {"8086": "lan", "x": "nic"}}},
    "facts": {"topovirt.kvm.topology_facts": {"root": "{{ machine }}"}},
    "equal": {"topovirt.kvm.guest_compare": COMPARE},
    "swapped": {"topovirt.kvm.guest_compare": SWAPPED},
    "host_checked": {"topovirt.kvm.topology_info": {"root": "{{ machine }}"}, "check_mode": True},
    "swapped_checked": {"topovirt.kvm.guest_compare": SWAPPED, "check_mode": True},
    "only_told": {"topovirt.kvm.guest_compare": {**SWAPPED, "fail": False}},
    "other_schema": {"topovirt.kvm.guest_compare": {**COMPARE, "topology": {"schema": 2}}},
    "cpus": {"topovirt.kvm.guest_compare": {**COMPARE, "cpu_map": {0: 0, 1: 1, 2: 2}}},
    "wrong_cpu_map": {"topovirt.kvm.guest_compare": {**COMPARE, "cpu_map": {"0": "x"}}},
    "wrong_map": {"topovirt.kvm.guest_compare": {**COMPARE, "node_map": {"a": 0, "1": "b"}}},
    "filters": {
        "ansible.builtin.set_fact": {
            "filtered": {
                "matrix": f"{{{{ host.topology | topovirt.kvm.path_matrix(['{GPU_A}', '{NIC_A}']) }}}}",
                "text": "{{ host.topology | topovirt.kvm.topology_text }}",
                "picture": "{{ host.topology | topovirt.kvm.topology_svg }}",
                "expanded": "{{ host.topology.numa_nodes[0].cpus | topovirt.kvm.cpulist_expand }}",
                "formatted": "{{ [4, 0, 1] | topovirt.kvm.cpulist_format }}",
            }
        }
    },
    "wrong_device": {"ansible.builtin.debug": {"msg": "{{ host.topology | topovirt.kvm.path_matrix(['0:0']) }}"}},
    "wrong_picture": {"ansible.builtin.debug": {"msg": "{{ {'schema': 7} | topovirt.kvm.topology_svg }}"}},
    "wrong_topology": {"ansible.builtin.debug": {"msg": "{{ {'schema': 7} | topovirt.kvm.topology_text }}"}},
    "wrong_list": {"ansible.builtin.debug": {"msg": "{{ '1-x' | topovirt.kvm.cpulist_expand }}"}},
    "wrong_cpus": {"ansible.builtin.debug": {"msg": "{{ ['a'] | topovirt.kvm.cpulist_format }}"}},
}


@pytest.fixture(scope="module")
def results(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    """Every task's result in a real play."""
    place = tmp_path_factory.mktemp("play")
    two_level_machine(place / "machine")
    tasks: list[dict[str, Any]] = [{**task, "register": name, "ignore_errors": True} for name, task in TASKS.items()]
    all_of_them = "{{ {" + ", ".join(f"'{name}': {name}" for name in TASKS) + "} | to_json }}"
    tasks.append({"ansible.builtin.copy": {"content": all_of_them, "dest": str(place / "out")}})
    variables = {"machine": str(place / "machine"), "ansible_python_interpreter": "{{ ansible_playbook_python }}"}
    book = {"hosts": "localhost", "connection": "local", "gather_facts": False, "tasks": tasks}
    (place / "play.yml").write_text(json.dumps([{**book, "vars": variables}]))
    done = subprocess.run(
        ["ansible-playbook", "-i", "localhost,", str(place / "play.yml")],
        env={**workspace.environment(os.environ), "ANSIBLE_INJECT_FACT_VARS": "false"},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    assert "Traceback" not in done.stdout + done.stderr
    found: dict[str, Any] = json.loads((place / "out").read_text())
    return found


def test_documentation_is_the_argument_spec() -> None:
    documented = yaml.safe_load(stub.DOCUMENTATION)["options"]
    for option in documented.values():
        del option["description"]
    assert documented == ARGUMENT_SPEC


def test_the_reader_returns_a_topology_and_changes_nothing(results: dict[str, Any]) -> None:
    assert len(results["host"]["topology"]["pci"]) == 21
    assert not results["host"]["changed"]


def test_check_mode_is_the_same(results: dict[str, Any]) -> None:
    assert results["host_checked"] == results["host"]
    assert results["swapped_checked"] == results["swapped"]


def test_wrong_parameters_of_the_reader_are_all_named(results: dict[str, Any]) -> None:
    assert results["wrong_roles"]["failed"]
    assert "'lan'" in results["wrong_roles"]["msg"]
    assert "'x' is neither" in results["wrong_roles"]["msg"]


def test_facts_are_one_small_key(results: dict[str, Any]) -> None:
    assert list(results["facts"]["ansible_facts"]) == ["topovirt"]
    assert results["facts"]["ansible_facts"]["topovirt"]["counts"]["gpu"] == 3
    assert len(json.dumps(results["facts"]["ansible_facts"])) <= 2048


def test_an_equal_guest_passes(results: dict[str, Any]) -> None:
    assert results["equal"]["comparison"]["equal"]
    assert not results["equal"]["failed"]
    assert not results["equal"]["changed"]


def test_a_difference_fails_with_what_differs(results: dict[str, Any]) -> None:
    assert results["swapped"]["failed"]
    assert not results["swapped"]["comparison"]["equal"]
    assert f"{GPU_A} to {NIC_A} is SYS in the guest, PIX on the host" in results["swapped"]["msg"]


def test_cpus_that_differ_fail_too(results: dict[str, Any]) -> None:
    """The map leaves CPUs out."""
    assert results["cpus"]["comparison"]["equal"]
    assert results["cpus"]["comparison"]["cpus_equal"] is False
    assert results["cpus"]["failed"]
    assert "CPUs differ" in results["cpus"]["msg"]


def test_a_difference_can_be_only_told(results: dict[str, Any]) -> None:
    assert not results["only_told"]["failed"]
    assert results["only_told"]["comparison"] == results["swapped"]["comparison"]


@pytest.mark.parametrize(
    ("task", "message"),
    [
        ("other_schema", "topology has schema 2"),
        ("wrong_map", "a: 0, 1: b"),
        ("wrong_cpu_map", "cpu_map is not a map of vCPUs to host CPUs: 0: x"),
        ("wrong_device", "0:0 is not in the topology"),
        ("wrong_picture", "schema 7"),
        ("wrong_topology", "schema 7"),
        ("wrong_list", "'1-x' is neither"),
        ("wrong_cpus", "is not a list of CPU numbers"),
    ],
)
def test_wrong_input_is_named(results: dict[str, Any], task: str, message: str) -> None:
    assert results[task]["failed"]
    assert message in results[task]["msg"]


def test_filters(results: dict[str, Any]) -> None:
    filtered = results["filters"]["ansible_facts"]["filtered"]
    assert filtered["matrix"] == {"order": [GPU_A, NIC_A], "classes": [["LOC", "PIX"], ["PIX", "LOC"]]}
    assert filtered["text"].splitlines()[1].startswith("GPU0   X")
    assert filtered["picture"].startswith("<svg")
    assert all(bdf.partition(":")[2] in filtered["picture"] for bdf in (GPU_A, NIC_A))
    assert filtered["expanded"] == [0, 1, 4, 5]
    assert filtered["formatted"] == "0-1,4"
