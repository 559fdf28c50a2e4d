# Copyright: the topovirt.kvm authors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Early binding in the host's own initramfs images, at every boot: configuration, and building them anew."""

from __future__ import annotations

from abc import ABC, abstractmethod
from pathlib import Path
from typing import ClassVar, Dict, List, Sequence, Tuple, Type

from ansible_collections.topovirt.kvm.plugins.module_utils._errors import TopovirtError
from ansible_collections.topovirt.kvm.plugins.module_utils._host.cmdline.choice import initramfs_builder
from ansible_collections.topovirt.kvm.plugins.module_utils._host.cmdline.dracut import (
    DROP_IN_TEXT,
    SCRIPT,
    UNIT,
    UNIT_TEXT,
    Dracut,
)
from ansible_collections.topovirt.kvm.plugins.module_utils._host.cmdline.early_binding import MODULES, binding_script
from ansible_collections.topovirt.kvm.plugins.module_utils._host.cmdline.initramfs import Initramfs
from ansible_collections.topovirt.kvm.plugins.module_utils._host.cmdline.initramfs_tools import (
    HEAD,
    HOOK,
    InitramfsTools,
)
from ansible_collections.topovirt.kvm.plugins.module_utils._host.places import TOKEN, Run

_KERNELS = ("usr/lib/modules", "lib/modules")

_MODULE = f"usr/lib/dracut/modules.d/90{TOKEN}"
# dracut sources this file and calls its functions (dracut.modules(7)). $moddir is the directory that it lies in.
_MODULE_TEXT = f"""\
#!/bin/bash
# Written by the Ansible collection topovirt.kvm; removed by topovirt.kvm.pci_binding with state: restored.
check() {{
    return 0
}}
depends() {{
    echo systemd
}}
installkernel() {{
    hostonly='' instmods {" ".join(MODULES)}
}}
install() {{
    inst_simple "$moddir/bind" /{SCRIPT}
    inst_simple "$moddir/{UNIT}" /etc/systemd/system/{UNIT}
    inst_simple "$moddir/udevd.conf" /etc/systemd/system/systemd-udevd.service.d/topovirt.conf
}}
"""
# A module whose check() succeeds is in every image, unless a list of modules says which ones are.
_CONFIGURATION_TEXT = f"""\
# Written by the Ansible collection topovirt.kvm; removed by topovirt.kvm.pci_binding with state: restored.
add_dracutmodules+=" {TOKEN} "
"""

# Path -> text and mode.
Files = Dict[str, Tuple[str, int]]


class HostInitramfs(ABC):
    """The host's own images and what they are built from."""

    builder: ClassVar[Type[Initramfs]]
    command: ClassVar[Tuple[str, ...]]  # builds the images of all kernels anew

    def __init__(self, root: Path, run: Run) -> None:
        self._root = root
        self._run = run

    @abstractmethod
    def files(self, devices: Sequence[str]) -> Files:
        """Configuration that binds these devices in every image that is built from now on."""

    def images(self) -> List[str]:
        """Paths of the images of all kernels, relative to the root."""
        kernels = sorted({path.name for place in _KERNELS for path in (self._root / place).glob("*") if path.is_dir()})
        paths = [f"boot/{self.builder.pattern.format(kernel=kernel)}" for kernel in kernels]
        return [path for path in paths if (self._root / path).is_file()]

    def build(self) -> None:
        """Build the images of all kernels anew.

        :raises TopovirtError: with what the program says.
        """
        try:
            status, out, errors = self._run(list(self.command))
        except OSError as error:
            raise TopovirtError(f"{self.command[0]} cannot be run: {error.strerror or error}.") from None
        if status != 0:
            raise TopovirtError(f"{' '.join(self.command)} failed: {(errors or out).strip()}.")


class OfInitramfsTools(HostInitramfs):
    builder = InitramfsTools
    command = ("update-initramfs", "-u", "-k", "all")

    def files(self, devices: Sequence[str]) -> Files:
        return {
            f"etc/initramfs-tools/hooks/{TOKEN}": (HOOK, 0o755),
            f"etc/initramfs-tools/scripts/init-top/{TOKEN}": (HEAD + binding_script(devices), 0o755),
        }


class OfDracut(HostInitramfs):
    """dracut takes no hook from /etc, but modules from its own directory."""

    builder = Dracut
    command = ("dracut", "--regenerate-all", "--force")

    def files(self, devices: Sequence[str]) -> Files:
        return {
            f"{_MODULE}/bind": (binding_script(devices), 0o644),
            f"{_MODULE}/{UNIT}": (UNIT_TEXT, 0o644),
            f"{_MODULE}/udevd.conf": (DROP_IN_TEXT, 0o644),
            f"{_MODULE}/module-setup.sh": (_MODULE_TEXT, 0o755),
            f"etc/dracut.conf.d/{TOKEN}.conf": (_CONFIGURATION_TEXT, 0o644),
        }


def host_initramfs(root: Path, run: Run) -> HostInitramfs:
    """What this host's images are built by.

    :raises TopovirtError: there is nothing known, or the images are no files of the host's own.
    """
    if (root / "run/ostree-booted").exists():
        raise TopovirtError(
            "This host boots images of ostree or bootc, which its initramfs belongs to.",
            "Use persistent: false, and put the binding into the image. Nothing was changed.",
        )
    built = initramfs_builder(root, run)
    return next(kind for kind in (OfInitramfsTools, OfDracut) if isinstance(built, kind.builder))(root, run)
