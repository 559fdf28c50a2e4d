# Copyright: the topovirt.kvm authors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Why a guest differs from its host, as far as both topologies tell. What they do not tell has no cause here.

Bus numbers: every port opens one, and a root bus has those up to the next root bus.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from itertools import combinations
from typing import Callable, Dict, List, Mapping, Optional, Sequence, Set, Tuple, TypedDict

from ansible_collections.topovirt.kvm.plugins.module_utils._topology.paths import CLASSES, Paths
from ansible_collections.topovirt.kvm.plugins.module_utils._topology.pci import bdf_key

BUSES = 256

Pair = Tuple[str, str]  # host BDFs


class Cause(TypedDict):
    cause: str  # one clause
    pairs: int  # pairs of passed-through devices that differ, or are lost, for it
    devices: List[str]  # host BDFs


@dataclass
class Sides:
    """Host and guest, with what was found to differ.

    :param roots: root buses of the guest, as ``host_bridge`` names them.
    :param present: host BDFs of the devices that are on both sides, in order.
    :param pairs: those of them whose path class differs.
    :param nodes: device -> (guest node, guest node that was expected), where these differ.
    :param lost: devices of the host that the guest does not have.
    """

    host: Paths
    guest: Paths
    roots: Sequence[str]
    identity: Mapping[str, str]
    present: Sequence[str]
    pairs: Sequence[Pair]
    nodes: Mapping[str, Tuple[Optional[int], Optional[int]]]
    lost: Sequence[str]

    def host_bridge(self, bdf: str) -> str:
        return self.host.function(bdf)["host_bridge"]

    def root_bus(self, bdf: str) -> str:
        return self.guest.function(self.identity[bdf])["host_bridge"]

    def host_class(self, a: str, b: str) -> str:
        return self.host.path_class(a, b)

    def guest_class(self, a: str, b: str) -> str:
        return self.guest.path_class(self.identity[a], self.identity[b])


@dataclass
class _Found:
    """Causes in the order in which they were found, the same ones together."""

    causes: Dict[str, Tuple[Set[Pair], Set[str]]] = field(default_factory=dict)

    def add(self, cause: str, pairs: Sequence[Pair], devices: Sequence[str]) -> None:
        known_pairs, known_devices = self.causes.setdefault(cause, (set(), set()))
        known_pairs.update(pairs)
        known_devices.update(devices)

    def listed(self) -> List[Cause]:
        return [
            Cause(cause=cause, pairs=len(pairs), devices=sorted(devices, key=bdf_key))
            for cause, (pairs, devices) in self.causes.items()
        ]


def explain(sides: Sides) -> List[Cause]:
    """Causes of everything that differs; the first that explains all differences of paths and nodes stands alone."""
    found = _Found()
    _lost_devices(sides, found)
    exchanged = _exchanged(sides)
    if exchanged is not None:
        a, b = exchanged
        found.add(f"{a} and {b} have changed places", sides.pairs, exchanged)
        return found.listed()
    nodes = dict(sides.nodes)
    misplaced = _misplaced(sides)
    if misplaced is not None:
        on_host = _nearest(sides, misplaced, sides.host_class)
        in_guest = _nearest(sides, misplaced, sides.guest_class)
        found.add(
            f"{misplaced} is in another place: nearest to {in_guest} in the guest, to {on_host} on the host",
            sides.pairs,
            [misplaced],
        )
        nodes.pop(misplaced, None)
    else:
        for a, b in sides.pairs:
            found.add(_structure(sides, a, b), [(a, b)], [a, b])
    _wrong_nodes(sides, nodes, found)
    return found.listed()


def _exchanged(sides: Sides) -> Optional[Pair]:
    """Two like devices that explain everything: nothing differs once they change places."""
    touched = sorted({bdf for pair in sides.pairs for bdf in pair} | set(sides.nodes), key=bdf_key)
    for a, b in combinations(touched, 2):
        one, other = sides.host.function(a), sides.host.function(b)
        if (one["vendor"], one["device"]) != (other["vendor"], other["device"]):
            continue
        if any(a not in pair and b not in pair for pair in sides.pairs) or set(sides.nodes) - {a, b}:
            continue
        back = {**sides.identity, a: sides.identity[b], b: sides.identity[a]}
        if all(
            sides.host_class(x, y) == sides.guest.path_class(back[x], back[y])
            for x in (a, b)
            for y in sides.present
            if x != y
        ) and _nodes_right_after(sides, a, b):
            return a, b
    return None


def _nodes_right_after(sides: Sides, a: str, b: str) -> bool:
    """Whether each of both is expected on the node where the other one is."""
    if not sides.nodes:
        return True
    return set(sides.nodes) == {a, b} and sides.nodes[a] == (sides.nodes[b][1], sides.nodes[b][0])


def _misplaced(sides: Sides) -> Optional[str]:
    """The one device that is part of every pair that differs."""
    if len(sides.pairs) < 2:
        return None
    common = set.intersection(*(set(pair) for pair in sides.pairs))
    return common.pop() if len(common) == 1 else None


def _nearest(sides: Sides, bdf: str, path_class: Callable[[str, str], str]) -> str:
    others = [(CLASSES.index(path_class(bdf, other)), bdf_key(other), other) for other in sides.present if other != bdf]
    rank, _key, other = min(others)
    return f"{other} ({CLASSES[rank]})"


def _structure(sides: Sides, a: str, b: str) -> str:
    """What of the two trees makes the class of one pair another one."""
    together, joined = sides.host_bridge(a) == sides.host_bridge(b), sides.root_bus(a) == sides.root_bus(b)
    if together and not joined:
        return f"devices of the host bridge {sides.host_bridge(a)} are below several root buses in the guest"
    if joined and not together:
        return f"the guest's root bus {sides.root_bus(a)} has devices of several host bridges"
    if not joined:
        return "root buses name other nodes in the guest than host bridges do on the host"
    above = [sides.guest.switches(sides.identity[bdf]) for bdf in (a, b)]
    if sides.host_class(a, b) in ("PIX", "PXB") and not all(above):
        return "there is no switch in the guest above devices that share one on the host"
    return "there are other switches between devices in the guest than on the host"


def _wrong_nodes(sides: Sides, nodes: Mapping[str, Tuple[Optional[int], Optional[int]]], found: _Found) -> None:
    moves = sorted({(expected, node) for node, expected in nodes.values() if node is not None and expected is not None})
    places = [[move[side] for move in moves] for side in (0, 1)]
    if len(moves) > 1 and places[0] == sorted(places[1]) and all(None not in pair for pair in nodes.values()):
        found.add(
            "nodes of the guest have changed places: "
            + ", ".join(f"devices of node {expected} are on node {node}" for expected, node in moves),
            [],
            list(nodes),
        )
        return
    by_bus: Dict[Tuple[str, Optional[int], Optional[int]], List[str]] = {}
    for bdf, (node, expected) in nodes.items():
        by_bus.setdefault((sides.root_bus(bdf), node, expected), []).append(bdf)
    for (bus, node, expected), devices in by_bus.items():
        named = "no node" if node is None else f"node {node}"
        wanted = "no node" if expected is None else f"node {expected}"
        found.add(f"the guest's root bus {bus} names {named}, devices below it belong to {wanted}", [], devices)


def _lost_devices(sides: Sides, found: _Found) -> None:
    """Devices that are gone for want of bus numbers."""
    roots = sorted(sides.roots, key=_bus)
    everyone = [bdf for bdf in sides.identity if bdf in {*sides.present, *sides.lost}]
    for bridge in sorted({sides.host_bridge(bdf) for bdf in sides.lost}):
        own = [bdf for bdf in everyone if sides.host_bridge(bdf) == bridge]
        # A root bus that has none of its devices left is known when it is the only one like that.
        places = {sides.root_bus(bdf) for bdf in own if bdf in sides.present} or set(roots).difference(
            sides.root_bus(bdf) for bdf in sides.present
        )
        if len(places) != 1:
            continue
        root = places.pop()
        room = next((_bus(name) for name in roots if _bus(name) > _bus(root)), BUSES) - _bus(root)
        needed = 1 + len({port for bdf in own for port in sides.host.ports(bdf)})
        if needed > room:
            lost = [bdf for bdf in own if bdf in sides.lost]
            found.add(
                f"from the guest's root bus {root} to the next one there are {room} bus numbers, as many ports as on "
                f"the host below {bridge} take {needed}",
                [(a, b) for a, b in combinations(everyone, 2) if a in lost or b in lost],
                lost,
            )


def _bus(host_bridge: str) -> int:
    return int(host_bridge.split(":")[1], 16)
