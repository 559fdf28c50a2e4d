# Copyright: the topovirt.kvm authors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
from __future__ import annotations

import pytest
from ansible_collections.topovirt.kvm.plugins.module_utils._errors import TopovirtError
from ansible_collections.topovirt.kvm.plugins.plugin_utils._guest.mmio import address_space, window_bytes
from ansible_collections.topovirt.kvm.plugins.plugin_utils._guest.pcie_tree import build_tree
from ansible_collections.topovirt.kvm.tests.unit.plugins.plugin_utils.hosts import GIB, host

TIB = 1 << 40


def window(devices: list[str]) -> int:
    functions = {function["bdf"]: function for function in host()["pci"]}
    controllers, placed = build_tree(devices, functions, {0: 0, 1: 1})
    return window_bytes(controllers, placed, functions)


def test_window_of_one_gpu_is_rounded_to_a_power_of_two() -> None:
    # 256 GiB + 32 MiB + 16 MiB behind one root port.
    assert window(["0000:23:00.0"]) == 512 * GIB


def test_devices_of_one_switch_share_a_root_port() -> None:
    assert window(["0000:23:00.0", "0000:24:00.0", "0000:25:00.0"]) == TIB
    assert window(["0000:23:00.0", "0000:53:00.0"]) == TIB
    assert window(["0000:23:00.0", "0000:24:00.0", "0000:53:00.0", "0000:54:00.0"]) == 2 * TIB


def test_narrow_bars_take_no_window() -> None:
    functions = {function["bdf"]: function for function in host()["pci"]}
    for bar in functions["0000:23:00.0"]["bars"]:
        bar["is_64bit"] = bar["index"] != 2
    controllers, placed = build_tree(["0000:23:00.0"], functions, {0: 0})
    assert window_bytes(controllers, placed, functions) == 64 << 20


@pytest.mark.parametrize(
    "memory,size,uefi,expected",
    [
        (64 * GIB, 512 * GIB, False, 40),
        (2 * TIB, 4 * TIB, False, 43),  # more than 6 TiB with the hole below 4 GiB
        (64 * GIB, 512 * GIB, True, 42),  # one eighth of 4 TiB
        (64 * GIB, 8 * TIB, True, 46),
        (2 * GIB, 0, True, 33),
        (900 * GIB, GIB, False, 40),
        (900 * GIB, GIB, True, 41),  # RAM reaches into the upper eighth of 1 TiB
    ],
)
def test_needed_bits(memory: int, size: int, uefi: bool, expected: int) -> None:
    assert address_space("vm", size, memory, uefi, 52)["needed_bits"] == expected


@pytest.mark.parametrize(
    "host_bits,limit,bits", [(52, 46, 46), (48, 46, 46), (46, None, 46), (45, None, 45), (None, None, None)]
)
def test_width_of_the_guest(host_bits: int | None, limit: int | None, bits: int | None) -> None:
    space = address_space("vm", TIB, 64 * GIB, True, host_bits)
    assert (space["limit"], space["phys_bits"]) == (limit, bits)


def test_what_does_not_fit_is_refused() -> None:
    with pytest.raises(TopovirtError) as refusal:
        address_space("train-0", 4 * TIB, 2 * TIB, False, 42)
    assert "VM train-0: 2048 GiB of memory" in refusal.value.message
    assert "need 43 address bits, this host offers 42" in refusal.value.message


def test_firmware_has_its_own_limit() -> None:
    with pytest.raises(TopovirtError, match="need 47 address bits, this host offers 46"):
        address_space("vm", 16 * TIB, 64 * GIB, True, 52)
    assert address_space("vm", 16 * TIB, 64 * GIB, False, 52)["limit"] == 46
