# Copyright: the topovirt.kvm authors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Build the stand-in kernel modules for the image's kernel, in a tree of headers and compiler that is thrown away.

Written into ``work``: a module for each native driver that a machine description names (``nvidia.ko`` ...), ``release``
(of the kernel), ``log``.
"""

from __future__ import annotations

import shutil
from pathlib import Path

from tests.twin import description
from tests.twin.images import mirror as debian
from tests.twin.images import process

HERE = Path(__file__).parent / "driver"
#: Headers and compiler, and the essential programs that kbuild runs. Extracted only: that is enough.
PACKAGES = ("linux-headers-amd64", "make", "dash", "bash", "coreutils", "sed", "grep", "findutils", "mawk")
COMPILE = (
    "cd /driver && make --silent -C /usr/src/linux-headers-*-amd64 M=/driver modules && strip --strip-debug *.ko && "
    "basename /usr/src/linux-headers-*-amd64 > release"
)


def table() -> str:
    """Drivers and the PCI ids of each, as text for make, from all machine descriptions."""
    ids: dict[str, set[tuple[int, int]]] = {}
    for name in description.names():
        for endpoint in description.load(name).endpoints():
            kind = endpoint.kind
            ids.setdefault(kind.native_driver, set()).add((kind.vendor, kind.device))
    lines = [f"drivers := {' '.join(sorted(ids))}"]
    for driver, pairs in sorted(ids.items()):
        entries = ",".join(f"{{PCI_DEVICE({vendor:#06x},{device:#06x})}}" for vendor, device in sorted(pairs))
        lines.append(f"ids-{driver} := {entries}")
    return "\n".join(lines) + "\n"


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
    (tree / "driver/drivers.mk").write_text(table())
    process.chroot(tree, ["sh", "-c", COMPILE], log)
    for module in (tree / "driver").glob("*.ko"):
        shutil.copy(module, work / module.name)
    release = (tree / "driver/release").read_text().strip().removeprefix("linux-headers-")
    (work / "release").write_text(f"{release}\n")
    shutil.rmtree(tree)
