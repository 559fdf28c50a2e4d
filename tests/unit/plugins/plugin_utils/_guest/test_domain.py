# Copyright: the topovirt.kvm authors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""The emitted definition, element by element.

That libvirt allows them is said by libvirt itself (tests/unit/fidelity); what they mean is proven by the booted guests.
"""

from __future__ import annotations

import base64
import xml.etree.ElementTree as ET
from typing import Any

import pytest
from ansible_collections.topovirt.kvm.plugins.module_utils._topology.model import Topology
from ansible_collections.topovirt.kvm.plugins.plugin_utils._placement.plan import make_plan
from ansible_collections.topovirt.kvm.tests.unit.plugins.plugin_utils.hosts import GIB, host, request

DISK = {"disk": {"path": "/images/a.qcow2"}}
QEMU = "{http://libvirt.org/schemas/domain/qemu/1.0}"


def emit(gpus: int = 1, topology: Topology | None = None, model: str = "shared_nvswitch", **more: Any) -> ET.Element:
    (vm,) = make_plan([request("train-0", gpus, **more)], topology or host(), [], model, "host")["vms"]
    return ET.fromstring(vm["domain_xml"])


def get(root: ET.Element, path: str, attribute: str) -> str | None:
    element = root.find(path)
    assert element is not None, path
    return element.get(attribute)


def test_passthrough_devices_stay_bound_and_have_explicit_addresses() -> None:
    hostdevs = emit(8, model="full_passthrough").findall("devices/hostdev")
    assert len(hostdevs) == 20
    for hostdev in hostdevs:
        assert hostdev.get("managed") == "no"
        assert get(hostdev, "driver", "name") == "vfio"
        assert get(hostdev, "address", "type") == "pci"
    aliases = [get(hostdev, "alias", "name") for hostdev in hostdevs]
    assert len(set(aliases)) == 20
    assert aliases[0] == "ua-0000-23-00-0"


def test_ports_are_told_apart_and_have_no_hotplug() -> None:
    root = emit(8, model="full_passthrough")
    targets = [
        controller.find("target")
        for controller in root.findall("devices/controller[@type='pci']")
        if controller.get("model") in ("pcie-root-port", "pcie-switch-downstream-port")
    ]
    assert all(target is not None and target.get("hotplug") == "off" for target in targets)
    names = [(target.get("chassis"), target.get("port")) for target in targets if target is not None]
    assert len(set(names)) == len(names) == 5 + 16
    assert all(int(chassis or 0) <= 255 for chassis, _port in names)


def test_nothing_but_paravirtual_devices_sits_on_the_root_bus() -> None:
    root = emit(8, model="full_passthrough", boot=DISK)
    on_root = [
        element.get("model") or element.tag
        for element in root.findall("devices/*")
        for address in element.findall("address[@type='pci']")
        if int(address.get("bus", ""), 0) == 0
    ]
    # The serial controller has no model, the random number generator is "virtio".
    assert sorted(on_root) == ["controller", "disk", *["pcie-expander-bus"] * 4, "virtio"]


def test_memory_is_huge_pages_of_the_cells_nodes() -> None:
    root = emit(8, model="full_passthrough", memory="100GiB")
    page = root.find("memoryBacking/hugepages/page")
    assert page is not None
    assert page.attrib == {"size": "1048576", "unit": "KiB", "nodeset": "0-1"}
    allocation = root.find("memoryBacking/allocation")
    assert allocation is not None
    assert allocation.attrib == {"mode": "immediate", "threads": "16"}
    assert root.find("memoryBacking/nosharepages") is not None
    assert root.findtext("memory") == str(100 * GIB // 1024)
    assert get(root, "numatune/memory", "mode") == "strict"
    assert [node.attrib for node in root.findall("numatune/memnode")] == [
        {"cellid": "0", "mode": "strict", "nodeset": "0"},
        {"cellid": "1", "mode": "strict", "nodeset": "1"},
    ]
    cells = root.findall("cpu/numa/cell")
    assert sum(int(cell.get("memory", "")) for cell in cells) == 100 * GIB // 1024
    distances = [[sibling.get("value") for sibling in cell.findall("distances/sibling")] for cell in cells]
    assert distances == [["10", "21"], ["21", "10"]]


def test_cpu_is_the_hosts_own() -> None:
    root = emit(8, model="full_passthrough")
    assert root.get("type") == "kvm"
    assert get(root, "os/type", "machine") == "q35"
    assert get(root, "cpu", "mode") == "host-passthrough"
    assert get(root, "cpu/cache", "mode") == "passthrough"
    assert get(root, "cpu/maxphysaddr", "mode") == "passthrough"
    assert get(root, "cpu/maxphysaddr", "limit") == "46"
    shape = root.find("cpu/topology")
    assert shape is not None
    assert shape.attrib == {"sockets": "2", "dies": "1", "cores": "46", "threads": "2"}
    assert root.findtext("vcpu") == "184"
    assert root.findall("cpu/feature") == []


def test_amd_guests_see_their_siblings() -> None:
    topology = host()
    topology["host"]["cpu_vendor"] = "AuthenticAMD"
    features = emit(topology=topology).findall("cpu/feature")
    assert [feature.attrib for feature in features] == [{"policy": "require", "name": "topoext"}]


def test_a_narrow_host_is_taken_as_it_is() -> None:
    topology = host()
    topology["host"]["phys_bits"] = 46
    assert get(emit(topology=topology), "cpu/maxphysaddr", "limit") is None


def test_nothing_that_moves_or_shrinks_memory() -> None:
    root = emit()
    assert get(root, "devices/memballoon", "model") == "none"
    assert [get(root, f"pm/{name}", "enabled") for name in ("suspend-to-mem", "suspend-to-disk")] == ["no", "no"]
    timers = {timer.get("name"): timer for timer in root.findall("clock/timer")}
    assert timers["hpet"].get("present") == "no"
    assert (root.findtext("on_poweroff"), root.findtext("on_reboot")) == ("destroy", "restart")
    assert root.findtext("on_crash") == "destroy"


def test_consoles_and_agent() -> None:
    root = emit()
    assert get(root, "devices/serial", "type") == get(root, "devices/console", "type") == "pty"
    assert get(root, "devices/channel/target", "name") == "org.qemu.guest_agent.0"
    assert root.find("devices/emulator") is None
    assert get(root, "devices/controller[@type='usb']", "model") == "none"


def test_kernel_boot_needs_no_firmware() -> None:
    root = emit()
    assert root.findtext("os/kernel") == "/images/vmlinuz"
    assert root.findtext("os/initrd") == "/images/initrd"
    assert root.findtext("os/cmdline") == "console=ttyS0"
    assert get(root, "os", "firmware") is None
    assert root.find("devices/disk") is None


def test_disk_boot_is_uefi_without_enrolled_keys() -> None:
    root = emit(boot=DISK)
    assert get(root, "os", "firmware") == "efi"
    feature = root.find("os/firmware/feature")
    assert feature is not None
    assert feature.attrib == {"enabled": "no", "name": "enrolled-keys"}
    disk = root.find("devices/disk")
    assert disk is not None
    assert get(disk, "driver", "type") == "qcow2"
    assert get(disk, "source", "file") == "/images/a.qcow2"
    assert get(disk, "target", "bus") == "virtio"


def test_the_disk_has_a_thread_on_the_hosts_cpus_of_the_first_cells_node() -> None:
    topology = host()
    # The host keeps the first two cores of each node, four with Fabric Manager on it, with both threads.
    for model, gpus, kept in (("full_passthrough", 8, "0-1,96-97"), ("shared_nvswitch", 1, "0-3,96-99")):
        root = emit(gpus, topology, model, boot=DISK)
        assert root.findtext("iothreads") == "1"
        assert get(root, "devices/disk/driver", "iothread") == "1"
        pin = root.find("cputune/iothreadpin")
        assert pin is not None
        assert pin.attrib == {"iothread": "1", "cpuset": kept}
    assert emit().find("iothreads") is None
    assert emit().find("cputune/iothreadpin") is None


def test_few_vcpus_write_memory_with_few_threads() -> None:
    assert get(emit(vcpus=4), "memoryBacking/allocation", "threads") == "4"


def test_properties_reach_every_device_with_their_type() -> None:
    properties = {"x-no-mmap": True, "x-nv-gpudirect-clique": 3, "x-low": -1, "x-text": "on"}
    root = emit(2, hostdev_properties=properties)
    overridden = root.findall(f"{QEMU}override/{QEMU}device")
    aliases = [get(hostdev, "alias", "name") for hostdev in root.findall("devices/hostdev")]
    assert [device.get("alias") for device in overridden] == aliases
    for device in overridden:
        found = [
            (element.get("name"), element.get("type"), element.get("value"))
            for element in device.findall(f"{QEMU}frontend/{QEMU}property")
        ]
        assert found == [
            ("x-no-mmap", "bool", "true"),
            ("x-nv-gpudirect-clique", "unsigned", "3"),
            ("x-low", "signed", "-1"),
            ("x-text", "string", "on"),
        ]


@pytest.mark.parametrize("asked,eoi", [({}, None), ({"pv_eoi": False}, "off"), ({"pv_eoi": True}, "on")])
def test_paravirtual_end_of_interrupt_is_as_asked(asked: dict[str, Any], eoi: str | None) -> None:
    assert get(emit(**asked), "features/apic", "eoi") == eoi


def test_no_override_unless_asked_for() -> None:
    assert emit().find(f"{QEMU}override") is None


def test_the_nccl_file_goes_along_in_base64() -> None:
    (vm,) = make_plan([request("a", 8)], host(), [], "full_passthrough", "host")["vms"]
    entry = ET.fromstring(vm["domain_xml"]).find("sysinfo[@type='fwcfg']/entry")
    assert entry is not None
    assert entry.get("name") == "opt/org.topovirt/nccl.xml.base64"
    assert base64.b64decode(entry.text or "").decode() == vm["nccl_xml"]


def test_an_old_libvirt_carries_no_nccl_file() -> None:
    topology = host()
    topology["software"]["libvirt"] = "6.4.0"
    for function in topology["pci"]:
        function["bars"] = []  # which such a libvirt has no room for
    (vm,) = make_plan([request("a", 8, memory="64GiB")], topology, [], "full_passthrough", "host")["vms"]
    assert ET.fromstring(vm["domain_xml"]).find("sysinfo") is None
    assert any("no NCCL file" in warning for warning in vm["warnings"])
