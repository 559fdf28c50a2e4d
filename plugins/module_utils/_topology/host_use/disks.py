# Copyright: the topovirt.kvm authors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Block devices that the host uses, down to the PCI functions that they rest on."""

from __future__ import annotations

import os
import re
from collections.abc import Iterable, Iterator
from pathlib import Path

from ansible_collections.topovirt.kvm.plugins.module_utils._topology.host_use import reading
from ansible_collections.topovirt.kvm.plugins.module_utils._topology.host_use.mounts import Mount

# A signature that makes a disk part of something larger, even while that is not assembled (names as in libblkid).
_MEMBER_SIGNATURES = {
    "LVM2_member": "an LVM physical volume",
    "linux_raid_member": "a member of an md array",
    "zfs_member": "a member of a ZFS pool",
    "mpath_member": "a path of a multipath device",
    "ddf_raid_member": "a member of a firmware RAID set",
    "isw_raid_member": "a member of a firmware RAID set",
    "ceph_bluestore": "a Ceph object store",
    "drbd": "a DRBD backing device",
    "bcache": "a bcache device",
}


class Blocks:
    """The block devices and what lies below each."""

    def __init__(self, root: Path) -> None:
        self.root = root
        self.directory = root / "sys/class/block"
        self.names = reading.names(self.directory)
        self.by_number = {reading.text(self.directory / name / "dev").strip(): name for name in self.names}
        self._pci: dict[str, list[str]] = {}

    def pci_of(self, name: str) -> list[str]:
        """The PCI functions that block device ``name`` finally rests on."""
        if name not in self._pci:
            self._pci[name] = []  # breaks a loop in a damaged tree
            self._pci[name] = sorted(set(self._find(name)))
        return self._pci[name]

    def _find(self, name: str) -> Iterator[str]:
        try:
            real = (self.directory / name).resolve()
        except (OSError, RuntimeError):
            return
        below = reading.names(real / "slaves")
        if not below and real.parent.name in self.names:  # a partition of a stacked device
            below = [real.parent.name] if reading.names(real.parent / "slaves") else []
        for slave in below:
            yield from self.pci_of(slave)
        subsystem = next((part for part in real.parents if re.match(r"^nvme-subsys\d+$", part.name)), None)
        if subsystem is not None:  # native NVMe multipath: the disk hangs on the subsystem, its controllers are links
            for controller in reading.names(subsystem):
                if re.match(r"^nvme\d+$", controller):
                    bdf = reading.bdf_of(subsystem / controller)
                    if bdf:
                        yield bdf
        bdf = reading.bdf_of(real)
        if bdf:
            yield bdf
        backing = reading.text(real / "loop/backing_file").strip()
        if backing.startswith("/dev/"):
            for device in self.resolve(backing):
                yield from self.pci_of(device)

    def title(self, name: str) -> str:
        """The name that an administrator knows: the mapper name of a dm device, else the kernel's."""
        mapper = reading.text(self.directory / name / "dm/name").strip()
        return f"/dev/mapper/{mapper}" if mapper else f"/dev/{name}"

    def udev(self, name: str) -> dict[str, str]:
        """What udev's database knows of a block device."""
        number = reading.text(self.directory / name / "dev").strip()
        lines = reading.text(self.root / "run/udev/data" / f"b{number}").splitlines() if number else []
        return dict(line[2:].split("=", 1) for line in lines if line.startswith("E:") and "=" in line)

    def resolve(self, spec: str) -> list[str]:
        """Kernel names for ``/dev/...``, ``UUID=``, ``LABEL=``, ``PARTUUID=`` or ``PARTLABEL=``."""
        spec = spec.strip().strip('"')
        keys = {"UUID": "ID_FS_UUID", "LABEL": "ID_FS_LABEL", "PARTUUID": "ID_PART_ENTRY_UUID"}
        keys["PARTLABEL"] = "ID_PART_ENTRY_NAME"
        tag, _equals, value = spec.partition("=")
        if tag in keys and value:
            found = [name for name in self.names if self.udev(name).get(keys[tag]) == value.strip('"')]
            link = self.root / "dev/disk" / f"by-{tag.lower()}" / value.strip('"')
            target = reading.link_name(link)
            return sorted(set(found + ([target] if target in self.names else [])))
        if not spec.startswith("/dev/"):
            return []
        name = os.path.basename(spec)
        if spec.startswith("/dev/mapper/"):
            dm = [block for block in self.names if reading.text(self.directory / block / "dm/name").strip() == name]
            if dm:
                return dm
        if spec == f"/dev/{name}" and name in self.names:
            return [name]
        target = reading.link_name(self.root / spec.lstrip("/"))
        return [target] if target and target in self.names else []


def mounted(root: Path, blocks: Blocks, mounts: Iterable[Mount]) -> Iterator[tuple[str, str]]:
    for mount in mounts:
        names = [blocks.by_number[mount.device]] if mount.device in blocks.by_number else blocks.resolve(mount.source)
        if mount.fs_type == "btrfs":  # an anonymous device number; the members are listed apart
            for uuid in reading.names(root / "sys/fs/btrfs"):
                members = reading.names(root / "sys/fs/btrfs" / uuid / "devices")
                if any(name in members for name in names):
                    names = sorted(set(names) | set(members))
        for name in names:
            for bdf in blocks.pci_of(name):
                yield bdf, f"{blocks.title(name)} on it is mounted on {mount.mount_point} ({mount.fs_type})"


def swaps(root: Path, blocks: Blocks) -> Iterator[tuple[str, str]]:
    for line in reading.text(root / "proc/swaps").splitlines()[1:]:
        for name in blocks.resolve(reading.unescape(line.split()[0])) if line.split() else []:
            for bdf in blocks.pci_of(name):
                yield bdf, f"{blocks.title(name)} on it is swap space"


def stacked(blocks: Blocks) -> Iterator[tuple[str, str]]:
    for name in blocks.names:
        for holder in reading.names(blocks.directory / name / "holders"):
            uuid = reading.text(blocks.directory / holder / "dm/uuid")
            kinds = {"LVM-": "LVM volume", "mpath-": "multipath device", "CRYPT-": "encrypted volume"}
            kind = next((text for start, text in kinds.items() if uuid.startswith(start)), "")
            kind = kind or ("md array" if holder.startswith("md") else "device")
            for bdf in blocks.pci_of(name):
                yield bdf, f"/dev/{name} on it is part of the {kind} {blocks.title(holder)}"


def signatures(root: Path, blocks: Blocks) -> Iterator[tuple[str, str]]:
    for name in blocks.names:
        known = blocks.udev(name)
        meaning = _MEMBER_SIGNATURES.get(known.get("ID_FS_TYPE", ""))
        if meaning is None and known.get("DM_MULTIPATH_DEVICE_PATH") == "1":
            meaning = _MEMBER_SIGNATURES["mpath_member"]
        if meaning:
            for bdf in blocks.pci_of(name):
                yield bdf, f"/dev/{name} on it is {meaning}"


def fstab(root: Path, blocks: Blocks) -> Iterator[tuple[str, str]]:
    for line in reading.text(root / "etc/fstab").splitlines():
        fields = line.split("#", 1)[0].split()
        if len(fields) >= 3:
            for name in blocks.resolve(reading.unescape(fields[0])):
                for bdf in blocks.pci_of(name):
                    yield bdf, f"/etc/fstab names {blocks.title(name)} on it for {reading.unescape(fields[1])}"
