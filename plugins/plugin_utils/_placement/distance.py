# Copyright: the topovirt.kvm authors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""How far NICs and NVMe devices are from GPUs, and how near a VM's can be at best."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Sequence

from ansible_collections.topovirt.kvm.plugins.module_utils._topology.paths import CLASSES, Paths

# The cost of a pair is the place of its class: LOC 0 ... SYS 5 (docs/reference/placement.md).
COST = {name: number for number, name in enumerate(CLASSES)}


class Distances:
    """Costs between GPUs and the units of one role, and a lower bound of what a set of GPUs has to pay.

    Devices that are within class k of each other, directly or over others, form a cluster of level k. Inside a cluster
    there can be no more pairs of class k or nearer than it has units, nor more than its GPUs take. In a tree, where
    "within class k" is transitive, the bound is what a VM alone on the host really pays.
    """

    def __init__(self, paths: Paths, gpus: Sequence[str], units: Sequence[str]) -> None:
        self.cost = {gpu: {unit: COST[paths.path_class(gpu, unit)] for unit in units} for gpu in gpus}
        self._units = len(units)
        self._levels = [self._clusters(gpus, units, level) for level in range(COST["SYS"])]

    def _clusters(self, gpus: Sequence[str], units: Sequence[str], level: int) -> tuple[dict[str, int], dict[int, int]]:
        """GPU -> number of its cluster, and how many units each cluster has."""
        cluster = {unit: number for number, unit in enumerate(units)}
        following = len(units)
        of_gpu: dict[str, int] = {}
        for gpu in gpus:
            joined = {cluster[unit] for unit, cost in self.cost[gpu].items() if cost <= level}
            number = min(joined, default=following)
            following += 1
            of_gpu[gpu] = number
            if len(joined) > 1:
                cluster = {unit: number if old in joined else old for unit, old in cluster.items()}
                of_gpu = {other: number if old in joined else old for other, old in of_gpu.items()}
        return of_gpu, dict(Counter(cluster.values()))

    def least(self, gpus: Sequence[str], count: int) -> int | None:
        """What ``count`` units for these GPUs cost at least; None when there are too few units."""
        if count > self._units:
            return None
        if not count:
            return 0
        seats = -(-count // len(gpus))
        total = 0
        for of_gpu, units in self._levels:
            taken: dict[int, int] = {}
            for gpu in gpus:
                cluster = of_gpu[gpu]
                taken[cluster] = taken.get(cluster, 0) + seats
            near = sum([min(seats_there, units.get(cluster, 0)) for cluster, seats_there in taken.items()])
            if near < count:
                total += count - near
        return total

    def least_together(
        self, chosen: Sequence[tuple[Sequence[str], int]], free: Iterable[str], count: int, seats: int
    ) -> int:
        """What several VMs pay together at least, some of which have no GPUs yet.

        :param chosen: GPUs and number of units of each VM that has them.
        :param free: GPUs that the others can have; together they take ``count`` units, at most ``seats`` for a GPU.
        """
        whole = count + sum(wanted for _gpus, wanted in chosen)
        if not whole:
            return 0
        rest = list(free)
        total = 0
        for of_gpu, units in self._levels:
            taken: dict[int, int] = {}
            for gpus, wanted in [*chosen, (rest, count)]:
                most = seats if gpus is rest else -(-wanted // len(gpus))
                own: dict[int, int] = {}
                for gpu in gpus:
                    cluster = of_gpu[gpu]
                    own[cluster] = own.get(cluster, 0) + most
                for cluster, places in own.items():
                    taken[cluster] = taken.get(cluster, 0) + min(places, wanted)
            near = sum([min(places, units.get(cluster, 0)) for cluster, places in taken.items()])
            total += max(0, whole - near)
        return total
