# Copyright: the topovirt.kvm authors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""What the tests ask the emulated server, in commands of their own."""

from __future__ import annotations

from typing import Any
from xml.etree import ElementTree as ET

DRIVERS = (
    "for d in /sys/bus/pci/devices/*; do "
    "echo $(cat $d/vendor $d/device) $(basename $(readlink $d/driver || echo none)) $(basename $d); done"
)
GPU, NIC, NVSWITCH = ("0x10de", "0x2335"), ("0x15b3", "0x1021"), ("0x10de", "0x22a3")


def drivers(server: Any, ids: tuple[str, str]) -> dict[str, str]:
    """BDF -> driver of every function with these ids."""
    rows = [line.split() for line in server.check_output(DRIVERS).splitlines()]
    return {bdf: driver for vendor, device, driver, bdf in rows if (vendor, device) == ids}


def running(server: Any) -> list[str]:
    return sorted(server.check_output("virsh --quiet list --name").split())


def domain(server: Any, name: str) -> ET.Element:
    return ET.fromstring(server.check_output(f"virsh dumpxml {name}"))


def hostdevs(xml: ET.Element) -> set[str]:
    found = set()
    for address in xml.iterfind("devices/hostdev/source/address"):
        where, bus, slot, function = (int(address.attrib[key], 16) for key in ("domain", "bus", "slot", "function"))
        found.add(f"{where:04x}:{bus:02x}:{slot:02x}.{function}")
    return found
