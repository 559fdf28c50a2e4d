# Copyright: the topovirt.kvm authors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Compare what a guest sees with the host, device by device and pair by pair.

The plan is no input: device identity and node map come from the running hypervisor, both topologies from sysfs.
"""

from __future__ import annotations

from itertools import combinations
from typing import Dict, List, Mapping, Optional, Set, TypedDict, Union

from ansible_collections.topovirt.kvm.plugins.module_utils._topology.model import PciFunction, Topology
from ansible_collections.topovirt.kvm.plugins.module_utils._topology.paths import Paths
from ansible_collections.topovirt.kvm.plugins.module_utils._topology.pci import bdf_key


class PathDifference(TypedDict):
    a: str  # host BDFs
    b: str
    host: str  # path classes
    guest: str


class NodeDifference(TypedDict):
    bdf: str  # host BDF
    host_node: Optional[int]
    guest_node: Optional[int]
    expected_guest_node: Optional[int]  # None: the guest has no cell of the host's node


class Missing(TypedDict):
    bdf: str  # host BDF
    guest_bdf: str
    side: str  # "host" or "guest": which topology lacks the device


class ComparisonMatrix(TypedDict):
    order: List[str]  # host BDFs
    host: List[List[str]]
    guest: List[List[str]]


class Comparison(TypedDict):
    equal: bool
    devices: int  # compared: present on both sides
    pairs: int
    path_differences: List[PathDifference]
    node_differences: List[NodeDifference]
    missing: List[Missing]
    identity_errors: List[str]  # why the identity cannot be right
    node_map_errors: List[str]  # why the node map cannot be right
    matrix: ComparisonMatrix


def compare(
    host_topology: Topology,
    guest_topology: Topology,
    identity: Mapping[str, str],
    node_map: Mapping[Union[int, str], int],
) -> Comparison:
    """Compare the path class of every pair of passed-through devices and the NUMA node of every one.

    :param identity: host BDF -> guest BDF.
    :param node_map: guest cell (number, or its text after a trip through JSON) -> host node.
    """
    hosts = {function["bdf"]: function for function in host_topology["pci"]}
    guests = {function["bdf"]: function for function in guest_topology["pci"]}
    order = sorted((bdf for bdf, guest in identity.items() if bdf in hosts and guest in guests), key=bdf_key)
    cells = {int(cell): int(node) for cell, node in node_map.items()}
    host_paths, guest_paths = Paths(host_topology), Paths(guest_topology)
    result = Comparison(
        equal=False,
        devices=len(order),
        pairs=len(order) * (len(order) - 1) // 2,
        path_differences=_path_differences(order, identity, host_paths, guest_paths),
        node_differences=_node_differences(order, identity, hosts, guests, cells),
        missing=_missing(identity, hosts, guests),
        identity_errors=_identity_errors(order, identity, hosts, guests),
        node_map_errors=_node_map_errors(cells, host_topology, guest_topology),
        matrix=ComparisonMatrix(
            order=order,
            host=host_paths.matrix(order)["classes"],
            guest=guest_paths.matrix([identity[bdf] for bdf in order])["classes"],
        ),
    )
    result["equal"] = not (
        result["path_differences"]
        or result["node_differences"]
        or result["missing"]
        or result["identity_errors"]
        or result["node_map_errors"]
    )
    return result


def _path_differences(order: List[str], identity: Mapping[str, str], host: Paths, guest: Paths) -> List[PathDifference]:
    found: List[PathDifference] = []
    for a, b in combinations(order, 2):
        on_host, in_guest = host.path_class(a, b), guest.path_class(identity[a], identity[b])
        if on_host != in_guest:
            found.append(PathDifference(a=a, b=b, host=on_host, guest=in_guest))
    return found


def _node_differences(
    order: List[str],
    identity: Mapping[str, str],
    hosts: Mapping[str, PciFunction],
    guests: Mapping[str, PciFunction],
    cells: Mapping[int, int],
) -> List[NodeDifference]:
    cell_of = {node: cell for cell, node in sorted(cells.items(), reverse=True)}
    found: List[NodeDifference] = []
    for bdf in order:
        host_node, guest_node = hosts[bdf]["numa_node"], guests[identity[bdf]]["numa_node"]
        expected = None if host_node is None else cell_of.get(host_node)
        if guest_node != expected:
            found.append(
                NodeDifference(bdf=bdf, host_node=host_node, guest_node=guest_node, expected_guest_node=expected)
            )
    return found


def _missing(
    identity: Mapping[str, str], hosts: Mapping[str, PciFunction], guests: Mapping[str, PciFunction]
) -> List[Missing]:
    found: List[Missing] = []
    for bdf, guest in sorted(identity.items()):
        if bdf not in hosts:
            found.append(Missing(bdf=bdf, guest_bdf=guest, side="host"))
        if guest not in guests:
            found.append(Missing(bdf=bdf, guest_bdf=guest, side="guest"))
    return found


def _identity_errors(
    order: List[str],
    identity: Mapping[str, str],
    hosts: Mapping[str, PciFunction],
    guests: Mapping[str, PciFunction],
) -> List[str]:
    errors: List[str] = [] if identity else ["no device is passed through, so there is nothing to compare"]
    owner: Dict[str, str] = {}
    for bdf, guest in sorted(identity.items()):
        if guest in owner:
            errors.append(f"{owner[guest]} and {bdf} are both {guest} in the guest")
        owner[guest] = bdf
    for bdf in order:
        on_host, in_guest = _ids(hosts[bdf]), _ids(guests[identity[bdf]])
        if on_host != in_guest:
            errors.append(f"{bdf} is {on_host} on the host, but {identity[bdf]} is {in_guest} in the guest")
    return errors


def _ids(function: PciFunction) -> str:
    return f"{function['vendor']}:{function['device']}"


def _node_map_errors(cells: Mapping[int, int], host: Topology, guest: Topology) -> List[str]:
    errors: List[str] = []
    guest_nodes: Set[int] = {node["id"] for node in guest["numa_nodes"]}
    host_nodes: Set[int] = {node["id"] for node in host["numa_nodes"]}
    owner: Dict[int, int] = {}
    for cell, node in sorted(cells.items()):
        if node in owner:
            errors.append(f"guest cells {owner[node]} and {cell} are both on host node {node}")
        owner[node] = cell
        if node not in host_nodes:
            errors.append(f"guest cell {cell} is on host node {node}, which the host does not have")
        if cell not in guest_nodes:
            errors.append(f"guest cell {cell} is no node of the guest's kernel")
    errors.extend(f"guest node {node} is on no known host node" for node in sorted(guest_nodes.difference(cells)))
    return errors


def describe(comparison: Comparison, examples: int = 3) -> str:
    """One sentence for users: what differs, with counts and the first few examples of each kind."""
    if comparison["equal"]:
        return f"{comparison['devices']} devices and {comparison['pairs']} pairs are in the guest as on the host."
    kinds = [
        ("wrong identity", comparison["identity_errors"]),
        ("wrong node map", comparison["node_map_errors"]),
        (
            "device missing",
            [
                f"{item['bdf']} (in the guest {item['guest_bdf']}) is not in the {item['side']}'s topology"
                for item in comparison["missing"]
            ],
        ),
        (
            "NUMA node differs",
            [
                f"{item['bdf']} is on guest node {_shown(item['guest_node'])}, expected "
                f"{_shown(item['expected_guest_node'])} for host node {_shown(item['host_node'])}"
                for item in comparison["node_differences"]
            ],
        ),
        (
            "path differs",
            [
                f"{item['a']} to {item['b']} is {item['guest']} in the guest, {item['host']} on the host"
                for item in comparison["path_differences"]
            ],
        ),
    ]
    parts = [
        f"{kind}, {len(found)} times: {'; '.join(found[:examples])}{' ...' if len(found) > examples else ''}"
        for kind, found in kinds
        if found
    ]
    return f"The guest does not see the host's topology. {'. '.join(part[0].upper() + part[1:] for part in parts)}."


def _shown(node: Optional[int]) -> str:
    return "unknown" if node is None else str(node)
