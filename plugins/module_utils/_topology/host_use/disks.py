# Copyright: the topovirt.kvm authors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Block devices that the host uses, down to the PCI functions that they rest on."""

from __future__ import annotations

import os
import re
from collections.abc import Iterable, Iterator
from itertools import islice

from ansible_collections.topovirt.kvm.plugins.module_utils._topology.host_use import reading
from ansible_collections.topovirt.kvm.plugins.module_utils._topology.host_use.mounts import Mount
from ansible_collections.topovirt.kvm.plugins.module_utils._topology.sysfs import Tree

BLOCK = "sys/class/block"
_BTRFS = "sys/fs/btrfs"

_NUMBER = re.compile(r"[0-9]+:[0-9]+\Z")  # major:minor

# How fstab names a file system or a partition -> where udev's database has that.
_TAGS = {
    "UUID": "ID_FS_UUID",
    "LABEL": "ID_FS_LABEL",
    "PARTUUID": "ID_PART_ENTRY_UUID",
    "PARTLABEL": "ID_PART_ENTRY_NAME",
}

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

    def __init__(self, tree: Tree) -> None:
        self.tree = tree
        self.names = tree.names(BLOCK)
        self._known = frozenset(self.names)
        self._numbers = {name: tree.text(f"{BLOCK}/{name}/dev") or "" for name in self.names}
        self.by_number = {number: name for name, number in self._numbers.items() if number}
        self._steps: dict[str, tuple[list[str], list[str]]] = {}
        self._pci: dict[str, list[str]] = {}
        self._udev: dict[str, dict[str, str]] = {}

    def __contains__(self, name: str) -> bool:
        return name in self._known

    def pci_of(self, name: str) -> list[str]:
        """The PCI functions that block device ``name`` finally rests on."""
        if name not in self._pci:
            found: set[str] = set()
            seen, todo = {name}, [name]
            while todo:  # a damaged tree can have circles, and piles too high for a recursion
                functions, below = self._step(todo.pop())
                found.update(functions)
                todo += [lower for lower in below if lower not in seen]
                seen.update(below)
            self._pci[name] = sorted(found)
        return self._pci[name]

    def _step(self, name: str) -> tuple[list[str], list[str]]:
        """The PCI functions that ``name`` is on itself, and the block devices right below it."""
        if name not in self._steps:
            real = self.tree.resolved(f"{BLOCK}/{name}")
            self._steps[name] = ([], []) if real is None else (self._functions(real), self._lower(real))
        return self._steps[name]

    def _functions(self, real: str) -> list[str]:
        found = [reading.bdf_of(self.tree, real)]
        parents = real.split("/")[:-1]
        while parents and not re.match(r"^nvme-subsys\d+$", parents[-1]):
            parents.pop()
        if parents:  # native NVMe multipath: the disk hangs on the subsystem, its controllers are links
            subsystem = "/".join(parents)
            controllers = (name for name in self.tree.names(subsystem) if re.match(r"^nvme\d+$", name))
            found += [reading.bdf_of(self.tree, f"{subsystem}/{controller}") for controller in controllers]
        return [bdf for bdf in found if bdf]

    def _lower(self, real: str) -> list[str]:
        below = self.tree.names(f"{real}/slaves")
        parent, _separator, _name = real.rpartition("/")
        disk = parent.rpartition("/")[2]
        if not below and disk in self and self.tree.names(f"{parent}/slaves"):  # a partition of a stacked device
            below = [disk]
        backing = self.tree.text(f"{real}/loop/backing_file") or ""
        return below + self.resolve(backing) if backing.startswith("/dev/") else below

    def _mapper(self, name: str) -> str:
        return self.tree.text(f"{BLOCK}/{name}/dm/name") or ""

    def title(self, name: str) -> str:
        """The name that an administrator knows: the mapper name of a dm device, else the kernel's."""
        mapper = self._mapper(name)
        return f"/dev/mapper/{mapper}" if mapper else f"/dev/{name}"

    def udev(self, name: str) -> dict[str, str]:
        """What udev's database knows of a block device."""
        if name not in self._udev:
            number = self._numbers.get(name, "")
            lines = reading.lines(self.tree, f"run/udev/data/b{number}") if _NUMBER.match(number) else ()
            pairs = (line[2:].partition("=") for line in lines if line.startswith("E:"))
            self._udev[name] = {key: value for key, equals, value in pairs if equals}
        return self._udev[name]

    def resolve(self, spec: str) -> list[str]:
        """Kernel names for ``/dev/...``, ``UUID=``, ``LABEL=``, ``PARTUUID=`` or ``PARTLABEL=``."""
        spec = spec.strip().strip('"')
        if "\0" in spec:  # no path has one
            return []
        tag, _equals, value = spec.partition("=")
        value = value.strip('"')
        if tag in _TAGS and value:
            found = {name for name in self.names if self.udev(name).get(_TAGS[tag]) == value}
            return sorted(found.union(self._target(f"dev/disk/by-{tag.lower()}/{value}")))
        if not spec.startswith("/dev/"):
            return []
        name = os.path.basename(spec)
        if spec.startswith("/dev/mapper/"):
            dm = [block for block in self.names if self._mapper(block) == name]
            if dm:
                return dm
        return [name] if spec == f"/dev/{name}" and name in self else self._target(spec.lstrip("/"))

    def _target(self, path: str) -> list[str]:
        """The block device that udev's link at ``path`` names."""
        target = self.tree.link_name(path)
        return [target] if target is not None and target in self else []


def _btrfs_members(tree: Tree) -> list[list[str]]:
    return [tree.names(f"{_BTRFS}/{uuid}/devices") for uuid in tree.names(_BTRFS)]


def mounted(blocks: Blocks, mounts: Iterable[Mount]) -> Iterator[tuple[str, str]]:
    groups = _btrfs_members(blocks.tree)
    for mount in mounts:
        names = [blocks.by_number[mount.device]] if mount.device in blocks.by_number else blocks.resolve(mount.source)
        if mount.fs_type == "btrfs":  # an anonymous device number; the members are listed apart
            for members in groups:
                if any(name in members for name in names):
                    names = sorted(set(names) | set(members))
        for name in names:
            for bdf in blocks.pci_of(name):
                yield bdf, f"{blocks.title(name)} on it is mounted on {mount.mount_point} ({mount.fs_type})"


def swaps(blocks: Blocks) -> Iterator[tuple[str, str]]:
    for line in islice(reading.lines(blocks.tree, "proc/swaps"), 1, None):
        for name in blocks.resolve(reading.unescape(line.split()[0])) if line.split() else []:
            for bdf in blocks.pci_of(name):
                yield bdf, f"{blocks.title(name)} on it is swap space"


def stacked(blocks: Blocks) -> Iterator[tuple[str, str]]:
    for name in blocks.names:
        for holder in blocks.tree.names(f"{BLOCK}/{name}/holders"):
            uuid = blocks.tree.text(f"{BLOCK}/{holder}/dm/uuid") or ""
            kinds = {"LVM-": "LVM volume", "mpath-": "multipath device", "CRYPT-": "encrypted volume"}
            kind = next((text for start, text in kinds.items() if uuid.startswith(start)), "")
            kind = kind or ("md array" if holder.startswith("md") else "device")
            for bdf in blocks.pci_of(name):
                yield bdf, f"/dev/{name} on it is part of the {kind} {blocks.title(holder)}"


def signatures(blocks: Blocks) -> Iterator[tuple[str, str]]:
    for name in blocks.names:
        known = blocks.udev(name)
        meaning = _MEMBER_SIGNATURES.get(known.get("ID_FS_TYPE", ""))
        if meaning is None and known.get("DM_MULTIPATH_DEVICE_PATH") == "1":
            meaning = _MEMBER_SIGNATURES["mpath_member"]
        if meaning:
            for bdf in blocks.pci_of(name):
                yield bdf, f"/dev/{name} on it is {meaning}"


def fstab(blocks: Blocks) -> Iterator[tuple[str, str]]:
    for line in reading.lines(blocks.tree, "etc/fstab"):
        fields = line.split("#", 1)[0].split()
        if len(fields) >= 3:
            for name in blocks.resolve(reading.unescape(fields[0])):
                for bdf in blocks.pci_of(name):
                    yield bdf, f"/etc/fstab names {blocks.title(name)} on it for {reading.unescape(fields[1])}"
