# Copyright: the topovirt.kvm authors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""The NCCL topology file of a guest: host truth about links that the emulated ones cannot tell.

Emulated switches show 2.5 GT/s x1, root ports what QEMU was told, and NCCL believes both. The file gives switches the
host's speed, width and identity (NCCL flattens some switches by their ids), and GPUs and NICs theirs where NCCL would
misread them; the rest NCCL detects. Written as NCCL's own parser wants it: no declaration, no tabs, no spaces around
"=", attributes on one line (NVIDIA/nccl, src/graph/xml.cc). Every bus id is one that the guest's firmware will give.
"""

from __future__ import annotations

import contextlib
from collections.abc import Mapping

from ansible_collections.topovirt.kvm.plugins.module_utils._errors import TopovirtError
from ansible_collections.topovirt.kvm.plugins.module_utils._topology.model import Host, PciFunction, Topology
from ansible_collections.topovirt.kvm.plugins.plugin_utils._guest.layout import Layout
from ansible_collections.topovirt.kvm.plugins.plugin_utils._guest.pcie_tree import Controller
from ansible_collections.topovirt.kvm.plugins.plugin_utils._nccl.detect import family_id, file_version

with contextlib.suppress(ImportError):  # vm_plan says what is missing
    from lxml import etree

# NCCL_TOPO_XML_MAX_NODES (src/graph/topo.h) bounds the file and what each process adds to it: its own GPU with at most
# 18 NVLinks, and for every NIC the elements pci, nic and net. The parser gives up when the last place is taken.
MAX_ELEMENTS = 256
_ADDED_FOR_GPU = 2 + 18
_ADDED_FOR_NIC = 3
_BRIDGE_CLASS = "0x060400"
# What NCCL takes where the kernel does not know speed or width (src/graph/topo.cc, kvDictPciGen and ncclTopoAddPci).
_UNKNOWN_GTPS, _UNKNOWN_WIDTH = 8.0, 16
# A node that the guest has no cell for, as sysfs and NCCL write it.
_NO_NODE = -1

_Link = tuple[float, int]


def _link(function: PciFunction, above: PciFunction | None) -> _Link:
    """The link of a function: the slower of both ends, as far as known."""
    ends = [function] + ([above] if above is not None else [])
    speeds = [end["link"]["max_gtps"] for end in ends if end["link"]["max_gtps"]]
    widths = [end["link"]["max_width"] for end in ends if end["link"]["max_width"]]
    return min(speeds, default=_UNKNOWN_GTPS), min(widths, default=_UNKNOWN_WIDTH)


class _File:
    """The file in the making."""

    def __init__(self, topology: Topology, layout: Layout) -> None:
        self._functions: Mapping[str, PciFunction] = {function["bdf"]: function for function in topology["pci"]}
        self._host = topology["host"]
        self._layout = layout
        self._cell_of_node = {cell["host_node"]: cell["id"] for cell in layout["cells"]}
        self._cpus: dict[int, etree._Element] = {}
        gpus = [device["bdf"] for device in layout["devices"] if self._functions[device["bdf"]]["role"] == "gpu"]
        self.system = etree.Element("system", version=file_version(topology, gpus))
        for cell in layout["cells"]:
            self._cpu(cell["id"])
        for controller in layout["pcie"]:
            if controller["parent"] == 0:
                self._below(controller, self._cpu(self._node_of(controller)))
        for number, cpu in self._cpus.items():
            if number == _NO_NODE and len(cpu) == 0:
                self.system.remove(cpu)

    def _cpu(self, numa_id: int) -> etree._Element:
        if numa_id not in self._cpus:
            identity = {"numaid": str(numa_id), "arch": self._host["arch"], **_identity(self._host)}
            self._cpus[numa_id] = etree.SubElement(self.system, "cpu", identity)
        return self._cpus[numa_id]

    def _node_of(self, controller: Controller) -> int:
        """The guest node of what is below a controller of the root complex.

        Below an expander bus everything is on its node. A plain root port has none, so the device goes where the host
        has it.
        """
        node: int | None = None
        if controller["model"] == "pcie-expander-bus":
            node = controller["node"]
        for device in self._layout["devices"]:
            if device["controller"] == controller["index"]:
                host_node = self._functions[device["bdf"]]["numa_node"]
                node = None if host_node is None else self._cell_of_node.get(host_node)
        return _NO_NODE if node is None else node

    def _below(self, controller: Controller, inside: etree._Element) -> None:
        """Add what NCCL must be told below a controller."""
        for child in self._layout["pcie"]:
            if child["parent"] != controller["index"]:
                continue
            host = self._functions.get(child["host"])
            if child["model"] == "pcie-switch-upstream-port" and host is not None:
                self._below(child, self._pci(inside, child["guest_bdf"], _BRIDGE_CLASS, host))
            else:
                self._below(child, inside)
        for device in self._layout["devices"]:
            host = self._functions[device["bdf"]]
            if device["controller"] != controller["index"] or host["role"] not in ("gpu", "nic"):
                continue
            if controller["model"] != "pcie-switch-downstream-port" or self._is_misread(host):
                self._pci(inside, device["guest_bdf"], f"0x{host['class']}", host)

    def _above(self, function: PciFunction) -> PciFunction | None:
        return self._functions.get(function["parent"] or "")

    def _is_misread(self, device: PciFunction) -> bool:
        """Whether NCCL by itself finds another link than the host's for a device on an emulated downstream port.

        That port tells neither speed nor width, so NCCL takes the device's speed and 16 lanes.
        """
        alone = device["link"]["max_gtps"] or _UNKNOWN_GTPS, _UNKNOWN_WIDTH
        return _link(device, self._above(device)) != alone

    def _pci(self, parent: etree._Element, guest_bdf: str, class_code: str, host: PciFunction) -> etree._Element:
        element = etree.SubElement(parent, "pci", {"busid": guest_bdf, "class": class_code})
        element.set("vendor", f"0x{host['vendor']}")
        element.set("device", f"0x{host['device']}")
        if host["subsystem"] is not None:
            vendor, device = host["subsystem"].split(":")
            element.set("subsystem_vendor", f"0x{vendor}")
            element.set("subsystem_device", f"0x{device}")
        speed, width = _link(host, self._above(host))
        element.set("link_speed", f"{speed:.1f} GT/s PCIe")
        element.set("link_width", str(width))
        return element


def _identity(host: Host) -> dict[str, str]:
    """Vendor, family and model of the CPU, which set what NCCL thinks of the way between sockets."""
    identity: dict[str, str] = {}
    if host["cpu_vendor"] is not None:
        identity["vendor"] = host["cpu_vendor"]
    if host["cpu_family"] is not None and host["cpu_model"] is not None:
        identity["familyid"] = str(family_id(host["cpu_family"]))
        identity["modelid"] = str(host["cpu_model"])
    return identity


def nccl_xml(topology: Topology, layout: Layout) -> str:
    """The file's text; for ``NCCL_TOPO_FILE`` or /var/run/nvidia-topologyd/virtualTopology.xml in the guest.

    :raises TopovirtError: when NCCL could not hold the file.
    """
    system = _File(topology, layout).system
    elements = sum(1 for _element in system.iter())
    roles = {function["bdf"]: function["role"] for function in topology["pci"]}
    nics = sum(roles[device["bdf"]] == "nic" for device in layout["devices"])
    added = _ADDED_FOR_GPU + _ADDED_FOR_NIC * nics
    if elements + added >= MAX_ELEMENTS:
        raise TopovirtError(
            f"The VM's NCCL file has {elements} elements and NCCL adds {added} for its GPU and {nics} NICs; it holds "
            f"fewer than {MAX_ELEMENTS}.",
            "Ask for fewer devices.",
        )
    return etree.tostring(system, pretty_print=True, encoding="unicode")
