# Copyright: the topovirt.kvm authors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

from __future__ import annotations

import base64
import json
import re
import subprocess
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from ansible_collections.topovirt.kvm.plugins.module_utils._errors import TopovirtError
from ansible_collections.topovirt.kvm.plugins.module_utils._topology import guest
from ansible_collections.topovirt.kvm.plugins.module_utils._topology.capture import IN_GUESTS, script
from ansible_collections.topovirt.kvm.tests.unit.plugins.module_utils._topology.machine import two_level_machine

# A live domain as libvirt prints it, shortened: two hostdevs, an interface that is one, an emulated disk.
DOMAIN = """
<domain type='kvm' id='3'>
  <name>train-0</name>
  <cpu><numa>
    <cell id='0' cpus='0-1' memory='1048576' unit='KiB'/>
    <cell id='1' cpus='2-3' memory='1048576' unit='KiB'/>
    <cell id='2' cpus='4-5' memory='1048576' unit='KiB'/>
  </numa></cpu>
  <numatune>
    <memory mode='strict' nodeset='0-1'/>
    <memnode cellid='0' mode='strict' nodeset='1'/>
    <memnode cellid='1' mode='strict' nodeset='0'/>
  </numatune>
  <devices>
    <disk type='file' device='disk'><source file='/a'/><alias name='virtio-disk0'/>
      <address type='pci' domain='0x0000' bus='0x00' slot='0x03' function='0x0'/></disk>
    <hostdev mode='subsystem' type='pci' managed='no'><driver name='vfio'/>
      <source><address domain='0x0000' bus='0x23' slot='0x00' function='0x0'/></source>
      <alias name='hostdev0'/><address type='pci' domain='0x0000' bus='0x04' slot='0x00' function='0x0'/></hostdev>
    <hostdev mode='subsystem' type='pci' managed='no'>
      <source><address domain='0x10000' bus='0xe1' slot='0x1f' function='0x7'/></source>
      <alias name='ua-mine'/><address type='pci' domain='0x0000' bus='0x05' slot='0x00' function='0x0'/></hostdev>
    <interface type='hostdev'>
      <source><address type='pci' domain='0x0000' bus='0x26' slot='0x00' function='0x1'/></source>
      <alias name='hostdev1'/></interface>
    <hostdev mode='subsystem' type='usb'>
      <source><address bus='1' device='2'/></source><alias name='hostdev2'/></hostdev>
  </devices>
</domain>
"""

# QEMU's answer, shortened: a root bus, and an expander bus with a root port, a switch and two devices below it.
QUERY_PCI: Any = [
    {
        "bus": 0,
        "devices": [
            {"bus": 0, "slot": 3, "function": 0, "qdev_id": "virtio-disk0", "regions": []},
            {"bus": 0, "slot": 4, "function": 1, "qdev_id": "hostdev1"},
        ],
    },
    {
        "bus": 64,
        "devices": [
            {
                "bus": 64,
                "slot": 0,
                "function": 0,
                "qdev_id": "pci.2",
                "pci_bridge": {
                    "bus": {"number": 64, "secondary": 65, "subordinate": 68},
                    "devices": [
                        {
                            "bus": 65,
                            "slot": 0,
                            "function": 0,
                            "qdev_id": "pci.3",
                            "pci_bridge": {
                                "bus": {"number": 65, "secondary": 66, "subordinate": 68},
                                "devices": [
                                    {"bus": 66, "slot": 0, "function": 0, "qdev_id": "hostdev0"},
                                    {"bus": 66, "slot": 31, "function": 7, "qdev_id": "ua-mine"},
                                ],
                            },
                        }
                    ],
                },
            },
            {"bus": 64, "slot": 1, "function": 0, "qdev_id": "pci.9", "pci_bridge": {"bus": {"secondary": 0}}},
        ],
    },
]


def test_identity() -> None:
    assert guest.read_identity(DOMAIN, QUERY_PCI) == {
        "0000:23:00.0": "0000:42:00.0",
        "10000:e1:1f.7": "0000:42:1f.7",
        "0000:26:00.1": "0000:00:04.1",
    }


def test_every_device_that_qemu_does_not_list_is_named() -> None:
    with pytest.raises(TopovirtError) as caught:
        guest.read_identity(DOMAIN, QUERY_PCI[:1])
    assert "0000:23:00.0 (hostdev0), 10000:e1:1f.7 (ua-mine)" in caught.value.message


@pytest.mark.parametrize(
    ("old", "new", "expected"),
    [
        ("", "", {"0": 1, "1": 0}),  # cell 2 may be on either node
        ("nodeset='0-1'", "nodeset='2'", {"0": 1, "1": 0, "2": 2}),
        ("<memory mode='strict' nodeset='0-1'/>", "", {"0": 1, "1": 0}),
        ("nodeset='1'", "nodeset='1,3'", {"1": 0}),
    ],
)
def test_node_map(old: str, new: str, expected: dict[str, int]) -> None:
    assert guest.read_node_map(DOMAIN.replace(old, new)) == expected


def test_a_guest_without_cells_is_one() -> None:
    xml = "<domain><numatune><memory mode='strict' nodeset='1'/></numatune><devices/></domain>"
    assert guest.read_node_map(xml) == {"0": 1}
    assert guest.read_node_map("<domain><devices/></domain>") == {}


def test_cpu_map_has_the_vcpus_that_are_pinned_to_one_cpu() -> None:
    tune = "<vcpupin vcpu='0' cpuset='2'/><vcpupin vcpu='1' cpuset='66'/><vcpupin vcpu='2' cpuset='3-4'/>"
    assert guest.read_cpu_map(f"<domain><cputune>{tune}</cputune></domain>") == {"0": 2, "1": 66}
    assert guest.read_cpu_map("<domain/>") == {}


# --- the agent ---------------------------------------------------------------------------------------------------


class Clock:
    def __init__(self) -> None:
        self.now = 0.0

    def time(self) -> float:
        return self.now

    def sleep(self, seconds: float) -> None:
        self.now += seconds


def test_the_agent_is_waited_for() -> None:
    clock = Clock()

    def agent(command: dict[str, Any]) -> Any:
        assert command == {"execute": "guest-ping"}
        if clock.now < 9:
            raise guest.AgentSilent("not connected")

    guest.wait_for_agent(agent, 10, clock.time, clock.sleep)
    assert 9 <= clock.now < 10


def test_an_agent_that_never_answers_is_an_error() -> None:
    clock = Clock()

    def agent(command: dict[str, Any]) -> Any:
        raise guest.AgentSilent("not connected")

    with pytest.raises(TopovirtError, match="does not answer: not connected"):
        guest.wait_for_agent(agent, 10, clock.time, clock.sleep)


def answers(*statuses: dict[str, Any]) -> guest.Agent:
    left: Iterator[dict[str, Any]] = iter(statuses)

    def agent(command: dict[str, Any]) -> Any:
        if command["execute"] == "guest-exec":
            assert command["arguments"] == {
                "path": "/bin/sh",
                "arg": ["-c", script(directories=IN_GUESTS)],
                "capture-output": True,
            }
            return {"pid": 77}
        assert command == {"execute": "guest-exec-status", "arguments": {"pid": 77}}
        return next(left)

    return agent


def encoded(data: bytes) -> str:
    return base64.b64encode(data).decode()


def test_capture_returns_what_the_script_wrote() -> None:
    clock = Clock()
    agent = answers(
        {"exited": False}, {"exited": False}, {"exited": True, "exitcode": 0, "out-data": encoded(b"\x1f\x8bdata")}
    )
    assert guest.capture_guest(agent, 10, clock.time, clock.sleep) == b"\x1f\x8bdata"


@pytest.mark.parametrize(
    ("status", "message"),
    [
        ({"exited": True, "exitcode": 1, "err-data": encoded(b"no place\n")}, "exit status 1.*no place"),
        ({"exited": True, "exitcode": 0}, "0 bytes"),
        ({"exited": True, "signal": 9, "out-data": encoded(b"x")}, "signal 9"),
        ({"exited": True, "exitcode": 0, "out-data": encoded(b"x"), "out-truncated": True}, "cut off"),
        ({"exited": True, "exitcode": 0, "out-data": "?"}, "damaged"),
    ],
)
def test_a_failed_capture_says_why(status: dict[str, Any], message: str) -> None:
    with pytest.raises(TopovirtError, match=message):
        guest.capture_guest(answers(status), 10)


def test_a_capture_that_does_not_end_is_an_error() -> None:
    clock = Clock()
    with pytest.raises(TopovirtError, match="still runs"):
        guest.capture_guest(answers(*[{"exited": False}] * 99), 10, clock.time, clock.sleep)


# --- the whole ---------------------------------------------------------------------------------------------------


class LibvirtError(Exception):
    def __init__(self, message: str, code: int) -> None:
        super().__init__(message)
        self.code = code

    def get_error_code(self) -> int:
        return self.code


class Hypervisor:
    """libvirt and libvirt_qemu with one domain, whose guest is a directory."""

    libvirtError = LibvirtError
    # include/libvirt/virterror.h
    VIR_ERR_NO_DOMAIN = 42
    VIR_ERR_OPERATION_INVALID = 55
    VIR_ERR_ARGUMENT_UNSUPPORTED = 74
    VIR_ERR_AGENT_UNRESPONSIVE = 86
    VIR_ERR_AGENT_COMMAND_TIMEOUT = 105

    def __init__(self, root: Path, active: bool = True, silent: int = 0, error: LibvirtError | None = None) -> None:
        self.root, self.active, self.silent, self.error = root, active, silent, error
        self.output = b""

    def registerErrorHandler(self, handler: Any, context: Any) -> None:
        pass

    def open(self, uri: str) -> Hypervisor:
        assert uri == "qemu:///system"
        return self

    def close(self) -> None:
        pass

    def lookupByName(self, name: str) -> Any:
        if name != "train-0":
            raise LibvirtError(f"Domain not found: no domain with matching name '{name}'", self.VIR_ERR_NO_DOMAIN)
        return SimpleNamespace(isActive=lambda: self.active, XMLDesc=lambda flags: DOMAIN)

    def qemuMonitorCommand(self, domain: Any, text: str, flags: int) -> str:
        assert json.loads(text) == {"execute": "query-pci"}
        return json.dumps({"return": QUERY_PCI, "id": "libvirt-7"})

    def qemuAgentCommand(self, domain: Any, text: str, timeout: int, flags: int) -> str:
        command = json.loads(text)
        if self.silent:
            self.silent -= 1
            raise LibvirtError("Guest agent is not responding", self.VIR_ERR_AGENT_UNRESPONSIVE)
        if command["execute"] == "guest-ping":
            return '{"return": {}}'
        if self.error is not None:
            raise self.error
        if command["execute"] == "guest-exec":
            self.output = subprocess.run(
                ["/bin/sh", "-c", script(str(self.root), IN_GUESTS)], capture_output=True
            ).stdout
            return '{"return": {"pid": 5}}'
        return json.dumps({"return": {"exited": True, "exitcode": 0, "out-data": encoded(self.output)}})


def test_read_guest(tmp_path: Path) -> None:
    hypervisor = Hypervisor(two_level_machine(tmp_path / "guest").root, silent=1)
    workspace = tmp_path / "workspace"
    workspace.mkdir()
    found = guest.read_guest("train-0", "qemu:///system", 30, workspace, (hypervisor, hypervisor))
    assert found["identity"]["0000:23:00.0"] == "0000:42:00.0"
    assert found["node_map"] == {"0": 1, "1": 0}
    assert len(found["guest_topology"]["pci"]) == 21
    assert (found["nccl_xml"], found["nvlink"]) == (None, True)  # there is an NVSwitch
    assert list(workspace.iterdir()) == []


def test_an_older_binding_of_libvirt(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delattr(Hypervisor, "VIR_ERR_AGENT_COMMAND_TIMEOUT")
    hypervisor = Hypervisor(two_level_machine(tmp_path / "guest").root, silent=1)
    found = guest.read_guest("train-0", "qemu:///system", 30, tmp_path, (hypervisor, hypervisor))
    assert found["node_map"] == {"0": 1, "1": 0}


def test_read_guest_brings_what_nccl_is_told(tmp_path: Path) -> None:
    root = two_level_machine(tmp_path / "guest").root
    (root / "run/nvidia-topologyd").mkdir(parents=True)
    (root / "run/nvidia-topologyd/virtualTopology.xml").write_text('<system version="1"/>\n', encoding="utf-8")
    hypervisor = Hypervisor(root)
    found = guest.read_guest("train-0", "qemu:///system", 30, tmp_path, (hypervisor, hypervisor))
    assert found["nccl_xml"] == '<system version="1"/>\n'


@pytest.mark.parametrize(("partition", "linked"), [("3", True), ("null", False)])
def test_a_partition_links_the_gpus(partition: str, linked: bool) -> None:
    metadata = f"<metadata><t:vm xmlns:t='urn:topovirt:kvm:1'>{{\"partition\": {partition}}}</t:vm></metadata>"
    domain = DOMAIN.replace("<cpu>", f"{metadata}<cpu>")
    assert guest._linked(domain, {"pci": [{"role": "gpu"}]}) is linked  # type: ignore[typeddict-item]


@pytest.mark.parametrize(
    ("name", "options", "message"),
    [
        ("other", {}, "VM other cannot be found: Domain not found"),
        ("train-0", {"active": False}, "VM train-0 is not running"),
        ("train-0", {"silent": 9}, "does not answer: Guest agent is not responding"),
        ("train-0", {"error": LibvirtError("agent not configured", 74)}, "refused guest-exec.*Give the VM a channel"),
        ("train-0", {"error": LibvirtError("The command guest-exec has been disabled", 1)}, "may forbid"),
    ],
)
def test_read_guest_says_what_is_wrong(tmp_path: Path, name: str, options: dict[str, Any], message: str) -> None:
    hypervisor = Hypervisor(tmp_path, **options)
    with pytest.raises(TopovirtError) as caught:
        guest.read_guest(name, "qemu:///system", 0, tmp_path, (hypervisor, hypervisor))
    assert re.search(message, str(caught.value))
