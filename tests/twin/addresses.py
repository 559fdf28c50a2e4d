# Copyright: the topovirt.kvm authors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Where every PCI function of an emulated server appears: the one place that knows addresses.

Slots are set by us (``qemu.py`` passes them on). Bus numbers are given by the firmware and kept by Linux: depth first,
in the order of slots, one number for the bus below each bridge. The comparison of the recorded tree with the booted
kernel (``agreement.py``) fails where this page and the firmware disagree.
"""

from __future__ import annotations

from dataclasses import dataclass

from tests.twin.description import Device, HostBridge, Machine, Slot, Switch

ROOT_BUS = 0
ROOT_DISK_SLOT = 1
FIRST_EXPANDER_SLOT = 2  # one pxb-pcie per host bridge, from here on
AMD_IOMMU = "amdvi"
AMD_IOMMU_SLOT = 0x1E  # AMD's IOMMU is a PCI function, Intel's is none
LPC_SLOT = 0x1F  # the south bridge of QEMU's q35 machine


@dataclass(frozen=True)
class Function:
    """One PCI function. ``id`` is its name on QEMU's command line."""

    id: str
    kind: str  # "platform", "expander", "root_port", "upstream_port", "downstream_port", "endpoint"
    bus: int
    slot: int
    function: int
    root_bus: int
    node: int | None
    parent: str | None  # id of the bridge above
    secondary: int | None = None  # of bridges: the bus below and the last bus below that
    subordinate: int | None = None
    device: Device | None = None

    @property
    def bdf(self) -> str:
        return f"0000:{self.bus:02x}:{self.slot:02x}.{self.function}"


def functions(machine: Machine) -> list[Function]:
    """Every PCI function of the machine, ascending by address."""
    result = [
        Function("mch", "platform", ROOT_BUS, 0, 0, ROOT_BUS, None, None),
        Function("rootdisk", "platform", ROOT_BUS, ROOT_DISK_SLOT, 0, ROOT_BUS, None, None),
        Function("lpc", "platform", ROOT_BUS, LPC_SLOT, 0, ROOT_BUS, None, None),
    ]
    if machine.iommu == "ivrs":
        result.append(Function(AMD_IOMMU, "platform", ROOT_BUS, AMD_IOMMU_SLOT, 0, ROOT_BUS, None, None))
    for index, bridge in enumerate(machine.host_bridges):
        slot = FIRST_EXPANDER_SLOT + index
        result.append(Function(f"pxb{index}", "expander", ROOT_BUS, slot, 0, ROOT_BUS, None, None))
        result.extend(_below(bridge, index))
    return sorted(result, key=lambda item: item.bdf)


def _below(bridge: HostBridge, index: int) -> list[Function]:
    result: list[Function] = []

    def add(name: str, kind: str, at: tuple[int, int, int], parent: str | None, **more: object) -> None:
        result.append(Function(name, kind, *at, bridge.bus, bridge.node, parent, **more))  # type: ignore[arg-type]

    def ports(
        kind: str, prefix: str, path: str, bus: int, below: tuple[Switch | Slot, ...], parent: str | None
    ) -> None:
        """The ports on ``bus``, which is numbered just before what is below them."""
        first = bus + 1
        for slot, port in enumerate(below):
            name = f"{prefix}{path}x{slot}"
            last = first + port.buses - 1
            add(name, kind, (bus, slot, 0), parent, secondary=first, subordinate=last)
            if isinstance(port, Slot):
                for number, device in enumerate(port.devices):
                    add(device.name, "endpoint", (first, 0, number), name, device=device)
            else:
                upstream = f"up{path}x{slot}"
                add(upstream, "upstream_port", (first, 0, 0), name, secondary=first + 1, subordinate=last)
                ports("downstream_port", "dn", f"{path}x{slot}", first + 1, port.ports, upstream)
            first = last + 1

    ports("root_port", "rp", str(index), bridge.bus, bridge.ports, None)
    return result


def module_ids(machine: Machine) -> dict[str, int]:
    """BDF -> module id of every endpoint that has one: the wiring of the baseboard."""
    result: dict[str, int] = {}
    for function in functions(machine):
        number = getattr(function.device, "module_id", None)
        if number is not None:
            result[function.bdf] = number
    return result


def iommu_groups(machine: Machine) -> dict[str, int]:
    """BDF -> IOMMU group as Linux numbers them; empty without an IOMMU.

    A group is what cannot be told apart on the bus (Linux, drivers/iommu/iommu.c, pci_device_group): a function has a
    group of its own where every port on its way up redirects peers by ACS, else it is in the group of the bridge above.
    QEMU's root ports have ACS, its downstream ports and the functions of one slot have not; an upstream port, being
    the only function of its slot, needs none. AMD's IOMMU is itself a function, and in no group. Linux numbers groups
    as it finds devices: the first root bus, then the expanders from the last to the first, all functions of a bus
    before the buses below.
    """
    if machine.iommu is None:
        return {}
    known = functions(machine)
    by_id = {function.id: function for function in known}
    result: dict[str, int] = {}
    count = 0

    def isolated(port: Function | None) -> bool:
        return port is None or (port.kind != "downstream_port" and isolated(by_id.get(port.parent or "")))

    def visit(bus: int) -> None:
        nonlocal count
        here = [function for function in known if function.bus == bus]
        for function in here:
            if function.id == AMD_IOMMU:
                continue
            above = by_id.get(function.parent or "")
            sibling = f"{function.bdf[:-1]}0"
            if above is not None and not isolated(above):
                result[function.bdf] = result[above.bdf]
            elif sibling in result:
                result[function.bdf] = result[sibling]
            else:
                result[function.bdf] = count
                count += 1
        for function in here:
            if function.secondary is not None:
                visit(function.secondary)

    for root in (ROOT_BUS, *(bridge.bus for bridge in reversed(machine.host_bridges))):
        visit(root)
    return result
