# Copyright: the topovirt.kvm authors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""The exact search for the best placement of a batch (docs/reference/placement.md).

It goes depth first over the GPU sets of one request after the other, nearest first, and leaves out what a lower bound
shows to be no better than what it has.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from typing import TYPE_CHECKING

from ansible_collections.topovirt.kvm.plugins.module_utils._errors import TopovirtError
from ansible_collections.topovirt.kvm.plugins.plugin_utils._placement.placed import (
    Choice,
    Free,
    Placed,
    Solution,
    Value,
    fits,
)
from ansible_collections.topovirt.kvm.plugins.plugin_utils._placement.request import Request
from ansible_collections.topovirt.kvm.plugins.plugin_utils._placement.sizing import Size

if TYPE_CHECKING:
    from ansible_collections.topovirt.kvm.plugins.plugin_utils._placement.solve import Solver

# Search steps before the best placement found so far is taken; hosts with NVSwitches need some hundred.
SEARCH_LIMIT = 100_000


class Search:
    """Depth-first branch and bound."""

    def __init__(self, solver: Solver, requests: list[Request], keep: int) -> None:
        self.solver = solver
        self.requests = requests
        self.keep = keep
        self.found: list[Solution] = []  # the best so far, best first
        self.steps = 0
        self.left = len(solver.free.gpus) - sum(request.gpus for request in requests)
        self.kinds = [solver.kind_of(request) for request in requests]
        self.likes = self._likes()
        self._options: dict[tuple[int, frozenset[str]], list[Choice]] = {}
        self._whole: dict[frozenset[str], tuple[int, ...]] = {}
        # Units that each VM takes; those that it names can be anywhere, so they say nothing about distances.
        self.nics = [0 if request.exact_nics else solver.attacher.nic_count(request) for request in requests]
        self.nvmes = [0 if request.exact_nvmes else solver.attacher.nvme_count(request) for request in requests]

    def run(self) -> list[Solution]:
        units = self.solver.free
        if self.left < 0 or sum(self.nics) > len(units.nics) or sum(self.nvmes) > len(units.nvmes):
            return []
        least: list[tuple[int, ...]] = []
        dense: list[tuple[float, ...]] = []
        for index in range(len(self.requests)):
            possible = self._choices(index, self.solver.free.gpus)
            if not possible:
                return []
            least.append(tuple(map(min, zip(*map(_needs, possible), strict=True))))
            dense.append(self._densest(index, possible))
        # What the requests from the n-th one on need at least: distance, nodes, cores, pages; and how many cores and
        # pages a GPU of theirs needs on its own node.
        self.rest = [tuple(map(sum, zip((0, 0, 0, 0), *least[index:], strict=True))) for index in range(len(least) + 1)]
        self.dense = [tuple(map(min, zip((1e9, 1e9), *dense[index:], strict=True))) for index in range(len(least) + 1)]
        self._visit([], [], self.solver.free, 0, 0)
        if self.steps > SEARCH_LIMIT and not self.found:
            raise TopovirtError(
                f"No placement was found in {SEARCH_LIMIT} steps, and none was ruled out.",
                "Place the VMs in smaller batches.",
            )
        return self.found

    def _densest(self, index: int, possible: Sequence[Choice]) -> tuple[float, float]:
        """Cores and pages that one GPU of the n-th request needs on its node at least."""
        if self.requests[index].numa == "prefer":
            return 0.0, 0.0
        node_of = self.solver.inventory.node_of
        cores, pages = 1e9, 1e9
        for size, gpus in {id(choice.size): (choice.size, choice.gpu_set.gpus) for choice in possible}.values():
            for node, count in Counter(node_of[gpu] for gpu in gpus).items():
                cores, pages = min(cores, size.cores[node] / count), min(pages, size.pages[node] / count)
        return cores, pages

    def _room(self, index: int, free: Free) -> bool:
        """Whether the nodes can carry as many GPUs as the requests from the n-th one on ask for."""
        cores, pages = self.dense[index]
        gpus_on = Counter(self.solver.inventory.node_of[gpu] for gpu in free.gpus)
        most = 0.0
        for node, count in gpus_on.items():
            by_cores = free.cores.get(node, 0) / cores if cores else count
            by_pages = free.pages.get(node, 0) / pages if pages else count
            most += min(count, by_cores, by_pages)
        return most >= sum(request.gpus for request in self.requests[index:])

    def _choices(self, index: int, gpus: frozenset[str]) -> list[Choice]:
        """What the n-th request can have of these GPUs, most promising first."""
        request, kind = self.requests[index], self.kinds[index]
        key = (kind, gpus)
        if key not in self._options:
            found = (self.solver.choice(request, kind, item) for item in self.solver.sets(request, gpus))
            self._options[key] = sorted(
                (choice for choice in found if choice is not None),
                key=lambda choice: (choice.least, len(choice.size.nodes), choice.order),
            )
        return self._options[key]

    def _hopeless(self, bound: tuple[int, int, tuple[int, ...]], order: Sequence[tuple[str, ...]]) -> bool:
        """Whether nothing below this point of the search can be better than what is to be beaten."""
        if len(self.found) < self.keep:
            return False
        worst = self.found[-1].value
        limit = (worst.distance, worst.nodes, worst.whole)
        return bound > limit or (bound == limit and tuple(order) > worst.order[: len(order)])

    def _farther(self, distance: int, nodes: int) -> bool:
        """The first two levels of :meth:`_hopeless`, which are known before the third is counted."""
        if len(self.found) < self.keep:
            return False
        worst = self.found[-1].value
        return (distance, nodes) > (worst.distance, worst.nodes)

    def _still_whole(self, gpus: frozenset[str]) -> tuple[int, ...]:
        if gpus not in self._whole:
            self._whole[gpus] = self.solver.still_whole(gpus, self.left)
        return self._whole[gpus]

    def _visit(self, chosen: list[Choice], sizes: list[Size], free: Free, distance: int, nodes: int) -> None:
        self.steps += 1
        if self.steps > SEARCH_LIMIT:
            return
        index = len(chosen)
        rest_distance, rest_nodes, rest_cores, rest_pages = self.rest[index]
        if rest_cores > sum(free.cores.values()) or rest_pages > sum(free.pages.values()):
            return
        if not self._room(index, free):
            return
        order = [choice.order for choice in chosen]
        if self._hopeless((distance + rest_distance, nodes + rest_nodes, self._still_whole(free.gpus)), order):
            return
        if index == len(self.requests):
            self._leaf(chosen, sizes, free, nodes)
            return
        request = self.requests[index]
        like = self.likes[index]
        previous = None if like is None else chosen[like]
        # The bound without the request's own share, to which each choice adds its own.
        rest_distance, rest_nodes = self.rest[index + 1][:2]
        for choice in self._choices(index, free.gpus):
            if previous is not None and choice.order < previous.order:
                continue  # interchangeable requests keep host order
            size = self.solver.fitted(request, choice.size, free)
            if not fits(size, free) or self._too_close(request, size, sizes):
                continue
            further = distance + choice.least
            spanned = nodes + len(size.nodes)
            if self._farther(further + rest_distance, spanned + rest_nodes):
                continue
            gpus = free.gpus.difference(choice.gpu_set.gpus)
            bound = (further + rest_distance, spanned + rest_nodes, self._still_whole(gpus))
            if self._hopeless(bound, [*order, choice.order]):
                continue
            # What all VMs pay together, as they cannot all have the nearest devices.
            if self._farther(self._least([*chosen, choice], gpus), spanned + rest_nodes):
                continue
            smaller = Free(
                gpus,
                {node: count - size.cores.get(node, 0) for node, count in free.cores.items()},
                {node: count - size.pages.get(node, 0) for node, count in free.pages.items()},
                free.nics,
                free.nvmes,
            )
            self._visit([*chosen, choice], [*sizes, size], smaller, further, spanned)

    def _likes(self) -> list[int | None]:
        """For each request the last one before it that can change places with it."""
        named = {name for request in self.requests for name in request.anti_affinity}
        last: dict[int, int] = {}
        found: list[int | None] = []
        for index, (request, kind) in enumerate(zip(self.requests, self.kinds, strict=True)):
            apart = request.name in named or bool(self.solver.far_from(request))
            found.append(None if apart else last.get(kind))
            if not apart:
                last[kind] = index
        return found

    def _too_close(self, request: Request, size: Size, sizes: Sequence[Size]) -> bool:
        """Whether the VM would share a node with one that it, or that one with it, is to be kept apart from."""
        if not self.solver.far_from(request).isdisjoint(size.nodes):
            return True
        for other, taken in zip(self.requests, sizes, strict=False):
            apart = other.name in request.anti_affinity or request.name in other.anti_affinity
            if apart and not taken.nodes.isdisjoint(size.nodes):
                return True
        return False

    def _least(self, chosen: Sequence[Choice], free: frozenset[str]) -> int:
        """A lower bound of the distances of the whole batch, when the first VMs have these sets."""
        total, attacher = 0, self.solver.attacher
        for distances, counts in ((attacher.nics, self.nics), (attacher.nvmes, self.nvmes)):
            rest = counts[len(chosen) :]
            gpus = [request.gpus for request in self.requests[len(chosen) :]]
            seats = max((-(-count // size) for count, size in zip(rest, gpus, strict=True)), default=0)
            taken = [(choice.gpu_set.gpus, count) for choice, count in zip(chosen, counts, strict=False)]
            total += distances.least_together(taken, free, sum(rest), seats)
        return total

    def _leaf(self, chosen: list[Choice], sizes: list[Size], free: Free, nodes: int) -> None:
        sets = [(request, choice.gpu_set) for request, choice in zip(self.requests, chosen, strict=True)]
        attached = self.solver.attacher.attach(sets, self.solver.free)
        if attached is None:
            return
        order = tuple(choice.order for choice in chosen)
        value = Value(attached[0], nodes, self._still_whole(free.gpus), order)
        placed = [
            Placed(item.request, item.gpu_set, size, item.nics, item.nvmes, item.along)
            for item, size in zip(attached[1], sizes, strict=True)
        ]
        self.found = sorted([*self.found, Solution(placed, value)], key=lambda solution: solution.value)[: self.keep]


def _needs(choice: Choice) -> tuple[int, int, int, int]:
    size = choice.size
    return choice.least, len(size.nodes), sum(size.cores.values()), sum(size.pages.values())
