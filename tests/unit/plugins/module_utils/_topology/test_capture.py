# Copyright: the topovirt.kvm authors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

from __future__ import annotations

import io
import shutil
import subprocess
import tarfile
from pathlib import Path

import pytest
from ansible_collections.topovirt.kvm.plugins.module_utils._errors import TopovirtError
from ansible_collections.topovirt.kvm.plugins.module_utils._topology.capture import script, unpack
from ansible_collections.topovirt.kvm.plugins.module_utils._topology.model import Topology
from ansible_collections.topovirt.kvm.plugins.module_utils._topology.reader import read_topology
from ansible_collections.topovirt.kvm.tests.unit.plugins.module_utils._topology.machine import two_level_machine

TOOLS = ("cp", "dd", "gzip", "mkdir", "mktemp", "rm", "tar")


BUSYBOX = shutil.which("busybox")


@pytest.fixture(params=[None, BUSYBOX] if BUSYBOX else [None])
def shell(request: pytest.FixtureRequest, tmp_path: Path) -> tuple[list[str], dict[str, str]]:
    """The system's shell and tools, and where it is installed busybox alone, which is all that a small guest has (the
    guests of the emulated server run it in any case)."""
    busybox = request.param
    if busybox is None:
        return ["/bin/sh"], {"PATH": "/usr/bin:/bin"}
    tools = tmp_path / "tools"
    tools.mkdir()
    for tool in TOOLS:
        (tools / tool).symlink_to(busybox)
    return [busybox, "sh"], {"PATH": str(tools)}


def run(shell: tuple[list[str], dict[str, str]], root: Path, before: str = "") -> bytes:
    command, environment = shell
    text = f"{before}{script(str(root))}"
    done = subprocess.run([*command, "-c", text], env=environment, capture_output=True, check=True)
    assert done.stderr == b""
    return done.stdout


def without_capabilities(topology: Topology) -> list[object]:
    """A script copies no extended configuration space, for each word of it is an access to a device."""
    pci = [{key: value for key, value in item.items() if key != "capabilities"} for item in topology["pci"]]
    return [topology["host"], topology["iommu"], topology["numa_nodes"], topology["cores"], pci]


def test_a_captured_machine_reads_like_the_machine(shell: tuple[list[str], dict[str, str]], tmp_path: Path) -> None:
    machine = two_level_machine(tmp_path / "machine")
    gpu, nic = machine.paths["0000:25:00.0"], machine.paths["0000:26:00.0"]
    machine.link(f"{gpu}/physfn", "../0000:29:00.0")
    machine.write(f"{gpu}/driver_override", "vfio-pci\n")
    machine.write(f"{nic}/class", "0x020000\n")
    machine.write(f"{nic}/vpd", b"\x90\x13\x00VA\x10SMDL=SW_MNG:12345\x78")
    machine.link("sys/class/net/eth0", f"../../{nic[len('sys/') :]}/net/eth0")
    machine.link("sys/class/infiniband/mlx5_0", f"../../{nic[len('sys/') :]}/infiniband/mlx5_0")
    disk = machine.paths["0000:2a:00.0"]
    machine.link("sys/block/nvme0n1", f"../{disk[len('sys/') :]}/nvme/nvme0/nvme0n1")
    machine.write("sys/devices/pci0000:90/pci_bus/0000:90/cpulistaffinity", "2-3,6-7\n")
    for device in ("0000:90:00.0", "0000:91:00.0"):
        machine.write(f"{machine.paths[device]}/numa_node", "-1\n")
    machine.write(f"{gpu}/resource", "0xa0000000 0xa0ffffff 0x40200\n")
    machine.uevents()
    machine.write(f"{gpu}/device", "0x2336\n")  # so it is what is told at once that counts
    machine.write("sys/devices/system/cpu/cpu0/topology/core_siblings_list", "0-7\n")
    machine.write("sys/devices/system/cpu/cpu0/topology/die_cpus_list", "0-7\n")
    target = tmp_path / "captured"
    target.mkdir()
    unpack(run(shell, machine.root), target)
    topology = read_topology(machine.root)
    assert without_capabilities(read_topology(target)) == without_capabilities(topology)
    # The machine shows what a capture could lose.
    functions = {function["bdf"]: function for function in topology["pci"]}
    assert functions["0000:26:00.0"]["role"] == "fabric_bridge"
    assert functions["0000:26:00.0"]["names"] == ["eth0", "mlx5_0"]
    assert functions["0000:2a:00.0"]["names"] == ["nvme0n1"]
    assert functions["0000:91:00.0"]["numa_source"] == "0000:90"
    assert functions["0000:25:00.0"]["physfn"] == "0000:29:00.0"
    assert functions["0000:25:00.0"]["device"] == "2335"
    assert [core["package"] for core in topology["cores"]] == [0, 0, 0, 0]
    assert topology["host"]["firmware"] == "uefi"


def test_a_capture_leaves_nothing_behind(shell: tuple[list[str], dict[str, str]], tmp_path: Path) -> None:
    """Nothing of its own: others may be capturing meanwhile."""
    made = tmp_path / "made"
    noting = f'mktemp() {{ w=$(command mktemp "$@") || return; echo "$w" >>{made}; echo "$w"; }}\n'
    run(shell, two_level_machine(tmp_path / "machine").root, noting)
    places = [Path(line) for line in made.read_text().splitlines()]
    assert places
    assert not [place for place in places if place.exists()]


def test_the_live_machine_can_be_captured(tmp_path: Path) -> None:
    """Files of the real sysfs, which lie about their size."""
    unpack(run((["/bin/sh"], {"PATH": "/usr/bin:/bin"}), Path("/")), tmp_path)
    live, captured = read_topology(Path("/")), read_topology(tmp_path)
    for topology in (live, captured):
        for function in topology["pci"]:
            function["in_use"] = []  # not part of a capture
        for node in topology["numa_nodes"]:
            node["hugepages"] = {}  # others may take pages meanwhile
            node["memory_bytes"] = 0  # virtual machines grow and shrink
    assert captured == live
    assert captured["cores"]


def archive(*members: tuple[str, bytes | str | None, bytes]) -> bytes:
    """Name, content (a str is a link's target), tar type."""
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w:gz") as tar:
        for name, content, kind in members:
            info = tarfile.TarInfo(name)
            info.type = kind
            if isinstance(content, str):
                info.linkname = content
                tar.addfile(info)
            else:
                info.size = len(content or b"")
                tar.addfile(info, io.BytesIO(content or b""))
    return buffer.getvalue()


@pytest.mark.parametrize(
    "members",
    [
        [("/etc/evil", b"x", tarfile.REGTYPE)],
        [("../evil", b"x", tarfile.REGTYPE)],
        [("a/../../evil", b"x", tarfile.REGTYPE)],
        [("a", "..", tarfile.SYMTYPE), ("a/evil", b"x", tarfile.REGTYPE)],
        [("a", "..", tarfile.SYMTYPE), ("a/b/evil", b"x", tarfile.REGTYPE)],
        [("a", "../evil", tarfile.SYMTYPE), ("a", b"x", tarfile.REGTYPE)],
        [("a", "..", tarfile.SYMTYPE), ("./a/", None, tarfile.DIRTYPE), ("a/evil", b"x", tarfile.REGTYPE)],
        [("evil", "/etc/passwd", tarfile.LNKTYPE)],
        [("evil", None, tarfile.FIFOTYPE)],
        [("evil", None, tarfile.CHRTYPE)],
    ],
    ids=str,
)
def test_a_hostile_archive_is_refused(tmp_path: Path, members: list[tuple[str, bytes | str | None, bytes]]) -> None:
    target = tmp_path / "target"
    target.mkdir()
    with pytest.raises(TopovirtError, match="cannot be unpacked"):
        unpack(archive(*members), target)
    assert not (tmp_path / "evil").exists()


def test_a_captured_link_that_leads_outside_shows_nothing(tmp_path: Path) -> None:
    (tmp_path / "secret").write_text("ID=secret\n")
    target = tmp_path / "target"
    target.mkdir()
    unpack(archive(("etc/os-release", "../../secret", tarfile.SYMTYPE)), target)
    assert read_topology(target)["host"]["os_id"] is None


DAMAGED = [b"", b"no archive", archive(("a", b"x" * 5000, tarfile.REGTYPE))[:-40]]


@pytest.mark.parametrize("data", DAMAGED, ids=["empty", "text", "cut"])
def test_a_damaged_archive_is_refused(tmp_path: Path, data: bytes) -> None:
    with pytest.raises(TopovirtError, match="cannot be unpacked"):
        unpack(data, tmp_path)


def test_an_archive_that_is_too_large_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    module = "ansible_collections.topovirt.kvm.plugins.module_utils._topology.capture"
    monkeypatch.setattr(f"{module}._MAX_BYTES", 10)
    with pytest.raises(TopovirtError, match="more than"):
        unpack(archive(("a", b"12345678", tarfile.REGTYPE), ("b", b"123", tarfile.REGTYPE)), tmp_path)
