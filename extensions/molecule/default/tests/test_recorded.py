# Copyright: the topovirt.kvm authors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""What was read and planned on the recorded host, judged from the machine's description and by rules of its own."""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any
from xml.etree import ElementTree as ET

import pytest
import yaml

RESULTS = Path(os.environ["MOLECULE_EPHEMERAL_DIRECTORY"]) / "results"
DESCRIPTION = Path(os.environ["MOLECULE_PROJECT_DIRECTORY"]) / "tests/twin/machines/hgx-h200.yml"
COUNTS = {"gpu": 8, "nic": 8, "nvswitch": 4, "nvme": 4}


def result(name: str) -> Any:
    return json.loads((RESULTS / f"{name}.json").read_text(encoding="utf-8"))


def described_modules() -> list[int]:
    """Module ids in the order of the buses, from the description."""
    bridges = yaml.safe_load(DESCRIPTION.read_text(encoding="utf-8"))["host_bridges"]
    ports = [port for bridge in bridges for port in bridge["ports"]]
    return [device["module_id"] for port in ports for device in port.get("switch", []) if "module_id" in device]


def hostdevs(vm: dict[str, Any]) -> set[str]:
    """BDFs of the devices in a VM's domain XML."""
    found = set()
    for address in ET.fromstring(vm["domain_xml"]).iterfind("devices/hostdev/source/address"):
        domain, bus, slot, function = (int(address.attrib[key], 16) for key in ("domain", "bus", "slot", "function"))
        found.add(f"{domain:04x}:{bus:02x}:{slot:02x}.{function}")
    return found


def by_role(role: str) -> list[dict[str, Any]]:
    functions = [f for f in result("topology")["pci"] if f["role"] == role and f["physfn"] is None]
    return [f for f in functions if f["vendor"] != "8086"]  # the machine's own network cards


@pytest.mark.parametrize(("role", "count"), COUNTS.items())
def test_devices_are_found(role: str, count: int) -> None:
    assert len(by_role(role)) == count


def test_topology_is_small() -> None:
    assert len(json.dumps(result("topology"), separators=(",", ":"))) < 64 * 1024


def test_module_ids_are_the_boards_wiring() -> None:
    assert [gpu["module_id"] for gpu in sorted(by_role("gpu"), key=lambda gpu: gpu["bdf"])] == described_modules()


def test_one_vm_gets_everything() -> None:
    (vm,) = result("one_vm")["vms"]
    wanted = {f["bdf"] for role in ("gpu", "nic", "nvswitch") for f in by_role(role)}
    assert len(wanted) == 20
    assert hostdevs(vm) == wanted


def test_tenants_get_the_halves_of_the_board() -> None:
    tenants = result("two_tenants")["vms"]
    modules = {f["bdf"]: f["module_id"] for f in by_role("gpu")}
    halves = [{modules[bdf] for bdf in hostdevs(vm) if bdf in modules} for vm in tenants]
    assert sorted(map(sorted, halves)) == [[1, 2, 3, 4], [5, 6, 7, 8]]
    assert {vm["placement"]["partition"]["id"] for vm in tenants} == {1, 2}


def test_tenants_share_nothing() -> None:
    first, second = (hostdevs(vm) for vm in result("two_tenants")["vms"])
    assert not first & second
    switches = {f["bdf"] for f in by_role("nvswitch")}
    assert not (first | second) & switches


def test_pins_are_one_to_one_and_apart() -> None:
    pins = [
        pin.attrib["cpuset"]
        for vm in result("two_tenants")["vms"]
        for pin in ET.fromstring(vm["domain_xml"]).iterfind("cputune/vcpupin")
    ]
    assert pins and len(pins) == len(set(pins)) and all(pin.isdigit() for pin in pins)


@pytest.mark.parametrize(
    ("number", "words"),
    [(0, ["4", "8", "1"]), (1, ["3"]), (2, ["9", "8"]), (3, ["same"])],
)
def test_refusals_say_why(number: int, words: list[str]) -> None:
    message = result("refusals")[number]
    assert all(word in message for word in words), message
    assert "Traceback" not in message
