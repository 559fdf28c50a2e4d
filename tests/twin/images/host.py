# Copyright: the topovirt.kvm authors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""The image of the emulated server: Debian with its stock kernel, GRUB and systemd, trimmed to boot quickly.

Written into ``work``: ``disk.qcow2``, ``key`` (of root and of the sudo user ops), ``packages.json``, ``log``.
"""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable, Sequence
from pathlib import Path

from tests.twin.images import disk, process, repository, server
from tests.twin.images import mirror as debian

HERE = Path(__file__).parent / "host"


def build(
    work: Path, mirror: debian.Mirror, drivers: Path, qemu_img: Sequence[str], log: Callable[[str], None]
) -> None:
    """Make the image.

    :param drivers: as in ``server.add_drivers``.
    :raises BakeError: a step failed, or the drivers are for another kernel.
    """
    log("host image: packages")
    tree = server.bootstrap(
        work, mirror, server.names(HERE / "packages.txt"), server.names(HERE / "repository.txt"), [HERE / "early"]
    )
    log("host image: repository")
    bundled = repository.make(work / "downloads", tree / "srv/repo")

    log("host image: modules, initramfs, boot loader")
    release = server.add_drivers(tree, drivers)
    bake = server.add_files(tree, work, HERE / "files")
    shutil.copy(HERE / "customize.sh", bake)
    process.chroot(
        tree,
        ["sh", "/bake/customize.sh", release],
        work / "log",
        {
            "ROOT_DEVICE": disk.device(disk.ROOT, disk.ONE_ROOT),
            "ROOT_UUID": disk.ROOT_UUID,
            "ROOT_PARTUUID": disk.ROOT_PARTUUID,
        },
    )
    loader = work / "BOOTX64.EFI"
    shutil.move(bake / "BOOTX64.EFI", loader)
    shutil.rmtree(bake)
    versions = {"host": debian.installed(tree), "repository": bundled, "kernel": release}

    log("host image: disk")
    disk.make(tree, {"EFI/BOOT/BOOTX64.EFI": loader}, work / "disk.qcow2", server.SIZE_BYTES, qemu_img, work)
    (work / "packages.json").write_text(json.dumps(versions))
    for part in ("tree", "downloads", "early"):
        shutil.rmtree(work / part)
