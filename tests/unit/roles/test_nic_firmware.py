# Copyright: the topovirt.kvm authors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""The role nic_firmware, task by task as Ansible decides about them, on a server made of files that reboots."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import yaml
from ansible.parsing.dataloader import DataLoader
from ansible.template import Templar, trust_as_template
from ansible_collections.topovirt.kvm.plugins.module_utils._host.faces import run_face
from ansible_collections.topovirt.kvm.tests.unit.plugins.module_utils._host.fake_host import NIC0, NIC1
from ansible_collections.topovirt.kvm.tests.unit.plugins.module_utils._host.firmware_host import FirmwareHost

from tests.tools import workspace

ROLE = workspace.ROOT / "roles/nic_firmware"
HIDDEN = {"ATS_ENABLED": True, "MAX_ACC_OUT_READ": 44}


class TaskFailed(Exception):
    pass


class Play:
    """One run of the role."""

    def __init__(self, host: FirmwareHost, check: bool = False, **variables: Any) -> None:
        self.host, self.check, self.reboots = host, check, 0
        self.variables = yaml.safe_load((ROLE / "defaults/main.yml").read_text()) | variables
        self.variables["ansible_check_mode"] = check
        for task in yaml.safe_load((ROLE / "tasks/main.yml").read_text()):
            self._do(task)

    @property
    def due(self) -> bool:
        return bool(self.variables["nic_firmware_reboot_required"])

    def _templar(self) -> Templar:
        return Templar(loader=DataLoader(), variables=self.variables)

    def _holds(self, conditions: Any) -> bool:
        conditions = conditions if isinstance(conditions, list) else [conditions]
        return all(self._templar().evaluate_conditional(trust_as_template(condition)) for condition in conditions)

    def _do(self, task: dict[str, Any]) -> None:
        (name,) = task.keys() - {"name", "register", "when", "check_mode"}
        if self._holds(task.get("when", [])):
            arguments = self._templar().template(
                {key: trust_as_template(v) if isinstance(v, str) else v for key, v in task[name].items()}
            )
            result = getattr(self, f"_{name.rpartition('.')[2]}")(task, arguments)
        else:
            result = {"changed": False, "skipped": True}
        if "register" in task:
            self.variables[task["register"]] = result

    def _nic_firmware(self, task: dict[str, Any], arguments: dict[str, Any]) -> dict[str, Any]:
        params = {"devices": None, "root": str(self.host.root), **arguments}
        check = self.check or task.get("check_mode", False)
        return run_face("nic_firmware", params, check, lambda words, **_options: self.host.run(words))

    def _reboot(self, _task: dict[str, Any], _arguments: dict[str, Any]) -> dict[str, Any]:
        if not self.check:
            self.host.reboot()
            self.reboots += 1
        return {"changed": True}

    def _assert(self, task: dict[str, Any], arguments: dict[str, Any]) -> dict[str, Any]:
        if not self._holds(task["ansible.builtin.assert"]["that"]):
            raise TaskFailed(arguments["fail_msg"])
        return {"changed": False}

    def _set_fact(self, _task: dict[str, Any], arguments: dict[str, Any]) -> dict[str, Any]:
        self.variables.update(arguments)
        return {"changed": False}

    def _debug(self, _task: dict[str, Any], _arguments: dict[str, Any]) -> dict[str, Any]:
        return {"changed": False}


@pytest.fixture
def host(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> FirmwareHost:
    monkeypatch.setattr("os.geteuid", lambda: 0)
    return FirmwareHost(tmp_path)


def running(host: FirmwareHost, name: str) -> list[str]:
    return [host.running_firmware()[f"{nic} {name}"] for nic in (NIC0, NIC1)]


def test_one_reboot_where_one_does(host: FirmwareHost) -> None:
    play = Play(host, nic_firmware_reboot_ok=True)
    assert (play.reboots, play.due, running(host, "ATS_ENABLED")) == (1, False, ["True(1)"] * 2)
    again = Play(host, nic_firmware_reboot_ok=True)
    assert (again.reboots, again.due) == (0, False)


def test_two_reboots_and_not_one_more(host: FirmwareHost) -> None:
    play = Play(host, nic_firmware_reboot_ok=True, nic_firmware_values=HIDDEN)
    assert (play.reboots, play.due, running(host, "MAX_ACC_OUT_READ")) == (2, False, ["44", "44"])
    assert Play(host, nic_firmware_reboot_ok=True, nic_firmware_values=HIDDEN).reboots == 0


def test_without_consent_it_stops_and_goes_on_later(host: FirmwareHost) -> None:
    for _boot in range(2):
        play = Play(host, nic_firmware_values=HIDDEN)
        assert (play.reboots, play.due) == (0, True)
        host.reboot()
    assert not Play(host, nic_firmware_values=HIDDEN).due
    assert running(host, "MAX_ACC_OUT_READ") == ["44", "44"]


def test_the_last_look_writes_nothing(host: FirmwareHost) -> None:
    host.shows_at_once = True
    assert Play(host, nic_firmware_values=HIDDEN).due
    assert host.firmware()[f"{NIC0} MAX_ACC_OUT_READ"] == "0"


def test_one_nic_only(host: FirmwareHost) -> None:
    Play(host, nic_firmware_reboot_ok=True, nic_firmware_devices=[NIC1])
    assert running(host, "ATS_ENABLED") == ["False(0)", "True(1)"]


def test_the_way_back_takes_one_reboot(host: FirmwareHost) -> None:
    before = host.running_firmware()
    Play(host, nic_firmware_reboot_ok=True, nic_firmware_values=HIDDEN)
    back = Play(host, nic_firmware_reboot_ok=True, nic_firmware_state="restored")
    assert (back.reboots, back.due) == (1, False)
    assert host.running_firmware() == before
    assert Play(host, nic_firmware_reboot_ok=True, nic_firmware_state="restored").reboots == 0


def test_check_mode_changes_nothing(host: FirmwareHost) -> None:
    before = host.firmware()
    assert Play(host, check=True, nic_firmware_reboot_ok=True, nic_firmware_values=HIDDEN).reboots == 0
    assert host.firmware() == before


def test_no_vm_is_ended_by_a_reboot_that_is_due(host: FirmwareHost) -> None:
    Play(host)
    host.write("run/libvirt/qemu/train-0.xml", "<domstatus/>")
    assert Play(host).due
    with pytest.raises(TaskFailed, match="must not be rebooted: VM train-0 is running"):
        Play(host, nic_firmware_reboot_ok=True)


def test_firmware_that_does_not_take_effect_is_an_error(host: FirmwareHost, monkeypatch: pytest.MonkeyPatch) -> None:
    def lose() -> None:
        for nic in (NIC0, NIC1):
            host.nics[nic]["ATS_ENABLED"].current = 0

    monkeypatch.setattr(host, "reboot", lose)
    with pytest.raises(TaskFailed, match="the firmware does not run with what is wanted"):
        Play(host, nic_firmware_reboot_ok=True)
