# Copyright: the topovirt.kvm authors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""A planned guest beside its part of the host: each node's CPUs, memory, switches and devices, the two in one row."""

from __future__ import annotations

import xml.etree.ElementTree as ET
from collections.abc import Mapping
from typing import Any, cast

from ansible_collections.topovirt.kvm.plugins.module_utils._libvirt.domains import Allocation
from ansible_collections.topovirt.kvm.plugins.module_utils._topology.cpulist import format_cpulist
from ansible_collections.topovirt.kvm.plugins.module_utils._topology.model import Link, Node, PciFunction, Topology
from ansible_collections.topovirt.kvm.plugins.module_utils._topology.paths import Paths
from ansible_collections.topovirt.kvm.plugins.plugin_utils._guest.expected import Expected
from ansible_collections.topovirt.kvm.plugins.plugin_utils._guest.layout import Layout
from ansible_collections.topovirt.kvm.plugins.plugin_utils._report.owners import Owners, short_bdf
from ansible_collections.topovirt.kvm.plugins.plugin_utils._report.svg import (
    FAINT,
    GAP,
    MARGIN,
    SANS,
    WIDTH,
    Box,
    Tree,
    add,
    node_of_bridge,
    panel,
    text_at,
)

HEAD = 68


def _part(topology: Topology, notes: Mapping[str, str]) -> Topology:
    """The topology with only some devices and what is above them; IOMMU groups and speeds of switches, which an
    emulated one does not tell, are left out so that both sides are alike.

    :param notes: BDF of each device to keep -> what its card shows in its last line.
    """
    paths = Paths(topology)
    there = {function["bdf"] for function in topology["pci"]}
    above = {port for bdf in notes if bdf in there for port in paths.ports(bdf)}
    kept: list[PciFunction] = []
    for function in topology["pci"]:
        if function["bdf"] in notes:
            # A device without a role is in the picture like all others.
            role = function["role"] or "device"
            shown = {"names": [notes[function["bdf"]]], "role": role, "in_use": [], "iommu_group": None}
            kept.append(cast(PciFunction, {**function, **shown}))
        elif function["bdf"] in above:
            kept.append({**function, "link": Link(max_gtps=None, max_width=None)})
    return {**topology, "pci": kept}


def _allocation(name: str, devices: Mapping[str, str], cpus: list[int], memory: Mapping[str, int]) -> Allocation:
    """Everything of one side as the VM's, for the colours."""
    return Allocation(
        name=name,
        uuid=None,
        state="running",
        persistent=True,
        autostart=False,
        ours=True,
        hostdevs=list(devices),
        cpus=format_cpulist(cpus),
        emulator_cpus="",
        memory_bytes=sum(memory.values()),
        memory_by_node=dict(memory),
        page_size_bytes=None,
        metadata=None,
    )


class _Side:
    """Host or guest: what is drawn for each of its nodes."""

    def __init__(self, topology: Topology, domain: Allocation, notes: Mapping[str, str]) -> None:
        self.topology, self.domains, self.owners = _part(topology, notes), [domain], Owners([domain])
        self.nodes = {node["id"]: node for node in topology["numa_nodes"]}
        by_bridge: dict[str, list[PciFunction]] = {}
        for function in self.topology["pci"]:
            by_bridge.setdefault(function["host_bridge"], []).append(function)
        tree = Tree(self.topology, self.owners)
        self.boxes: dict[int | None, list[Box]] = {}
        for name, functions in by_bridge.items():
            box = tree.host_bridge(name)
            if box.items:
                self.boxes.setdefault(node_of_bridge(functions), []).append(box)

    def panel(self, number: int | None, room: float) -> Any:
        node: Node | None = None if number is None else self.nodes.get(number)
        return panel(self.topology, node, self.boxes.get(number, []), room, self.domains, self.owners)


def draw_guest(name: str, topology: Topology, layout: Layout, guest: Expected, figure: str) -> ET.Element:
    """The picture as one ``<svg>`` element.

    :param guest: what the layout's guest should show.
    :param figure: how true it is, in words.
    """
    identity = guest["identity"]
    shown = {function["bdf"] for function in guest["guest_topology"]["pci"]}
    memory = {str(cell["host_node"]): cell["memory_bytes"] for cell in layout["cells"]}
    vcpus = [vcpu for vcpu, _cpu in layout["vcpu_pins"]]
    on_host = {
        bdf: f"guest {short_bdf(guest_bdf)}" if guest_bdf in shown else "lost" for bdf, guest_bdf in identity.items()
    }
    in_guest = {guest_bdf: f"host {short_bdf(bdf)}" for bdf, guest_bdf in identity.items()}
    cells = {str(cell["id"]): cell["memory_bytes"] for cell in layout["cells"]}
    left = _Side(topology, _allocation(name, on_host, [cpu for _vcpu, cpu in layout["vcpu_pins"]], memory), on_host)
    right = _Side(guest["guest_topology"], _allocation(name, in_guest, vcpus, cells), in_guest)
    rows: list[tuple[int | None, int | None]] = [(cell["host_node"], cell["id"]) for cell in layout["cells"]]
    used = {host_node for host_node, _cell in rows}
    rows += [(node, None) for node in left.boxes if node is not None and node not in used]
    if None in left.boxes or None in right.boxes:
        rows.append((None, None))

    svg = ET.Element("svg", {"xmlns": "http://www.w3.org/2000/svg", "font-family": SANS, "role": "img"})
    add(svg, "title", f"VM {name} as planned, beside its part of the host")
    background = add(svg, "rect", width=WIDTH, fill="#ffffff")
    room = (WIDTH - 2 * MARGIN - 2 * GAP) / 2
    places = (MARGIN, MARGIN + room + 2 * GAP)
    for x, *lines in (
        (places[0], f"Host: the part of VM {name}", "coloured: what the VM gets", "cards name the guest's address"),
        (places[1], "Guest, as planned", figure, "cards name the host's address"),
    ):
        text_at(svg, x, MARGIN + 14, lines[0], 16, font_weight="bold")
        for row, line in enumerate(lines[1:], start=1):
            text_at(svg, x, MARGIN + 16 + 16 * row, line, 12, fill=FAINT)
    y = float(MARGIN + HEAD - GAP)
    for host_node, cell in rows:
        sides = []
        for side, number, x in ((left, host_node, places[0]), (right, cell, places[1])):
            if number is not None or side.boxes.get(None):
                sides.append((*side.panel(number, room), x))
        height = max(height for height, _draw, _x in sides)
        for _height, draw, x in sides:
            draw(svg, x, y, height)
        y += height + GAP
    background.set("height", f"{y + MARGIN - GAP:g}")
    svg.set("viewBox", f"0 0 {WIDTH} {y + MARGIN - GAP:g}")
    svg.set("width", "100%")
    return svg
