# Copyright: the topovirt.kvm authors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""What a layout's guest should show, and that a wrong layout is flagged for what is wrong with it."""

from __future__ import annotations

from copy import deepcopy
from itertools import combinations, pairwise
from typing import Any

import pytest
from ansible_collections.topovirt.kvm.plugins.module_utils._topology.compare import Comparison, compare
from ansible_collections.topovirt.kvm.plugins.module_utils._topology.model import Topology
from ansible_collections.topovirt.kvm.plugins.module_utils._topology.paths import Paths
from ansible_collections.topovirt.kvm.plugins.module_utils._topology.schema import as_topology
from ansible_collections.topovirt.kvm.plugins.plugin_utils._guest.expected import expected_guest
from ansible_collections.topovirt.kvm.plugins.plugin_utils._guest.layout import Layout
from ansible_collections.topovirt.kvm.plugins.plugin_utils._placement.plan import make_plan
from ansible_collections.topovirt.kvm.tests.unit.plugins.plugin_utils.guests import Guest
from ansible_collections.topovirt.kvm.tests.unit.plugins.plugin_utils.hosts import host, request

HOST = host()


def planned(gpus: int = 8, model: str = "full_passthrough", topology: Topology = HOST) -> dict[str, Any]:
    vm: dict[str, Any] = make_plan([request("a", gpus)], topology, [], model, "host")["vms"][0]
    return vm


def judged(layout: Layout, topology: Topology = HOST) -> Comparison:
    guest = expected_guest(layout, topology)
    return compare(topology, guest["guest_topology"], guest["identity"], guest["node_map"], guest["cpu_map"])


def test_it_is_a_topology() -> None:
    layout = planned()["layout"]
    guest = expected_guest(layout, HOST)
    assert as_topology(guest["guest_topology"], "guest") == guest["guest_topology"]
    assert guest["node_map"] == {"0": 0, "1": 1}
    assert guest["cpu_map"] == {str(vcpu): cpu for vcpu, cpu in layout["vcpu_pins"]}


@pytest.mark.parametrize("gpus,model", [(8, "full_passthrough"), (1, "none"), (4, "shared_nvswitch"), (3, "none")])
def test_it_is_what_the_definition_says(gpus: int, model: str) -> None:
    """Addresses and path classes against a reader of the domain XML that shares no code with the layout."""
    vm = planned(gpus, model)
    guest, read = expected_guest(vm["layout"], HOST), Guest(vm["domain_xml"])
    assert guest["identity"] == {bdf: spot.bdf for bdf, spot in read.hostdevs.items()}
    functions = {function["bdf"]: function for function in guest["guest_topology"]["pci"]}
    assert set(functions) == {*read.ports, *guest["identity"].values()}
    paths = Paths(guest["guest_topology"])
    for a, b in combinations(read.hostdevs, 2):
        assert paths.path_class(guest["identity"][a], guest["identity"][b]) == read.path_class(a, b)
    for bdf, spot in read.hostdevs.items():
        assert functions[guest["identity"][bdf]]["numa_node"] == spot.cell


def test_the_plan_of_the_whole_machine_is_true() -> None:
    result = judged(planned()["layout"])
    assert result["equal"] and result["cpus_equal"]
    assert result["fidelity"] == {
        "paths": {"equal": 190, "pairs": 190},
        "siblings": {"equal": 16836, "pairs": 16836},
        "l3": {"equal": 16836, "pairs": 16836},
    }


def of_role(layout: Layout, role: str) -> list[Any]:
    roles = {function["bdf"]: function["role"] for function in HOST["pci"]}
    return [device for device in layout["devices"] if roles[device["bdf"]] == role]


def test_two_swapped_nics_are_flagged() -> None:
    layout = planned()["layout"]
    first, *_others, last = of_role(layout, "nic")
    first["bdf"], last["bdf"] = last["bdf"], first["bdf"]
    result = judged(layout)
    names = sorted([first["bdf"], last["bdf"]])
    assert not result["equal"]
    assert [(item["cause"], item["devices"]) for item in result["causes"]] == [
        (f"{names[0]} and {names[1]} have changed places", names)
    ]


def test_swapped_sockets_are_flagged() -> None:
    """Expander buses name each other's cells; memory and CPUs stay where they are."""
    layout = planned()["layout"]
    for controller in layout["pcie"]:
        if controller["node"] is not None:
            controller["node"] = 1 - controller["node"]
    result = judged(layout)
    assert not result["equal"]
    assert result["path_differences"] == []
    assert len(result["node_differences"]) == 20
    assert [item["cause"] for item in result["causes"]] == [
        "nodes of the guest have changed places: devices of node 0 are on node 1, devices of node 1 are on node 0"
    ]


def test_cells_bound_to_the_wrong_sockets_are_flagged() -> None:
    layout = planned()["layout"]
    for cell in layout["cells"]:
        cell["host_node"] = 1 - cell["host_node"]
    result = judged(layout)
    assert not result["equal"] and result["cpus_equal"] is False
    assert {item["relation"] for item in result["cpu_differences"]} == {"node"}


def test_a_device_below_the_wrong_switch_is_flagged() -> None:
    """The first NIC sits in the slot of the last one, which the VM does not have."""
    layout = planned()["layout"]
    first, *_others, last = of_role(layout, "nic")
    layout["devices"].remove(last)
    wrong = first["bdf"]
    for key in ("controller", "slot", "function"):
        first[key] = last[key]
    result = judged(layout)
    assert not result["equal"]
    assert {wrong} == set.intersection(*({item["a"], item["b"]} for item in result["path_differences"]))
    (cause,) = result["causes"]
    assert cause["devices"] == [wrong]
    assert cause["cause"].startswith(f"{wrong} is in another place: nearest to ")
    assert cause["pairs"] == len(result["path_differences"]) > 0


@pytest.mark.parametrize("missing", [1, 2, 5])
def test_an_expander_bus_without_enough_numbers_loses_devices(missing: int) -> None:
    layout = planned()["layout"]
    expanders = [controller for controller in layout["pcie"] if controller["model"] == "pcie-expander-bus"]
    needed = expanders[1]["index"] - expanders[0]["index"]
    expanders[1]["bus"] = expanders[0]["bus"] + needed - missing
    result = judged(layout)
    lost = [item["bdf"] for item in result["missing"]]
    assert not result["equal"] and lost
    assert {function["host_bridge"] for function in HOST["pci"] if function["bdf"] in lost} == {expanders[0]["host"]}
    (cause,) = result["causes"]
    assert cause["cause"].endswith(
        f"there are {needed - missing} bus numbers, as many ports as on the host below {expanders[0]['host']} take "
        f"{needed}"
    )
    assert cause["devices"] == lost
    kept = 20 - len(lost)
    assert result["fidelity"]["paths"] == {"equal": kept * (kept - 1) // 2, "pairs": 190}


def test_just_enough_numbers_lose_nothing() -> None:
    layout = planned()["layout"]
    expanders = [controller for controller in layout["pcie"] if controller["model"] == "pcie-expander-bus"]
    for before, behind in pairwise(expanders):
        behind["bus"] = before["bus"] + behind["index"] - before["index"]
    assert judged(layout)["equal"]


def test_numbers_end_at_255() -> None:
    layout = planned()["layout"]
    last = [controller for controller in layout["pcie"] if controller["model"] == "pcie-expander-bus"][-1]
    last["bus"] = 0xFD
    result = judged(layout)
    assert result["missing"] and "there are 3 bus numbers" in result["causes"][0]["cause"]


def test_devices_on_the_root_complex_have_no_node() -> None:
    """All devices on root ports of the machine's own root bus, as a guest without expander buses has them."""
    layout = planned(4, "none")["layout"]
    port = layout["pcie"][1]
    layout["pcie"] = [
        {**port, "index": number, "parent": 0, "slot": 4 + number, "model": "pcie-root-port", "node": None}
        for number in range(1, len(layout["devices"]) + 1)
    ]
    for number, device in enumerate(layout["devices"], start=1):
        device["controller"] = number
    guest = expected_guest(layout, HOST)
    assert list(guest["identity"].values()) == [f"0000:0{number}:00.0" for number in range(1, 9)]
    result = judged(layout)
    assert {cell for row in result["matrix"]["guest"] for cell in row} == {"LOC", "PHB"}
    assert {item["guest_node"] for item in result["node_differences"]} == {None}
    assert [item["cause"] for item in result["causes"]] == [
        "there is no switch in the guest above devices that share one on the host",
        "the guest's root bus 0000:00 has devices of several host bridges",
        "the guest's root bus 0000:00 names no node, devices below it belong to node 0",
    ]


def with_l3(cores_per_l3: int, vendor: str) -> Topology:
    topology = deepcopy(HOST)
    topology["host"]["cpu_vendor"] = vendor
    for number, core in enumerate(topology["cores"]):
        core["l3"] = topology["cores"][number - number % cores_per_l3]["threads"][0]
    return topology


@pytest.mark.parametrize(
    "vendor,seen",
    [
        # 8 threads below an L3 of the host, of which housekeeping takes some: the guest's groups start at its own first
        # vCPU, so they are other ones than the host's.
        ("AuthenticAMD", ["0-7", "8-15", "16-21"]),
        ("GenuineIntel", ["0-7", "8-15", "16-21"]),
    ],
)
def test_l3_groups_follow_the_guests_own_numbers(vendor: str, seen: list[str]) -> None:
    topology = with_l3(4, vendor)
    layout = planned(1, "none", topology)["layout"]
    layout["vcpu_pins"] = [[vcpu, cpu] for vcpu, cpu in layout["vcpu_pins"]]
    groups: dict[int | None, list[int]] = {}
    for core in expected_guest(layout, topology)["guest_topology"]["cores"]:
        groups.setdefault(core["l3"], []).extend(core["threads"])
    assert [f"{cpus[0]}-{cpus[-1]}" for cpus in groups.values()] == seen


def test_an_l3_of_intel_ends_with_the_package_and_one_of_amd_does_not() -> None:
    """Two sockets with one core of two threads each, on a host with one L3 below each of its large sockets."""
    for vendor, l3s in (("GenuineIntel", [0, 2]), ("AuthenticAMD", [0, 0])):
        topology = with_l3(48, vendor)
        layout = planned(8, "none", topology)["layout"]
        layout["vcpu_pins"] = [[0, 0], [1, 96], [2, 48], [3, 144]]
        layout["cpu_topology"] = {"sockets": 2, "dies": 1, "cores": 1, "threads": 2}
        layout["cells"][0]["vcpus"], layout["cells"][1]["vcpus"] = "0-1", "2-3"
        cores = expected_guest(layout, topology)["guest_topology"]["cores"]
        assert [core["l3"] for core in cores] == l3s
        assert [(core["package"], core["node"]) for core in cores] == [(0, 0), (1, 1)]
