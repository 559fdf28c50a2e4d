# Copyright: the topovirt.kvm authors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""The image of the emulated server: Debian with its stock kernel, GRUB and systemd, trimmed to boot quickly.

Written into ``work``: ``disk.qcow2``, ``key`` (of root and of the sudo user ops), ``packages.json``, ``log``.
"""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Callable, Sequence
from pathlib import Path

from tests.twin.images import disk, modules, process, repository
from tests.twin.images import mirror as debian

HERE = Path(__file__).parent / "host"
STANDINS = Path(__file__).parents[1] / "standins"
SIZE_BYTES = 5 << 30


def names(file: Path) -> list[str]:
    """One name per line."""
    return file.read_text().split()


def lay(overlay: Path, tree: Path) -> None:
    """Copy files over a tree, owned by root, with the modes 0755 and 0644 whatever the checkout has."""
    for source in sorted(overlay.rglob("*")):
        target = tree / source.relative_to(overlay)
        if source.is_dir():
            target.mkdir(exist_ok=True)
            continue
        target.unlink(missing_ok=True)
        shutil.copyfile(source, target)
        target.chmod(0o755 if source.stat().st_mode & 0o111 else 0o644)
        os.chown(target, 0, 0)


def bootstrap(work: Path, mirror: debian.Mirror) -> Path:
    """The tree as the packages make it; what conversion installs is downloaded beside it."""
    tree, downloads = work / "tree", work / "downloads"
    (downloads / "partial").mkdir(parents=True)
    early = work / "early"
    early.mkdir()
    lay(HERE / "early", early)
    wanted = " ".join(names(HERE / "repository.txt"))
    fetch = (
        f'APT_CONFIG="$MMDEBSTRAP_APT_CONFIG" apt-get --yes --no-install-recommends --download-only '
        f"-o Dir::Cache::archives={downloads} -o APT::Sandbox::User=root install {wanted}"
    )
    mirror.bootstrap(
        tree,
        "minbase",
        names(HERE / "packages.txt"),
        work / "log",
        hooks=[("setup", f'cp -r {early}/. "$1/"'), ("customize", fetch)],
    )
    return tree


def build(
    work: Path, mirror: debian.Mirror, drivers: Path, qemu_img: Sequence[str], log: Callable[[str], None]
) -> None:
    """Make the image.

    :param drivers: folder with the stand-in kernel modules and the release (file ``release``) that they were built for.
    :raises BakeError: a step failed, or the drivers are for another kernel.
    """
    log("host image: packages")
    tree = bootstrap(work, mirror)
    release = modules.release_of(tree)
    built_for = (drivers / "release").read_text().strip()
    if built_for != release:
        raise process.BakeError(f"The stand-in drivers are built for {built_for}, the image has {release}.")
    log("host image: repository")
    bundled = repository.make(work / "downloads", tree / "srv/repo")

    log("host image: modules, initramfs, boot loader")
    modules.trim(tree, release)
    extra = tree / "usr/lib/modules" / release / "updates"
    extra.mkdir()
    for driver in sorted(drivers.glob("*.ko")):
        shutil.copyfile(driver, extra / driver.name)
    for left_over in (*tree.glob("etc/apt/sources.list.d/*"), *tree.glob("etc/apt/apt.conf.d/99mmdebstrap")):
        left_over.unlink()
    lay(HERE / "files", tree)
    for program in ("nvidia-smi", "fmpm"):
        shutil.copyfile(STANDINS / program, tree / "usr/bin" / program)
        (tree / "usr/bin" / program).chmod(0o755)
    process.run(
        ["ssh-keygen", "-q", "-t", "ed25519", "-N", "", "-C", "emulated server", "-f", work / "key"], work / "log"
    )
    bake = tree / "bake"
    bake.mkdir()
    for file in (HERE / "customize.sh", HERE / "grub-probe", *HERE.glob("masked-*.txt"), work / "key.pub"):
        shutil.copy(file, bake / file.name)
    process.chroot(
        tree,
        ["sh", "/bake/customize.sh", release],
        work / "log",
        {"ROOT_UUID": disk.ROOT_UUID, "ROOT_PARTUUID": disk.ROOT_PARTUUID},
    )
    loader = work / "BOOTX64.EFI"
    shutil.move(bake / "BOOTX64.EFI", loader)
    shutil.rmtree(bake)
    versions = {"host": debian.installed(tree), "repository": bundled, "kernel": release}

    log("host image: disk")
    disk.make(tree, loader, work / "disk.qcow2", SIZE_BYTES, qemu_img, work)
    (work / "packages.json").write_text(json.dumps(versions))
    for part in ("tree", "downloads", "early"):
        shutil.rmtree(work / part)
