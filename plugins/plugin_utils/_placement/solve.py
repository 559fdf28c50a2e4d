# Copyright: the topovirt.kvm authors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Where VMs go: the best placement of a batch of requests, found by an exact search.

Objective, lexicographic:

1. hard: GPU sets that the fabric allows, whole IOMMU groups, devices never shared, cores and huge pages of the nodes;
2. least sum of path classes between GPUs and their NICs and NVMe devices;
3. fewest NUMA nodes spanned;
4. largest VMs that can still come later;
5. host order.

Existing VMs never move.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass

from ansible_collections.topovirt.kvm.plugins.module_utils._errors import TopovirtError
from ansible_collections.topovirt.kvm.plugins.module_utils._topology.paths import CLASSES
from ansible_collections.topovirt.kvm.plugins.plugin_utils._placement.assign import Taker, assign
from ansible_collections.topovirt.kvm.plugins.plugin_utils._placement.fabric import Fabric, GpuSet, blocks, gpu_sets
from ansible_collections.topovirt.kvm.plugins.plugin_utils._placement.inventory import Inventory, Unit
from ansible_collections.topovirt.kvm.plugins.plugin_utils._placement.request import Policy, Request
from ansible_collections.topovirt.kvm.plugins.plugin_utils._placement.sizing import Size, size_of

# Search steps before the best placement found so far is taken; hosts with NVSwitches need some hundred.
SEARCH_LIMIT = 100_000


@dataclass(frozen=True)
class Free:
    """What can still be given out."""

    gpus: frozenset[str]
    cores: dict[int, int]  # node -> number
    pages: dict[int, int]
    nics: tuple[Unit, ...]
    nvmes: tuple[Unit, ...]

    def without(self, placed: Placed) -> Free:
        """The same after a VM has taken its share."""
        gone = set(placed.devices)
        return Free(
            self.gpus - gone,
            {node: count - placed.size.cores.get(node, 0) for node, count in self.cores.items()},
            {node: count - placed.size.pages.get(node, 0) for node, count in self.pages.items()},
            tuple(unit for unit in self.nics if gone.isdisjoint(unit.devices)),
            tuple(unit for unit in self.nvmes if gone.isdisjoint(unit.devices)),
        )


@dataclass(frozen=True)
class Placed:
    """One VM's place: its devices and how many cores and pages of each node it takes."""

    request: Request
    gpu_set: GpuSet
    size: Size
    nics: tuple[str, ...]
    nvmes: tuple[str, ...]
    along: tuple[str, ...]  # devices that come with others of their IOMMU group

    @property
    def devices(self) -> tuple[str, ...]:
        """All devices, in host order."""
        return tuple(sorted({*self.gpu_set.gpus, *self.gpu_set.switches, *self.nics, *self.nvmes, *self.along}))


@dataclass(frozen=True)
class _Choice:
    request: Request
    gpu_set: GpuSet
    size: Size
    least_cost: int  # of its NICs and NVMe devices, were it alone
    nodes: int


class Solver:
    """Questions about one host, one fabric model and one policy."""

    def __init__(self, inventory: Inventory, fabric: Fabric, policy: Policy) -> None:
        self.inventory = inventory
        self.fabric = fabric
        self.policy = policy
        self._blocks = blocks(fabric, inventory.pcie_group_of, inventory.node_of)
        self._choices: dict[tuple[str, GpuSet], _Choice | None] = {}
        self._rank = self._ranks()
        self.free = Free(
            frozenset(gpu for gpu in fabric.gpus if not inventory.why_taken(gpu)),
            {node: len(cores) for node, cores in inventory.free_cores.items()},
            dict(inventory.free_pages),
            tuple(unit for unit in inventory.nics if not self._unit_taken(unit)),
            tuple(unit for unit in inventory.nvmes if not self._unit_taken(unit)),
        )

    def _unit_taken(self, unit: Unit) -> bool:
        return any(self.inventory.why_taken(other) for other in self.inventory.group_of(unit.devices[0]))

    def _ranks(self) -> dict[str, int]:
        """Place of a device among those of its role below the same switch: first GPU pairs with first NIC."""
        seen: Counter[tuple[str, str]] = Counter()
        ranks: dict[str, int] = {}
        for bdf, function in self.inventory.functions.items():
            if function["role"] is not None:
                above = next(iter(self.inventory.paths.switches(bdf)), function["host_bridge"])
                ranks[bdf] = seen[above, function["role"]]
                seen[above, function["role"]] += 1
        return ranks

    def nic_count(self, request: Request) -> int:
        """NICs that a request gets: what it asks for, or its GPUs' share of the NICs near GPUs."""
        if request.nics is not None:
            return request.nics
        if self.policy.nics_per_gpu is not None:
            return self.policy.nics_per_gpu * request.gpus
        return request.gpus * len(self.inventory.near_nics()) // max(1, len(self.fabric.gpus))

    # --- distances ---

    def _price(self, gpu: str, unit: Unit, owned: frozenset[str]) -> int | None:
        if not unit.tied_to <= owned:
            return None
        device = unit.devices[0]
        rank = abs(self._rank[gpu] - self._rank[device])
        return CLASSES.index(self.inventory.paths.path_class(gpu, device)) * 1000 + min(rank, 999)

    def _attach(
        self, sets: Sequence[tuple[Request, GpuSet]], units: Sequence[Unit], counts: Sequence[int]
    ) -> tuple[int, dict[str, tuple[str, ...]]] | None:
        """Units for several VMs at once: sum of path classes, and VM -> devices. None when there are too few."""
        by_name = {unit.devices[0]: unit for unit in units}
        owner = {gpu: frozenset((*item.gpus, *item.switches)) for _request, item in sets for gpu in item.gpus}
        takers = [Taker(request.name, item.gpus, count) for (request, item), count in zip(sets, counts, strict=True)]
        given = assign(takers, list(by_name), lambda gpu, name: self._price(gpu, by_name[name], owner[gpu]))
        if given is None:
            return None
        cost = sum(
            CLASSES.index(self.inventory.paths.path_class(gpu, name)) for pairs in given.values() for gpu, name in pairs
        )
        return cost, {
            vm: tuple(sorted(device for _gpu, name in pairs for device in by_name[name].devices))
            for vm, pairs in given.items()
        }

    def attach(self, sets: Sequence[tuple[Request, GpuSet]], free: Free) -> tuple[int, list[Placed]] | None:
        """NICs and NVMe devices for chosen GPU sets, at the least sum of path classes; None when there are too few."""
        nics = self._attach(sets, free.nics, [self.nic_count(request) for request, _set in sets])
        if nics is None:
            return None
        # A NIC takes its whole IOMMU group with it, so an NVMe of that group can only go to the same VM.
        gone = {other: vm for vm, taken in nics[1].items() for nic in taken for other in self.inventory.group_of(nic)}
        loose = [unit for unit in free.nvmes if unit.devices[0] not in gone]
        nvmes = self._attach(sets, loose, [request.nvme for request, _set in sets])
        if nvmes is None:
            return None
        placed = []
        for request, item in sets:
            own = {*item.gpus, *item.switches, *nics[1][request.name], *nvmes[1][request.name]}
            along = sorted({other for device in own for other in self.inventory.group_of(device)} - own)
            size = size_of(request, self.policy, self.inventory, item.gpus)
            placed.append(Placed(request, item, size, nics[1][request.name], nvmes[1][request.name], tuple(along)))
        return nics[0] + nvmes[0], placed

    # --- one request ---

    def problems(self, request: Request, item: GpuSet, free: Free) -> list[str]:
        """Why a VM cannot have just these GPUs; empty when it can."""
        found: list[str] = []
        own = {*item.gpus, *item.switches}
        for device in sorted(own):
            for other in self.inventory.group_of(device):
                role = self.inventory.functions[other]["role"]
                reason = self.inventory.why_taken(other)
                if other not in own and role in ("gpu", "nvswitch"):
                    found.append(f"{role} {other} shares IOMMU group {self._group(device)} with {device}")
                elif reason:
                    found.append(f"{role or 'device'} {other}: {reason}")
        size = size_of(request, self.policy, self.inventory, item.gpus)
        found += size.problems
        for node, cores in size.cores.items():
            if cores > free.cores.get(node, 0):
                found.append(f"needs {cores} cores of NUMA node {node}, {free.cores.get(node, 0)} are free")
        page = self.inventory.page_size_bytes >> 20
        for node, pages in size.pages.items():
            if pages > free.pages.get(node, 0):
                found.append(
                    f"needs {pages} huge pages of {page} MiB of NUMA node {node}, {free.pages.get(node, 0)} are free"
                )
        pair = [(request, item)]
        if self._attach(pair, free.nics, [self.nic_count(request)]) is None:
            found.append(f"needs {self.nic_count(request)} NICs, {len(free.nics)} are free{self.kept_back('nic')}")
        if self._attach(pair, free.nvmes, [request.nvme]) is None:
            found.append(f"needs {request.nvme} NVMe devices, {len(free.nvmes)} are free{self.kept_back('nvme')}")
        return list(dict.fromkeys(found))

    def kept_back(self, role: str) -> str:
        """Which devices of a role cannot be given out and why, as an addition to a sentence."""
        reasons = [
            f"{bdf}: {self.inventory.why_taken(bdf)}"
            for bdf, function in self.inventory.functions.items()
            if function["role"] == role and self.inventory.why_taken(bdf)
        ]
        return f" (not available: {'; '.join(reasons)})" if reasons else ""

    def _group(self, device: str) -> int | None:
        return self.inventory.functions[device]["iommu_group"]

    def sets(self, count: int, free: Free) -> list[GpuSet]:
        """GPU sets of a size that are free, in host order; IOMMU groups and other resources are not looked at."""
        return list(gpu_sets(self.fabric, count, free.gpus, self.inventory.pcie_group_of))

    def _choice(self, request: Request, item: GpuSet) -> _Choice | None:
        """The set as a choice, were the request alone on the host; None when even that fails."""
        key = (request.name, item)
        if key not in self._choices:
            choice = None
            if not self.problems(request, item, self.free):
                alone = self.attach([(request, item)], self.free)
                if alone is not None:
                    size = alone[1][0].size
                    choice = _Choice(request, item, size, alone[0], len(size.cores))
            self._choices[key] = choice
        return self._choices[key]

    # --- the batch ---

    def solve(self, requests: Sequence[Request]) -> list[Placed] | None:
        """The best placement, in the order of the requests; None when they do not all fit.

        :raises TopovirtError: when the search ends undecided, which takes a host far larger than known ones.
        """
        order = sorted(range(len(requests)), key=lambda index: (-requests[index].gpus, _shape(requests[index]), index))
        found = _Search(self, [requests[index] for index in order]).run()
        if found is None:
            return None
        by_name = {placed.request.name: placed for placed in found}
        return [by_name[request.name] for request in requests]

    def still_whole(self, free: frozenset[str], left: int) -> tuple[int, ...]:
        """For each block size, largest first: minus the number of free blocks, at most ``left`` GPUs' worth."""
        counts: Counter[int] = Counter()
        sizes = sorted({len(block) for block in self._blocks}, reverse=True)
        for block in self._blocks:
            if block <= free:
                counts[len(block)] += 1
        return tuple(-min(counts[size], left // size) for size in sizes)


def _shape(request: Request) -> tuple[int, ...]:
    """What makes two requests interchangeable; -1 stands for "auto"."""
    return tuple(
        -1 if value is None else value for value in (request.nics, request.nvme, request.vcpus, request.memory_bytes)
    )


class _Search:
    """Depth-first branch and bound; the first of equal placements in host order wins."""

    def __init__(self, solver: Solver, requests: list[Request]) -> None:
        self.solver = solver
        self.requests = requests
        self.best: list[Placed] | None = None
        self.best_key: tuple[int, int, tuple[int, ...]] | None = None
        self.steps = 0
        self.left = len(solver.free.gpus) - sum(request.gpus for request in requests)

    def run(self) -> list[Placed] | None:
        if self.left < 0:
            return None
        least: list[tuple[int, ...]] = []
        for request in self.requests:
            choices = [self.solver._choice(request, item) for item in self.solver.sets(request.gpus, self.solver.free)]
            possible = [_needs(choice) for choice in choices if choice is not None]
            if not possible:
                return None
            least.append(tuple(map(min, zip(*possible, strict=True))))
        # What the requests from the n-th one on need at least: cost, nodes, cores, pages.
        self.rest = [tuple(map(sum, zip((0, 0, 0, 0), *least[index:], strict=True))) for index in range(len(least) + 1)]
        self._visit([], self.solver.free, 0, 0)
        if self.steps > SEARCH_LIMIT and self.best is None:
            raise TopovirtError(
                f"No placement was found in {SEARCH_LIMIT} steps, and none was ruled out.",
                "Place the VMs in smaller batches.",
            )
        return self.best

    def _visit(self, chosen: list[_Choice], free: Free, cost: int, nodes: int) -> None:
        self.steps += 1
        if self.steps > SEARCH_LIMIT:
            return
        index = len(chosen)
        rest_cost, rest_nodes, rest_cores, rest_pages = self.rest[index]
        if rest_cores > sum(free.cores.values()) or rest_pages > sum(free.pages.values()):
            return
        bound = (cost + rest_cost, nodes + rest_nodes, self.solver.still_whole(free.gpus, self.left))
        if self.best_key is not None and bound >= self.best_key:
            return
        if index == len(self.requests):
            self._leaf(chosen, bound)
            return
        request = self.requests[index]
        previous = chosen[-1] if chosen and _alike(chosen[-1].request, request) else None
        for item in self.solver.sets(request.gpus, free):
            if previous is not None and item.gpus < previous.gpu_set.gpus:
                continue  # interchangeable requests keep host order
            choice = self.solver._choice(request, item)
            if choice is None or not _fits(choice.size, free):
                continue
            smaller = free.without(Placed(request, item, choice.size, (), (), ()))
            self._visit([*chosen, choice], smaller, cost + choice.least_cost, nodes + choice.nodes)

    def _leaf(self, chosen: list[_Choice], bound: tuple[int, int, tuple[int, ...]]) -> None:
        attached = self.solver.attach([(choice.request, choice.gpu_set) for choice in chosen], self.solver.free)
        if attached is None:
            return
        key = (attached[0], *bound[1:])
        if self.best_key is None or key < self.best_key:
            self.best, self.best_key = attached[1], key


def _needs(choice: _Choice) -> tuple[int, int, int, int]:
    return choice.least_cost, choice.nodes, sum(choice.size.cores.values()), sum(choice.size.pages.values())


def _alike(a: Request, b: Request) -> bool:
    return a.gpus == b.gpus and _shape(a) == _shape(b)


def _fits(size: Size, free: Free) -> bool:
    return all(count <= free.cores.get(node, 0) for node, count in size.cores.items()) and all(
        count <= free.pages.get(node, 0) for node, count in size.pages.items()
    )
