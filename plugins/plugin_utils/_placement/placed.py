# Copyright: the topovirt.kvm authors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""What is free, where a VM is placed, and what a placement is worth."""

from __future__ import annotations

from dataclasses import dataclass
from typing import NamedTuple

from ansible_collections.topovirt.kvm.plugins.plugin_utils._placement.fabric import GpuSet
from ansible_collections.topovirt.kvm.plugins.plugin_utils._placement.inventory import Unit
from ansible_collections.topovirt.kvm.plugins.plugin_utils._placement.request import Request
from ansible_collections.topovirt.kvm.plugins.plugin_utils._placement.sizing import Size


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


class Value(NamedTuple):
    """What a placement of a batch is worth; less is better, level by level."""

    distance: int
    nodes: int
    whole: tuple[int, ...]  # minus the free blocks of each size, largest first
    order: tuple[tuple[str, ...], ...]


@dataclass(frozen=True)
class Solution:
    """A placement in the order of the requests, and its value."""

    placed: list[Placed]
    value: Value


@dataclass(frozen=True)
class Choice:
    """GPUs that a VM could have, and what that takes, were it alone on the host."""

    gpu_set: GpuSet
    size: Size
    least: int  # a lower bound of the distances to its NICs and NVMe devices

    @property
    def order(self) -> tuple[str, ...]:
        return self.gpu_set.gpus


def fits(size: Size, free: Free) -> bool:
    """Whether every node has as many cores and pages."""
    return all(count <= free.cores.get(node, 0) for node, count in size.cores.items()) and all(
        count <= free.pages.get(node, 0) for node, count in size.pages.items()
    )
