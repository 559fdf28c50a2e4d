# Copyright: the topovirt.kvm authors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Compare what a guest sees with the host, device by device and pair by pair, and CPU by CPU.

The plan is no input: identity of devices and maps come from the running hypervisor, both topologies from sysfs. Only to
judge a plan before anything runs, what the guest should show stands in for what it shows (``plugin_utils/_guest``).
"""

from __future__ import annotations

from itertools import combinations
from typing import Dict, List, Mapping, Optional, Set, TypedDict, Union

from ansible_collections.topovirt.kvm.plugins.module_utils._topology.causes import Cause, Sides, explain
from ansible_collections.topovirt.kvm.plugins.module_utils._topology.compare_cpus import (
    CpuDifference,
    DistanceDifference,
    Figure,
    compare_cpus,
    compare_distances,
)
from ansible_collections.topovirt.kvm.plugins.module_utils._topology.model import Link, PciFunction, Topology
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


class LinkDifference(TypedDict):
    bdf: str  # host BDF
    host: Link
    guest: Link


class Missing(TypedDict):
    bdf: str  # host BDF
    guest_bdf: str
    side: str  # "host" or "guest": which topology lacks the device


class ComparisonMatrix(TypedDict):
    order: List[str]  # host BDFs
    host: List[List[str]]
    guest: List[List[str]]


class Fidelity(TypedDict):
    """How true the guest is; ``None`` for what was not compared."""

    paths: Figure  # of all pairs of passed-through devices, those that the guest lost included
    siblings: Optional[Figure]  # pairs of vCPUs
    l3: Optional[Figure]


class Comparison(TypedDict):
    equal: bool  # devices and nodes: nothing of it differs
    cpus_equal: Optional[bool]  # None: not compared, as no map of CPUs was given
    fidelity: Fidelity
    devices: int  # compared: present on both sides
    pairs: int
    path_differences: List[PathDifference]
    node_differences: List[NodeDifference]
    link_differences: List[LinkDifference]
    distance_differences: List[DistanceDifference]
    cpu_differences: List[CpuDifference]
    missing: List[Missing]
    identity_errors: List[str]  # why the identity cannot be right
    node_map_errors: List[str]  # why the node map cannot be right
    cpu_map_errors: List[str]  # why the map of CPUs cannot be right
    causes: List[Cause]  # as far as both topologies tell them
    matrix: ComparisonMatrix


def compare(
    host_topology: Topology,
    guest_topology: Topology,
    identity: Mapping[str, str],
    node_map: Mapping[Union[int, str], int],
    cpu_map: Optional[Mapping[Union[int, str], int]] = None,
) -> Comparison:
    """Compare path class of every pair of passed-through devices, NUMA node and link of every one, and distances of
    nodes; with ``cpu_map`` also which vCPUs share a core, an L3 or a node.

    :param identity: host BDF -> guest BDF.
    :param node_map: guest cell (number, or its text after a trip through JSON) -> host node.
    :param cpu_map: vCPU (number or its text) -> the host CPU that it is pinned to.
    """
    hosts = {function["bdf"]: function for function in host_topology["pci"]}
    guests = {function["bdf"]: function for function in guest_topology["pci"]}
    order = sorted((bdf for bdf, guest in identity.items() if bdf in hosts and guest in guests), key=bdf_key)
    cells = {int(cell): int(node) for cell, node in node_map.items()}
    host_paths, guest_paths = Paths(host_topology), Paths(guest_topology)
    cpus = compare_cpus(
        host_topology,
        guest_topology,
        cells,
        None if cpu_map is None else {int(vcpu): int(cpu) for vcpu, cpu in cpu_map.items()},
    )
    paths = _path_differences(order, identity, host_paths, guest_paths)
    nodes = _node_differences(order, identity, hosts, guests, cells)
    pairs, all_pairs = _pairs(len(order)), _pairs(len(identity))
    result = Comparison(
        equal=False,
        cpus_equal=None if cpus is None else not (cpus["differences"] or cpus["errors"]),
        fidelity=Fidelity(
            paths=Figure(equal=pairs - len(paths), pairs=all_pairs),
            siblings=None if cpus is None else cpus["siblings"],
            l3=None if cpus is None else cpus["l3"],
        ),
        devices=len(order),
        pairs=pairs,
        path_differences=paths,
        node_differences=nodes,
        link_differences=_link_differences(order, identity, hosts, guests),
        distance_differences=compare_distances(host_topology, guest_topology, cells),
        cpu_differences=[] if cpus is None else cpus["differences"],
        missing=_missing(identity, hosts, guests),
        identity_errors=_identity_errors(order, identity, hosts, guests),
        node_map_errors=_node_map_errors(cells, host_topology, guest_topology),
        cpu_map_errors=[] if cpus is None else cpus["errors"],
        causes=explain(
            Sides(
                host=host_paths,
                guest=guest_paths,
                roots=list({function["host_bridge"]: None for function in guest_topology["pci"]}),
                identity=identity,
                present=order,
                pairs=[(item["a"], item["b"]) for item in paths],
                nodes={item["bdf"]: (item["guest_node"], item["expected_guest_node"]) for item in nodes},
                lost=sorted((bdf for bdf in identity if bdf in hosts and bdf not in order), key=bdf_key),
            )
        ),
        matrix=ComparisonMatrix(
            order=order,
            host=host_paths.matrix(order)["classes"],
            guest=guest_paths.matrix([identity[bdf] for bdf in order])["classes"],
        ),
    )
    result["equal"] = not (
        result["path_differences"]
        or result["node_differences"]
        or result["link_differences"]
        or result["distance_differences"]
        or result["missing"]
        or result["identity_errors"]
        or result["node_map_errors"]
    )
    return result


def _pairs(count: int) -> int:
    return count * (count - 1) // 2


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


def _link_differences(
    order: List[str], identity: Mapping[str, str], hosts: Mapping[str, PciFunction], guests: Mapping[str, PciFunction]
) -> List[LinkDifference]:
    """A passed-through function shows its own link's maximum; what one side cannot tell is no difference."""
    found: List[LinkDifference] = []
    for bdf in order:
        host, guest = hosts[bdf]["link"], guests[identity[bdf]]["link"]
        known = None not in (host["max_gtps"], host["max_width"], guest["max_gtps"], guest["max_width"])
        if known and host != guest:
            found.append(LinkDifference(bdf=bdf, host=host, guest=guest))
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
    """For users: the figures where nothing differs, else what differs, with counts, the first few examples of each
    kind, and the causes."""
    cpus = _cpu_sentence(comparison, examples)
    if comparison["equal"]:
        return f"{comparison['devices']} devices and {comparison['pairs']} pairs are in the guest as on the host.{cpus}"
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
            "distance differs",
            [
                f"guest node {wrong['a']} to {wrong['b']} is {_shown(wrong['guest'])}, {_shown(wrong['host'])} on the "
                "host"
                for wrong in comparison["distance_differences"]
            ],
        ),
        (
            "link differs",
            [
                f"{link['bdf']} is {_link(link['guest'])} in the guest, {_link(link['host'])} on the host"
                for link in comparison["link_differences"]
            ],
        ),
        (
            "path differs",
            [
                f"{pair['a']} to {pair['b']} is {pair['guest']} in the guest, {pair['host']} on the host"
                for pair in comparison["path_differences"]
            ],
        ),
    ]
    parts = [_counted(kind, found, examples) for kind, found in kinds if found]
    reasons = [f"Cause: {cause['cause']}." for cause in comparison["causes"]]
    return " ".join(["The guest does not see the host's topology.", *parts, *reasons]) + cpus


def _counted(kind: str, found: List[str], examples: int) -> str:
    shown = f"{'; '.join(found[:examples])}{' ...' if len(found) > examples else ''}"
    return f"{kind[0].upper() + kind[1:]}, {len(found)} times: {shown}."


def _cpu_sentence(comparison: Comparison, examples: int) -> str:
    found = comparison["cpu_map_errors"] + [
        f"{item['relation']} of vCPUs {item['vcpus']} is {' | '.join(item['guest'])} in the guest, "
        f"{' | '.join(item['host'])} on the host"
        for item in comparison["cpu_differences"]
    ]
    return f" {_counted('CPUs differ', found, examples)}" if found else ""


def _link(link: Link) -> str:
    return f"{link['max_gtps']:g} GT/s x{link['max_width']}"


def _shown(number: Optional[int]) -> str:
    return "unknown" if number is None else str(number)
