# Copyright: the topovirt.kvm authors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Compare a guest's vCPUs and nodes with the host's: which vCPUs share a core, an L3, a node, and how far nodes are."""

from __future__ import annotations

from typing import Dict, List, Mapping, Optional, Sequence, Tuple, TypedDict

from ansible_collections.topovirt.kvm.plugins.module_utils._topology.cpulist import format_cpulist
from ansible_collections.topovirt.kvm.plugins.module_utils._topology.model import Core, Topology


class Figure(TypedDict):
    """How true a guest is in one respect."""

    equal: int
    pairs: int


class CpuDifference(TypedDict):
    relation: str  # "siblings" (threads of one core), "l3" or "node"
    vcpus: str  # cpulist of the vCPUs that it is about
    guest: List[str]  # how they are grouped: cpulists of vCPUs; for "node" the number of the guest's node
    host: List[str]  # the same of the host's CPUs that they run on; for "node" the number of the host's node


class DistanceDifference(TypedDict):
    a: int  # guest nodes
    b: int
    host: Optional[int]
    guest: Optional[int]


class Cpus(TypedDict):
    differences: List[CpuDifference]
    errors: List[str]  # why the map of CPUs cannot be right
    siblings: Figure
    l3: Optional[Figure]  # None: one side does not know it


def compare_cpus(
    host: Topology, guest: Topology, cells: Mapping[int, int], cpu_map: Optional[Mapping[int, int]]
) -> Optional[Cpus]:
    """Whether vCPUs that share a core, an L3 or a node do so on the host, and the other way round.

    :param cells: guest node -> host node.
    :param cpu_map: vCPU -> the one host CPU that it runs on; None: not known, nothing is compared.
    """
    if cpu_map is None:
        return None
    host_cores, guest_cores = _by_cpu(host), _by_cpu(guest)
    errors = [f"vCPU {vcpu} is no CPU of the guest's kernel" for vcpu in sorted(cpu_map) if vcpu not in guest_cores]
    errors += [
        f"vCPU {vcpu} runs on CPU {cpu}, which the host does not have"
        for vcpu, cpu in sorted(cpu_map.items())
        if cpu not in host_cores
    ]
    errors += [f"the guest's CPU {cpu} runs on no known CPU" for cpu in sorted(guest_cores) if cpu not in cpu_map]
    owner: Dict[int, int] = {}
    for vcpu, cpu in sorted(cpu_map.items()):
        if cpu in owner:
            errors.append(f"vCPUs {owner[cpu]} and {vcpu} both run on CPU {cpu}")
        owner[cpu] = vcpu
    vcpus = [vcpu for vcpu, cpu in sorted(cpu_map.items()) if vcpu in guest_cores and cpu in host_cores]
    in_guest = [guest_cores[vcpu] for vcpu in vcpus]
    on_host = [host_cores[cpu_map[vcpu]] for vcpu in vcpus]
    siblings, differences = _grouping(
        "siblings", vcpus, [core["threads"][0] for core in in_guest], [core["threads"][0] for core in on_host]
    )
    l3: Optional[Figure] = None
    guest_l3, host_l3 = ([core["l3"] for core in cores if core["l3"] is not None] for cores in (in_guest, on_host))
    if len(guest_l3) == len(host_l3) == len(vcpus):
        l3, wrong = _grouping("l3", vcpus, guest_l3, host_l3)
        differences += wrong
    differences += _nodes(vcpus, in_guest, on_host, cells)
    return Cpus(differences=differences, errors=errors, siblings=siblings, l3=l3)


def _by_cpu(topology: Topology) -> Dict[int, Core]:
    return {cpu: core for core in topology["cores"] for cpu in core["threads"]}


def _grouping(
    relation: str, vcpus: Sequence[int], in_guest: Sequence[int], on_host: Sequence[int]
) -> Tuple[Figure, List[CpuDifference]]:
    """Compare two ways to put vCPUs into groups; a number names the group of each vCPU on either side."""
    guest: Dict[int, List[int]] = {}
    host: Dict[int, List[int]] = {}
    both: Dict[Tuple[int, int], int] = {}
    for vcpu, one, other in zip(vcpus, in_guest, on_host):
        guest.setdefault(one, []).append(vcpu)
        host.setdefault(other, []).append(vcpu)
        both[one, other] = both.get((one, other), 0) + 1

    def pairs(count: int) -> int:
        return count * (count - 1) // 2

    total, together = pairs(len(vcpus)), sum(map(pairs, both.values()))
    apart = sum(pairs(len(group)) for group in (*guest.values(), *host.values())) - 2 * together
    return Figure(equal=total - apart, pairs=total), [
        CpuDifference(
            relation=relation,
            vcpus=format_cpulist(cpu for key in keys for cpu in guest[key]),
            guest=[format_cpulist(guest[key]) for key in keys],
            host=[format_cpulist(host[key]) for key in others],
        )
        for keys, others in _tangles(both)
        if len(keys) > 1 or len(others) > 1
    ]


def _tangles(both: Mapping[Tuple[int, int], int]) -> List[Tuple[List[int], List[int]]]:
    """Groups of the guest and of the host that have vCPUs in common, directly or through others."""
    links: Dict[Tuple[str, int], List[Tuple[str, int]]] = {}
    for one, other in both:
        links.setdefault(("guest", one), []).append(("host", other))
        links.setdefault(("host", other), []).append(("guest", one))
    found: List[Tuple[List[int], List[int]]] = []
    seen = set()
    for start in links:
        reached, queue = [], [start]
        while queue:
            item = queue.pop()
            if item not in seen:
                seen.add(item)
                reached.append(item)
                queue += links[item]
        if reached:
            found.append(
                (
                    sorted(number for side, number in reached if side == "guest"),
                    sorted(number for side, number in reached if side == "host"),
                )
            )
    return found


def _nodes(
    vcpus: Sequence[int], in_guest: Sequence[Core], on_host: Sequence[Core], cells: Mapping[int, int]
) -> List[CpuDifference]:
    wrong: Dict[Tuple[Optional[int], Optional[int]], List[int]] = {}
    for vcpu, core, host_core in zip(vcpus, in_guest, on_host):
        expected = None if core["node"] is None else cells.get(core["node"])
        if expected != host_core["node"]:
            wrong.setdefault((core["node"], host_core["node"]), []).append(vcpu)
    return [
        CpuDifference(relation="node", vcpus=format_cpulist(cpus), guest=[_shown(node)], host=[_shown(host_node)])
        for (node, host_node), cpus in wrong.items()
    ]


def _shown(node: Optional[int]) -> str:
    return "unknown" if node is None else str(node)


def compare_distances(host: Topology, guest: Topology, cells: Mapping[int, int]) -> List[DistanceDifference]:
    """Distances between guest nodes that are not those of their host nodes."""
    host_nodes = {node["id"]: node["distances"] for node in host["numa_nodes"]}
    found: List[DistanceDifference] = []
    for node in guest["numa_nodes"]:
        for other in guest["numa_nodes"]:
            a, b = node["id"], other["id"]
            if a in cells and b in cells and cells[a] in host_nodes:
                on_host, in_guest = host_nodes[cells[a]].get(str(cells[b])), node["distances"].get(str(b))
                if on_host != in_guest:
                    found.append(DistanceDifference(a=a, b=b, host=on_host, guest=in_guest))
    return found
