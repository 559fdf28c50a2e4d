# Copyright: the topovirt.kvm authors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Judge of a booted guest: its kernel's /sys beside the host's, function by function and pair by pair.

Shares no code with what emits the guest or reads topologies: it takes the kernel's own links and numbers.
"""

from __future__ import annotations

import os
import re
from collections.abc import Mapping
from dataclasses import dataclass
from itertools import combinations, pairwise, takewhile
from pathlib import Path

_BDF = re.compile(r"[0-9a-f]{4}:[0-9a-f]{2}:[0-9a-f]{2}\.[0-7]")
# Flags and lines of a resource file (include/linux/ioport.h; drivers/pci/pci-sysfs.c): six BARs, the ROM, and of
# bridges the windows.
_MEMORY, _UNSET = 0x200, 0x20000000
_BARS, _WINDOWS = range(6), range(7, 17)


@dataclass(frozen=True)
class Region:
    """Addresses of a BAR or of a bridge's window; ``end`` is the last one."""

    start: int
    end: int
    flags: int

    @property
    def size(self) -> int:
        return self.end - self.start + 1

    @property
    def placed(self) -> bool:
        return self.start > 0 and not self.flags & _UNSET

    def holds(self, other: Region) -> bool:
        return self.start <= other.start and other.end <= self.end


class Kernel:
    """The PCI functions of one kernel, from a copy of its /sys."""

    def __init__(self, root: Path) -> None:
        self._devices = root / "sys/bus/pci/devices"

    def functions(self) -> set[str]:
        return set(os.listdir(self._devices))

    def above(self, bdf: str) -> tuple[str, list[str]]:
        """The root bus, and the ports from it down to the one above the function."""
        _before, _slash, path = os.readlink(self._devices / bdf).partition("/pci")
        bus, *ports = path.split("/")
        return bus, [port for port in ports[:-1] if _BDF.fullmatch(port)]

    def text(self, bdf: str, name: str) -> str:
        return (self._devices / bdf / name).read_text(encoding="ascii").strip()

    def node(self, bdf: str) -> int:
        return int(self.text(bdf, "numa_node"))

    def ids(self, bdf: str) -> str:
        return f"{self.text(bdf, 'vendor')}:{self.text(bdf, 'device')}"

    def regions(self, bdf: str, lines: range) -> dict[int, Region]:
        """Memory regions by line of the resource file, for as many lines as it has."""
        found = {}
        for index, line in enumerate(self.text(bdf, "resource").splitlines()):
            start, end, flags = (int(word, 16) for word in line.split())
            if index in lines and flags & _MEMORY and end > start:
                found[index] = Region(start, end, flags)
        return found

    def path_class(self, a: str, b: str) -> str:
        """Class of two different functions, as ``nvidia-smi topo -m`` defines them.

        On PCI Express every second port below a root port is an upstream port, so a switch is a pair of steps.
        """
        (bus_a, ports_a), (bus_b, ports_b) = self.above(a), self.above(b)
        if bus_a != bus_b:
            return "NODE" if self.node(a) == self.node(b) >= 0 else "SYS"
        shared = sum(1 for _port in takewhile(lambda pair: pair[0] == pair[1], zip(ports_a, ports_b, strict=False)))
        if shared == 0:
            return "PHB"
        if shared % 2 == 1:  # below one root port or downstream port: functions of one slot, or one above the other
            crossed = abs(len(ports_a) - len(ports_b)) // 2
        else:  # they part inside a switch
            crossed = 1 + (len(ports_a) - shared - 1) // 2 + (len(ports_b) - shared - 1) // 2
        return "PIX" if crossed <= 1 else "PXB"


@dataclass(frozen=True)
class Findings:
    """What is in the guest, and what is not as it should be; every list empty when all is well."""

    devices: int  # passed through
    pairs: int
    bars: int
    lost: list[str]
    paths: list[str]
    nodes: list[str]
    wrong_bars: list[str]
    classes: dict[str, int]  # path class -> pairs, in the guest
    address_bits: int  # that the highest BAR takes

    @property
    def faults(self) -> list[str]:
        return [*self.lost, *self.paths, *self.nodes, *self.wrong_bars]


def judge(host: Kernel, guest: Kernel, identity: Mapping[str, str | None], nodes: Mapping[int, int]) -> Findings:
    """Hold a guest against its host.

    :param identity: host BDF -> guest BDF of what was passed through; ``None`` where nobody can say.
    :param nodes: host node -> guest node.
    """
    there = guest.functions()
    found = {bdf: name for bdf, name in identity.items() if name in there and host.ids(bdf) == guest.ids(name)}
    lost = [f"{bdf} is not in the guest" for bdf in identity if bdf not in found]
    paths, classes = [], dict.fromkeys(("PIX", "PXB", "PHB", "NODE", "SYS"), 0)
    for a, b in combinations(sorted(found), 2):
        on_host, in_guest = host.path_class(a, b), guest.path_class(found[a], found[b])
        classes[in_guest] += 1
        if on_host != in_guest:
            paths.append(f"{a} to {b} is {in_guest} in the guest, {on_host} on the host")
    # The kernel says -1 of a function whose node the guest does not have.
    wrong_nodes = [
        f"{bdf} is on guest node {guest.node(name)}, expected {nodes.get(host.node(bdf), -1)}"
        for bdf, name in found.items()
        if guest.node(name) != nodes.get(host.node(bdf), -1)
    ]
    count, wrong_bars, bits = _bars(host, guest, found)
    pairs = len(identity) * (len(identity) - 1) // 2
    return Findings(len(identity), pairs, count, lost, paths, wrong_nodes, wrong_bars, classes, bits)


def _bars(host: Kernel, guest: Kernel, found: Mapping[str, str]) -> tuple[int, list[str], int]:
    """How many BARs there are to place, what is wrong with them, and the address bits of the highest."""
    count, wrong = 0, []
    placed: list[tuple[Region, str]] = []
    for bdf, name in found.items():
        in_guest = guest.regions(name, _BARS)
        for index, wanted in host.regions(bdf, _BARS).items():
            count += 1
            what = f"BAR {index} of {bdf}"
            region = in_guest.get(index)
            if region is None or region.size != wanted.size:
                has = "missing" if region is None else f"{region.size:#x} bytes"
                wrong.append(f"{what} is {has} in the guest, {wanted.size:#x} bytes on the host")
            elif not region.placed:
                wrong.append(f"{what} ({wanted.size:#x} bytes) has no address in the guest")
            else:
                placed.append((region, what))
                outside = [port for port in guest.above(name)[1] if not _window_holds(guest, port, region)]
                wrong += [f"{what} lies outside the windows of port {port}" for port in outside]
    placed.sort(key=lambda item: item[0].start)
    for (one, what), (other, whose) in pairwise(placed):
        if one.end >= other.start:
            wrong.append(f"{what} overlaps {whose}")
    return count, wrong, max((region.end.bit_length() for region, _what in placed), default=0)


def _window_holds(guest: Kernel, port: str, region: Region) -> bool:
    return any(window.holds(region) for window in guest.regions(port, _WINDOWS).values())
