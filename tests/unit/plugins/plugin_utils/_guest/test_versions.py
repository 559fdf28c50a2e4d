# Copyright: the topovirt.kvm authors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Older libvirt and QEMU: what a definition leaves out or does otherwise, and what the plan says about it."""

from __future__ import annotations

import re
import xml.etree.ElementTree as ET
from pathlib import Path
from typing import Any

import pytest
from ansible_collections.topovirt.kvm.plugins.plugin_utils._guest.versions import ELEMENTS, Versions, format_version
from ansible_collections.topovirt.kvm.plugins.plugin_utils._placement.plan import make_plan
from ansible_collections.topovirt.kvm.tests.unit.plugins.plugin_utils.hosts import host, request

PAGE = Path(__file__).parents[5] / "docs/reference/guest.md"
DISK = {"disk": {"path": "/images/a.qcow2"}}
QEMU = "{http://libvirt.org/schemas/domain/qemu/1.0}"


def plan(libvirt: str | None, qemu: str | None, gpus: int = 1, bar_gib: int = 0, **more: Any) -> dict[str, Any]:
    topology = host()
    topology["software"]["libvirt"], topology["software"]["qemu"] = libvirt, qemu
    for function in topology["pci"]:
        if bar_gib and function["role"] == "gpu":
            function["bars"] = [{"index": 0, "size_bytes": bar_gib << 30, "is_64bit": True, "prefetchable": True}]
    model = "full_passthrough" if gpus in (1, 8) else "shared_nvswitch"
    (vm,) = make_plan([request("a", gpus, **more)], topology, [], model, "host")["vms"]
    made: dict[str, Any] = vm
    return made


def emit(*args: Any, **more: Any) -> ET.Element:
    return ET.fromstring(plan(*args, **more)["domain_xml"])


def about(vm: dict[str, Any], what: str) -> list[str]:
    return [warning for warning in vm["warnings"] if what in warning]


# What each version is the first to have: seen from just below and from there.
@pytest.mark.parametrize(
    "path,libvirt,qemu,before,since",
    [
        ("memoryBacking/allocation[@threads]", ("8.1.0", "7.2.0"), ("8.2.0", "7.2.0"), 0, 1),
        ("memoryBacking/allocation[@threads]", ("8.2.0", "4.2.1"), ("8.2.0", "5.0.0"), 0, 1),
        ("features/kvm/poll-control", ("6.9.0", "5.1.0"), ("6.10.0", "5.1.0"), 0, 1),
        ("cpu/maxphysaddr", ("8.6.0", "7.2.0"), ("8.7.0", "7.2.0"), 0, 1),
        ("cpu/maxphysaddr[@limit]", ("9.2.0", "7.2.0"), ("9.3.0", "7.2.0"), 0, 1),
        ("cpu/topology[@dies]", ("6.0.0", "5.0.0"), ("6.1.0", "5.0.0"), 0, 1),
        ("os/firmware", ("7.1.0", "6.0.0"), ("7.2.0", "6.0.0"), 0, 1),
        ("devices/controller/target[@hotplug='off']", ("6.2.0", "5.0.0"), ("6.3.0", "5.0.0"), 0, 3),
    ],
)
def test_an_element_comes_with_its_version(
    path: str, libvirt: tuple[str, str], qemu: tuple[str, str], before: int, since: int
) -> None:
    older, newer = libvirt, qemu
    small = {"boot": DISK, "memory": "16GiB", "bar_gib": 64}
    assert len(emit(*older, **small).findall(path)) == before
    assert len(emit(*newer, **small).findall(path)) == since
    assert len(emit(None, None, **small).findall(path)) == since


def test_each_thing_left_out_is_told_with_both_versions() -> None:
    vm = plan("8.0.0", "6.2.0", memory="16GiB", bar_gib=64)
    (told,) = about(vm, "maxphysaddr")
    assert told.startswith("cpu/maxphysaddr needs libvirt 8.7 (the host has 8.0.0): ")
    assert len(about(vm, "memoryBacking/allocation@threads needs libvirt 8.2 (the host has 8.0.0)")) == 1
    assert not about(vm, "dies") and not about(vm, "override")


def test_a_current_host_and_an_unknown_one_have_no_such_warnings() -> None:
    for versions in (("11.3.0", "10.0.2"), (None, None)):
        assert about(plan(*versions), "needs") == []


def arguments(root: ET.Element) -> list[str | None]:
    return [arg.get("value") for arg in root.findall(f"{QEMU}commandline/{QEMU}arg")]


def properties(root: ET.Element) -> dict[str | None, dict[str | None, str | None]]:
    return {
        device.get("alias"): {item.get("name"): item.get("value") for item in device.iter(f"{QEMU}property")}
        for device in root.iter(f"{QEMU}device")
    }


def test_root_ports_have_speed_and_width_by_their_alias() -> None:
    root = emit("11.3.0", "10.0.2", pcie="root_port")
    ports = root.findall("devices/controller[@model='pcie-root-port']")
    assert len(ports) == 2
    expected = {f"pci.{port.get('index')}": {"x-speed": "32", "x-width": "16"} for port in ports}
    assert properties(root) == expected
    assert {item.get("type") for item in root.iter(f"{QEMU}property")} == {"string"}
    assert properties(emit("11.3.0", "10.0.2")) == properties(emit("11.3.0", "10.0.2", pcie="flat")) == {}


def test_an_older_qemu_knows_speeds_to_16() -> None:
    vm = plan("9.0.0", "7.2.22", pcie="root_port")
    speeds = {values["x-speed"] for values in properties(ET.fromstring(vm["domain_xml"])).values()}
    assert speeds == {"16"}
    assert len(about(vm, "needs QEMU 9.0 (the host has 7.2.22)")) == 1
    assert about(plan("9.0.0", "7.2.22"), "QEMU 9.0") == []


def test_an_older_libvirt_takes_arguments_for_all_devices() -> None:
    more: dict[str, Any] = {"pcie": "root_port", "memory": "16GiB", "bar_gib": 16}
    vm = plan("8.0.0", "6.2.0", hostdev_properties={"x-no-mmap": True}, **more)
    root = ET.fromstring(vm["domain_xml"])
    assert properties(root) == {}
    assert arguments(root) == [
        *("-global", "vfio-pci.x-no-mmap=on"),
        *("-global", "pcie-root-port.x-speed=16"),
        *("-global", "pcie-root-port.x-width=16"),
    ]
    assert len(about(vm, "qemu:override needs libvirt 8.2")) == 1
    # NVSwitches have other links than GPUs, so nothing is said for all root ports.
    assert {item.get("value") for item in emit("8.2.0", "9.0.0", gpus=8, **more).iter(f"{QEMU}property")} >= {"2", "32"}
    assert arguments(emit("8.0.0", "6.2.0", gpus=8, **more)) == []


@pytest.mark.parametrize(
    "libvirt,boot,told",
    [("8.6.0", DISK, str(193 << 10)), ("8.7.0", DISK, None), ("8.6.0", {"kernel": "/k"}, None)],
)
def test_firmware_is_told_its_window_where_the_guest_has_40_bits(
    libvirt: str, boot: dict[str, Any], told: str | None
) -> None:
    # Below one host bridge 2 x 32 GiB and a NIC's 32 MiB from 32 GiB on, below the next one again from 128 GiB on.
    root = emit(libvirt, "7.0.0", gpus=4, bar_gib=32, memory="64GiB", boot=boot)
    expected = [] if told is None else ["-fw_cfg", f"name=opt/ovmf/X-PciMmio64Mb,string={told}"]
    assert arguments(root) == expected


def wide(libvirt: str | None, qemu: str | None, vcpus: int, vendor: str = "GenuineIntel") -> dict[str, Any]:
    topology = host()
    topology["software"]["libvirt"], topology["software"]["qemu"] = libvirt, qemu
    topology["host"]["cpu_vendor"] = vendor
    for core in list(topology["cores"]):
        core["threads"] = [core["threads"][0] * 4 + thread for thread in range(4)]
    (vm,) = make_plan([request("a", 8, vcpus=vcpus)], topology, [], "full_passthrough", "host")["vms"]
    made: dict[str, Any] = vm
    return made


@pytest.mark.parametrize(
    "libvirt,expected",
    [
        (None, {"intremap": "on", "eim": "on", "dma_translation": "off"}),
        ("10.7.0", {"intremap": "on", "eim": "on", "dma_translation": "off"}),
        ("10.6.0", {"intremap": "on", "eim": "on", "caching_mode": "on"}),
    ],
)
def test_many_vcpus_have_their_interrupts_remapped(libvirt: str | None, expected: dict[str, str]) -> None:
    vm = wide(libvirt, "9.1.0", 352)
    root = ET.fromstring(vm["domain_xml"])
    driver = root.find("devices/iommu[@model='intel']/driver")
    assert driver is not None
    assert driver.attrib == expected
    assert root.find("features/ioapic[@driver='qemu']") is not None
    assert len(about(vm, "dma_translation needs")) == ("caching_mode" in expected)


def test_few_vcpus_have_no_iommu() -> None:
    root = ET.fromstring(wide(None, None, 128)["domain_xml"])
    assert root.find("devices/iommu") is None
    assert root.find("features/ioapic") is None


def test_many_vcpus_on_amd_are_told_to_be_unproven() -> None:
    assert len(about(wide(None, None, 352, "AuthenticAMD"), "AMD host")) == 1
    assert about(wide(None, None, 352), "AMD host") == []


@pytest.mark.parametrize(
    "versions,most",
    [
        (Versions(), 4095),
        (Versions((3, 3), (2, 8)), 254),
        (Versions((3, 4), (2, 8)), 287),
        (Versions((9, 0), (7, 2, 22)), 287),
        (Versions((9, 5), (8, 1)), 1023),
        (Versions((10, 7), (9, 0)), 4095),
    ],
)
def test_the_highest_apic_id_is_qemus(versions: Versions, most: int) -> None:
    assert versions.max_apic_id() == most


def test_the_page_says_what_the_table_says() -> None:
    rows = [
        tuple(cell.strip() for cell in line.strip().strip("|").split("|"))
        for line in PAGE.read_text(encoding="utf-8").splitlines()
        if line.startswith("| `") and line.count("|") == 6
    ]
    expected = [
        (
            ", ".join(f"`{path}`" for path in element.paths),
            element.reason,
            format_version(element.libvirt),
            format_version(element.qemu),
            element.without,
        )
        for element in ELEMENTS
    ]
    assert rows == expected


def _paths(element: ET.Element, above: str = "") -> list[str]:
    found = []
    for child in element:
        tag = child.tag.replace(QEMU, "qemu:").rpartition("}")[2]
        if tag == "controller":
            kind = child.get("model") if child.get("type") == "pci" else child.get("type")
            tag = f"{tag}[{kind}]"
        path = f"{above}/{tag}".lstrip("/")
        found.append(path)
        found += [f"{path}@{name}" for name in child.attrib]
        found += _paths(child, path)
    return found


def test_every_element_has_its_reason_in_the_table() -> None:
    definitions = [
        plan(None, None, boot=DISK, pcie="root_port", hostdev_properties={"x-no-mmap": True})["domain_xml"],
        plan(None, None, gpus=8)["domain_xml"],
        plan("8.0.0", "6.2.0", gpus=4, bar_gib=32, memory="64GiB", boot=DISK)["domain_xml"],
        wide("10.6.0", None, 352)["domain_xml"],
        wide(None, None, 352, "AuthenticAMD")["domain_xml"],
    ]
    explained = [path for element in ELEMENTS for path in element.paths]
    seen = {path for xml in definitions for path in _paths(ET.fromstring(xml))}
    parents = {path.rpartition("/")[0] for path in explained} | {"cputune", "features", "features/kvm", "devices"}
    unexplained = {
        path
        for path in seen - parents
        if not any(re.match(re.escape(known) + r"($|[/@])", path) for known in explained)
    }
    assert unexplained == set()
    # And nothing is explained that is never there; attributes are written with their controller's model.
    bare = {re.sub(r"\[[a-z-]+\]", "", path) for path in seen}
    assert [path for path in explained if re.sub(r"\[[a-z-]+\]", "", path) not in bare] == []
