# Copyright: the topovirt.kvm authors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

from __future__ import annotations

import contextlib
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from ansible_collections.topovirt.kvm.plugins.module_utils._errors import TopovirtError
from ansible_collections.topovirt.kvm.plugins.module_utils._libvirt.files import WantedFile
from ansible_collections.topovirt.kvm.plugins.module_utils._libvirt.lifecycle import Seams, Wanted, ensure
from ansible_collections.topovirt.kvm.tests.unit.plugins.module_utils._libvirt import fake_libvirt
from ansible_collections.topovirt.kvm.tests.unit.plugins.module_utils._libvirt.sample import OURS, domain_xml

XML = domain_xml(metadata=OURS)
NCCL = WantedFile("/var/lib/topovirt/vms/train-0/nccl.xml", "<system/>", 0o644)


class Host:
    """A host with the fake libvirt; counts what is done under the lock."""

    def __init__(self, root: Path) -> None:
        self.root = root
        self.connection = fake_libvirt.Connection()
        self.locked = False
        self.locks = 0
        self.stale: list[str] = []

    @contextlib.contextmanager
    def lock(self) -> Iterator[None]:
        assert not self.locked
        self.locked, self.locks = True, self.locks + 1
        yield
        self.locked = False

    def ensure(self, state: str, xml: str | None = None, check: bool = False, **wanted: Any) -> dict[str, Any]:
        clock = self.connection.clock
        seams = Seams(
            self.connection, fake_libvirt.Binding(), self.root, self.lock, lambda: self.stale, clock.time, clock.sleep
        )
        return ensure(Wanted("train-0", state, xml, **wanted), seams, check)

    def predicted(self, state: str, xml: str | None = None, **wanted: Any) -> dict[str, Any]:
        """Check mode twice, then the real run: all three must tell the same."""
        before = self.picture()
        first, second = (self.ensure(state, xml, check=True, **wanted) for _ in range(2))
        assert self.picture() == before, "check mode changed something"
        real = self.ensure(state, xml, **wanted)
        for key in ("changed", "actions", "diff", "restart_required", "state"):
            assert first[key] == second[key] == real[key], key
        return real

    def picture(self) -> Any:
        files = {str(path): path.read_bytes() for path in self.root.rglob("*") if path.is_file()}
        return files, {
            name: (domain.persistent_xml, domain.live_xml, list(domain.calls))
            for name, domain in self.connection.domains.items()
        }

    @property
    def vm(self) -> fake_libvirt.Domain:
        return self.connection.domains["train-0"]


@pytest.fixture
def host(tmp_path: Path) -> Host:
    return Host(tmp_path)


def test_define_start_stop_remove_each_once(host: Host) -> None:
    """Every state is reached in one call, predicted by check mode, and asking again changes nothing."""
    steps = [
        ("defined", ["define"], "shut off"),
        ("running", ["start"], "running"),
        ("stopped", ["stop"], "shut off"),
        ("absent", ["undefine"], "absent"),
    ]
    for state, actions, end in steps:
        xml = XML if state in ("defined", "running") else None
        done = host.predicted(state, xml)
        assert (done["actions"], done["state"], done["changed"]) == (actions, end, True)
        again = host.predicted(state, xml)
        assert (again["actions"], again["state"], again["changed"], again["diff"]) == ([], end, False, [])


def test_running_of_a_new_vm_writes_its_files_first(host: Host) -> None:
    done = host.predicted("running", XML, files=[NCCL])
    assert done["actions"] == [f"write {NCCL.path}", "define", "start"]
    assert (host.root / NCCL.path[1:]).read_text() == "<system/>"
    assert host.vm.calls == ["define", "create"]
    assert done["diff"][0]["before"] == "" and "<hostdev" in done["diff"][0]["after"]
    assert host.predicted("running", XML, files=[NCCL])["changed"] is False


def test_start_and_stop_of_a_known_vm_need_no_definition(host: Host) -> None:
    host.ensure("defined", XML)
    assert host.predicted("running")["actions"] == ["start"]
    assert host.predicted("running")["actions"] == []


def test_absent_stops_undefines_with_nvram_and_removes_the_files(host: Host) -> None:
    host.ensure("running", XML, files=[NCCL])
    vm = host.vm
    done = host.predicted("absent")
    assert done["actions"] == ["stop", "undefine", f"remove {NCCL.path}"]
    assert f"undefine {1 | 2 | 4 | 16}" in vm.calls
    assert not (host.root / "var/lib/topovirt/vms/train-0").exists()
    assert host.predicted("absent")["changed"] is False


def test_a_running_vm_is_redefined_but_never_restarted(host: Host) -> None:
    host.ensure("running", XML)
    changed = XML.replace("cpuset='3'", "cpuset='4'")
    done = host.predicted("running", changed)
    assert done["actions"] == ["redefine"] and done["restart_required"] is True
    assert done["diff"][0]["before"] == "cputune/vcpupin[1]@cpuset = 3\n"
    assert done["diff"][0]["after"] == "cputune/vcpupin[1]@cpuset = 4\n"
    assert host.vm.calls == ["define", "create", "define"]
    again = host.predicted("running", changed)
    assert again["changed"] is False and again["restart_required"] is True
    host.ensure("stopped")
    assert host.ensure("running", changed)["restart_required"] is False


def test_changed_metadata_alone_needs_no_restart(host: Host) -> None:
    host.ensure("running", XML)
    done = host.predicted("running", domain_xml(metadata={**OURS, "partition": 3}))
    assert done["actions"] == ["redefine"] and done["restart_required"] is False


def test_the_uuid_of_a_known_vm_is_kept(host: Host) -> None:
    host.ensure("defined", XML)
    given = XML.replace("<name>", "<uuid>11111111-2222-3333-4444-555555555555</uuid><name>")
    assert host.predicted("defined", given)["changed"] is False


def test_a_file_that_changed_is_written_and_one_that_is_no_longer_listed_removed(host: Host) -> None:
    host.ensure("defined", XML, files=[NCCL])
    other = NCCL._replace(content="<system version='1'/>")
    assert host.predicted("defined", XML, files=[other])["actions"] == [f"write {NCCL.path}"]
    done = host.predicted("defined", XML)
    assert done["actions"] == [f"remove {NCCL.path}", "redefine"]
    assert not (host.root / NCCL.path[1:]).exists()


def test_shutdown_through_the_agent(host: Host) -> None:
    host.ensure("running", XML)
    host.vm.agent, host.vm.stops_after = "connected", {2: 5}
    assert host.ensure("stopped", timeout=60)["stopped_by"] == "guest agent"
    assert host.vm.calls[2:] == ["shutdown 2"]


def test_shutdown_by_button_when_the_agent_does_nothing(host: Host) -> None:
    host.ensure("running", XML)
    host.vm.agent = "connected"
    assert host.ensure("stopped", timeout=60)["stopped_by"] == "ACPI power button"
    assert host.vm.calls[2:] == ["shutdown 2", "shutdown 1"]
    assert host.connection.clock.now >= 30


def test_a_vm_that_does_not_stop_is_an_error_and_keeps_running(host: Host) -> None:
    host.ensure("running", XML)
    host.vm.stops_after = {}
    with pytest.raises(
        TopovirtError, match=r"did not stop: guest agent: not connected; ACPI power button: still .* 60 s"
    ):
        host.ensure("absent", timeout=60)
    assert host.vm.live_xml is not None and "destroy" not in host.vm.calls
    assert host.locked is False


def test_force_cuts_the_power_only_after_the_timeout(host: Host) -> None:
    host.ensure("running", XML)
    host.vm.stops_after = {}
    assert host.ensure("stopped", timeout=60, force=True)["stopped_by"] == "force"
    assert host.vm.calls[2:] == ["shutdown 1", "destroy"]
    assert host.connection.clock.now >= 60


def test_a_start_that_fails_takes_back_a_new_definition_and_its_files(host: Host) -> None:
    host.connection.start_error = "internal error: cannot allocate 2 huge pages on node 0."
    with pytest.raises(
        TopovirtError, match=r"'train-0' cannot be started: .*huge pages on node 0\. See /var/log"
    ) as error:
        host.ensure("running", XML, files=[NCCL])
    assert error.value.hint
    assert host.connection.domains == {}
    assert not (host.root / NCCL.path[1:]).exists()


def test_a_start_that_fails_puts_a_changed_definition_back(host: Host) -> None:
    host.ensure("defined", XML, files=[NCCL])
    before = host.picture()[0], host.vm.persistent_xml
    host.connection.start_error = "no"
    changed = XML.replace("cpuset='3'", "cpuset='4'")
    with pytest.raises(TopovirtError):
        host.ensure("running", changed, files=[NCCL._replace(content="new")])
    text = host.vm.persistent_xml
    assert text is not None and 'cpuset="3"' in text and 'cpuset="4"' not in text
    assert host.picture()[0] == before[0]


def test_a_refused_definition_leaves_no_file(host: Host) -> None:
    host.connection.define_error = "unsupported configuration: no"
    with pytest.raises(TopovirtError, match="cannot be defined: unsupported configuration: no"):
        host.ensure("defined", XML, files=[NCCL])
    assert host.picture() == ({}, {})


def test_libvirts_schema_judges_every_definition(host: Host) -> None:
    wrong = XML.replace("</domain>", "<unknown-to-the-schema/></domain>")
    with pytest.raises(TopovirtError, match="failed to validate against schema"):
        host.ensure("defined", wrong)
    assert host.picture() == ({}, {})


def test_a_stale_plan_is_refused_by_name_in_check_mode_too(host: Host) -> None:
    host.stale = ["device 0000:23:00.0: driver was vfio-pci, is nvidia", "VM infer-0 is new"]
    for check in (True, False):
        with pytest.raises(TopovirtError, match=r"is stale.*is nvidia; VM infer-0 is new.* Plan again"):
            host.ensure("running", XML, check=check)
    assert host.picture() == ({}, {})


def test_a_definition_that_is_there_already_needs_no_fresh_plan(host: Host) -> None:
    host.ensure("defined", XML)
    host.stale = ["VM infer-0 is new"]
    assert host.predicted("running", XML)["actions"] == ["start"]


def test_definitions_change_under_the_lock_and_shutdown_waits_without_it(host: Host) -> None:
    host.ensure("running", XML)
    assert host.locks == 1
    vm = host.vm
    host.connection.clock.after(0, lambda: None if not host.locked else pytest.fail("waits with the lock held"))
    host.ensure("absent")
    assert host.locks == 2 and not vm.connection.domains


@pytest.mark.parametrize(
    ("state", "message"),
    [
        ("stopped", "'train-0' is not known to libvirt on this host and no domain_xml is given"),
        ("running", "'train-0' is not known to libvirt on this host and no domain_xml is given"),
        ("defined", "'train-0' is not known to libvirt on this host and no domain_xml is given"),
    ],
)
def test_an_unknown_vm_is_one_clear_error(host: Host, state: str, message: str) -> None:
    for check in (True, False):
        with pytest.raises(TopovirtError, match=message):
            host.ensure(state, check=check)


@pytest.mark.parametrize(("state", "xml"), [("running", XML), ("absent", None)])
def test_vms_of_others_are_neither_redefined_nor_removed(host: Host, state: str, xml: str | None) -> None:
    host.connection.defineXML(domain_xml())
    with pytest.raises(TopovirtError, match=r"was not made by topovirt\.kvm"):
        host.ensure(state, xml)
    assert host.vm.calls == ["define"]


def test_metadata_of_a_newer_version_is_left_alone(host: Host) -> None:
    host.connection.defineXML(domain_xml(metadata={"schema": 99}))
    for state in ("absent", "stopped", "running"):
        with pytest.raises(TopovirtError, match="schema 99"):
            host.ensure(state, XML if state == "running" else None)


def test_all_reasons_at_once(host: Host) -> None:
    host.connection.defineXML(domain_xml())
    wrong = WantedFile("/etc/passwd", "", 0o644)
    with pytest.raises(TopovirtError) as error:
        host.ensure("running", XML.replace("train-0</name>", "other</name>"), files=[wrong])
    for part in ("not made by", "names the VM 'other'", "/etc/passwd"):
        assert part in str(error.value)


def test_files_outside_our_directories_are_never_removed(host: Host) -> None:
    host.connection.defineXML(domain_xml(metadata={**OURS, "files": ["/var/lib/topovirt/vms/../../../../etc/passwd"]}))
    with pytest.raises(TopovirtError, match="must lie below"):
        host.ensure("absent")
    assert host.vm.calls == ["define"]


def test_a_transient_vm_becomes_persistent(host: Host) -> None:
    vm = host.connection.defineXML(XML)
    vm.live_xml, vm.persistent_xml = vm.persistent_xml, None
    done = host.predicted("running", XML)
    assert done["actions"] == ["redefine"] and vm.persistent_xml is not None


def test_a_paused_vm_is_resumed(host: Host) -> None:
    host.ensure("running", XML)
    host.vm.paused = True
    assert host.predicted("running")["actions"] == ["resume"]
    assert host.vm.calls[-1] == "resume"


def test_waiting_for_the_agent(host: Host) -> None:
    def connect() -> None:
        host.vm.agent = "connected"

    host.connection.clock.after(90, connect)
    assert host.ensure("running", XML, wait_for_agent=True)["state"] == "running"
    assert host.connection.clock.now >= 90


def test_an_agent_that_never_answers(host: Host) -> None:
    with pytest.raises(TopovirtError, match="runs, but its guest agent did not answer within 60 s"):
        host.ensure("running", XML, wait_for_agent=True, timeout=60)
    assert host.vm.live_xml is not None


def test_a_guest_that_stops_by_itself_while_it_boots(host: Host) -> None:
    host.connection.clock.after(5, lambda: host.vm.stop())
    with pytest.raises(TopovirtError, match="stopped by itself"):
        host.ensure("running", XML, wait_for_agent=True)


def test_the_diff_is_json(host: Host) -> None:
    json.dumps(host.ensure("running", XML, check=True))


def test_a_vm_that_is_not_to_run_is_defined_and_stopped(host: Host) -> None:
    assert host.predicted("stopped", XML)["actions"] == ["define"]
    assert host.predicted("stopped", XML)["actions"] == []
    host.ensure("running")
    done = host.predicted("stopped", XML.replace("cpuset='3'", "cpuset='4'"))
    assert (done["actions"], done["state"], done["restart_required"]) == (["redefine", "stop"], "shut off", False)


def test_a_disk_of_the_vm_goes_with_it_but_never_before(host: Host) -> None:
    disk = host.root / "var/lib/libvirt/images/topovirt/vms/train-0/root.qcow2"
    disk.parent.mkdir(parents=True)
    disk.write_bytes(b"disk")
    given = ["/var/lib/libvirt/images/topovirt/vms/train-0/root.qcow2"]
    host.ensure("running", XML, disks=given)
    host.ensure("stopped")
    host.ensure("defined", XML.replace("cpuset='3'", "cpuset='4'"))
    assert disk.exists(), "the new definition does not name it, but it still holds the VM's data"
    assert host.predicted("absent")["actions"] == ["undefine", f"remove {given[0]}"]
    assert not (host.root / "var/lib/libvirt/images/topovirt").exists()
