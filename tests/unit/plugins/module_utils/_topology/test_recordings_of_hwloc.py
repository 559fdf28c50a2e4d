# Copyright: the topovirt.kvm authors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""The reader on real machines that hwloc's tests hold, against what hwloc itself says of them."""

from __future__ import annotations

import os
import re
import tarfile
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path

import pytest
from ansible_collections.topovirt.kvm.plugins.module_utils._topology.model import Topology
from ansible_collections.topovirt.kvm.plugins.module_utils._topology.reader import read_topology

CAPTURES = Path(__file__).resolve().parents[6] / "shared" / "captures" / "hwloc" / "linux"


@dataclass(frozen=True)
class Line:
    """An object in lstopo's text: what it is, its number (of the operating system), its address, what is above."""

    kind: str
    number: int | None
    bdf: str | None
    above: list[Line] = field(default_factory=list)


def lines(text: str) -> Iterator[Line]:
    """Depth is the indentation."""
    stack: list[tuple[int, Line]] = []
    for raw in text.splitlines():
        match = re.match(r"( *)(\w+)(?:\(\w+\))? L#\d+(.*)", raw)
        if not match:
            continue
        depth = len(match[1])
        stack = [(d, line) for d, line in stack if d < depth]
        number, bdf = re.search(r"P#(\d+)", match[3]), re.search(r"busid=([0-9a-f:.]+)", match[3])
        here = Line(
            match[2], int(number[1]) if number else None, bdf[1] if bdf else None, [line for _d, line in stack[::-1]]
        )
        stack.append((depth, here))
        yield here


def above(line: Line, kind: str) -> Line:
    return next(other for other in line.above if other.kind == kind)


def expected(name: str) -> list[Line]:
    path = CAPTURES / f"{name}.console"
    if not path.is_file():
        pytest.skip(f"the captures of other projects are not on this machine: {path}")
    return list(lines(path.read_text(encoding="utf-8")))


def read(place: Path, name: str) -> Topology:
    with tarfile.open(CAPTURES / f"{name}.tar.bz2") as tar:
        tar.extraction_filter = getattr(tarfile, "tar_filter", None)  # older Pythons have none
        tar.extractall(place)
    [root] = place.iterdir()
    return read_topology(root)


@pytest.mark.parametrize(
    ("name", "tree"),
    [
        ("32intel64-2p8co2t+8ve", "32intel64-2p8co2t+8ve"),
        ("48amd64-4pa2n6c-sparse", "48amd64-4pa2n6c-sparse"),
        ("memorysidecaches", "memorysidecaches"),
        ("offline-cpu0-node0", "offline-cpu0-node0"),
        ("nvidiagpunumanodes-kept", "nvidiagpunumanodes"),
    ],
)
def test_nodes_cores_and_caches(tmp_path: Path, name: str, tree: str) -> None:
    found = expected(name)
    topology = read(tmp_path, tree)
    assert [node["id"] for node in topology["numa_nodes"]] == sorted(
        line.number for line in found if line.kind == "NUMANode" and line.number is not None
    )
    threads = [line for line in found if line.kind == "PU"]
    caches: dict[int | None, set[int]] = {}
    for core in topology["cores"]:
        caches.setdefault(core["l3"], set()).update(core["threads"])
    compared = {"Core": [set(core["threads"]) for core in topology["cores"]], "L3Cache": list(caches.values())}
    if tree == "nvidiagpunumanodes":  # a POWER9, where the reader does not know which cache is the third
        assert caches.keys() == {None}
        del compared["L3Cache"]
    for kind, ours in compared.items():
        theirs: dict[int, set[int | None]] = {}
        for line in threads:
            theirs.setdefault(id(above(line, kind)), set()).add(line.number)
        assert sorted(map(sorted, ours)) == sorted(
            sorted(n for n in group if n is not None) for group in theirs.values()
        )


@pytest.mark.parametrize("name", ["32intel64-2p8co2t+8ve", "40intel64-2g2n4c+pcilocality", "fakepcilocalities"])
def test_identities_are_those_of_the_single_files(tmp_path: Path, name: str) -> None:
    """Kernels of several ages tell them at once, too; in the last one, directories are copies of others."""
    if not (CAPTURES / f"{name}.tar.bz2").is_file():
        pytest.skip(f"the captures of other projects are not on this machine: {CAPTURES / name}.tar.bz2")
    topology = read(tmp_path, name)
    [root] = tmp_path.iterdir()
    assert topology["pci"]
    for item in topology["pci"]:
        device = root / "sys/bus/pci/devices" / item["bdf"]
        assert (device / "uevent").is_file()
        words = ("class", "vendor", "device", "subsystem_vendor", "subsystem_device")
        code, *ids = ((device / word).read_text().strip()[2:] for word in words)
        driver = os.readlink(device / "driver").rpartition("/")[2] if (device / "driver").is_symlink() else None
        assert (item["class"], item["vendor"], item["device"], item["driver"]) == (code, *ids[:2], driver)
        assert item["subsystem"] == (None if ids[2] == "0000" else f"{ids[2]}:{ids[3]}")


def test_devices_behind_switches(tmp_path: Path) -> None:
    """hwloc leaves bridges and devices out that matter to no one; those it shows are where ours are."""
    found = [line for line in expected("32intel64-2p8co2t+8ve") if line.kind == "PCI"]
    functions = {item["bdf"]: item for item in read(tmp_path, "32intel64-2p8co2t+8ve")["pci"]}
    assert len(found) == 12
    for line in found:
        chain, parent = [], functions[line.bdf or ""]["parent"]
        while parent is not None:
            chain.append(parent)
            parent = functions[parent]["parent"]
        assert chain == [other.bdf for other in line.above if other.kind == "PCIBridge"], line.bdf
        assert functions[line.bdf or ""]["numa_node"] == above(line, "Package").number, line.bdf
