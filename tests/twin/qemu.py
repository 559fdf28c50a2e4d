# Copyright: the topovirt.kvm authors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Machine description -> arguments of QEMU (10.1 or newer). Pure: nothing is opened, started or looked up.

File names are relative to the directory of the run, which QEMU and the device server have as their working directory:
socket paths may not be longer than 108 bytes. Devices on the first root bus name ``bus=pcie.0``, because QEMU
otherwise puts them on any bus with a free slot, a pxb included, and may fail.
"""

from __future__ import annotations

import itertools
import json
from collections.abc import Iterator
from pathlib import Path

from tests.twin.addresses import AMD_IOMMU, AMD_IOMMU_SLOT, FIRST_EXPANDER_SLOT, ROOT_DISK_SLOT, module_ids
from tests.twin.description import Device, Endpoint, HostBridge, Igb, Link, Machine, Nvme, Slot, Switch

ROOT_DISK = "root.qcow2"
FIRMWARE_VARIABLES = "firmware-variables.fd"
SERIAL_LOG = "serial.log"
QMP_SOCKET = "qmp.sock"
WIRING = "wiring.json"
DEVICE_SOCKETS = "devices"
WIRING_KEY = "opt/topovirt-twin/wiring"

# QEMU's property names of link speeds.
_SPEEDS = {2.5: "2_5", 5.0: "5", 8.0: "8", 16.0: "16", 32.0: "32", 64.0: "64"}

# How long QEMU waits for an answer of the device server before it gives a device up: a busy machine may be slow.
ANSWER_TIMEOUT_MS = 120_000

# Physical address width of the emulated CPU: room for eight BARs of 256 GiB and what else the firmware places.
PHYS_BITS = 48
FIRST_MAC_TAIL = 0x56

# An AMD CPU, because QEMU emulates AMD's virtualization (svm) and not Intel's; the second generation, because Linux
# takes the caches that a first-generation EPYC shares from its APIC ids, which spans our small sockets.
_CPU_WITH = (
    "svm",
    f"phys-bits={PHYS_BITS}",
    "x-force-features=on",  # TCG does not know topoext, which only describes what it does anyway
    "topoext",  # else Linux sees no SMT siblings
    "invtsc",  # else Linux keeps time with the HPET, which is slow to read
)
# What TCG lacks of the model's features, and monitor: idle CPUs would spin through mwait instead of halting.
_CPU_WITHOUT = (
    "monitor",
    *("fxsr-opt", "misalignsse", "osvw", "perfctr-core", "clzero", "ibpb", "amd-stibp", "nrip-save"),
    *("xsavec", "xsaves"),
)
CPU = ",".join(
    ["EPYC-Rome-v1", *(name if "=" in name else f"+{name}" for name in _CPU_WITH)]
    + [f"-{name}" for name in _CPU_WITHOUT]
)

TRANSLATION_CACHE_MIB = 512


def nvme_image(device: Nvme) -> str:
    """File that backs the namespace of ``device``."""
    return f"{device.name}.img"


def wiring(machine: Machine) -> str:
    """The baseboard's wiring as JSON, ``{bdf: module id}``: what a GPU driver would learn from the board itself."""
    return json.dumps(module_ids(machine), sort_keys=True)


def arguments(machine: Machine, ovmf_code: Path, ssh_port: int) -> list[str]:
    """Everything behind QEMU's name on the command line for ``machine`` at boot scale.

    :param ssh_port: port of 127.0.0.1 that leads to port 22 behind the management card.
    """
    result = _platform(machine) + _firmware(ovmf_code) + _root_disk(ssh_port)
    result += ["-fw_cfg", f"name={WIRING_KEY},file={WIRING}"]
    if machine.iommu == "dmar":
        result += ["-device", "intel-iommu,intremap=on,caching-mode=on,device-iotlb=on"]
    elif machine.iommu == "ivrs":
        # Without a place of its own QEMU puts the function into the first free slot.
        result += ["-device", f"AMDVI-PCI,id={AMD_IOMMU},bus=pcie.0,addr={AMD_IOMMU_SLOT:#x}"]
        result += ["-device", f"amd-iommu,pci-id={AMD_IOMMU},dma-remap=on,intremap=on"]
    for index, bridge in enumerate(machine.host_bridges):
        result += _host_bridge(machine, bridge, index)
    return result


def _platform(machine: Machine) -> list[str]:
    scale = machine.scales["boot"]
    cpus_per_socket = scale.cores_per_socket * scale.threads_per_core
    result = ["-name", f"twin-{machine.name}"]
    # Without system management mode the firmware boots in half the time: each entry changes every device's memory map.
    result += ["-M", "q35,kernel-irqchip=split,sata=off,smbus=off,vmport=off,smm=off"]
    result += ["-accel", f"tcg,thread=multi,tb-size={TRANSLATION_CACHE_MIB}"]
    result += ["-cpu", CPU]
    result += [
        "-smp",
        f"{scale.cpus},sockets={scale.sockets},cores={scale.cores_per_socket},threads={scale.threads_per_core}",
    ]
    result += ["-m", f"{scale.memory_gib_per_node * len(machine.nodes)}G"]
    for node in machine.nodes:
        # Nodes of one socket share its CPUs evenly. Devices behind vfio-user need shared memory.
        siblings = [other.id for other in machine.nodes if other.socket == node.socket]
        count = cpus_per_socket // len(siblings)
        first = node.socket * cpus_per_socket + siblings.index(node.id) * count
        result += ["-object", f"memory-backend-memfd,id=memory{node.id},size={scale.memory_gib_per_node}G,share=on"]
        result += ["-numa", f"node,nodeid={node.id},cpus={first}-{first + count - 1},memdev=memory{node.id}"]
    for node in machine.nodes:
        for other, distance in enumerate(node.distances):
            if other != node.id:
                result += ["-numa", f"dist,src={node.id},dst={other},val={distance}"]
    return result


def _firmware(ovmf_code: Path) -> list[str]:
    return [
        *("-nodefaults", "-no-user-config", "-display", "none"),
        *("-drive", f"if=pflash,format=raw,readonly=on,file={ovmf_code}"),
        *("-drive", f"if=pflash,format=raw,file={FIRMWARE_VARIABLES}"),
        *("-chardev", f"file,id=serial,path={SERIAL_LOG},append=on", "-serial", "chardev:serial"),
        *("-qmp", f"unix:{QMP_SOCKET},server=on,wait=off"),
    ]


def _root_disk(ssh_port: int) -> list[str]:
    return [
        *("-drive", f"file={ROOT_DISK},format=qcow2,if=none,id=root,cache=unsafe,discard=unmap"),
        *("-device", f"virtio-blk-pci,id=rootdisk,drive=root,bus=pcie.0,addr={ROOT_DISK_SLOT:#x},bootindex=1"),
        # Nothing but the forwarded port: what a run needs is baked into the image, and no test may depend on the world.
        *("-netdev", f"user,id=management,restrict=on,hostfwd=tcp:127.0.0.1:{ssh_port}-:22"),
    ]


def _host_bridge(machine: Machine, bridge: HostBridge, index: int) -> list[str]:
    pxb = f"pxb{index}"
    slot = FIRST_EXPANDER_SLOT + index
    result = ["-device", f"pxb-pcie,id={pxb},bus=pcie.0,addr={slot:#x},bus_nr={bridge.bus},numa_node={bridge.node}"]
    link = _link(machine.switch_link)
    for number, port in enumerate(bridge.ports):
        name = f"{index}x{number}"
        # A chassis and slot pair names a physical slot and must be unique.
        result += [
            "-device",
            f"pcie-root-port,id=rp{name},bus={pxb},addr={number:#x},chassis={index},slot={number},{link},hotplug=off",
        ]
        if isinstance(port, Switch):
            result += _switch(machine, port, name, f"rp{name}", 0x10 * (index + 1) + number, itertools.count())
        else:
            result += _functions(machine, port, f"rp{name}")
    return result


def _switch(
    machine: Machine, switch: Switch, name: str, bus: str, chassis: int, physical_slots: Iterator[int]
) -> list[str]:
    """A switch and all below it.

    :param physical_slots: numbers that no port of this chassis has yet.
    """
    link = _link(machine.switch_link)
    result = ["-device", f"cxl-upstream,id=up{name},bus={bus},{link}"]
    numbers = [next(physical_slots) for _port in switch.ports]
    for below, port in enumerate(switch.ports):
        downstream = f"dn{name}x{below}"
        place = f"addr={below:#x},chassis={chassis},slot={numbers[below]}"
        result += ["-device", f"cxl-downstream,id={downstream},bus=up{name},{place},{link},hotplug=off"]
        if isinstance(port, Switch):
            result += _switch(machine, port, f"{name}x{below}", downstream, chassis, physical_slots)
        elif len(port.devices) == 1:
            result += _device(machine, port.devices[0], {"bus": downstream, "addr": "0"})
        else:
            result += _functions(machine, port, downstream)
    return result


def _functions(machine: Machine, slot: Slot, bus: str) -> list[str]:
    result = []
    for function, device in enumerate(slot.devices):
        place: dict[str, str | bool] = {"bus": bus, "addr": f"0.{function}"}
        if len(slot.devices) > 1:
            place["multifunction"] = True
        result += _device(machine, device, place)
    return result


def _link(link: Link) -> str:
    return f"x-speed={_SPEEDS[link.gtps]},x-width={link.width}"


def _device(machine: Machine, device: Device, place: dict[str, str | bool]) -> list[str]:
    if isinstance(device, Endpoint):
        socket = {"type": "unix", "path": f"{DEVICE_SOCKETS}/{device.name}"}
        return _json_device("vfio-user-pci", device.name, place, {"socket": socket, "x-msg-timeout": ANSWER_TIMEOUT_MS})
    if isinstance(device, Nvme):
        drive = f"file={nvme_image(device)},format=raw,if=none,id={device.name}-media,cache=unsafe,discard=unmap"
        properties: dict[str, object] = {"drive": f"{device.name}-media", "serial": device.serial}
        return ["-drive", drive, *_json_device("nvme", device.name, place, properties)]
    card: dict[str, object] = {"mac": mac_address(machine, device)}
    if device.network == "management":
        card["netdev"] = "management"
    return _json_device("igb", device.name, place, card)


def mac_address(machine: Machine, device: Igb) -> str:
    """The card's address, unique in the machine and stable over boots.

    The management card has the one that QEMU gives to the first card of a machine: by it the image knows its network.
    """
    cards = [card for card in machine.devices() if isinstance(card, Igb)]
    cards.sort(key=lambda card: (card.network != "management", card.name))
    return f"52:54:00:12:34:{FIRST_MAC_TAIL + cards.index(device):02x}"


def _json_device(driver: str, name: str, place: dict[str, str | bool], properties: dict[str, object]) -> list[str]:
    return ["-device", json.dumps({"driver": driver, "id": name, **place, **properties})]
