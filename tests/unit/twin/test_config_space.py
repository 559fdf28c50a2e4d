# Copyright: the topovirt.kvm authors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""The configuration space of an endpoint, read as a kernel reads it: by walking the capabilities."""

from __future__ import annotations

import struct

import pytest

from tests.twin.config_space import ConfigSpace
from tests.twin.description import Endpoint, load

ENDPOINTS = {endpoint.name: endpoint for endpoint in load("hgx-h200").endpoints()}


def u16(space: ConfigSpace, offset: int) -> int:
    return int(struct.unpack("<H", space.read(offset, 2))[0])


def u32(space: ConfigSpace, offset: int) -> int:
    return int(struct.unpack("<I", space.read(offset, 4))[0])


def capabilities(space: ConfigSpace) -> dict[int, int]:
    found = {}
    at = space.read(0x34, 1)[0]
    while at:
        found[space.read(at, 1)[0]] = at
        at = space.read(at + 1, 1)[0]
    return found


def extended(space: ConfigSpace) -> dict[int, int]:
    found = {}
    at = 0x100
    while at:
        head = u32(space, at)
        found[head & 0xFFFF] = at
        at = head >> 20
    return found


@pytest.fixture
def gpu() -> ConfigSpace:
    return ConfigSpace(ENDPOINTS["gpu0"])


def test_identity(gpu: ConfigSpace) -> None:
    assert (u16(gpu, 0), u16(gpu, 2), u32(gpu, 8)) == (0x10DE, 0x2335, 0x030200A1)
    assert (u16(gpu, 0x2C), u16(gpu, 0x2E)) == (0x10DE, 0x18BE)
    assert u16(gpu, 6) & 0x10, "the list of capabilities is announced"


def test_identity_cannot_be_written(gpu: ConfigSpace) -> None:
    before = gpu.read(0, 4)
    gpu.write(0, b"\xff" * 4)
    assert gpu.read(0, 4) == before


def test_bar_size_is_probed_by_writing_ones(gpu: ConfigSpace) -> None:
    assert u32(gpu, 0x18) & 0xF == 0xC, "64-bit, prefetchable memory"
    gpu.write(0x18, b"\xff" * 8)
    mask = struct.unpack("<Q", gpu.read(0x18, 8))[0] & ~0xF
    assert (~mask & (1 << 64) - 1) + 1 == 256 << 30
    gpu.write(0x18, struct.pack("<Q", 0x38C0_0000_0000))
    assert struct.unpack("<Q", gpu.read(0x18, 8))[0] == 0x38C0_0000_000C


def test_a_bar_that_is_not_there_stays_zero() -> None:
    nvswitch = ConfigSpace(ENDPOINTS["nvsw0"])
    nvswitch.write(0x18, b"\xff" * 4)
    assert u32(nvswitch, 0x18) == 0


def test_link(gpu: ConfigSpace) -> None:
    express = capabilities(gpu)[0x10]
    assert u16(gpu, express + 2) >> 4 & 0xF == 0, "an endpoint"
    assert u32(gpu, express + 0x0C) & 0x3FF == 5 | 16 << 4, "32 GT/s, 16 lanes"
    assert u16(gpu, express + 0x12) & 0x3FF == 5 | 16 << 4
    assert u32(gpu, express + 0x2C) == 0b111110, "all speeds up to 32 GT/s"


def test_power_state_is_kept(gpu: ConfigSpace) -> None:
    control = capabilities(gpu)[0x01] + 4
    gpu.write(control, b"\x03\x00")
    assert u16(gpu, control) & 3 == 3, "D3hot"
    gpu.write(control, b"\x00\x00")
    assert u16(gpu, control) & 3 == 0
    assert u16(gpu, control) & 8, "no soft reset: going through D3hot resets nothing"


def test_function_level_reset_restores_everything(gpu: ConfigSpace) -> None:
    express = capabilities(gpu)[0x10]
    assert u32(gpu, express + 4) >> 28 & 1, "the capability"
    before = gpu.read(0, 4096)
    gpu.write(4, b"\x06\x04")
    gpu.write(0x10, b"\xff" * 24)
    assert gpu.read(0, 4096) != before
    gpu.write(express + 8, struct.pack("<H", u16(gpu, express + 8) | 0x8000))
    assert gpu.read(0, 4096) == before


def test_serial_numbers_are_unique_and_ats_only_where_said() -> None:
    spaces = {name: ConfigSpace(endpoint) for name, endpoint in ENDPOINTS.items()}
    serials = {struct.unpack("<Q", space.read(extended(space)[3] + 4, 8))[0] for space in spaces.values()}
    assert len(serials) == len(spaces)
    with_ats = {name for name, space in spaces.items() if 0xF in extended(space)}
    assert with_ats == {f"nic{number}" for number in range(8)}


def test_ats_can_be_enabled() -> None:
    nic = ConfigSpace(ENDPOINTS["nic0"])
    control = extended(nic)[0xF] + 6
    nic.write(control, b"\x00\x80")
    assert u16(nic, control) == 0x8000


def test_several_functions_are_announced() -> None:
    endpoint: Endpoint = ENDPOINTS["nvsw0"]
    assert ConfigSpace(endpoint).read(0x0E, 1) == b"\x00"
    assert ConfigSpace(endpoint, multifunction=True).read(0x0E, 1) == b"\x80"


def test_beyond_the_end(gpu: ConfigSpace) -> None:
    assert gpu.read(4094, 4)[2:] == b"\xff\xff"
    gpu.write(4094, b"\0" * 8)
