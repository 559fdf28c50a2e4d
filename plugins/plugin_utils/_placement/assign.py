# Copyright: the topovirt.kvm authors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Give devices to GPUs so that the sum of their distances is least: an exact minimum-cost flow, small and plain."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass


@dataclass(frozen=True)
class Taker:
    """A VM that takes devices: ``count`` of them for its GPUs, spread evenly."""

    name: str
    gpus: tuple[str, ...]
    count: int


class _Network:
    """Successive shortest paths (Bellman-Ford) on a graph of some hundred edges at most."""

    def __init__(self) -> None:
        self.edges: list[list[int]] = []  # [to, capacity, cost]; edge i ^ 1 is the way back
        self.out: dict[int, list[int]] = {}

    def add(self, start: int, end: int, capacity: int, cost: int) -> int:
        self.out.setdefault(start, []).append(len(self.edges))
        self.edges.append([end, capacity, cost])
        self.out.setdefault(end, []).append(len(self.edges))
        self.edges.append([start, 0, -cost])
        return len(self.edges) - 2

    def _path(self, source: int, sink: int) -> list[int] | None:
        distance: dict[int, int] = {source: 0}
        came_by: dict[int, int] = {}
        queue = [source]
        while queue:
            node = queue.pop(0)
            for edge in self.out[node]:
                end, capacity, cost = self.edges[edge]
                if capacity > 0 and distance[node] + cost < distance.get(end, 1 << 60):
                    distance[end] = distance[node] + cost
                    came_by[end] = edge
                    if end not in queue:
                        queue.append(end)
        if sink not in distance:
            return None
        path: list[int] = []
        node = sink
        while node != source:
            path.append(came_by[node])
            node = self.edges[came_by[node] ^ 1][0]
        return path

    def send(self, source: int, sink: int) -> int:
        sent = 0
        while (path := self._path(source, sink)) is not None:
            for edge in path:
                self.edges[edge][1] -= 1
                self.edges[edge ^ 1][1] += 1
            sent += 1
        return sent


def assign(
    takers: Sequence[Taker], items: Sequence[str], cost: Callable[[str, str], int | None]
) -> Mapping[str, list[tuple[str, str]]] | None:
    """Which taker gets which items for which GPU, at the least total cost; None when there are too few.

    :param items: devices, each given at most once.
    :param cost: of an item for a GPU; None where the GPU's VM must not have the item.
    :returns: taker's name -> list of (GPU, item).
    """
    network = _Network()
    source, sink = 0, 1
    item_at = {item: 2 + index for index, item in enumerate(items)}
    for node in item_at.values():
        network.add(node, sink, 1, 0)
    following = 2 + len(items)
    chosen: list[tuple[str, str, str, int]] = []
    for taker in takers:
        if not taker.count:
            continue
        entry, following = following, following + 1
        network.add(source, entry, taker.count, 0)
        for gpu in taker.gpus:
            at, following = following, following + 1
            network.add(entry, at, -(-taker.count // len(taker.gpus)), 0)
            for item in items:
                price = cost(gpu, item)
                if price is not None:
                    chosen.append((taker.name, gpu, item, network.add(at, item_at[item], 1, price)))
    network.out.setdefault(source, [])
    if network.send(source, sink) < sum(taker.count for taker in takers):
        return None
    result: dict[str, list[tuple[str, str]]] = {taker.name: [] for taker in takers}
    for name, gpu, item, edge in chosen:
        if network.edges[edge][1] == 0:
            result[name].append((gpu, item))
    return result
