# Copyright: the topovirt.kvm authors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""The guest's PCIe tree: the host's host bridges, root ports and switches, as far as the VM has devices below them.

Mode ``mirror``: one expander bus (pxb-pcie) per host bridge, a root port per host root port, upstream and downstream
ports per host switch level. So every pair of devices has the same path class in the guest as on the host.
Mode ``root_port``: the same expander buses, and below them a root port per device, with the speed and width of the
device's link on the host, which emulated switches cannot show. Devices of one switch become PHB.
Mode ``flat``: a root port per device on the root bus; no NUMA nodes, every pair is PHB.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import TypedDict

from ansible_collections.topovirt.kvm.plugins.module_utils._errors import TopovirtError
from ansible_collections.topovirt.kvm.plugins.module_utils._topology.model import PciFunction

MODES = ("mirror", "root_port", "flat")

# Slots of pcie.0 for expander buses and root ports: virtio devices lie below, the chipset's own functions (slot 0x1f)
# above.
FIRST_SLOT, LAST_SLOT = 0x08, 0x1E
# All expander buses share the 256 bus numbers of one PCI domain; the root complex's own ports come first.
FIRST_BUS, BUSES = 0x20, 0x100
SLOTS, FUNCTIONS = 32, 8
# Names of QEMU's PCIELinkSpeed and PCIELinkWidth; GT/s and lanes.
LINK_SPEEDS = {2.5: "2_5", 5.0: "5", 8.0: "8", 16.0: "16", 32.0: "32", 64.0: "64"}
LINK_WIDTHS = (1, 2, 4, 8, 12, 16, 32)

_MODELS = {
    "root_port": "pcie-root-port",
    "upstream_port": "pcie-switch-upstream-port",
    "downstream_port": "pcie-switch-downstream-port",
}


class PortLink(TypedDict):
    """What a root port says of its link."""

    speed: str | None  # one of LINK_SPEEDS; None: QEMU's default
    width: str | None


class Controller(TypedDict):
    """A PCI controller of the guest."""

    index: int  # libvirt's; addresses of what is below name it
    model: str
    parent: int  # index of the controller above; 0 is the root complex
    slot: int
    function: int
    bus: int  # number of the bus below it
    node: int | None  # guest cell, expander buses only
    host: str  # host bridge or BDF of the host port that it mirrors
    guest_bdf: str
    multifunction: bool  # first of several functions of its slot
    link: PortLink | None  # mode root_port only


class GuestDevice(TypedDict):
    """A passed-through function in the guest."""

    bdf: str  # on the host
    controller: int
    slot: int
    function: int
    multifunction: bool  # first of several functions of its slot
    guest_bdf: str


@dataclass
class _Port:
    """A port to build; children and devices in host order."""

    host: str
    kind: str
    ports: dict[str, _Port] = field(default_factory=dict)
    devices: list[str] = field(default_factory=list)
    link: PortLink | None = None

    def buses(self) -> int:
        """Bus numbers that the port and all below it need."""
        return 1 + sum(port.buses() for port in self.ports.values())


def _chain(bdf: str, functions: Mapping[str, PciFunction]) -> list[PciFunction]:
    """The ports from the root port down to the one above a device.

    :raises TopovirtError: when the guest cannot mirror them.
    """
    chain: list[PciFunction] = []
    parent = functions[bdf]["parent"]
    while parent is not None:
        chain.insert(0, functions[parent])
        parent = functions[parent]["parent"]
    kinds = [port["kind"] for port in chain]
    levels = (len(kinds) - 1) // 2
    if kinds and kinds != ["root_port", *["upstream_port", "downstream_port"] * levels]:
        above = ", ".join(f"{port['bdf']} ({port['kind']})" for port in chain)
        raise TopovirtError(
            f"Device {bdf} is below {above}; a guest can only have a root port and below it switches with an upstream "
            "port and downstream ports each.",
            "Do not pass this device through.",
        )
    return chain


def _link(bdf: str, functions: Mapping[str, PciFunction]) -> PortLink:
    """The link of a device on the host: the slower speed and the lesser width of its two ends, as far as known."""
    above = functions[bdf]["parent"]
    ends = [functions[bdf]["link"], *([functions[above]["link"]] if above is not None else [])]
    speed = min((end["max_gtps"] for end in ends if end["max_gtps"] in LINK_SPEEDS), default=None)
    width = min((end["max_width"] for end in ends if end["max_width"] in LINK_WIDTHS), default=None)
    return PortLink(
        speed=None if speed is None else LINK_SPEEDS[speed],
        width=None if width is None else str(width),
    )


def _port_of_its_own(bdf: str, root: _Port) -> _Port:
    """The root port below ``root`` for all functions of a device."""
    slot = bdf.rpartition(".")[0]
    return root.ports.setdefault(slot, _Port(slot, "root_port"))


def _grow(devices: Sequence[str], functions: Mapping[str, PciFunction], mode: str) -> dict[str, _Port]:
    """Host bridge -> tree of ports. First seen in host order, so that guest order is host order."""
    bridges: dict[str, _Port] = {}
    for bdf in devices:
        function = functions[bdf]
        bridge = "" if mode == "flat" else function["host_bridge"]
        port = bridges.setdefault(bridge, _Port(bridge, "host_bridge"))
        chain = _chain(bdf, functions) if mode == "mirror" else []
        for step in chain:
            port = port.ports.setdefault(step["bdf"], _Port(step["bdf"], step["kind"]))
        if not chain:
            # Also for a device of the root complex itself: GPUs fail on a root bus.
            port = _port_of_its_own(bdf, port)
        if mode == "root_port" and not port.devices:
            port.link = _link(bdf, functions)
        port.devices.append(bdf)
    return bridges


class _Builder:
    def __init__(self) -> None:
        self.controllers: list[Controller] = []
        self.devices: list[GuestDevice] = []

    def place(
        self,
        port: _Port,
        model: str,
        parent: int,
        slot: int,
        bus: int,
        number: int,
        node: int | None = None,
        function: int = 0,
        multifunction: bool = False,
    ) -> int:
        """Add a port on bus ``bus``, opening bus ``number``, and all below it; returns the next free bus number."""
        if slot >= SLOTS:
            raise TopovirtError(f"More than {SLOTS} ports or devices are needed below one bus (host {port.host}).")
        index = len(self.controllers) + 1
        self.controllers.append(
            Controller(
                index=index,
                model=model,
                parent=parent,
                slot=slot,
                function=function,
                bus=number,
                node=node,
                host=port.host,
                guest_bdf=f"0000:{bus:02x}:{slot:02x}.{function}",
                multifunction=multifunction,
                link=port.link,
            )
        )
        if len(port.devices) > FUNCTIONS:
            raise TopovirtError(
                f"{len(port.devices)} functions below host port {port.host} were asked for one VM; a guest's slot has "
                f"{FUNCTIONS}.",
                "Ask for fewer functions of that device.",
            )
        for place, bdf in enumerate(port.devices):
            self.devices.append(
                GuestDevice(
                    bdf=bdf,
                    controller=index,
                    slot=0,
                    function=place,
                    multifunction=place == 0 and len(port.devices) > 1,
                    guest_bdf=f"0000:{number:02x}:00.{place}",
                )
            )
        following = number + 1
        for child_slot, child in enumerate(port.ports.values()):
            following = self.place(child, _MODELS[child.kind], index, child_slot, number, following)
        return following

    def place_flat(self, ports: Sequence[_Port]) -> None:
        """Add root ports on the root bus: a slot each, or several functions of a slot where slots are too few."""
        slots = LAST_SLOT - FIRST_SLOT + 1
        each = -(-len(ports) // slots)
        if each > FUNCTIONS:
            raise TopovirtError(
                f"The VM has {len(ports)} devices; a flat guest has room for {slots * FUNCTIONS}.",
                "Ask for fewer devices.",
            )
        following = 1
        for position, port in enumerate(ports):
            slot, function = divmod(position, each)
            several = function == 0 and each > 1 and position + 1 < len(ports)
            following = self.place(
                port, "pcie-root-port", 0, FIRST_SLOT + slot, 0, following, function=function, multifunction=several
            )


def bus_numbers(needs: Sequence[int]) -> list[int]:
    """The number of each expander bus: evenly spaced, each with the room that the devices below it need.

    A gap that is too small would lose devices without any message.

    :param needs: bus numbers needed by each expander bus, its own included.
    :raises TopovirtError: when 256 numbers are not enough.
    """
    first = FIRST_BUS if sum(needs) <= BUSES - FIRST_BUS else 1
    spare = BUSES - first - sum(needs)
    if spare < 0:
        raise TopovirtError(
            f"The VM's PCIe tree needs {sum(needs)} bus numbers, a guest has {BUSES - 1}.", "Ask for fewer devices."
        )
    numbers: list[int] = []
    following = first
    for need in needs:
        numbers.append(following)
        following += need + spare // len(needs)
    return numbers


def build_tree(
    devices: Sequence[str],
    functions: Mapping[str, PciFunction],
    cell_of_node: Mapping[int, int],
    mode: str = "mirror",
) -> tuple[list[Controller], list[GuestDevice]]:
    """The controllers and device addresses of a guest.

    :param devices: BDFs in host order.
    :param functions: the host's PCI functions by BDF.
    :param cell_of_node: host NUMA node -> guest cell; a host bridge of another node gets none.
    :param mode: one of MODES.
    :raises TopovirtError: when the guest cannot mirror the host's tree, or has no room for it.
    """
    bridges = _grow(devices, functions, mode)
    builder = _Builder()
    if mode == "flat":
        builder.place_flat([port for bridge in bridges.values() for port in bridge.ports.values()])
        return builder.controllers, builder.devices
    if len(bridges) > LAST_SLOT - FIRST_SLOT + 1:
        raise TopovirtError(f"The VM's devices lie below {len(bridges)} host bridges; a guest can have 23.")
    numbers = bus_numbers([bridge.buses() for bridge in bridges.values()])
    for position, (bridge, number) in enumerate(zip(bridges.values(), numbers, strict=True)):
        nodes = [functions[bdf]["numa_node"] for bdf in devices if functions[bdf]["host_bridge"] == bridge.host]
        known = next((node for node in nodes if node is not None), None)
        cell = cell_of_node.get(known) if known is not None else None
        builder.place(bridge, "pcie-expander-bus", 0, FIRST_SLOT + position, 0, number, cell)
    return builder.controllers, builder.devices
