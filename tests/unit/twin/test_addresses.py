# Copyright: the topovirt.kvm authors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Addresses of the reference machine, against what a booted server showed (`lspci -t`, iommu_group links)."""

from __future__ import annotations

from tests.twin import addresses
from tests.twin.description import load

MACHINE = load("hgx-h200")
BY_ID = {function.id: function for function in addresses.functions(MACHINE)}


def test_endpoints_appear_where_firmware_puts_them() -> None:
    found = {name: BY_ID[name].bdf for name in ("gpu0", "gpu7", "nic1", "nvme1", "nvsw3", "igb0", "igb1", "rootdisk")}
    assert found == {
        "gpu0": "0000:23:00.0",
        "gpu7": "0000:c4:00.0",
        "nic1": "0000:26:00.0",
        "nvme1": "0000:57:00.0",
        "nvsw3": "0000:28:00.3",
        "igb0": "0000:29:00.0",
        "igb1": "0000:c8:00.0",
        "rootdisk": "0000:00:01.0",
    }


def test_bridges_know_the_buses_below() -> None:
    port, switch = BY_ID["rp0x0"], BY_ID["up0x0"]
    assert (port.bdf, port.secondary, port.subordinate) == ("0000:20:00.0", 0x21, 0x27)
    assert (switch.bdf, switch.secondary, switch.subordinate) == ("0000:21:00.0", 0x22, 0x27)
    assert BY_ID[str(BY_ID["gpu1"].parent)].bdf == "0000:22:01.0"


def test_wiring_is_the_published_order_and_not_the_index() -> None:
    assert addresses.module_ids(MACHINE) == {
        "0000:23:00.0": 2,
        "0000:24:00.0": 4,
        "0000:53:00.0": 1,
        "0000:54:00.0": 3,
        "0000:93:00.0": 7,
        "0000:94:00.0": 5,
        "0000:c3:00.0": 6,
        "0000:c4:00.0": 8,
    }


def test_iommu_groups_as_linux_numbers_them() -> None:
    groups = addresses.iommu_groups(MACHINE)
    assert {groups[f"0000:28:00.{function}"] for function in range(4)} == {39}, "the NVSwitches share one group"
    assert groups["0000:28:00.0"] != groups["0000:20:01.0"], "a root port has ACS"
    assert groups["0000:23:00.0"] == groups["0000:22:00.0"] == 34, "a downstream port has none"
    assert (groups["0000:c0:00.0"], groups["0000:c8:00.0"], groups["0000:29:00.0"]) == (7, 15, 40)
    assert len(set(groups.values())) == 41
