# Copyright: the topovirt.kvm authors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

from __future__ import annotations

from copy import deepcopy
from pathlib import Path

import pytest
from ansible_collections.topovirt.kvm.plugins.module_utils._topology.compare import compare, describe
from ansible_collections.topovirt.kvm.plugins.module_utils._topology.model import Topology
from ansible_collections.topovirt.kvm.plugins.module_utils._topology.reader import read_topology
from ansible_collections.topovirt.kvm.tests.unit.plugins.module_utils._topology.machine import (
    DOWNSTREAM,
    ROOT_PORT,
    UPSTREAM,
    Machine,
)

GPU_0, NIC_0, GPU_1, NIC_1 = "0000:23:00.0", "0000:24:00.0", "0000:93:00.0", "0000:94:00.0"
DEVICES = (GPU_0, NIC_0, GPU_1, NIC_1)


def machine(root: Path, buses: tuple[int, int] = (0x20, 0x90), nodes: tuple[int, int] = (0, 1)) -> Topology:
    """Two host bridges, each with a switch that has a GPU and a NIC below it."""
    made = Machine(root)
    made.node(0, "0-1", "10 21")
    made.node(1, "2-3", "21 10")
    for bus, node in ((buses[0], nodes[0]), (buses[1], nodes[1])):
        made.port(f"0000:{bus:02x}:00.0", f"pci0000:{bus:02x}", ROOT_PORT, node)
        made.port(f"0000:{bus + 1:02x}:00.0", f"0000:{bus:02x}:00.0", UPSTREAM, node)
        for port in range(3):
            made.port(f"0000:{bus + 2:02x}:0{port}.0", f"0000:{bus + 1:02x}:00.0", DOWNSTREAM, node)
        made.gpu(f"0000:{bus + 3:02x}:00.0", f"0000:{bus + 2:02x}:00.0", node)
        made.nic(f"0000:{bus + 4:02x}:00.0", f"0000:{bus + 2:02x}:01.0", node)
    return read_topology(root)


# The guest numbers its buses differently: 20 is 40, 90 is a0.
IDENTITY = {GPU_0: "0000:43:00.0", NIC_0: "0000:44:00.0", GPU_1: "0000:a3:00.0", NIC_1: "0000:a4:00.0"}
NODE_MAP: dict[int | str, int] = {0: 0, 1: 1}


@pytest.fixture
def host(tmp_path: Path) -> Topology:
    return machine(tmp_path / "host")


@pytest.fixture
def guest(tmp_path: Path) -> Topology:
    return machine(tmp_path / "guest", (0x40, 0xA0))


def test_a_true_guest_is_equal(host: Topology, guest: Topology) -> None:
    result = compare(host, guest, IDENTITY, NODE_MAP)
    classes = [
        ["LOC", "PIX", "SYS", "SYS"],
        ["PIX", "LOC", "SYS", "SYS"],
        ["SYS", "SYS", "LOC", "PIX"],
        ["SYS", "SYS", "PIX", "LOC"],
    ]
    assert result == {
        "equal": True,
        "cpus_equal": None,
        "fidelity": {"paths": {"equal": 6, "pairs": 6}, "siblings": None, "l3": None},
        "devices": 4,
        "pairs": 6,
        "path_differences": [],
        "node_differences": [],
        "link_differences": [],
        "distance_differences": [],
        "cpu_differences": [],
        "missing": [],
        "identity_errors": [],
        "node_map_errors": [],
        "cpu_map_errors": [],
        "causes": [],
        "matrix": {"order": list(DEVICES), "host": classes, "guest": classes},
    }
    assert describe(result) == "4 devices and 6 pairs are in the guest as on the host."


def test_cells_may_be_numbered_otherwise_than_host_nodes(host: Topology, tmp_path: Path) -> None:
    guest = machine(tmp_path / "other", (0x40, 0xA0), nodes=(1, 0))
    assert compare(host, guest, IDENTITY, {"1": 0, "0": 1})["equal"]
    assert not compare(host, guest, IDENTITY, NODE_MAP)["equal"]


def test_swapped_nics_are_flagged(host: Topology, guest: Topology) -> None:
    swapped = {**IDENTITY, NIC_0: IDENTITY[NIC_1], NIC_1: IDENTITY[NIC_0]}
    result = compare(host, guest, swapped, NODE_MAP)
    assert not result["equal"]
    found = {(item["a"], item["b"]): (item["host"], item["guest"]) for item in result["path_differences"]}
    assert found == {
        (GPU_0, NIC_0): ("PIX", "SYS"),
        (GPU_0, NIC_1): ("SYS", "PIX"),
        (NIC_0, GPU_1): ("SYS", "PIX"),
        (GPU_1, NIC_1): ("PIX", "SYS"),
    }
    assert [(item["bdf"], item["guest_node"], item["expected_guest_node"]) for item in result["node_differences"]] == [
        (NIC_0, 1, 0),
        (NIC_1, 0, 1),
    ]
    assert result["fidelity"]["paths"] == {"equal": 2, "pairs": 6}
    assert result["causes"] == [
        {"cause": f"{NIC_0} and {NIC_1} have changed places", "pairs": 4, "devices": [NIC_0, NIC_1]}
    ]


def test_a_device_below_the_wrong_port_is_flagged(host: Topology, tmp_path: Path) -> None:
    made = Machine(tmp_path / "flat")
    made.node(0, "0-1", "10 21")
    made.node(1, "2-3", "21 10")
    for bus, node in ((0x40, 0), (0xA0, 1)):
        for number, add in enumerate((made.gpu, made.nic)):
            made.port(f"0000:{bus:02x}:0{number}.0", f"pci0000:{bus:02x}", ROOT_PORT, node)
            add(f"0000:{bus + 3 + number:02x}:00.0", f"0000:{bus:02x}:0{number}.0", node)
    result = compare(host, read_topology(made.root), IDENTITY, NODE_MAP)
    assert not result["equal"]
    assert result["path_differences"] == [
        {"a": GPU_0, "b": NIC_0, "host": "PIX", "guest": "PHB"},
        {"a": GPU_1, "b": NIC_1, "host": "PIX", "guest": "PHB"},
    ]
    assert result["node_differences"] == []
    assert result["causes"] == [
        {
            "cause": "there is no switch in the guest above devices that share one on the host",
            "pairs": 2,
            "devices": list(DEVICES),
        }
    ]


def test_a_wrong_node_is_flagged_even_where_all_path_classes_agree(host: Topology, tmp_path: Path) -> None:
    guest = machine(tmp_path / "other", (0x40, 0xA0), nodes=(1, 0))
    result = compare(host, guest, IDENTITY, NODE_MAP)
    assert result["path_differences"] == []
    assert result["node_differences"][0] == {
        "bdf": GPU_0,
        "host_node": 0,
        "guest_node": 1,
        "expected_guest_node": 0,
    }
    assert [(item["cause"], item["devices"]) for item in result["causes"]] == [
        (
            "nodes of the guest have changed places: devices of node 0 are on node 1, devices of node 1 are on node 0",
            list(DEVICES),
        )
    ]
    assert not result["equal"]


def test_an_unknown_node_in_the_guest_is_flagged(host: Topology, tmp_path: Path) -> None:
    result = compare(host, machine(tmp_path / "other", (0x40, 0xA0), nodes=(-1, 1)), IDENTITY, NODE_MAP)
    assert [item["guest_node"] for item in result["node_differences"]] == [None, None]
    assert [(item["cause"], item["devices"]) for item in result["causes"]] == [
        ("the guest's root bus 0000:40 names no node, devices below it belong to node 0", [GPU_0, NIC_0])
    ]


def test_a_node_unknown_on_the_host_must_be_unknown_in_the_guest(guest: Topology, tmp_path: Path) -> None:
    host = machine(tmp_path / "blind", nodes=(-1, 1))
    differing = compare(host, guest, IDENTITY, NODE_MAP)["node_differences"]
    assert [(item["bdf"], item["expected_guest_node"]) for item in differing] == [(GPU_0, None), (NIC_0, None)]


def test_two_cells_on_one_host_node_are_flagged(host: Topology, tmp_path: Path) -> None:
    one_sided = machine(tmp_path / "host2", nodes=(0, 0))
    guest = machine(tmp_path / "other", (0x40, 0xA0), nodes=(0, 0))
    result = compare(one_sided, guest, IDENTITY, {"0": 0, "1": 0})
    assert result["node_map_errors"] == ["guest cells 0 and 1 are both on host node 0"]
    assert (result["path_differences"], result["node_differences"]) == ([], [])
    assert not result["equal"]


@pytest.mark.parametrize(
    ("node_map", "error"),
    [
        ({0: 0, 1: 1, 2: 2}, "guest cell 2 is on host node 2, which the host does not have"),
        ({0: 0, 1: 1, 2: 2}, "guest cell 2 is no node of the guest's kernel"),
        ({0: 0}, "guest node 1 is on no known host node"),
    ],
)
def test_a_node_map_that_does_not_fit_is_flagged(
    host: Topology, guest: Topology, node_map: dict[int | str, int], error: str
) -> None:
    result = compare(host, guest, IDENTITY, node_map)
    assert error in result["node_map_errors"]
    assert not result["equal"]


def test_missing_devices_of_both_sides_are_named(host: Topology, guest: Topology) -> None:
    result = compare(host, guest, {**IDENTITY, NIC_1: "0000:ee:00.0", "0000:dd:00.0": "0000:a4:00.0"}, NODE_MAP)
    assert result["missing"] == [
        {"bdf": NIC_1, "guest_bdf": "0000:ee:00.0", "side": "guest"},
        {"bdf": "0000:dd:00.0", "guest_bdf": "0000:a4:00.0", "side": "host"},
    ]
    assert (result["devices"], result["pairs"], result["equal"]) == (3, 3, False)
    assert f"{NIC_1} (in the guest 0000:ee:00.0) is not in the guest's topology" in describe(result)


def test_an_identity_that_cannot_be_is_flagged(host: Topology, guest: Topology) -> None:
    result = compare(host, guest, {**IDENTITY, NIC_0: IDENTITY[GPU_0]}, NODE_MAP)
    assert result["identity_errors"] == [
        f"{GPU_0} and {NIC_0} are both 0000:43:00.0 in the guest",
        f"{NIC_0} is 15b3:1021 on the host, but 0000:43:00.0 is 10de:2335 in the guest",
    ]
    assert not result["equal"]


def test_comparing_nothing_is_not_equal(host: Topology, guest: Topology) -> None:
    assert not compare(host, guest, {}, NODE_MAP)["equal"]


def test_functions_without_a_role_are_compared_too(host: Topology, guest: Topology) -> None:
    for function in (*host["pci"], *guest["pci"]):
        function["role"] = None
    assert compare(host, guest, IDENTITY, NODE_MAP)["equal"]


def test_a_description_counts_all_and_shows_the_first(host: Topology, guest: Topology) -> None:
    swapped = {**IDENTITY, NIC_0: IDENTITY[NIC_1], NIC_1: IDENTITY[NIC_0]}
    text = describe(compare(host, guest, swapped, NODE_MAP), examples=1)
    assert text == (
        "The guest does not see the host's topology. "
        f"NUMA node differs, 2 times: {NIC_0} is on guest node 1, expected 0 for host node 0 .... "
        f"Path differs, 4 times: {GPU_0} to {NIC_0} is SYS in the guest, PIX on the host .... "
        f"Cause: {NIC_0} and {NIC_1} have changed places."
    )


def test_distances_of_nodes_are_compared_under_the_map(host: Topology, guest: Topology) -> None:
    guest["numa_nodes"][0]["distances"]["1"] = 20
    result = compare(host, guest, IDENTITY, NODE_MAP)
    assert result["distance_differences"] == [{"a": 0, "b": 1, "host": 21, "guest": 20}]
    assert not result["equal"]
    assert describe(result) == (
        "The guest does not see the host's topology. "
        "Distance differs, 1 times: guest node 0 to 1 is 20, 21 on the host."
    )


def test_a_slower_link_is_flagged_and_an_unknown_one_is_not(host: Topology, guest: Topology) -> None:
    links = {function["bdf"]: function for function in guest["pci"]}
    full = links[IDENTITY[GPU_0]]["link"]
    links[IDENTITY[GPU_0]]["link"] = {"max_gtps": full["max_gtps"], "max_width": 8}
    links[IDENTITY[NIC_0]]["link"] = {"max_gtps": None, "max_width": None}
    result = compare(host, guest, IDENTITY, NODE_MAP)
    assert [(item["bdf"], item["guest"]["max_width"]) for item in result["link_differences"]] == [(GPU_0, 8)]
    assert not result["equal"]
    assert f"{GPU_0} is {full['max_gtps']:g} GT/s x8 in the guest" in describe(result)


def test_one_device_in_another_place_is_named(host: Topology, guest: Topology) -> None:
    """A third NIC, on the host beside the first GPU, in the guest below the other switch."""
    extra = deepcopy(next(function for function in host["pci"] if function["bdf"] == NIC_0))
    extra["bdf"], extra["parent"] = "0000:25:00.0", "0000:22:02.0"
    host["pci"].append(extra)
    moved = deepcopy(next(function for function in guest["pci"] if function["bdf"] == IDENTITY[NIC_1]))
    moved["bdf"], moved["parent"] = "0000:a5:00.0", "0000:a2:02.0"
    guest["pci"].append(moved)
    result = compare(host, guest, {**IDENTITY, "0000:25:00.0": "0000:a5:00.0"}, NODE_MAP)
    assert result["causes"] == [
        {
            "cause": f"0000:25:00.0 is in another place: nearest to {GPU_1} (PIX) in the guest, to {GPU_0} (PIX) on "
            "the host",
            "pairs": 4,
            "devices": ["0000:25:00.0"],
        }
    ]


def test_root_buses_that_join_or_divide_host_bridges_are_named(host: Topology, tmp_path: Path) -> None:
    made = Machine(tmp_path / "one-bus")
    made.node(0, "0-1", "10 21")
    made.node(1, "2-3", "21 10")
    for number, bdf in enumerate(DEVICES):
        made.port(f"0000:40:0{number}.0", "pci0000:40", ROOT_PORT, 0)
        (made.gpu if bdf in (GPU_0, GPU_1) else made.nic)(f"0000:{0x41 + number}:00.0", f"0000:40:0{number}.0", 0)
    flat = read_topology(made.root)
    identity = {bdf: f"0000:{0x41 + number}:00.0" for number, bdf in enumerate(DEVICES)}
    joined = compare(host, flat, identity, NODE_MAP)
    assert [(item["cause"], item["pairs"]) for item in joined["causes"]] == [
        ("there is no switch in the guest above devices that share one on the host", 2),
        ("the guest's root bus 0000:40 has devices of several host bridges", 4),
        ("the guest's root bus 0000:40 names node 0, devices below it belong to node 1", 0),
    ]
    back = {guest: bdf for bdf, guest in identity.items()}
    divided = compare(flat, host, back, NODE_MAP)
    assert "devices of the host bridge 0000:40 are below several root buses in the guest" in [
        item["cause"] for item in divided["causes"]
    ]


def test_bus_numbers_that_run_out_are_named(host: Topology, guest: Topology) -> None:
    """The host's tree takes five numbers below its first host bridge: its own, and one for each of four ports."""
    kept = [function for function in guest["pci"] if function["bdf"] != IDENTITY[NIC_0]]
    for function in kept:
        if function["host_bridge"] == "0000:a0":
            function["host_bridge"] = "0000:44"
    guest["pci"] = kept
    result = compare(host, guest, IDENTITY, NODE_MAP)
    assert result["fidelity"]["paths"] == {"equal": 3, "pairs": 6}
    assert [item["bdf"] for item in result["missing"]] == [NIC_0]
    assert result["causes"] == [
        {
            "cause": "from the guest's root bus 0000:40 to the next one there are 4 bus numbers, as many ports as on "
            "the host below 0000:20 take 5",
            "pairs": 3,
            "devices": [NIC_0],
        }
    ]


def test_a_device_that_is_gone_for_a_reason_that_no_topology_tells_has_no_cause(
    host: Topology, guest: Topology
) -> None:
    guest["pci"] = [function for function in guest["pci"] if function["bdf"] != IDENTITY[NIC_0]]
    result = compare(host, guest, IDENTITY, NODE_MAP)
    assert result["missing"] and not result["causes"]
