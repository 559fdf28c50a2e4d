# Copyright: the topovirt.kvm authors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Reads a domain definition as a guest's firmware and kernel would meet it. Shares no code with what emits it."""

from __future__ import annotations

import xml.etree.ElementTree as ET
from dataclasses import dataclass, field


@dataclass
class Spot:
    """A PCI function of the guest: a port or a passed-through device."""

    bdf: str
    model: str
    above: list[str] = field(default_factory=list)  # models and guest addresses from the expander bus down
    expander: int = 0  # its controller index
    cell: int | None = None


class Guest:
    """What the definition makes of the PCI bus.

    Buses are numbered as firmware does it: depth first, ports of a bus in slot order, one number for each port.
    """

    def __init__(self, xml: str) -> None:
        root = ET.fromstring(xml)
        devices = root.find("devices")
        assert devices is not None
        self.controllers: dict[int, ET.Element] = {}
        self.taken: set[tuple[int, int, int]] = set()
        self.children: dict[int, list[tuple[int, int, ET.Element]]] = {}
        for element in devices:
            address = element.find("./address[@type='pci']")
            if element.tag == "controller" and element.get("type") == "pci":
                index = int(element.get("index", ""))
                assert index not in self.controllers, f"controller index {index} twice"
                self.controllers[index] = element
            if address is None:
                continue
            bus, slot, function = (int(address.get(key, "0"), 0) for key in ("bus", "slot", "function"))
            assert (bus, slot, function) not in self.taken, f"address {bus}:{slot}.{function} twice"
            self.taken.add((bus, slot, function))
            self.children.setdefault(bus, []).append((slot, function, element))
        self.hostdevs: dict[str, Spot] = {}  # host BDF -> place in the guest
        self.ports: dict[str, Spot] = {}  # guest BDF -> port
        self.bus_ranges: list[tuple[int, int]] = []  # of expander buses: first and last number used
        self._walk()

    def _walk(self) -> None:
        expanders = []
        for _slot, _function, element in self.children.get(0, []):
            if element.get("model") == "pcie-expander-bus":
                target = element.find("target")
                assert target is not None
                expanders.append((int(target.get("busNr", "")), element, target.findtext("node")))
        # The root bus first: its root ports have the lowest numbers, the paravirtual devices none.
        ports = [item for item in self.children.get(0, []) if item[2].get("model") == "pcie-root-port"]
        if ports:
            self.children[0] = ports
            self._bus(0, 0, 0, [], 0, None)
        for number, element, node in sorted(expanders, key=lambda item: item[0]):
            index = int(element.get("index", ""))
            last = self._bus(index, number, number, [], index, None if node is None else int(node))
            self.bus_ranges.append((number, last))

    def _bus(self, index: int, number: int, last: int, above: list[str], expander: int, cell: int | None) -> int:
        """Visit everything on bus ``number``, which controller ``index`` opens; returns the last number used."""
        model = self.controllers[index].get("model")
        for slot, function, element in sorted(self.children.get(index, []), key=lambda item: item[:2]):
            many = ("pcie-root", "pcie-expander-bus", "pcie-switch-upstream-port")
            assert model in many or slot == 0, "one slot below a port"
            bdf = f"0000:{number:02x}:{slot:02x}.{function}"
            kind = element.get("model") or element.tag
            assert kind in {
                "pcie-root": {"pcie-root-port"},
                "pcie-expander-bus": {"pcie-root-port"},
                "pcie-root-port": {"pcie-switch-upstream-port", "hostdev"},
                "pcie-switch-upstream-port": {"pcie-switch-downstream-port"},
                "pcie-switch-downstream-port": {"pcie-switch-upstream-port", "hostdev"},
            }.get(model or "", set()), f"{kind} below {model}"
            spot = Spot(bdf, kind, list(above), expander, cell)
            if element.tag == "hostdev":
                source = element.find("source/address")
                assert source is not None
                parts = [int(source.get(key, ""), 0) for key in ("domain", "bus", "slot", "function")]
                self.hostdevs["{:04x}:{:02x}:{:02x}.{:x}".format(*parts)] = spot
            else:
                self.ports[bdf] = spot
                child = int(element.get("index", ""))
                last = self._bus(child, last + 1, last + 1, [*above, f"{kind} {bdf}"], expander, cell)
        return last

    def path_class(self, a: str, b: str) -> str:
        """Path class of two host BDFs inside the guest, as nvidia-smi defines it."""
        if a == b:
            return "LOC"
        first, second = self.hostdevs[a], self.hostdevs[b]
        if first.expander != second.expander:
            return "NODE" if first.cell is not None and first.cell == second.cell else "SYS"
        if first.above[0] != second.above[0]:
            return "PHB"
        if first.above == second.above:
            return "PIX"  # functions of one slot
        switches = [{port for port in spot.above if "upstream" in port} for spot in (first, second)]
        # Switches that only one of them passes, and the one at which they meet.
        return "PIX" if len(switches[0] ^ switches[1]) == 0 else "PXB"
