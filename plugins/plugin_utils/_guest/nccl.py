# Copyright: the topovirt.kvm authors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""The NCCL topology file of a guest: host truth about switches that the emulated ones cannot tell.

Emulated switches show 2.5 GT/s x1, which NCCL believes. The file gives them the host's speed, width and identity; the
rest NCCL detects. Written as NCCL's own parser wants it: no declaration, no tabs, no spaces around "=", attributes on
one line (NVIDIA/nccl, src/graph/xml.cc).
"""

from __future__ import annotations

import contextlib
from collections.abc import Mapping

from ansible_collections.topovirt.kvm.plugins.module_utils._topology.model import PciFunction, Topology
from ansible_collections.topovirt.kvm.plugins.plugin_utils._guest.layout import Layout
from ansible_collections.topovirt.kvm.plugins.plugin_utils._guest.pcie_tree import Controller

with contextlib.suppress(ImportError):  # vm_plan says what is missing
    from lxml import etree

# NCCL's MAX_NODES; a larger file is refused by it.
MAX_ELEMENTS = 256
_BRIDGE_CLASS = "0x060400"


def _speed(function: PciFunction, above: PciFunction | None) -> tuple[float | None, int | None]:
    """The link of a function: the slower of both ends, as far as known."""
    ends = [function] + ([above] if above is not None else [])
    speeds = [end["link"]["max_gtps"] for end in ends if end["link"]["max_gtps"]]
    widths = [end["link"]["max_width"] for end in ends if end["link"]["max_width"]]
    return min(speeds, default=None), min(widths, default=None)


def _pci(
    parent: etree._Element, guest_bdf: str, class_code: str, host: PciFunction, above: PciFunction | None
) -> etree._Element:
    element = etree.SubElement(parent, "pci", {"busid": guest_bdf, "class": class_code})
    ids = {"vendor": host["vendor"], "device": host["device"]}
    if host["subsystem"] is not None:
        ids["subsystem_vendor"], ids["subsystem_device"] = host["subsystem"].split(":")
    for key, value in ids.items():
        element.set(key, f"0x{value}")
    speed, width = _speed(host, above)
    if speed is not None:
        element.set("link_speed", f"{speed:.1f} GT/s PCIe")
    if width is not None:
        element.set("link_width", str(width))
    return element


def _below(
    parent: etree._Element, controller: Controller, layout: Layout, functions: Mapping[str, PciFunction]
) -> None:
    """Add what NCCL must be told below a controller: switches, and GPUs and NICs that sit on a root port."""
    for child in layout["pcie"]:
        if child["parent"] != controller["index"]:
            continue
        inside = parent
        host = functions.get(child["host"])
        if child["model"] == "pcie-switch-upstream-port" and host is not None:
            above = functions.get(host["parent"] or "")
            inside = _pci(parent, child["guest_bdf"], _BRIDGE_CLASS, host, above)
        _below(inside, child, layout, functions)
    if controller["model"] == "pcie-root-port":
        for device in layout["devices"]:
            host = functions[device["bdf"]]
            if device["controller"] == controller["index"] and host["role"] in ("gpu", "nic"):
                _pci(parent, device["guest_bdf"], f"0x{host['class']}", host, functions.get(host["parent"] or ""))


def nccl_xml(topology: Topology, layout: Layout) -> str:
    """The file's text; for ``NCCL_TOPO_FILE`` or /var/run/nvidia-topologyd/virtualTopology.xml in the guest."""
    functions = {function["bdf"]: function for function in topology["pci"]}
    host = topology["host"]
    system = etree.Element("system", version="1")
    for cell in layout["cells"]:
        cpu = etree.SubElement(system, "cpu", numaid=str(cell["id"]), arch=host["arch"])
        if host["cpu_vendor"] is not None:
            cpu.set("vendor", host["cpu_vendor"])
        if host["cpu_family"] is not None and host["cpu_model"] is not None:
            cpu.set("familyid", str(host["cpu_family"]))
            cpu.set("modelid", str(host["cpu_model"]))
        for controller in layout["pcie"]:
            if controller["parent"] == 0 and controller["node"] == cell["id"]:
                _below(cpu, controller, layout, functions)
    return etree.tostring(system, pretty_print=True, encoding="unicode")
