# Copyright: the topovirt.kvm authors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""A register model over a recorded tree: the files of the configuration spaces hold the values, and a write changes the
bits that the PCI Express Base Specification lets a device change.

Switches of the emulated server have no ACS, so here they are given it, with what a real one has.
"""

from __future__ import annotations

import struct
from collections.abc import Collection, Mapping
from pathlib import Path

from tests.twin.mutations import functions

# As `lspci -vv` shows the downstream ports of a PEX 8725 (https://github.com/HeyMeco/Rockchip-pcie-devices/issues/6):
# all seven, egress control included. The size of the egress control vector (bits 15:8) is assumed.
SWITCH_ACS = 0x207F
KERNEL_ACS = 0x001D

_EXPRESS_ID, _AER_ID, _ACS_ID, _ATS_ID = 0x10, 0x0001, 0x000D, 0x000F
_DOWNSTREAM_PORT = 6
_EXTENDED, _ACS_AT = 0x100, 0x148

_ACS_CORRESPONDING = 0x7F  # bits of the control register that are writable where the capability has them
_ATS_WRITABLE = 0x801F  # enable, smallest translation unit
_DEVICE_CONTROL_WRITABLE = 0x7FFF


class OutOfPlace(Exception):
    """A write that is no register of the model's, or of another size."""


def give_switches_acs(tree: Path, supported: int = SWITCH_ACS, enabled: int = KERNEL_ACS) -> list[str]:
    """Put an ACS capability, behind one for error reporting, into every downstream port; returns their BDFs."""
    ports = []
    for bdf, path in functions(tree).items():
        data = bytearray((path / "config").read_bytes())
        express = _conventional(data).get(_EXPRESS_ID)
        if express is not None and data[express + 2] >> 4 == _DOWNSTREAM_PORT:
            struct.pack_into("<I", data, _EXTENDED, _AER_ID | 1 << 16 | _ACS_AT << 20)
            struct.pack_into("<IHH", data, _ACS_AT, _ACS_ID | 1 << 16, supported, enabled & supported)
            (path / "config").write_bytes(data)
            ports.append(bdf)
    return ports


class RegisterModel:
    """Stands behind the writes to configuration spaces.

    :param stuck: BDF -> bits that its registers keep as they are although the specification says otherwise.
    :param forbidden: BDFs whose registers the kernel does not let be written.
    """

    def __init__(self, stuck: Mapping[str, int] | None = None, forbidden: Collection[str] = ()) -> None:
        self.written: list[tuple[str, int, int]] = []  # BDF, offset, value
        self._stuck = stuck or {}
        self._forbidden = forbidden

    def write(self, path: Path, offset: int, data: bytes) -> None:
        """A write of two bytes to the register at ``offset``.

        :raises OutOfPlace: where the model has no register.
        :raises PermissionError: for a function that is forbidden.
        """
        bdf = path.parent.name
        if bdf in self._forbidden:
            raise PermissionError(1, "Operation not permitted")
        space = bytearray(path.read_bytes())
        registers = writable(space)
        if len(data) != 2 or offset not in registers:
            raise OutOfPlace(f"{bdf}: {data.hex()} at {offset:#x}")
        value = int.from_bytes(data, "little")
        self.written.append((bdf, offset, value))
        mask = registers[offset] & ~self._stuck.get(bdf, 0)
        old = int.from_bytes(space[offset : offset + 2], "little")
        struct.pack_into("<H", space, offset, (old & ~mask) | (value & mask))
        path.write_bytes(space)


def writable(space: bytes | bytearray) -> dict[int, int]:
    """Offset of each register that the model knows -> bits that a write changes."""
    found = {}
    express = _conventional(space).get(_EXPRESS_ID)
    if express is not None:
        found[express + 8] = _DEVICE_CONTROL_WRITABLE
    extended = _extended(space)
    if _ACS_ID in extended:
        at = extended[_ACS_ID]
        found[at + 6] = struct.unpack_from("<H", space, at + 4)[0] & _ACS_CORRESPONDING
    if _ATS_ID in extended:
        found[extended[_ATS_ID] + 6] = _ATS_WRITABLE
    return found


def _conventional(space: bytes | bytearray) -> dict[int, int]:
    """Id -> offset of the capabilities below byte 256."""
    found: dict[int, int] = {}
    at = space[0x34] if len(space) > 0x34 and space[6] & 0x10 else 0
    while at and at not in found.values():
        found.setdefault(space[at], at)
        at = space[at + 1]
    return found


def _extended(space: bytes | bytearray) -> dict[int, int]:
    """Id -> offset of the extended capabilities."""
    found: dict[int, int] = {}
    at = _EXTENDED if len(space) > _EXTENDED else 0
    while at and at not in found.values():
        header = struct.unpack_from("<I", space, at)[0]
        found.setdefault(header & 0xFFFF, at)
        at = header >> 20
    return found
