# Copyright: the topovirt.kvm authors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""How much guest-physical address space the devices' memory windows take, and whether firmware finds room for them."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import NamedTuple, TypedDict

from ansible_collections.topovirt.kvm.plugins.module_utils._errors import TopovirtError
from ansible_collections.topovirt.kvm.plugins.module_utils._topology.model import PciFunction
from ansible_collections.topovirt.kvm.plugins.plugin_utils._guest.pcie_tree import Controller, GuestDevice

GIB = 1 << 30

# OVMF (edk2, OvmfPkg/Library/PlatformInitLib/MemDetect.c, PlatformDynamicMmioWindow): 64-bit BARs go to the upper 1/8
# of the address space, which it takes as at most 46 bits wide, if RAM ends below that. Otherwise they go behind RAM,
# into 32 GiB or what opt/ovmf/X-PciMmio64Mb says (at most 16 TiB), naturally aligned (PlatformGetFirstNonAddress).
UEFI_WINDOW_SHIFT = 3
UEFI_MAX_BITS = 46
UEFI_DEFAULT_WINDOW = 32 * GIB
UEFI_MAX_HINT = 1 << 44
# What a guest has without <maxphysaddr>: QEMU's default. OVMF does not believe it on Intel CPUs, so a window of the
# upper 1/8 is not relied on then.
DEFAULT_BITS = 40
# No x86-64 CPU has fewer.
_LEAST_BITS = 36
# q35 keeps RAM out of the upper 2 GiB below 4 GiB; what is displaced continues above (QEMU, hw/i386/pc_q35.c).
_LOW_RAM, _FOUR_GIB = 2 * GIB, 4 * GIB
# QEMU moves RAM above 4 GiB to 1 TiB on AMD CPUs when RAM and its own 32 GiB window would reach HyperTransport's
# reserved addresses (hw/i386/pc.c, pc_max_used_gpa). Linux maps no DMA there, so without that vfio-pci stops the VM.
_HYPERTRANSPORT, _ABOVE_HYPERTRANSPORT, _QEMU_WINDOW = 1012 * GIB, 1024 * GIB, 32 * GIB
# Windows of bridges are whole MiB (PCI-to-PCI Bridge Architecture Specification).
_BRIDGE_GRANULARITY = 1 << 20


class Mmio(TypedDict):
    """Address space arithmetic of one VM."""

    window_bytes: int  # 64-bit window for all BARs
    needed_bits: int
    phys_bits: int | None  # what the guest's CPUs will have; None when the host's width is unknown
    limit: int | None  # for <maxphysaddr>, None when the host's width is taken as it is
    firmware_window_mib: int | None  # for opt/ovmf/X-PciMmio64Mb, None when the firmware sizes its window itself


class _Aperture(NamedTuple):
    """A range of addresses and its alignment; both in bytes, 0 when nothing is needed."""

    size: int
    alignment: int


# What the paravirtual devices on the root bus need, 16 KiB each, and more.
_PARAVIRTUAL = _Aperture(1 << 20, 1 << 20)


def _align(address: int, alignment: int) -> int:
    return -(-address // alignment) * alignment if alignment else address


def _pack(parts: Iterable[_Aperture]) -> _Aperture:
    """Ranges one after the other, largest alignment first, as firmware lays out a bus (edk2, PciResourceSupport.c)."""
    ordered = sorted((part for part in parts if part.size), key=lambda part: -part.alignment)
    end = 0
    for part in ordered:
        end = _align(end, part.alignment) + part.size
    return _Aperture(end, ordered[0].alignment if ordered else 0)


def _below(
    index: int,
    controllers: Sequence[Controller],
    devices: Sequence[GuestDevice],
    functions: Mapping[str, PciFunction],
    uefi: bool,
) -> _Aperture:
    """The 64-bit prefetchable window of a controller's bus."""
    parts = [
        _Aperture(region["size_bytes"], region["size_bytes"])
        for device in devices
        if device["controller"] == index
        for region in functions[device["bdf"]]["bars"]
        if region["is_64bit"] and region["prefetchable"]
    ]
    # Expander buses are host bridges of their own: beside the root bus, not below it.
    parts += [
        _below(controller["index"], controllers, devices, functions, uefi)
        for controller in controllers
        if controller["parent"] == index and controller["model"] != "pcie-expander-bus"
    ]
    if index == 0:
        parts.append(_PARAVIRTUAL)
    size, alignment = _pack(parts)
    # SeaBIOS gives every bridge a multiple of its alignment (src/fw/pciinit.c, pci_bios_check_devices).
    return _Aperture(_align(size, _BRIDGE_GRANULARITY if uefi else max(alignment, _BRIDGE_GRANULARITY)), alignment)


def window_bytes(
    controllers: Sequence[Controller],
    devices: Sequence[GuestDevice],
    functions: Mapping[str, PciFunction],
    uefi: bool,
) -> int:
    """What the host bridges' windows take from an aligned start.

    With OVMF each bridge, the root bus first, then the expander buses, gets the lowest free place (edk2,
    PciHostBridge.c). SeaBIOS packs all of them like the ports of one bus.
    """
    expanders = [controller["index"] for controller in controllers if controller["model"] == "pcie-expander-bus"]
    bridges = [_below(index, controllers, devices, functions, uefi) for index in expanders]
    root = _below(0, controllers, devices, functions, uefi)
    if not uefi:
        return _pack([*bridges, root]).size
    taken = [(0, root.size)]
    for bridge in bridges:
        places = [0, *(_align(end, bridge.alignment) for _start, end in taken)]
        free = [place for place in places if all(place >= end or place + bridge.size <= start for start, end in taken)]
        taken.append((min(free), min(free) + bridge.size))
    return max(end for _start, end in taken)


def ram_end(name: str, memory_bytes: int, amd: bool, clears_hypertransport: bool) -> int:
    """The address behind the guest's RAM.

    :param name: of the VM, for messages.
    :param clears_hypertransport: whether QEMU keeps RAM clear of addresses that AMD's HyperTransport has.
    :raises TopovirtError: when it does not and the RAM would lie there.
    """
    above = max(0, memory_bytes - _LOW_RAM)
    if amd and not clears_hypertransport and _FOUR_GIB + above > _HYPERTRANSPORT:
        raise TopovirtError(
            f"VM {name}: {memory_bytes >> 30} GiB of memory reach the addresses from {_HYPERTRANSPORT >> 30} GiB on, "
            "which AMD hosts keep from DMA; QEMU leaves them out from version 7.1 on, and this host's is older.",
            "Ask for less memory, or install a newer QEMU.",
        )
    if amd and clears_hypertransport and _align(_FOUR_GIB + above, GIB) + _QEMU_WINDOW > _HYPERTRANSPORT:
        return _ABOVE_HYPERTRANSPORT + above
    return _FOUR_GIB + above


def _behind_ram(bits: int, end_of_ram: int, window: int) -> bool:
    """Whether a window of that size fits behind RAM, aligned to the largest power of two in it."""
    natural = 1 << max(window, GIB).bit_length() - 1
    return _align(end_of_ram, natural) + window <= 1 << bits


def _by_itself(bits: int, end_of_ram: int, window: int) -> bool:
    """Whether OVMF finds the room without being told."""
    space = 1 << min(bits, UEFI_MAX_BITS)
    upper = space >> UEFI_WINDOW_SHIFT
    if upper > UEFI_DEFAULT_WINDOW and _align(end_of_ram, UEFI_DEFAULT_WINDOW) + upper < space:
        return window <= upper
    return window <= UEFI_DEFAULT_WINDOW and _behind_ram(bits, end_of_ram, UEFI_DEFAULT_WINDOW)


def _told(bits: int, end_of_ram: int, window: int) -> bool:
    """Whether OVMF finds the room when it is told the size of the window."""
    return window <= UEFI_MAX_HINT and _behind_ram(min(bits, UEFI_MAX_BITS), end_of_ram, _align(window, GIB))


def address_space(
    name: str, window: int, end_of_ram: int, uefi: bool, host_bits: int | None, passthrough: bool, limitable: bool
) -> Mmio:
    """Whether RAM and BARs fit the address width, which width the guest gets and what its firmware must be told.

    :param end_of_ram: see :func:`ram_end`.
    :param host_bits: address width of the host's CPUs, None when unknown.
    :param passthrough: whether libvirt can give the guest the host's width.
    :param limitable: whether libvirt can give it fewer bits than the host's.
    :raises TopovirtError: when the guest's CPUs (or the firmware) have too few address bits.
    """
    own = host_bits if passthrough else min(host_bits or DEFAULT_BITS, DEFAULT_BITS)
    usable = min(own or UEFI_MAX_BITS, UEFI_MAX_BITS) if uefi else own
    told = uefi and not (passthrough and _by_itself(usable or UEFI_MAX_BITS, end_of_ram, window))
    told = told and window > UEFI_DEFAULT_WINDOW
    fits = _told if told else _by_itself if uefi else _behind_ram
    widths = range(_LEAST_BITS, UEFI_MAX_BITS + 1 if uefi else 64)
    needed = next((width for width in widths if fits(width, end_of_ram, window)), widths.stop)
    if usable is not None and needed > usable:
        raise TopovirtError(
            f"VM {name}: RAM up to {-(-end_of_ram // GIB)} GiB and a window of {-(-window // GIB)} GiB for the "
            f"devices' BARs need {needed if needed in widths else f'more than {widths.stop - 1}'} address bits, this "
            f"host{'' if passthrough else ' (with libvirt before 8.7)'} offers {usable}.",
            "Ask for fewer GPUs or less memory in one VM.",
        )
    # Wider guests gain nothing and meet firmware and page-table limits of their own, so the width is made plain.
    limited = passthrough and limitable and own is not None and own > UEFI_MAX_BITS >= needed
    limit = UEFI_MAX_BITS if limited else None
    return Mmio(
        window_bytes=window,
        needed_bits=needed,
        phys_bits=limit or own,
        limit=limit,
        firmware_window_mib=_align(window, GIB) >> 20 if told else None,
    )
