# Copyright: the topovirt.kvm authors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Capabilities from configuration spaces that are made here, register by register."""

from __future__ import annotations

from pathlib import Path

import pytest
from ansible_collections.topovirt.kvm.plugins.module_utils._topology.config_space import needed_bytes, read_config
from ansible_collections.topovirt.kvm.plugins.module_utils._topology.sysfs import Tree

from tests.unit.plugins.module_utils._topology.machine import (
    DOWNSTREAM,
    ENDPOINT,
    config_space,
)

SERIAL = b"\x03\x00\x01\x11" + b"\x11\x22\x33\x44\x55\x66\x77\x88"  # next capability at 0x110
SECRET = SERIAL[4:]


def space(port_type: int, *capabilities: tuple[int, bytes], header: int = 0) -> bytearray:
    """A function with extended capabilities at the given offsets, in this order; the first has to be at 0x100."""
    data = bytearray(config_space("10de", "2335", header, port_type))
    following = [*(offset for offset, _body in capabilities[1:]), 0][: len(capabilities)]
    for (offset, body), after in zip(capabilities, following, strict=True):
        data[offset : offset + len(body)] = body
        data[offset + 2 : offset + 4] = (after << 4 | 1).to_bytes(2, "little")
    return data


def words(*values: int) -> bytes:
    return b"".join(value.to_bytes(4, "little") for value in values)


@pytest.fixture
def tree(tmp_path: Path) -> Tree:
    return Tree(tmp_path)


def test_access_control_of_a_bridge(tmp_path: Path, tree: Tree) -> None:
    (tmp_path / "config").write_bytes(space(DOWNSTREAM, (0x100, words(0x0D, 0x001D_005F)), header=1))
    config = read_config(tree, ".", express=True)
    assert (config.is_bridge, config.port_kind, config.reason) == (True, "downstream_port", None)
    assert config.capabilities == {"acs": {"supported": 0x5F, "enabled": 0x1D}}


def test_a_bridge_without_access_control(tmp_path: Path, tree: Tree) -> None:
    (tmp_path / "config").write_bytes(space(DOWNSTREAM, header=1))
    assert read_config(tree, ".", express=True).capabilities == {}


@pytest.mark.parametrize(("control", "enabled"), [(0x0000, False), (0x8000, True), (0x001F, False)])
def test_address_translation_behind_another_capability(tmp_path: Path, tree: Tree, control: int, enabled: bool) -> None:
    data = space(ENDPOINT, (0x100, SERIAL), (0x110, words(0x0F, control << 16 | 0x20)))
    (tmp_path / "config").write_bytes(data)
    assert read_config(tree, ".", express=True).capabilities == {
        "ats": {"enabled": enabled},
        "max_read_request_bytes": 512,
    }


def test_resizable_bars(tmp_path: Path, tree: Tree) -> None:
    # BAR 0 has 1 and 2 MiB; BAR 2 has 64 GiB (2**36, bit 16) and, in the control register, 256 TiB (2**48, bit 28).
    body = words(0x15, 0b11 << 4, 2 << 5, 1 << 20, 1 << 16 | 2)
    (tmp_path / "config").write_bytes(space(ENDPOINT, (0x100, body)))
    capabilities = read_config(tree, ".", express=True).capabilities
    assert capabilities is not None
    assert capabilities["resizable_bars"] == {"0": 0b11, "2": 1 << 16 | 1 << 28}


@pytest.mark.parametrize(("code", "size"), [(0, 128), (5, 4096), (6, None), (7, None)])
def test_read_requests(tmp_path: Path, tree: Tree, code: int, size: int | None) -> None:
    data = space(ENDPOINT)
    data[0x69] = code << 4
    (tmp_path / "config").write_bytes(data)
    capabilities = read_config(tree, ".", express=True).capabilities
    assert capabilities is not None
    assert capabilities.get("max_read_request_bytes") == size


def endless(data: bytearray) -> bytearray:
    data[0x100:0x104] = (0x0B | 1 << 16 | 0x100 << 20).to_bytes(4, "little")
    return data


def endless_list(data: bytearray) -> bytearray:
    data[0x60:0x62] = b"\x05\x60"
    return data


def no_answer_beyond(data: bytearray) -> bytearray:
    data[0x100:0x104] = b"\xff" * 4
    return data


@pytest.mark.parametrize(
    ("data", "reason"),
    [
        (space(ENDPOINT)[:64], "only the header"),
        (space(ENDPOINT)[:256], "extended configuration space is not accessible"),
        (space(ENDPOINT)[:10], "cannot be read"),
        (b"", "cannot be read"),
        (b"\xff" * 4096, "does not answer"),
        (endless(space(ENDPOINT)), "extended capabilities has no end"),
        (endless_list(space(ENDPOINT)), "capabilities has no end"),
        (no_answer_beyond(space(ENDPOINT)), "does not answer"),
    ],
)
def test_what_cannot_be_read_is_unknown_and_not_absent(tmp_path: Path, tree: Tree, data: bytes, reason: str) -> None:
    (tmp_path / "config").write_bytes(data)
    config = read_config(tree, ".", express=True)
    assert config.capabilities is None
    assert config.reason is not None
    assert reason in config.reason


def test_a_conventional_function_has_no_extended_space(tmp_path: Path, tree: Tree) -> None:
    (tmp_path / "config").write_bytes(space(ENDPOINT)[:256])
    config = read_config(tree, ".", express=False)
    assert (config.capabilities, config.reason) == ({"max_read_request_bytes": 512}, None)


def test_what_a_capture_keeps_reads_the_same_and_has_no_serial_number(tmp_path: Path, tree: Tree) -> None:
    data = space(ENDPOINT, (0x100, SERIAL), (0x110, words(0x0F, 0x8000_0020)))
    assert SECRET in data
    (tmp_path / "config").write_bytes(data)
    before = read_config(tree, ".", express=True)
    image = needed_bytes(tree, ".", express=True)
    assert image is not None
    assert SECRET not in image
    (tmp_path / "config").write_bytes(image)
    assert read_config(tree, ".", express=True) == before
