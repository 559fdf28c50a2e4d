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
#: Headers and compiler, and the essential programs that kbuild runs. Extracted only: that is enough.
PACKAGES = ("linux-headers-amd64", "make", "dash", "bash", "coreutils", "sed", "grep", "findutils", "mawk")
MODULES = ("nvidia", "mlx5_core")
COMPILE = (
    "cd /driver && make --silent -C /usr/src/linux-headers-*-amd64 M=/driver modules && strip --strip-debug *.ko && "
    "basename /usr/src/linux-headers-*-amd64 > release"
)


def build(work: Path, mirror: debian.Mirror) -> None:
    """Make the modules.

    :raises BakeError: a step failed.
    """
    tree, log = work / "tree", work / "log"
    mirror.bootstrap(tree, "extract", PACKAGES, log)
    for name in ("bin", "sbin", "lib", "lib64"):
        if not (tree / name).exists():
            (tree / name).symlink_to(f"usr/{name}")
    for name in ("proc", "sys", "run", "dev", "tmp"):
        (tree / name).mkdir(exist_ok=True)
    (tree / "usr/bin/awk").symlink_to("mawk")
    shutil.copytree(HERE, tree / "driver")
    process.chroot(tree, ["sh", "-c", COMPILE], log)
    for module in MODULES:
        shutil.copy(tree / "driver" / f"{module}.ko", work / f"{module}.ko")
    release = (tree / "driver/release").read_text().strip().removeprefix("linux-headers-")
    (work / "release").write_text(f"{release}\n")
    shutil.rmtree(tree)
