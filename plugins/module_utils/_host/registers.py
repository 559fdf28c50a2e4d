# Copyright: the topovirt.kvm authors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Registers of 16 bits in PCI functions' configuration spaces: found by their capability, written, read back."""

from __future__ import annotations

import contextlib
import os
from pathlib import Path
from typing import Callable, Dict, Iterator, NamedTuple, Optional

from ansible_collections.topovirt.kvm.plugins.module_utils._errors import TopovirtError
from ansible_collections.topovirt.kvm.plugins.module_utils._topology.config_space import (
    ACS,
    ACS_CONTROL,
    ATS,
    ATS_CONTROL,
    ATS_ENABLE,
    DEVICE_CONTROL,
    READ_REQUEST_FIELD,
    Offsets,
    Unreadable,
    find_capabilities,
)
from ansible_collections.topovirt.kvm.plugins.module_utils._topology.pci import DEVICES

# Bits of the ACS capability and of its control register (PCI Express Base Specification, "Access Control Services").
# Above the seventh the two registers do not correspond.
ACS_BITS = 0x7F
ACS_DIRECT_TRANSLATED = 0x40


class Kind(NamedTuple):
    """A register that is written here."""

    capability: Optional[int]  # id of its extended capability, None for PCI Express
    offset: int  # from the capability on
    field: int  # the bits that are ever changed; the others are the kernel's


REGISTERS: Dict[str, Kind] = {
    "acs_control": Kind(ACS, ACS_CONTROL, ACS_BITS),
    "ats_control": Kind(ATS, ATS_CONTROL, ATS_ENABLE),
    "device_control": Kind(None, DEVICE_CONTROL, READ_REQUEST_FIELD),
}

# (file of a configuration space, offset, bytes); raises OSError.
WriteConfig = Callable[[Path, int, bytes], None]


def write_config(path: Path, offset: int, data: bytes) -> None:
    """Write to a configuration space: one access of the size of ``data``."""
    descriptor = os.open(path, os.O_WRONLY | os.O_CLOEXEC)
    try:
        os.pwrite(descriptor, data, offset)
    finally:
        os.close(descriptor)


class Registers:
    """The registers of the functions below ``root``.

    :param write: writes to a configuration space.
    :param write_attribute: writes a sysfs attribute.
    """

    def __init__(self, root: Path, write: WriteConfig, write_attribute: Callable[[Path, str], None]) -> None:
        self._root = root
        self._write = write
        self._write_attribute = write_attribute
        self._offsets: Dict[str, Offsets] = {}

    def capability(self, bdf: str, name: str) -> int:
        """Where the capability begins that the register called ``name`` (one of REGISTERS) belongs to.

        :raises TopovirtError: when the function has no such register, or does not let it be known.
        """
        if bdf not in self._offsets:
            try:
                self._offsets[bdf] = find_capabilities(lambda offset, size: self._bytes(bdf, offset, size))
            except (Unreadable, OSError) as error:
                raise TopovirtError(f"{bdf}: its registers are unknown: {error}.", "Nothing was written.") from None
        found, wanted = self._offsets[bdf], REGISTERS[name].capability
        offset = found.express if wanted is None else found.extended.get(wanted)
        if offset is None:
            raise TopovirtError(f"{bdf} has no register {name}.", "Its firmware or the hardware changed: plan anew.")
        return offset

    def offset(self, bdf: str, name: str) -> int:
        """Where a register is.

        :raises TopovirtError: as ``capability`` does.
        """
        return self.capability(bdf, name) + REGISTERS[name].offset

    def read(self, bdf: str, name: str) -> int:
        """What a register holds.

        :raises TopovirtError: also when the function does not answer.
        """
        return self.word(bdf, self.offset(bdf, name))

    def word(self, bdf: str, offset: int) -> int:
        """Two bytes of a configuration space.

        :raises TopovirtError: when they cannot be read.
        """
        try:
            data = self._bytes(bdf, offset, 2)
        except OSError as error:
            raise TopovirtError(f"{bdf}: its configuration space cannot be read: {error.strerror}.") from None
        if len(data) < 2:
            raise TopovirtError(f"{bdf}: its configuration space ends before offset {offset:#05x}.")
        return int.from_bytes(data, "little")

    def write(self, bdf: str, name: str, value: int) -> None:
        """Write a whole register and read it back.

        :raises TopovirtError: when the kernel refuses, or the register does not hold ``value`` afterwards.
        """
        offset = self.offset(bdf, name)
        with self._awake(bdf):
            try:
                self._write(self._file(bdf), offset, value.to_bytes(2, "little"))
            except OSError as error:
                raise TopovirtError(
                    f"{bdf}: the kernel refused {value:#06x} for {name} at {offset:#05x}: {error.strerror}.",
                    "A kernel under lockdown refuses every write to configuration spaces.",
                ) from None
            found = self.word(bdf, offset)
        if found != value:
            raise TopovirtError(
                f"{bdf}: {name} at {offset:#05x} was written as {value:#06x} and reads back as {found:#06x}.",
                "The device does not let this register be set so; leave it out or ask its maker.",
            )

    @contextlib.contextmanager
    def _awake(self, bdf: str) -> Iterator[None]:
        """Keep a function in D0. Asleep it takes writes too, but waking it puts back what was saved before."""
        control = self._root / DEVICES / bdf / "power/control"
        automatic = control.is_file() and control.read_text(encoding="ascii").strip() == "auto"
        try:
            if automatic:
                self._write_attribute(control, "on")
            try:
                yield
            finally:
                if automatic:
                    self._write_attribute(control, "auto")
        except OSError as error:
            raise TopovirtError(f"{bdf}: the kernel cannot wake it: {error.strerror}.", "dmesg may say why.") from None

    def _bytes(self, bdf: str, offset: int, size: int) -> bytes:
        descriptor = os.open(self._file(bdf), os.O_RDONLY | os.O_CLOEXEC)
        try:
            return os.pread(descriptor, size, offset)
        finally:
            os.close(descriptor)

    def _file(self, bdf: str) -> Path:
        return self._root / DEVICES / bdf / "config"
