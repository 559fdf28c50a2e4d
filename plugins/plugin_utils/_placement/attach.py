# Copyright: the topovirt.kvm authors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""NICs and NVMe devices for VMs whose GPUs are chosen: dealt to the GPUs, whole IOMMU groups, nearest first."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Mapping, Sequence

from ansible_collections.topovirt.kvm.plugins.plugin_utils._placement.assign import Taker, assign
from ansible_collections.topovirt.kvm.plugins.plugin_utils._placement.distance import COST, Distances
from ansible_collections.topovirt.kvm.plugins.plugin_utils._placement.fabric import Fabric, GpuSet
from ansible_collections.topovirt.kvm.plugins.plugin_utils._placement.inventory import Inventory, Unit
from ansible_collections.topovirt.kvm.plugins.plugin_utils._placement.placed import Free, Placed
from ansible_collections.topovirt.kvm.plugins.plugin_utils._placement.policy import Policy
from ansible_collections.topovirt.kvm.plugins.plugin_utils._placement.request import Request
from ansible_collections.topovirt.kvm.plugins.plugin_utils._placement.sizing import size_of

# What one path class weighs against the order of devices below their switches.
_CLASS_WEIGHT = 1_000_000
# Ways to give out IOMMU groups that hold a NIC and a drive; the best of so many is taken.
MIXED_LIMIT = 1_000
Given = dict[str, tuple[str, ...]]  # VM -> devices


class Attacher:
    """Gives NICs and NVMe devices to VMs whose GPUs are chosen, at the least sum of path classes.

    :param free: what there is on the host before any of these VMs.
    """

    def __init__(self, inventory: Inventory, fabric: Fabric, policy: Policy, free: Free) -> None:
        self.inventory = inventory
        self.fabric = fabric
        self.policy = policy
        self.free = free
        self.undecided = False  # whether not all ways to give out mixed IOMMU groups were tried
        self._ranks = self._all_ranks()
        self.nics = Distances(inventory.paths, fabric.gpus, [unit.devices[0] for unit in free.nics])
        self.nvmes = Distances(inventory.paths, fabric.gpus, [unit.devices[0] for unit in free.nvmes])

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
            if asked is None and unit.by_name:
                return None
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

    def attach_nics(
        self, sets: Sequence[tuple[Request, GpuSet]], free: Free, owner_of: Mapping[str, str]
    ) -> tuple[int, Given] | None:
        counts = [self._units_of(request, self.nic_count, request.exact_nics, free.nics) for request, _set in sets]
        exact = [request.exact_nics for request, _set in sets]
        return self._attach(sets, free.nics, counts, exact, self.nics, owner_of, {})

    def attach_nvmes(
        self,
        sets: Sequence[tuple[Request, GpuSet]],
        units: Sequence[Unit],
        owner_of: Mapping[str, str],
        company: Mapping[str, str],
    ) -> tuple[int, Given] | None:
        counts = [self._units_of(request, self.nvme_count, request.exact_nvmes, units) for request, _set in sets]
        exact = [request.exact_nvmes for request, _set in sets]
        return self._attach(sets, units, counts, exact, self.nvmes, owner_of, company)

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
        nics = self.attach_nics(sets, free, owner_of)
        if nics is None:
            return None
        company = {
            other: vm for vm, taken in nics[1].items() for nic in taken for other in self.inventory.group_of(nic)
        }
        nvmes = self.attach_nvmes(sets, free.nvmes, owner_of, company)
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
            (self.free.nics, placed.nics, self.nics),
            (self.free.nvmes, placed.nvmes, self.nvmes),
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
