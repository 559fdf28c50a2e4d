# Copyright: the topovirt.kvm authors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Path classes of a host from its machine description, sharing no code with the collection.

The definitions are those of the legend of ``nvidia-smi topo -m``; a switch counts as the one bridge that it is to NCCL.
"""

from __future__ import annotations

from itertools import combinations

from tests.twin.addresses import Function, functions
from tests.twin.description import Machine


class HostPaths:
    def __init__(self, machine: Machine) -> None:
        known = functions(machine)
        self.by_id = {function.id: function for function in known}
        self.by_bdf = {function.bdf: function for function in known}

    def _up(self, function: Function) -> list[str]:
        """Ids of the bridges above, from the nearest one to the root port."""
        found = []
        above = function.parent
        while above is not None:
            found.append(above)
            above = self.by_id[above].parent
        return found

    def path_class(self, a: str, b: str) -> str:
        one, other = self.by_bdf[a], self.by_bdf[b]
        if one.root_bus != other.root_bus:
            return "NODE" if one.node == other.node else "SYS"
        ways = self._up(one), self._up(other)
        shared = [bridge for bridge in ways[0] if bridge in ways[1]]
        if not shared:
            return "PHB"
        if one.parent == other.parent:
            return "PIX"
        travelled = {bridge for way in ways for bridge in way[: way.index(shared[0]) + 1]}
        switches = [bridge for bridge in travelled if self.by_id[bridge].kind == "upstream_port"]
        return "PIX" if len(switches) == 1 else "PXB"

    def classes(self, devices: list[str]) -> dict[tuple[str, str], str]:
        return {(a, b): self.path_class(a, b) for a, b in combinations(devices, 2)}
