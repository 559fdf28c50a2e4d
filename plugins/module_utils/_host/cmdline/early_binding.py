# Copyright: the topovirt.kvm authors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""The script that binds devices for guests before any other driver is loaded. It lies in an initramfs."""

from __future__ import annotations

from typing import Sequence

from ansible_collections.topovirt.kvm.plugins.module_utils._host.places import TOKEN

# What has to be in the initramfs for it.
MODULES = ("vfio_pci", "vfio_iommu_type1")

_UNDER_TOKEN = """\
read -r cmdline < /proc/cmdline
case " $cmdline " in *" {token}={id} "*) ;; *) exit 0 ;; esac
"""
# A driver that is built into the kernel holds its devices already, hence unbinding first. All members of an IOMMU group
# are unbound before any is bound. Failures are left to the verification, a boot must never hang on them.
_BIND = """\
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


def early_script(identity: str, devices: Sequence[str]) -> str:
    """Shell commands without an interpreter line; they act under the token ``identity`` only.

    :param devices: BDFs.
    """
    return _UNDER_TOKEN.format(token=TOKEN, id=identity) + binding_script(devices)


def binding_script(devices: Sequence[str]) -> str:
    """As ``early_script``, at every boot."""
    return _BIND.format(devices=" ".join(sorted(devices)))
