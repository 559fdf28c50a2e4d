# Copyright: the topovirt.kvm authors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""systemd-boot: entry files on the EFI system partition or the boot partition, and what new kernels inherit from."""

from __future__ import annotations

from pathlib import Path
from typing import List

from ansible_collections.topovirt.kvm.plugins.module_utils._host.cmdline.edit import Edit
from ansible_collections.topovirt.kvm.plugins.module_utils._host.cmdline.edit_bls import EntryFiles

_PLACES = ("boot", "efi", "boot/efi")  # where the partitions are mounted (bootctl(1))


class SystemdBoot(EntryFiles):
    name = "systemd_boot"
    directories = tuple(f"{place}/loader/entries" for place in _PLACES)

    @staticmethod
    def found(root: Path) -> bool:
        return any((root / place / "EFI/systemd/systemd-bootx64.efi").is_file() for place in _PLACES)

    def obstacles(self, edit: Edit) -> List[str]:
        images = [path for place in _PLACES for path in sorted((self.root / place / "EFI/Linux").glob("*.efi"))]
        return [
            f"/{path.relative_to(self.root)} has its command line built in: change /etc/kernel/cmdline, build it anew"
            for path in images
        ]
