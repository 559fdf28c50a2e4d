# Copyright: the topovirt.kvm authors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Build the stand-in kernel modules for the image's kernel, in a tree of headers and compiler that is thrown away.

Written into ``work``: ``nvidia.ko``, ``mlx5_core.ko``, ``release`` (of the kernel), ``log``.
"""

from __future__ import annotations

import shutil
from pathlib import Path

from tests.twin.images import mirror as debian
from tests.twin.images import process

HERE = Path(__file__).parent / "driver"
PACKAGES = ("linux-headers-amd64", "make")
MODULES = ("nvidia", "mlx5_core")


def build(work: Path, mirror: debian.Mirror) -> None:
    """Make the modules.

    :raises BakeError: a step failed.
    """
    tree, log = work / "tree", work / "log"
    source = work / "driver"
    shutil.copytree(HERE, source)
    compile_it = (
        f'cp -r {source} "$1/driver" && chroot "$1" sh -c '
        "'make --silent -C /usr/src/linux-headers-*-amd64 M=/driver modules && "
        "basename /usr/src/linux-headers-*-amd64 > /driver/release'"
    )
    mirror.bootstrap(tree, "minbase", PACKAGES, log, hooks=[("customize", compile_it)])
    for module in MODULES:
        shutil.copy(tree / "driver" / f"{module}.ko", work / f"{module}.ko")
    release = (tree / "driver/release").read_text().strip().removeprefix("linux-headers-")
    (work / "release").write_text(f"{release}\n")
    shutil.rmtree(tree)
    shutil.rmtree(source)
