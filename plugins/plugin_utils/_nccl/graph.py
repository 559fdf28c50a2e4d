# Copyright: the topovirt.kvm authors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""NCCL's graph of a machine: GPUs, PCI switches, CPUs, NICs, their links, and the ways through it.

Rules and figures from NVIDIA/nccl, src/graph/topo.cc, topo.h and paths.cc, main branch of 2026; the function is named
beside each. Not here: direct NVLinks between two GPUs, C2C, fused NICs, AMD's XGMI.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

from ansible_collections.topovirt.kvm.plugins.module_utils._errors import TopovirtError
from ansible_collections.topovirt.kvm.plugins.plugin_utils._nccl.detect import KEEP, Element

# Classes of a way, nearest first (topoPathTypeStr of topo.cc). P2C and C2C do not occur here.
CLASSES = ("LOC", "NVL", "NVB", "C2C", "PIX", "PXB", "P2C", "PXN", "PHB", "SYS", "NET", "DIS")
LOC, NVL, PIX, PXB, P2C, PXN, PHB, SYS, DIS = (
    CLASSES.index(name) for name in ("LOC", "NVL", "PIX", "PXB", "P2C", "PXN", "PHB", "SYS", "DIS")
)

# LOC_BW of topo.h, in GB/s like all below: a link that never limits.
UNLIMITED = 5000.0

# kvDictPciClass of topo.cc; the first that the class begins with. Any other class counts as a switch.
_KINDS = (("0x060400", "PCI"), ("0x068000", "NVS"), ("0x068001", "CPU"), ("0x03", "GPU"), ("0x02", "NIC"))

# kvDictPciGen of topo.cc, 100 Mbit/s per lane: the first that the text begins with.
_LANE = (
    ("2.5 GT/s", 15),
    ("5 GT/s", 30),
    ("8 GT/s", 60),
    ("16 GT/s", 120),
    ("32 GT/s", 240),
    ("5.0 GT/s PCIe", 30),
    ("8.0 GT/s PCIe", 60),
    ("16.0 GT/s PCIe", 120),
    ("32.0 GT/s PCIe", 240),
    ("64.0 GT/s PCIe", 480),
)
_LANE_UNKNOWN = 60


@dataclass(eq=False)
class Node:
    kind: str  # GPU, PCI, NVS, CPU, NIC or NET
    name: str  # bus id, of a CPU its NUMA id
    number: int = -1  # GPUs and network devices: as NVML and the plug-in count
    ids: int = 0  # switches: vendor, device and subsystem in one number
    gdr: bool = True  # network devices: what a file says of GPUDirect RDMA beats the plug-in
    links: list[Link] = field(default_factory=list)
    cpu: dict[str, str] = field(default_factory=dict)  # CPUs: attributes


@dataclass
class Link:
    kind: int  # PIX for PCI, NVL, SYS or LOC
    gbs: float
    to: Node


@dataclass(frozen=True)
class Way:
    """How one gets from one node to another."""

    kind: int  # index into CLASSES
    gbs: float
    hops: int


def lane_gbs(speed: str) -> float:
    """GB/s of one lane as NCCL reads the text of a link speed (kvConvertToInt of xml.h, ncclTopoAddPci of topo.cc)."""
    return next((rate for text, rate in _LANE if speed.startswith(text)), _LANE_UNKNOWN) / 80


def socket_gbs(cpu: dict[str, str]) -> float:
    """GB/s between two CPU nodes by what the first is (ncclTopoGetInterCpuBw, ncclTopoAddCpu of topo.cc).

    NCCL up to 2.28 has 16 for all of AMD.
    """
    family, model = int(cpu.get("familyid") or 0), int(cpu.get("modelid") or 0)
    if cpu["arch"] != "x86_64":
        return {"arm64": 6.0, "ppc64": 32.0}.get(cpu["arch"], UNLIMITED)
    if cpu["vendor"] == "GenuineIntel":
        if family == 6 and (model >= 0xCF or model in (0xAD, 0xAE, 0xAF)):  # Emerald and Granite Rapids, Sierra Forest
            return 40.0
        return 22.0 if family == 6 and model >= 0x8F else 10.0 if family == 6 and model >= 0x55 else 6.0
    if cpu["vendor"] == "AuthenticAMD":
        # The family is kept in two forms: as the kernel says it and as CPUID's fields joined.
        return 32.0 if family in (26, 0xBF) else 24.0 if family in (25, 0xAF) else 16.0
    return UNLIMITED


def _number(text: str | None) -> int:
    """As C's strtol with base 0 reads the ids of a file."""
    return int(text, 0) if text else 0


class Graph:
    """The graph of one machine."""

    def __init__(self, system: Element, nvlink: bool) -> None:
        """
        :param nvlink: whether all GPUs reach each other through NVSwitches.
        :raises TopovirtError: where NCCL gives up.
        """
        self.nodes: list[Node] = []
        for cpu in system.children:
            if cpu.name == "cpu" and _kept(cpu):
                self._add_cpu(cpu)
        if nvlink:
            switch = self._add(Node("NVS", "nvswitch"))
            for gpu in self.of("GPU"):
                _connect(gpu, switch, NVL, UNLIMITED)
        self._flatten()
        cpus = self.of("CPU")
        for first in cpus:
            for second in cpus:
                if first is not second:
                    first.links.append(Link(SYS, socket_gbs(first.cpu), second))

    def of(self, kind: str) -> list[Node]:
        return [node for node in self.nodes if node.kind == kind]

    def _add(self, node: Node) -> Node:
        self.nodes.append(node)
        return node

    def _add_cpu(self, element: Element) -> None:
        cpu = self._add(Node("CPU", element.attributes["numaid"], cpu=element.attributes))
        for child in element.children:
            if child.name == "pci" and _kept(child):
                self._add_pci(child, cpu)
            elif child.name == "nic" and _kept(child):
                nic = self._add(Node("NIC", f"cpu {cpu.name}"))
                _connect(nic, cpu, PIX, UNLIMITED)
                self._add_nets(child, nic)

    def _add_pci(self, element: Element, parent: Node) -> None:
        """ncclTopoAddPci of topo.cc."""
        bus_id = element.attributes["busid"]
        if "class" not in element.attributes:
            raise TopovirtError(f"The NCCL file gives {bus_id} no class, and no such function is there: NCCL fails.")
        width = _number(element.attributes["link_width"]) or 16
        gbs = width * lane_gbs(element.attributes["link_speed"])
        gpu, nic = element.child("gpu"), element.child("nic")
        if gpu is not None:
            node = Node("GPU", bus_id, number=int(gpu.attributes["dev"]))
        elif nic is not None:
            node = Node("NIC", bus_id)
        elif _kind(element.attributes["class"]) == "PCI":
            node = Node("PCI", bus_id, ids=_ids(element))
        else:
            return
        self._add(node)
        if nic is not None:
            self._add_nets(nic, node)
        for child in element.children:
            if node.kind == "PCI" and child.name == "pci" and _kept(child):
                self._add_pci(child, node)
        _connect(node, parent, PIX, gbs)

    def _add_nets(self, element: Element, nic: Node) -> None:
        nets = [net for net in element.children if net.name == "net" and KEEP in net.attributes]
        for index, net in enumerate(nets):
            name = nic.name if index == 0 else f"{nic.name}/{index}"
            gdr = net.attributes.get("gdr") != "0"
            node = self._add(Node("NET", name, number=int(net.attributes["dev"]), gdr=gdr))
            # Mbit/s, known in a dump; a topology of ours has no speed of a port, which then does not limit.
            mbps = _number(net.attributes.get("speed"))
            _connect(nic, node, LOC, mbps / 8000 if mbps else UNLIMITED)

    def _flatten(self) -> None:
        """Two levels of a Broadcom switch become one (ncclTopoFlattenBcmSwitches of topo.cc)."""
        done: set[Node] = set()
        while True:
            tops = (node for node in self.of("PCI") if node not in done and _generation(node.ids, 0))
            top = next(tops, None)
            if top is None:
                return
            done.add(top)
            generation = _generation(top.ids, 0)
            lower = [link.to for link in top.links if link.to.kind == "PCI" and link.to not in done]
            for switch in [node for node in lower if _generation(node.ids, 1) == generation]:
                top.links = [link for link in top.links if link.to is not switch]
                for link in switch.links:
                    if link.to is top:
                        continue
                    top.links.append(link)
                    for back in link.to.links:
                        if back.to is switch:
                            back.to = top
                self.nodes.remove(switch)

    def ways_to(self, base: Node) -> dict[Node, Way]:
        """The way from every node to ``base`` (ncclTopoSetPaths of paths.cc): fewest hops, then most bandwidth."""
        found = {base: Way(LOC, UNLIMITED, 0)}
        frontier = [base]
        while frontier:
            following: list[Node] = []
            for node in frontier:
                if node.kind == "GPU" and node is not base:
                    continue
                way = found[node]
                for link in node.links:
                    gbs, known = min(way.gbs, link.gbs), found.get(link.to)
                    if known is not None and (known.hops <= way.hops or known.gbs >= gbs):
                        continue
                    found[link.to] = Way(max(way.kind, _step(node, link)), gbs, way.hops + 1)
                    if link.to not in following:
                        following.append(link.to)
            frontier = following
        return found


def _step(node: Node, link: Link) -> int:
    """The class of one step."""
    if link.kind == PIX and "CPU" in (node.kind, link.to.kind):
        return PHB
    return PXB if node.kind == link.to.kind == "PCI" else link.kind


def _connect(node: Node, other: Node, kind: int, gbs: float) -> None:
    node.links.append(Link(kind, gbs, other))
    other.links.append(Link(kind, gbs, node))


def _kept(element: Element) -> bool:
    return any(KEEP in item.attributes for item in element.walk())


def _kind(class_code: str) -> str:
    return next((kind for text, kind in _KINDS if class_code.startswith(text)), "PCI")


def _ids(element: Element) -> int:
    """ncclTopoGetIntDevice of topo.cc"""
    keys: Sequence[str] = ("vendor", "device", "subsystem_vendor", "subsystem_device")
    result = 0
    for key in keys:
        result = (result << 16) + _number(element.attributes.get(key))
    return result


def _generation(ids: int, level: int) -> int:
    """Which Broadcom switch of those that show two levels; 0 for any other. ``level`` is 0 for the upper one
    (getBcmGen of topo.cc)."""
    family = ids & ~0xFFF
    if family == 0x1000C0101000A000:
        return 4
    return 5 if family == 0x1000C03010000000 | level << 12 else 0
