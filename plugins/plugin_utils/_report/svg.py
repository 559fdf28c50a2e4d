# Copyright: the topovirt.kvm authors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""The host as a picture: sockets and nodes, host bridges, switches and devices, coloured by who owns them.

Sizes are in SVG user units. Boxes flow from left to right and wrap, so that any tree of bridges finds a place.
"""

from __future__ import annotations

import xml.etree.ElementTree as ET
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

from ansible_collections.topovirt.kvm.plugins.module_utils._libvirt.domains import Allocation
from ansible_collections.topovirt.kvm.plugins.module_utils._topology.model import Node, PciFunction, Topology
from ansible_collections.topovirt.kvm.plugins.plugin_utils._report.owners import (
    HOST,
    NOBODY,
    THE_HOST,
    Owner,
    Owners,
    gib,
    short_bdf,
)

WIDTH = 1240
MARGIN = 16
GAP = 8
PAD = 10
LABEL = 22  # height of a box's label
CARD_WIDTH, CARD_HEIGHT = 98, 56
ROLE_NAMES = {"gpu": "GPU", "nic": "NIC", "nvswitch": "NVSwitch", "fabric_bridge": "Bridge", "nvme": "NVMe"}
INK, FAINT = "#1f2933", "#52606d"
MONO = "ui-monospace, 'DejaVu Sans Mono', Menlo, Consolas, monospace"
SANS = "system-ui, 'DejaVu Sans', 'Segoe UI', Helvetica, Arial, sans-serif"


def kind_name(function: PciFunction) -> str:
    """What to call a device: by its role, otherwise by its PCI base class."""
    bases = {"01": "Storage", "02": "Network", "03": "Display", "0c": "USB"}
    return ROLE_NAMES.get(function["role"] or "") or bases.get((function["class"] or "")[:2], "Device")


def add(parent: ET.Element, tag: str, text: str = "", **attributes: object) -> ET.Element:
    """Append an SVG element; underscores in names become dashes, as SVG spells them."""
    names = {
        name.rstrip("_").replace("_", "-"): f"{value:g}" if isinstance(value, float) else str(value)
        for name, value in attributes.items()
    }
    element = ET.SubElement(parent, tag, names)
    if text:
        element.text = text
    return element


def text_at(parent: ET.Element, x: float, y: float, text: str, size: int = 12, **attributes: object) -> ET.Element:
    return add(parent, "text", text, **{"x": x, "y": y, "font_size": size, "fill": INK, **attributes})


@dataclass
class Card:
    """One device."""

    function: PciFunction
    owner: Owner
    width: float = CARD_WIDTH
    height: float = CARD_HEIGHT

    def draw(self, parent: ET.Element, x: float, y: float) -> None:
        function, owner = self.function, self.owner
        group = add(parent, "g")
        add(group, "title", _described(function, owner))
        add(
            group,
            "rect",
            x=x,
            y=y,
            width=self.width,
            height=self.height,
            rx=5,
            fill=owner.fill,
            stroke=owner.line,
            stroke_width=1.5 if owner.kind == "vm" else 1,
        )
        if owner.kind == "host":
            add(group, "rect", x=x, y=y, width=self.width, height=self.height, rx=5, fill="url(#host-use)")
        text_at(group, x + 8, y + 17, kind_name(function), 12, font_weight="bold")
        if function["module_id"] is not None:
            add(
                group,
                "rect",
                x=x + self.width - 30,
                y=y + 5,
                width=24,
                height=15,
                rx=7,
                fill="#ffffff",
                stroke=owner.line,
            )
            text_at(group, x + self.width - 18, y + 16, f"M{function['module_id']}", 10, text_anchor="middle")
        text_at(group, x + 8, y + 33, short_bdf(function["bdf"]), 12, font_family=MONO)
        note = (function["names"] or [function["driver"] or "no driver"])[0]
        text_at(group, x + 8, y + 48, note[:14], 10, fill=FAINT)


@dataclass
class Box:
    """A bridge, a slot or a node with what is below it."""

    label: str
    items: list[Card | Box] = field(default_factory=list)
    fill: str = "#ffffff"
    line: str = "#9aa5b1"
    dashed: bool = False
    stretch: bool = False  # as wide as there is room
    size: int = 12
    width: float = 0
    height: float = 0
    places: list[tuple[float, float]] = field(default_factory=list)

    def arrange(self, room: float) -> None:
        """Give every item its place within ``room``, and the box its size."""
        self.places = []
        x, y, row, widest = float(PAD), float(PAD + LABEL - 6), 0.0, len(self.label) * self.size * 0.56
        for item in self.items:
            if isinstance(item, Box):
                item.arrange(room - 2 * PAD)
            if x > PAD and x + item.width > room - PAD:
                x, y, row = float(PAD), y + row + GAP, 0.0
            self.places.append((x, y))
            widest, row = max(widest, x + item.width - PAD), max(row, item.height)
            x += item.width + GAP
        self.width = room if self.stretch else min(widest, room - 2 * PAD) + 2 * PAD
        self.height = y + row + PAD

    def draw(self, parent: ET.Element, x: float, y: float) -> None:
        dash = {"stroke_dasharray": "5 3"} if self.dashed else {}
        add(
            parent,
            "rect",
            x=x,
            y=y,
            width=self.width,
            height=self.height,
            rx=7,
            fill=self.fill,
            stroke=self.line,
            **dash,
        )
        text_at(parent, x + PAD, y + 16, self.label, self.size, fill=FAINT)
        for item, (item_x, item_y) in zip(self.items, self.places, strict=True):
            item.draw(parent, x + item_x, y + item_y)


def _described(function: PciFunction, owner: Owner) -> str:
    """What a reader sees who rests the pointer on a device."""
    lines = [
        f"{kind_name(function)} {function['bdf']} [{function['vendor']}:{function['device']}]",
        f"owner: {owner.name}",
        f"driver: {function['driver'] or 'none'}, IOMMU group: {function['iommu_group']}",
        f"NUMA node: {function['numa_node']}",
        *function["in_use"],
    ]
    return "\n".join(lines)


def _link(function: PciFunction) -> str:
    speed, width = function["link"]["max_gtps"], function["link"]["max_width"]
    return f" · {speed:g} GT/s x{width}" if speed and width else ""


class Tree:
    """The PCI tree of one host as boxes."""

    def __init__(self, topology: Topology, owners: Owners) -> None:
        self.owners = owners
        self.children: dict[str, list[PciFunction]] = {}
        for function in topology["pci"]:
            self.children.setdefault(function["parent"] or function["host_bridge"], []).append(function)
        grouped: dict[int | None, int] = {}
        for function in topology["pci"]:
            if self._shown(function):
                grouped[function["iommu_group"]] = grouped.get(function["iommu_group"], 0) + 1
        self.shared = {group for group, count in grouped.items() if group is not None and count > 1}

    @staticmethod
    def _shown(function: PciFunction) -> bool:
        wanted = function["role"] is not None or bool(function["in_use"])
        return wanted and function["kind"] == "endpoint" and function["physfn"] is None

    def host_bridge(self, name: str) -> Box:
        return Box(f"host bridge {name}", self._below(name), "#f7f9fb", stretch=True)

    def _below(self, place: str) -> list[Card | Box]:
        """Devices first, then the switches; root and downstream ports are drawn by what is behind them."""
        cards: list[PciFunction] = []
        boxes: list[Card | Box] = []
        for function in self.children.get(place, []):
            if function["kind"] == "upstream_port":
                below = self._below(function["bdf"])
                if below:
                    boxes.append(
                        Box(f"PCIe switch {short_bdf(function['bdf'])}{_link(function)}", below, "#ffffff", "#3e4c59")
                    )
            elif function["kind"] != "endpoint":
                for item in self._below(function["bdf"]):
                    if isinstance(item, Card):
                        cards.append(item.function)
                    else:
                        boxes.append(item)
            elif self._shown(function):
                cards.append(function)
        return [*self._cards(cards), *boxes]

    def _cards(self, functions: list[PciFunction]) -> list[Card | Box]:
        """Cards, and boxes around those that their IOMMU group holds together."""
        units: dict[int | str, list[Card | Box]] = {}
        for function in functions:
            group = function["iommu_group"]
            key: int | str = group if group is not None and group in self.shared else function["bdf"]
            units.setdefault(key, []).append(Card(function, self.owners.of_device(function)))
        items: list[Card | Box] = []
        for key, cards in units.items():
            items.extend(
                [Box(f"IOMMU group {key}: one unit", cards, dashed=True, size=11)] if len(cards) > 1 else cards
            )
        return items


def _cpu_strip(parent: ET.Element, x: float, y: float, room: float, threads: list[list[int]], owners: Owners) -> float:
    """One square per logical CPU, siblings of a core above each other; returns the height used."""
    side = 20 if len(threads) * 22 <= room else 9
    columns = max(1, int(room // (side + 2)))
    deepest = max((len(core) for core in threads), default=0)
    for number, core in enumerate(threads):
        left = x + number % columns * (side + 2)
        top = y + number // columns * (deepest * (side + 1) + 5)
        for row, cpu in enumerate(core):
            owner = owners.of_cpu(cpu)
            square = add(
                parent,
                "rect",
                x=left,
                y=top + row * (side + 1),
                width=side,
                height=side,
                rx=2,
                fill=owner.fill,
                stroke=owner.line,
                stroke_width=0.8,
            )
            add(square, "title", f"CPU {cpu}: {owner.name if owner.kind == 'vm' else 'in no VM'}")
            if side >= 20:
                text_at(
                    parent, left + side / 2, top + row * (side + 1) + 14, str(cpu), 10, text_anchor="middle", fill=FAINT
                )
    rows = -(-len(threads) // columns)
    return rows * (deepest * (side + 1) + 5)


def _memory_bar(
    parent: ET.Element, x: float, y: float, room: float, node: Node, domains: Sequence[Allocation], owners: Owners
) -> None:
    add(parent, "rect", x=x, y=y, width=room, height=14, rx=3, fill=NOBODY.fill, stroke=NOBODY.line)
    left = x
    for domain in domains:
        share = domain["memory_by_node"].get(str(node["id"]), 0) / max(node["memory_bytes"] or 0, 1)
        if share:
            owner = owners.vms[domain["name"]]
            part = add(
                parent, "rect", x=left, y=y, width=min(share, 1) * room, height=14, fill=owner.fill, stroke=owner.line
            )
            add(part, "title", f"{domain['name']}: {gib(domain['memory_by_node'][str(node['id'])])}")
            left += min(share, 1) * room


def _memory(node: Node) -> str:
    """Size and huge pages; a guest of which nothing runs yet has no pages to tell of."""
    size = f"{gib(node['memory_bytes'] or 0)} memory"
    return f"{size} · {_pages(node)}" if node["hugepages"] else size


def _pages(node: Node) -> str:
    parts = []
    for size, pages in sorted(node["hugepages"].items(), key=lambda item: -int(item[0])):
        if pages["total"]:
            parts.append(f"{pages['total']} huge pages of {gib(int(size) * 1024)}, {pages['free']} free")
    return "; ".join(parts) or "no huge pages"


def node_of_bridge(functions: list[PciFunction]) -> int | None:
    """The node that most of a host bridge's endpoints name."""
    named = [f["numa_node"] for f in functions if f["kind"] == "endpoint" and f["numa_node"] is not None]
    return max(sorted(set(named)), key=named.count) if named else None


def panel(
    topology: Topology, node: Node | None, boxes: list[Box], room: float, domains: Sequence[Allocation], owners: Owners
) -> tuple[float, Callable[[ET.Element, float, float, float], None]]:
    """Height of a node's panel, and what draws it when its place is known."""
    inner = room - 2 * PAD
    content = Box("", list(boxes), "none", "none")
    content.arrange(room)
    head: list[list[int]] = []
    if node is not None:
        head = [core["threads"] for core in topology["cores"] if core["node"] == node["id"]]
    strip = _cpu_strip(ET.Element("g"), 0, 0, inner, head, owners)
    top = 34 + (strip + 46 if node is not None else 0)

    def draw(parent: ET.Element, x: float, y: float, height: float) -> None:
        add(parent, "rect", x=x, y=y, width=room, height=height, rx=9, fill="#eef2f6", stroke="#7b8794")
        if node is None:
            text_at(parent, x + PAD, y + 23, "no NUMA node", 15, font_weight="bold")
        else:
            packages = {core["package"] for core in topology["cores"] if core["node"] == node["id"]}
            sockets = ", ".join(
                str(package) for package in sorted(package for package in packages if package is not None)
            )
            text_at(parent, x + PAD, y + 23, f"NUMA node {node['id']}", 15, font_weight="bold")
            text_at(
                parent,
                x + PAD + 118,
                y + 23,
                f"socket {sockets or '-'} · CPUs {node['cpus'] or 'none'}",
                12,
                fill=FAINT,
            )
            _cpu_strip(parent, x + PAD, y + 34, inner, head, owners)
            text_at(
                parent,
                x + PAD,
                y + 34 + strip + 13,
                _memory(node),
                12,
                fill=FAINT,
            )
            _memory_bar(parent, x + PAD, y + 34 + strip + 20, inner, node, domains, owners)
        content.draw(parent, x, y + top - LABEL + 2)

    return top - LABEL + content.height + 2, draw


def _fabric(parent: ET.Element, y: float, topology: Topology, domains: Sequence[Allocation], owners: Owners) -> float:
    """The baseboard in the order of its modules, with the partitions of the VMs; returns the height used."""
    modules = {module: f for f in topology["pci"] if f["role"] == "gpu" and (module := f["module_id"]) is not None}
    if not modules:
        return 0
    text_at(parent, MARGIN, y + 18, "GPU modules in the order of the baseboard", 13, font_weight="bold")
    side = 54
    place: dict[int, float] = {}
    for number, module in enumerate(sorted(modules)):
        function = modules[module]
        owner = owners.of_device(function)
        left = MARGIN + number * (side + 8)
        place[module] = left
        add(
            parent,
            "rect",
            x=left,
            y=y + 30,
            width=side,
            height=34,
            rx=5,
            fill=owner.fill,
            stroke=owner.line,
            stroke_width=1.5,
        )
        text_at(parent, left + side / 2, y + 45, f"M{module}", 12, text_anchor="middle", font_weight="bold")
        text_at(parent, left + side / 2, y + 58, short_bdf(function["bdf"]), 9, text_anchor="middle", font_family=MONO)
    lanes: list[float] = []  # where the last bracket of each line of brackets ends
    brackets: list[tuple[float, float, str, str]] = []
    for domain in domains:
        partition = (domain["metadata"] or {}).get("partition")
        own = sorted(place[module] for module, f in modules.items() if f["bdf"] in domain["hostdevs"])
        if partition is not None and own:
            label = f"{domain['name']}: NVLink partition {partition}"
            brackets.append((own[0], own[-1] + side, label, owners.vms[domain["name"]].line))
    for start, end, label, line in sorted(brackets):
        middle, half = (start + end) / 2, max((end - start) / 2, len(label) * 3.2)
        lane = next((number for number, last in enumerate(lanes) if last < middle - half), len(lanes))
        lanes[lane : lane + 1] = [middle + half]
        top = y + 69 + 26 * lane
        add(parent, "path", d=f"M{start:g},{top:g} v5 H{end:g} v-5", fill="none", stroke=line, stroke_width=1.5)
        text_at(parent, middle, top + 19, label, 11, text_anchor="middle", fill=line)
    return 98 + 26 * max(0, len(lanes) - 1)


def _legend(parent: ET.Element, y: float, owners: Owners) -> float:
    x = float(MARGIN)
    for owner in (*owners.vms.values(), NOBODY, THE_HOST):
        name = f"VM {owner.name}" if owner.kind == "vm" else owner.name
        needed = 34 + len(name) * 7
        if x > MARGIN and x + needed > WIDTH - MARGIN:
            x, y = float(MARGIN), y + 22
        add(parent, "rect", x=x, y=y, width=18, height=14, rx=3, fill=owner.fill, stroke=owner.line)
        if owner.kind == "host":
            add(parent, "rect", x=x, y=y, width=18, height=14, rx=3, fill="url(#host-use)")
        text_at(parent, x + 24, y + 11, name, 12)
        x += needed + 10
    needed = 260
    if x + needed > WIDTH - MARGIN:
        x, y = float(MARGIN), y + 22
    text_at(parent, x, y + 11, "M1, M2 …: module id of the GPU on its baseboard", 12, fill=FAINT)
    return y + 28


def draw_host(topology: Topology, domains: Sequence[Allocation]) -> ET.Element:
    """The picture as one ``<svg>`` element.

    :param domains: what ``vm_info`` returns; owners of devices, CPUs and memory.
    """
    domains = sorted(domains, key=lambda domain: domain["name"])
    owners = Owners(domains)
    tree = Tree(topology, owners)
    by_bridge: dict[str, list[PciFunction]] = {}
    for function in topology["pci"]:
        by_bridge.setdefault(function["host_bridge"], []).append(function)
    boxes: dict[int | None, list[Box]] = {}
    for name, functions in by_bridge.items():
        box = tree.host_bridge(name)
        if box.items:
            boxes.setdefault(node_of_bridge(functions), []).append(box)
    nodes: list[Node | None] = list(topology["numa_nodes"])
    known = {node["id"] for node in topology["numa_nodes"]}
    homeless = [box for node, there in boxes.items() if node not in known for box in there]
    if homeless:
        nodes.append(None)

    columns = 1 if len(nodes) == 1 else 2
    svg = ET.Element("svg", {"xmlns": "http://www.w3.org/2000/svg", "font-family": SANS, "role": "img"})
    add(svg, "title", "the host, its devices and who owns them")
    pattern = add(
        add(svg, "defs"),
        "pattern",
        id="host-use",
        width=6,
        height=6,
        patternUnits="userSpaceOnUse",
        patternTransform="rotate(45)",
    )
    add(pattern, "rect", width=2, height=6, fill=HOST[1], opacity=0.25)
    background = add(svg, "rect", width=WIDTH, fill="#ffffff")
    y = _legend(svg, MARGIN, owners)
    for start in range(0, len(nodes), columns):
        row = nodes[start : start + columns]
        room = (WIDTH - 2 * MARGIN - (len(row) - 1) * GAP) / len(row)
        panels = [
            panel(topology, node, homeless if node is None else boxes.get(node["id"], []), room, domains, owners)
            for node in row
        ]
        height = max(height for height, _draw in panels)
        for number, (_height, draw) in enumerate(panels):
            draw(svg, MARGIN + number * (room + GAP), y, height)
        y += height + GAP
    y += _fabric(svg, y, topology, domains, owners) + MARGIN
    background.set("height", f"{y:g}")
    svg.set("viewBox", f"0 0 {WIDTH} {y:g}")
    svg.set("width", "100%")
    return svg
