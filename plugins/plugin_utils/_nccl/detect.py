# Copyright: the topovirt.kvm authors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""What NCCL reads: a topology file, completed from sysfs. The result is a tree of elements, as NCCL itself keeps it.

Rules from NVIDIA/nccl, src/graph/xml.cc (ncclTopoGetXmlFromSys, ncclTopoGetXmlFromCpu, ncclTopoFillGpu,
ncclTopoFillNet), main branch of 2026. Every process of NCCL detects its own GPU and all NICs and joins its tree to the
others'; here one tree takes the first GPU, the NICs and the other GPUs in that order, which comes to the same.
"""

from __future__ import annotations

import xml.etree.ElementTree as ET
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field

from ansible_collections.topovirt.kvm.plugins.module_utils._errors import TopovirtError
from ansible_collections.topovirt.kvm.plugins.module_utils._topology.model import PciFunction, Topology

# NCCL_TOPO_XML_VERSION of src/graph/xml.h in NVIDIA/nccl and in ROCm/rccl: each fails on a file of the other's version.
_NCCL, _RCCL = "1", "2"
_AMD = "1002"
# Marks what was found on this machine; the rest of a file is dropped (ncclTopoTrimXml).
KEEP = "keep"


@dataclass(eq=False)
class Element:
    """An element of NCCL's tree: system, cpu, pci, gpu, nic or net."""

    name: str
    attributes: dict[str, str]
    parent: Element | None = None
    children: list[Element] = field(default_factory=list)

    def add(self, name: str, **attributes: str) -> Element:
        child = Element(name, dict(attributes), self)
        self.children.append(child)
        return child

    def child(self, name: str) -> Element | None:
        return next((child for child in self.children if child.name == name), None)

    def walk(self) -> Iterator[Element]:
        yield self
        for child in self.children:
            yield from child.walk()


def file_version(topology: Topology, gpus: Sequence[str]) -> str:
    """The version of the file that the library for these GPUs reads: NCCL for NVIDIA's, RCCL for AMD's."""
    vendors = {function["vendor"] for function in topology["pci"] if function["bdf"] in gpus}
    return _RCCL if _AMD in vendors else _NCCL


def read_file(text: str, version: str = _NCCL) -> Element:
    """The tree of a topology file.

    :raises TopovirtError: when it is no XML, or not a system of that version. NCCL's own parser refuses more: what the
        emitter's tests keep to.
    """
    try:
        root = ET.fromstring(text)
    except ET.ParseError as error:
        raise TopovirtError(f"The NCCL file is not XML: {error}.") from None
    if root.tag != "system" or root.get("version") != version:
        raise TopovirtError(
            f"The NCCL file begins with <{root.tag} version={root.get('version')!r}>, expected system of version "
            f"{version}."
        )
    return _element(root, None)


def _element(source: ET.Element, parent: Element | None) -> Element:
    element = Element(source.tag, dict(source.attrib), parent)
    element.children = [_element(child, element) for child in source]
    return element


def empty() -> Element:
    """The tree without a file."""
    return Element("system", {})


def family_id(family: int) -> int:
    """A CPU's family as NCCL writes it: base plus 16 times extended family (ncclTopoGetXmlFromCpu).

    The kernel adds them without the factor. Every NCCL that tells AMD's families apart knows this form.
    """
    return family if family < 16 else 15 + 16 * (family - 15)


class Detection:
    """Completes a tree with what the kernel of one machine shows."""

    def __init__(self, system: Element, topology: Topology) -> None:
        self._system = system
        self._functions = {function["bdf"]: function for function in topology["pci"]}
        self._host = topology["host"]

    def run(self, gpus: Sequence[str], nics: Sequence[str]) -> None:
        """Find devices.

        :param gpus: bus ids; the place in the list is the GPU's number, as NVML counts them.
        :param nics: bus ids; the place in the list is the number of the network device.
        """
        for number, gpu in enumerate(gpus[:1]):
            self._gpu(gpu, number)
        for number, nic in enumerate(nics):
            self._nic(nic, number)
        for number, gpu in enumerate(gpus[1:], start=1):
            self._gpu(gpu, number)

    def _gpu(self, bus_id: str, number: int) -> None:
        pci = self._pci(bus_id)
        gpu = pci.child("gpu") or pci.add("gpu")
        gpu.attributes.setdefault("dev", str(number))
        gpu.attributes[KEEP] = "1"

    def _nic(self, bus_id: str, number: int) -> None:
        pci = self._pci(bus_id)
        nic = pci.child("nic") or pci.add("nic")
        net = nic.child("net") or nic.add("net")
        net.attributes["dev"] = str(number)
        net.attributes[KEEP] = "1"

    def _find(self, bus_id: str) -> Element | None:
        # Text is compared, so an upper-case id of a file is another one.
        found = (item for item in self._system.walk() if item.name == "pci" and item.attributes.get("busid") == bus_id)
        return next(found, None)

    def _pci(self, bus_id: str) -> Element:
        element = self._find(bus_id) or Element("pci", {"busid": bus_id})
        self._fill(element)
        return element

    def _fill(self, pci: Element) -> None:
        """Complete an element and all above it. What a file says stays, but for the class."""
        bus_id = pci.attributes["busid"]
        function = self._functions.get(bus_id)
        if function is not None:
            pci.attributes["class"] = f"0x{function['class']}"
            subsystem = (function["subsystem"] or "0000:0000").split(":")
            for key, value in zip(
                ("vendor", "device", "subsystem_vendor", "subsystem_device"),
                (function["vendor"], function["device"], *subsystem),
                strict=True,
            ):
                pci.attributes.setdefault(key, f"0x{value}")
        speed, width = self._link(function)
        pci.attributes.setdefault("link_speed", speed)
        pci.attributes.setdefault("link_width", width)
        if pci.parent is None:
            self._hang(pci, function)
        parent = pci.parent
        if parent is not None and parent.name == "pci":
            self._fill(parent)
        elif parent is not None and parent.name == "cpu":
            self._fill_cpu(parent)

    def _link(self, function: PciFunction | None) -> tuple[str, str]:
        """The slower of a function and the port above it, as text of sysfs. An unknown speed does not limit, an unknown
        width is 0, which later reads as 16."""
        if function is None:
            return "", ""
        above = self._functions.get(function["parent"] or "")
        ends = [function["link"]] + ([above["link"]] if above is not None else [])
        speeds = [end["max_gtps"] for end in ends if end["max_gtps"]]
        widths = [end["max_width"] or 0 for end in ends] + ([0] if above is None else [])
        return f"{min(speeds):.1f} GT/s PCIe" if speeds else "Unknown", str(min(widths))

    def _hang(self, pci: Element, function: PciFunction | None) -> None:
        """Give an element its place: two components of the path up, that is the switch's upstream port, else the CPU.
        Bus ids ascend among what sysfs added."""
        first = self._functions.get((function["parent"] if function else None) or "")
        second = first["parent"] if first is not None else None
        if second is not None:
            parent = self._find(second) or Element("pci", {"busid": second})
        else:
            parent = self._cpu(_own_node(function))
        bus_id = pci.attributes["busid"]
        place = next(
            (index for index, other in enumerate(parent.children) if other.attributes.get("busid", "") > bus_id),
            len(parent.children),
        )
        parent.children.insert(place, pci)
        pci.parent = parent

    def _cpu(self, numa_id: int) -> Element:
        for child in self._system.children:
            if child.name == "cpu" and child.attributes.get("numaid") == str(numa_id):
                return child
        return self._system.add("cpu", numaid=str(numa_id))

    def _fill_cpu(self, cpu: Element) -> None:
        cpu.attributes.setdefault("arch", self._host["arch"])
        cpu.attributes.setdefault("vendor", self._host["cpu_vendor"] or "")
        if "familyid" not in cpu.attributes:
            cpu.attributes["familyid"] = str(family_id(self._host["cpu_family"] or 0))
            cpu.attributes["modelid"] = str(self._host["cpu_model"] or 0)


def _own_node(function: PciFunction | None) -> int:
    """What sysfs says of the function itself; the topology also has what was found out in other ways."""
    if function is None or function["numa_source"] != "own" or function["numa_node"] is None:
        return -1
    return function["numa_node"]
