# Copyright: the topovirt.kvm authors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Where VMs go: questions about one host, and the best placement of a batch (docs/reference/placement.md)."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from copy import copy

from ansible_collections.topovirt.kvm.plugins.plugin_utils._placement.attach import Attacher
from ansible_collections.topovirt.kvm.plugins.plugin_utils._placement.fabric import Fabric, GpuSet, blocks, gpu_sets
from ansible_collections.topovirt.kvm.plugins.plugin_utils._placement.inventory import FABRIC_ROLES, Inventory, Unit
from ansible_collections.topovirt.kvm.plugins.plugin_utils._placement.placed import Choice, Free, Placed, Solution, fits
from ansible_collections.topovirt.kvm.plugins.plugin_utils._placement.policy import Policy
from ansible_collections.topovirt.kvm.plugins.plugin_utils._placement.request import Request
from ansible_collections.topovirt.kvm.plugins.plugin_utils._placement.search import SEARCH_LIMIT, Search
from ansible_collections.topovirt.kvm.plugins.plugin_utils._placement.sizing import Size, size_of, spread


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
        self._choices: dict[tuple[int, GpuSet], Choice | None] = {}
        self.free = Free(
            frozenset(gpu for gpu in fabric.gpus if self._ties[gpu] is not None),
            {node: len(cores) for node, cores in inventory.free_cores.items()},
            dict(inventory.free_pages),
            tuple(unit for unit in inventory.nics if not self._unit_taken(unit)),
            tuple(unit for unit in inventory.nvmes if not self._unit_taken(unit)),
        )
        self.attacher = Attacher(inventory, fabric, policy, self.free)

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
                    what = f"a {function['role']}" if function["role"] else "no device that a VM could own"
                    found.append(f"{role} {name}: it is {what}")
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
        size = self.fitted(request, size_of(request, self.policy, self.inventory, item.gpus), free)
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
        nics, nvmes = self.attacher.nic_count(request), self.attacher.nvme_count(request)
        if self.attacher.attach_nics(pair, free, {}) is None:
            there = sum(1 for unit in free.nics if request.exact_nics or not unit.by_name)
            found.append(f"needs {nics} NICs, {there} are free{self.kept_back('nic')}")
        if self.attacher.attach_nvmes(pair, free.nvmes, {}, {}) is None:
            found.append(f"needs {nvmes} NVMe devices, {len(free.nvmes)} are free{self.kept_back('nvme')}")
        return list(dict.fromkeys(found))

    def fitted(self, request: Request, size: Size, free: Free) -> Size:
        """The size as it is had: with ``numa: prefer`` from other nodes what the GPUs' nodes do not have."""
        if request.numa == "strict" or fits(size, free):
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

    def choice(self, request: Request, kind: int, item: GpuSet) -> Choice | None:
        """The set as a choice, were the request alone on the host; None when it can be seen not to be one."""
        key = (kind, item)
        if key not in self._choices:
            self._choices[key] = self._weigh(request, kind, item)
        return self._choices[key]

    def _weigh(self, request: Request, kind: int, item: GpuSet) -> Choice | None:
        own = {*item.gpus, *item.switches}
        for device in self._bound.intersection(own):
            tied = self._ties[device]
            if tied is None or not tied <= own:
                return None
        nodes = [self.inventory.node_of[gpu] for gpu in item.gpus]
        key = (kind, *(nodes.count(node) for node in self._nodes))
        if key not in self._usable:
            size = size_of(request, self.policy, self.inventory, item.gpus)
            usable = not size.problems and fits(self.fitted(request, size, self.free), self.free)
            self._usable[key] = size if usable else None
        found = self._usable[key]
        if found is None:
            return None
        attacher = self.attacher
        nics = attacher.nics.least(item.gpus, 0 if request.exact_nics else attacher.nic_count(request))
        nvmes = attacher.nvmes.least(item.gpus, 0 if request.exact_nvmes else attacher.nvme_count(request))
        if nics is None or nvmes is None:
            return None
        return Choice(item, found, nics + nvmes)

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
        search = Search(self, [requests[index] for index in order], count)
        found = search.run()
        self.undecided = self.undecided or search.steps > SEARCH_LIMIT or self.attacher.undecided
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
