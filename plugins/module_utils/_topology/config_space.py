# Copyright: the topovirt.kvm authors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""A PCI function's configuration space: what kind of port it is, and its capabilities.

Each dword read is an access to the device, so nothing is read that is not needed. Offsets and bits are those of the
PCI Local Bus Specification 3.0 (header, list of capabilities) and of the PCI Express Base Specification.
"""

from __future__ import annotations

import os
from typing import Callable, Dict, Iterator, NamedTuple, Optional, Tuple

from ansible_collections.topovirt.kvm.plugins.module_utils._topology.model import Acs, Ats, Capabilities
from ansible_collections.topovirt.kvm.plugins.module_utils._topology.sysfs import Tree

_HEADER_BYTES = 64
_STATUS, _STATUS_CAPABILITIES = 0x06, 0x10
_HEADER_TYPE, _HEADER_TYPE_MASK, _HEADER_BRIDGE = 0x0E, 0x7F, 1
_CAPABILITIES = 0x34
_MAX_CAPABILITIES = 48  # as many as fit between the header and byte 256

_EXPRESS = 0x10
DEVICE_CONTROL = 0x08  # from the PCI Express capability on
READ_REQUEST_FIELD = 0x7000
_READ_REQUEST_SHIFT, _READ_REQUEST_LEAST = 12, 128
_READ_REQUEST_CODES = 6  # 128 to 4096 bytes
_PORT_KINDS = {4: "root_port", 5: "upstream_port", 6: "downstream_port"}

_EXTENDED = 0x100
_MAX_EXTENDED = (4096 - _EXTENDED) // 8  # as Linux counts: a capability has at least eight bytes
ACS, ATS, _RESIZABLE_BAR = 0x000D, 0x000F, 0x0015
_ACS_CAPABILITY, ACS_CONTROL, ATS_CONTROL = 4, 6, 6  # from their capability on
ATS_ENABLE = 0x8000
_MAX_RESIZABLE_BARS = 6

SILENT = "the device does not answer to reads of its configuration space"
_HEADER_ONLY = "only the header of the configuration space is readable: root may read all of it"
_CONVENTIONAL_ONLY = "the extended configuration space is not accessible"
_UNREADABLE = "the configuration space cannot be read"


# Bytes from an offset on, as many as there are up to a size; may raise OSError.
Read = Callable[[int, int], bytes]


class Config(NamedTuple):
    """What a configuration space says."""

    is_bridge: Optional[bool]  # by the header's type
    port_kind: Optional[str]  # by the PCI Express capability; "bridge" for a bridge without one
    capabilities: Optional[Capabilities]
    reason: Optional[str]  # why capabilities are unknown


class Offsets(NamedTuple):
    """Where a function's capabilities begin."""

    express: Optional[int]  # of PCI Express
    extended: Dict[int, int]  # by id; of several of one id the first


class Unreadable(Exception):
    """A part of the space cannot be read; says why."""


# Sizes of read requests in bytes -> value of their field in the device control register.
READ_REQUESTS = {_READ_REQUEST_LEAST << code: code << _READ_REQUEST_SHIFT for code in range(_READ_REQUEST_CODES)}
_READ_REQUEST_SIZES = {field: size for size, field in READ_REQUESTS.items()}


def read_config(tree: Tree, path: str, express: bool) -> Config:
    """Read what is needed of the function whose directory is ``path``.

    :param express: whether it is a PCI Express function; others have no extended configuration space.
    """
    descriptor = tree.open(f"{path}/config")
    if descriptor is None:
        return Config(None, None, None, _UNREADABLE)
    try:
        return _parse(lambda offset, size: os.pread(descriptor, size, offset), express)
    finally:
        os.close(descriptor)


def needed_bytes(tree: Tree, path: str, express: bool) -> Optional[bytes]:
    """The configuration space with nothing in it but what ``read_config`` reads, so without the serial number
    capability; None when there is none."""
    descriptor = tree.open(f"{path}/config")
    if descriptor is None:
        return None
    image = bytearray()

    def read(offset: int, size: int) -> bytes:
        data = os.pread(descriptor, size, offset)
        image.extend(bytes(max(0, offset + len(data) - len(image))))
        image[offset : offset + len(data)] = data
        return data

    try:
        _parse(read, express)
    finally:
        os.close(descriptor)
    return bytes(image)


def find_capabilities(read: Read) -> Offsets:
    """Where the capabilities of a function are; one without PCI Express has no extended ones.

    :raises Unreadable: when a part of the lists cannot be read.
    :raises OSError: as ``read`` does.
    """
    header = read(0, _HEADER_BYTES)
    if len(header) < _HEADER_BYTES:
        raise Unreadable(_UNREADABLE)
    if header[0:2] == b"\xff\xff":
        raise Unreadable(SILENT)
    express, _flags = _find_express(read, header)
    extended: Dict[int, int] = {}
    if express is not None:
        for capability, offset in _extended_list(read):
            extended.setdefault(capability, offset)
    return Offsets(express, extended)


def _parse(read: Read, express: bool) -> Config:
    is_bridge: Optional[bool] = None
    kind: Optional[str] = None
    try:
        header = read(0, _HEADER_BYTES)
        if len(header) < _HEADER_BYTES:
            return Config(None, None, None, _UNREADABLE)
        if header[0:2] == b"\xff\xff":
            return Config(None, None, None, SILENT)
        is_bridge = header[_HEADER_TYPE] & _HEADER_TYPE_MASK == _HEADER_BRIDGE
        at, flags = _find_express(read, header)
        kind = "bridge" if at is None else _PORT_KINDS.get(flags >> 4, "bridge")
        found = Capabilities()
        if at is not None and not is_bridge:
            size = _READ_REQUEST_SIZES.get(_number(read, at + DEVICE_CONTROL, 2, _HEADER_ONLY) & READ_REQUEST_FIELD)
            if size is not None:
                found["max_read_request_bytes"] = size
        if express and at is not None:
            _extended(read, found, is_bridge)
        return Config(is_bridge, kind, found, None)
    except Unreadable as error:
        return Config(is_bridge, kind, None, str(error))
    except OSError:
        return Config(None, None, None, _UNREADABLE)


def _number(read: Read, offset: int, size: int, reason: str) -> int:
    data = read(offset, size)
    if len(data) < size:
        raise Unreadable(reason)
    return int.from_bytes(data, "little")


def _find_express(read: Read, header: bytes) -> Tuple[Optional[int], int]:
    """Offset and flags of the PCI Express capability."""
    offset = header[_CAPABILITIES] & 0xFC if header[_STATUS] & _STATUS_CAPABILITIES else 0
    for _step in range(_MAX_CAPABILITIES):
        if offset < _HEADER_BYTES:
            return None, 0
        word = _number(read, offset, 4, _HEADER_ONLY)
        if word & 0xFF == _EXPRESS:
            return offset, word >> 16 & 0xFF
        offset = word >> 8 & 0xFC
    raise Unreadable("its list of capabilities has no end")


def _extended(read: Read, found: Capabilities, is_bridge: bool) -> None:
    for capability, offset in _extended_list(read):
        if capability == ACS and is_bridge:
            word = _number(read, offset + _ACS_CAPABILITY, 4, _CONVENTIONAL_ONLY)
            found["acs"] = Acs(supported=word & 0xFFFF, enabled=word >> 16)
        elif capability == ATS and not is_bridge:
            found["ats"] = Ats(enabled=bool(_number(read, offset + ATS_CONTROL, 2, _CONVENTIONAL_ONLY) & ATS_ENABLE))
        elif capability == _RESIZABLE_BAR and not is_bridge:
            found["resizable_bars"] = _resizable(read, offset)


def _extended_list(read: Read) -> Iterator[Tuple[int, int]]:
    """Id and offset of each extended capability."""
    offset = _EXTENDED
    for _step in range(_MAX_EXTENDED):
        word = _number(read, offset, 4, _CONVENTIONAL_ONLY)
        if word == 0xFFFFFFFF:
            raise Unreadable(SILENT)
        yield word & 0xFFFF, offset
        offset = word >> 20 & 0xFFC
        if offset < _EXTENDED:
            return
    raise Unreadable("its list of extended capabilities has no end")


def _resizable(read: Read, offset: int) -> Dict[str, int]:
    """Index of each resizable BAR and the sizes it can have; those from 2**48 bytes on are in the control register."""
    result: Dict[str, int] = {}
    count = 1
    for number in range(_MAX_RESIZABLE_BARS):
        if number >= count:
            break
        sizes = _number(read, offset + 4 + 8 * number, 4, _CONVENTIONAL_ONLY)
        control = _number(read, offset + 8 + 8 * number, 4, _CONVENTIONAL_ONLY)
        if number == 0:
            count = control >> 5 & 7
        result[str(control & 7)] = sizes >> 4 | control >> 16 << 28
    return result
