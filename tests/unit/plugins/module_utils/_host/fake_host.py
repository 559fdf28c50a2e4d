# Copyright: the topovirt.kvm authors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""A server made of files, with a kernel, a boot loader, a package manager and systemd that only do what tests need.

It is written from what those programs document, and shares nothing with the code that it judges.
"""

from __future__ import annotations

import errno
import os
import re
import shutil
import stat
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any, ClassVar

from ansible_collections.topovirt.kvm.plugins.module_utils._host.faces import single
from ansible_collections.topovirt.kvm.plugins.module_utils._host.runner import Runner
from ansible_collections.topovirt.kvm.plugins.module_utils._host.single import Single
from ansible_collections.topovirt.kvm.plugins.module_utils._topology.reader import read_topology
from ansible_collections.topovirt.kvm.tests.unit.plugins.module_utils._topology.machine import (
    DOWNSTREAM,
    ENDPOINT,
    ROOT_PORT,
    UPSTREAM,
    Machine,
)

GPU0, NIC0, NVME0 = "0000:23:00.0", "0000:24:00.0", "0000:25:00.0"
SWITCH0, SWITCH1 = "0000:26:00.0", "0000:26:00.1"
IGB = "0000:27:00.0"
# Its virtual functions, by the offset and stride of an Intel 82576 in its capability.
VFS = tuple(f"0000:28:{0x10 + number // 4:02x}.{number % 4 * 2}" for number in range(7))
GPU1, NIC1 = "0000:93:00.0", "0000:94:00.0"
DISK = "0000:00:05.0"
NATIVE = {
    GPU0: "nvidia",
    GPU1: "nvidia",
    SWITCH0: "nvidia",
    SWITCH1: "nvidia",
    NIC0: "mlx5_core",
    NIC1: "mlx5_core",
    NVME0: "nvme",
    IGB: "igb",
    DISK: "virtio-pci",
}
KERNEL = "6.12.0-test"
WANTED: dict[str, Any] = {
    "packages": ["qemu-system-x86", "libvirt-daemon-system", "tuned"],
    "services": ["libvirtd.socket"],
    "cmdline": ["mitigations=auto"],
}
ARGUMENTS = "root=UUID=aa-bb ro console=ttyS0 intel_iommu=off"
GRUB_CFG = f"""\
if [ -s $prefix/grubenv ]; then
  load_env
fi
if [ "${{next_entry}}" ] ; then
   set default="${{next_entry}}"
   set next_entry=
   save_env next_entry
   set boot_once=true
else
   set default="0"
fi
function savedefault {{
  if [ -z "${{boot_once}}" ]; then
    saved_entry="${{chosen}}"
    save_env saved_entry
  fi
}}
menuentry 'Debian GNU/Linux' --class debian --class os $menuentry_id_option 'gnulinux-simple-aa-bb' {{
	savedefault
	load_video
	insmod gzio
	if [ x$grub_platform = xxen ]; then insmod xzio; insmod lzopio; fi
	insmod part_gpt
	insmod ext2
	search --no-floppy --fs-uuid --set=root aa-bb
	echo	'Loading Linux {KERNEL} ...'
	linux	/boot/vmlinuz-{KERNEL} {ARGUMENTS}
	echo	'Loading initial ramdisk ...'
	initrd	/boot/initrd.img-{KERNEL}
}}
submenu 'Advanced options' $menuentry_id_option 'gnulinux-advanced-aa-bb' {{
	menuentry 'Recovery' --class debian $menuentry_id_option 'gnulinux-recovery-aa-bb' {{
		linux	/boot/vmlinuz-{KERNEL} {ARGUMENTS} single
		initrd	/boot/initrd.img-{KERNEL}
	}}
}}
if [ -f  ${{config_directory}}/custom.cfg ]; then
  source ${{config_directory}}/custom.cfg
fi
"""
_PASSWD = "root:x:0:0:root:/root:/bin/bash\nadmin:x:1000:1000::/home/admin:/bin/sh\n"
_GROUP = "root:x:0:\nkvm:x:104:admin\nadmin:x:1000:\n"


class Crash(BaseException):
    """The power is cut."""


class FakeHost(Machine):
    """Two GPUs with a NIC each below switches, an NVMe device, two NVSwitches, an on-board NIC and a system disk."""

    wanted = WANTED
    initial: ClassVar[dict[str, str]] = {"bash": "5.2", "grub-efi-amd64": "2.12"}
    user, daemon = "libvirt-qemu", "libvirtd.socket"  # that come with packages

    def __init__(self, root: Path) -> None:
        super().__init__(root)
        self.log: list[list[str]] = []
        self.modules = {"nvidia", "mlx5_core", "nvme", "igb"}
        self.installed = dict(self.initial)
        self.units: dict[str, dict[str, Any]] = {}
        self.begun: set[str] = set()  # units of files in /etc that ran when it booted last
        self.tuned_active: str | None = None
        self.signatures: dict[str, str] = {}
        self.fewer_pages = 0
        self.most_pages = 1 << 30
        self.programs: dict[str, Callable[[list[str]], tuple[int, str, str]]] = {}
        self.lock_devices: set[str] = set()
        self.guard_active = False  # topovirt-trial.service
        self.guard_stops = True
        self.previous_journal = ""
        self._make()

    # --- the machine ---

    def _make(self) -> None:
        self.system(flags="fpu vmx lm pdpe1gb")
        self.write("proc/cmdline", f"BOOT_IMAGE=/boot/vmlinuz-{KERNEL} {ARGUMENTS}\n")
        self.write("proc/sys/kernel/arch", "x86_64\n")
        self.write("proc/uptime", "80.25 300.00\n")
        self.write("proc/self/mountinfo", "20 1 254:1 / / rw - ext4 /dev/vda1 rw\n")
        self.write("sys/devices/system/cpu/online", "0-7\n")
        for core in range(4):
            self.core(core // 2, core % 2, [core, core + 4], core // 2)
        self.node(0, "0-1,4-5", "10 21", 8 << 20)
        self.node(1, "2-3,6-7", "21 10", 8 << 20)
        self.pages(0, 0)
        for bridge, gpu, nic in (("20", GPU0, NIC0), ("90", GPU1, NIC1)):
            bus = int(bridge, 16)
            self.port(f"0000:{bridge}:00.0", f"pci0000:{bridge}", ROOT_PORT, bus // 0x90)
            self.port(f"0000:{bus + 1:02x}:00.0", f"0000:{bridge}:00.0", UPSTREAM, bus // 0x90)
            for device in range(3):
                self.port(f"0000:{bus + 2:02x}:0{device}.0", f"0000:{bus + 1:02x}:00.0", DOWNSTREAM, bus // 0x90)
            self.device(gpu, f"0000:{bus + 2:02x}:00.0", "10de:2335", "0x030200", bus)
            self.device(nic, f"0000:{bus + 2:02x}:01.0", "15b3:1021", "0x020700", bus + 1)
        self.device(NVME0, "0000:22:02.0", "144d:a80a", "0x010802", 40)
        self.port("0000:20:01.0", "pci0000:20", ROOT_PORT)
        self.device(SWITCH0, "0000:20:01.0", "10de:22a3", "0x068000", 41)
        self.device(SWITCH1, "0000:20:01.0", "10de:22a3", "0x068000", 41)
        self.port("0000:20:02.0", "pci0000:20", ROOT_PORT)
        self.device(IGB, "0000:20:02.0", "8086:10c9", "0x020000", 42)
        self.device(DISK, "pci0000:00", "1af4:1042", "0x010000", 43)
        self.nvme()
        self.disk("vda", DISK, "virtio0/block/vda", "254:0")
        self.partition("vda", "vda1", "254:1")
        self.interface("eth0", IGB, up=True)
        self.write(f"{self.paths[IGB]}/sriov_totalvfs", "7\n")
        self.write(f"{self.paths[IGB]}/sriov_numvfs", "0\n")
        self.write(f"{self.paths[IGB]}/sriov_drivers_autoprobe", "1\n")
        self.address("eth0", "10.0.2.15", 24)
        for name, text in (
            ("etc/machine-id", "a" * 32 + "\n"),
            ("etc/fstab", "/dev/vda1 / ext4 defaults 0 1\n"),
            ("etc/passwd", _PASSWD),
            ("etc/group", _GROUP),
            ("etc/shadow", "root:*:1::::::\nadmin:!:1::::::\n"),
            (f"boot/vmlinuz-{KERNEL}", "kernel"),
            ("usr/bin/bash", "binary"),
            ("usr/share/cache.db", "generated 0\n"),
            *self.distribution().items(),
            ("root/.profile", "# mine\n"),
        ):
            self.write(name, text)
        (self.root / "run").mkdir(exist_ok=True)
        (self.root / "var/lib").mkdir(parents=True, exist_ok=True)
        (self.root / "etc/systemd/system").mkdir(parents=True)
        (self.root / "etc/shadow").chmod(0o640)
        self._write_database()

    def distribution(self) -> dict[str, str]:
        """Files that other distributions do not have."""
        return {
            "etc/initramfs-tools/initramfs.conf": "MODULES=most\n",
            "boot/grub/grub.cfg": GRUB_CFG,
            "boot/grub/grubenv": block({}).decode(),
            f"boot/initrd.img-{KERNEL}": "initrd" * 4000,
            "usr/sbin/mkinitramfs": "#!/bin/sh\n",
            "var/lib/dpkg/info/bash.list": "/.\n/bin\n/bin/bash\n",
        }

    def device(self, bdf: str, below: str, ids: str, class_code: str, group: int) -> None:
        driver = NATIVE[bdf]
        for name in (driver, "vfio-pci"):
            module = name.replace("-", "_")
            if not (self.root / f"sys/bus/pci/drivers/{name}").exists():
                (self.root / f"sys/module/{module}").mkdir(parents=True)
                (self.root / f"sys/bus/pci/drivers/{name}").mkdir(parents=True)
                self.link(f"sys/bus/pci/drivers/{name}/module", f"../../../../module/{module}")
        node = int(bdf[5:7], 16) // 0x90
        self.pci(bdf, below, ids, class_code, node, ENDPOINT, driver=driver, group=group)

    def nvme(self, serial: str = "SER0", name: str = "nvme0", number: str = "259:0") -> None:
        path = self.paths[NVME0]
        self.write(f"{path}/nvme/{name}/serial", f"{serial}   \n")
        self.write(f"{path}/nvme/{name}/{name}n1/dev", f"{number}\n")
        up = "../../"
        self.link(f"sys/class/block/{name}n1", f"{up}{path[4:]}/nvme/{name}/{name}n1")
        self.link(f"sys/class/nvme/{name}", f"{up}{path[4:]}/nvme/{name}")
        self.link(f"{path}/nvme/{name}/device", "../..")

    def disk(self, name: str, bdf: str, below: str, number: str) -> None:
        self.write(f"{self.paths[bdf]}/{below}/dev", f"{number}\n")
        self.link(f"sys/class/block/{name}", f"../../{self.paths[bdf][4:]}/{below}")

    def partition(self, disk: str, name: str, number: str) -> None:
        real = (self.root / f"sys/class/block/{disk}").resolve().relative_to(self.root.resolve())
        self.write(f"{real}/{name}/dev", f"{number}\n")
        self.write(f"{real}/{name}/partition", "1\n")
        self.link(f"sys/class/block/{name}", f"../../{str(real)[4:]}/{name}")

    def stack(self, name: str, number: str, *below: str, uuid: str = "", dm_name: str = "") -> None:
        """A virtual block device on top of others."""
        path = f"sys/devices/virtual/block/{name}"
        self.write(f"{path}/dev", f"{number}\n")
        if dm_name:
            self.write(f"{path}/dm/name", f"{dm_name}\n")
            self.write(f"{path}/dm/uuid", f"{uuid}\n")
        self.link(f"sys/class/block/{name}", f"../../{path[4:]}")
        for lower in below:
            self.link(f"{path}/slaves/{lower}", f"/ignored/{lower}")
            real = (self.root / f"sys/class/block/{lower}").resolve()
            (real / "holders").mkdir(exist_ok=True)
            os.symlink(f"/ignored/{name}", real / "holders" / name)

    def interface(self, name: str, bdf: str | None, up: bool = False, kind: str = "") -> None:
        path = f"{self.paths[bdf]}/net/{name}" if bdf else f"sys/devices/virtual/net/{name}"
        self.write(f"{path}/flags", "0x1003\n" if up else "0x1002\n")
        self.write(f"{path}/operstate", "up\n" if up else "down\n")
        self.write(f"{path}/uevent", f"DEVTYPE={kind}\n" if kind else f"INTERFACE={name}\n")
        if bdf:
            self.link(f"{path}/device", "../..")
        self.link(f"sys/class/net/{name}", f"../../{path[4:]}")

    def address(self, interface: str, address: str, prefix: int, default: bool = False) -> None:
        """An IPv4 address as /proc/net shows it."""
        value = int.from_bytes(bytes(map(int, address.split("."))), "big")
        mask = (0xFFFFFFFF << (32 - prefix)) & 0xFFFFFFFF

        def little(number: int) -> str:
            return number.to_bytes(4, "little").hex().upper()

        head = "Iface\tDestination\tGateway\tFlags\tRefCnt\tUse\tMetric\tMask\tMTU\tWindow\tIRTT\n"
        table = self.root / "proc/net/route"
        lines = table.read_text() if table.exists() else head
        lines += f"{interface}\t{little(value & mask)}\t00000000\t0001\t0\t0\t0\t{little(mask)}\t0\t0\t0\n"
        if default:
            lines += f"{interface}\t00000000\t{little((value & mask) + 2)}\t0003\t0\t0\t0\t00000000\t0\t0\t0\n"
        self.write("proc/net/route", lines)
        trie = self.root / "proc/net/fib_trie"
        known = trie.read_text() if trie.exists() else "Main:\nLocal:\n"
        self.write("proc/net/fib_trie", f"{known}        |-- {address}\n           /32 host LOCAL\n")

    def mount(self, number: str, point: str, kind: str, source: str, options: str = "rw") -> None:
        table = self.root / "proc/self/mountinfo"
        table.write_text(f"{table.read_text()}30 20 {number} / {point} rw - {kind} {source} {options}\n")

    def process(self, number: int, name: str, *files: str) -> None:
        self.write(f"proc/{number}/comm", f"{name}\n")
        for index, target in enumerate(files, 3):
            self.link(f"proc/{number}/fd/{index}", target)

    # --- the kernel ---

    def write_attribute(self, path: Path, text: str) -> None:
        """What the PCI core does with writes to these attributes (ABI/testing/sysfs-bus-pci)."""
        name = path.name
        if name == "drivers_probe":
            self._probe(text)
        elif name == "unbind":
            device = path.parent.parent
            assert (device / "driver").is_symlink(), f"{device.name} has no driver"
            assert text == device.name
            (device / "driver").unlink()
        elif name == "driver_override":
            path.write_text(f"{text.strip() or '(null)'}\n")
        elif name == "sriov_numvfs":
            self._make_virtual(int(text))
        elif name == "sriov_drivers_autoprobe":
            path.write_text(f"{int(text)}\n")
        elif name == "nr_hugepages":  # gives what it has, without an error (Documentation/admin-guide/mm/hugetlbpage)
            path.write_text(f"{min(int(text), self.most_pages)}\n")
        elif name in ("drop_caches", "compact_memory"):
            self.log.append([name])
        else:
            raise AssertionError(f"unexpected write to {path}")

    def _probe(self, bdf: str) -> None:
        device = self.root / "sys/bus/pci/devices" / bdf
        if (device / "driver").is_symlink():
            return
        override = (device / "driver_override").read_text().strip()
        if override == "(null)" and bdf in VFS and self._of_igb("sriov_drivers_autoprobe") == "0":
            return  # pci_device_can_probe
        driver = NATIVE.get(bdf, "igbvf") if override == "(null)" else override
        if driver.replace("-", "_") in {module.replace("-", "_") for module in self.modules}:
            up = "../" * (len(self.paths[bdf].split("/")) - 1)
            os.symlink(f"{up}bus/pci/drivers/{driver}", device.resolve() / "driver")

    def _make_virtual(self, number: int) -> None:
        """sriov_numvfs_store: only a driver makes them, and between two numbers there has to be none."""
        now = int(self._of_igb("sriov_numvfs"))
        if number == now:
            return
        if number > int(self._of_igb("sriov_totalvfs")):
            raise OSError(errno.ERANGE, "Numerical result out of range")
        if self.driver(IGB) != "igb":
            raise OSError(errno.ENOENT, "No such file or directory")
        if number and now:
            raise OSError(errno.EBUSY, "Device or resource busy")
        for index, bdf in enumerate(VFS[: number or now]):
            if number:
                self.pci(bdf, "0000:20:02.0", "8086:10ca", "0x020000", 0, ENDPOINT, group=60 + index, physfn=IGB)
                self.link(f"{self.paths[IGB]}/virtfn{index}", f"../{bdf}")
            else:
                shutil.rmtree(self.root / self.paths.pop(bdf))
                shutil.rmtree(self.root / f"sys/kernel/iommu_groups/{60 + index}")
                (self.root / "sys/bus/pci/devices" / bdf).unlink()
                (self.root / self.paths[IGB] / f"virtfn{index}").unlink()
        self.write(f"{self.paths[IGB]}/sriov_numvfs", f"{number}\n")
        for bdf in VFS[:number]:
            self._probe(bdf)

    def _of_igb(self, name: str) -> str:
        return (self.root / self.paths[IGB] / name).read_text().strip()

    def virtual(self) -> tuple[Any, ...]:
        """Whether drivers take virtual functions, and which one holds each."""
        held = [self.driver(bdf) for bdf in VFS if bdf in self.paths]
        return self._of_igb("sriov_drivers_autoprobe") == "1", *held

    def driver(self, bdf: str) -> str | None:
        link = self.root / "sys/bus/pci/devices" / bdf / "driver"
        return os.path.basename(os.readlink(link)) if link.is_symlink() else None

    def drivers(self) -> dict[str, str | None]:
        return {bdf: self.driver(bdf) for bdf in NATIVE}

    def pages(self, *counts: int) -> None:
        for node, count in enumerate(counts):
            path = f"sys/devices/system/node/node{node}/hugepages/hugepages-1048576kB"
            self.write(f"{path}/nr_hugepages", f"{count}\n")
            self.write(f"{path}/free_hugepages", f"{count}\n")

    def page_counts(self) -> list[int]:
        base = self.root / "sys/devices/system/node"
        return [int((base / f"node{n}/hugepages/hugepages-1048576kB/nr_hugepages").read_text()) for n in (0, 1)]

    def boot_loader(self) -> tuple[str, str, str]:
        """Kernel, arguments and initramfs that GRUB chooses; paths relative to the root."""
        env = self.root / "boot/grub/grubenv"
        there = variables(env.read_bytes())
        custom = self.root / "boot/grub/custom.cfg"
        entries = _entries(GRUB_CFG)
        added = _entries(custom.read_text()) if custom.exists() else {}
        entries.update(added)
        chosen = there.get("next_entry", "")
        sourced = custom.read_text() if custom.exists() else ""
        default = re.search(r"^\s*set default='?([^'\n]+)'?$", sourced, re.M)
        if chosen:
            env.write_bytes(block({**there, "next_entry": ""}))
        if default and not (chosen and 'if [ -z "${boot_once}" ]; then' in sourced):
            chosen = default.group(1)
        chosen = chosen or "gnulinux-simple-aa-bb"
        return entries[chosen]

    def reboot(self) -> None:
        """Firmware, boot loader, initramfs, systemd."""
        kernel, arguments, initrd = self.boot_loader()
        assert (self.root / kernel.lstrip("/")).is_file()
        image = (self.root / initrd.lstrip("/")).read_text()
        self.write("proc/cmdline", f"BOOT_IMAGE={kernel} {arguments}\n")
        self.write("proc/sys/kernel/osrelease", f"{kernel.partition('-')[2]}\n")
        token = re.search(r"\btopovirt=(\w+)", arguments)
        self.modules = {"nvidia", "mlx5_core", "nvme", "igb", "virtio-pci"}
        self._make_virtual(0)
        self.write(f"{self.paths[IGB]}/sriov_drivers_autoprobe", "1\n")
        for bdf in NATIVE:
            device = self.root / "sys/bus/pci/devices" / bdf
            (device / "driver").unlink(missing_ok=True)
            (device / "driver_override").write_text("(null)\n")
        ours = re.search(r'^devices="(.*)"$', image, re.M)
        # A script of a conversion acts under its token only.
        asks = "/proc/cmdline" in image or "topovirt-" in initrd
        if ours and (not asks or (token and f"topovirt={token.group(1)}" in image)):
            self.modules.add("vfio-pci")
            for bdf in ours.group(1).split():
                (self.root / "sys/bus/pci/devices" / bdf / "driver_override").write_text("vfio-pci\n")
        for bdf in NATIVE:
            self._probe(bdf)
        self.pages(0, 0)
        if self._runs("topovirt-hugepages.service", arguments):
            self._start_pages()
        if self._runs("topovirt-sriov.service", arguments):
            self._start_virtual()
        self.guard_active = self._runs("topovirt-trial.service", arguments)
        files = (self.root / "etc/systemd/system").iterdir()
        self.begun = {path.name for path in files if path.is_file() and self._runs(path.name, arguments)}
        for name, unit in self.units.items():
            unit["active"] = unit["enabled"] == "enabled" and self._condition(f"{name}.d/topovirt.conf", arguments)
        self._start_tuned(arguments)

    def _runs(self, unit: str, arguments: str) -> bool:
        link = self.root / f"etc/systemd/system/sysinit.target.wants/{unit}"
        return link.is_symlink() and self._condition(unit, arguments)

    def _condition(self, path: str, arguments: str) -> bool:
        file = self.root / "etc/systemd/system" / path
        if not file.exists():
            return True
        wanted = re.findall(r"^ConditionKernelCommandLine=(\S+)$", file.read_text(), re.M)
        return all(word in arguments.split() for word in wanted)

    def _start_pages(self) -> bool:
        unit = (self.root / "etc/systemd/system/topovirt-hugepages.service").read_text()
        script = (self.root / re.findall(r"^ExecStart=/bin/sh /(\S+)$", unit, re.M)[0]).read_text()
        counts = {int(node): int(count) for node, count in re.findall(r"^want (\d+) (\d+)$", script, re.M)}
        given = [max(0, counts.get(node, 0) - self.fewer_pages) for node in (0, 1)]
        self.pages(*given)
        return not self.fewer_pages

    def _start_virtual(self) -> None:
        """As its script would, which test_sriov.py runs."""
        script = (self.root / "var/lib/topovirt/sriov.sh").read_text()
        device = self.root / "sys/bus/pci/devices" / IGB
        for number in re.findall(rf"^want {IGB} 0x8086 0x10c9 (\d+)$", script, re.M):
            self.write_attribute(device / "sriov_drivers_autoprobe", "0")
            self.write_attribute(device / "sriov_numvfs", number)
            for bdf in VFS[: int(number)]:
                self.write_attribute(device.parent / bdf / "driver_override", "vfio-pci")
                self.write_attribute(device.parent.parent / "drivers_probe", bdf)

    def _start_tuned(self, arguments: str) -> None:
        unit = self.units.get("tuned.service")
        self.tuned_active = None
        if unit and unit["enabled"] == "enabled" and self._condition("tuned.service.d/topovirt.conf", arguments):
            profile = (self.root / "etc/tuned/active_profile").read_text().strip()
            if profile == "topovirt":
                assert list((self.root / "etc/tuned").rglob("topovirt/tuned.conf"))
            self.tuned_active = profile

    # --- programs ---

    def run(self, words: list[str]) -> tuple[int, str, str]:
        self.log.append(words)
        program, *rest = words
        if program in self.programs:
            return self.programs[program](rest)
        if program == "env":
            return self._dpkg([word for word in rest if "=" not in word][1:])
        if program == "dpkg-query":
            asked = rest[-1].replace("${db:Status-Status}", "installed").replace("\\n", "\n")
            lines = [asked.replace("${binary:Package}", n).replace("${Version}", v) for n, v in self.installed.items()]
            return 0, "".join(lines), ""
        if program == "systemctl":
            return self._systemctl(rest)
        if program == "modprobe":
            self.modules.add(rest[0])
            return 0, "", ""
        if program == "mkinitramfs":
            configuration, image = Path(rest[1]), Path(rest[3])
            assert (configuration / "initramfs.conf").is_file()
            texts = [p.read_text() for p in sorted(configuration.rglob("*")) if p.is_file()]
            image.write_text("".join(texts))
            return 0, "", ""
        if program in ("grub-editenv", "grub2-editenv"):
            env = Path(rest[0])
            there = variables(env.read_bytes())
            for word in rest[2:]:
                name, _equals, value = word.partition("=")
                there.pop(name, None)
                if rest[1] == "set":
                    there[name] = value
            env.write_bytes(block(there))
            return 0, "", ""
        if program == "tuned-adm":
            active = self.tuned_active
            return (0, f"Current active profile: {active}\n", "") if active else (1, "No current active profile.\n", "")
        if program == "journalctl":
            return (0, self.previous_journal, "") if self.previous_journal else (1, "", "no such boot")
        if program == "wipefs":
            return 0, self.signatures.get(rest[-1], ""), ""
        raise FileNotFoundError(program)

    def _systemctl(self, rest: list[str]) -> tuple[int, str, str]:
        verb, unit = rest[0], self.units.get(rest[-1])
        if verb == "start" and unit is None and (self.root / "etc/systemd/system" / rest[-1]).is_file():
            unit = self.units[rest[-1]] = {"enabled": "enabled", "active": False, "of_file": True}
        if verb in ("daemon-reload", "is-system-running"):
            return 0, "", ""
        if rest[-1] == "topovirt-trial.service":
            return self._guard(verb)
        if rest[-1] == "topovirt-hugepages.service":
            return (0 if self._start_pages() else 1), "", ""
        if verb == "is-enabled":
            return (0, f"{unit['enabled']}\n", "") if unit else (1, "not-found\n", "")
        if verb == "is-active":
            active = unit["active"] if unit else rest[-1] in self.begun
            return (0, "active\n", "") if active else (3, "inactive\n", "")
        assert unit is not None, rest
        if verb in ("enable", "disable"):
            unit["enabled"] = f"{verb}d"
        if verb in ("start", "stop"):
            unit["active"] = verb == "start"
        if rest == ["restart", "tuned.service"]:
            self._start_tuned((self.root / "proc/cmdline").read_text())
        return 0, "", ""

    def _guard(self, verb: str) -> tuple[int, str, str]:
        if verb == "show":
            active = "active" if self.guard_active else "inactive"
            return 0, f"ActiveState={active}\nActiveEnterTimestampMonotonic=20500000\n", ""
        if verb == "stop" and self.guard_stops:
            self.guard_active = False
        return (0, "", "") if verb == "try-restart" or not self.guard_active else (1, "", "Job canceled.")

    def nobody_comes(self) -> None:
        """Time passes; the guard of a trial boot does what it is there for."""
        if self.guard_active:
            self.reboot()

    def install(self, *names: str) -> None:
        """What a package manager and maintainer scripts do: files, a user, units, caches, an entry in a shared file."""
        for name in (*names, *(["libvirt0"] if names else [])):
            if name in self.installed:
                continue
            self.installed[name] = "1.0"
            self.write(f"usr/share/{name}/file", name)
            self._register(name)
        if "libvirt-daemon-system" in names and "libvirt-qemu" not in (self.root / "etc/passwd").read_text():
            self._append("etc/passwd", "libvirt-qemu:x:64055:104::/var/lib/libvirt:/usr/sbin/nologin\n")
            self._append("etc/shadow", "libvirt-qemu:!:2::::::\n")
            group = (self.root / "etc/group").read_text().replace("kvm:x:104:admin", "kvm:x:104:admin,libvirt-qemu")
            self.write("etc/group", f"{group}libvirt:x:120:admin\n")
            self.write("etc/libvirt/qemu.conf", "# conffile\n")
            self.write("var/lib/libvirt/qemu/state", "made by a daemon")
            (self.root / "var/lib/libvirt/images").mkdir()
            self.write("usr/share/cache.db", "generated 1\n")
            self.units["libvirtd.socket"] = {"enabled": "enabled", "active": True}
        if "tuned" in names and "tuned.service" not in self.units:
            self.write("etc/tuned/active_profile", "balanced\n")
            self.write("etc/tuned/profile_mode", "auto\n")
            (self.root / "usr/lib/tuned/profiles").mkdir(parents=True, exist_ok=True)
            self._append("boot/grub/grub.cfg", "# update-grub ran\n")
            self._append(f"boot/initrd.img-{KERNEL}", " rebuilt")
            self.units["tuned.service"] = {"enabled": "enabled", "active": True}
        self._write_database()

    def _dpkg(self, rest: list[str]) -> tuple[int, str, str]:
        if rest[:2] == ["--no-act", "--purge"]:
            return 0, "", ""
        assert rest[0] == "--purge"
        for name in rest[1:]:
            self.installed.pop(name)
            shutil.rmtree(self.root / f"usr/share/{name}")
            (self.root / f"var/lib/dpkg/info/{name}.list").unlink()
            if name == "libvirt-daemon-system":  # leaves its user, daemons' files and the cache
                (self.root / "etc/libvirt/qemu.conf").unlink()
                self.units.pop("libvirtd.socket")
            if name == "tuned":
                self.units.pop("tuned.service")
        self._write_database()
        return 0, "", ""

    def _register(self, name: str) -> None:
        self.write(f"var/lib/dpkg/info/{name}.list", f"/.\n/usr\n/usr/share\n/usr/share/{name}\n")

    def _write_database(self) -> None:
        self.write("var/lib/dpkg/status", "".join(f"Package: {name}\n" for name in reversed(self.installed)))

    def _append(self, path: str, text: str) -> None:
        with (self.root / path).open("a") as file:
            file.write(text)

    def firmware(self) -> dict[str, str]:
        """What NICs have for the next boot: "address PARAMETER" -> value. These cannot be asked."""
        return {}

    # --- what tests do with it ---

    def entries_of_ours(self) -> int:
        return (self.root / "boot/grub/custom.cfg").read_text().count("menuentry")

    def runner(self) -> Runner:
        return Runner(self.root, self.run, lambda: read_topology(self.root), self.write_attribute)

    def face(self, name: str, **options: Any) -> Single:
        """A module that does one step alone, without Ansible."""
        made = single(name, options, self.root, self.run)
        return replace(made, write=self.write_attribute)

    def convert(self, wanted: dict[str, Any] | None = None, until: str = "commit") -> bool:
        """All phases as the role runs them; returns whether anything changed."""
        wanted, runner, changed = wanted or self.wanted, self.runner(), False
        changed |= runner.record(wanted, check=False).changed
        if until == "record":
            return changed
        self.install(*[name for name in wanted["packages"] if name not in self.installed])
        report = runner.apply(wanted, check=False)
        changed |= report.changed
        if until == "apply":
            return changed
        if report.reboot_required:
            self.reboot()
        if until == "reboot":
            return changed
        differences = runner.verify(wanted).differences
        assert not differences, differences
        return runner.commit(wanted, check=False).changed or changed

    def go_back(self) -> None:
        """Both halves of the way back, as the role runs them."""
        runner = self.runner()
        if runner.undo(discard=False, check=False).reboot_required:
            self.reboot()
        report = runner.finish(discard=False, check=False)
        assert not report.kept, report.kept

    def snapshot(self) -> dict[str, tuple[Any, ...]]:
        """Everything on disk, exactly, and the drivers."""
        found: dict[str, tuple[Any, ...]] = {
            "drivers": tuple(self.drivers().items()),
            "virtual functions": self.virtual(),
        }
        for start in ("boot", "etc", "opt", "root", "usr", "var", "run"):
            for path in sorted((self.root / start).rglob("*")):
                info = path.lstat()
                data: Any = None
                if stat.S_ISLNK(info.st_mode):
                    data = os.readlink(path)
                elif stat.S_ISREG(info.st_mode):
                    data = path.read_bytes()
                    if path.name == "grubenv" and len(data) == 1024:
                        data = tuple(sorted(variables(data).items()))
                found[str(path.relative_to(self.root))] = (
                    stat.S_IFMT(info.st_mode),
                    stat.S_IMODE(info.st_mode) if not stat.S_ISLNK(info.st_mode) else 0,
                    info.st_uid,
                    info.st_gid,
                    data,
                )
        return found


def block(values: dict[str, str]) -> bytes:
    """A GRUB environment block: its first line, variables, and padding to 1024 bytes."""
    text = "# GRUB Environment Block\n" + "".join(f"{name}={value}\n" for name, value in values.items())
    return text.encode().ljust(1024, b"#")


def variables(raw: bytes) -> dict[str, str]:
    assert len(raw) == 1024
    pairs = (line.partition("=") for line in raw.decode().splitlines() if "=" in line and not line.startswith("#"))
    return {name: value for name, _equals, value in pairs}


def _entries(config: str) -> dict[str, tuple[str, str, str]]:
    """Menu entries by id: kernel, arguments, initrd."""
    found = {}
    for match in re.finditer(
        r"menuentry [^\n]*(?:--id|\$menuentry_id_option) '([^']+)' \{\n(.*?)\n\t*\}", config, re.S
    ):
        kernel, arguments = re.search(r"\tlinux\t(\S+) (.*)", match.group(2)).groups()  # type: ignore[union-attr]
        initrd = re.search(r"\tinitrd\t(\S+)", match.group(2)).group(1)  # type: ignore[union-attr]
        found[match.group(1)] = (kernel, arguments, initrd)
    return found
