# Copyright: the topovirt.kvm authors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Layout -> libvirt domain XML. Decides nothing. Elements: https://libvirt.org/formatdomain.html"""

from __future__ import annotations

import json
from base64 import b64encode
from collections.abc import Mapping
from typing import Any

from ansible_collections.topovirt.kvm.plugins.module_utils._libvirt.domains import METADATA_NAMESPACE, METADATA_TAG
from ansible_collections.topovirt.kvm.plugins.module_utils._topology.cpulist import format_cpulist
from ansible_collections.topovirt.kvm.plugins.plugin_utils._guest.layout import Layout
from ansible_collections.topovirt.kvm.plugins.plugin_utils._guest.pcie_tree import Controller
from ansible_collections.topovirt.kvm.plugins.plugin_utils._guest.properties import Value, hostdev_alias
from ansible_collections.topovirt.kvm.plugins.plugin_utils._placement.request import DiskBoot, KernelBoot, Request

try:
    from lxml import etree
except ImportError as error:
    LXML_MISSING = str(error)
else:
    LXML_MISSING = ""

QEMU_NAMESPACE = "http://libvirt.org/schemas/domain/qemu/1.0"

# Where the guest finds its NCCL file below /sys/firmware/qemu_fw_cfg/by_name; role gpu_guest knows it too.
NCCL_ENTRY = "opt/org.topovirt/nccl.xml.base64"

# Slots of pcie.0 for paravirtual devices; slot 1 stays free for a display added by hand.
_DISK_SLOT, _SERIAL_SLOT, _RNG_SLOT = 2, 3, 4


def _add(parent: etree._Element, tag: str, text: str | None = None, **attributes: object) -> etree._Element:
    element = etree.SubElement(parent, tag, {key: str(value) for key, value in attributes.items()})
    element.text = text
    return element


def _pci_address(parent: etree._Element, bus: int, slot: int, function: int, multifunction: bool = False) -> None:
    """``bus`` is the index of a controller, not a bus number."""
    address = _add(
        parent,
        "address",
        type="pci",
        domain="0x0000",
        bus=f"0x{bus:02x}",
        slot=f"0x{slot:02x}",
        function=f"0x{function:x}",
    )
    if multifunction:
        address.set("multifunction", "on")


def _head(domain: etree._Element, request: Request, uuid: str, metadata: Mapping[str, Any], layout: Layout) -> None:
    _add(domain, "name", request.name)
    _add(domain, "uuid", uuid)
    element = etree.SubElement(_add(domain, "metadata"), METADATA_TAG, nsmap={"topovirt": METADATA_NAMESPACE})
    element.text = json.dumps(metadata, sort_keys=True)
    _add(domain, "memory", str(sum(cell["memory_bytes"] for cell in layout["cells"]) >> 10), unit="KiB")


def _memory_and_cpus(domain: etree._Element, layout: Layout) -> None:
    cells = layout["cells"]
    backing = _add(domain, "memoryBacking")
    pages = _add(backing, "hugepages")
    nodeset = format_cpulist(cell["id"] for cell in cells)
    _add(pages, "page", size=layout["page_size_bytes"] >> 10, unit="KiB", nodeset=nodeset)
    _add(backing, "nosharepages")
    allocation = _add(backing, "allocation", mode="immediate")
    if "allocation_threads" not in layout["left_out"]:
        allocation.set("threads", str(layout["allocation_threads"]))
    _add(domain, "vcpu", str(len(layout["vcpu_pins"])), placement="static")
    if layout["iothread_cpus"]:
        _add(domain, "iothreads", "1")
    tune = _add(domain, "cputune")
    for vcpu, cpu in layout["vcpu_pins"]:
        _add(tune, "vcpupin", vcpu=vcpu, cpuset=cpu)
    _add(tune, "emulatorpin", cpuset=layout["emulator_cpus"])
    if layout["iothread_cpus"]:
        _add(tune, "iothreadpin", iothread=1, cpuset=layout["iothread_cpus"])
    numa = _add(domain, "numatune")
    _add(numa, "memory", mode="strict", nodeset=format_cpulist(cell["host_node"] for cell in cells))
    for cell in cells:
        _add(numa, "memnode", cellid=cell["id"], mode="strict", nodeset=cell["host_node"])


def _boot(domain: etree._Element, boot: KernelBoot | DiskBoot, layout: Layout) -> None:
    element = _add(domain, "os")
    if isinstance(boot, DiskBoot):
        element.set("firmware", "efi")
    _add(element, "type", "hvm", arch="x86_64", machine="q35")
    if isinstance(boot, DiskBoot):
        if "firmware_feature" not in layout["left_out"]:
            _add(_add(element, "firmware"), "feature", enabled="no", name="enrolled-keys")
        _add(element, "boot", dev="hd")
        return
    _add(element, "kernel", boot.kernel)
    if boot.initrd is not None:
        _add(element, "initrd", boot.initrd)
    if boot.cmdline is not None:
        _add(element, "cmdline", boot.cmdline)


def _features_and_cpu(domain: etree._Element, layout: Layout, pv_eoi: bool | None) -> None:
    features = _add(domain, "features")
    _add(features, "acpi")
    apic = _add(features, "apic")
    if pv_eoi is not None:
        apic.set("eoi", "on" if pv_eoi else "off")
    kvm = _add(features, "kvm")
    _add(kvm, "hint-dedicated", state="on")
    if "poll_control" not in layout["left_out"]:
        _add(kvm, "poll-control", state="on")
    if layout["extended_apic"]:
        _add(features, "ioapic", driver="qemu")
    cpu = _add(domain, "cpu", mode="host-passthrough", check="none")
    shape = layout["cpu_topology"]
    levels = _add(cpu, "topology", sockets=shape["sockets"], cores=shape["cores"], threads=shape["threads"])
    if "dies" not in layout["left_out"]:
        levels.set("dies", str(shape["dies"]))
    _add(cpu, "cache", mode="passthrough")
    if "maxphysaddr" not in layout["left_out"]:
        width = _add(cpu, "maxphysaddr", mode="passthrough")
        if layout["mmio"]["limit"] is not None:
            width.set("limit", str(layout["mmio"]["limit"]))
    for feature in layout["cpu_features"]:
        _add(cpu, "feature", policy="require", name=feature)
    numa = _add(cpu, "numa")
    for cell in layout["cells"]:
        element = _add(numa, "cell", id=cell["id"], cpus=cell["vcpus"], memory=cell["memory_bytes"] >> 10, unit="KiB")
        distances = _add(element, "distances")
        for other, distance in enumerate(cell["distances"]):
            _add(distances, "sibling", id=other, value=distance)


def _behaviour(domain: etree._Element) -> None:
    clock = _add(domain, "clock", offset="utc")
    _add(clock, "timer", name="rtc", tickpolicy="catchup")
    _add(clock, "timer", name="pit", tickpolicy="delay")
    _add(clock, "timer", name="hpet", present="no")
    _add(domain, "on_poweroff", "destroy")
    _add(domain, "on_reboot", "restart")
    _add(domain, "on_crash", "destroy")
    power = _add(domain, "pm")
    _add(power, "suspend-to-mem", enabled="no")
    _add(power, "suspend-to-disk", enabled="no")


def _controller(devices: etree._Element, controller: Controller, layout: Layout) -> None:
    model = controller["model"]
    element = _add(devices, "controller", type="pci", index=controller["index"], model=model)
    if model == "pcie-expander-bus":
        target = _add(element, "target", busNr=controller["bus"])
        if controller["node"] is not None:
            _add(target, "node", str(controller["node"]))
    elif model != "pcie-switch-upstream-port":
        # Chassis and port number together name a slot.
        target = _add(element, "target", chassis=controller["index"], port=f"0x{controller['slot']:x}")
        if "hotplug" not in layout["left_out"]:
            target.set("hotplug", "off")
    _pci_address(element, controller["parent"], controller["slot"], controller["function"], controller["multifunction"])


def _paravirtual(devices: etree._Element, boot: KernelBoot | DiskBoot, layout: Layout) -> None:
    if isinstance(boot, DiskBoot):
        disk = _add(devices, "disk", type="file", device="disk")
        driver = _add(disk, "driver", name="qemu", type=boot.format, cache="none", io="native", discard="unmap")
        if layout["iothread_cpus"]:
            driver.set("iothread", "1")
        _add(disk, "source", file=boot.path)
        _add(disk, "target", dev="vda", bus="virtio")
        _pci_address(disk, 0, _DISK_SLOT, 0)
    _add(devices, "controller", type="usb", model="none")
    serial_bus = _add(devices, "controller", type="virtio-serial", index=0)
    _pci_address(serial_bus, 0, _SERIAL_SLOT, 0)
    _add(_add(devices, "serial", type="pty"), "target", type="isa-serial", port=0)
    _add(_add(devices, "console", type="pty"), "target", type="serial", port=0)
    channel = _add(devices, "channel", type="unix")
    _add(channel, "target", type="virtio", name="org.qemu.guest_agent.0")
    _add(channel, "address", type="virtio-serial", controller=0, bus=0, port=1)
    rng = _add(devices, "rng", model="virtio")
    _add(rng, "backend", "/dev/urandom", model="random")
    _pci_address(rng, 0, _RNG_SLOT, 0)
    _add(devices, "memballoon", model="none")
    if layout["extended_apic"]:
        # A guest's IOMMU that also translates DMA must tell QEMU of new mappings, or vfio-pci stops the VM.
        driver = _add(_add(devices, "iommu", model="intel"), "driver", intremap="on", eim="on")
        translates = "dma_translation" in layout["left_out"]
        driver.set(*(("caching_mode", "on") if translates else ("dma_translation", "off")))


def _hostdevs(devices: etree._Element, layout: Layout) -> None:
    for device in layout["devices"]:
        hostdev = _add(devices, "hostdev", mode="subsystem", type="pci", managed="no")
        _add(hostdev, "driver", name="vfio")
        domain, bus, rest = device["bdf"].split(":")
        slot, function = rest.split(".")
        _add(
            _add(hostdev, "source"),
            "address",
            domain=f"0x{domain}",
            bus=f"0x{bus}",
            slot=f"0x{slot}",
            function=f"0x{function}",
        )
        _add(hostdev, "alias", name=hostdev_alias(device["bdf"]))
        _pci_address(hostdev, device["controller"], device["slot"], device["function"], device["multifunction"])


def _property(parent: etree._Element, name: str, value: Value) -> None:
    """A QEMU device property; libvirt wants its type named (https://libvirt.org/drvqemu.html)."""
    if isinstance(value, bool):
        kind, text = "bool", "true" if value else "false"
    elif isinstance(value, int):
        kind, text = ("signed" if value < 0 else "unsigned"), str(value)
    else:
        kind, text = "string", value
    _add(parent, f"{{{QEMU_NAMESPACE}}}property", name=name, type=kind, value=text)


def domain_xml(request: Request, uuid: str, metadata: Mapping[str, Any], layout: Layout, nccl: str) -> str:
    """The definition of one VM.

    :param metadata: JSON object with key ``schema``, kept in the definition for ``vm_info``.
    :param nccl: the guest's NCCL topology file, which goes along as a value of the firmware's configuration.
    """
    arguments, properties = layout["qemu_arguments"], layout["overrides"]
    domain = etree.Element("domain", type="kvm", nsmap={"qemu": QEMU_NAMESPACE} if arguments or properties else None)
    _head(domain, request, uuid, metadata, layout)
    _memory_and_cpus(domain, layout)
    _boot(domain, request.boot, layout)
    _features_and_cpu(domain, layout, request.pv_eoi)
    _behaviour(domain)
    if "nccl_file" not in layout["left_out"]:
        # In base64, as libvirt hands QEMU the text with its entities; the guest's service decodes it.
        entry = _add(_add(domain, "sysinfo", type="fwcfg"), "entry", b64encode(nccl.encode()).decode())
        entry.set("name", NCCL_ENTRY)
    devices = _add(domain, "devices")
    _add(devices, "controller", type="pci", index=0, model="pcie-root")
    for controller in layout["pcie"]:
        _controller(devices, controller, layout)
    _paravirtual(devices, request.boot, layout)
    _hostdevs(devices, layout)
    if arguments:
        commandline = etree.SubElement(domain, f"{{{QEMU_NAMESPACE}}}commandline")
        for word in arguments:
            _add(commandline, f"{{{QEMU_NAMESPACE}}}arg", value=word)
    if properties:
        override = etree.SubElement(domain, f"{{{QEMU_NAMESPACE}}}override")
        for alias, values in properties.items():
            element = etree.SubElement(override, f"{{{QEMU_NAMESPACE}}}device", alias=alias)
            frontend = etree.SubElement(element, f"{{{QEMU_NAMESPACE}}}frontend")
            for name, value in values.items():
                _property(frontend, name, value)
    return etree.tostring(domain, pretty_print=True, encoding="unicode")
