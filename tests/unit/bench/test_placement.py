# Copyright: the topovirt.kvm authors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""The comparison of placements: its yardstick is right, and all who are compared solve the same task."""

from __future__ import annotations

import random
from collections.abc import Mapping, Sequence
from itertools import product

import pytest
from ansible_collections.topovirt.kvm.plugins.module_utils._topology.model import Topology

from tests.bench import contestants, placement
from tests.bench.contestants import Wish
from tests.bench.quality import Demand, Given, Host, deal
from tests.bench.result import Row, table
from tests.unit.plugins.plugin_utils import hosts

# hgx-h200: two GPUs and two NICs below each of four switches, two switches on each of two nodes.
PAIR_A, PAIR_B, PAIR_C = (
    ("0000:23:00.0", "0000:24:00.0"),
    ("0000:53:00.0", "0000:54:00.0"),
    ("0000:93:00.0", "0000:94:00.0"),
)
NICS_A, NICS_B, NICS_C = (
    ("0000:25:00.0", "0000:26:00.0"),
    ("0000:55:00.0", "0000:56:00.0"),
    ("0000:95:00.0", "0000:96:00.0"),
)


@pytest.fixture(scope="module")
def topology() -> Topology:
    return hosts.host()


@pytest.fixture(scope="module")
def host(topology: Topology) -> Host:
    return Host(topology)


@pytest.mark.parametrize(
    ("vm", "cost"),
    [
        (Given(PAIR_A, NICS_A), 1 + 1),
        (Given(PAIR_A, (NICS_A[0], NICS_B[0])), 1 + 4),
        (Given(PAIR_A, (NICS_A[0], NICS_C[0])), 1 + 5),
        (Given((PAIR_A[0], PAIR_C[0]), (NICS_C[1], NICS_A[1])), 1 + 1),
        (Given((PAIR_A[0], PAIR_C[0]), NICS_A), 1 + 5),  # one NIC to each GPU, though the first is near to both
        (Given(PAIR_A[:1], NICS_A), 1 + 1),
        (Given(PAIR_A), 0),
    ],
)
def test_path_costs_of_one_vm(host: Host, vm: Given, cost: int) -> None:
    assert host.path_costs([vm]) == cost
    assert host.path_costs([vm, Given(PAIR_B, NICS_B)]) == cost + 2


def test_nodes_and_what_is_left(host: Host) -> None:
    assert host.spans([Given(PAIR_A), Given((PAIR_B[0], PAIR_C[0]))]) == 1 + 2
    assert host.largest_left([]) == 4
    assert host.largest_left([Given(PAIR_A)]) == 4
    assert host.largest_left([Given(PAIR_A), Given(PAIR_C[:1])]) == 3
    assert host.largest_left([Given(host.gpus)]) == 0


def cheapest(demands: Sequence[Demand], costs: Mapping[tuple[str, str], int]) -> int | None:
    """The least sum over every way to give each NIC to a GPU or to nobody."""
    gpus = [gpu for demand in demands for gpu in demand.gpus]
    nics = sorted({nic for demand in demands for nic in demand.nics})
    sums = []
    for takers in product([None, *gpus], repeat=len(nics)):
        pairs = [(gpu, nic) for gpu, nic in zip(takers, nics, strict=True) if gpu is not None]
        if all(
            sum(gpu in demand.gpus for gpu, _nic in pairs) == demand.count
            and all(nic in demand.nics for gpu, nic in pairs if gpu in demand.gpus)
            and all(
                sum(taker == gpu for taker, _nic in pairs) <= -(-demand.count // len(demand.gpus))
                for gpu in demand.gpus
            )
            for demand in demands
        ):
            sums.append(sum(costs[pair] for pair in pairs))
    return min(sums, default=None)


def test_dealing_is_the_cheapest() -> None:
    chance = random.Random(1)
    names = ["a", "b", "c", "d"]
    dealt_at_all = 0
    for _round in range(80):
        nics = [f"nic{number}" for number in range(chance.randint(1, 4))]
        costs = {(gpu, nic): chance.randint(1, 5) for gpu in names for nic in nics}
        cut = chance.randint(1, 3)
        demands = [
            Demand(tuple(gpus), tuple(chance.sample(nics, chance.randint(1, len(nics)))), chance.randint(0, 3))
            for gpus in (names[:cut], names[cut:])
        ]
        dealt = deal(demands, lambda gpu, nic, costs=costs: costs[gpu, nic])  # type: ignore[misc]
        assert (None if dealt is None else dealt[0]) == cheapest(demands, costs)
        if dealt is not None:
            dealt_at_all += 1
            given = [nic for chosen in dealt[1] for nic in chosen]
            assert len(given) == len(set(given))
            for demand, chosen in zip(demands, dealt[1], strict=True):
                assert len(chosen) == demand.count and set(chosen) <= set(demand.nics)
    assert dealt_at_all > 20


WISHES = {"4+2+1+1": (4, 2, 1, 1), "8": (8,), "2+1": (2, 1), "8 x 1": (1,) * 8}


@pytest.mark.parametrize("sizes", WISHES.values(), ids=WISHES)
def test_all_place_the_same_vms(topology: Topology, host: Host, sizes: tuple[int, ...]) -> None:
    wishes = [Wish(size, size) for size in sizes]
    own = contestants.ours(topology, "none", wishes)
    chosen = contestants.go_gpuallocators(host, wishes)
    assert own is not None and chosen is not None
    for given in (
        contestants.ours_by_unit(host, own),
        contestants.novas(topology, host, wishes),
        contestants.with_best_nics(host, chosen, wishes),
    ):
        assert given is not None
        assert [Wish(len(vm.gpus), len(vm.nics)) for vm in given] == wishes
        for devices, all_of_host in (
            ([gpu for vm in given for gpu in vm.gpus], host.gpus),
            ([nic for vm in given for nic in vm.nics], host.nics),
        ):
            assert len(devices) == len(set(devices)) and set(devices) <= set(all_of_host)


def test_what_the_rivals_give_on_a_host_with_pairs(topology: Topology, host: Host) -> None:
    """Nova spreads VMs over nodes and takes the first devices there; go-gpuallocator keeps pairs together."""
    wishes = [Wish(2, 2), Wish(1, 1)]
    assert contestants.novas(topology, host, wishes) == [Given(PAIR_A, NICS_A), Given(PAIR_C[:1], NICS_C[:1])]
    assert contestants.go_gpuallocators(host, wishes) == [PAIR_A, PAIR_B[:1]]


def test_functions_of_one_group_are_one_nic(topology: Topology) -> None:
    grouped = hosts.host()
    for function in grouped["pci"]:
        if function["bdf"] in NICS_A:
            function["iommu_group"] = 999
    host = Host(grouped)
    assert (len(host.nics), host.near_nics()) == (7, 7)
    assert contestants.ours_by_unit(host, [Given(PAIR_A, NICS_A)]) == [Given(PAIR_A, NICS_A[:1])]
    assert len(Host(placement.ungrouped(grouped)).nics) == 8


def test_batches_fit_on_the_machine_and_fill_it() -> None:
    for gpus in (8, 16):
        sizes = placement.batches(gpus)
        assert len(sizes) == len(set(sizes))
        assert {(1,) * gpus, (2,) * (gpus // 2), (gpus,), (4, 2, 1, 1)} <= set(sizes)
        assert all(sum(batch) <= gpus and list(batch) == sorted(batch, reverse=True) for batch in sizes)


def test_rows_of_a_machine(topology: Topology) -> None:
    rows = {row.name: row for row in placement.rows({"hgx-h200": topology})}
    for model in ("none", "full_passthrough", "shared_nvswitch"):
        [goal] = [row for name, row in rows.items() if name.startswith(f"hgx-h200, {model}: slowest single request")]
        assert goal.peers == {"goal": 20} and goal.ours > 0
    assert set(rows["hgx-h200: 1 x 4 + 1 x 2 + 2 x 1"].peers) == {"Nova", "go-gpuallocator"}
    assert rows["hgx-h200: nodes, 9 of 9 batches"].unit == ""
    assert table(list(rows.values()))


def test_nothing_to_compare_with_is_no_error() -> None:
    assert table([Row("left", "", 3, {"Nova": 0, "other": 2})]).splitlines()[1].split()[1:] == [
        "3", "Nova", "0;", "other", "2,", "ours", "/", "it", "=", "1.50",
    ]  # fmt: skip
