# Copyright: the topovirt.kvm authors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""The PCI configuration space of an emulated endpoint: 4096 bytes with what a guest may write, and nothing else.

Register layouts are those of the PCI Express base specification and the PCI power management specification.
"""

from __future__ import annotations

import struct

from tests.twin.description import LINK_SPEED_CODES, Endpoint, Link

SIZE = 4096

COMMAND = 0x04
STATUS_CAPABILITIES_LIST = 0x0010
HEADER_TYPE = 0x0E
MULTIFUNCTION = 0x80
FIRST_BAR = 0x10
CAPABILITIES_POINTER = 0x34

# Bits of the command register that an endpoint without legacy interrupts implements: memory, bus master, SERR, INTx
# disable.
COMMAND_WRITABLE = 0x0506

BAR_64BIT_PREFETCHABLE = 0x0C

PM = 0x40
PM_CAPABILITY_ID = 0x01
PM_VERSION_1_2 = 0x0003
PM_CONTROL = PM + 4
PM_STATE_MASK = 0x0003
PM_NO_SOFT_RESET = 0x0008

EXPRESS = 0x60
EXPRESS_CAPABILITY_ID = 0x10
EXPRESS_VERSION_2_ENDPOINT = 0x0002
EXPRESS_DEVICE_CAPABILITIES = EXPRESS + 0x04
EXPRESS_DEVICE_CONTROL = EXPRESS + 0x08
EXPRESS_LINK_CAPABILITIES = EXPRESS + 0x0C
EXPRESS_LINK_CONTROL = EXPRESS + 0x10
EXPRESS_LINK_STATUS = EXPRESS + 0x12
EXPRESS_DEVICE_CONTROL_2 = EXPRESS + 0x28
EXPRESS_LINK_CAPABILITIES_2 = EXPRESS + 0x2C
EXPRESS_LINK_CONTROL_2 = EXPRESS + 0x30
PAYLOAD_256 = 0x0001
EXTENDED_TAG = 0x0020
ROLE_BASED_ERRORS = 0x8000
FLR_CAPABLE = 0x1000_0000
FLR_START = 0x8000
# Error reporting, relaxed ordering, payload, extended tag, no snoop, read request size.
DEVICE_CONTROL_WRITABLE = 0x7FFF
LINK_CONTROL_WRITABLE = 0x01FB
DEVICE_CONTROL_2_WRITABLE = 0x001F

EXTENDED = 0x100
SERIAL_CAPABILITY_ID = 0x0003
SERIAL_LENGTH = 12
ATS_CAPABILITY_ID = 0x000F
ATS_ENABLE = 0x8000
ATS_CONTROL_WRITABLE = 0x801F  # enable, smallest translation unit
ATS_PAGE_ALIGNED = 0x0020


class ConfigSpace:
    """One endpoint's configuration space.

    :param multifunction: whether the endpoint is one of several functions of its slot.
    """

    def __init__(self, endpoint: Endpoint, multifunction: bool = False) -> None:
        self._initial = bytearray(SIZE)
        self._writable = bytearray(SIZE)
        self._header(endpoint, multifunction)
        self._power_management()
        self._express(endpoint.kind.link, endpoint.kind.flr)
        self._extended(endpoint)
        self._now = bytearray(self._initial)

    def read(self, offset: int, length: int) -> bytes:
        """Bytes at ``offset``; what lies beyond the end reads as ones, as on a bus where nobody answers."""
        return bytes(self._now[offset : offset + length]).ljust(length, b"\xff")

    def write(self, offset: int, data: bytes) -> None:
        """Change the writable bits; starting a function level reset puts the initial values back."""
        for position, value in enumerate(data, offset):
            if position < SIZE:
                mask = self._writable[position]
                self._now[position] = (self._now[position] & ~mask & 0xFF) | (value & mask)
        control = int.from_bytes(self._now[EXPRESS_DEVICE_CONTROL : EXPRESS_DEVICE_CONTROL + 2], "little")
        if control & FLR_START:
            self.reset()

    def enable_ats(self) -> None:
        """What Linux writes to the control register of address translation, where there is one."""
        if self._ats:
            self.write(self._ats + 6, struct.pack("<H", ATS_ENABLE))

    def reset(self) -> None:
        """What power-on and function level reset do."""
        self._now[:] = self._initial

    def _put(self, offset: int, layout: str, value: int, writable: int = 0) -> None:
        struct.pack_into("<" + layout, self._initial, offset, value)
        struct.pack_into("<" + layout, self._writable, offset, writable)

    def _header(self, endpoint: Endpoint, multifunction: bool) -> None:
        kind = endpoint.kind
        self._put(0x00, "H", kind.vendor)
        self._put(0x02, "H", kind.device)
        self._put(COMMAND, "H", 0, COMMAND_WRITABLE)
        self._put(0x06, "H", STATUS_CAPABILITIES_LIST)
        self._put(0x08, "I", kind.class_code << 8 | kind.revision)
        self._put(0x0C, "B", 0, 0xFF)  # cache line size: no effect on PCI Express, but writable
        self._put(HEADER_TYPE, "B", MULTIFUNCTION if multifunction else 0)
        for index, size in kind.bars.items():
            # All ones written to the address bits read back as the size's complement: this is how sizes are probed.
            self._put(FIRST_BAR + 4 * index, "Q", BAR_64BIT_PREFETCHABLE, ~(size - 1) & 0xFFFF_FFFF_FFFF_FFF0)
        self._put(0x2C, "H", kind.subsystem_vendor)
        self._put(0x2E, "H", kind.subsystem_device)
        self._put(CAPABILITIES_POINTER, "B", PM)
        self._put(0x3C, "B", 0, 0xFF)  # interrupt line: a scratch register of the firmware; there is no interrupt pin

    def _power_management(self) -> None:
        self._put(PM, "B", PM_CAPABILITY_ID)
        self._put(PM + 1, "B", EXPRESS)
        self._put(PM + 2, "H", PM_VERSION_1_2)
        self._put(PM_CONTROL, "H", PM_NO_SOFT_RESET, PM_STATE_MASK)

    def _express(self, link: Link, flr: bool) -> None:
        speed = LINK_SPEED_CODES[link.gtps]
        self._put(EXPRESS, "B", EXPRESS_CAPABILITY_ID)
        self._put(EXPRESS + 2, "H", EXPRESS_VERSION_2_ENDPOINT)
        self._put(
            EXPRESS_DEVICE_CAPABILITIES,
            "I",
            PAYLOAD_256 | EXTENDED_TAG | ROLE_BASED_ERRORS | (FLR_CAPABLE if flr else 0),
        )
        self._put(EXPRESS_DEVICE_CONTROL, "H", 0x2810, DEVICE_CONTROL_WRITABLE | (FLR_START if flr else 0))
        self._put(EXPRESS_LINK_CAPABILITIES, "I", speed | link.width << 4)
        self._put(EXPRESS_LINK_CONTROL, "H", 0, LINK_CONTROL_WRITABLE)
        self._put(EXPRESS_LINK_STATUS, "H", speed | link.width << 4)
        self._put(EXPRESS_DEVICE_CONTROL_2, "H", 0, DEVICE_CONTROL_2_WRITABLE)
        self._put(
            EXPRESS_LINK_CAPABILITIES_2, "I", ((1 << speed) - 1) << 1
        )  # bit 1 is 2.5 GT/s: all speeds up to the maximum
        self._put(EXPRESS_LINK_CONTROL_2, "H", speed, 0x000F)

    def _extended(self, endpoint: Endpoint) -> None:
        self._ats = ats = EXTENDED + SERIAL_LENGTH + 4 if endpoint.kind.ats else 0
        self._put(EXTENDED, "I", SERIAL_CAPABILITY_ID | 1 << 16 | ats << 20)
        self._put(EXTENDED + 4, "Q", endpoint.serial)
        if ats:
            self._put(ats, "I", ATS_CAPABILITY_ID | 1 << 16)
            self._put(ats + 4, "H", ATS_PAGE_ALIGNED)
            self._put(ats + 6, "H", 0, ATS_CONTROL_WRITABLE)
