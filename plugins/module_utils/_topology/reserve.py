# Copyright: the topovirt.kvm authors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Which CPUs and how much memory the host keeps for itself.

Conversion (isolation, huge pages) and placement must agree on these figures, so both take them from here.
"""

from __future__ import annotations

from typing import Dict, List, NamedTuple, Optional

from ansible_collections.topovirt.kvm.plugins.module_utils._topology.model import Core, Topology

GIB = 1 << 30

# One core in every eight of a node, at least one: emulator and I/O threads, interrupts. Fabric Manager on the host
# needs more: published launchers keep 8 cores of 128 (4 per socket) for it; fewer starved it.
CORES_PER_HOUSEKEEPING_CORE = 8
MAX_HOUSEKEEPING_CORES_PER_NODE = 2
MAX_HOUSEKEEPING_CORES_WITH_FABRIC_MANAGER = 4

# Kernel, page tables, libvirt, QEMU's own memory: 5 % of a node, at least 3 GiB, stays out of the huge page pool.
MEMORY_RESERVE_SHARE = 0.05
MEMORY_RESERVE_MIN_BYTES = 3 * GIB


class Reserve(NamedTuple):
    """What an operator or a sizing table sets; ``None`` stands for the rule."""

    cores_per_node: Optional[int] = None
    memory_bytes_per_node: Optional[int] = None


BY_RULE = Reserve()


def _cores_of_node(topology: Topology, node: int) -> List[Core]:
    return [core for core in topology["cores"] if core["node"] == node]


def housekeeping_cores(core_count: int, fabric_manager: bool, reserve: Reserve = BY_RULE) -> int:
    """Number of cores that a node with ``core_count`` cores keeps for the host.

    :param fabric_manager: whether Fabric Manager runs on the host (fabric model ``shared_nvswitch``).
    """
    if core_count == 0:
        return 0
    if reserve.cores_per_node is not None:
        return min(reserve.cores_per_node, core_count)
    most = MAX_HOUSEKEEPING_CORES_WITH_FABRIC_MANAGER if fabric_manager else MAX_HOUSEKEEPING_CORES_PER_NODE
    return max(1, min(most, core_count // CORES_PER_HOUSEKEEPING_CORE))


def housekeeping_cpus(topology: Topology, fabric_model: str, reserve: Reserve = BY_RULE) -> Dict[int, List[int]]:
    """Logical CPUs per node that guests' vCPUs never get: the first cores of each node, with all their threads."""
    result: Dict[int, List[int]] = {}
    for node in topology["numa_nodes"]:
        cores = _cores_of_node(topology, node["id"])
        kept = cores[: housekeeping_cores(len(cores), fabric_model == "shared_nvswitch", reserve)]
        result[node["id"]] = sorted(cpu for core in kept for cpu in core["threads"])
    return result


def guest_pages(memory_bytes: Optional[int], page_size_bytes: int, reserve: Reserve = BY_RULE) -> int:
    """Number of huge pages that a node of ``memory_bytes`` can give to guests after the host's reserve: none when the
    node's memory is unknown."""
    if memory_bytes is None:
        return 0
    kept = reserve.memory_bytes_per_node
    if kept is None:
        kept = max(MEMORY_RESERVE_MIN_BYTES, int(memory_bytes * MEMORY_RESERVE_SHARE))
    return max(0, (memory_bytes - kept) // page_size_bytes)
