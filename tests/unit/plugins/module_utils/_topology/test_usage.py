# Copyright: the topovirt.kvm authors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""What the host uses, read from trees that nobody can trust; ``_host/test_guard.py`` tests each kind of use."""

from __future__ import annotations

import json
import os
import shutil
import signal
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from ansible_collections.topovirt.kvm.plugins.module_utils._topology.host_use import reading
from ansible_collections.topovirt.kvm.plugins.module_utils._topology.host_use.mounts import Mount, all_mounts
from ansible_collections.topovirt.kvm.plugins.module_utils._topology.reader import read_topology
from ansible_collections.topovirt.kvm.plugins.module_utils._topology.sysfs import Tree
from ansible_collections.topovirt.kvm.plugins.module_utils._topology.usage import host_usage
from ansible_collections.topovirt.kvm.tests.unit.plugins.module_utils._topology.machine import Machine

DISK, NIC, OTHER = "0000:03:00.0", "0000:04:00.0", "0000:05:00.0"
MOUNT = "36 1 259:0 / / rw,relatime shared:1 - ext4 /dev/nvme0n1 rw\n"
ROUTES = (
    "Iface\tDestination\tGateway\tFlags\tRefCnt\tUse\tMetric\tMask\tMTU\tWindow\tIRTT\n"
    "eth0\t00000000\t0202000A\t0003\t0\t0\t0\t00000000\t0\t0\t0\n"
)
HANG_SECONDS = 60

# All files that the search for uses reads, besides attributes of devices.
TABLES = (
    "proc/self/mountinfo",
    "proc/77/mountinfo",
    "proc/77/comm",
    "proc/swaps",
    "proc/net/route",
    "proc/net/ipv6_route",
    "proc/net/if_inet6",
    "proc/net/fib_trie",
    "proc/net/vlan/config",
    "proc/net/tcp",
    "etc/fstab",
    "etc/kdump.conf",
    "run/udev/data/b259:0",
    "proc/driver/nvidia/gpus/0000:05:00.0/information",
    "sys/class/nvme/nvme0/address",
    "sys/class/net/eth0/flags",
    "sys/class/net/eth0/bonding/slaves",
    "sys/class/block/nvme0n1/dev",
)


@pytest.fixture(autouse=True)
def no_hang() -> Iterator[None]:
    """A reader that waits for a FIFO or never comes to an end fails instead."""

    def late(*_arguments: Any) -> None:
        raise AssertionError("the reader hangs")

    before = signal.signal(signal.SIGALRM, late)
    signal.alarm(HANG_SECONDS)
    yield
    signal.alarm(0)
    signal.signal(signal.SIGALRM, before)


@pytest.fixture
def machine(tmp_path: Path) -> Machine:
    """A disk and a network adapter in use, and a device that is not."""
    machine = Machine(tmp_path / "tree")
    machine.pci(DISK, "pci0000:00", "144d:a80a", "0x010802")
    machine.pci(NIC, "pci0000:00", "8086:10c9", "0x020000")
    machine.pci(OTHER, "pci0000:00", "10de:2335", "0x030200", driver="nvidia")
    disk = f"{machine.paths[DISK]}/nvme/nvme0/nvme0n1"
    machine.write(f"{disk}/dev", "259:0\n")
    machine.link("sys/class/block/nvme0n1", f"../../{disk[4:]}")
    machine.link("sys/block/nvme0n1", f"../{disk[4:]}")
    machine.link("sys/class/nvme/nvme0", f"../../{machine.paths[DISK][4:]}/nvme/nvme0")
    interface(machine, "eth0", NIC)
    machine.write("proc/self/mountinfo", MOUNT)
    machine.write("proc/net/route", ROUTES)
    return machine


def interface(machine: Machine, name: str, bdf: str) -> None:
    path = f"{machine.paths[bdf]}/net/{name}"
    machine.write(f"{path}/flags", "0x1003\n")
    machine.link(f"{path}/device", "../..")
    machine.link(f"sys/class/net/{name}", f"../../{path[4:]}")


def uses(machine: Machine) -> dict[str, list[str]]:
    """The uses of the tree, as the topology has them, and in a form that can be published."""
    found = {item["bdf"]: item["in_use"] for item in read_topology(machine.root)["pci"] if item["in_use"]}
    assert json.loads(json.dumps(found, ensure_ascii=False).encode()) == found
    return found


def replace(machine: Machine, path: str, make: Callable[[Path], Any]) -> None:
    place = machine.root / path
    place.parent.mkdir(parents=True, exist_ok=True)
    if place.is_dir() and not place.is_symlink():
        shutil.rmtree(place)
    elif os.path.lexists(place):
        place.unlink()
    make(place)


def test_disk_and_network_are_used(machine: Machine) -> None:
    assert uses(machine) == {
        DISK: ["/dev/nvme0n1 on it is mounted on / (ext4)"],
        NIC: ["interface eth0 carries the default route"],
    }


# --- files that are none ------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "make",
    [lambda place: place.symlink_to("/dev/zero"), os.mkfifo, Path.mkdir, lambda place: place.symlink_to(place.name)],
    ids=["dev-zero", "fifo", "directory", "circle"],
)
def test_what_is_no_file_counts_as_absent(machine: Machine, make: Callable[[Path], Any]) -> None:
    for path in TABLES:
        replace(machine, path, make)
    assert uses(machine) == {}


def test_what_is_no_directory_counts_as_absent(machine: Machine) -> None:
    for path in ("proc", "sys/class/block", "sys/class/net", "sys/class/nvme", "sys/fs/btrfs", "sys/class/drm"):
        replace(machine, path, os.mkfifo)
    assert uses(machine) == {}


@pytest.mark.parametrize("path", ["proc/self/mountinfo", "proc/self", "proc"])
def test_the_live_machines_tables_are_not_shown(machine: Machine, tmp_path: Path, path: str) -> None:
    outside = Machine(tmp_path / "live")
    outside.write("proc/self/mountinfo", MOUNT)
    replace(machine, path, lambda place: place.symlink_to(outside.root / path))
    assert DISK not in uses(machine)


@pytest.mark.parametrize("relative", [False, True])
def test_a_disk_that_leads_outside_of_the_tree_is_not_followed(
    machine: Machine, tmp_path: Path, relative: bool
) -> None:
    """Below the link is, on the live machine, the disk that the tree says is mounted and a function that it is on."""
    outside = Machine(tmp_path / "live")
    outside.write(f"devices/{OTHER}/block/sda/dev", "8:0\n")
    target = str(outside.root / f"devices/{OTHER}/block/sda")
    for directory in ("sys/block", "sys/class/block"):
        machine.link(f"{directory}/sda", ("../" * 40 if relative else "") + target.lstrip("/" if relative else ""))
    machine.write("proc/self/mountinfo", "36 1 8:0 / /data rw - ext4 none rw\n")
    assert OTHER not in uses(machine)
    assert Tree(machine.root).text("sys/class/block/sda/dev") is None


def test_an_absolute_link_leads_to_a_place_in_the_tree(machine: Machine) -> None:
    disk = f"/{machine.paths[DISK]}/nvme/nvme0/nvme0n1"
    replace(machine, "sys/class/block/nvme0n1", lambda place: place.symlink_to(disk))
    assert uses(machine)[DISK] == ["/dev/nvme0n1 on it is mounted on / (ext4)"]


# --- rubbish in files ---------------------------------------------------------------------------------------------

RUBBISH = (
    b"",
    b"\n\n\n",
    b"\0" * 5000,
    b"\xff\xfe\x80" * 3000,
    b"a b c d e f g h i j k l\n" * 3,
    b" - \n- - -\n / /  - x\n",
    b"-1 -1 -1 -1 -1 -1 -1 -1 -1 -1\n" * 3,
    b"99999999999999999999999999 " * 12 + b"\n" + b"f" * 40 + b" 81 " + b"f " * 12 + b"\n",
    b"1" * 9000,
    b"a" * 300000 + b"\n",
    b"head\neth0 0 0 0x1 0 0 0 0\neth0 00000000 00000000 zz 0 0 0 00000000\neth0 00 00 0003 0 0 0 00\n",
    b"head\neth0 00000000 00000000 0003 0 0 0 FF00FF00 0 0 0\n",
    "²³ ٣ ٣ ٣ ٣ ٣ ٣ ٣ ٣ ٣ ٣\n".encode(),
    b"head\n  |-- 999.1\n /32 host LOCAL\n  |-- ....\n /32 host LOCAL\n|--\n /32 host LOCAL\n",
    b"head\n 0: : 0 01 0 0 0 0 0 4711 1\n 0: zz:1 0 01 0 0 0 0 0 4711\n 0: 01 0 01 0 0 0 0 0 4711\n",
    b"head\n/dev/x\\000y none\n/dev/ \n/dev/../../../dev/zero x x\n/dev/mapper/ x x\n",
    b"UUID=../../.. / ext4\nUUID=\\000 / ext4\nLABEL= / x\nUUID / x\n/dev/disk/by-uuid/.. / x\n",
    b"ext4 UUID=\\000\nraw /dev/\0\nnfs :\nssh @\nnfs [::]]:%\n",
    b"1 2 0:0 / /\\777\\000 rw - nfs " + b"1" * 20000 + b" rw,addr=x,addr=::1%%,addr=\n",
    b"Device Minor: " + b"9" * 5000,
    b"E:\nE:=\nE\nE:ID_FS_TYPE\nE:A=B=C\n",
    b"traddr=,traddr=[::\n",
    b"0x" + b"f" * 4000,
)


@pytest.mark.parametrize("path", TABLES)
def test_rubbish_is_skipped(machine: Machine, path: str) -> None:
    pci = read_topology(machine.root)["pci"]
    machine.link("proc/77/fd/3", "/dev/nvidia99999999999999999999")
    machine.link("proc/77/fd/4", "socket:[")
    machine.write("proc/77/comm", "sshd\n")
    for data in RUBBISH:
        replace(machine, path, lambda place, data=data: place.write_bytes(data))  # type: ignore[misc]
        json.dumps(host_usage(Tree(machine.root), None, pci), ensure_ascii=False).encode()


@pytest.mark.parametrize(
    "answer",
    ["", "{", "null", "{}", "[1, null, [], {}]", '[{"ifname": 1, "addr_info": []}, {"ifname": "eth0"}]',
     '[{"ifname": "eth0", "addr_info": 5}]', '[{"ifname": "eth0", "addr_info": [1, {}, {"local": 5}, {"local": "x"}]}]',
     '[{"ifname": "\\ud800", "addr_info": [{"local": "10.0.0.1"}]}]'],
)  # fmt: skip
def test_rubbish_from_ip_is_skipped(machine: Machine, answer: str) -> None:
    assert set(host_usage(Tree(machine.root), lambda _words: (0, answer, ""), [])) == {DISK, NIC}


def test_a_line_that_makes_sense_counts_among_rubbish(machine: Machine) -> None:
    rubbish = b"\xff\0 \n1 2 3 - \n" * 1000
    machine.write("proc/self/mountinfo", rubbish + MOUNT.encode() + rubbish)
    machine.write("proc/net/route", ROUTES.encode() + rubbish)
    assert set(uses(machine)) == {DISK, NIC}


def test_a_table_can_be_longer_than_a_page(machine: Machine) -> None:
    many = "".join(f"{number} 1 0:{number} / /run/{number} rw - tmpfs tmpfs rw\n" for number in range(40, 3000))
    machine.write("proc/self/mountinfo", many + MOUNT)
    machine.write("run/udev/data/b259:0", "S:disk/by-id/x\n" * 1000 + "E:ID_FS_TYPE=LVM2_member\n")
    assert uses(machine)[DISK] == [
        "/dev/nvme0n1 on it is mounted on / (ext4)",
        "/dev/nvme0n1 on it is an LVM physical volume",
    ]


# --- names --------------------------------------------------------------------------------------------------------


def test_a_mount_point_need_not_be_utf8(machine: Machine) -> None:
    line = b"36 1 259:0 / /a\xff\\040b\x0c\xe2\x80\xa8c rw - ext4 /dev/nvme0n1 rw\n"
    machine.write("proc/self/mountinfo", line)
    machine.write("proc/77/mountinfo", line)
    mounts = all_mounts(Tree(machine.root))
    assert mounts == [Mount("259:0", "/a\ufffd b\x0c\u2028c", "ext4", "/dev/nvme0n1", "rw")]
    assert uses(machine)[DISK] == ["/dev/nvme0n1 on it is mounted on /a\ufffd b\x0c\u2028c (ext4)"]


def test_a_mount_can_have_an_empty_source(machine: Machine) -> None:
    machine.write("proc/self/mountinfo", "36 1 259:0 / /a rw - ext4  rw,noatime\n")
    assert all_mounts(Tree(machine.root)) == [Mount("259:0", "/a", "ext4", "", "rw,noatime")]


def test_names_of_interfaces_and_nodes_need_not_be_utf8(machine: Machine) -> None:
    """The kernel takes any byte but a few; a directory's name and a line of the routing table mean the same."""
    name = os.fsdecode(b"n\xe2\x82x\xff")
    interface(machine, name, OTHER)
    machine.write("proc/net/route", ROUTES.encode().replace(b"eth0", os.fsencode(name)))
    machine.link("proc/77/fd/3", os.fsdecode(b"/dev/\xff/nvme0n1"))
    assert uses(machine) == {
        DISK: ["/dev/nvme0n1 on it is mounted on / (ext4)", "process (pid 77) has /dev/\ufffd/nvme0n1 open"],
        OTHER: ["interface n\ufffdx\ufffd carries the default route"],
    }


def test_shown_is_what_a_file_would_say() -> None:
    for data in (b"plain", "gr\u00fcn".encode(), b"\xe2\x82x\xff", b"\xc3", bytes(range(1, 256))):
        assert reading.shown(os.fsdecode(data)) == data.decode("utf-8", "replace")


# --- shapes that are none -----------------------------------------------------------------------------------------


def test_piles_and_circles_of_devices_end(machine: Machine) -> None:
    """More levels than Python nests calls, two ways from each to the next, and back to the first."""
    levels = 1100
    for level in range(levels):
        block, net = f"sys/class/block/dm-{level}", f"sys/class/net/v{level}"
        machine.write(f"{block}/dev", f"253:{level}\n")
        machine.write(f"{net}/flags", "0x1\n")
        for way in {0, level + 1, min(level + 2, levels)}:
            machine.link(f"{block}/slaves/{f'dm-{way}' if way < levels else 'nvme0n1'}", "x")
            machine.link(f"{net}/lower_{f'v{way}' if way < levels else 'eth0'}", "x")
    machine.write("proc/self/mountinfo", "36 1 253:0 / /deep rw - ext4 none rw\n")
    machine.write("proc/net/route", ROUTES.replace("eth0", "v0"))
    found = host_usage(Tree(machine.root), None, [])
    assert found == {
        DISK: ["/dev/dm-0 on it is mounted on /deep (ext4)"],
        NIC: ["interface v0 carries the default route"],
    }


def test_circles_of_virtual_functions_end(machine: Machine) -> None:
    pci = read_topology(machine.root)["pci"]
    above = {DISK: DISK, NIC: OTHER, OTHER: NIC}
    for function in pci:
        function["physfn"] = above[function["bdf"]]
    found = host_usage(Tree(machine.root), None, pci)
    assert {bdf: len(reasons) for bdf, reasons in found.items()} == {DISK: 2, NIC: 1, OTHER: 1}


# --- where links lead ---------------------------------------------------------------------------------------------


def test_resolved_stays_inside_and_needs_nothing_there(tmp_path: Path) -> None:
    machine = Machine(tmp_path / "tree")
    machine.write("a/b/file", "")
    machine.link("a/up", "../../../../../a/b")
    machine.link("a/absolute", "/a/up/file")
    machine.link("a/circle", "circle")
    machine.link("a/dangling", "../gone/0000:01:00.0")
    tree = Tree(machine.root)
    assert tree.resolved("a/up") == "a/b"
    assert tree.resolved("a/absolute") == "a/b/file"
    assert tree.resolved("a/dangling/net") == "gone/0000:01:00.0/net"
    assert tree.resolved("a/circle/x") is None
    assert tree.resolved("..") == ""
    assert reading.bdf_of(tree, "a/dangling/net") == "0000:01:00.0"
    assert [tree.is_directory(path) for path in ("a/up", "a/absolute", "a/circle", "gone", "")] == [
        True, False, False, False, True,
    ]  # fmt: skip


def test_the_live_machine_is_read_as_it_is(tmp_path: Path) -> None:
    """Links of processes, which lead to no path, and links of sysfs."""
    live = Tree(Path("/"))
    (tmp_path / "link").symlink_to("/proc/self")
    assert live.resolved(f"{tmp_path}/link".lstrip("/")) == f"proc/{os.getpid()}"
    assert all_mounts(live)
    assert (live.link("proc/self/ns/mnt") or "").startswith("mnt:[")
    assert isinstance(host_usage(live, None, []), dict)
