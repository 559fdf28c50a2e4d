# Copyright: the topovirt.kvm authors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Small machines made of files, as sysfs would show them: from the kernel's documentation, not from the reader."""

from __future__ import annotations

import os
from pathlib import Path

# Device/port types of the PCI Express capability.
ENDPOINT, ROOT_PORT, UPSTREAM, DOWNSTREAM, PCI_BRIDGE = 0, 4, 5, 6, 7


def config_space(vendor: str, device: str, header_type: int, port_type: int | None, length: int = 4096) -> bytes:
    """Configuration space with a power management capability at 0x40 and PCI Express, if any, behind it at 0x60, with
    read requests of 512 bytes; without extended capabilities."""
    space = bytearray(4096)
    space[0:2] = int(vendor, 16).to_bytes(2, "little")
    space[2:4] = int(device, 16).to_bytes(2, "little")
    space[0x0E] = header_type | 0x80  # also multi-function, which must not matter
    if port_type is not None:
        space[0x06] = 0x10
        space[0x34] = 0x40
        space[0x40:0x42] = bytes([0x01, 0x60])
        space[0x60:0x64] = bytes([0x10, 0x00, (port_type << 4) | 2, 0x00])
        space[0x69] = 0x20
    return bytes(space[:length])


class Machine:
    """A tree of files below ``root``."""

    def __init__(self, root: Path) -> None:
        self.root = root
        self.paths: dict[str, str] = {}

    def write(self, path: str, text: str | bytes) -> None:
        file = self.root / path
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_bytes(text if isinstance(text, bytes) else text.encode())

    def link(self, path: str, target: str) -> None:
        file = self.root / path
        file.parent.mkdir(parents=True, exist_ok=True)
        os.symlink(target, file)

    def system(self, flags: str = "fpu vmx lm", tables: tuple[str, ...] = ("DMAR",), uefi: bool = True) -> None:
        self.write("proc/sys/kernel/osrelease", "6.12.0-test\n")
        self.write("proc/sys/kernel/random/boot_id", "11111111-2222-3333-4444-555555555555\n")
        self.write("proc/cmdline", "BOOT_IMAGE=/vmlinuz root=/dev/sda1 quiet\n")
        cpu = (
            "processor\t: {}\nvendor_id\t: GenuineIntel\ncpu family\t: 6\nmodel\t\t: 143\n"
            "model name\t: Some Xeon\naddress sizes\t: 46 bits physical, 57 bits virtual\nflags\t\t: {}\n\n"
        )
        self.write("proc/cpuinfo", "".join(cpu.format(index, flags) for index in range(8)))
        self.write("usr/lib/os-release", 'NAME="Debian GNU/Linux"\nID=debian\nVERSION_ID="13"\n')
        self.link("etc/os-release", "../usr/lib/os-release")
        for table in tables:
            self.write(f"sys/firmware/acpi/tables/{table}", b"\0")
        (self.root / "sys/firmware").mkdir(parents=True, exist_ok=True)
        if uefi:
            self.write("sys/firmware/efi/efivars/SecureBoot-8be4df61-93ca-11d2-aa0d-00e098032b8c", b"\6\0\0\0\1")
        self.write("sys/kernel/security/lockdown", "none [integrity] confidentiality\n")
        self.write("sys/devices/system/cpu/isolated", "2-3\n")
        self.write("sys/devices/system/cpu/nohz_full", "(null)\n")

    def node(self, number: int, cpus: str, distance: str, memory_kib: int = 1048576) -> None:
        path = f"sys/devices/system/node/node{number}"
        self.write(f"{path}/cpulist", f"{cpus}\n")
        self.write(f"{path}/distance", f"{distance}\n")
        self.write(
            f"{path}/meminfo", f"\nNode {number} MemTotal:       {memory_kib} kB\nNode {number} MemFree:   5 kB\n"
        )
        self.write(f"{path}/hugepages/hugepages-1048576kB/nr_hugepages", "4\n")
        self.write(f"{path}/hugepages/hugepages-1048576kB/free_hugepages", "3\n")

    def core(self, package: int, core: int, threads: list[int], l3: int) -> None:
        for thread in threads:
            path = f"sys/devices/system/cpu/cpu{thread}"
            self.write(f"{path}/topology/physical_package_id", f"{package}\n")
            self.write(f"{path}/topology/die_id", "0\n")
            self.write(f"{path}/topology/core_id", f"{core}\n")
            self.write(f"{path}/topology/thread_siblings_list", ",".join(map(str, threads)) + "\n")
            self.write(f"{path}/cache/index3/id", f"{l3}\n")

    def pci(
        self,
        bdf: str,
        below: str,
        ids: str = "8086:1234",
        class_code: str = "0x088000",
        node: int = -1,
        port_type: int | None = None,
        config_bytes: int = 4096,
        group: int | None = None,
        driver: str | None = None,
        resource: str = "",
        physfn: str | None = None,
        link: tuple[str, str] | None = ("32.0 GT/s PCIe", "16"),
    ) -> str:
        """Add a function below a BDF or a host bridge (``pci0000:20``)."""
        above = self.paths.get(below, f"sys/devices/{below}")
        path = self.paths[bdf] = f"{above}/{bdf}"
        vendor, device = ids.split(":")
        bridge = class_code.startswith("0x0604")
        self.write(f"{path}/vendor", f"0x{vendor}\n")
        self.write(f"{path}/device", f"0x{device}\n")
        self.write(f"{path}/class", f"{class_code}\n")
        self.write(f"{path}/subsystem_vendor", "0x0000\n" if bridge else "0x10de\n")
        self.write(f"{path}/subsystem_device", "0x0000\n" if bridge else "0x18be\n")
        self.write(f"{path}/numa_node", f"{node}\n")
        self.write(f"{path}/resource", resource or "0x0 0x0 0x0\n" * 7)
        self.write(f"{path}/driver_override", "(null)\n")
        self.write(f"{path}/reset_method", "flr bus\n")
        self.write(f"{path}/power_state", "D0\n")
        self.write(f"{path}/config", config_space(vendor, device, 1 if bridge else 0, port_type, config_bytes))
        if link:
            self.write(f"{path}/max_link_speed", f"{link[0]}\n")
            self.write(f"{path}/max_link_width", f"{link[1]}\n")
        up = "../" * (len(path.split("/")) - 1)
        if group is not None:
            self.link(f"{path}/iommu_group", f"{up}kernel/iommu_groups/{group}")
            self.write(f"sys/kernel/iommu_groups/{group}/type", "DMA-FQ\n")
        if driver:
            self.link(f"{path}/driver", f"{up}bus/pci/drivers/{driver}")
        if physfn:
            self.link(f"{path}/physfn", f"../{physfn}")
        self.link(f"sys/bus/pci/devices/{bdf}", f"../../../{path[len('sys/') :]}")
        return bdf

    def uevents(self) -> None:
        """What Linux 6.18 tells at once of each function that there is by now."""
        for bdf, path in self.paths.items():
            names = ("class", "vendor", "device", "subsystem_vendor", "subsystem_device")
            code, *ids = ((self.root / path / name).read_text().strip()[2:].upper() for name in names)
            driver = self.root / path / "driver"
            self.write(
                f"{path}/uevent",
                (f"DRIVER={os.readlink(driver).rpartition('/')[2]}\n" if driver.is_symlink() else "")
                + f"PCI_CLASS={code.lstrip('0')}\nPCI_ID={ids[0]}:{ids[1]}\nPCI_SUBSYS_ID={ids[2]}:{ids[3]}\n"
                + f"PCI_SLOT_NAME={bdf}\nMODALIAS=pci:v0000{ids[0]}d0000{ids[1]}\n",
            )

    def gpu(self, bdf: str, below: str, node: int = -1, driver: str | None = "nvidia", group: int | None = None) -> str:
        return self.pci(bdf, below, "10de:2335", "0x030200", node, ENDPOINT, driver=driver, group=group)

    def nic(self, bdf: str, below: str, node: int = -1) -> str:
        return self.pci(bdf, below, "15b3:1021", "0x020700", node, ENDPOINT)

    def port(self, bdf: str, below: str, port_type: int, node: int = -1, config_bytes: int = 4096) -> str:
        return self.pci(bdf, below, "1000:c030", "0x060400", node, port_type, config_bytes)


def two_level_machine(root: Path, node_of_devices: int = 0, config_bytes: int = 4096) -> Machine:
    """Two sockets. On socket 0 host bridge 20 with a two-level switch and one more root port, host bridge 50 with one
    device; on socket 1 host bridge 90 with one device::

        pci0000:20 -- 20:00.0 root -- 21:00.0 up -+- 22:00.0 down -- 23:00.0 up -+- 24:00.0 down -- 25:00.0 GPU a
                   |                              |                              +- 24:01.0 down -- 26:00.0 NIC a
                   |                              +- 22:01.0 down -- 27:00.0 up --- 28:00.0 down -- 29:00.0 GPU b
                   |                              +- 22:02.0 down -- 2a:00.0 NVMe, on the first level
                   +- 20:01.0 root -- 2b:00.0 and 2b:00.1, two NVSwitches in one slot
        pci0000:50 -- 50:00.0 root -- 51:00.0 NIC c
        pci0000:90 -- 90:00.0 root -- 91:00.0 GPU d
    """
    machine = Machine(root)
    machine.system()
    machine.write("sys/devices/system/cpu/online", "0-7\n")
    for core in range(4):
        machine.core(core // 2, core % 2, [core, core + 4], core // 2)
    machine.node(0, "0-1,4-5", "10 21")
    machine.node(1, "2-3,6-7", "21 10")
    node, far = (node_of_devices, 1 if node_of_devices >= 0 else -1)

    def port(bdf: str, below: str, kind: int) -> None:
        machine.port(bdf, below, kind, node, config_bytes)

    port("0000:20:00.0", "pci0000:20", ROOT_PORT)
    port("0000:21:00.0", "0000:20:00.0", UPSTREAM)
    for device in range(3):
        port(f"0000:22:0{device}.0", "0000:21:00.0", DOWNSTREAM)
    port("0000:23:00.0", "0000:22:00.0", UPSTREAM)
    port("0000:24:00.0", "0000:23:00.0", DOWNSTREAM)
    port("0000:24:01.0", "0000:23:00.0", DOWNSTREAM)
    machine.gpu("0000:25:00.0", "0000:24:00.0", node, group=1)
    machine.nic("0000:26:00.0", "0000:24:01.0", node)
    port("0000:27:00.0", "0000:22:01.0", UPSTREAM)
    port("0000:28:00.0", "0000:27:00.0", DOWNSTREAM)
    machine.gpu("0000:29:00.0", "0000:28:00.0", node, group=2)
    machine.pci("0000:2a:00.0", "0000:22:02.0", "144d:a80a", "0x010802", node, ENDPOINT)
    port("0000:20:01.0", "pci0000:20", ROOT_PORT)
    for function in range(2):
        machine.pci(f"0000:2b:00.{function}", "0000:20:01.0", "10de:22a3", "0x068000", node, ENDPOINT, group=3)
    port("0000:50:00.0", "pci0000:50", ROOT_PORT)
    machine.nic("0000:51:00.0", "0000:50:00.0", node)
    machine.port("0000:90:00.0", "pci0000:90", ROOT_PORT, far, config_bytes)
    machine.gpu("0000:91:00.0", "0000:90:00.0", far, group=4)
    return machine
