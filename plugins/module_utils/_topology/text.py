# Copyright: the topovirt.kvm authors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""A topology as a table of text, in the manner of ``nvidia-smi topo -m``."""

from __future__ import annotations

from typing import Dict, List, Optional, Sequence

from ansible_collections.topovirt.kvm.plugins.module_utils._topology.model import Topology
from ansible_collections.topovirt.kvm.plugins.module_utils._topology.paths import Paths

_LABELS = {"gpu": "GPU", "nvswitch": "NVSW", "fabric_bridge": "BRIDGE", "nic": "NIC", "nvme": "NVME"}
_OTHER_LABEL = "PCI"

_LEGEND = """\
X    = itself
PIX  = one PCIe switch, or one bridge, between them
PXB  = several PCIe switches, no host bridge
PHB  = one PCIe host bridge
NODE = several host bridges of one NUMA node
SYS  = between NUMA nodes, or an unknown one"""


def labels(topology: Topology, bdfs: Sequence[str]) -> Dict[str, str]:
    """BDF -> short name: role and number in the given order."""
    roles = {function["bdf"]: function["role"] for function in topology["pci"]}
    counts: Dict[str, int] = {}
    result: Dict[str, str] = {}
    for bdf in bdfs:
        label = _LABELS.get(roles.get(bdf) or "", _OTHER_LABEL)
        result[bdf] = f"{label}{counts.get(label, 0)}"
        counts[label] = counts.get(label, 0) + 1
    return result


def topology_text(topology: Topology, bdfs: Optional[Sequence[str]] = None) -> str:
    """Path classes, CPUs and NUMA nodes of devices (of all with a role when ``bdfs`` is None), with a legend.

    :raises TopovirtError: for a device that is not in the topology.
    """
    paths = Paths(topology)
    if bdfs is None:
        # GPUs first, as readers of such tables expect; within a role the topology's order.
        roles = list(_LABELS)
        devices = sorted((f for f in topology["pci"] if f["role"]), key=lambda f: roles.index(f["role"] or ""))
        bdfs = [device["bdf"] for device in devices]
    matrix = paths.matrix(bdfs)
    names = labels(topology, bdfs)
    cpus = {node["id"]: node["cpus"] for node in topology["numa_nodes"]}
    rows: List[List[str]] = [["", *(names[bdf] for bdf in bdfs), "CPUs", "Node", "Address"]]
    for bdf, classes in zip(matrix["order"], matrix["classes"]):
        node = paths.function(bdf)["numa_node"]
        place = ["?", "?"] if node is None else [cpus.get(node, ""), str(node)]
        rows.append([names[bdf], *("X" if name == "LOC" else name for name in classes), *place, bdf])
    widths = [max(len(row[column]) for row in rows) for column in range(len(rows[0]))]
    lines = ["  ".join(cell.ljust(width) for cell, width in zip(row, widths)).rstrip() for row in rows]
    return "\n".join([*lines, "", _LEGEND])
