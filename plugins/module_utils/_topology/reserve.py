# Copyright: the topovirt.kvm authors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Which CPUs and how much memory the host keeps for itself.

Conversion (isolation, huge pages) and placement must agree on these figures, so both take them from here.
"""

from __future__ import annotations

from typing import Dict, List, Optional

from ansible_collections.topovirt.kvm.plugins.module_utils._topology.model import Core, Topology

GIB = 1 << 30

# One core in every eight of a node, at least one: emulator and I/O threads, interrupts and Fabric Manager.
# Published launchers keep 8 cores of 128 (4 per socket) when Fabric Manager runs on the host; fewer starved it.
CORES_PER_HOUSEKEEPING_CORE = 8
MAX_HOUSEKEEPING_CORES_PER_NODE = 4

# Kernel, page tables, libvirt, QEMU's own memory: 5 % of a node, at least 3 GiB, stays out of the huge page pool.
MEMORY_RESERVE_SHARE = 0.05
MEMORY_RESERVE_MIN_BYTES = 3 * GIB


def _cores_of_node(topology: Topology, node: int) -> List[Core]:
    return [core for core in topology["cores"] if core["node"] == node]


def housekeeping_cores(core_count: int) -> int:
    """Number of cores that a node with ``core_count`` cores keeps for the host."""
    if core_count == 0:
        return 0
    return max(1, min(MAX_HOUSEKEEPING_CORES_PER_NODE, core_count // CORES_PER_HOUSEKEEPING_CORE))


def housekeeping_cpus(topology: Topology) -> Dict[int, List[int]]:
    """Logical CPUs per node that guests' vCPUs never get: the first cores of each node, with all their threads."""
    result: Dict[int, List[int]] = {}
    for node in topology["numa_nodes"]:
        cores = _cores_of_node(topology, node["id"])
        kept = cores[: housekeeping_cores(len(cores))]
        result[node["id"]] = sorted(cpu for core in kept for cpu in core["threads"])
    return result


def guest_pages(memory_bytes: Optional[int], page_size_bytes: int) -> int:
    """Number of huge pages that a node of ``memory_bytes`` can give to guests after the host's reserve: none when the
    node's memory is unknown."""
    if memory_bytes is None:
        return 0
    reserve = max(MEMORY_RESERVE_MIN_BYTES, int(memory_bytes * MEMORY_RESERVE_SHARE))
    return max(0, (memory_bytes - reserve) // page_size_bytes)
