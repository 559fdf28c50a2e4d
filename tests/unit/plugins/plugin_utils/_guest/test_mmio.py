# Copyright: the topovirt.kvm authors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Windows and address widths. The layouts marked "booted" were seen: OVMF 2022.11 and SeaBIOS under QEMU 7.2, BARs of
pci-testdev."""

from __future__ import annotations

from typing import Any

import pytest
from ansible_collections.topovirt.kvm.plugins.module_utils._errors import TopovirtError
from ansible_collections.topovirt.kvm.plugins.plugin_utils._guest.mmio import (
    Mmio,
    address_space,
    ram_end,
    window_bytes,
)
from ansible_collections.topovirt.kvm.plugins.plugin_utils._guest.pcie_tree import build_tree
from ansible_collections.topovirt.kvm.plugins.plugin_utils._placement.plan import make_plan
from ansible_collections.topovirt.kvm.tests.unit.plugins.plugin_utils.hosts import GIB, host, request

TIB = 1 << 40
MIB = 1 << 20
GPUS = ["0000:23:00.0", "0000:24:00.0", "0000:53:00.0", "0000:54:00.0"]


def window(devices: list[str], mode: str = "mirror", uefi: bool = True, **bars: int) -> int:
    """Of the described host: each GPU has 256 GiB, 32 MiB and 16 MiB, unless ``bars`` gives one size by slot."""
    functions = {function["bdf"]: function for function in host()["pci"]}
    for bdf, size in bars.items():
        functions[f"0000:{bdf[1:]}:00.0"]["bars"] = [
            {"index": 0, "size_bytes": size, "is_64bit": True, "prefetchable": True}
        ]
    controllers, placed = build_tree(devices, functions, {0: 0, 1: 1}, mode)
    return window_bytes(controllers, placed, functions, uefi)


def test_the_root_bus_comes_first_and_costs_an_alignment() -> None:
    # Booted: a virtio device at the window's start, one BAR of 64 GiB at 64 GiB from there.
    assert window(GPUS[:1], b23=64 * GIB) == 128 * GIB
    assert window(GPUS[:1]) == 512 * GIB + 48 * MIB


def test_each_host_bridge_starts_at_its_own_alignment() -> None:
    # Booted: a second BAR of 64 GiB finds no room in 128 GiB, and finds it in 192.
    two = [GPUS[0], GPUS[2]]
    assert window(two, b23=64 * GIB, b53=64 * GIB) == 192 * GIB
    # Booted: 32 GiB at 32 GiB from the start, then 64 GiB.
    assert window(two, b23=32 * GIB, b53=64 * GIB) == 128 * GIB
    # Booted: what is smaller goes before what needs a larger alignment.
    assert window(two, b23=128 * GIB, b53=64 * GIB) == 256 * GIB
    # 256 GiB + 48 MiB from 256 GiB on, the next at 768 GiB.
    assert window(two) == TIB + 48 * MIB


def test_devices_of_one_switch_are_packed() -> None:
    # From 256 GiB on: one GPU, the next one 512 GiB later.
    assert window(GPUS[:2]) == TIB + 48 * MIB
    # Of different sizes, the larger first.
    assert window(GPUS[:2], b23=16 * GIB, b24=64 * GIB) == 144 * GIB


def test_flat_guests_have_one_bridge_only() -> None:
    assert window(GPUS[:1], "flat") == 256 * GIB + 49 * MIB
    assert window([GPUS[0], GPUS[2]], "flat", b23=64 * GIB, b53=32 * GIB) == 96 * GIB + MIB


def test_root_ports_of_a_bridge_are_packed() -> None:
    assert window(GPUS[:2], "root_port", b23=64 * GIB, b24=64 * GIB) == 192 * GIB


def test_narrow_bars_take_no_window() -> None:
    functions = {function["bdf"]: function for function in host()["pci"]}
    for bar in functions["0000:23:00.0"]["bars"]:
        bar["is_64bit"] = bar["index"] != 2
    controllers, placed = build_tree(["0000:23:00.0"], functions, {0: 0}, "flat")
    assert window_bytes(controllers, placed, functions, True) == 49 * MIB


def test_seabios_packs_all_bridges_in_whole_alignments() -> None:
    two = [GPUS[0], GPUS[2]]
    # Booted: both BARs of 64 GiB side by side, the larger first, the virtio device last.
    assert window(two, uefi=False, b23=64 * GIB, b53=64 * GIB) == 128 * GIB + MIB
    assert window(two, uefi=False, b23=32 * GIB, b53=64 * GIB) == 96 * GIB + MIB
    # 256 GiB + 48 MiB become 512 GiB at each root port.
    assert window(two, uefi=False) == TIB + MIB


@pytest.mark.parametrize(
    "memory,amd,end",
    [
        (GIB, False, 4 * GIB),
        (64 * GIB, False, 66 * GIB),
        (2 * TIB, False, 2 * TIB + 2 * GIB),
        (900 * GIB, True, 902 * GIB),
        (977 * GIB, True, 979 * GIB),
        (979 * GIB, True, TIB + 977 * GIB),  # with QEMU's own 32 GiB it would reach 1012 GiB
        (2 * TIB, True, 3 * TIB - 2 * GIB),
    ],
)
def test_where_ram_ends(memory: int, amd: bool, end: int) -> None:
    assert ram_end("vm", memory, amd, True) == end


def test_an_older_qemu_cannot_keep_clear_of_hypertransport() -> None:
    # Reserved from 0xfd00000000 on; the first 2 GiB of RAM lie below 4 GiB.
    assert ram_end("vm", 1010 * GIB, True, False) == 0xFD00000000
    assert ram_end("vm", 2 * TIB, False, False) == 2 * TIB + 2 * GIB
    with pytest.raises(TopovirtError, match="VM train-0: 1011 GiB of memory reach the addresses from 1012 GiB on"):
        ram_end("train-0", 1011 * GIB, True, False)


@pytest.mark.parametrize("qemu,clears", [("7.0.0", False), ("7.1.0", True), (None, True)])
def test_which_qemu_that_is(qemu: str | None, clears: bool) -> None:
    topology = host()
    topology["host"]["cpu_vendor"], topology["software"]["qemu"] = "AuthenticAMD", qemu
    wanted = [request("a", 8, memory="1100GiB")]
    if clears:
        assert make_plan(wanted, topology, [], "full_passthrough", "host")["vms"]
    else:
        with pytest.raises(TopovirtError, match=r"from version 7\.1 on"):
            make_plan(wanted, topology, [], "full_passthrough", "host")


def space(size: int, memory: int, uefi: bool, bits: int | None, **more: Any) -> Mmio:
    known = {"passthrough": True, "limitable": True, **more}
    return address_space("train-0", size, ram_end("vm", memory, False, True), uefi, bits, **known)


@pytest.mark.parametrize(
    "memory,size,uefi,expected",
    [
        (64 * GIB, 512 * GIB, False, 40),
        (2 * TIB, 4 * TIB, False, 43),  # from 4 TiB on
        (64 * GIB, 512 * GIB, True, 42),  # one eighth of 4 TiB
        (64 * GIB, 513 * GIB, True, 43),
        (64 * GIB, 8 * TIB, True, 46),
        (900 * GIB, GIB, False, 40),
        (900 * GIB, GIB, True, 40),  # RAM reaches into the upper eighth of 1 TiB, but there are 32 GiB behind it
        (1000 * GIB, 40 * GIB, True, 41),
    ],
)
def test_needed_bits(memory: int, size: int, uefi: bool, expected: int) -> None:
    found = space(size, memory, uefi, 52)
    assert (found["needed_bits"], found["firmware_window_mib"]) == (expected, None)


@pytest.mark.parametrize(
    "host_bits,limitable,limit,bits",
    [
        (52, True, 46, 46),
        (48, True, 46, 46),
        (52, False, None, 52),
        (46, True, None, 46),
        (45, True, None, 45),
        (None, True, None, None),
    ],
)
def test_width_of_the_guest(host_bits: int | None, limitable: bool, limit: int | None, bits: int | None) -> None:
    found = space(TIB, 64 * GIB, True, host_bits, limitable=limitable)
    assert (found["limit"], found["phys_bits"]) == (limit, bits)


@pytest.mark.parametrize(
    "memory,size,bits,passthrough,mib",
    [
        (64 * GIB, 128 * GIB, 40, True, None),  # an eighth of 1 TiB
        (64 * GIB, 192 * GIB, 40, True, 196608),  # booted with 192 GiB, and without: two BARs of 64 GiB
        (64 * GIB, 9 * TIB, 52, True, 9 << 20),  # more than an eighth of 46 bits
        (64 * GIB, 128 * GIB, 52, False, 131072),  # 40 bits, which OVMF may not believe
        (64 * GIB, 32 * GIB, 52, False, None),  # its default
        (64 * GIB, 128 * GIB + 1, 52, False, 129 << 10),
    ],
)
def test_the_firmware_is_told_only_where_it_must_be(
    memory: int, size: int, bits: int, passthrough: bool, mib: int | None
) -> None:
    assert space(size, memory, True, bits, passthrough=passthrough)["firmware_window_mib"] == mib
    assert space(size, memory, False, 52)["firmware_window_mib"] is None


@pytest.mark.parametrize(
    "memory,size,uefi,bits,passthrough,told",
    [
        (2 * TIB, 4 * TIB, False, 42, True, "need 43 address bits, this host offers 42"),
        (64 * GIB, 17 * TIB, True, 52, True, "need more than 46 address bits, this host offers 46"),
        (60 * TIB, 8 * TIB, True, 52, True, "need more than 46 address bits, this host offers 46"),
        (512 * GIB, 512 * GIB, True, 52, False, "need 41 address bits, this host (with libvirt before 8.7) offers 40"),
        (64 * GIB, 512 * GIB, True, 39, True, "need 40 address bits, this host offers 39"),
    ],
)
def test_what_does_not_fit_is_refused(
    memory: int, size: int, uefi: bool, bits: int, passthrough: bool, told: str
) -> None:
    with pytest.raises(TopovirtError) as refusal:
        space(size, memory, uefi, bits, passthrough=passthrough)
    assert told in refusal.value.message
    assert f"VM train-0: RAM up to {(memory >> 30) + 2} GiB and a window of {size >> 30} GiB" in refusal.value.message
