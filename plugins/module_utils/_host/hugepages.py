# Copyright: the topovirt.kvm authors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Huge pages per NUMA node, by a unit of ours that runs early in boot and reads back what the kernel gave.

Pages of 1 GiB are there already when the kernel understood the arguments that ``wanted.py`` gives it.
"""

from __future__ import annotations

from typing import Any, Dict, List, Sequence

from ansible_collections.topovirt.kvm.plugins.module_utils._errors import TopovirtError
from ansible_collections.topovirt.kvm.plugins.module_utils._host.early_unit import (
    UNITS,
    plan_early_script,
    plan_unit,
)
from ansible_collections.topovirt.kvm.plugins.module_utils._host.places import STATE, TOKEN
from ansible_collections.topovirt.kvm.plugins.module_utils._host.step import Change, Step

UNIT = "topovirt-hugepages.service"
_DESCRIPTION = "Huge pages per NUMA node for virtual machines"
_SCRIPT = STATE / "hugepages.sh"
_MOUNT = "dev-hugepages1G.mount"
_GIB_KIB = 1 << 20

# systemd mounts /dev/hugepages with the default page size only; libvirt looks for a mount of each size it is to use.
_MOUNT_TEXT = """\
# Written by the Ansible collection topovirt.kvm; removed by its way back.
[Unit]
Description=Huge pages of 1 GiB for virtual machines
ConditionKernelCommandLine={token}={id}
DefaultDependencies=no
Before=sysinit.target libvirtd.service virtqemud.service

[Mount]
What=hugetlbfs
Where=/dev/hugepages1G
Type=hugetlbfs
Options=pagesize=1G

[Install]
WantedBy=sysinit.target
"""

# The kernel gives fewer pages than asked for without an error, so each node is read back. Free memory is in pieces
# after the initial ramdisk and early daemons: caches are dropped and memory is compacted before another try.
_SCRIPT_TEXT = """\
#!/bin/sh
# Written by the Ansible collection topovirt.kvm; removed by its way back.
failed=0
want() {{
    file=/sys/devices/system/node/node$1/hugepages/hugepages-{kib}kB/nr_hugepages
    for try in 1 2 3; do
        echo "$2" > "$file"
        read -r got < "$file"
        [ "$got" = "$2" ] && return
        echo 3 > /proc/sys/vm/drop_caches
        echo 1 > /proc/sys/vm/compact_memory
    done
    echo "node $1: wanted $2 huge pages of {kib} KiB, got $got" >&2
    failed=1
}}
{lines}exit $failed
"""


class Hugepages(Step):
    """The pool of huge pages that guests' memory comes from."""

    name = "hugepages"

    def read(self) -> Dict[str, Any]:
        """Pages per node that the running kernel has, of the wanted size."""
        size = str(self.context.wanted.page_size_bytes >> 10)
        return {
            str(node["id"]): node["hugepages"][size]["total"] if size in node["hugepages"] else 0
            for node in self.context.topology["numa_nodes"]
        }

    def plan(self) -> List[Change]:
        wanted = self.context.wanted
        kib = wanted.page_size_bytes >> 10
        lines = "".join(f"want {node} {count}\n" for node, count in sorted(wanted.pages.items()))
        script = _SCRIPT_TEXT.format(kib=kib, lines=lines)
        changes = plan_early_script(self, UNIT, _DESCRIPTION, _SCRIPT, script)
        if kib == _GIB_KIB and not self._foreign_mount():
            changes += plan_unit(self, _MOUNT, _MOUNT_TEXT.format(token=TOKEN, id=self.context.id))
        return changes

    def differences(self) -> List[str]:
        have = self.read()
        return [
            f"node {node}: wanted {count} huge pages of {self.context.wanted.page_size_bytes >> 10} KiB, "
            f"the kernel has {have.get(str(node), 0)}"
            for node, count in sorted(self.context.wanted.pages.items())
            if have.get(str(node), 0) != count
        ]

    def apply(self, changes: Sequence[Change]) -> None:
        super().apply(changes)
        if self.context.under_token:
            self.context.run(["systemctl", "daemon-reload"])
            status, _out, _errors = self.context.run(["systemctl", "restart", UNIT])
            if status != 0:
                raise TopovirtError(
                    "The kernel did not give the wanted huge pages.", f"Look at: journalctl -u {UNIT}; a reboot helps."
                )

    def _foreign_mount(self) -> bool:
        """Whether the host mounts huge pages of 1 GiB itself."""
        ours = (self.name, "file", f"{UNITS}/{_MOUNT}") in self.context.journal.first_priors()
        if ours:
            return False
        fstab = self.context.root / "etc/fstab"
        lines = fstab.read_text(encoding="utf-8", errors="replace").splitlines() if fstab.is_file() else []
        named = any("hugetlbfs" in line and "pagesize=1" in line for line in lines if not line.startswith("#"))
        return named or any(
            (self.context.root / place / _MOUNT).exists() for place in (UNITS, "usr/lib/systemd/system")
        )
