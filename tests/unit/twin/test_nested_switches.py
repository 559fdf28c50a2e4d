# Copyright: the topovirt.kvm authors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Switches below switches. All expected values are read off this drawing by hand (bus numbers depth first)::

20:00.0 root -- 21:00.0 up -+- 22:00.0 down -- 23:00.0 up -+- 24:00.0 down -- 25:00.0 near
                            |                              +- 24:01.0 down -- 26:00.0 up -- 27:00.0 down -- 28:00.0 deep
                            +- 22:01.0 down -- 29:00.0 and 29:00.1, pair0 and pair1
                            +- 22:02.0 down -- 2a:00.0 last
20:01.0 root -- 2b:00.0 card
"""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import pytest
import yaml

from tests.twin import addresses, description, qemu, recorded
from tests.twin.description import Machine

DEEP = "0000:20:00.0/0000:21:00.0/0000:22:00.0/0000:23:00.0/0000:24:01.0/0000:26:00.0/0000:27:00.0/0000:28:00.0"


def nic(name: str) -> dict[str, str]:
    return {"endpoint": "cx7", "name": name}


@pytest.fixture
def data() -> Any:
    """The reference server with other slots."""
    result = yaml.safe_load((description.MACHINES / "hgx-h200.yml").read_text(encoding="utf-8"))
    inner = {"switch": [nic("near"), {"switch": [nic("deep")]}]}
    outer = {"switch": [inner, {"functions": [nic("pair0"), nic("pair1")]}, nic("last")]}
    card = {"functions": [{"igb": "card", "network": "management"}]}
    result["host_bridges"] = [{"bus": 0x20, "node": 0, "ports": [outer, card]}]
    return result


@pytest.fixture
def machine(data: Any) -> Machine:
    return description.parse(data)


def test_bus_numbers_are_given_depth_first(machine: Machine) -> None:
    found = {f.id: (f.bdf[5:], f.secondary, f.subordinate) for f in addresses.functions(machine) if f.root_bus}
    assert found == {
        "rp0x0": ("20:00.0", 0x21, 0x2A),
        "up0x0": ("21:00.0", 0x22, 0x2A),
        "dn0x0x0": ("22:00.0", 0x23, 0x28),
        "up0x0x0": ("23:00.0", 0x24, 0x28),
        "dn0x0x0x0": ("24:00.0", 0x25, 0x25),
        "near": ("25:00.0", None, None),
        "dn0x0x0x1": ("24:01.0", 0x26, 0x28),
        "up0x0x0x1": ("26:00.0", 0x27, 0x28),
        "dn0x0x0x1x0": ("27:00.0", 0x28, 0x28),
        "deep": ("28:00.0", None, None),
        "dn0x0x1": ("22:01.0", 0x29, 0x29),
        "pair0": ("29:00.0", None, None),
        "pair1": ("29:00.1", None, None),
        "dn0x0x2": ("22:02.0", 0x2A, 0x2A),
        "last": ("2a:00.0", None, None),
        "rp0x1": ("20:01.0", 0x2B, 0x2B),
        "card": ("2b:00.0", None, None),
    }


def test_all_below_a_port_without_acs_shares_its_group(machine: Machine) -> None:
    groups: dict[int, set[str]] = {}
    for bdf, group in addresses.iommu_groups(machine).items():
        if not bdf.startswith("0000:00:"):
            groups.setdefault(group, set()).add(bdf[5:])
    assert sorted(map(sorted, groups.values())) == [
        ["20:00.0"],
        ["20:01.0"],
        ["21:00.0"],
        ["22:00.0", "23:00.0", "24:00.0", "24:01.0", "25:00.0", "26:00.0", "27:00.0", "28:00.0"],
        ["22:01.0", "29:00.0", "29:00.1"],
        ["22:02.0", "2a:00.0"],
        ["2b:00.0"],
    ]


def test_the_recorded_paths_nest(machine: Machine, tmp_path: Path) -> None:
    recorded.record(machine, tmp_path / "tree")
    place = tmp_path / "tree/sys/bus/pci/devices/0000:28:00.0"
    assert os.readlink(place) == f"../../../devices/pci0000:20/{DEEP}"
    config = (place / "../config").resolve().read_bytes()
    assert list(config[0x18:0x1B]) == [0x27, 0x28, 0x28], "the bridge above knows its buses"
    # A CXL port can reset all that is directly below it, another switch too.
    assert (place / "../../reset_method").resolve().read_text() == "flr bus cxl_bus\n"


def test_qemu_makes_every_level(machine: Machine) -> None:
    arguments = qemu.arguments(machine, Path("code.fd"), 1)
    ports = [
        dict(item.split("=") for item in a.split(",")[1:]) for a in arguments if a.startswith(("cxl", "pcie-root"))
    ]
    assert {port["id"]: (port["bus"], port.get("addr")) for port in ports} == {
        "rp0x0": ("pxb0", "0x0"),
        "up0x0": ("rp0x0", None),
        "dn0x0x0": ("up0x0", "0x0"),
        "up0x0x0": ("dn0x0x0", None),
        "dn0x0x0x0": ("up0x0x0", "0x0"),
        "dn0x0x0x1": ("up0x0x0", "0x1"),
        "up0x0x0x1": ("dn0x0x0x1", None),
        "dn0x0x0x1x0": ("up0x0x0x1", "0x0"),
        "dn0x0x1": ("up0x0", "0x1"),
        "dn0x0x2": ("up0x0", "0x2"),
        "rp0x1": ("pxb0", "0x1"),
    }
    slots = [(port["chassis"], port["slot"]) for port in ports if "slot" in port]
    assert len(set(slots)) == len(slots) == 8, "a physical slot has one port"
    assert sum('"bus": "dn0x0x1", "addr": "0.1", "multifunction": true' in a for a in arguments) == 1


def test_room_for_buses_counts_all_levels(data: Any) -> None:
    data["host_bridges"].append({"bus": 0x2B, "node": 1, "ports": [{"functions": [nic("far")]}]})
    with pytest.raises(description.DescriptionError, match=r"host_bridges\[0\]\.bus: '0x20'.* up to bus 0x2b below it"):
        description.parse(data)


def test_faults_deep_below_have_their_place(data: Any) -> None:
    data["host_bridges"][0]["ports"][0]["switch"][0]["switch"][1]["switch"][0]["endpoint"] = "cx9"
    place = r"host_bridges\[0\]\.ports\[0\]\.switch\[0\]\.switch\[1\]\.switch\[0\]\.endpoint: 'cx9'"
    with pytest.raises(description.DescriptionError, match=place):
        description.parse(data)
