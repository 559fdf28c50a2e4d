# Copyright: the topovirt.kvm authors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Where VMs go: the best placement of a batch of requests, found by an exact search.

What is best is written in docs/reference/placement.md. The search goes depth first over the GPU sets of one request
after the other, nearest first, and leaves out what a lower bound shows to be no better than what it has.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from copy import copy
from dataclasses import dataclass

from ansible_collections.topovirt.kvm.plugins.module_utils._errors import TopovirtError
from ansible_collections.topovirt.kvm.plugins.plugin_utils._placement.assign import Taker, assign
from ansible_collections.topovirt.kvm.plugins.plugin_utils._placement.distance import COST, Distances
from ansible_collections.topovirt.kvm.plugins.plugin_utils._placement.fabric import Fabric, GpuSet, blocks, gpu_sets
from ansible_collections.topovirt.kvm.plugins.plugin_utils._placement.inventory import FABRIC_ROLES, Inventory, Unit
from ansible_collections.topovirt.kvm.plugins.plugin_utils._placement.policy import Policy
from ansible_collections.topovirt.kvm.plugins.plugin_utils._placement.request import Request
from ansible_collections.topovirt.kvm.plugins.plugin_utils._placement.sizing import Size, size_of, spread

# Search steps before the best placement found so far is taken; hosts with NVSwitches need some hundred.
SEARCH_LIMIT = 100_000
# What one path class weighs against the order of devices below their switches.
_CLASS_WEIGHT = 1_000_000
# Ways to give out IOMMU groups that hold a NIC and a drive; the best of so many is taken.
MIXED_LIMIT = 1_000


Given = dict[str, tuple[str, ...]]  # VM -> devices


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
class Value:
    """What a placement of a batch is worth; less is better, level by level."""

    distance: int
    nodes: int
    whole: tuple[int, ...]  # minus the free blocks of each size, largest first
    order: tuple[tuple[str, ...], ...]

    @property
    def key(self) -> tuple[int, int, tuple[int, ...], tuple[tuple[str, ...], ...]]:
        return self.distance, self.nodes, self.whole, self.order


@dataclass(frozen=True)
class Solution:
    """A placement in the order of the requests, and its value."""

    placed: list[Placed]
    value: Value


@dataclass(frozen=True)
class _Choice:
    gpu_set: GpuSet
    size: Size
    least: int  # a lower bound of the distances to its NICs and NVMe devices

    @property
    def order(self) -> tuple[str, ...]:
        return self.gpu_set.gpus


class Solver:
    """Questions about one host, one fabric model and one policy."""

    def __init__(self, inventory: Inventory, fabric: Fabric, policy: Policy) -> None:
        self.inventory = inventory
        self.fabric = fabric
        self.policy = policy
        self.undecided = False  # whether a search ended before it had seen everything
        self._ties = {device: self._tied(device) for device in (*fabric.gpus, *fabric.switches)}
        # Devices that cannot be given out by themselves.
        self._bound = frozenset(device for device, tied in self._ties.items() if tied != frozenset({device}))
        self._nodes = sorted(set(inventory.node_of.values()))
        self._usable: dict[tuple[int, ...], Size | None] = {}  # kind of request and GPUs per node -> size
        self._alike = {gpu: self._kind(gpu) for gpu in fabric.gpus}
        self._blocks = blocks(fabric, inventory.pcie_group_of, inventory.node_of)
        self._sizes = sorted({len(block) for block in self._blocks}, reverse=True)
        self._nodes_of = dict(inventory.nodes_of)
        self._far: dict[str, frozenset[int]] = {}
        self._kinds: dict[tuple[object, ...], int] = {}
        self._choices: dict[tuple[int, GpuSet], _Choice | None] = {}
        self._ranks = self._all_ranks()
        self.free = Free(
            frozenset(gpu for gpu in fabric.gpus if self._ties[gpu] is not None),
            {node: len(cores) for node, cores in inventory.free_cores.items()},
            dict(inventory.free_pages),
            tuple(unit for unit in inventory.nics if not self._unit_taken(unit)),
            tuple(unit for unit in inventory.nvmes if not self._unit_taken(unit)),
        )
        self._nics = Distances(inventory.paths, fabric.gpus, [unit.devices[0] for unit in self.free.nics])
        self._nvmes = Distances(inventory.paths, fabric.gpus, [unit.devices[0] for unit in self.free.nvmes])

    def _tied(self, device: str) -> frozenset[str] | None:
        """GPUs and parts of the fabric that go where the device goes; None when it cannot go anywhere."""
        group = self.inventory.group_of(device)
        if any(self.inventory.why_taken(other) for other in group):
            return None
        return frozenset(other for other in group if self._role(other) in ("gpu", *FABRIC_ROLES))

    def _kind(self, gpu: str) -> tuple[object, ...]:
        """GPUs of the same kind can stand for each other: same switch, same node, and no or the same IOMMU group."""
        alone = self.inventory.group_of(gpu) == (gpu,)
        return (
            self.inventory.pcie_group_of[gpu],
            self.inventory.node_of[gpu],
            None if alone else self.inventory.functions[gpu]["iommu_group"],
        )

    def _role(self, device: str) -> str | None:
        return self.inventory.functions[device]["role"]

    def _unit_taken(self, unit: Unit) -> bool:
        return any(self.inventory.why_taken(other) for other in self.inventory.group_of(unit.devices[0]))

    def _all_ranks(self) -> dict[str, int]:
        """Place of a device among those of its role below the same switch: first GPU pairs with first NIC."""
        seen: Counter[tuple[str, str]] = Counter()
        ranks: dict[str, int] = {}
        for bdf, function in self.inventory.functions.items():
            if function["role"] is not None:
                above = next(iter(self.inventory.paths.switches(bdf)), function["host_bridge"])
                ranks[bdf] = seen[above, function["role"]]
                seen[above, function["role"]] += 1
        return ranks

    def _share(self, gpus: int, units: int) -> int:
        return gpus * units // max(1, len(self.fabric.gpus))

    def nic_count(self, request: Request) -> int:
        """NICs that a request gets: what it asks for, what the policy says, or its GPUs' share of those near GPUs."""
        asked = self.policy.nics(request.gpus) if request.nics is None else request.nics
        return self._share(request.gpus, len(self.inventory.near_nics())) if asked is None else asked

    def nvme_count(self, request: Request) -> int:
        """NVMe devices that a request gets: what it asks for, or its GPUs' share of those for guests."""
        return self._share(request.gpus, len(self.inventory.nvmes)) if request.nvme is None else request.nvme

    # --- distances ---

    def _attach(
        self,
        sets: Sequence[tuple[Request, GpuSet]],
        units: Sequence[Unit],
        counts: Sequence[int],
        exact: Sequence[tuple[str, ...]],
        distances: Distances,
        owner_of: Mapping[str, str],
        company: Mapping[str, str],
    ) -> tuple[int, Given] | None:
        """Units for several VMs at once: sum of path classes, and VM -> devices. None when there are too few.

        :param owner_of: devices that one VM alone can have -> that VM.
        :param company: devices that come along with others -> the VM that has those.
        """
        by_name = {unit.devices[0]: unit for unit in units}
        owned: dict[str, frozenset[str]] = {}
        wanted: dict[str, frozenset[str]] = {}
        vm_of: dict[str, str] = {}
        for (request, item), names in zip(sets, exact, strict=True):
            for gpu in item.gpus:
                vm_of[gpu] = request.name
                owned[gpu] = frozenset((*item.gpus, *item.switches))
                wanted[gpu] = frozenset(names)
        claimed = frozenset(name for names in exact for name in names)

        def price(gpu: str, name: str) -> int | None:
            unit = by_name[name]
            asked = wanted[gpu] if wanted[gpu] else None
            if not unit.tied_to <= owned[gpu] or (
                claimed.intersection(unit.devices) if asked is None else asked.isdisjoint(unit.devices)
            ):
                return None
            weight = distances.cost[gpu][name] * _CLASS_WEIGHT + abs(self._ranks[gpu] - self._ranks[name])
            if owner_of.get(name, vm_of[gpu]) != vm_of[gpu]:
                return None
            # Of equally near drives the one that comes along with the VM's NIC anyway.
            return weight - _CLASS_WEIGHT // 2 if company.get(name) == vm_of[gpu] else weight

        takers = [Taker(request.name, item.gpus, count) for (request, item), count in zip(sets, counts, strict=True)]
        given = assign(takers, list(by_name), price)
        if given is None:
            return None
        cost = sum(distances.cost[gpu][name] for pairs in given.values() for gpu, name in pairs)
        return cost, {
            vm: tuple(sorted(device for _gpu, name in pairs for device in by_name[name].devices))
            for vm, pairs in given.items()
        }

    def _attach_nics(
        self, sets: Sequence[tuple[Request, GpuSet]], free: Free, owner_of: Mapping[str, str]
    ) -> tuple[int, Given] | None:
        counts = [self._units_of(request, self.nic_count, request.exact_nics, free.nics) for request, _set in sets]
        exact = [request.exact_nics for request, _set in sets]
        return self._attach(sets, free.nics, counts, exact, self._nics, owner_of, {})

    def _attach_nvmes(
        self,
        sets: Sequence[tuple[Request, GpuSet]],
        units: Sequence[Unit],
        owner_of: Mapping[str, str],
        company: Mapping[str, str],
    ) -> tuple[int, Given] | None:
        counts = [self._units_of(request, self.nvme_count, request.exact_nvmes, units) for request, _set in sets]
        exact = [request.exact_nvmes for request, _set in sets]
        return self._attach(sets, units, counts, exact, self._nvmes, owner_of, company)

    @staticmethod
    def _units_of(
        request: Request, count: Callable[[Request], int], exact: tuple[str, ...], units: Sequence[Unit]
    ) -> int:
        """How many units a request takes: those that its devices belong to, or the number."""
        if not exact:
            return count(request)
        found = [unit for unit in units if not set(exact).isdisjoint(unit.devices)]
        missing = len(set(exact) - {device for unit in found for device in unit.devices})
        return len(found) + missing

    def attach(self, sets: Sequence[tuple[Request, GpuSet]], free: Free) -> tuple[int, list[Placed]] | None:
        """NICs and NVMe devices for chosen GPU sets, at the least sum of path classes; None when there are too few."""
        best: tuple[int, list[Placed]] | None = None
        # A NIC takes its whole IOMMU group with it, so a drive of that group can only go to the same VM. Where the best
        # NICs and the best drives contradict each other there, the group is given to each VM in turn.
        todo: list[dict[str, str]] = [{}]
        for _step in range(MIXED_LIMIT):
            if not todo:
                break
            owner_of = todo.pop()
            found = self._attach_both(sets, free, owner_of)
            if found is None or (best is not None and found[0] >= best[0]):
                continue
            torn = self._torn_group(found[1])
            if torn is None:
                best = found[0], self._with_company(sets, *found[1])
            else:
                todo += [owner_of | dict.fromkeys(torn, request.name) for request, _set in reversed(sets)]
        self.undecided = self.undecided or bool(todo)
        return best

    def _attach_both(
        self, sets: Sequence[tuple[Request, GpuSet]], free: Free, owner_of: Mapping[str, str]
    ) -> tuple[int, tuple[Given, Given]] | None:
        """NICs and drives, each as if the others did not exist.

        :param owner_of: devices of groups that one VM alone can have -> that VM.
        """
        nics = self._attach_nics(sets, free, owner_of)
        if nics is None:
            return None
        company = {
            other: vm for vm, taken in nics[1].items() for nic in taken for other in self.inventory.group_of(nic)
        }
        nvmes = self._attach_nvmes(sets, free.nvmes, owner_of, company)
        return None if nvmes is None else (nics[0] + nvmes[0], (nics[1], nvmes[1]))

    def _torn_group(self, given: tuple[Given, Given]) -> tuple[str, ...] | None:
        """An IOMMU group of which one VM has the NIC and another one the drive."""
        owner = {other: vm for vm, taken in given[0].items() for nic in taken for other in self.inventory.group_of(nic)}
        for vm, drives in given[1].items():
            for drive in drives:
                if owner.get(drive, vm) != vm:
                    return self.inventory.group_of(drive)
        return None

    def _with_company(self, sets: Sequence[tuple[Request, GpuSet]], nics: Given, nvmes: Given) -> list[Placed]:
        """The VMs with what comes along in IOMMU groups."""
        placed = []
        for request, item in sets:
            own = {*item.gpus, *item.switches, *nics[request.name], *nvmes[request.name]}
            along = sorted({other for device in own for other in self.inventory.group_of(device)} - own)
            size = size_of(request, self.policy, self.inventory, item.gpus)
            placed.append(Placed(request, item, size, nics[request.name], nvmes[request.name], tuple(along)))
        return placed

    def dealt(self, placed: Placed) -> list[tuple[str, str, str]]:
        """GPU, device and path class of each NIC and NVMe device of a VM, as they are dealt to its GPUs."""
        found: list[tuple[str, str, str]] = []
        for units, taken, distances in (
            (self.free.nics, placed.nics, self._nics),
            (self.free.nvmes, placed.nvmes, self._nvmes),
        ):
            names = [unit.devices[0] for unit in units if not set(taken).isdisjoint(unit.devices)]
            taker = Taker(placed.request.name, placed.gpu_set.gpus, len(names))
            given = assign(
                [taker],
                names,
                lambda gpu, name, costs=distances.cost: (  # type: ignore[misc]
                    costs[gpu][name] * _CLASS_WEIGHT + abs(self._ranks[gpu] - self._ranks[name])
                ),
            )
            for gpu, name in (given or {}).get(placed.request.name, []):
                found.append((gpu, name, self.inventory.paths.path_class(gpu, name)))
        return found

    @staticmethod
    def distance(pairs: Sequence[tuple[str, str, str]]) -> int:
        """Sum of the costs of dealt pairs."""
        return sum(COST[path] for _gpu, _device, path in pairs)

    # --- one request ---

    def beside(self, placed: Sequence[Placed]) -> Solver:
        """The same questions about the host as it is with these VMs on it."""
        if not placed:
            return self
        other = copy(self)
        other._choices, other._usable = {}, {}
        other._far, other._nodes_of = dict(self._far), dict(self._nodes_of)
        for item in placed:
            other.free = other.free.without(item)
            other.keep_apart(item)
        return other

    def keep_apart(self, placed: Placed) -> None:
        """Note where a VM is, for those that it, or that are to be kept apart from it."""
        name, nodes = placed.request.name, placed.size.nodes
        self._nodes_of[name] = nodes
        for other in placed.request.anti_affinity:
            self._far[other] = self._far.get(other, frozenset()) | nodes

    def far_from(self, request: Request) -> frozenset[int]:
        """Nodes that the VM must not use because of VMs that stand already."""
        named = (self._nodes_of.get(name, frozenset()) for name in request.anti_affinity)
        return self._far.get(request.name, frozenset()).union(*named)

    def impossible(self, request: Request) -> list[str]:
        """Why no state of this machine could serve the request: sizes that do not exist, names that mean nothing."""
        reason = self.fabric.why_not(request)
        found = [reason] if reason else []
        for role, names in (("nic", request.exact_nics), ("nvme", request.exact_nvmes)):
            for name in names:
                function = self.inventory.functions.get(name)
                if function is None:
                    found.append(f"{role} {name}: this host has no such device")
                elif function["role"] != role:
                    found.append(f"{role} {name}: it is a {function['role'] or function['kind'].replace('_', ' ')}")
                elif taken := self.inventory.why_taken(name):
                    found.append(f"{role} {name}: {taken}")
        return found

    def problems(self, request: Request, item: GpuSet, free: Free) -> list[str]:
        """Why a VM cannot have just these GPUs; empty when it can."""
        found: list[str] = []
        own = {*item.gpus, *item.switches}
        for device in sorted(own):
            for other in self.inventory.group_of(device):
                role = self._role(other)
                reason = self.inventory.why_taken(other)
                if other not in own and role in ("gpu", *FABRIC_ROLES):
                    found.append(f"{role} {other} shares IOMMU group {self._group(device)} with {device}")
                elif reason:
                    found.append(f"{role or 'device'} {other}: {reason}")
        size = self._fitted(request, size_of(request, self.policy, self.inventory, item.gpus), free)
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
        found += [
            f"would use NUMA node {node}, which a VM uses that it is to be kept apart from"
            for node in sorted(self.far_from(request).intersection(size.nodes))
        ]
        pair = [(request, item)]
        if self._attach_nics(pair, free, {}) is None:
            found.append(f"needs {self.nic_count(request)} NICs, {len(free.nics)} are free{self.kept_back('nic')}")
        if self._attach_nvmes(pair, free.nvmes, {}, {}) is None:
            found.append(
                f"needs {self.nvme_count(request)} NVMe devices, {len(free.nvmes)} are free{self.kept_back('nvme')}"
            )
        return list(dict.fromkeys(found))

    def _fitted(self, request: Request, size: Size, free: Free) -> Size:
        """The size as it is had: with ``numa: prefer`` from other nodes what the GPUs' nodes do not have."""
        if request.numa == "strict" or _fits(size, free):
            return size
        return spread(size, free.cores, free.pages, self.inventory.nearest_nodes)

    def ties(self) -> list[str]:
        """Which free GPUs cannot be given out one by one, as they share an IOMMU group."""
        together = {
            (self._group(gpu) or 0, tuple(sorted(tied.intersection(self.fabric.gpus))))
            for gpu in self.free.gpus
            if (tied := self._ties[gpu]) is not None
        }
        return [
            f"GPUs {' and '.join(gpus)} share IOMMU group {number}"
            for number, gpus in sorted(together)
            if len(gpus) > 1
        ]

    def kept_back(self, role: str) -> str:
        """Which devices of a role cannot be given out and why, as an addition to a sentence."""
        reasons = list(
            dict.fromkeys(
                f"{other}: {self.inventory.why_taken(other)}"
                for bdf, function in self.inventory.functions.items()
                if function["role"] == role
                for other in self.inventory.group_of(bdf)
                if self.inventory.why_taken(other)
            )
        )
        return f" (not available: {'; '.join(reasons)})" if reasons else ""

    def _group(self, device: str) -> int | None:
        return self.inventory.functions[device]["iommu_group"]

    def sets(self, request: Request, gpus: frozenset[str]) -> list[GpuSet]:
        """GPU sets for a request that are free; other resources and IOMMU groups are not looked at."""
        atoms: dict[frozenset[str], None] = {}
        for gpu in self.fabric.gpus:
            if gpu in gpus:
                # GPUs of one IOMMU group are drawn together or not at all.
                atoms[(self._ties[gpu] or frozenset({gpu})).intersection(self.fabric.gpus)] = None
        groups: dict[tuple[object, ...], list[tuple[str, ...]]] = {}
        for atom in atoms:
            if atom <= gpus:
                members = tuple(sorted(atom))
                groups.setdefault(tuple(self._alike[gpu][:2] for gpu in members), []).append(members)
        return gpu_sets(self.fabric, request, gpus, list(groups.values()))

    def kind_of(self, request: Request) -> int:
        """A number that requests share between which only their names make a difference."""
        return self._kinds.setdefault(_placing(request), len(self._kinds))

    def choice(self, request: Request, kind: int, item: GpuSet) -> _Choice | None:
        """The set as a choice, were the request alone on the host; None when it can be seen not to be one."""
        key = (kind, item)
        if key not in self._choices:
            self._choices[key] = self._weigh(request, kind, item)
        return self._choices[key]

    def _weigh(self, request: Request, kind: int, item: GpuSet) -> _Choice | None:
        own = {*item.gpus, *item.switches}
        for device in self._bound.intersection(own):
            tied = self._ties[device]
            if tied is None or not tied <= own:
                return None
        nodes = [self.inventory.node_of[gpu] for gpu in item.gpus]
        key = (kind, *(nodes.count(node) for node in self._nodes))
        if key not in self._usable:
            size = size_of(request, self.policy, self.inventory, item.gpus)
            fits = not size.problems and _fits(self._fitted(request, size, self.free), self.free)
            self._usable[key] = size if fits else None
        found = self._usable[key]
        if found is None:
            return None
        nics = self._nics.least(item.gpus, self.nic_count(request) if not request.exact_nics else 0)
        nvmes = self._nvmes.least(item.gpus, self.nvme_count(request) if not request.exact_nvmes else 0)
        if nics is None or nvmes is None:
            return None
        return _Choice(item, found, nics + nvmes)

    # --- the batch ---

    def solve(self, requests: Sequence[Request]) -> list[Placed] | None:
        """The best placement, in the order of the requests; None when they do not all fit.

        :raises TopovirtError: when the search ends undecided, which takes a host far larger than known ones.
        """
        found = self.solutions(requests, 1)
        return found[0].placed if found else None

    def solutions(self, requests: Sequence[Request], count: int) -> list[Solution]:
        """The best placements, best first; fewer than ``count`` when there are no more."""
        order = sorted(
            range(len(requests)), key=lambda index: (not requests[index].exact_gpus, -requests[index].gpus, index)
        )
        search = _Search(self, [requests[index] for index in order], count)
        found = search.run()
        self.undecided = self.undecided or search.steps > SEARCH_LIMIT
        for solution in found:
            by_name = {placed.request.name: placed for placed in solution.placed}
            solution.placed[:] = [by_name[request.name] for request in requests]
        return found

    def still_whole(self, free: frozenset[str], left: int) -> tuple[int, ...]:
        """For each block size, largest first: minus the number of free blocks, at most ``left`` GPUs' worth."""
        counts: Counter[int] = Counter()
        for block in self._blocks:
            if block <= free:
                counts[len(block)] += 1
        return tuple(-min(counts[size], left // size) for size in self._sizes)


class _Search:
    """Depth-first branch and bound."""

    def __init__(self, solver: Solver, requests: list[Request], keep: int) -> None:
        self.solver = solver
        self.requests = requests
        self.keep = keep
        self.found: list[Solution] = []  # the best so far, best first
        self.steps = 0
        self.left = len(solver.free.gpus) - sum(request.gpus for request in requests)
        self.kinds = [solver.kind_of(request) for request in requests]
        self._options: dict[tuple[int, frozenset[str]], list[_Choice]] = {}
        self._whole: dict[frozenset[str], tuple[int, ...]] = {}
        # Units that each VM takes; those that it names can be anywhere, so they say nothing about distances.
        self.nics = [0 if request.exact_nics else solver.nic_count(request) for request in requests]
        self.nvmes = [0 if request.exact_nvmes else solver.nvme_count(request) for request in requests]

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

    def _densest(self, index: int, possible: Sequence[_Choice]) -> tuple[float, float]:
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

    def _choices(self, index: int, gpus: frozenset[str]) -> list[_Choice]:
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

    def _visit(self, chosen: list[_Choice], sizes: list[Size], free: Free, distance: int, nodes: int) -> None:
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
        previous = chosen[-1] if chosen and self._interchangeable(index) else None
        # The bound without the request's own share, to which each choice adds its own.
        rest_distance, rest_nodes = self.rest[index + 1][:2]
        for choice in self._choices(index, free.gpus):
            if previous is not None and choice.order < previous.order:
                continue  # interchangeable requests keep host order
            size = self.solver._fitted(request, choice.size, free)
            if not _fits(size, free) or self._too_close(request, size, sizes):
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

    def _interchangeable(self, index: int) -> bool:
        """Whether a request and the one before it can change places."""
        before, request = self.requests[index - 1 : index + 1]
        apart = before.name in request.anti_affinity or request.name in before.anti_affinity
        return self.kinds[index] == self.kinds[index - 1] and not apart

    def _too_close(self, request: Request, size: Size, sizes: Sequence[Size]) -> bool:
        """Whether the VM would share a node with one that it, or that one with it, is to be kept apart from."""
        if not self.solver.far_from(request).isdisjoint(size.nodes):
            return True
        for other, taken in zip(self.requests, sizes, strict=False):
            apart = other.name in request.anti_affinity or request.name in other.anti_affinity
            if apart and not taken.nodes.isdisjoint(size.nodes):
                return True
        return False

    def _least(self, chosen: Sequence[_Choice], free: frozenset[str]) -> int:
        """A lower bound of the distances of the whole batch, when the first VMs have these sets."""
        total = 0
        for distances, counts in ((self.solver._nics, self.nics), (self.solver._nvmes, self.nvmes)):
            rest = counts[len(chosen) :]
            gpus = [request.gpus for request in self.requests[len(chosen) :]]
            seats = max((-(-count // size) for count, size in zip(rest, gpus, strict=True)), default=0)
            taken = [(choice.gpu_set.gpus, count) for choice, count in zip(chosen, counts, strict=False)]
            total += distances.least_together(taken, free, sum(rest), seats)
        return total

    def _leaf(self, chosen: list[_Choice], sizes: list[Size], free: Free, nodes: int) -> None:
        sets = [(request, choice.gpu_set) for request, choice in zip(self.requests, chosen, strict=True)]
        attached = self.solver.attach(sets, self.solver.free)
        if attached is None:
            return
        order = tuple(choice.order for choice in chosen)
        value = Value(attached[0], nodes, self._still_whole(free.gpus), order)
        placed = [
            Placed(item.request, item.gpu_set, size, item.nics, item.nvmes, item.along)
            for item, size in zip(attached[1], sizes, strict=True)
        ]
        self.found = sorted([*self.found, Solution(placed, value)], key=lambda solution: solution.value.key)[
            : self.keep
        ]


def _needs(choice: _Choice) -> tuple[int, int, int, int]:
    size = choice.size
    return choice.least, len(size.nodes), sum(size.cores.values()), sum(size.pages.values())


def _placing(request: Request) -> tuple[object, ...]:
    """All that decides where a request's VM can go."""
    return (
        request.gpus,
        request.nics,
        request.nvme,
        request.vcpus,
        request.memory_bytes,
        request.exact_gpus,
        request.exact_nics,
        request.exact_nvmes,
        request.exact_cpus,
        request.smt,
        request.numa,
        request.nvlink,
        frozenset(request.anti_affinity),
    )


def _fits(size: Size, free: Free) -> bool:
    return all(count <= free.cores.get(node, 0) for node, count in size.cores.items()) and all(
        count <= free.pages.get(node, 0) for node, count in size.pages.items()
    )
