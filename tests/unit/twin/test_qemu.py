# Copyright: the topovirt.kvm authors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""The QEMU command line of the reference machine, and what must hold for that of every machine."""

from __future__ import annotations

import dataclasses
import itertools
import json
import re
from pathlib import Path
from typing import Any

import pytest

from tests.twin import qemu
from tests.twin.description import Igb, load, names

ARGUMENTS = qemu.arguments(load("hgx-h200"), Path("/firmware/code.fd"), 2222)
PAIRS = list(itertools.pairwise(ARGUMENTS))


def values(option: str) -> list[str]:
    return [value for name, value in PAIRS if name == option]


def devices(arguments: list[str] = ARGUMENTS) -> list[dict[str, Any]]:
    found = []
    for text in (value for name, value in itertools.pairwise(arguments) if name == "-device"):
        if text.startswith("{"):
            found.append(json.loads(text))
        else:
            driver, *properties = text.split(",")
            found.append({"driver": driver, **dict(entry.split("=", 1) for entry in properties)})
    return found


def by_driver(driver: str) -> list[dict[str, Any]]:
    return [device for device in devices() if device["driver"] == driver]


def test_two_nodes_with_shared_memory_and_their_distance() -> None:
    assert values("-object") == [
        "memory-backend-memfd,id=memory0,size=6G,share=on",
        "memory-backend-memfd,id=memory1,size=6G,share=on",
    ]
    assert values("-numa") == [
        "node,nodeid=0,cpus=0-3,memdev=memory0",
        "node,nodeid=1,cpus=4-7,memdev=memory1",
        "dist,src=0,dst=1,val=21",
        "dist,src=1,dst=0,val=21",
    ]
    assert values("-smp") == ["8,sockets=2,cores=2,threads=2"]


def test_host_bridges_with_bus_and_node() -> None:
    assert [(pxb["bus_nr"], pxb["numa_node"]) for pxb in by_driver("pxb-pcie")] == [
        ("32", "0"),
        ("80", "0"),
        ("144", "1"),
        ("192", "1"),
    ]


@pytest.mark.parametrize("machine", names())
def test_every_device_says_where_it_is_and_that_place_exists(machine: str) -> None:
    found = devices(qemu.arguments(load(machine), Path("code.fd"), 1))
    known = {"pcie.0"}
    for device in found:
        if not device["driver"].endswith("-iommu"):
            assert device["bus"] in known, f"{device}: QEMU makes devices in this order"
        known.add(device.get("id", ""))
    places = [(d["bus"], d.get("addr", "0")) for d in found if not d["driver"].endswith(("-iommu", "-upstream"))]
    assert len(set(places)) == len(places), "no two devices in one place"
    slots = [(int(device["chassis"]), int(device["slot"])) for device in found if "slot" in device]
    assert len(set(slots)) == len(slots), "no two ports are one physical slot"
    # One byte in QEMU; 13 bits of the slot capabilities (PCI Express Base Specification).
    assert max(chassis for chassis, _slot in slots) < 1 << 8 and max(slot for _chassis, slot in slots) < 1 << 13


@pytest.mark.parametrize("machine", names())
def test_nodes_have_all_cpus_and_memory_between_them(machine: str) -> None:
    arguments = qemu.arguments(load(machine), Path("code.fd"), 1)
    cpus = [re.search(r"cpus=(\d+)-(\d+)", value) for value in arguments if value.startswith("node,")]
    covered = [cpu for match in cpus if match for cpu in range(int(match[1]), int(match[2]) + 1)]
    assert sorted(covered) == list(range(int(arguments[arguments.index("-smp") + 1].split(",")[0])))
    sizes = [int(size) for value in arguments for size in re.findall(r"^memory-backend.*,size=(\d+)G", value)]
    assert arguments[arguments.index("-m") + 1] == f"{sum(sizes)}G"


def test_ports_show_the_link_of_the_description() -> None:
    ports = by_driver("pcie-root-port") + by_driver("cxl-upstream") + by_driver("cxl-downstream")
    assert len(ports) == 7 + 4 + 20
    assert {(port["x-speed"], port["x-width"]) for port in ports} == {("32", "16")}


def test_nvswitches_are_functions_of_one_slot() -> None:
    switches = [d for d in by_driver("vfio-user-pci") if d["id"].startswith("nvsw")]
    assert [(d["bus"], d["addr"], d["multifunction"]) for d in switches] == [
        ("rp0x1", f"0.{function}", True) for function in range(4)
    ]


def test_endpoints_connect_to_their_sockets() -> None:
    endpoints = by_driver("vfio-user-pci")
    assert len(endpoints) == 20
    assert all(d["socket"] == {"type": "unix", "path": f"devices/{d['id']}"} for d in endpoints)


def test_disks_have_their_serials() -> None:
    assert [d["serial"] for d in by_driver("nvme")] == [f"TWINNVME{number}" for number in range(4)]
    assert "file=root.qcow2,format=qcow2,if=none,id=root,cache=unsafe,discard=unmap" in values("-drive")


def test_only_the_management_card_has_a_network() -> None:
    first, second = by_driver("igb")
    assert (first.get("netdev"), second.get("netdev")) == ("management", None)
    assert first["mac"] == "52:54:00:12:34:56"
    assert first["mac"] != second["mac"]
    assert values("-netdev") == ["user,id=management,restrict=on,hostfwd=tcp:127.0.0.1:2222-:22"]


def test_iommu_only_where_the_firmware_has_one() -> None:
    assert by_driver("intel-iommu") == [
        {"driver": "intel-iommu", "intremap": "on", "caching-mode": "on", "device-iotlb": "on"}
    ]
    without = qemu.arguments(load("hgx-h200", "no-iommu"), Path("/firmware/code.fd"), 2222)
    assert [a for a in ARGUMENTS if a not in without] == ["intel-iommu,intremap=on,caching-mode=on,device-iotlb=on"]


def test_amds_iommu_has_a_place_of_its_own() -> None:
    machine = dataclasses.replace(load("hgx-h200"), iommu="ivrs")
    arguments = qemu.arguments(machine, Path("/firmware/code.fd"), 2222)
    assert [a for a in arguments if a not in ARGUMENTS] == [
        "AMDVI-PCI,id=amdvi,bus=pcie.0,addr=0x1e",
        "amd-iommu,pci-id=amdvi,dma-remap=on,intremap=on",
    ]
    assert not [a for a in arguments if a.startswith("intel-iommu")]


def test_wiring_is_handed_to_the_guest() -> None:
    assert values("-fw_cfg") == ["name=opt/topovirt-twin/wiring,file=wiring.json"]
    assert json.loads(qemu.wiring(load("hgx-h200")))["0000:23:00.0"] == 2


def test_socket_paths_are_short() -> None:
    """sockaddr_un holds 108 bytes; a checkout may lie deep."""
    paths = [d["socket"]["path"] for d in by_driver("vfio-user-pci")] + [qemu.QMP_SOCKET]
    assert all(not path.startswith("/") and len(path) < 50 for path in paths)


@pytest.mark.parametrize("sockets_per_node", [1, 2])
def test_nodes_of_one_socket_share_its_cpus(sockets_per_node: int) -> None:
    machine = load("hgx-h200")
    nodes = tuple(dataclasses.replace(node, socket=node.id // sockets_per_node) for node in machine.nodes)
    scale = dataclasses.replace(
        machine.scales["boot"], sockets=2 // sockets_per_node, cores_per_socket=2 * sockets_per_node
    )
    changed = dataclasses.replace(machine, nodes=nodes, scales={**machine.scales, "boot": scale})
    arguments = qemu.arguments(changed, Path("code.fd"), 1)
    assert [a.split(",")[2] for a in arguments if a.startswith("node,")] == ["cpus=0-3", "cpus=4-7"]


def test_every_card_has_its_own_address() -> None:
    machine = load("hgx-h200")
    cards = [device for device in machine.devices() if isinstance(device, Igb)]
    assert len({qemu.mac_address(machine, card) for card in cards}) == len(cards)
