# Copyright: the topovirt.kvm authors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""What the images of all emulated servers share, whatever distribution they show: packages, files, drivers, logins."""

from __future__ import annotations

import os
import shutil
from collections.abc import Iterable
from pathlib import Path

from tests.twin.images import mirror as debian
from tests.twin.images import modules, process

HERE = Path(__file__).parent / "server"
STANDINS = Path(__file__).parents[1] / "standins"
SIZE_BYTES = 5 << 30
#: Folder inside the tree for what only the bake needs.
BAKE = "bake"


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


def bootstrap(
    work: Path, mirror: debian.Mirror, packages: Iterable[str], wanted: Iterable[str], early_files: Iterable[Path]
) -> Path:
    """The tree as its packages make it; ``wanted`` and what they need further is only downloaded beside it.

    :param packages: besides those that every server has.
    :param early_files: folders laid over the empty tree before any package.
    """
    tree, downloads = work / "tree", work / "downloads"
    (downloads / "partial").mkdir(parents=True)
    early = work / "early"
    early.mkdir()
    for folder in (HERE / "early", *early_files):
        lay(folder, early)
    fetch = (
        f'APT_CONFIG="$MMDEBSTRAP_APT_CONFIG" apt-get --yes --no-install-recommends --download-only '
        f"-o Dir::Cache::archives={downloads} -o APT::Sandbox::User=root install {' '.join(wanted)}"
    )
    mirror.bootstrap(
        tree,
        "minbase",
        [*names(HERE / "packages.txt"), *packages],
        work / "log",
        hooks=[("setup", f'cp -r {early}/. "$1/"'), ("customize", fetch)],
    )
    return tree


def add_drivers(tree: Path, drivers: Path) -> str:
    """Trim the kernel's modules and add the stand-ins; returns the kernel's release.

    :param drivers: folder with the stand-in kernel modules and the release (file ``release``) that they were built for.
    :raises BakeError: the drivers are for another kernel.
    """
    release = modules.release_of(tree)
    built_for = (drivers / "release").read_text().strip()
    if built_for != release:
        raise process.BakeError(f"The stand-in drivers are built for {built_for}, the image has {release}.")
    modules.trim(tree, release)
    extra = tree / "usr/lib/modules" / release / "updates"
    extra.mkdir()
    for driver in sorted(drivers.glob("*.ko")):
        shutil.copyfile(driver, extra / driver.name)
    return release


def add_files(tree: Path, work: Path, own_files: Path) -> Path:
    """Lay the files, the stand-in tools and the bake's folder; returns that folder, which is to be removed at the end.

    :param own_files: of the one distribution, laid over the shared ones.
    """
    for left_over in (*tree.glob("etc/apt/sources.list.d/*"), *tree.glob("etc/apt/apt.conf.d/99mmdebstrap")):
        left_over.unlink()
    lay(HERE / "files", tree)
    lay(own_files, tree)
    for program in ("nvidia-smi", "fmpm"):
        shutil.copyfile(STANDINS / program, tree / "usr/bin" / program)
        (tree / "usr/bin" / program).chmod(0o755)
    process.run(
        ["ssh-keygen", "-q", "-t", "ed25519", "-N", "", "-C", "emulated server", "-f", work / "key"], work / "log"
    )
    bake = tree / BAKE
    bake.mkdir()
    for file in (HERE / "common.sh", HERE / "grub-probe", *HERE.glob("masked-*.txt"), work / "key.pub"):
        shutil.copy(file, bake / file.name)
    return bake
