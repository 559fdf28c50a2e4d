# Copyright: the topovirt.kvm authors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""The disk of the emulated server, made from a tree without mounts or loop devices.

GPT: an EFI system partition (FAT16: the firmware ignores a FAT32 with too few clusters), an ext4 /boot where the
distribution has one, and an ext4 root.
"""

from __future__ import annotations

import os
import shutil
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path, PurePosixPath

from tests.twin.images import process

MIB = 1 << 20
SECTOR = 512
BLOCK = 4096
FIRST = 1 * MIB
#: Behind the last partition lies the second copy of the partition table.
TAIL = 1 * MIB
DISK_UUID = "7f3e1c5a-8b1d-4c7e-9a55-746f706f0000"
ROOT_PARTUUID = "7f3e1c5a-8b1d-4c7e-9a55-746f706f0002"
ROOT_UUID = "5d0a2c66-3f4e-4b0d-8e21-746f706f0003"
BOOT_UUID = "5d0a2c66-3f4e-4b0d-8e21-746f706f0005"
ESP_SERIAL = "70766b6d"
#: As /etc/fstab and udev write the serial number.
ESP_UUID = f"{ESP_SERIAL[:4]}-{ESP_SERIAL[4:]}".upper()
#: Left out so that every e2fsprogs and GRUB of the supported releases makes and reads the same file system.
EXT4_FEATURES = "^metadata_csum_seed,^orphan_file"


@dataclass(frozen=True)
class Partition:
    """One partition; the last one takes what is left of the disk."""

    name: str
    #: sfdisk's shortcut of the type: U for an EFI system partition, L for Linux.
    kind: str
    partuuid: str
    size: int | None = None


@dataclass(frozen=True)
class FileSystem:
    """An ext4 file system."""

    label: str
    uuid: str
    journal_mib: int


ESP = Partition("esp", "U", "7f3e1c5a-8b1d-4c7e-9a55-746f706f0001", 64 * MIB)
BOOT = Partition("boot", "L", "7f3e1c5a-8b1d-4c7e-9a55-746f706f0004", 512 * MIB)
ROOT = Partition("root", "L", ROOT_PARTUUID)
ONE_ROOT = (ESP, ROOT)
SEPARATE_BOOT = (ESP, BOOT, ROOT)
FILE_SYSTEMS = {"boot": FileSystem("boot", BOOT_UUID, 4), "root": FileSystem("root", ROOT_UUID, 32)}


def device(partition: Partition, layout: Sequence[Partition]) -> str:
    """The partition's device on the booted server."""
    return f"/dev/vda{layout.index(partition) + 1}"


def extents(size_bytes: int, layout: Sequence[Partition]) -> dict[str, tuple[int, int]]:
    """Start and size in bytes of each partition."""
    found, start = {}, FIRST
    for partition in layout:
        size = size_bytes - TAIL - start if partition.size is None else partition.size
        found[partition.name] = (start, size)
        start += size
    return found


def partition_script(size_bytes: int, layout: Sequence[Partition] = ONE_ROOT) -> str:
    """What sfdisk is told for a disk of this size."""
    lines = ["label: gpt", f"label-id: {DISK_UUID}", "first-lba: 2048"]
    for partition, (start, size) in zip(layout, extents(size_bytes, layout).values(), strict=True):
        lines.append(
            f"start={start // SECTOR}, size={size // SECTOR}, type={partition.kind}, name={partition.name}, "
            f"uuid={partition.partuuid}"
        )
    return "\n".join(lines) + "\n"


def make(
    tree: Path,
    loaders: Mapping[str, Path],
    target: Path,
    size_bytes: int,
    qemu_img: Sequence[str],
    work: Path,
    layout: Sequence[Partition] = ONE_ROOT,
) -> None:
    """Write ``target`` (qcow2) with the file systems from ``tree``.

    :param loaders: files of the EFI system partition by their path there.
    """
    log = work / "log"
    raw = work / "disk.raw"
    with raw.open("wb") as disk:
        disk.truncate(size_bytes)
    script = work / "partitions"
    script.write_text(partition_script(size_bytes, layout))
    process.run(["sh", "-c", 'sfdisk --quiet --no-reread --no-tell-kernel "$1" < "$2"', "sh", raw, script], log)
    places = extents(size_bytes, layout)
    if BOOT in layout:
        boot = work / "boot"
        shutil.move(tree / "boot", boot)
        (tree / "boot").mkdir()
        # The root of the second file system is what the mount shows.
        os.chmod(tree / "boot", 0o555)
        _ext4(boot, raw, FILE_SYSTEMS["boot"], *places["boot"], log)
        shutil.rmtree(boot)
    _ext4(tree, raw, FILE_SYSTEMS["root"], *places["root"], log)
    _esp(loaders, raw, *places["esp"], work)
    process.run([*qemu_img, "convert", "-f", "raw", "-O", "qcow2", raw, target], log)
    raw.unlink()


def _ext4(source: Path, raw: Path, system: FileSystem, start: int, size: int, log: Path) -> None:
    process.run(
        [
            *("mke2fs", "-q", "-F", "-t", "ext4", "-b", str(BLOCK), "-L", system.label, "-U", system.uuid),
            *("-O", EXT4_FEATURES, "-J", f"size={system.journal_mib}", "-m", "0"),
            *("-E", f"offset={start},lazy_itable_init=1,root_owner=0:0", "-d", source, raw, str(size // BLOCK)),
        ],
        log,
    )


def _esp(loaders: Mapping[str, Path], raw: Path, start: int, size: int, work: Path) -> None:
    log, esp = work / "log", work / "esp.raw"
    with esp.open("wb") as part:
        part.truncate(size)
    process.run(["mkfs.vfat", "-n", "ESP", "-i", ESP_SERIAL, "-F", "16", esp], log)
    folders = {str(parent) for name in loaders for parent in PurePosixPath(name).parents} - {"."}
    process.run(["mmd", "-i", esp, *(f"::/{folder}" for folder in sorted(folders))], log)
    for name, loader in loaders.items():
        process.run(["mcopy", "-i", esp, loader, f"::/{name}"], log)
    with raw.open("r+b") as disk, esp.open("rb") as part:
        disk.seek(start)
        while chunk := part.read(MIB):
            if chunk.strip(b"\0"):
                disk.write(chunk)
            else:
                disk.seek(len(chunk), 1)
    esp.unlink()
