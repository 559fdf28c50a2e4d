# Copyright: the topovirt.kvm authors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""A capture that is given away reads like the machine, and does not name it."""

from __future__ import annotations

import gzip
import io
import subprocess
import tarfile
from pathlib import Path
from typing import Any

import pytest
from ansible_collections.topovirt.kvm.plugins.module_utils._errors import TopovirtError
from ansible_collections.topovirt.kvm.plugins.module_utils._topology.capture import script, unpack
from ansible_collections.topovirt.kvm.plugins.module_utils._topology.model import Topology
from ansible_collections.topovirt.kvm.plugins.module_utils._topology.publish import (
    NO_BOOT,
    answers,
    public_cmdline,
    repack,
)
from ansible_collections.topovirt.kvm.plugins.module_utils._topology.reader import read_topology
from ansible_collections.topovirt.kvm.plugins.module_utils._topology.sysfs import Tree

from tests.twin import description, recorded
from tests.unit.plugins.module_utils._topology.machine import two_level_machine

SECRETS = (b"MT2345X00042", b"enx02005e10aa07", b"0a1b2c3d", b"10.11.12.13", b"11111111-2222")
VPD = b"\x90\x25\x00VA\x10SMDL=SW_MNG:12345SN\x0fMT2345X00042\x00\x00\x00\x78"


def captured(root: Path) -> bytes:
    return subprocess.run(["/bin/sh", "-c", script(str(root))], capture_output=True, check=True).stdout


def read_back(archive: bytes, target: Path) -> Topology:
    target.mkdir()
    unpack(archive, target)
    return read_topology(target)


def comparable(topology: Topology) -> dict[str, Any]:
    """All facts but those that a capture is not to carry."""
    result: dict[str, Any] = dict(topology)
    result["host"] = {key: value for key, value in topology["host"].items() if key not in ("boot_id", "cmdline")}
    result["pci"] = [{key: value for key, value in item.items() if key != "in_use"} for item in topology["pci"]]
    return result


def packed(root: Path, identifiers: bool = False) -> bytes:
    return repack(captured(root), answers(Tree(root), read_topology(root)), identifiers)


@pytest.mark.parametrize("machine", description.names())
def test_every_machine_reads_back_as_it_was(machine: str, tmp_path: Path) -> None:
    tree = tmp_path / "machine"
    recorded.record(description.load(machine), tree)
    topology = read_topology(tree)
    assert comparable(read_back(packed(tree), tmp_path / "back")) == comparable(topology)


@pytest.fixture
def named(tmp_path: Path) -> Path:
    """A machine whose files name it."""
    machine = two_level_machine(tmp_path / "machine")
    machine.write("proc/cmdline", "root=UUID=0a1b2c3d-0000 ro ip=10.11.12.13::eth0 intel_iommu=on hugepages=0:2,1:2\n")
    nic = machine.paths["0000:26:00.0"]
    machine.write(f"{nic}/class", "0x020000\n")
    machine.write(f"{nic}/vpd", VPD)
    machine.link("sys/class/net/enx02005e10aa07", f"../../{nic[len('sys/') :]}/net/enx02005e10aa07")
    return tmp_path / "machine"


def content(archive: bytes) -> bytes:
    return gzip.decompress(archive)


def test_nothing_names_the_machine(named: Path, tmp_path: Path) -> None:
    raw = captured(named)
    assert all(secret in content(raw) for secret in SECRETS)  # else this test would prove nothing
    archive = packed(named)
    assert not [secret for secret in SECRETS if secret in content(archive)]
    back = read_back(archive, tmp_path / "back")
    assert back["host"]["cmdline"] == "root=hidden ro ip=hidden intel_iommu=on hugepages=0:2,1:2"
    assert back["host"]["boot_id"] == NO_BOOT.decode().strip()
    roles = {item["bdf"]: item["role"] for item in back["pci"]}
    assert [item["names"] for item in back["pci"] if item["bdf"] == "0000:26:00.0"] == [["enx000000000001"]]
    assert roles["0000:26:00.0"] == {item["bdf"]: item["role"] for item in read_topology(named)["pci"]}["0000:26:00.0"]


def test_identifiers_stay_when_asked_for(named: Path) -> None:
    archive = packed(named, identifiers=True)
    assert all(secret in content(archive) for secret in SECRETS)


def test_the_same_machine_gives_the_same_bytes(named: Path) -> None:
    assert packed(named) == packed(named)
    with tarfile.open(fileobj=io.BytesIO(packed(named))) as tar:
        assert {(member.uid, member.gid, member.mtime, member.uname) for member in tar} == {(0, 0, 0, "")}


def test_a_damaged_capture_is_one_error(named: Path) -> None:
    with pytest.raises(TopovirtError, match="cannot be read back"):
        repack(captured(named)[:-200], {})


@pytest.mark.parametrize(
    "word,shown",
    [
        ("quiet", "quiet"),
        ("iommu.strict=1", "iommu.strict=1"),
        ("pci=config_acs=1@0000:01:00.0", "pci=config_acs=1@0000:01:00.0"),
        ("rd.luks.uuid=luks-1", "rd.luks.uuid=hidden"),
        ("systemd.hostname=node17", "systemd.hostname=hidden"),
        ("vfio-pci.ids=10de:2335", "vfio-pci.ids=10de:2335"),
    ],
)
def test_values_on_the_command_line(word: str, shown: str) -> None:
    assert public_cmdline(f"{word}\n") == shown
