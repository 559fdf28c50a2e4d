# Copyright: the topovirt.kvm authors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""How two PCI functions reach each other: the path classes of ``nvidia-smi topo -m``, PCIe groups, nearest devices.

A switch is known by its upstream port; downstream ports add nothing to a path (the reduction that NCCL makes too).
A plain PCI bridge counts like a switch, root ports do not.
"""

from __future__ import annotations

from typing import Dict, List, Optional, Sequence, Tuple, TypedDict

from ansible_collections.topovirt.kvm.plugins.module_utils._errors import TopovirtError
from ansible_collections.topovirt.kvm.plugins.module_utils._topology.model import PciFunction, Topology

# Nearest first.
CLASSES = ("LOC", "PIX", "PXB", "PHB", "NODE", "SYS")

_SWITCH_KINDS = ("upstream_port", "bridge")
_PORT_KINDS = ("root_port", "downstream_port")


class Matrix(TypedDict):
    order: List[str]  # BDFs
    classes: List[List[str]]  # row and column in that order


class Group(TypedDict):
    """A PCIe group: the devices below one lowest switch or, without a switch, below one port."""

    switch: Optional[str]  # BDF of the upstream port, None without a switch
    host_bridge: str
    numa_node: Optional[int]  # None also when its devices disagree
    devices: List[str]  # endpoints with a role, in the topology's order


class Paths:
    """Path questions about one topology; build it once for many of them."""

    def __init__(self, topology: Topology) -> None:
        self._functions = {function["bdf"]: function for function in topology["pci"]}
        self._spots = {bdf: _spot(function) for bdf, function in self._functions.items()}
        self._bridges: Dict[str, Tuple[str, ...]] = {}
        self._classes: Dict[Tuple[_Spot, _Spot], str] = {}

    def function(self, bdf: str) -> PciFunction:
        """
        :raises TopovirtError: when the topology has no such function.
        """
        try:
            return self._functions[bdf]
        except KeyError:
            raise self._unknown(bdf) from None

    @staticmethod
    def _unknown(bdf: str) -> TopovirtError:
        return TopovirtError(f"PCI function {bdf} is not in the topology.", "Give its full address.")

    def _above(self, parent: Optional[str]) -> Tuple[str, ...]:
        """The bridges from ``parent`` up to the host bridge."""
        if parent is None or parent not in self._functions:
            return ()
        if parent not in self._bridges:
            self._bridges[parent] = (parent, *self._above(self._functions[parent]["parent"]))
        return self._bridges[parent]

    def _is_switch(self, bdf: str) -> bool:
        return self._functions[bdf]["kind"] in _SWITCH_KINDS

    def ports(self, bdf: str) -> Tuple[str, ...]:
        """Bridges of every kind above a function, nearest first."""
        return self._above(self.function(bdf)["parent"])

    def switches(self, bdf: str) -> List[str]:
        """Upstream ports (and plain bridges) above a function, nearest first."""
        return [bridge for bridge in self.ports(bdf) if self._is_switch(bridge)]

    def ports_between(self, a: str, b: str) -> List[str]:
        """Root and downstream ports on the path between two functions, below the switch or host bridge where it turns.

        Empty when it turns nowhere (functions of one slot) or leaves the host bridge.
        """
        if self.function(a)["host_bridge"] != self.function(b)["host_bridge"]:
            return []
        above = [self._above(self._functions[bdf]["parent"]) for bdf in (a, b)]
        common = set(above[0]).intersection(above[1])
        ways = (bridge for way in above for bridge in way if bridge not in common)
        return [bridge for bridge in ways if self._functions[bridge]["kind"] in _PORT_KINDS]

    def path_class(self, a: str, b: str) -> str:
        """One of CLASSES.

        LOC: the same function. PIX: the same parent bridge, or one switch crossed. PXB: several switches, no host
        bridge. PHB: one host bridge. NODE: several host bridges of one NUMA node. SYS: anything else; an unknown
        node is not the same as another unknown one.
        """
        try:
            key = (self._spots[a], self._spots[b])
        except KeyError:
            raise self._unknown(a if a not in self._spots else b) from None
        if a == b:
            return "LOC"
        found = self._classes.get(key)
        if found is None:
            found = self._classes[key] = self._between(*key)
        return found

    def _between(self, a: _Spot, b: _Spot) -> str:
        if a[1] != b[1]:
            return "NODE" if a[2] == b[2] and a[2] >= 0 else "SYS"
        above_a, above_b = self._above(a[0] or None), self._above(b[0] or None)
        common = set(above_a).intersection(above_b)
        if not common:
            return "PHB"
        if a[0] == b[0]:
            return "PIX"
        meeting = next(bridge for bridge in above_a if bridge in common)
        crossed = {bridge for bridge in (*above_a, *above_b) if bridge not in common and self._is_switch(bridge)}
        if self._is_switch(meeting):
            crossed.add(meeting)
        return "PIX" if len(crossed) <= 1 else "PXB"

    def matrix(self, bdfs: Optional[Sequence[str]] = None) -> Matrix:
        """Classes of every pair; of all functions with a role when ``bdfs`` is None."""
        order = list(bdfs) if bdfs is not None else [bdf for bdf, f in self._functions.items() if f["role"]]
        classes = [[""] * len(order) for _row in order]
        for row, a in enumerate(order):
            for column in range(row + 1):
                classes[row][column] = classes[column][row] = self.path_class(a, order[column])
        return Matrix(order=order, classes=classes)

    def groups(self) -> List[Group]:
        """PCIe groups of the endpoints that have a role, in the topology's order."""
        found: Dict[Tuple[str, ...], Group] = {}
        for function in self._functions.values():
            if not function["role"]:
                continue
            switch = next(iter(self.switches(function["bdf"])), None)
            key = (switch,) if switch else (function["host_bridge"], function["parent"] or function["bdf"])
            group = found.setdefault(
                key,
                Group(
                    switch=switch,
                    host_bridge=function["host_bridge"],
                    numa_node=function["numa_node"],
                    devices=[],
                ),
            )
            group["devices"].append(function["bdf"])
            if group["numa_node"] != function["numa_node"]:
                group["numa_node"] = None
        return list(found.values())

    def nearest(self, bdf: str, role: str) -> List[Tuple[str, str]]:
        """Other functions of a role with their path class, nearest first, then in the topology's order."""
        others = [other for other, f in self._functions.items() if f["role"] == role and other != bdf]
        found = [(other, self.path_class(bdf, other)) for other in others]
        return sorted(found, key=lambda item: CLASSES.index(item[1]))


# What a path class depends on: parent (empty: none), host bridge, NUMA node (-1: unknown).
_Spot = Tuple[str, str, int]


def _spot(function: PciFunction) -> _Spot:
    node = function["numa_node"]
    return function["parent"] or "", function["host_bridge"], -1 if node is None else node


def path_class(topology: Topology, a: str, b: str) -> str:
    """Path class of one pair; see :meth:`Paths.path_class`."""
    return Paths(topology).path_class(a, b)


def path_matrix(topology: Topology, bdfs: Optional[Sequence[str]] = None) -> Matrix:
    """Path classes of every pair; see :meth:`Paths.matrix`."""
    return Paths(topology).matrix(bdfs)


def pcie_groups(topology: Topology) -> List[Group]:
    """PCIe groups; see :meth:`Paths.groups`."""
    return Paths(topology).groups()


def nearest(topology: Topology, bdf: str, role: str) -> List[Tuple[str, str]]:
    """Devices of a role, nearest first; see :meth:`Paths.nearest`."""
    return Paths(topology).nearest(bdf, role)
