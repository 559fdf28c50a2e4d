# Copyright: the topovirt.kvm authors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Negative controls of the comparison: VMs that are wrong on purpose and must be flagged for exactly that.

Each takes the definition of a right VM and breaks one thing, as a mistake in a hand-written definition would. Only one
GPU and one NIC of every switch stay, so that each boots in a minute.
"""

from __future__ import annotations

import copy
import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any
from xml.etree import ElementTree as ET

# Vendor and device as sysfs shows them.
GPU_AND_NIC = (("0x10de", "0x2335"), ("0x15b3", "0x1021"))
QEMU = "{http://libvirt.org/schemas/domain/qemu/1.0}"
ET.register_namespace("qemu", QEMU.strip("{}"))


class Tree:
    """The hostdevs of a definition, by the controller that their port hangs on (the virtual switch)."""

    def __init__(self, xml: str) -> None:
        self.root = ET.fromstring(xml)
        self.devices = self.root.find("devices")
        assert self.devices is not None, "a definition without devices"
        self.controllers = {
            int(c.attrib["index"]): c for c in self.devices.iterfind("controller") if c.attrib["type"] == "pci"
        }

    def hostdevs(self) -> list[ET.Element]:
        return [] if self.devices is None else self.devices.findall("hostdev")

    def switch_of(self, hostdev: ET.Element) -> int:
        """Index of the upstream port above, or of the root port where there is no switch."""
        port = self.controllers[number(address(hostdev), "bus")]
        return number(address(port), "bus") if port.attrib["model"] == "pcie-switch-downstream-port" else -1

    def by_switch(self) -> list[list[ET.Element]]:
        """Hostdevs of every switch, switches in the definition's order."""
        found: dict[int, list[ET.Element]] = {}
        for hostdev in self.hostdevs():
            found.setdefault(self.switch_of(hostdev), []).append(hostdev)
        return [devices for switch, devices in sorted(found.items()) if switch >= 0]

    def remove(self, hostdev: ET.Element) -> None:
        alias = hostdev.find("alias")
        override = self.root.find(f"{QEMU}override")
        if alias is not None and override is not None:
            for element in override.findall(f"{QEMU}device"):
                if element.attrib["alias"] == alias.attrib["name"]:
                    override.remove(element)
        if self.devices is not None:
            self.devices.remove(hostdev)


def address(element: ET.Element) -> ET.Element:
    found = element.find("address")
    assert found is not None, f"<{element.tag}> without an address"
    return found


def number(element: ET.Element, key: str) -> int:
    return int(element.attrib[key], 0)


def source_bdf(hostdev: ET.Element) -> str:
    """Host BDF of a hostdev."""
    source = hostdev.find("source/address")
    assert source is not None, "a hostdev without a source"
    where, bus, slot, function = (number(source, key) for key in ("domain", "bus", "slot", "function"))
    return f"{where:04x}:{bus:02x}:{slot:02x}.{function}"


def reduced(xml: str, name: str, gpus: set[str], nics: set[str]) -> Tree:
    """The same VM under another name with one GPU and one NIC of every switch; the ports of the others stay, empty."""
    tree = Tree(xml)
    keep: list[ET.Element] = []
    for devices in tree.by_switch():
        for wanted in (gpus, nics):
            keep += [device for device in devices if source_bdf(device) in wanted][:1]
    for hostdev in tree.hostdevs():
        if hostdev not in keep:
            tree.remove(hostdev)
    for tag, text in (("name", name), ("uuid", None)):
        element = tree.root.find(tag)
        assert element is not None, f"a definition without {tag}"
        if text is None:
            tree.root.remove(element)
        else:
            element.text = text
    return tree


def swap_two_nics(tree: Tree, nics: set[str]) -> list[str]:
    """The NICs of the first two switches change places."""
    first, second = (
        next(device for device in devices if source_bdf(device) in nics) for devices in tree.by_switch()[:2]
    )
    broken = sorted((source_bdf(first), source_bdf(second)))
    one, other = first.find("source/address"), second.find("source/address")
    assert one is not None and other is not None
    one.attrib, other.attrib = copy.copy(other.attrib), copy.copy(one.attrib)
    return broken


def move_below_wrong_switch(tree: Tree, nics: set[str]) -> list[str]:
    """The NIC of the first switch hangs on a free port of the second."""
    first, second = tree.by_switch()[:2]
    nic = next(device for device in first if source_bdf(device) in nics)
    switch = tree.switch_of(second[0])
    used = {number(address(device), "bus") for device in tree.hostdevs()}
    free = next(
        index
        for index, port in sorted(tree.controllers.items())
        if port.attrib["model"] == "pcie-switch-downstream-port"
        and number(address(port), "bus") == switch
        and index not in used
    )
    address(nic).set("bus", f"{free:#04x}")
    return [source_bdf(nic)]


def wrong_node(tree: Tree, nics: set[str]) -> list[str]:
    """The first host bridge claims the other NUMA node."""
    bridge = next(c for c in tree.controllers.values() if c.attrib["model"] == "pcie-expander-bus")
    node = bridge.find("target/node")
    assert node is not None, "a host bridge without a node"
    node.text = "0" if node.text == "1" else "1"
    return sorted(source_bdf(device) for device in tree.by_switch()[0])


@dataclass(frozen=True)
class Control:
    """One wrong VM.

    :param break_it: changes the tree and returns the host BDFs of the devices that are now at a wrong place.
    :param nodes: whether the NUMA node of those devices must differ too.
    """

    name: str
    title: str
    break_it: Callable[[Tree, set[str]], list[str]]
    nodes: bool


CONTROLS = (
    Control("control-swap", "two NICs swapped", swap_two_nics, nodes=False),
    Control("control-port", "one NIC below the wrong switch", move_below_wrong_switch, nodes=False),
    Control("control-node", "one host bridge on the wrong NUMA node", wrong_node, nodes=True),
)


def definition(control: Control, xml: str, gpus: set[str], nics: set[str]) -> tuple[str, list[str]]:
    """The wrong definition and the devices that it misplaces."""
    tree = reduced(xml, control.name, gpus, nics)
    broken = control.break_it(tree, nics)
    return ET.tostring(tree.root, encoding="unicode"), broken


def objection(control: Control, broken: list[str], result: Mapping[str, Any]) -> str:
    """Why this comparison did not flag the control for exactly what is wrong; empty when it did."""
    if result["equal"]:
        return "it was called equal"
    paths, nodes = result["path_differences"], result["node_differences"]
    if not paths:
        return "no path class differs"
    innocent = [f"{pair['a']}-{pair['b']}" for pair in paths if not {pair["a"], pair["b"]} & set(broken)]
    if innocent:
        return f"pairs without a misplaced device differ: {', '.join(innocent)}"
    seen = {bdf for pair in paths for bdf in (pair["a"], pair["b"])}
    if set(broken) - seen:
        return f"{', '.join(sorted(set(broken) - seen))} stays unnamed"
    wanted = broken if control.nodes else []
    found = sorted(item["bdf"] for item in nodes)
    if found != wanted:
        return f"NUMA nodes differ for {', '.join(found) or 'nothing'}, expected {', '.join(wanted) or 'nothing'}"
    return ""


def bdfs(topology_rows: str, ids: tuple[str, str]) -> set[str]:
    """BDFs of one kind of device from lines ``bdf vendor device``."""
    rows = [line.split() for line in topology_rows.splitlines()]
    found = {row[0] for row in rows if tuple(row[1:]) == ids}
    assert all(re.fullmatch(r"[0-9a-f]{4}:[0-9a-f]{2}:[0-9a-f]{2}\.[0-7]", bdf) for bdf in found), found
    return found
