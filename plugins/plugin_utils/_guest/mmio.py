# Copyright: the topovirt.kvm authors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""How much guest-physical address space the devices' memory windows take."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TypedDict

from ansible_collections.topovirt.kvm.plugins.module_utils._errors import TopovirtError
from ansible_collections.topovirt.kvm.plugins.module_utils._topology.model import PciFunction
from ansible_collections.topovirt.kvm.plugins.plugin_utils._guest.pcie_tree import Controller, GuestDevice

# OVMF places 64-bit BARs in the upper 1/8 of the address space, which it takes as at most 46 bits wide, if RAM ends
# below that (edk2, OvmfPkg/Library/PlatformInitLib/MemDetect.c, PlatformDynamicMmioWindow).
UEFI_WINDOW_SHIFT = 3
UEFI_MAX_BITS = 46
# q35 keeps RAM out of up to 2 GiB below 4 GiB; what is displaced continues above.
LOW_HOLE_BYTES = 1 << 32


class Mmio(TypedDict):
    """Address space arithmetic of one VM."""

    window_bytes: int  # 64-bit window for all BARs
    needed_bits: int
    phys_bits: int | None  # what the guest's CPUs will have; None when the host's width is unknown
    limit: int | None  # for <maxphysaddr>, None when the host's width is taken as it is


def _power_of_two(size: int) -> int:
    return 1 << (size - 1).bit_length() if size else 0


def window_bytes(
    controllers: Sequence[Controller], devices: Sequence[GuestDevice], functions: Mapping[str, PciFunction]
) -> int:
    """Sum over root ports of the 64-bit prefetchable BARs below them, each rounded up to a power of two."""
    above = {controller["index"]: controller for controller in controllers}
    below_port: dict[int, int] = {}
    for device in devices:
        port = above[device["controller"]]
        while port["model"] != "pcie-root-port":
            port = above[port["parent"]]
        bars = sum(
            region["size_bytes"]
            for region in functions[device["bdf"]]["bars"]
            if region["is_64bit"] and region["prefetchable"]
        )
        below_port[port["index"]] = below_port.get(port["index"], 0) + bars
    return sum(_power_of_two(size) for size in below_port.values())


def address_space(name: str, window: int, memory_bytes: int, uefi: bool, host_bits: int | None) -> Mmio:
    """Whether RAM and BARs fit the address width, and which width the guest gets.

    :raises TopovirtError: when the host's CPUs (or the firmware) have too few address bits.
    """
    needed = (memory_bytes + LOW_HOLE_BYTES + window - 1).bit_length()
    most = host_bits
    if uefi:
        while window > 1 << needed - UEFI_WINDOW_SHIFT or (
            memory_bytes + LOW_HOLE_BYTES > (1 << needed) - (1 << needed - UEFI_WINDOW_SHIFT)
        ):
            needed += 1
        most = min(host_bits or UEFI_MAX_BITS, UEFI_MAX_BITS)
    if most is not None and needed > most:
        raise TopovirtError(
            f"VM {name}: {memory_bytes >> 30} GiB of memory and a window of {window >> 30} GiB for the devices' BARs "
            f"need {needed} address bits, this host offers {most}.",
            "Ask for fewer GPUs or less memory in one VM.",
        )
    # Wider guests gain nothing and meet firmware and page-table limits of their own, so the width is made plain.
    limit = UEFI_MAX_BITS if host_bits is not None and host_bits > UEFI_MAX_BITS >= needed else None
    return Mmio(window_bytes=window, needed_bits=needed, phys_bits=limit or host_bits, limit=limit)
