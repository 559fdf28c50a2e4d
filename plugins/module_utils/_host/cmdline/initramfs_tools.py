# Copyright: the topovirt.kvm authors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""An initramfs of our own, built by initramfs-tools from a copy of the host's configuration plus two scripts."""

from __future__ import annotations

import os
import shutil
from pathlib import Path
from typing import List, Sequence, Tuple

from ansible_collections.topovirt.kvm.plugins.module_utils._errors import TopovirtError
from ansible_collections.topovirt.kvm.plugins.module_utils._host.files import digest, remove_tree, sync_directory
from ansible_collections.topovirt.kvm.plugins.module_utils._host.places import STATE, TOKEN, Run

_HOST_CONFIGURATION = "etc/initramfs-tools"
_CONFIGURATION = STATE / "initramfs-tools"

# Kernel arguments with which a trial boot whose root file system is not found reboots rather than opens a shell: the
# initramfs of this builder needs none, because it goes by the kernel's panic= (initramfs-tools(7), "panic").
TRIAL_ARGUMENTS: Tuple[str, ...] = ()

_HOOK = """\
#!/bin/sh
# Written by the Ansible collection topovirt.kvm: vfio-pci has to be there before any other driver is loaded.
case "$1" in prereqs) echo; exit 0 ;; esac
. /usr/share/initramfs-tools/hook-functions
manual_add_modules vfio_pci vfio_iommu_type1
"""

# Runs in init-top. Scripts without prerequisites run there in the order of their names, so before "udev", which loads
# drivers. A driver that is built into the kernel holds its devices already, hence unbinding first. All members of an
# IOMMU group are unbound before any is bound. Failures are left to the verification, a boot must never hang on them.
_SCRIPT = """\
#!/bin/sh
# Written by the Ansible collection topovirt.kvm: bind devices for guests to vfio-pci by address.
case "$1" in prereqs) echo; exit 0 ;; esac
read -r cmdline < /proc/cmdline
case " $cmdline " in *" {token}={id} "*) ;; *) exit 0 ;; esac
devices="{devices}"
pci=/sys/bus/pci
for bdf in $devices; do
    [ -e $pci/devices/$bdf/driver ] && echo $bdf > $pci/devices/$bdf/driver/unbind
    [ -e $pci/devices/$bdf ] && echo vfio-pci > $pci/devices/$bdf/driver_override
done
modprobe vfio-pci
modprobe vfio_iommu_type1
for bdf in $devices; do
    [ -e $pci/devices/$bdf ] && echo $bdf > $pci/drivers_probe
done
exit 0
"""


def available(root: Path) -> List[str]:
    """Why no initramfs can be built here."""
    if (root / "usr/sbin/mkinitramfs").exists():
        return []
    return ["the host has no mkinitramfs: only initramfs-tools (Debian and its children) is supported by this version"]


def inputs_digest(identity: str, devices: Sequence[str], kernel: str) -> str:
    """Changes when the initramfs has to be built again."""
    text = _HOOK + _script(identity, devices) + kernel
    return digest(text.encode("ascii"))[:16]


def build(root: Path, run: Run, identity: str, devices: Sequence[str], kernel: str, image: Path) -> None:
    """Build ``image`` (replaced in one step) for ``kernel``.

    Nothing of ours is written to the host's own configuration: a copy of it gets our hook and script.
    """
    configuration = root / _CONFIGURATION
    remove_tree(configuration)
    if (root / _HOST_CONFIGURATION).is_dir():
        shutil.copytree(root / _HOST_CONFIGURATION, configuration, symlinks=True)
    for place, name, text in (("hooks", TOKEN, _HOOK), ("scripts/init-top", TOKEN, _script(identity, devices))):
        directory = configuration / place
        directory.mkdir(parents=True, exist_ok=True)
        (directory / name).write_text(text, encoding="ascii")
        (directory / name).chmod(0o755)
    new = image.with_name(f"{image.name}.new")
    status, out, errors = run(["mkinitramfs", "-d", str(configuration), "-o", str(new), kernel])
    if status != 0 or not new.is_file():
        remove_tree(new)
        raise TopovirtError(
            f"mkinitramfs failed for kernel {kernel}: {(errors or out).strip()}",
            "Nothing was changed for the next boot; correct it and run again.",
        )
    with new.open("rb+") as file:
        os.fsync(file.fileno())
    new.replace(image)
    sync_directory(image.parent)


def _script(identity: str, devices: Sequence[str]) -> str:
    return _SCRIPT.format(token=TOKEN, id=identity, devices=" ".join(sorted(devices)))
