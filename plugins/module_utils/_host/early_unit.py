# Copyright: the topovirt.kvm authors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""A script of ours that systemd runs early in boot, before guests start by themselves.

That of a conversion acts under its token only.
"""

from __future__ import annotations

from pathlib import Path
from typing import List

from ansible_collections.topovirt.kvm.plugins.module_utils._host.step import Change, Step

UNITS = "etc/systemd/system"

_TEXT = """\
# Written by the Ansible collection topovirt.kvm; removed by its way back.
[Unit]
Description={description}
{condition}DefaultDependencies=no
After=local-fs.target
Before=sysinit.target libvirtd.service virtqemud.service shutdown.target
Conflicts=shutdown.target

[Service]
Type=oneshot
RemainAfterExit=yes
ExecStart=/bin/sh /{script}

[Install]
WantedBy=sysinit.target
"""


def plan_early_script(step: Step, unit: str, description: str, script: Path, text: str) -> List[Change]:
    """Changes that make the script, its unit and the link that starts it.

    :param script: its path, relative to the root.
    """
    unit_text = _TEXT.format(description=description, condition=step.context.condition, script=script)
    return [
        *step.plan_file(str(script), text, 0o600),
        *plan_unit(step, unit, unit_text),
    ]


def plan_unit(step: Step, unit: str, text: str) -> List[Change]:
    """Changes that make a unit and the link that starts it early in boot."""
    return [
        *step.plan_file(f"{UNITS}/{unit}", text, reboot=not step.context.acts_now),
        *step.plan_link(f"{UNITS}/sysinit.target.wants/{unit}", f"/{UNITS}/{unit}"),
    ]
