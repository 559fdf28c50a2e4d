# Copyright: the topovirt.kvm authors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""The reader and hwloc's lstopo say the same of every machine."""

from __future__ import annotations

import xml.etree.ElementTree as ET
from dataclasses import dataclass

import pytest
from ansible_collections.topovirt.kvm.plugins.module_utils._topology.cpulist import parse_cpulist
from ansible_collections.topovirt.kvm.plugins.module_utils._topology.model import Topology
from ansible_collections.topovirt.kvm.plugins.module_utils._topology.reader import read_topology

from tests.bench import lstopo
from tests.twin import description, recorded

Cpus = frozenset[int]


@dataclass(frozen=True)
class Both:
    ours: Topology
    theirs: ET.Element

    def objects(self, kind: str) -> list[ET.Element]:
        return [item for item in self.theirs.iter("object") if item.get("type") == kind]


def cpus_of(element: ET.Element) -> Cpus:
    """``0x00010000,0x00000001``: words of 32 CPUs, the highest first."""
    bits = int("".join(word[2:].zfill(8) for word in element.get("cpuset", "0x0").split(",")), 16)
    return frozenset(cpu for cpu in range(bits.bit_length()) if bits >> cpu & 1)


@pytest.fixture(scope="module", params=[(name, scale) for name in description.names() for scale in ("boot", "real")])
def both(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Both:
    name, scale = request.param
    tree = tmp_path_factory.mktemp("machine") / "tree"
    recorded.record(description.load(name), tree, scale)
    lstopo.complete(tree)
    return Both(read_topology(tree), lstopo.objects(tree))


def test_nodes(both: Both) -> None:
    theirs = {
        int(node.attrib["os_index"]): (int(node.attrib["local_memory"]), cpus_of(node))
        for node in both.objects("NUMANode")
    }
    assert theirs
    assert {
        node["id"]: (node["memory_bytes"], frozenset(parse_cpulist(node["cpus"]))) for node in both.ours["numa_nodes"]
    } == theirs


def test_distances(both: Both) -> None:
    assert all(len(node["distances"]) == len(both.ours["numa_nodes"]) for node in both.ours["numa_nodes"])
    parts = [part.text or "" for matrix in both.theirs.iter("distances2") for part in matrix.iter("u64values")]
    values = " ".join(parts).split()
    ours = [str(distance) for node in both.ours["numa_nodes"] for distance in node["distances"].values()]
    assert len(ours) == 1 or values == ours


def test_packages_cores_and_caches(both: Both) -> None:
    ours: dict[str, dict[object, set[int]]] = {"Package": {}, "L3Cache": {}}
    for core in both.ours["cores"]:
        ours["Package"].setdefault(core["package"], set()).update(core["threads"])
        ours["L3Cache"].setdefault(core["l3"], set()).update(core["threads"])
    for kind, groups in ours.items():
        assert {frozenset(group) for group in groups.values()} == set(map(cpus_of, both.objects(kind))), kind
    assert {frozenset(core["threads"]) for core in both.ours["cores"]} == set(map(cpus_of, both.objects("Core")))


def test_the_tree_of_bridges_and_where_it_hangs(both: Both) -> None:
    above: dict[str, str | None] = {}
    near: dict[str, Cpus] = {}

    def walk(element: ET.Element, bridge: str | None, cpus: Cpus) -> None:
        kind, bdf = element.get("type"), element.get("pci_busid")
        if kind in ("Bridge", "PCIDev") and bdf is not None:
            above[bdf], near[bdf] = bridge, cpus
            bridge = bdf
        elif element.get("cpuset"):
            cpus = cpus_of(element)
        for child in element.iterfind("object"):
            walk(child, bridge, cpus)

    walk(both.theirs, None, frozenset())
    assert {function["bdf"]: function["parent"] for function in both.ours["pci"]} == above
    nodes = {node["id"]: frozenset(parse_cpulist(node["cpus"])) for node in both.ours["numa_nodes"]}
    everywhere = frozenset().union(*nodes.values())
    located = {
        function["bdf"]: everywhere if function["numa_node"] is None else nodes[function["numa_node"]]
        for function in both.ours["pci"]
    }
    assert located == near
