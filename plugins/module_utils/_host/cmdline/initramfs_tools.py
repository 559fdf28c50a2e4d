# Copyright: the topovirt.kvm authors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""An initramfs of our own by initramfs-tools (Debian and its children)."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Dict, List, Sequence

from ansible_collections.topovirt.kvm.plugins.module_utils._host.cmdline.early_binding import MODULES, early_script
from ansible_collections.topovirt.kvm.plugins.module_utils._host.cmdline.initramfs import Initramfs, lay
from ansible_collections.topovirt.kvm.plugins.module_utils._host.places import TOKEN

_HOST_CONFIGURATION = "etc/initramfs-tools"
_PREREQUISITES = 'case "$1" in prereqs) echo; exit 0 ;; esac\n'

HOOK = f"""\
#!/bin/sh
# Written by the Ansible collection topovirt.kvm: vfio-pci has to be there before any other driver is loaded.
{_PREREQUISITES}. /usr/share/initramfs-tools/hook-functions
manual_add_modules {" ".join(MODULES)}
"""

# Runs in init-top. Scripts without prerequisites run there in the order of their names, so before "udev", which loads
# drivers.
HEAD = f"""\
#!/bin/sh
# Written by the Ansible collection topovirt.kvm: bind devices for guests to vfio-pci by address.
{_PREREQUISITES}"""


class InitramfsTools(Initramfs):
    """A copy of the host's configuration gets our hook and script.

    It needs no arguments of a trial's own: it goes by the kernel's ``panic=`` (initramfs-tools(7), "panic").
    """

    program = "mkinitramfs"
    paths = ("usr/sbin/mkinitramfs",)
    pattern = "initrd.img-{kernel}"

    def _additions(self, identity: str, devices: Sequence[str]) -> Dict[str, str]:
        return {f"hooks/{TOKEN}": HOOK, f"scripts/init-top/{TOKEN}": HEAD + early_script(identity, devices)}

    def _lay_out(self, tree: Path, additions: Dict[str, str]) -> None:
        if (self._root / _HOST_CONFIGURATION).is_dir():
            shutil.copytree(self._root / _HOST_CONFIGURATION, tree, symlinks=True)
        lay(tree, additions, 0o755)

    def _command(self, tree: Path, kernel: str, target: Path) -> List[str]:
        return [self.program, "-d", str(tree), "-o", str(target), kernel]
