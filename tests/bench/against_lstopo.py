# Copyright: the topovirt.kvm authors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""The reader beside lstopo, on one tree: for each kind of fact what either says, in the same form."""

from __future__ import annotations

import xml.etree.ElementTree as ET
from collections.abc import Callable, Iterable

from ansible_collections.topovirt.kvm.plugins.module_utils._topology.cpulist import parse_cpulist
from ansible_collections.topovirt.kvm.plugins.module_utils._topology.model import Topology

Cpus = frozenset[int]
Said = tuple[object, object]  # ours, theirs


def nodes(ours: Topology, theirs: ET.Element) -> Said:
    """Node -> memory and CPUs."""
    return (
        {node["id"]: (node["memory_bytes"], _listed(node["cpus"])) for node in ours["numa_nodes"]},
        {
            int(node.attrib["os_index"]): (int(node.attrib["local_memory"]), _cpus(node))
            for node in _objects(theirs, "NUMANode")
        },
    )


def distances(ours: Topology, theirs: ET.Element) -> Said:
    """The matrix, row by row; lstopo has none of a single node."""
    values = [str(value) for node in ours["numa_nodes"] for value in node["distances"].values()]
    parts = [part.text or "" for matrix in theirs.iter("distances2") for part in matrix.iter("u64values")]
    return (values if len(ours["numa_nodes"]) > 1 else [], " ".join(parts).split())


def cores(ours: Topology, theirs: ET.Element) -> Said:
    """CPUs of each core."""
    return {frozenset(core["threads"]) for core in ours["cores"]}, set(map(_cpus, _objects(theirs, "Core")))


def packages(ours: Topology, theirs: ET.Element) -> Said:
    """CPUs of each socket."""
    groups = _grouped((core["package"], core["threads"]) for core in ours["cores"])
    return groups, set(map(_cpus, _objects(theirs, "Package")))


def caches(ours: Topology, theirs: ET.Element) -> Said:
    """CPUs of each L3 cache."""
    groups = _grouped((core["l3"], core["threads"]) for core in ours["cores"])
    return groups, set(map(_cpus, _objects(theirs, "L3Cache")))


def bridges(ours: Topology, theirs: ET.Element) -> Said:
    """PCI function -> the bridge above."""
    return (
        {function["bdf"]: function["parent"] for function in ours["pci"]},
        {bdf: bridge for bdf, (bridge, _near) in _pci(theirs).items()},
    )


def locality(ours: Topology, theirs: ET.Element) -> Said:
    """PCI function -> CPUs that are near; all of them where nobody knows."""
    listed = {node["id"]: _listed(node["cpus"]) for node in ours["numa_nodes"]}
    everywhere = frozenset().union(*listed.values())
    near = {
        function["bdf"]: everywhere if function["numa_node"] is None else listed[function["numa_node"]]
        for function in ours["pci"]
    }
    return near, {bdf: cpus for bdf, (_bridge, cpus) in _pci(theirs).items()}


CHECKS: dict[str, Callable[[Topology, ET.Element], Said]] = {
    "nodes": nodes,
    "distances": distances,
    "cores": cores,
    "packages": packages,
    "caches": caches,
    "bridges": bridges,
    "locality": locality,
}


def _listed(cpulist: str) -> Cpus:
    return frozenset(parse_cpulist(cpulist))


def _objects(theirs: ET.Element, kind: str) -> list[ET.Element]:
    return [item for item in theirs.iter("object") if item.get("type") == kind]


def _cpus(element: ET.Element) -> Cpus:
    """``0x00010000,0x00000001``: words of 32 CPUs, the highest first."""
    bits = int("".join(word[2:].zfill(8) for word in element.get("cpuset", "0x0").split(",")), 16)
    return frozenset(cpu for cpu in range(bits.bit_length()) if bits >> cpu & 1)


def _grouped(pairs: Iterable[tuple[int | None, list[int]]]) -> set[Cpus]:
    groups: dict[int, set[int]] = {}
    for key, threads in pairs:
        if key is not None:
            groups.setdefault(key, set()).update(threads)
    return set(map(frozenset, groups.values()))


def _pci(theirs: ET.Element) -> dict[str, tuple[str | None, Cpus]]:
    """PCI function -> the bridge above, and the CPUs of the object that it hangs on."""
    found: dict[str, tuple[str | None, Cpus]] = {}

    def walk(element: ET.Element, bridge: str | None, near: Cpus) -> None:
        bdf = element.get("pci_busid")
        if element.get("type") in ("Bridge", "PCIDev") and bdf is not None:
            found[bdf] = (bridge, near)
            bridge = bdf
        elif element.get("cpuset"):
            near = _cpus(element)
        for child in element.iterfind("object"):
            walk(child, bridge, near)

    walk(theirs, None, frozenset())
    return found
