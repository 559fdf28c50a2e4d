# Copyright: the topovirt.kvm authors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""The placement is the best one: judged by trying every placement on small random machines."""

from __future__ import annotations

from collections.abc import Iterator
from itertools import combinations, permutations
from random import Random
from typing import Any

import pytest
from ansible_collections.topovirt.kvm.plugins.module_utils._errors import TopovirtError
from ansible_collections.topovirt.kvm.plugins.module_utils._topology.model import Topology
from ansible_collections.topovirt.kvm.plugins.module_utils._topology.paths import Paths
from ansible_collections.topovirt.kvm.plugins.plugin_utils._placement import search
from ansible_collections.topovirt.kvm.plugins.plugin_utils._placement.plan import make_plan
from ansible_collections.topovirt.kvm.tests.unit.plugins.plugin_utils._guest.test_pcie_tree import leaf, machine
from ansible_collections.topovirt.kvm.tests.unit.plugins.plugin_utils.hosts import GIB, host, request

DISTANCE = {"PIX": 1, "PXB": 2, "PHB": 3, "NODE": 4, "SYS": 5}


def random_machine(random: Random) -> Topology:
    """Two to four host bridges, up to five GPUs and four NICs at odd places."""
    while True:
        shapes = [(random.randint(0, 2), random.randint(0, 2)) for _bridge in range(random.randint(2, 4))]
        gpus, nics = sum(gpu for gpu, _nic in shapes), sum(nic for _gpu, nic in shapes)
        if 1 <= gpus <= 5 and nics <= 4:
            break
    return machine(
        [
            {"bus": 0x20 + 0x30 * index, "node": random.randint(0, 1), "ports": [leaf(*shape)]}
            for index, shape in enumerate(shapes)
            if any(shape)
        ]
    )


def random_requests(random: Random) -> list[dict[str, Any]]:
    return [
        request(
            f"vm{number}",
            random.randint(1, 2),
            nics=random.randint(0, 2),
            vcpus=4,
            memory=f"{random.choice([2, 10, 20, 30])}GiB",
        )
        for number in range(random.randint(1, 3))
    ]


def gpu_choices(requests: list[dict[str, Any]], gpus: list[str]) -> Iterator[list[tuple[str, ...]]]:
    if not requests:
        yield []
        return
    for chosen in combinations(gpus, requests[0]["gpus"]):
        for rest in gpu_choices(requests[1:], [gpu for gpu in gpus if gpu not in chosen]):
            yield [chosen, *rest]


def nic_cost(sets: list[tuple[str, ...]], requests: list[dict[str, Any]], nics: list[str], paths: Paths) -> int | None:
    """Least sum of distances over all ways to hand out NICs, an even share for each GPU."""
    if not sets:
        return 0
    count, best = requests[0]["nics"], None
    seats = [gpu for gpu in sets[0] for _seat in range(-(-count // len(sets[0])))]
    for chosen in combinations(nics, count):
        ways = [
            sum(DISTANCE[paths.path_class(gpu, nic)] for gpu, nic in zip(way, chosen, strict=True))
            for way in permutations(seats, count)
        ]
        rest = nic_cost(sets[1:], requests[1:], [nic for nic in nics if nic not in chosen], paths)
        if rest is not None and (best is None or min(ways) + rest < best):
            best = min(ways) + rest
    return best


def fits(
    topology: Topology, sets: list[tuple[str, ...]], requests: list[dict[str, Any]], node_of: dict[str, int]
) -> bool:
    """Memory and cores: split evenly, as a VM here has at most two GPUs."""
    pages = {node["id"]: node["hugepages"]["1048576"]["total"] for node in topology["numa_nodes"]}
    cores = dict.fromkeys(pages, 14)  # 16, less 2 for the host
    for chosen, wanted in zip(sets, requests, strict=True):
        for gpu in chosen:
            pages[node_of[gpu]] -= int(wanted["memory"][:-3]) // len(chosen)
            cores[node_of[gpu]] -= 2 // len(chosen)
    return min(*pages.values(), *cores.values()) >= 0


def best_by_trying(topology: Topology, requests: list[dict[str, Any]]) -> tuple[int, int] | None:
    functions = topology["pci"]
    gpus = [function["bdf"] for function in functions if function["role"] == "gpu"]
    nics = [function["bdf"] for function in functions if function["role"] == "nic"]
    node_of = {function["bdf"]: function["numa_node"] or 0 for function in functions}
    paths, found = Paths(topology), []
    for sets in gpu_choices(requests, gpus):
        if fits(topology, sets, requests, node_of):
            cost = nic_cost(sets, requests, nics, paths)
            if cost is not None:
                found.append((cost, sum(len({node_of[gpu] for gpu in chosen}) for chosen in sets)))
    return min(found, default=None)


def value_of(made: dict[str, Any], requests: list[dict[str, Any]], topology: Topology) -> tuple[int, int]:
    paths, cost, nodes = Paths(topology), 0, 0
    for vm, wanted in zip(made["vms"], requests, strict=True):
        devices = vm["placement"]["devices"]
        gpus = tuple(device["bdf"] for device in devices if device["role"] == "gpu")
        nics = [device["bdf"] for device in devices if device["role"] == "nic"]
        assert (len(gpus), len(nics)) == (wanted["gpus"], wanted["nics"])
        cost += nic_cost([gpus], [wanted], nics, paths) or 0
        nodes += len(vm["placement"]["nodes"])
    owned = [device["bdf"] for vm in made["vms"] for device in vm["placement"]["devices"]]
    assert len(owned) == len(set(owned))
    return cost, nodes


@pytest.mark.parametrize("seed", range(150))
def test_no_placement_is_better(seed: int) -> None:
    random = Random(seed)
    topology, requests = random_machine(random), random_requests(random)
    expected = best_by_trying(topology, requests)
    try:
        made = make_plan(requests, topology, [], "none", "host")
    except TopovirtError:
        assert expected is None
    else:
        assert value_of(made, requests, topology) == expected


def test_the_random_cases_are_of_both_kinds() -> None:
    found = []
    for seed in range(150):
        random = Random(seed)
        topology = random_machine(random)
        found.append(best_by_trying(topology, random_requests(random)))
    assert 20 < found.count(None) < 130
    assert len({value for value in found if value is not None}) > 10


def test_large_batches_are_decided_quickly(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(search, "SEARCH_LIMIT", 2000)
    sizes = [2, 2, 1, 1, 1, 1]
    wanted = [request(f"vm{index}", size, memory=f"{index + 1}GiB") for index, size in enumerate(sizes)]
    assert len(make_plan(wanted, host(), [], "shared_nvswitch", "host")["vms"]) == 6
    with pytest.raises(TopovirtError, match="cannot be placed"):
        # Three of these fit on each node, eight are asked for.
        make_plan([request(f"vm{n}", 1, memory=f"{300 + n}GiB") for n in range(8)], host(), [], "none", "host")


def test_an_undecided_search_says_so(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(search, "SEARCH_LIMIT", 1)
    with pytest.raises(TopovirtError, match="none was ruled out"):
        make_plan([request("a", 1), request("b", 2)], host(), [], "shared_nvswitch", "host")


def test_memory_can_decide_the_node() -> None:
    topology = host()
    topology["numa_nodes"][0]["hugepages"]["1048576"]["free"] = 10
    (vm,) = make_plan([request("a", 1, memory="11GiB")], topology, [], "none", "host")["vms"]
    assert vm["placement"]["memory_by_node"] == {"1": 11 * GIB}
