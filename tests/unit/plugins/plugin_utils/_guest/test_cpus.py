# Copyright: the topovirt.kvm authors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""CPU topologies and what a guest takes for an L3 cache, judged by ranges of APIC ids."""

from __future__ import annotations

import pytest
from ansible_collections.topovirt.kvm.plugins.module_utils._topology.model import Core, Topology
from ansible_collections.topovirt.kvm.plugins.plugin_utils._guest.cpus import (
    CpuTopology,
    apic_ids,
    cpu_topology,
    in_l3_order,
    pick_cores,
    shows_too_few_l3,
    threads_of_l3,
)
from ansible_collections.topovirt.kvm.plugins.plugin_utils._placement.plan import make_plan
from ansible_collections.topovirt.kvm.tests.unit.plugins.plugin_utils.hosts import host, request

LIMIT = 4095


def cells(*nodes: list[int], threads: int = 2) -> list[list[Core]]:
    """A cell per node, from numbers of cores of one L3 cache after the other."""
    made: list[list[Core]] = []
    number = cache = 0
    for node, counts in enumerate(nodes):
        cores: list[Core] = []
        for count in counts:
            for _core in range(count):
                siblings = [number * threads + thread for thread in range(threads)]
                cores.append({"package": 0, "die": 0, "core": number, "node": node, "l3": cache, "threads": siblings})
                number += 1
            cache += 1
        made.append(cores)
    return made


def shape_of(
    guest: list[list[Core]], l3_cores: int, amd: bool = True, dies: bool = True, limit: int = LIMIT
) -> CpuTopology:
    """:param l3_cores: how many cores each of the host's L3 caches has, of which the guest may have fewer."""
    threads = len(guest[0][0]["threads"])
    caches = {core["l3"] or 0 for cores in guest for core in cores}
    return cpu_topology(guest, dict.fromkeys(caches, l3_cores * threads), amd, dies, limit)


def levels(shape: CpuTopology) -> tuple[int, int, int, int]:
    return shape["sockets"], shape["dies"], shape["cores"], shape["threads"]


@pytest.mark.parametrize(
    "nodes,l3_cores,expected",
    [
        ([[48], [48]], 48, (2, 1, 48, 2)),  # one L3 per socket
        ([[8] * 4, [8] * 4], 8, (2, 4, 8, 2)),
        ([[6] * 4], 6, (1, 4, 6, 2)),  # no power of two
        ([[7] * 4], 8, (1, 4, 7, 2)),  # the same three bits
        ([[4] * 4], 8, (1, 1, 16, 2)),  # half of each: two dies would be taken for one L3
        ([[4, 8, 8]], 8, (1, 1, 20, 2)),
        ([[8, 8], [8, 8, 8]], 8, (1, 1, 40, 2)),
        ([[8] * 12, [8] * 12], 8, (24, 1, 8, 2)),  # more dies than AMD's CPUID can count
    ],
)
def test_a_die_for_each_l3_where_cores_spread_evenly(
    nodes: list[list[int]], l3_cores: int, expected: tuple[int, int, int, int]
) -> None:
    assert levels(shape_of(cells(*nodes), l3_cores)) == expected


def test_sockets_stand_in_for_dies() -> None:
    assert levels(shape_of(cells([8] * 4, [8] * 4), 8, dies=False)) == (8, 1, 8, 2)
    assert levels(shape_of(cells([8] * 12), 8, amd=False)) == (1, 12, 8, 2)


def test_dies_never_push_ids_beyond_the_limit() -> None:
    guest = cells([5] * 5, [5] * 5)
    assert levels(shape_of(guest, 5)) == (2, 5, 5, 2)
    assert max(apic_ids(shape_of(guest, 5))) == 201
    assert levels(shape_of(guest, 5, limit=200)) == (2, 1, 25, 2)


def test_apic_ids_are_packed_bit_fields() -> None:
    assert apic_ids(CpuTopology(sockets=2, dies=2, cores=3, threads=2)) == [
        *(0b0_0_00_0, 0b0_0_00_1, 0b0_0_01_0, 0b0_0_01_1, 0b0_0_10_0, 0b0_0_10_1),
        *(0b0_1_00_0, 0b0_1_00_1, 0b0_1_01_0, 0b0_1_01_1, 0b0_1_10_0, 0b0_1_10_1),
        *(0b1_0_00_0, 0b1_0_00_1, 0b1_0_01_0, 0b1_0_01_1, 0b1_0_10_0, 0b1_0_10_1),
        *(0b1_1_00_0, 0b1_1_00_1, 0b1_1_01_0, 0b1_1_01_1, 0b1_1_10_0, 0b1_1_10_1),
    ]


def test_whole_caches_come_before_parts() -> None:
    (cores,) = cells([4, 8, 8])
    assert [core["l3"] for core in in_l3_order(cores)] == [1] * 8 + [2] * 8 + [0] * 4
    (even,) = cells([8, 8])
    assert in_l3_order(even) == even


@pytest.mark.parametrize(
    "free,count,taken",
    [
        ([44], 11, {0: 11}),
        ([2, 4, 4, 4], 7, {1: 4, 2: 3}),
        ([2, 4, 4, 4], 2, {0: 2}),
        ([4, 8, 8, 6], 6, {3: 6}),
        ([4, 8, 8, 6], 5, {3: 5}),
        ([4, 8, 8, 6], 20, {0: 4, 1: 8, 2: 8}),
        ([4, 8, 8, 6], 26, {0: 4, 1: 8, 2: 8, 3: 6}),
    ],
)
def test_cores_are_picked_from_few_caches(free: list[int], count: int, taken: dict[int, int]) -> None:
    (cores,) = cells(free)
    picked = pick_cores(cores, count)
    assert {cache: sum(core["l3"] == cache for core in picked) for cache in taken} == taken
    assert len(picked) == count
    assert picked == sorted(picked, key=lambda core: core["threads"])


def test_tenants_share_no_core_and_no_cache_where_there_are_enough() -> None:
    wanted = [request(name, 1, vcpus=16) for name in ("a", "b", "c")]
    vms = make_plan(wanted, with_caches(8), [], "shared_nvswitch", "host")["vms"]
    pins = [{cpu for _vcpu, cpu in vm["layout"]["vcpu_pins"]} for vm in vms]
    assert [len(cpus) for cpus in pins] == [16, 16, 16]
    assert len(set.union(*pins)) == 48
    assert [len({cpu % 96 // 8 for cpu in cpus}) for cpus in pins] == [1, 1, 1]


@pytest.mark.parametrize(
    "counts,l3_cores,lie",
    [
        ([8, 8, 4], 8, None),  # ranges of 16 ids from the start on
        ([4, 8, 8], 8, (3, 3)),
        ([8, 8], 8, None),
        ([4, 4], 8, (1, 2)),
        ([6, 6, 3], 6, (2, 3)),
    ],
)
def test_a_guest_that_takes_caches_for_one_is_told(
    counts: list[int], l3_cores: int, lie: tuple[int, int] | None
) -> None:
    guest = cells(counts)
    caches = dict.fromkeys(range(len(counts)), 2 * l3_cores)
    assert shows_too_few_l3(guest, caches, shape_of(guest, l3_cores)) == lie


def test_unknown_caches_are_no_reason() -> None:
    guest = cells([8, 8])
    guest[0][3]["l3"] = None
    threads = threads_of_l3(guest[0])
    assert threads == {0: 14, 1: 16}
    shape = cpu_topology(guest, threads, True, True, LIMIT)
    assert levels(shape) == (1, 1, 16, 2)
    assert shows_too_few_l3(guest, threads, shape) is None


KEEP_FOUR = {"reserve_cores_per_node": 4}


def with_caches(cores_per_l3: int) -> Topology:
    topology = host()
    for core in topology["cores"]:
        core["l3"] = core["threads"][0] // cores_per_l3
    topology["host"]["cpu_vendor"] = "AuthenticAMD"
    return topology


def test_a_plan_tells_what_the_guest_sees() -> None:
    # 48 cores a node, of which the host keeps the first four: 44 are 4 and five times 8.
    (vm,) = make_plan([request("a", 8)], with_caches(8), [], "full_passthrough", "host", KEEP_FOUR)["vms"]
    assert levels(vm["layout"]["cpu_topology"]) == (2, 1, 44, 2)
    assert not any("L3" in warning for warning in vm["warnings"])
    first = [cpu for _vcpu, cpu in vm["layout"]["vcpu_pins"]]
    assert first[:4] == [8, 104, 9, 105]
    assert first[80:88] == [4, 100, 5, 101, 6, 102, 7, 103]
    (vm,) = make_plan([request("a", 8)], with_caches(6), [], "full_passthrough", "host", KEEP_FOUR)["vms"]
    assert any("L3" in warning for warning in vm["warnings"])
    (vm,) = make_plan([request("a", 8)], with_caches(4), [], "full_passthrough", "host", KEEP_FOUR)["vms"]
    assert levels(vm["layout"]["cpu_topology"]) == (22, 1, 4, 2)
