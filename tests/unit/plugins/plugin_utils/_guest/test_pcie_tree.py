# Copyright: the topovirt.kvm authors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""The guest's PCIe tree mirrors the host's: judged on the emitted definition by a walker of its own."""

from __future__ import annotations

import xml.etree.ElementTree as ET
from itertools import combinations, pairwise
from typing import Any

import pytest
from ansible_collections.topovirt.kvm.plugins.module_utils._errors import TopovirtError
from ansible_collections.topovirt.kvm.plugins.module_utils._topology.model import PciFunction, Topology
from ansible_collections.topovirt.kvm.plugins.module_utils._topology.paths import Paths
from ansible_collections.topovirt.kvm.plugins.plugin_utils._guest.pcie_tree import build_tree, bus_numbers
from ansible_collections.topovirt.kvm.plugins.plugin_utils._placement.plan import make_plan
from ansible_collections.topovirt.kvm.tests.unit.plugins.plugin_utils.guests import Guest
from ansible_collections.topovirt.kvm.tests.unit.plugins.plugin_utils.hosts import host, request

KINDS = {
    "gpu": {
        "vendor": "10de",
        "device": "2335",
        "class": "030200",
        "subsystem": "10de:18be",
        "bars": {},
        "link": [32, 16],
    },
    "nic": {
        "vendor": "15b3",
        "device": "1021",
        "class": "020700",
        "subsystem": "15b3:0041",
        "bars": {},
        "link": [32, 16],
    },
}
SCALE = {"real": {"sockets": 2, "cores_per_socket": 16, "threads_per_core": 2, "memory_gib_per_node": 64}}


def machine(bridges: list[dict[str, Any]]) -> Topology:
    nodes = [{"id": 0, "distances": [10, 21]}, {"id": 1, "distances": [21, 10]}]
    return host("real", {"devices": KINDS, "scale": SCALE, "nodes": nodes, "iommu": "dmar", "host_bridges": bridges})


def leaf(gpus: int = 1, nics: int = 1) -> dict[str, Any]:
    return {"switch": [{"endpoint": "gpu"}] * gpus + [{"endpoint": "nic"}] * nics}


MACHINES: dict[str, Topology] = {
    "switch per host bridge": host(),
    "two levels of switches": machine(
        [
            {"bus": 0x20, "node": 0, "ports": [{"switch": [leaf(2, 1), leaf(2, 1), {"endpoint": "nic"}]}]},
            {"bus": 0x90, "node": 1, "ports": [{"switch": [leaf(1, 2), leaf(1, 2)]}, leaf(2, 2)]},
        ]
    ),
    "several host bridges of one node": machine(
        [{"bus": 0x20 * number, "node": number // 4, "ports": [leaf()]} for number in range(1, 7)]
    ),
    "no switches": machine(
        [
            {
                "bus": 0x20,
                "node": 0,
                "ports": [{"functions": [{"endpoint": "gpu"}]}, {"functions": [{"endpoint": "nic"}]}],
            },
            {
                "bus": 0x90,
                "node": 1,
                "ports": [{"functions": [{"endpoint": "gpu"}]}, {"functions": [{"endpoint": "nic"}]}],
            },
        ]
    ),
    "functions of one slot": machine(
        [
            {
                "bus": 0x20,
                "node": 0,
                "ports": [leaf(2, 0), {"functions": [{"endpoint": "nic"}, {"endpoint": "nic"}]}],
            }
        ]
    ),
}


def whole(topology: Topology, **more: Any) -> dict[str, Any]:
    gpus = sum(function["role"] == "gpu" for function in topology["pci"])
    nics = sum(function["role"] == "nic" for function in topology["pci"])
    switches = any(function["role"] == "nvswitch" for function in topology["pci"])
    if not switches:
        # Dual-port NICs in one IOMMU group count once and go together.
        nics = len({f["iommu_group"] for f in topology["pci"] if f["role"] == "nic"})
    model = "full_passthrough" if switches else "none"
    (vm,) = make_plan([request("all", gpus, **{"nics": nics, **more})], topology, [], model, "host")["vms"]
    vm_: dict[str, Any] = vm
    return vm_


@pytest.mark.parametrize("name", MACHINES)
def test_path_classes_are_the_hosts_for_every_pair(name: str) -> None:
    topology = MACHINES[name]
    vm = whole(topology)
    guest, paths = Guest(vm["domain_xml"]), Paths(topology)
    passed = [f["bdf"] for f in topology["pci"] if f["role"] in ("gpu", "nic", "nvswitch")]
    assert sorted(guest.hostdevs) == sorted(passed)
    differences = [
        (a, b, paths.path_class(a, b), guest.path_class(a, b))
        for a, b in combinations(passed, 2)
        if paths.path_class(a, b) != guest.path_class(a, b)
    ]
    assert differences == []


def test_the_machines_show_all_path_classes() -> None:
    seen = set()
    for topology in MACHINES.values():
        guest = Guest(whole(topology)["domain_xml"])
        seen |= {guest.path_class(a, b) for a, b in combinations(guest.hostdevs, 2)}
    assert seen == {"PIX", "PXB", "PHB", "NODE", "SYS"}


@pytest.mark.parametrize("name", MACHINES)
def test_every_device_is_on_the_cell_of_its_node(name: str) -> None:
    topology = MACHINES[name]
    vm = whole(topology)
    node_of_cell = {
        int(node.get("cellid", "")): int(node.get("nodeset", ""))
        for node in ET.fromstring(vm["domain_xml"]).findall("numatune/memnode")
    }
    nodes = {function["bdf"]: function["numa_node"] for function in topology["pci"]}
    for bdf, spot in Guest(vm["domain_xml"]).hostdevs.items():
        assert spot.cell is not None
        assert node_of_cell[spot.cell] == nodes[bdf]


@pytest.mark.parametrize("name", MACHINES)
def test_guest_addresses_are_those_that_firmware_will_give(name: str) -> None:
    vm = whole(MACHINES[name])
    guest = Guest(vm["domain_xml"])
    assert {bdf: spot.bdf for bdf, spot in guest.hostdevs.items()} == {
        device["bdf"]: device["guest_bdf"] for device in vm["layout"]["devices"]
    }
    ports = {item["guest_bdf"] for item in vm["layout"]["pcie"] if item["model"] != "pcie-expander-bus"}
    assert set(guest.ports) == ports


@pytest.mark.parametrize("name", MACHINES)
def test_device_order_is_the_hosts(name: str) -> None:
    guest = Guest(whole(MACHINES[name])["domain_xml"])
    by_guest = sorted(guest.hostdevs, key=lambda bdf: guest.hostdevs[bdf].bdf)
    assert by_guest == sorted(guest.hostdevs)


@pytest.mark.parametrize("name", MACHINES)
def test_bus_numbers_do_not_run_into_the_next_expander(name: str) -> None:
    guest = Guest(whole(MACHINES[name])["domain_xml"])
    ranges = guest.bus_ranges
    assert all(last < following for (_first, last), (following, _last) in pairwise(ranges))
    assert ranges[0][0] > 0
    assert ranges[-1][1] <= 255
    assert all(first <= 254 for first, _last in ranges)  # libvirt's limit for busNr


def test_small_vms_get_only_their_part_of_the_tree() -> None:
    (vm,) = make_plan([request("a", 1)], host(), [], "shared_nvswitch", "host")["vms"]
    models = [item["model"] for item in vm["layout"]["pcie"]]
    assert models == [
        "pcie-expander-bus",
        "pcie-root-port",
        "pcie-switch-upstream-port",
        "pcie-switch-downstream-port",
        "pcie-switch-downstream-port",
    ]


def test_a_tenant_of_node_one_has_cell_zero() -> None:
    vm = make_plan([request("a", 4), request("b", 4)], host(), [], "shared_nvswitch", "host")["vms"][1]
    assert [cell["host_node"] for cell in vm["layout"]["cells"]] == [1]
    assert {item["node"] for item in vm["layout"]["pcie"] if item["model"] == "pcie-expander-bus"} == {0}


def test_switch_functions_keep_one_slot_and_are_renumbered() -> None:
    topology = host()
    functions = {function["bdf"]: function for function in topology["pci"]}
    _controllers, devices = build_tree(["0000:28:00.1", "0000:28:00.3"], functions, {0: 0})
    places = [(device["slot"], device["function"], device["multifunction"]) for device in devices]
    assert places == [(0, 0, True), (0, 1, False)]
    assert len({device["controller"] for device in devices}) == 1


def test_a_single_function_is_not_marked_multifunction() -> None:
    functions = {function["bdf"]: function for function in host()["pci"]}
    _controllers, (device,) = build_tree(["0000:28:00.2"], functions, {0: 0})
    assert (device["function"], device["multifunction"]) == (0, False)


def test_devices_of_the_root_complex_get_root_ports() -> None:
    functions = {function["bdf"]: function for function in host()["pci"]}
    functions["0000:28:00.0"]["parent"] = None
    controllers, (device,) = build_tree(["0000:28:00.0"], functions, {0: 0})
    assert [item["model"] for item in controllers] == ["pcie-expander-bus", "pcie-root-port"]
    assert device["controller"] == 2


def test_a_device_below_a_plain_bridge_is_refused() -> None:
    functions = {function["bdf"]: function for function in host()["pci"]}
    functions["0000:22:00.0"]["kind"] = "bridge"
    with pytest.raises(TopovirtError, match=r"0000:23:00\.0 is below .*0000:22:00\.0 \(bridge\)"):
        build_tree(["0000:23:00.0"], functions, {0: 0})


def test_nodes_without_a_cell_are_left_out() -> None:
    functions = {function["bdf"]: function for function in host()["pci"]}
    controllers, _devices = build_tree(["0000:23:00.0", "0000:95:00.0"], functions, {0: 0})
    assert [item["node"] for item in controllers if item["model"] == "pcie-expander-bus"] == [0, None]


@pytest.mark.parametrize("needs", [[3], [7, 7, 6, 6], [1] * 16, [32] * 7, [60, 60, 60, 60], [255]])
def test_bus_number_arithmetic(needs: list[int]) -> None:
    numbers = bus_numbers(needs)
    ends = [number + need for number, need in zip(numbers, needs, strict=True)]
    assert all(end <= following for end, following in zip(ends, numbers[1:], strict=False))
    assert numbers[0] >= 1
    assert ends[-1] <= 256


def test_too_many_buses_are_refused() -> None:
    with pytest.raises(TopovirtError, match="needs 256 bus numbers, a guest has 255"):
        bus_numbers([128, 128])


def test_more_functions_than_a_slot_has() -> None:
    functions = {function["bdf"]: function for function in host()["pci"]}
    bdfs = [f"0000:28:{number // 8:02x}.{number % 8}" for number in range(9)]
    for bdf in bdfs:
        functions[bdf] = {**functions["0000:28:00.0"], "bdf": bdf}
    with pytest.raises(TopovirtError, match="9 functions below host port"):
        build_tree(bdfs, functions, {0: 0})


@pytest.mark.parametrize("name", MACHINES)
@pytest.mark.parametrize("mode", ["root_port", "flat"])
def test_other_modes_have_no_switches_and_keep_addresses_and_order(name: str, mode: str) -> None:
    topology = MACHINES[name]
    vm = whole(topology, pcie=mode)
    guest = Guest(vm["domain_xml"])
    passed = [f["bdf"] for f in topology["pci"] if f["role"] in ("gpu", "nic", "nvswitch")]
    assert sorted(guest.hostdevs, key=lambda bdf: guest.hostdevs[bdf].bdf) == passed
    assert {bdf: spot.bdf for bdf, spot in guest.hostdevs.items()} == {
        device["bdf"]: device["guest_bdf"] for device in vm["layout"]["devices"]
    }
    models = {item["model"] for item in vm["layout"]["pcie"]}
    assert models == ({"pcie-root-port", "pcie-expander-bus"} if mode == "root_port" else {"pcie-root-port"})
    slots = {bdf.rpartition(".")[0] for bdf in passed}
    assert sum(item["model"] == "pcie-root-port" for item in vm["layout"]["pcie"]) == len(slots)


@pytest.mark.parametrize("name", MACHINES)
def test_root_ports_keep_host_bridges_and_nodes(name: str) -> None:
    topology = MACHINES[name]
    guest, paths = Guest(whole(topology, pcie="root_port")["domain_xml"]), Paths(topology)
    for a, b in combinations(guest.hostdevs, 2):
        host_class = paths.path_class(a, b)
        same_slot = a.rpartition(".")[0] == b.rpartition(".")[0]
        expected = host_class if same_slot or host_class in ("NODE", "SYS") else "PHB"
        assert guest.path_class(a, b) == expected, (a, b)


def test_a_flat_guest_is_phb_throughout_and_has_no_nodes() -> None:
    guest = Guest(whole(host(), pcie="flat")["domain_xml"])
    assert {guest.path_class(a, b) for a, b in combinations(guest.hostdevs, 2)} == {"PHB", "PIX"}
    pix = [pair for pair in combinations(guest.hostdevs, 2) if guest.path_class(*pair) == "PIX"]
    assert all(a.rpartition(".")[0] == b.rpartition(".")[0] for a, b in pix)
    assert {spot.cell for spot in guest.hostdevs.values()} == {None}


def links(topology: Topology, bdf: str = "0000:23:00.0") -> dict[str, str | None] | None:
    functions = {function["bdf"]: function for function in topology["pci"]}
    controllers, _devices = build_tree([bdf], functions, {0: 0}, "root_port")
    assert controllers[0]["link"] is None
    link = controllers[1]["link"]
    return None if link is None else {"speed": link["speed"], "width": link["width"]}


def test_a_root_port_has_the_link_of_its_device() -> None:
    topology = host()
    assert links(topology) == {"speed": "32", "width": "16"}
    functions = {function["bdf"]: function for function in topology["pci"]}
    above = functions[functions["0000:23:00.0"]["parent"] or ""]
    above["link"] = {"max_gtps": 16.0, "max_width": 8}
    assert links(topology) == {"speed": "16", "width": "8"}
    functions["0000:23:00.0"]["link"] = {"max_gtps": 2.5, "max_width": 63}
    assert links(topology) == {"speed": "2_5", "width": "8"}
    above["link"] = functions["0000:23:00.0"]["link"] = {"max_gtps": None, "max_width": 0}
    assert links(topology) == {"speed": None, "width": None}


@pytest.mark.parametrize("count,slots", [(23, 23), (24, 12), (70, 18), (184, 23)])
def test_many_devices_of_a_flat_guest_share_slots(count: int, slots: int) -> None:
    functions = {function["bdf"]: function for function in host()["pci"]}
    bdfs = [f"0000:{bus:02x}:00.0" for bus in range(1, count + 1)]
    template = functions["0000:23:00.0"]
    copies: dict[str, PciFunction] = {bdf: {**template, "bdf": bdf} for bdf in bdfs}
    controllers, devices = build_tree(bdfs, copies, {}, "flat")
    places = [(item["slot"], item["function"]) for item in controllers]
    assert len(set(places)) == count
    assert len({slot for slot, _function in places}) == slots
    assert all(8 <= slot <= 0x1E and function < 8 for slot, function in places)
    for item in controllers:
        alone = sum(slot == item["slot"] for slot, _function in places) == 1
        assert item["multifunction"] == (item["function"] == 0 and not alone)
    assert [device["guest_bdf"] for device in devices] == [f"0000:{bus:02x}:00.0" for bus in range(1, count + 1)]


def test_a_flat_guest_has_an_end() -> None:
    functions = {function["bdf"]: function for function in host()["pci"]}
    bdfs = [f"0000:{bus:02x}:00.0" for bus in range(1, 186)]
    copies: dict[str, PciFunction] = {bdf: {**functions["0000:23:00.0"], "bdf": bdf} for bdf in bdfs}
    with pytest.raises(TopovirtError, match="has 185 devices; a flat guest has room for 184"):
        build_tree(bdfs, copies, {}, "flat")


def test_shared_slots_are_marked_in_the_definition() -> None:
    gpu = {"functions": [{"endpoint": "gpu"}]}
    topology = machine([{"bus": 0x20 + 0x20 * half, "node": half, "ports": [gpu] * 12} for half in (0, 1)])
    root = ET.fromstring(whole(topology, nics=0, pcie="flat")["domain_xml"])
    addresses = [port.find("address") for port in root.findall("devices/controller[@model='pcie-root-port']")]
    marks = [(address.get("function"), address.get("multifunction")) for address in addresses if address is not None]
    assert marks == [("0x0", "on"), ("0x1", None)] * 12
