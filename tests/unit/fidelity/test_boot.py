# Copyright: the topovirt.kvm authors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""The judge of booted guests, and what is booted. The boots themselves: ``python -m tests.fidelity boot``."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from tests.fidelity import boot, cases, checked_copy, controls, guest_tree, libvirt_judges, stand_ins
from tests.fidelity.cases import Case
from tests.twin import description
from tests.twin.images import bake
from tests.twin.lifecycle import cache_directory

GPU = "0x10de 0x2335"
BAR = (0x200, 1 << 30)
# Two switches below one root port and one more, one plain root port, one other host bridge of each node.
TREE = {
    "a": "pci0000:20/0000:20:00.0/0000:21:00.0/0000:22:00.0/0000:23:00.0",
    "b": "pci0000:20/0000:20:00.0/0000:21:00.0/0000:22:01.0/0000:24:00.0",
    "c": "pci0000:20/0000:20:00.0/0000:21:00.0/0000:22:02.0/0000:25:00.0/0000:26:00.0/0000:27:00.0",
    "d": "pci0000:20/0000:20:01.0/0000:28:00.0",
    "e": "pci0000:20/0000:20:01.0/0000:28:00.1",
    "f": "pci0000:40/0000:40:00.0/0000:41:00.0",
    "g": "pci0000:60/0000:60:00.0/0000:61:00.0",
}
NODES = {"pci0000:20": 0, "pci0000:40": 0, "pci0000:60": 1}
CLASSES = [
    ("a", "b", "PIX"),
    ("a", "c", "PXB"),
    ("a", "d", "PHB"),
    ("d", "e", "PIX"),
    ("a", "f", "NODE"),
    ("a", "g", "SYS"),
]


class Tree:
    """A /sys with the functions of TREE; endpoints have one BAR each, one after the other."""

    def __init__(self, root: Path) -> None:
        self.root = root
        self.next = 1 << 40
        self.bdf = {name: path.rpartition("/")[2] for name, path in TREE.items()}
        for path in TREE.values():
            bus, *functions = path.split("/")
            for depth, function in enumerate(functions):
                self.add(bus, functions[:depth], function, endpoint=depth == len(functions) - 1)

    def add(self, bus: str, above: list[str], bdf: str, endpoint: bool) -> None:
        place = self.root / "sys/devices" / "/".join([bus, *above, bdf])
        if place.exists():
            return
        place.mkdir(parents=True)
        link = self.root / "sys/bus/pci/devices" / bdf
        link.parent.mkdir(parents=True, exist_ok=True)
        link.symlink_to(f"../../../devices/{'/'.join([bus, *above, bdf])}")
        for name, text in zip(("vendor", "device"), GPU.split(), strict=True):
            (place / name).write_text(f"{text}\n")
        (place / "numa_node").write_text(f"{NODES[bus]}\n")
        lines = ["0x0 0x0 0x0"] * (7 if endpoint else 17)
        if endpoint:
            lines[2] = f"{self.next:#x} {self.next + BAR[1] - 1:#x} {BAR[0]:#x}"
            self.next += BAR[1]
        else:
            lines[15] = f"{1 << 40:#x} {(2 << 40) - 1:#x} 0x200"
        (place / "resource").write_text("\n".join(lines) + "\n")

    def judge(self, guest: Tree) -> guest_tree.Findings:
        identity: dict[str, str | None] = {self.bdf[name]: guest.bdf[name] for name in TREE}
        return guest_tree.judge(guest_tree.Kernel(self.root), guest_tree.Kernel(guest.root), identity, {0: 0, 1: 1})

    def file(self, name: str, what: str) -> Path:
        return self.root / "sys/bus/pci/devices" / self.bdf[name] / what


@pytest.fixture
def host(tmp_path: Path) -> Tree:
    return Tree(tmp_path / "host")


@pytest.fixture
def guest(tmp_path: Path) -> Tree:
    return Tree(tmp_path / "guest")


@pytest.mark.parametrize("a,b,expected", CLASSES)
def test_path_classes_as_nvidia_smi_defines_them(host: Tree, a: str, b: str, expected: str) -> None:
    kernel = guest_tree.Kernel(host.root)
    assert kernel.path_class(host.bdf[a], host.bdf[b]) == expected
    assert kernel.path_class(host.bdf[b], host.bdf[a]) == expected


def test_an_unknown_node_is_not_another_unknown_one(host: Tree) -> None:
    for name in ("a", "f"):
        host.file(name, "numa_node").write_text("-1\n")
    assert guest_tree.Kernel(host.root).path_class(host.bdf["a"], host.bdf["f"]) == "SYS"


def test_equal_trees_have_no_faults(host: Tree, guest: Tree) -> None:
    findings = host.judge(guest)
    assert findings.faults == []
    assert (findings.devices, findings.pairs, findings.bars) == (7, 21, 7)
    assert sum(findings.classes.values()) == 21
    assert findings.address_bits == 41


def test_a_lost_device_and_a_wrong_one_are_flagged(host: Tree, guest: Tree) -> None:
    (guest.root / "sys/bus/pci/devices" / guest.bdf["a"]).unlink()
    guest.file("b", "device").write_text("0x1234\n")
    assert [fault.split()[0] for fault in host.judge(guest).lost] == [host.bdf["a"], host.bdf["b"]]


def test_a_device_that_nobody_can_place_is_lost(host: Tree, guest: Tree) -> None:
    findings = guest_tree.judge(guest_tree.Kernel(host.root), guest_tree.Kernel(guest.root), {host.bdf["a"]: None}, {})
    assert len(findings.lost) == 1


def test_a_wrong_node_is_flagged_where_the_guest_has_the_hosts(host: Tree, guest: Tree) -> None:
    guest.file("a", "numa_node").write_text("1\n")
    assert host.judge(guest).nodes == [f"{host.bdf['a']} is on guest node 1, expected 0"]


def test_a_node_that_the_guest_lacks_is_none_there(host: Tree, guest: Tree) -> None:
    guest.file("g", "numa_node").write_text("-1\n")
    identity: dict[str, str | None] = {host.bdf["g"]: guest.bdf["g"]}
    kernels = guest_tree.Kernel(host.root), guest_tree.Kernel(guest.root)
    assert guest_tree.judge(*kernels, identity, {0: 0}).nodes == []
    assert len(guest_tree.judge(*kernels, identity, {0: 0, 1: 1}).nodes) == 1


@pytest.mark.parametrize(
    "line,fault",
    [
        ("0x0 0x3fffffff 0x200", "has no address"),
        ("0x10040000000 0x1007fffffff 0x20000200", "has no address"),
        ("0x10040000000 0x1004fffffff 0x200", "is 0x10000000 bytes in the guest"),
        ("0x0 0x0 0x0", "is missing in the guest"),
        ("0x30000000000 0x3003fffffff 0x200", "lies outside the windows of port"),
        ("0x10040000000 0x1007fffffff 0x200", "overlaps"),  # the BAR of the next device
    ],
)
def test_a_bar_that_is_not_placed_is_flagged(host: Tree, guest: Tree, line: str, fault: str) -> None:
    lines = guest.file("a", "resource").read_text().splitlines()
    lines[2] = line
    guest.file("a", "resource").write_text("\n".join(lines))
    found = host.judge(guest).wrong_bars
    assert found != []
    assert all(fault in item for item in found)


def vm() -> tuple[Case, dict[str, Any]]:
    case = controls.CASE
    return case, cases.plan(case)


def test_what_is_booted_is_libvirts_translation_with_stand_ins(tmp_path: Path) -> None:
    case, plan = vm()
    names = stand_ins.endpoints(description.load(case.machine))
    files = checked_copy.Boot(
        *(Path("/k"), Path("/i"), "console=ttyS0", Path("/d"), Path("agent.sock"), Path("/code"), Path("/vars"))
    )
    copy = checked_copy.for_boot(checked_copy.without_host(plan["domain_xml"], 46), files)
    (translation,) = libvirt_judges.translate(bake.ensure_libvirt(cache_directory(), print), [copy])
    assert translation.error == ""
    argv = stand_ins.arguments(translation.argv, names)
    before = [json.loads(value) for value in values(translation.argv, "-device")]
    after = [json.loads(value) for value in values(argv, "-device")]
    for one, other in zip(before, after, strict=True):
        if one["driver"] != "vfio-pci":
            assert other == one
            continue
        assert {key: other[key] for key in ("id", "bus", "addr")} == {key: one[key] for key in ("id", "bus", "addr")}
        assert other["driver"] == "vfio-user-pci"
        assert other["socket"]["path"] == f"devices/{names[one['host']]}"
    assert stand_ins.hosts(translation.argv).keys() == {device["id"] for device in before if "host" in device}
    assert values(argv, "-cpu") == values(translation.argv, "-cpu")
    assert "phys-bits=46" in values(argv, "-cpu")[0]
    sizes = [json.loads(value)["size"] for value in values(argv, "-object") if "memory-backend" in value]
    assert sizes == [3 << 30] * 2
    assert not {"-S", "-sandbox", "-mon"} & set(argv)
    assert values(argv, "-kernel") == ["/k"]


def values(argv: list[str], option: str) -> list[str]:
    return [argv[number + 1] for number, word in enumerate(argv) if word == option]


def test_what_nothing_can_stand_in_for_is_refused() -> None:
    argv = ["LC_ALL=C", "/usr/bin/qemu", "-device", '{"driver":"vfio-pci","host":"0000:01:00.0","id":"x"}']
    with pytest.raises(ValueError, match=r"0000:01:00\.0"):
        stand_ins.arguments(argv, {})


def test_places_come_from_qemu_at_any_depth() -> None:
    inner = {"qdev_id": "ua-1", "bus": 33, "slot": 0, "function": 1}
    port = {"qdev_id": "pci.2", "bus": 32, "slot": 1, "function": 0, "pci_bridge": {"devices": [inner]}}
    assert boot.placed([{"devices": []}, {"devices": [port]}]) == {"pci.2": "0000:20:01.0", "ua-1": "0000:21:00.1"}


def test_an_address_that_is_not_the_layouts_is_told() -> None:
    layout = {
        "devices": [{"bdf": "0000:23:00.0", "guest_bdf": "0000:21:00.0"}],
        "pcie": [{"index": 1, "model": "pcie-root-port", "guest_bdf": "0000:20:00.0"}],
    }
    where = {"pci.1": "0000:20:00.0"}
    assert boot.misplaced(layout, where, {"0000:23:00.0": "0000:21:00.0"}) == []
    assert len(boot.misplaced(layout, {}, {"0000:23:00.0": "0000:22:00.0"})) == 2


def test_the_controls_change_what_they_say_and_no_more() -> None:
    _case, plan = vm()
    gap, bits = (control.mutate(plan) for control in controls.CONTROLS)
    assert controls.fewest_addresses(plan)["layout"]["mmio"]["phys_bits"] == plan["layout"]["mmio"]["needed_bits"]
    assert gap["layout"] == plan["layout"]
    assert gap["domain_xml"] != plan["domain_xml"]
    assert bits["domain_xml"] == plan["domain_xml"]
    assert bits["layout"]["mmio"]["phys_bits"] == 40 < plan["layout"]["mmio"]["phys_bits"]


def test_the_table_counts_what_is_right(host: Tree, guest: Tree) -> None:
    guest.file("a", "numa_node").write_text("1\n")
    case = Case("hgx-h200", "none", 8, "bios")
    text = boot.table([boot.Booted(case, 46, 10.0, 20.0, host.judge(guest), [], "", "")])
    assert "7/7" in text and "6/7" in text and "41 of 46" in text and "FAULT" in text
    assert "is on guest node 1, expected 0" in text
    assert "it never came" in boot.table([boot.Booted(case, 46, 0.0, 300.0, None, [], "", "it never came")])
