# Copyright: the topovirt.kvm authors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""An initramfs of our own by dracut (Red Hat's family)."""

from __future__ import annotations

from pathlib import Path
from typing import Dict, List, Sequence

from ansible_collections.topovirt.kvm.plugins.module_utils._host.cmdline.early_binding import MODULES, early_script
from ansible_collections.topovirt.kvm.plugins.module_utils._host.cmdline.initramfs import Initramfs, lay

SCRIPT = "usr/lib/topovirt/bind"
UNIT = "topovirt-bind.service"

# systemd runs in these initramfs images. Loading drivers is udev's work, so the script comes before it, and before
# modules that are loaded by name. Failures are left to the verification, hence no Requires.
UNIT_TEXT = f"""\
# Written by the Ansible collection topovirt.kvm: bind devices for guests to vfio-pci by address.
[Unit]
Description=Binding of devices for virtual machines
DefaultDependencies=no
Before=systemd-udevd.service systemd-udev-trigger.service systemd-modules-load.service

[Service]
Type=oneshot
ExecStart=/bin/sh /{SCRIPT}
"""
# dracut follows links in what it includes, and systemd takes no unit from a .wants directory that is not a link.
DROP_IN_TEXT = f"""\
[Unit]
Wants={UNIT}
"""


class Dracut(Initramfs):
    """dracut reads the host's own configuration; a directory of ours is laid over what it makes."""

    program = "dracut"
    paths = ("usr/bin/dracut", "usr/sbin/dracut")
    pattern = "initramfs-{kernel}.img"
    # dracut.cmdline(7). It gives up on a root file system after three minutes (rd.retry) by itself.
    trial_arguments = ("rd.shell=0", "rd.emergency=reboot")

    def _additions(self, identity: str, devices: Sequence[str]) -> Dict[str, str]:
        return {
            SCRIPT: early_script(identity, devices),
            f"etc/systemd/system/{UNIT}": UNIT_TEXT,
            "etc/systemd/system/systemd-udevd.service.d/topovirt.conf": DROP_IN_TEXT,
        }

    def _lay_out(self, tree: Path, additions: Dict[str, str]) -> None:
        lay(tree, additions, 0o644)

    def _command(self, tree: Path, kernel: str, target: Path) -> List[str]:
        drivers = ["--add-drivers", " ".join(MODULES)]
        return [self.program, "--force", "--kver", kernel, *drivers, "--include", str(tree), "/", str(target)]
