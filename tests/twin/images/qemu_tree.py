# Copyright: the topovirt.kvm authors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""QEMU for the emulated server: the system's where it is new enough, otherwise a private tree run in place.

The private tree holds Debian packages, extracted. It is run without chroot, through its own dynamic loader, so that
sockets, disks and logs have the same paths inside and outside.
"""

from __future__ import annotations

import json
import os
import re
import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import Protocol

from tests.twin.images import mirror as debian
from tests.twin.images import process
from tests.twin.images.process import BakeError

#: First QEMU with the vfio-user-pci device (its 10.1 change log).
MINIMUM = (10, 1)
PACKAGES = ("qemu-system-x86", "qemu-utils", "ovmf", "seabios")
LIBRARIES = "usr/lib/x86_64-linux-gnu"
DATA = ("usr/share/qemu", "usr/share/seabios", "usr/lib/ipxe/qemu")
OVMF_CODE = "usr/share/OVMF/OVMF_CODE_4M.fd"
OVMF_VARS = "usr/share/OVMF/OVMF_VARS_4M.fd"
SYSTEM = Path("/")
PREFERENCE = f"Package: *\nPin: release n={debian.BACKPORTS}\nPin-Priority: 900\n"


class HasQemu(Protocol):
    """What this file needs of the images."""

    @property
    def qemu_root(self) -> Path:
        """``/`` for the system's QEMU, else the private tree."""


def tool(root: Path, name: str) -> list[str]:
    """Command words that start a program of QEMU (qemu-system-x86_64, qemu-img, qemu-nbd ...)."""
    if root == SYSTEM:
        return [name]
    loader = root / LIBRARIES / "ld-linux-x86-64.so.2"
    return [str(loader), "--library-path", str(root / LIBRARIES), str(root / "usr/bin" / name)]


def qemu_command(images: HasQemu) -> list[str]:
    """Command words that start the emulator; its arguments follow."""
    words = tool(images.qemu_root, "qemu-system-x86_64")
    if images.qemu_root != SYSTEM:
        for folder in DATA:
            words += ["-L", str(images.qemu_root / folder)]
    return words


def qemu_environment(images: HasQemu) -> dict[str, str]:
    """Variables to add to the environment of ``qemu_command`` and of the tools."""
    if images.qemu_root == SYSTEM:
        return {}
    return {"QEMU_MODULE_DIR": str(images.qemu_root / LIBRARIES / "qemu")}


def img_command(images: HasQemu) -> list[str]:
    """Command words that start qemu-img."""
    return tool(images.qemu_root, "qemu-img")


def parse_version(text: str) -> tuple[int, int] | None:
    """Major and minor version from the output of ``--version``."""
    match = re.search(r"version (\d+)\.(\d+)", text)
    return (int(match[1]), int(match[2])) if match else None


def system_is_enough() -> bool:
    """Whether the installed QEMU and firmware can play the emulated server."""
    search = os.environ.get("PATH", "/usr/bin")
    if not (Path("/", OVMF_CODE).exists() and Path("/", OVMF_VARS).exists()):
        return False
    if shutil.which("qemu-system-x86_64", path=search) is None or shutil.which("qemu-img", path=search) is None:
        return False
    version = parse_version(process.output(["qemu-system-x86_64", "--version"]))
    if version is None or version < MINIMUM:
        return False
    return 'name "vfio-user-pci"' in process.output(["qemu-system-x86_64", "-device", "help"])


def build(work: Path, mirror: debian.Mirror, environment: Mapping[str, str] | None = None) -> None:
    """Extract QEMU, its libraries and firmware into ``work/tree`` and prove that it runs.

    :raises BakeError: the archive's QEMU is too old, or it does not start.
    """
    preference = work / "preference"
    preference.write_text(PREFERENCE)
    tree = work / "tree"
    pin = f'mkdir -p "$1/etc/apt/preferences.d" && cp {preference} "$1/etc/apt/preferences.d/backports"'
    mirror.bootstrap(
        tree, "extract", PACKAGES, work / "log", suites=(debian.SUITE, debian.BACKPORTS), hooks=[("setup", pin)]
    )
    version = process.output([*tool(tree, "qemu-system-x86_64"), "--version"], env=environment)
    found = parse_version(version)
    if found is None or found < MINIMUM:
        raise BakeError(
            f"QEMU of the archive is {version.splitlines()[0]}; expected {MINIMUM[0]}.{MINIMUM[1]} or newer."
        )
    (work / "packages.json").write_text(
        json.dumps({"qemu": version.splitlines()[0].removeprefix("QEMU emulator version ")})
    )
