# Copyright: the topovirt.kvm authors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Every part of a VM's definition: what it is for, and which libvirt and QEMU know it.

The same table, for users, is in docs/reference/guest.md; a test holds both together. Versions are those of
https://libvirt.org/formatdomain.html and of QEMU's release notes.
"""

from __future__ import annotations

import re
from collections.abc import Iterable
from dataclasses import dataclass

from ansible_collections.topovirt.kvm.plugins.module_utils._topology.model import Topology

Version = tuple[int, ...]


@dataclass(frozen=True)
class Element:
    """A part of the definition."""

    name: str
    paths: tuple[str, ...]  # in the definition, below <domain>
    reason: str
    libvirt: Version = ()  # oldest version that knows it
    qemu: Version = ()
    without: str = ""  # what is done for an older host; empty when no supported host is older


ELEMENTS: tuple[Element, ...] = (
    Element(
        "identity",
        ("name", "uuid", "metadata"),
        "Names the VM; the metadata say what was asked for, so that the VM can be planned again.",
    ),
    Element(
        "memory",
        ("memory", "memoryBacking/hugepages"),
        "Memory in huge pages of each cell's node: 1 GiB pages make 2 TiB two thousand DMA mappings instead of half a "
        "billion, and cheap address translation.",
        (1, 2, 5),
    ),
    Element("nosharepages", ("memoryBacking/nosharepages",), "Pages pinned for DMA cannot be merged."),
    Element(
        "allocation",
        ("memoryBacking/allocation", "memoryBacking/allocation@mode"),
        "All memory is taken at the start, so a lack of it shows at once and not in a running VM.",
    ),
    Element(
        "allocation_threads",
        ("memoryBacking/allocation@threads",),
        "Several threads write the pages at the start, from libvirt 8.10 and QEMU 7.2 on by CPUs of the pages' node.",
        (8, 2),
        (5, 0),
        "memory is written by as many threads as QEMU takes by itself, with 5.0 to 7.0 by one: the VM starts late",
    ),
    Element(
        "vcpu",
        ("vcpu", "cputune/vcpupin"),
        "One vCPU per CPU, sibling threads on siblings: the guest's scheduler and caches see the truth.",
    ),
    Element(
        "emulatorpin",
        ("cputune/emulatorpin",),
        "QEMU's own threads stay on the CPUs that the host keeps, away from vCPUs.",
    ),
    Element(
        "iothreads",
        ("iothreads", "cputune/iothreadpin", "devices/disk/driver@iothread"),
        "The disk is served by a thread of its own on the host's CPUs of the first cell's node.",
        (1, 2, 8),
    ),
    Element(
        "numatune",
        ("numatune",),
        "Each cell's memory is bound to its node; without it pages come from anywhere.",
    ),
    Element(
        "boot",
        ("os",),
        "q35, because only it has PCI Express; UEFI firmware for disks, or a kernel of the host's.",
        (5, 2),
    ),
    Element(
        "firmware_feature",
        ("os/firmware",),
        "Firmware without enrolled keys: no distribution signs GPU drivers.",
        (7, 2),
        (),
        "libvirt takes the firmware that comes first, and Secure Boot may refuse GPU drivers",
    ),
    Element(
        "nccl_file",
        ("sysinfo",),
        "NCCL's topology file, for a service in the guest that puts it where NCCL looks (role gpu_guest).",
        (6, 5),
        (),
        "the guest gets no NCCL file; put the plan's there by hand",
    ),
    Element(
        "acpi",
        ("features/acpi", "features/apic"),
        "ACPI tells the guest its nodes, distances and host bridges.",
    ),
    Element(
        "hint_dedicated",
        ("features/kvm/hint-dedicated",),
        "Says that no vCPU shares a CPU: the guest spins instead of yielding.",
        (5, 7),
        (2, 12),
    ),
    Element(
        "poll_control",
        ("features/kvm/poll-control",),
        "Lets a guest that polls before it halts (cpuidle-haltpoll) switch the host's polling off, so that no time is "
        "spent twice.",
        (6, 10),
        (4, 2),
        "guest and host may both poll before a vCPU halts",
    ),
    Element(
        "ioapic",
        ("features/ioapic",),
        "Interrupt remapping for more than 255 APIC ids needs QEMU's I/O APIC.",
        (3, 4),
    ),
    Element(
        "cpu",
        ("cpu", "cpu/feature"),
        "The host's own CPU: all instructions, x2APIC, and topoext for siblings and caches on AMD.",
    ),
    Element(
        "cpu_topology",
        ("cpu/topology",),
        "Sockets, cores and threads as on the host.",
    ),
    Element(
        "dies",
        ("cpu/topology@dies",),
        "A die for each L3 cache where a cell's cores spread evenly over several.",
        (6, 1),
        (4, 1),
        "each L3 cache becomes a socket of its own",
    ),
    Element(
        "cache",
        ("cpu/cache",),
        "The guest sees the host's caches and their sizes.",
        (3, 3),
    ),
    Element(
        "maxphysaddr",
        ("cpu/maxphysaddr",),
        "Without it a guest has 40 address bits, too few for the BARs of large GPUs.",
        (8, 7),
        (2, 7),
        "the guest has 40 address bits, and the firmware is told the size of its window",
    ),
    Element(
        "maxphysaddr_limit",
        ("cpu/maxphysaddr@limit",),
        "Not more than 46 bits: the firmware uses no more, and old guest kernels fail with them.",
        (9, 3),
        (),
        "the guest has all address bits of the host",
    ),
    Element(
        "cells",
        ("cpu/numa/cell",),
        "A cell for each node of the host that the VM uses.",
    ),
    Element(
        "distances",
        ("cpu/numa/cell/distances",),
        "The host's distances between nodes.",
        (3, 10),
        (2, 10),
    ),
    Element(
        "clock",
        ("clock",),
        "No HPET, which costs exits; missed ticks of the real-time clock are caught up.",
    ),
    Element(
        "events",
        ("on_poweroff", "on_reboot", "on_crash"),
        "A VM that crashed stops instead of starting again, so that the crash is seen.",
    ),
    Element(
        "pm",
        ("pm",),
        "A guest with devices of the host cannot be suspended.",
    ),
    Element(
        "pxb",
        ("devices/controller[pcie-root]", "devices/controller[pcie-expander-bus]"),
        "One expander bus for each host bridge of the VM's devices, on the cell of its node: NODE and SYS paths as on "
        "the host, and a NUMA node for every device.",
        (1, 3, 4),
        (2, 6),
    ),
    Element(
        "ports",
        (
            "devices/controller[pcie-root-port]",
            "devices/controller[pcie-switch-upstream-port]",
            "devices/controller[pcie-switch-downstream-port]",
        ),
        "The host's root ports and switches: PIX, PXB and PHB paths as on the host, which NCCL, UCX and MPI read.",
        (1, 2, 19),
        (2, 6),
    ),
    Element(
        "hotplug",
        ("devices/controller/target@hotplug",),
        "Ports without hotplug: firmware reserves no windows for devices to come.",
        (6, 3),
        (5, 0),
        "firmware reserves windows for devices that never come",
    ),
    Element(
        "disk",
        ("devices/disk",),
        "On the root bus, without the host's page cache.",
    ),
    Element(
        "console",
        ("devices/serial", "devices/console", "devices/channel", "devices/controller[virtio-serial]"),
        "Serial console and guest agent.",
    ),
    Element(
        "no_usb",
        ("devices/controller[usb]",),
        "No USB controller, whose polling wakes vCPUs.",
    ),
    Element(
        "rng",
        ("devices/rng",),
        "Randomness for a guest that has no other source early.",
    ),
    Element(
        "memballoon",
        ("devices/memballoon",),
        "No balloon: memory pinned for DMA cannot be given back.",
    ),
    Element(
        "hostdev",
        ("devices/hostdev",),
        "The devices, bound to vfio-pci before and after; each at a fixed address.",
    ),
    Element(
        "iommu",
        (
            "devices/iommu",
            "devices/iommu/driver@intremap",
            "devices/iommu/driver@eim",
            "devices/iommu/driver@caching_mode",
        ),
        "More than 255 APIC ids need interrupt remapping in extended mode (x2APIC).",
        (3, 4),
        (2, 8),
    ),
    Element(
        "dma_translation",
        ("devices/iommu/driver@dma_translation",),
        "The guest's IOMMU remaps interrupts only and stays out of the devices' DMA.",
        (10, 7),
        (7, 1),
        "the guest could translate DMA too, which is slow: start its kernel with intel_iommu=off",
    ),
    Element(
        "override",
        ("qemu:override",),
        "Properties of QEMU's devices that libvirt has no element for: link speed and width of root ports, PCIe P2P "
        "cliques, and those of hostdev_properties.",
        (8, 2),
        (),
        "hostdev_properties and links that all root ports share are given by qemu:commandline, others are left out",
    ),
    Element(
        "commandline",
        ("qemu:commandline",),
        "What is left: the firmware's window (libvirt refuses opt/ovmf/ in its own element), and the stand-in for "
        "qemu:override.",
    ),
    Element(
        "link_32",
        ("qemu:override/qemu:device/qemu:frontend/qemu:property[x-speed]",),
        "Root ports of 32 and 64 GT/s.",
        (),
        (9, 0),
        "such root ports show 16 GT/s, the most that this QEMU knows",
    ),
)

_BY_NAME = {element.name: element for element in ELEMENTS}

# Without an emulated IOMMU a q35 guest has xAPIC ids only: 8 bits, of which 255 is the broadcast address.
XAPIC_MAX_ID = 254
# How many CPUs q35 takes, by QEMU version (hw/i386/pc_q35.c); ids stay below it too, so both limits hold.
_MAX_CPUS: tuple[tuple[Version, int], ...] = (((9, 0), 4096), ((8, 1), 1024), ((2, 8), 288))


def _parse(text: str | None) -> Version:
    found = re.match(r"\d+(\.\d+)*", text or "")
    return tuple(map(int, found.group(0).split("."))) if found else ()


def format_version(version: Version) -> str:
    """``(8, 7)`` -> ``"8.7"``."""
    return ".".join(map(str, version))


@dataclass(frozen=True)
class Versions:
    """The host's libvirt and QEMU; empty when unknown, which is taken for a current one."""

    libvirt: Version = ()
    qemu: Version = ()

    def has(self, name: str) -> bool:
        """Whether the host knows the element of that name."""
        element = _BY_NAME[name]
        return not any(
            have and have < need for have, need in ((self.libvirt, element.libvirt), (self.qemu, element.qemu))
        )

    def missing(self) -> list[str]:
        """Names of all elements that the host does not know."""
        return [element.name for element in ELEMENTS if not self.has(element.name)]

    def clears_hypertransport(self) -> bool:
        """Whether QEMU keeps RAM clear of HyperTransport's addresses on AMD CPUs (hw/i386/pc_q35.c: from 7.1 on)."""
        return not self.qemu or self.qemu >= (7, 1)

    def max_apic_id(self) -> int:
        """The highest APIC id that a VM of this host can have."""
        if not self.has("iommu"):
            return XAPIC_MAX_ID
        most = (count for since, count in _MAX_CPUS if not self.qemu or self.qemu >= since)
        return next(most, XAPIC_MAX_ID + 1) - 1

    def auto_max_apic_id(self, amd: bool) -> int:
        """The highest APIC id that a VM gets unasked: beyond xAPIC's only where that is known to cost nothing."""
        return self.max_apic_id() if self.has("dma_translation") and not amd else XAPIC_MAX_ID

    def warnings(self, wanted: Iterable[str]) -> list[str]:
        """One sentence for each wanted element that the host does not know."""
        found: list[str] = []
        for element in (_BY_NAME[name] for name in wanted if not self.has(name)):
            needs = [
                f"{program} {format_version(need)} (the host has {format_version(have)})"
                for program, have, need in (
                    ("libvirt", self.libvirt, element.libvirt),
                    ("QEMU", self.qemu, element.qemu),
                )
                if have and have < need
            ]
            found.append(f"{element.paths[0]} needs {' and '.join(needs)}: {element.without}.")
        return found


def read_versions(topology: Topology) -> Versions:
    """Versions of a host as the reader found them."""
    software = topology["software"]
    return Versions(_parse(software["libvirt"]), _parse(software["qemu"]))
