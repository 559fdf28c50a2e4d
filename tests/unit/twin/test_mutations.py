# Copyright: the topovirt.kvm authors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""The reader on hostile machines: it never fails, and what cannot be known is null."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from ansible_collections.topovirt.kvm.plugins.module_utils._topology.facts import MAX_BYTES, summarize
from ansible_collections.topovirt.kvm.plugins.module_utils._topology.model import Topology
from ansible_collections.topovirt.kvm.plugins.module_utils._topology.paths import Paths
from ansible_collections.topovirt.kvm.plugins.module_utils._topology.reader import read_topology
from ansible_collections.topovirt.kvm.plugins.module_utils._topology.text import topology_text

from tests.bench.published import violations
from tests.twin import description, mutations
from tests.twin.recorded import record

FIRST_GPU, ITS_NEIGHBOUR, SAME_SOCKET, OTHER_SOCKET = "0000:23:00.0", "0000:24:00.0", "0000:53:00.0", "0000:93:00.0"
LAST_GPU, LAST_NIC = "0000:c4:00.0", "0000:c6:00.0"


@pytest.fixture
def tree(tmp_path: Path) -> Path:
    """The reference server with its GPUs given away: module ids are in the saved file."""
    record(description.load("hgx-h200"), tmp_path / "tree", drivers="vfio")
    return tmp_path / "tree"


@pytest.fixture
def before(tree: Path) -> Topology:
    return read_topology(tree)


def function(topology: Topology, bdf: str) -> Any:
    return next(item for item in topology["pci"] if item["bdf"] == bdf)


def roles(topology: Topology) -> Counter[str]:
    return Counter(item["role"] for item in topology["pci"] if item["role"])


def classes(topology: Topology, gpu: str = FIRST_GPU) -> list[str]:
    """From the first GPU to one below the same switch, one on the same socket, one on the other."""
    return [Paths(topology).path_class(gpu, other) for other in (ITS_NEIGHBOUR, SAME_SOCKET, OTHER_SOCKET)]


def test_an_unknown_node_stays_unknown(tree: Path, before: Topology) -> None:
    mutations.no_function_knows_its_node(tree)
    topology = read_topology(tree)
    assert {(item["numa_node"], item["numa_source"]) for item in topology["pci"]} == {(None, None)}
    assert (classes(before), classes(topology)) == (["PIX", "NODE", "SYS"], ["PIX", "SYS", "SYS"])
    assert {group["numa_node"] for group in Paths(topology).groups()} == {None}


def test_an_ancestor_that_knows_is_named(tree: Path, before: Topology) -> None:
    mutations.only_root_ports_know_their_node(tree)
    topology = read_topology(tree)
    found = {bdf: (function(topology, bdf)["numa_node"], function(topology, bdf)["numa_source"]) for bdf in (
        FIRST_GPU, OTHER_SOCKET, "0000:20:00.0", "0000:28:00.3",
    )}  # fmt: skip
    assert found == {
        FIRST_GPU: (0, "0000:20:00.0"),
        OTHER_SOCKET: (1, "0000:90:00.0"),
        "0000:20:00.0": (0, "own"),
        "0000:28:00.3": (0, "0000:20:01.0"),
    }
    assert classes(topology) == classes(before)


def test_cpus_of_contradictory_nodes_are_of_none(tree: Path) -> None:
    mutations.every_node_has_all_cpus(tree)
    topology = read_topology(tree)
    assert {core["node"] for core in topology["cores"]} == {None}
    assert [node["cpus"] for node in topology["numa_nodes"]] == ["0-7", "0-7"]
    mutations.no_function_knows_its_node(tree)
    assert {item["numa_node"] for item in read_topology(tree)["pci"]} == {None}, "no bus is near one of them"


def test_a_node_without_cpus_is_a_node_and_no_place_of_cores(tree: Path, before: Topology) -> None:
    mutations.a_node_without_cpus(tree)
    topology = read_topology(tree)
    assert topology["cores"] == before["cores"]
    assert topology["numa_nodes"][2] == {
        "id": 2,
        "cpus": "",
        "memory_bytes": 1 << 30,
        "distances": {"0": 40, "1": 40, "2": 10},
        "hugepages": {},
    }
    assert topology["numa_nodes"][0]["distances"] == {"0": 10, "1": 21, "2": 40}


def test_an_offline_cpu_is_nowhere(tree: Path, before: Topology) -> None:
    mutations.cpu_0_is_offline(tree)
    topology = read_topology(tree)
    assert [core["threads"] for core in topology["cores"]] == [[1], [2, 3], [4, 5], [6, 7]]
    assert [node["cpus"] for node in topology["numa_nodes"]] == ["1-3", "4-7"]
    first = before["cores"][0]["l3"]
    assert topology["cores"][1:] == [
        {**core, "l3": 1} if core["l3"] == first else core for core in before["cores"][1:]
    ], "a cache is named by its first CPU"
    assert topology["host"] == before["host"], "cpuinfo begins with CPU 1"


def test_gaps_between_node_ids(tree: Path, before: Topology) -> None:
    mutations.node_ids_have_gaps(tree)
    topology = read_topology(tree)
    assert [(node["id"], node["distances"]) for node in topology["numa_nodes"]] == [
        (2, {"2": 10, "5": 21}),
        (5, {"2": 21, "5": 10}),
    ]
    assert Counter(core["node"] for core in topology["cores"]) == {2: 2, 5: 2}
    assert [item["numa_node"] for item in topology["pci"]] == [
        None if item["numa_node"] is None else 3 * item["numa_node"] + 2 for item in before["pci"]
    ]
    assert classes(topology) == classes(before)


def test_a_wide_pci_domain(tree: Path, before: Topology) -> None:
    mutations.a_pci_domain_wider_than_16_bits(tree)
    topology = read_topology(tree)
    gpu = function(topology, "10000:23:00.0")
    assert (gpu["host_bridge"], gpu["parent"], gpu["module_id"]) == ("10000:20", "10000:22:00.0", 2)
    assert roles(topology) == roles(before)
    assert [item["bdf"] for item in topology["pci"]][-2:] == ["10000:28:00.3", "10000:29:00.0"]
    assert function(topology, "10000:29:00.0")["in_use"] == function(before, "0000:29:00.0")["in_use"] != []
    paths = Paths(topology)
    assert [paths.path_class("10000:23:00.0", bdf) for bdf in ("10000:24:00.0", SAME_SOCKET, OTHER_SOCKET)] == [
        "PIX", "NODE", "SYS",
    ]  # fmt: skip


def test_a_missing_gpu_changes_nobody_elses_module_id(tree: Path, before: Topology) -> None:
    mutations.one_gpu_is_gone(tree)
    topology = read_topology(tree)
    assert topology["pci"] == [item for item in before["pci"] if item["bdf"] != LAST_GPU]
    assert [item["module_id"] for item in topology["pci"] if item["role"] == "gpu"] == [2, 4, 1, 3, 7, 5, 6]


def test_a_virtual_function_names_its_physical_one_and_nothing_it_does_not_know(tree: Path, before: Topology) -> None:
    mutations.a_virtual_function(tree)
    topology = read_topology(tree)
    virtual = function(topology, f"{LAST_NIC[:-1]}7")
    assert (virtual["physfn"], virtual["device"], virtual["role"]) == (LAST_NIC, "101e", "nic")
    assert (virtual["link"], virtual["iommu_group"]) == ({"max_gtps": None, "max_width": None}, None)
    assert [item for item in topology["pci"] if item.get("physfn") is None] == before["pci"]


def test_uncore_functions_have_no_role(tree: Path, before: Topology) -> None:
    mutations.uncore_functions(tree)
    topology = read_topology(tree)
    noise = [item for item in topology["pci"] if item["host_bridge"] == "0000:fe"]
    assert len(noise) == mutations.UNCORE_FUNCTIONS
    assert {(item["kind"], item["role"], item["numa_node"]) for item in noise} == {("endpoint", None, None)}
    assert roles(topology) == roles(before)
    assert Paths(topology).matrix() == Paths(before).matrix()


@pytest.mark.parametrize("machine", ["hgx-h200", "dgx-2", "mi300x", "pcie-l40s"])
def test_a_header_alone_tells_the_same_kinds(tmp_path: Path, machine: str) -> None:
    tree = tmp_path / "tree"
    record(description.load(machine), tree)
    before = read_topology(tree)
    mutations.only_headers_can_be_read(tree)
    after = read_topology(tree)
    unread = [function["bdf"] for function in after["pci"] if function["capabilities"] is None]
    assert after["pci"] == [
        {**function, "capabilities": None} if function["bdf"] in unread else function for function in before["pci"]
    ]
    assert {function["bdf"] for function in before["pci"] if function["capabilities"]} <= set(unread)
    assert [gap["of"] for gap in after["unknown"] if "only the header" in gap["reason"]] == [unread]


def test_a_sleeping_gpu_has_no_link_and_is_a_gpu(tree: Path, before: Topology) -> None:
    mutations.a_gpu_sleeps(tree)
    gpu = function(read_topology(tree), FIRST_GPU)
    asleep = {"link": {"max_gtps": None, "max_width": None}, "capabilities": None, "power_state": "D3cold"}
    assert gpu == {**function(before, FIRST_GPU), **asleep}


@pytest.mark.parametrize("machine", description.names())
def test_nothing_fails_on_any_machine_however_much_is_wrong(tmp_path: Path, machine: str) -> None:
    """One after the other on the same tree, so that later ones find a machine that is odd already."""
    tree = tmp_path / "tree"
    record(description.load(machine), tree)
    count = len(read_topology(tree)["pci"])
    added: dict[Callable[[Path], None], int] = {
        mutations.one_gpu_is_gone: -1,
        mutations.a_virtual_function: 1,
        mutations.uncore_functions: mutations.UNCORE_FUNCTIONS,
    }
    for mutation in mutations.MUTATIONS:
        mutation(tree)
        count += added.get(mutation, 0)
        topology = read_topology(tree)
        assert len(topology["pci"]) == count, mutation.__name__
        assert violations(topology) == [], mutation.__name__
        assert topology_text(topology)
        assert len(json.dumps(summarize(topology, "x" * 36))) <= MAX_BYTES
