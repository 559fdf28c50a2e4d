# Copyright: the topovirt.kvm authors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Which boot loader and which builder of initramfs images a host has."""

from __future__ import annotations

from pathlib import Path
from typing import List

from ansible_collections.topovirt.kvm.plugins.module_utils._errors import TopovirtError
from ansible_collections.topovirt.kvm.plugins.module_utils._host.cmdline.bls import Bls
from ansible_collections.topovirt.kvm.plugins.module_utils._host.cmdline.dracut import Dracut
from ansible_collections.topovirt.kvm.plugins.module_utils._host.cmdline.grub import Grub
from ansible_collections.topovirt.kvm.plugins.module_utils._host.cmdline.initramfs import Initramfs
from ansible_collections.topovirt.kvm.plugins.module_utils._host.cmdline.initramfs_tools import InitramfsTools
from ansible_collections.topovirt.kvm.plugins.module_utils._host.cmdline.loader import BootLoader
from ansible_collections.topovirt.kvm.plugins.module_utils._host.places import Run

_LOADERS = (Bls, Grub)
_BUILDERS = (InitramfsTools, Dracut)


def boot_loader(root: Path, run: Run) -> BootLoader:
    """The host's boot loader.

    :raises TopovirtError: for one that cannot try an entry of ours.
    """
    if (root / "run/ostree-booted").exists():
        raise TopovirtError(
            "this host boots images of ostree or bootc, whose kernel arguments and initramfs belong to the image",
            "(put them there: see kernel_cmdline)",
        )
    for kind in _LOADERS:
        if kind.found(root):
            return kind(root, run)
    what = "systemd-boot" if (root / "boot/loader/loader.conf").exists() else "neither /boot/grub nor /boot/grub2"
    raise TopovirtError(
        f"the boot loader of this host is not supported: found {what}",
        "(hosts can be converted that boot by GRUB, with a generated grub.cfg or with entries in /boot/loader/entries)",
    )


def initramfs_builder(root: Path, run: Run) -> Initramfs:
    """What builds this host's initramfs images.

    :raises TopovirtError: there is nothing known.
    """
    for kind in _BUILDERS:
        if kind.found(root):
            return kind(root, run)
    programs = " nor ".join(kind.program for kind in _BUILDERS)
    raise TopovirtError(f"the host has neither {programs}, so that no initramfs for the trial boot can be built")


def boot_obstacles(root: Path, run: Run) -> List[str]:
    """Why no trial boot is possible on this host."""
    found = []
    try:
        found += boot_loader(root, run).obstacles()
    except TopovirtError as error:
        found.append(str(error))
    try:
        initramfs_builder(root, run)
    except TopovirtError as error:
        found.append(str(error))
    return found
