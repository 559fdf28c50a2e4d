# Copyright: the topovirt.kvm authors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""The disk of the emulated server, made from a tree without mounts or loop devices.

GPT: an EFI system partition (FAT16: the firmware ignores a FAT32 with too few clusters) and an ext4 root.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from tests.twin.images import process

MIB = 1 << 20
SECTOR = 512
ESP_START = 1 * MIB
ESP_SIZE = 64 * MIB
ROOT_START = ESP_START + ESP_SIZE
#: Behind the root partition lies the second copy of the partition table.
TAIL = 1 * MIB
DISK_UUID = "7f3e1c5a-8b1d-4c7e-9a55-746f706f0000"
ESP_PARTUUID = "7f3e1c5a-8b1d-4c7e-9a55-746f706f0001"
ROOT_PARTUUID = "7f3e1c5a-8b1d-4c7e-9a55-746f706f0002"
ROOT_UUID = "5d0a2c66-3f4e-4b0d-8e21-746f706f0003"
ESP_SERIAL = "70766b6d"
#: Left out so that every e2fsprogs and GRUB of the supported releases makes and reads the same file system.
EXT4_FEATURES = "^metadata_csum_seed,^orphan_file"


def partition_script(size_bytes: int) -> str:
    """What sfdisk is told for a disk of this size."""
    root_sectors = (size_bytes - ROOT_START - TAIL) // SECTOR
    return (
        f"label: gpt\nlabel-id: {DISK_UUID}\nfirst-lba: 2048\n"
        f"start={ESP_START // SECTOR}, size={ESP_SIZE // SECTOR}, type=U, name=esp, uuid={ESP_PARTUUID}\n"
        f"start={ROOT_START // SECTOR}, size={root_sectors}, type=L, name=root, uuid={ROOT_PARTUUID}\n"
    )


def make(tree: Path, loader: Path, target: Path, size_bytes: int, qemu_img: Sequence[str], work: Path) -> None:
    """Write ``target`` (qcow2) with the root file system from ``tree`` and ``loader`` as the removable-media loader."""
    log = work / "log"
    raw = work / "disk.raw"
    esp = work / "esp.raw"
    with raw.open("wb") as disk:
        disk.truncate(size_bytes)
    script = work / "partitions"
    script.write_text(partition_script(size_bytes))
    process.run(["sh", "-c", 'sfdisk --quiet --no-reread --no-tell-kernel "$1" < "$2"', "sh", raw, script], log)
    blocks = (size_bytes - ROOT_START - TAIL) // 4096
    process.run(
        [
            "mke2fs",
            "-q",
            "-F",
            "-t",
            "ext4",
            "-b",
            "4096",
            "-L",
            "root",
            "-U",
            ROOT_UUID,
            "-O",
            EXT4_FEATURES,
            "-J",
            "size=32",
            "-m",
            "0",
            "-E",
            f"offset={ROOT_START},lazy_itable_init=1,root_owner=0:0",
            "-d",
            tree,
            raw,
            str(blocks),
        ],
        log,
    )
    with esp.open("wb") as part:
        part.truncate(ESP_SIZE)
    process.run(["mkfs.vfat", "-n", "ESP", "-i", ESP_SERIAL, "-F", "16", esp], log)
    process.run(["mmd", "-i", esp, "::/EFI", "::/EFI/BOOT"], log)
    process.run(["mcopy", "-i", esp, loader, "::/EFI/BOOT/BOOTX64.EFI"], log)
    with raw.open("r+b") as disk, esp.open("rb") as part:
        disk.seek(ESP_START)
        while chunk := part.read(MIB):
            if chunk.strip(b"\0"):
                disk.write(chunk)
            else:
                disk.seek(len(chunk), 1)
    process.run([*qemu_img, "convert", "-f", "raw", "-O", "qcow2", raw, target], log)
    raw.unlink()
    esp.unlink()
