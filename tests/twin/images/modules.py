# Copyright: the topovirt.kvm authors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""The kernel's modules in a tree: which one needs which, dropping what no emulated machine has, unpacking the rest."""

from __future__ import annotations

import lzma
from collections.abc import Iterable
from pathlib import Path, PurePosixPath

SUFFIX = ".xz"

#: Folders of the stock kernel whose devices no emulated machine has. What something outside them needs stays.
ABSENT_HARDWARE = (
    "sound",
    "net/bluetooth",
    "net/wireless",
    "net/mac80211",
    "net/nfc",
    "net/can",
    "net/ax25",
    "net/rose",
    "net/netrom",
    "net/batman-adv",
    "net/tipc",
    "net/sctp",
    "net/ceph",
    "net/rxrpc",
    "net/phonet",
    "net/ieee802154",
    "net/6lowpan",
    "drivers/accel",
    "drivers/accessibility",
    "drivers/ata",
    "drivers/atm",
    "drivers/auxdisplay",
    "drivers/bluetooth",
    "drivers/comedi",
    "drivers/gpu",
    "drivers/hid",
    "drivers/hwmon",
    "drivers/iio",
    "drivers/input",
    "drivers/isdn",
    "drivers/leds",
    "drivers/media",
    "drivers/memstick",
    "drivers/mfd",
    "drivers/misc",
    "drivers/mmc",
    "drivers/mtd",
    "drivers/net/can",
    "drivers/net/ethernet",
    "drivers/net/hamradio",
    "drivers/net/ieee802154",
    "drivers/net/usb",
    "drivers/net/wireless",
    "drivers/net/wwan",
    "drivers/nfc",
    "drivers/parport",
    "drivers/pcmcia",
    "drivers/platform",
    "drivers/power",
    "drivers/rtc",
    "drivers/scsi",
    "drivers/soundwire",
    "drivers/spi",
    "drivers/ssb",
    "drivers/staging",
    "drivers/target",
    "drivers/thunderbolt",
    "drivers/usb",
    "drivers/video",
    "drivers/w1",
    "drivers/watchdog",
    "arch/x86/crypto",
    "drivers/i2c",
    "drivers/powercap",
    "drivers/edac",
    "drivers/vmw_vmci",
    "net/vmw_vsock",
    "drivers/firmware/efi",
    "drivers/char/tpm",
    "drivers/infiniband",
    "drivers/crypto",
    "drivers/bcma",
    "drivers/message",
    "drivers/firewire",
    "drivers/gnss",
    "fs/ceph",
    "fs/smb",
    "fs/ocfs2",
    "fs/gfs2",
    "fs/bcachefs",
    "fs/ubifs",
    "fs/jffs2",
    "fs/afs",
    "fs/orangefs",
    "fs/coda",
    "fs/reiserfs",
    "fs/jfs",
    "fs/nilfs2",
    "fs/f2fs",
    "fs/ntfs3",
    "fs/hfs",
    "fs/hfsplus",
    "fs/udf",
    "fs/erofs",
)
#: Kept although they lie in such a folder: nouveau really tries to take the GPUs; igb are the machine's real NICs.
KEPT = (
    "drivers/gpu/drm/nouveau/nouveau",
    "drivers/net/ethernet/intel/igb/igb",
    "drivers/net/ethernet/intel/igbvf/igbvf",
    "drivers/input/evdev",
    "drivers/scsi/scsi_mod",
    "drivers/scsi/sd_mod",
    "drivers/video/fbdev/nvidia/nvidiafb",
    "drivers/net/ethernet/intel/e1000e/e1000e",
)
#: Of the stock kernel, but in the emulated server a stand-in of ours takes its place or nothing does.
REPLACED = (
    "drivers/net/ethernet/mellanox",
    "drivers/infiniband/hw/mlx5",
    "drivers/vfio/pci/mlx5",
    "drivers/vdpa/mlx5",
)


def parse_dependencies(text: str) -> dict[str, list[str]]:
    """modules.dep: path -> paths it needs, in the order in which modprobe loads them backwards (modules.dep(5))."""
    table = {}
    for line in text.splitlines():
        path, _, needs = line.partition(":")
        table[path.strip()] = needs.split()
    return table


def bare(path: str) -> str:
    """``kernel/drivers/x/y.ko.xz`` -> ``drivers/x/y``."""
    return path.removeprefix("kernel/").removesuffix(SUFFIX).removesuffix(".ko")


def below(path: str, folders: Iterable[str]) -> bool:
    """Whether a module lies in or below one of the folders."""
    return any(bare(path).startswith(f"{folder}/") for folder in folders)


def to_keep(dependencies: dict[str, list[str]]) -> set[str]:
    """Paths of modules.dep that stay in the image: none of the absent hardware, but all that the others need."""
    keep = {
        path
        for path in dependencies
        if not below(path, REPLACED) and (not below(path, ABSENT_HARDWARE) or bare(path) in KEPT)
    }
    for path in list(keep):
        needs = dependencies[path]
        if any(below(need, REPLACED) for need in needs):
            keep.discard(path)
        else:
            keep.update(needs)
    return keep


def load_order(dependencies: dict[str, list[str]], names: Iterable[str]) -> list[str]:
    """Paths to insert one after the other so that the named modules are loaded; built-in ones are skipped.

    Names are without folder and suffix, with underscores.
    """
    by_name = {PurePosixPath(bare(path)).name.replace("-", "_"): path for path in dependencies}
    order: list[str] = []
    for name in names:
        path = by_name.get(name)
        if path is None:
            continue
        for step in [*reversed(dependencies[path]), path]:
            if step not in order:
                order.append(step)
    return order


def unpack(source: Path, target: Path) -> None:
    """Write a module uncompressed."""
    target.parent.mkdir(parents=True, exist_ok=True)
    data = source.read_bytes()
    target.write_bytes(lzma.decompress(data) if source.name.endswith(SUFFIX) else data)


def trim(tree: Path, release: str) -> None:
    """Drop and unpack the modules of one kernel in place. depmod has to follow."""
    folder = tree / "usr/lib/modules" / release
    dependencies = parse_dependencies((folder / "modules.dep").read_text())
    keep = to_keep(dependencies)
    for path in dependencies:
        file = folder / path
        if path in keep and path.endswith(SUFFIX):
            unpack(file, file.with_name(file.name.removesuffix(SUFFIX)))
        if path not in keep or path.endswith(SUFFIX):
            file.unlink()


def release_of(tree: Path) -> str:
    """The release of the only kernel in a tree."""
    (folder,) = (tree / "usr/lib/modules").iterdir()
    return folder.name
