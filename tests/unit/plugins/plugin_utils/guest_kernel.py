# Copyright: the topovirt.kvm authors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""The topology that a guest's kernel would show, made from its domain definition. Shares no code with what emits it."""

from __future__ import annotations

from collections.abc import Sequence
from copy import deepcopy

from ansible_collections.topovirt.kvm.plugins.module_utils._topology.model import Link, Node, PciFunction, Topology
from ansible_collections.topovirt.kvm.tests.unit.plugins.plugin_utils.guests import Guest, Spot

# Ids and links as QEMU's ports show them: a root port 16 GT/s x32, the switch's upstream port 2.5 GT/s x1, its
# downstream ports neither speed nor width (QEMU, hw/pci-bridge: xio3130_upstream.c, xio3130_downstream.c).
ROOT_PORT_LINK = Link(max_gtps=16.0, max_width=32)
PORTS = {
    "pcie-root-port": ("root_port", "1b36", "000c", ROOT_PORT_LINK),
    "pcie-switch-upstream-port": ("upstream_port", "104c", "8232", Link(max_gtps=2.5, max_width=1)),
    "pcie-switch-downstream-port": ("downstream_port", "104c", "8233", Link(max_gtps=None, max_width=0)),
}


def at(function: PciFunction, bdf: str, parent: str | None, root_bus: str, node: int | None) -> PciFunction:
    """A function at another place."""
    moved = deepcopy(function)
    moved["bdf"], moved["parent"], moved["host_bridge"] = bdf, parent, root_bus
    moved["numa_node"], moved["numa_source"] = node, None if node is None else "own"
    return moved


def port(model: str, bdf: str, parent: str | None, root_bus: str, node: int | None) -> PciFunction:
    kind, vendor, device, link = PORTS[model]
    blank: PciFunction = {
        "bdf": bdf,
        "kind": kind,
        "role": None,
        "class": "060400",
        "vendor": vendor,
        "device": device,
        "subsystem": None,
        "parent": None,
        "host_bridge": "",
        "numa_node": None,
        "numa_source": None,
        "driver": "pcieport",
        "iommu_group": None,
        "link": link,
        "capabilities": None,
        "in_use": [],
    }
    return at(blank, bdf, parent, root_bus, node)


def topology_of(host: Topology, functions: Sequence[PciFunction], cells: int) -> Topology:
    """A guest on ``host`` with other devices and ``cells`` NUMA nodes; its CPU is passed through."""
    nodes = [
        Node(
            id=cell,
            cpus="",
            memory_bytes=None,
            distances={str(other): 10 if other == cell else 20 for other in range(cells)},
            hugepages={},
        )
        for cell in range(cells)
    ]
    made = deepcopy(host)
    made["pci"] = sorted(functions, key=lambda function: function["bdf"])
    made["numa_nodes"], made["cores"] = nodes, []
    return made


def guest_topology(domain_xml: str, host: Topology, cells: int) -> Topology:
    guest = Guest(domain_xml)
    functions = {function["bdf"]: function for function in host["pci"]}

    def place(spot: Spot) -> tuple[str | None, str]:
        chain = [port.split()[1] for port in spot.above]
        return (chain[-1] if chain else None), (chain[0] if chain else spot.bdf)[:7]

    made = [port(spot.model, bdf, *place(spot), spot.cell) for bdf, spot in guest.ports.items()]
    made += [at(functions[bdf], spot.bdf, *place(spot), spot.cell) for bdf, spot in guest.hostdevs.items()]
    return topology_of(host, made, cells)
