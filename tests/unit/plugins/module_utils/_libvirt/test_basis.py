# Copyright: the topovirt.kvm authors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

from __future__ import annotations

import copy
import json
from typing import Any, cast

import pytest
from ansible_collections.topovirt.kvm.plugins.module_utils._libvirt.basis import changes, make_basis
from ansible_collections.topovirt.kvm.plugins.module_utils._libvirt.domains import Allocation, parse_domain
from ansible_collections.topovirt.kvm.plugins.module_utils._topology.model import Topology
from ansible_collections.topovirt.kvm.tests.unit.plugins.module_utils._libvirt.sample import OURS, domain_xml


def topology() -> dict[str, Any]:
    """Two nodes and three devices, as far as a basis looks at them."""
    device = {
        "role": "gpu",
        "vendor": "10de",
        "device": "2335",
        "parent": "0000:21:00.0",
        "iommu_group": 12,
        "numa_node": 0,
        "driver": "vfio-pci",
        "module_id": 2,
        "in_use": [],
    }
    pages = {"1048576": {"total": 3, "free": 3}}
    return {
        "numa_nodes": [
            {"id": 0, "cpus": "0-3", "memory_bytes": 6 << 30, "hugepages": copy.deepcopy(pages)},
            {"id": 1, "cpus": "4-7", "memory_bytes": 6 << 30, "hugepages": copy.deepcopy(pages)},
        ],
        "cores": [{"package": 0, "die": 0, "node": 0, "l3": 0, "threads": [0, 1]}],
        "pci": [
            {**device, "bdf": "0000:23:00.0"},
            {**device, "bdf": "0000:24:00.0", "module_id": 4, "iommu_group": 13},
            {**device, "bdf": "0000:21:00.0", "role": None},
        ],
    }


def basis(found: dict[str, Any], *domains: Allocation, planned: tuple[Allocation, ...] = ()) -> dict[str, Any]:
    made = make_basis(cast(Topology, found), domains, planned)
    return cast("dict[str, Any]", json.loads(json.dumps(made)))  # it travels as JSON


A = parse_domain(domain_xml("a", metadata=OURS))
B = parse_domain(domain_xml("b", devices=("0000:24:00.0",), cpus=("6", "7")))


def test_the_same_host_makes_the_same_basis() -> None:
    assert changes(basis(topology(), A, B), basis(topology(), B, A)) == []


@pytest.mark.parametrize(
    ("key", "value", "sentence"),
    [
        ("driver", "nvidia", "device 0000:23:00.0: driver was vfio-pci, is nvidia"),
        ("driver", None, "device 0000:23:00.0: driver was vfio-pci, is None"),
        ("iommu_group", 40, "device 0000:23:00.0: IOMMU group was 12, is 40"),
        ("numa_node", 1, "device 0000:23:00.0: NUMA node was 0, is 1"),
        ("module_id", 8, "device 0000:23:00.0: module id was 2, is 8"),
        ("in_use", ["holds /"], "device 0000:23:00.0 is now used by the host"),
    ],
)
def test_a_changed_device_is_named(key: str, value: object, sentence: str) -> None:
    now = topology()
    now["pci"][0][key] = value
    assert changes(basis(topology()), basis(now)) == [sentence]


def test_a_device_that_left_the_bus_and_a_new_one() -> None:
    now = topology()
    now["pci"][0]["bdf"] = "0000:99:00.0"
    assert changes(basis(topology()), basis(now)) == ["device 0000:23:00.0 is gone", "device 0000:99:00.0 is new"]


def test_devices_without_a_role_do_not_count() -> None:
    now = topology()
    now["pci"][2]["driver"] = "pcieport"
    assert changes(basis(topology()), basis(now)) == []


def test_nodes_pages_and_cores() -> None:
    now = topology()
    now["numa_nodes"][1]["cpus"] = "4-6"
    now["numa_nodes"][0]["hugepages"]["1048576"] = {"total": 2, "free": 0}
    now["cores"][0]["threads"] = [0]
    assert changes(basis(topology()), basis(now)) == [
        "NUMA node 0: huge pages (size in KiB: count) was {'1048576': 3}, is {'1048576': 2}",
        "NUMA node 1: CPUs was 4-7, is 4-6",
        "the CPU cores (sockets, NUMA nodes, caches or threads) changed",
    ]


def test_free_pages_come_and_go_with_the_vms() -> None:
    now = topology()
    now["numa_nodes"][0]["hugepages"]["1048576"]["free"] = 0
    assert changes(basis(topology()), basis(now)) == []


def test_vms_that_came_went_or_changed_are_named() -> None:
    more = parse_domain(domain_xml("a", devices=("0000:24:00.0",)))
    assert changes(basis(topology(), A), basis(topology(), B)) == ["VM a is gone", "VM b is new"]
    assert changes(basis(topology(), A), basis(topology(), more)) == ["VM a: devices changed"]


def test_starting_and_stopping_a_vm_is_no_change() -> None:
    running = cast(Allocation, {**A, "state": "running"})
    assert changes(basis(topology(), A), basis(topology(), running)) == []


def test_the_vm_itself_does_not_count() -> None:
    assert changes(basis(topology()), basis(topology(), A), without=["a"]) == []


def test_vms_of_the_same_plan_are_expected_but_only_as_planned() -> None:
    plan = basis(topology(), planned=(A, B))
    assert changes(plan, basis(topology(), A), without=["b"]) == []
    assert changes(plan, basis(topology()), without=["b"]) == []
    other = parse_domain(domain_xml("a", cpus=("5",)))
    assert changes(plan, basis(topology(), other), without=["b"]) == ["VM a is new"]


def test_a_basis_of_another_schema_is_refused() -> None:
    assert changes({**basis(topology()), "schema": 2}, basis(topology())) == [
        "the plan's basis has schema 2, this version makes 1"
    ]
