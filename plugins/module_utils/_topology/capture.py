# Copyright: the topovirt.kvm authors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Capture exactly the files that the reader reads, as an archive that it can read elsewhere.

``script`` runs on any Linux with a POSIX shell and the usual small tools (busybox has them all); ``unpack`` rebuilds
the tree here. The files that tell what a host itself uses (mounts, routes, open handles) are not part of a capture:
they speak of people and jobs, and a copy of them is stale at once.
"""

from __future__ import annotations

import io
import os
import shlex
import tarfile
from pathlib import Path
from typing import Set, Tuple

from ansible_collections.topovirt.kvm.plugins.module_utils._errors import TopovirtError

PCI_DEVICES = "sys/bus/pci/devices/*"

Directories = Tuple[Tuple[str, Tuple[str, ...]], ...]

# Directories (shell patterns below the root, followed to where they really are) -> names in them; none: the directory
# alone says enough. Files and links are copied as what they are.
DIRECTORIES: Directories = (
    ("proc", ("cmdline", "cpuinfo")),
    ("proc/sys/kernel", ("arch", "osrelease")),
    ("proc/sys/kernel/random", ("boot_id",)),
    ("etc", ("os-release",)),
    ("usr/lib", ("os-release",)),
    ("sys/firmware", ()),
    ("sys/firmware/efi", ()),
    ("sys/firmware/acpi/tables", ("DMAR", "IVRS")),
    ("sys/kernel/iommu_groups/*", ("type",)),
    ("sys/kernel/security", ("lockdown",)),
    ("sys/firmware/efi/efivars", ("BootOrder-*", "SecureBoot-*")),
    ("sys/devices/system/cpu", ("online", "isolated", "nohz_full")),
    (
        "sys/devices/system/cpu/cpu[0-9]*/topology",
        ("physical_package_id", "core_siblings_list", "die_id", "die_cpus_list", "core_id", "thread_siblings_list"),
    ),
    ("sys/devices/system/cpu/cpu[0-9]*/cache/index3", ("id", "shared_cpu_list")),
    ("sys/devices/system/node/node[0-9]*", ("cpulist", "distance", "meminfo")),
    ("sys/devices/system/node/node[0-9]*/hugepages/*", ("free_hugepages", "nr_hugepages")),
    ("sys/devices/pci*/pci_bus/*", ("cpulistaffinity",)),
    ("sys/bus/pci/devices", ("*",)),
    ("sys/class/net", ("*",)),
    ("sys/class/infiniband", ("*",)),
    ("sys/block", ("*",)),
    (
        PCI_DEVICES,
        (
            "uevent",  # and the files for which it stands, should a reader not believe it
            "class",
            "vendor",
            "device",
            "subsystem_vendor",
            "subsystem_device",
            "numa_node",
            "resource",
            "max_link_speed",
            "max_link_width",
            "driver",
            "driver_override",
            "iommu_group",
            "reset_method",
            "physfn",
            "power_state",
            "sriov_totalvfs",
            "sriov_numvfs",
        ),
    ),
)

# In guests also what NCCL is told.
IN_GUESTS = (*DIRECTORIES, ("run/nvidia-topologyd", ("virtualTopology.xml",)))

# Of bridges the part of the configuration space that holds the PCI Express capability; of network adapters that may be
# a board's fabric bridge the vital product data. Both cost accesses to the device, so nobody else's are read.
_PCI_EXTRA = (
    'read -r c <class; read -r v <vendor; case $c in 0x0604*|0x0609*) dd if=config of="$t/config" bs=256 count=1;; '
    '0x02*) case $v in 0x15b3) cp vpd "$t/";; esac;; esac'
)

_MAX_MEMBERS = 200_000
_MAX_BYTES = 256 << 20


def script(root: str = "/", directories: Directories = DIRECTORIES) -> str:
    """A shell script that writes a gzipped tar archive of the tree below ``root`` to its standard output.

    sysfs lies about the size of its files, so tar alone would store empty or padded ones: the files are copied to
    memory first. Processes are few, one for each directory, for starting one is slow in an emulated machine.
    """
    patterns = " ".join(pattern for pattern, _names in directories)
    copies = []
    for pattern, names in directories:
        if not names:
            continue
        extra = f"{_PCI_EXTRA}; " if pattern == PCI_DEVICES else ""
        copies.append(
            f'cd "$r/"; for d in {pattern}; do cd -P "$r/$d" || continue; t=$w${{PWD#"$r"}}; '
            f'{extra}cp -P {" ".join(names)} "$t/"; done'
        )
    return "\n".join(
        [
            "PATH=${PATH:-/usr/sbin:/usr/bin:/sbin:/bin}; LC_ALL=C; export PATH LC_ALL; umask 077",
            "exec 3>&1 >/dev/null",
            f"cd -P {shlex.quote(root)} || exit 1; r=${{PWD%/}}",
            "for b in /run /dev/shm /tmp; do w=$(mktemp -d $b/topovirt.XXXXXX 2>/dev/null) && break; done",
            '[ -d "$w" ] || { echo "no place for temporary files" >&2; exit 1; }',
            "trap 'rm -rf \"$w\"' EXIT; exec 2>/dev/null",
            f'cd "$r/"; l=; for d in {patterns}; do cd -P "$r/$d" && l="$l $w${{PWD#"$r"}}"; done; mkdir -p $l',
            *copies,
            'cd "$w" && tar -cf - . | gzip -c >&3',
        ]
    )


def unpack(archive: bytes, target: Path) -> None:
    """Rebuild a captured tree below ``target``, an empty directory.

    The archive comes from a guest, so nothing in it is trusted: only plain files, directories and links are made,
    never through a link, never outside of ``target``.

    :raises TopovirtError: for an archive that is damaged, too large, or tries any of that.
    """
    try:
        with tarfile.open(fileobj=io.BytesIO(archive), mode="r:gz") as tar:
            _unpack(tar, target)
    except (tarfile.TarError, OSError, EOFError, ValueError) as error:
        raise TopovirtError(f"The captured tree cannot be unpacked: {error}.", "Capture it again.") from None


def _unpack(tar: tarfile.TarFile, target: Path) -> None:
    links: Set[str] = set()
    total = 0
    for count, member in enumerate(tar):
        total += member.size
        if count >= _MAX_MEMBERS or total > _MAX_BYTES:
            raise ValueError(f"it holds more than {_MAX_MEMBERS} entries or {_MAX_BYTES} bytes")
        parts = [part for part in member.name.split("/") if part not in ("", ".")]
        above = {"/".join(parts[:length]) for length in range(1, len(parts))}
        if member.name.startswith("/") or ".." in parts or links.intersection(above):
            raise ValueError(f"{member.name!r} leads outside")
        name = "/".join(parts)
        path = target.joinpath(*parts)
        if member.isdir():
            if name in links:
                raise ValueError(f"{member.name!r} is a link and a directory")
            path.mkdir(parents=True, exist_ok=True)
            continue
        path.parent.mkdir(parents=True, exist_ok=True)
        if member.issym():
            os.symlink(member.linkname, path)
            links.add(name)
        elif member.isreg():
            source = tar.extractfile(member)
            descriptor = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW, 0o600)
            with os.fdopen(descriptor, "wb") as file:
                file.write(source.read() if source is not None else b"")
        else:
            raise ValueError(f"{member.name!r} is neither a file nor a directory nor a link")
