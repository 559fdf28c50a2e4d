# Copyright: the topovirt.kvm authors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""How good a placement is: docs/reference/placement.md says what counts, the solver has no part in counting it."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Collection, Sequence
from dataclasses import dataclass

from ansible_collections.topovirt.kvm.plugins.module_utils._topology.model import Topology
from ansible_collections.topovirt.kvm.plugins.module_utils._topology.paths import Paths

_Node = tuple[str, str]  # of the graph that NICs are dealt in: what it is, and its address or number

COSTS = {"LOC": 0, "PIX": 1, "PXB": 2, "PHB": 3, "NODE": 4, "SYS": 5}


@dataclass(frozen=True)
class Given:
    """What one VM was given: addresses of GPUs, and of one function of each NIC."""

    gpus: tuple[str, ...]
    nics: tuple[str, ...] = ()


@dataclass(frozen=True)
class Demand:
    """A VM whose NICs are to be dealt: ``count`` of ``nics`` to its GPUs."""

    gpus: tuple[str, ...]
    nics: Collection[str]
    count: int


class Host:
    """What of a host the comparison looks at."""

    def __init__(self, topology: Topology) -> None:
        functions = {function["bdf"]: function for function in topology["pci"]}
        self._paths = Paths(topology)
        self.gpus = tuple(bdf for bdf, function in functions.items() if function["role"] == "gpu")
        self.node = {bdf: function["numa_node"] for bdf, function in functions.items()}
        self.kind = {bdf: function["role"] for bdf, function in functions.items()}
        # Functions of one IOMMU group come together, so the first of them stands for all.
        self.nic_of: dict[str, str] = {}
        first: dict[int, str] = {}
        for bdf, function in functions.items():
            if function["role"] == "nic" and not function["in_use"] and function["physfn"] is None:
                group = function["iommu_group"]
                self.nic_of[bdf] = bdf if group is None else first.setdefault(group, bdf)
        self.nics = tuple(dict.fromkeys(self.nic_of.values()))

    def near_nics(self) -> int:
        """NICs that share a switch with a GPU; all of them when there are none such."""
        near = [nic for nic in self.nics if any(self.path_class(nic, gpu) in ("PIX", "PXB") for gpu in self.gpus)]
        return len(near or self.nics)

    def path_class(self, a: str, b: str) -> str:
        return self._paths.path_class(a, b)

    def cost(self, a: str, b: str) -> int:
        return COSTS[self.path_class(a, b)]

    def path_costs(self, placement: Sequence[Given]) -> int:
        """Sum over all VMs of the costs of GPU-NIC pairs, for the best dealing of the NICs that each VM has."""
        total = 0
        for vm in placement:
            dealt = deal([Demand(vm.gpus, vm.nics, len(vm.nics))], self.cost)
            if dealt is None:
                raise ValueError(f"{len(vm.nics)} NICs cannot be dealt to {len(vm.gpus)} GPUs")
            total += dealt[0]
        return total

    def spans(self, placement: Sequence[Given]) -> int:
        """Sum over all VMs of the number of NUMA nodes of their GPUs."""
        return sum(len({self.node[gpu] for gpu in vm.gpus}) for vm in placement)

    def largest_left(self, placement: Sequence[Given]) -> int:
        """GPUs of the largest VM that still fits within one NUMA node."""
        taken = {gpu for vm in placement for gpu in vm.gpus}
        return max(Counter(self.node[gpu] for gpu in self.gpus if gpu not in taken).values(), default=0)


def deal(demands: Sequence[Demand], cost: Callable[[str, str], int]) -> tuple[int, list[tuple[str, ...]]] | None:
    """The best dealing of NICs, for all VMs together: to a GPU at most ceil(count / GPUs) of its VM's.

    Cheapest augmenting paths, by Bellman and Ford, one NIC after the other.

    :returns: the least sum of costs, and the NICs of each VM; None when there are too few.
    """
    start, end = ("from", ""), ("to", "")
    room: dict[tuple[_Node, _Node], int] = {}
    price: dict[tuple[_Node, _Node], int] = {}

    def edge(a: _Node, b: _Node, capacity: int, value: int = 0) -> None:
        room[a, b], price[a, b] = capacity, value
        room[b, a], price[b, a] = 0, -value

    for index, demand in enumerate(demands):
        vm = ("vm", str(index))
        edge(start, vm, demand.count)
        for gpu in demand.gpus:
            edge(vm, ("gpu", gpu), -(-demand.count // len(demand.gpus)))
            for nic in demand.nics:
                edge(("gpu", gpu), ("nic", nic), 1, cost(gpu, nic))
                edge(("nic", nic), end, 1)
    total = 0
    for _nic in range(sum(demand.count for demand in demands)):
        distance: dict[_Node, int] = {start: 0}
        before: dict[_Node, _Node] = {}
        changed = True
        while changed:
            changed = False
            for (a, b), left in room.items():
                if left and a in distance and distance[a] + price[a, b] < distance.get(b, 1 << 30):
                    distance[b], before[b], changed = distance[a] + price[a, b], a, True
        if end not in distance:
            return None
        total += distance[end]
        at = end
        while at != start:
            room[before[at], at] -= 1
            room[at, before[at]] += 1
            at = before[at]
    return total, [
        tuple(nic for nic in demand.nics if any(room[("nic", nic), ("gpu", gpu)] for gpu in demand.gpus))
        for demand in demands
    ]
