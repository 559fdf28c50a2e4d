# Copyright: the topovirt.kvm authors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Machine description -> recorded tree: /sys, /proc and /etc as the server's booted kernel shows them.

At ``boot`` scale every attribute of ``collector.py`` is what the booted kernel shows (``agreement.py`` holds both
together); at ``real`` scale CPUs and memory are those of the server as sold. The tree holds what the collection reads
and nothing else.
"""

from __future__ import annotations

import json
import os
import re
import struct
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

from tests.twin import description, vpd
from tests.twin.addresses import AMD_IOMMU, Function, functions, iommu_groups, module_ids
from tests.twin.config_space import ConfigSpace
from tests.twin.description import LINK_SPEED_CODES, Endpoint, Igb, Link, Machine, Nvme, Scale
from tests.twin.qemu import PHYS_BITS, mac_address

DRIVERS = ("native", "vfio")
GRUB_DEFAULTS = Path(__file__).parent / "images" / "host" / "files" / "etc" / "default" / "grub"
FSTAB = Path(__file__).parent / "images" / "host" / "files" / "etc" / "fstab"

# What Debian 13 has; ``agreement.py`` does not compare versions, which follow the mirror.
KERNEL = "6.12.0+deb13-amd64"
ROOT_UUID = "00000000-0000-4000-8000-000000000001"
BOOT_ID = "00000000-0000-4000-8000-000000000002"
ROOT_DISK_SECTORS = 5 << 21
ESP_SECTORS = 64 << 11

# Flags of a line of ``resource`` (include/linux/ioport.h): kind of space, then the low bits as in the BAR itself.
IO_BAR = 0x40101
MEMORY_BAR = 0x40200
MEMORY_64 = 0x140204
MEMORY_64_PREFETCH = 0x14220C

BOOTED_CPU = description.Cpu("AuthenticAMD", 23, 49, "AMD EPYC-Rome Processor", PHYS_BITS, 48)  # of qemu.CPU

# How much of a node's memory is left after what firmware and kernel keep.
USABLE_SHARE = 0.98
HUGE_PAGE_SIZES_KB = (2048, 1048576)


@dataclass(frozen=True)
class Profile:
    """What QEMU's own device of one kind shows (read from a booted server).

    ``bars`` are index -> (bytes, flags); ``port`` is the device/port type of the PCI Express capability; ``acs`` are
    the capability and control registers of access control.
    """

    vendor: int
    device: int
    class_code: int
    revision: int = 0
    subsystem: tuple[int, int] = (0x1AF4, 0x1100)
    bars: dict[int, tuple[int, int]] = field(default_factory=dict)
    port: int | None = None
    resets: str = ""
    driver: str | None = None
    header_type: int = 0
    acs: tuple[int, int] | None = None


# Linux switches on source validation, request and completion redirection and upstream forwarding where an IOMMU is.
ROOT_PORT_ACS = (0x5F, 0x1D)

_SLOW = Link(2.5, 1)
_BUILT_IN = {
    "mch": Profile(0x8086, 0x29C0, 0x060000),
    "rootdisk": Profile(
        *(0x1AF4, 0x1001, 0x010000, 0, (0x1AF4, 0x0002)),
        {0: (0x80, IO_BAR), 1: (0x1000, MEMORY_BAR), 4: (0x4000, MEMORY_64_PREFETCH)},
        driver="virtio-pci",
    ),
    "lpc": Profile(0x8086, 0x2918, 0x060100, 2, header_type=0x80),
    AMD_IOMMU: Profile(0x1022, 0x1419, 0x080600),
    "expander": Profile(0x1B36, 0x000B, 0x060000),
    "root_port": Profile(
        *(
            0x1B36,
            0x000C,
            0x060400,
            0,
            (0x1B36, 0x0000),
            {0: (0x1000, MEMORY_BAR)},
            4,
            "",
            "pcieport",
            1,
            ROOT_PORT_ACS,
        ),
    ),
    "upstream_port": Profile(
        *(0x19E5, 0xA128, 0x060400, 0, (0x0000, 0x0000), {0: (0x10000, MEMORY_64)}, 5, "flr bus", "pcieport", 1),
    ),
    "downstream_port": Profile(
        *(0x19E5, 0xA129, 0x060400, 0, (0x0000, 0x0000), {0: (0x10000, MEMORY_64)}, 6, "flr bus", "pcieport", 1),
    ),
    "nvme": Profile(0x1B36, 0x0010, 0x010802, 2, bars={0: (0x4000, MEMORY_64)}, port=0, resets="flr", driver="nvme"),
    "igb": Profile(
        *(0x8086, 0x10C9, 0x020000, 1),
        bars={
            0: (0x20000, MEMORY_BAR),
            1: (0x20000, MEMORY_BAR),
            2: (0x20, IO_BAR),
            3: (0x4000, MEMORY_64),
            7: (0x20000, MEMORY_64_PREFETCH),
            10: (0x20000, MEMORY_64_PREFETCH),  # of the virtual functions
        },
        port=0,
        resets="flr pm",
        driver="igb",
    ),
}
IGB_VIRTUAL_FUNCTIONS = 7

PCI_EXPRESS_AT = 0x40
CONVENTIONAL_CONFIG = 256
EXTENDED_AT = 0x100
EXPRESS_CONFIG = 4096
ENDPOINT_RESOURCES = 13
BRIDGE_RESOURCES = 17


def uevent(bdf: str, class_code: int, ids: Sequence[int], driver: str | None = None) -> str:
    """What the kernel tells of a function at once, as seen on Linux 6.18: without leading zeros in the class.

    :param ids: vendor, device and those of the subsystem.
    """
    vendor, device, subsystem_vendor, subsystem_device = ids
    base, sub, interface = class_code >> 16, class_code >> 8 & 0xFF, class_code & 0xFF
    alias = f"v{vendor:08X}d{device:08X}sv{subsystem_vendor:08X}sd{subsystem_device:08X}"
    lines = [
        f"PCI_CLASS={class_code:04X}",
        f"PCI_ID={vendor:04X}:{device:04X}",
        f"PCI_SUBSYS_ID={subsystem_vendor:04X}:{subsystem_device:04X}",
        f"PCI_SLOT_NAME={bdf}",
        f"MODALIAS=pci:{alias}bc{base:02X}sc{sub:02X}i{interface:02X}",
    ]
    return "\n".join([*([f"DRIVER={driver}"] if driver else []), *lines])


def record(machine: Machine, directory: Path, scale: str = "boot", drivers: str = "native") -> None:
    """Write the tree below ``directory``, which must be new or empty.

    :param scale: ``boot`` or ``real``: size of CPUs and memory.
    :param drivers: ``native``: as the server boots; ``vfio``: its inert endpoints are with vfio-pci.
    """
    directory.mkdir(parents=True, exist_ok=True)
    if any(directory.iterdir()):
        raise FileExistsError(f"{directory} is not empty")
    _Recorder(machine, directory, scale, drivers).write()


def cpulist(cpus: list[int]) -> str:
    """CPU numbers as the kernel lists them: "0-3,8"."""
    parts: list[list[int]] = []
    for cpu in sorted(cpus):
        if parts and parts[-1][-1] == cpu - 1:
            parts[-1].append(cpu)
        else:
            parts.append([cpu])
    return ",".join(str(run[0]) if len(run) == 1 else f"{run[0]}-{run[-1]}" for run in parts)


@dataclass(frozen=True)
class Cpu:
    number: int
    socket: int
    core: int  # within the socket
    thread: int
    node: int
    l3: int


def cpus_of(machine: Machine, scale: Scale, interleaved: bool) -> list[Cpu]:
    """All logical CPUs, ascending. Firmware of real servers numbers all first threads before the second ones
    (``interleaved``), QEMU a core's threads in a row."""
    result = []
    cores = scale.sockets * scale.cores_per_socket
    for number in range(scale.cpus):
        core, thread = (number % cores, number // cores) if interleaved else divmod(number, scale.threads_per_core)
        socket, core_in_socket = divmod(core, scale.cores_per_socket)
        nodes = [node.id for node in machine.nodes if node.socket == socket]
        node = nodes[core_in_socket * len(nodes) // scale.cores_per_socket]
        result.append(Cpu(number, socket, core_in_socket, thread, node, core // scale.cores_per_l3))
    return result


class _Recorder:
    def __init__(self, machine: Machine, root: Path, scale: str, drivers: str) -> None:
        self.machine = machine
        self.root = root
        self.real = scale == "real"
        self.scale = machine.scales[scale]
        self.vfio = drivers == "vfio"
        self.model = machine.cpu if self.real else BOOTED_CPU
        self.cpus = cpus_of(machine, self.scale, interleaved=self.real)
        self.functions = functions(machine)
        self.by_id = {function.id: function for function in self.functions}
        self.groups = iommu_groups(machine)
        self.next_address = {"io": 0x6000, "low": 0x8000_0000, "high": 0x3800_0000_0000}
        # Network cards are probed as Linux finds their buses: the last expander first. For controllers, which are
        # probed at the same time, no order holds.
        self.cards = [f for f in reversed(self.functions) if isinstance(f.device, Igb)]
        self.disks = [f for f in self.functions if isinstance(f.device, Nvme)]

    def write(self) -> None:
        for function in self.functions:
            self.pci_function(function)
        for root in {function.root_bus for function in self.functions}:
            node = next((bridge.node for bridge in self.machine.host_bridges if bridge.bus == root), None)
            bus = f"0000:{root:02x}"
            self.file(f"sys/devices/pci{bus}/pci_bus/{bus}/cpulistaffinity", self.cpulist_of(node))
        self.network()
        self.disks_of_the_host()
        self.processors()
        self.nodes()
        self.system()

    # --- writing

    def file(self, path: str, content: str | bytes | int) -> None:
        target = self.root / path
        target.parent.mkdir(parents=True, exist_ok=True)
        target.write_bytes(content if isinstance(content, bytes) else f"{content}\n".encode())

    def directory(self, path: str) -> None:
        (self.root / path).mkdir(parents=True, exist_ok=True)

    def link(self, path: str, target: str) -> None:
        """A relative link to ``target``, which is a path below the root too, as sysfs makes them."""
        place = self.root / path
        place.parent.mkdir(parents=True, exist_ok=True)
        above, name = os.path.split(self.root / target)
        # sysfs names the target even when it lies above the link: "../../0000:27:00.0" instead of "..".
        place.symlink_to(os.path.join(os.path.relpath(above, place.parent), name))

    # --- PCI

    def path(self, function: Function) -> str:
        """Where the function is below ``sys/devices``, through all bridges above."""
        if function.parent is None:
            above = f"sys/devices/pci0000:{function.root_bus:02x}"
        else:
            above = self.path(self.by_id[function.parent])
        return f"{above}/{function.bdf}"

    def cpulist_of(self, node: int | None) -> str:
        return cpulist([cpu.number for cpu in self.cpus if node in (None, cpu.node)])

    def profile(self, function: Function) -> Profile:
        device = function.device
        if isinstance(device, Endpoint):
            kind = device.kind
            return Profile(
                *(
                    kind.vendor,
                    kind.device,
                    kind.class_code,
                    kind.revision,
                    (kind.subsystem_vendor, kind.subsystem_device),
                ),
                bars={index: (size, MEMORY_64_PREFETCH) for index, size in kind.bars.items()},
                resets="flr" if kind.flr else "",
                driver="vfio-pci" if self.vfio else kind.native_driver,
            )
        if isinstance(device, Nvme):
            return _BUILT_IN["nvme"]
        if isinstance(device, Igb):
            return _BUILT_IN["igb"]
        return _BUILT_IN[function.id if function.kind == "platform" else function.kind]

    def pci_function(self, function: Function) -> None:
        path = self.path(function)
        profile = self.profile(function)
        self.link(f"sys/bus/pci/devices/{function.bdf}", path)
        self.link(f"{path}/subsystem", "sys/bus/pci")
        ids = (profile.vendor, profile.device, *profile.subsystem)
        self.file(f"{path}/uevent", uevent(function.bdf, profile.class_code, ids, profile.driver))
        self.file(f"{path}/class", f"0x{profile.class_code:06x}")
        self.file(f"{path}/revision", f"0x{profile.revision:02x}")
        for name, value in (("vendor", profile.vendor), ("device", profile.device)):
            self.file(f"{path}/{name}", f"0x{value:04x}")
        for name, value in zip(("subsystem_vendor", "subsystem_device"), profile.subsystem, strict=False):
            self.file(f"{path}/{name}", f"0x{value:04x}")
        self.file(f"{path}/numa_node", -1 if function.node is None else function.node)
        self.file(f"{path}/local_cpulist", self.cpulist_of(function.node))
        self.file(f"{path}/driver_override", "(null)")
        self.file(f"{path}/power_state", self.power_state(function, profile))
        self.file(f"{path}/resource", self.resource(function, profile))
        self.file(f"{path}/config", self.config(function, profile))
        if isinstance(function.device, Endpoint) and function.device.kind.vpd is not None:
            self.file(f"{path}/vpd", vpd.encode(function.device.kind.vpd))
        link = self.pci_link(function)
        if link is not None:
            self.file(f"{path}/max_link_speed", f"{link.gtps:.1f} GT/s PCIe")
            self.file(f"{path}/max_link_width", link.width)
        resets = self.resets(function, profile)
        if resets:
            self.file(f"{path}/reset_method", resets)
        if isinstance(function.device, Igb):
            self.file(f"{path}/sriov_totalvfs", IGB_VIRTUAL_FUNCTIONS)
            self.file(f"{path}/sriov_numvfs", 0)
        if profile.driver is not None:
            driver = f"sys/bus/pci/drivers/{profile.driver}"
            self.directory(driver)
            self.link(f"{path}/driver", driver)
            self.link(f"{driver}/{function.bdf}", path)
        if function.bdf in self.groups:
            group = f"sys/kernel/iommu_groups/{self.groups[function.bdf]}"
            self.file(f"{group}/type", "DMA")
            self.link(f"{path}/iommu_group", group)
            self.link(f"{group}/devices/{function.bdf}", path)

    def power_state(self, function: Function, profile: Profile) -> str:
        if isinstance(function.device, Endpoint) and self.vfio:
            return "D3hot"  # vfio-pci saves power
        # Of functions without a driver nobody ever asked, but for AMD's IOMMU, which the kernel switches on itself.
        asked = profile.driver is not None or function.device is not None or function.id == AMD_IOMMU
        return "D0" if asked else "unknown"

    def pci_link(self, function: Function) -> Link | None:
        if isinstance(function.device, Endpoint):
            return function.device.kind.link
        if function.device is not None:
            return _SLOW
        return self.machine.switch_link if function.kind.endswith("_port") else None

    def resets(self, function: Function, profile: Profile) -> str:
        """Reset methods, in Linux's order; it offers the bus reset to function 0 of a device only."""
        words = [profile.resets] if profile.resets else []
        if function.device is not None and function.function == 0:
            words.append("bus")
        if function.parent is not None and self.by_id[function.parent].kind in ("upstream_port", "downstream_port"):
            words.append("cxl_bus")  # the emulated switch is a CXL switch
        return " ".join(words)

    def multifunction(self, function: Function) -> bool:
        return any(len(slot.devices) > 1 and function.device in slot.devices for slot in self.machine.slots())

    def resource(self, function: Function, profile: Profile) -> str:
        lines = []
        for index in range(BRIDGE_RESOURCES if function.secondary is not None else ENDPOINT_RESOURCES):
            size, flags = profile.bars.get(index, (0, 0))
            start = self.allocate(size, flags) if size else 0
            lines.append(f"0x{start:016x} 0x{start + size - 1 if size else 0:016x} 0x{flags:016x}")
        return "\n".join(lines)

    def allocate(self, size: int, flags: int) -> int:
        """An address in the window of its kind, aligned to the size as PCI demands."""
        kind = "io" if flags == IO_BAR else "high" if flags == MEMORY_64_PREFETCH else "low"
        start = -(-self.next_address[kind] // size) * size
        self.next_address[kind] = start + size
        return start

    def config(self, function: Function, profile: Profile) -> bytes:
        if isinstance(function.device, Endpoint):
            space = ConfigSpace(function.device, self.multifunction(function))
            if self.machine.iommu == "dmar":
                space.enable_ats()  # Linux does, where the IOMMU can translate ahead; QEMU's of AMD's kind cannot
            return space.read(0, EXPRESS_CONFIG)
        data = bytearray(CONVENTIONAL_CONFIG if profile.port is None else EXPRESS_CONFIG)
        struct.pack_into("<HH", data, 0, profile.vendor, profile.device)
        struct.pack_into("<I", data, 8, profile.class_code << 8 | profile.revision)
        data[0x0E] = profile.header_type
        if function.secondary is not None and function.subordinate is not None:
            data[0x18:0x1B] = bytes((function.bus, function.secondary, function.subordinate))
        else:
            struct.pack_into("<HH", data, 0x2C, *profile.subsystem)
        link = self.pci_link(function)
        if profile.port is not None and link is not None:
            data[0x06] = 0x10  # there is a list of capabilities
            data[0x34] = PCI_EXPRESS_AT
            struct.pack_into("<BBH", data, PCI_EXPRESS_AT, 0x10, 0, 2 | profile.port << 4)
            struct.pack_into("<I", data, PCI_EXPRESS_AT + 0x0C, LINK_SPEED_CODES[link.gtps] | link.width << 4)
        if profile.acs is not None:
            struct.pack_into("<IHH", data, EXTENDED_AT, 0x0D | 1 << 16, *profile.acs)
        return bytes(data)

    # --- what hangs on PCI functions

    def network(self) -> None:
        for number, function in enumerate(self.cards):
            assert isinstance(function.device, Igb)
            name = f"eth{number}"
            path = f"{self.path(function)}/net/{name}"
            managed = function.device.network == "management"
            self.file(f"{path}/address", mac_address(self.machine, function.device))
            self.file(f"{path}/flags", "0x1003" if managed else "0x1002")
            self.file(f"{path}/operstate", "up" if managed else "down")
            self.link(f"{path}/device", self.path(function))
            self.link(f"sys/class/net/{name}", path)
            if managed:
                row = "{}\t{}\t{}\t{}\t0\t0\t0\t{}\t0\t0\t0"
                rows = [
                    "Iface\tDestination\tGateway \tFlags\tRefCnt\tUse\tMetric\tMask\t\tMTU\tWindow\tIRTT",
                    row.format(name, "00000000", "0202000A", "0003", "00000000"),
                    row.format(name, "0002000A", "00000000", "0001", "00FFFFFF"),
                ]
                self.file("proc/net/route", "\n".join(rows))
                self.file(
                    "proc/net/fib_trie", "Local:\n  +-- 10.0.2.0/24 2 0 2\n     |-- 10.0.2.15\n        /32 host LOCAL"
                )
        self.file("sys/devices/virtual/net/lo/address", "00:00:00:00:00:00")
        self.file("sys/devices/virtual/net/lo/flags", "0x9")
        self.link("sys/class/net/lo", "sys/devices/virtual/net/lo")

    def disks_of_the_host(self) -> None:
        for number, function in enumerate(self.disks):
            assert isinstance(function.device, Nvme)
            controller = f"{self.path(function)}/nvme/nvme{number}"
            self.link(f"sys/class/nvme/nvme{number}", controller)
            self.file(f"{controller}/address", function.bdf)
            self.file(f"{controller}/serial", f"{function.device.serial:20}")
            self.file(f"{controller}/transport", "pcie")
            self.link(f"{controller}/device", self.path(function))
            disk = f"{controller}/nvme{number}n1"
            self.block(disk, f"259:{number}", function.device.size_mib << 11)
            self.link(f"{disk}/device", controller)
        virtio = f"{self.path(self.by_id['rootdisk'])}/virtio0"
        disk = f"{virtio}/block/vda"
        self.block(disk, "254:0", ROOT_DISK_SECTORS)
        self.link(f"{disk}/device", virtio)
        sizes = {1: ESP_SECTORS, 2: ROOT_DISK_SECTORS - ESP_SECTORS - (2 << 11)}
        for partition, sectors in sizes.items():
            path = f"{disk}/vda{partition}"
            self.file(f"{path}/dev", f"254:{partition}")
            self.file(f"{path}/partition", partition)
            self.file(f"{path}/size", sectors)
            self.link(f"sys/class/block/vda{partition}", path)

    def block(self, path: str, number: str, sectors: int) -> None:
        name = path.rpartition("/")[2]
        self.file(f"{path}/dev", number)
        self.file(f"{path}/size", sectors)
        self.link(f"sys/class/block/{name}", path)
        self.link(f"sys/block/{name}", path)

    # --- CPUs, memory, system

    def processors(self) -> None:
        everything = cpulist([cpu.number for cpu in self.cpus])
        for name in ("online", "possible", "present"):
            self.file(f"sys/devices/system/cpu/{name}", everything)
        for cpu in self.cpus:
            path = f"sys/devices/system/cpu/cpu{cpu.number}"
            package = [other.number for other in self.cpus if other.socket == cpu.socket]
            core = [other.number for other in self.cpus if (other.socket, other.core) == (cpu.socket, cpu.core)]
            cache = [other.number for other in self.cpus if other.l3 == cpu.l3 and self.share_l3(cpu, other)]
            self.file(f"{path}/topology/physical_package_id", cpu.socket)
            # An AMD kernel counts dies through the machine, an Intel one within the package.
            self.file(f"{path}/topology/die_id", cpu.socket if self.model.vendor == "AuthenticAMD" else 0)
            self.file(f"{path}/topology/core_id", cpu.core)
            self.file(f"{path}/topology/thread_siblings_list", cpulist(core))
            for name in ("core_siblings_list", "die_cpus_list"):  # one die in each package
                self.file(f"{path}/topology/{name}", cpulist(package))
            self.file(f"{path}/cache/index3/id", cpu.l3)
            self.file(f"{path}/cache/index3/level", 3)
            self.file(f"{path}/cache/index3/type", "Unified")
            self.file(f"{path}/cache/index3/shared_cpu_list", cpulist(cache))
            self.link(f"{path}/node{cpu.node}", f"sys/devices/system/node/node{cpu.node}")
        self.file("proc/cpuinfo", "\n\n".join(self.cpuinfo(cpu) for cpu in self.cpus) + "\n")

    def share_l3(self, one: Cpu, other: Cpu) -> bool:
        """Linux does not let AMD's last-level caches span nodes, whatever the CPU says."""
        return self.model.vendor != "AuthenticAMD" or one.node == other.node

    def cpuinfo(self, cpu: Cpu) -> str:
        """A paragraph of /proc/cpuinfo."""
        model = self.model
        return "\n".join(
            [
                f"processor\t: {cpu.number}",
                f"vendor_id\t: {model.vendor}",
                f"cpu family\t: {model.family}",
                f"model\t\t: {model.model}",
                f"model name\t: {model.name}",
                f"physical id\t: {cpu.socket}",
                f"siblings\t: {self.scale.cores_per_socket * self.scale.threads_per_core}",
                f"core id\t\t: {cpu.core}",
                f"cpu cores\t: {self.scale.cores_per_socket}",
                f"flags\t\t: lm ht {'svm' if model.vendor == 'AuthenticAMD' else 'vmx'}",
                f"address sizes\t: {model.physical_bits} bits physical, {model.virtual_bits} bits virtual",
            ]
        )

    def nodes(self) -> None:
        ids = cpulist([node.id for node in self.machine.nodes])
        for name in ("online", "has_cpu", "has_memory"):
            self.file(f"sys/devices/system/node/{name}", ids)
        memory = int((self.scale.memory_gib_per_node << 20) * USABLE_SHARE)
        for node in self.machine.nodes:
            path = f"sys/devices/system/node/node{node.id}"
            self.file(f"{path}/cpulist", self.cpulist_of(node.id))
            self.file(f"{path}/distance", " ".join(map(str, node.distances)))
            self.file(
                f"{path}/meminfo",
                f"Node {node.id} MemTotal:       {memory} kB\nNode {node.id} MemFree:        {memory} kB",
            )
            for size in HUGE_PAGE_SIZES_KB:
                for name in ("nr_hugepages", "free_hugepages", "surplus_hugepages"):
                    self.file(f"{path}/hugepages/hugepages-{size}kB/{name}", 0)
        for size in HUGE_PAGE_SIZES_KB:
            self.file(f"sys/kernel/mm/hugepages/hugepages-{size}kB/nr_hugepages", 0)
        total = memory * len(self.machine.nodes)
        self.file("proc/meminfo", f"MemTotal:       {total} kB\nMemFree:        {total} kB\nMemAvailable:   {total} kB")

    def system(self) -> None:
        self.file("sys/devices/system/cpu/isolated", "")
        self.file("sys/devices/system/cpu/nohz_full", "(null)")
        self.file("sys/kernel/security/lockdown", "[none] integrity confidentiality")
        # This firmware cannot do Secure Boot, so it has other variables only.
        self.file("sys/firmware/efi/efivars/BootOrder-8be4df61-93ca-11d2-aa0d-00e098032b8c", bytes((7, 0, 0, 0, 0, 0)))
        if self.machine.iommu is not None:
            table = self.machine.iommu.upper()
            self.file(f"sys/firmware/acpi/tables/{table}", table.encode())
        words = re.search(r'^GRUB_CMDLINE_LINUX="(.*)"$', GRUB_DEFAULTS.read_text(encoding="utf-8"), re.MULTILINE)
        base = words[1] if words else ""
        self.file("proc/cmdline", f"BOOT_IMAGE=/boot/vmlinuz-{KERNEL} root=UUID={ROOT_UUID} ro {base} quiet")
        self.file("proc/sys/kernel/osrelease", KERNEL)
        self.file("proc/sys/kernel/arch", "x86_64")
        self.file("proc/sys/kernel/random/boot_id", BOOT_ID)
        self.file("proc/swaps", "Filename\t\t\t\tType\t\tSize\t\tUsed\t\tPriority")
        mounts = [
            "28 1 254:2 / / rw,relatime shared:1 - ext4 /dev/vda2 rw,errors=remount-ro",
            "42 28 254:1 / /boot/efi rw,relatime shared:54 - vfat /dev/vda1 rw,errors=remount-ro",
        ]
        self.file("proc/self/mountinfo", "\n".join(mounts))
        self.file("usr/lib/os-release", 'PRETTY_NAME="Debian GNU/Linux 13 (trixie)"\nID=debian\nVERSION_ID="13"')
        self.link("etc/os-release", "usr/lib/os-release")
        self.file("etc/fstab", FSTAB.read_bytes())
        if self.vfio:
            # Known from before the driver gave the GPUs away.
            self.file("var/lib/topovirt/module-ids.json", json.dumps(module_ids(self.machine)))
