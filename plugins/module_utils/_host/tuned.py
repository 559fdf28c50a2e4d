# Copyright: the topovirt.kvm authors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""TuneD: a profile of ours on top of the stock one for virtualization hosts."""

from __future__ import annotations

import re
from typing import Any, Dict, List, Optional, Sequence, Tuple

from ansible_collections.topovirt.kvm.plugins.module_utils._errors import TopovirtError
from ansible_collections.topovirt.kvm.plugins.module_utils._host.cmdline.arguments import split
from ansible_collections.topovirt.kvm.plugins.module_utils._host.package_manager import package_manager, plain_name
from ansible_collections.topovirt.kvm.plugins.module_utils._host.places import TOKEN, Run, output
from ansible_collections.topovirt.kvm.plugins.module_utils._host.step import Change, Step

PROFILE = "topovirt"
_PACKAGE = "tuned"
# The second place is for TuneD before 2.23. Both are written: which of them counts is not known before TuneD is there,
# and an upgrade moves it.
_PROFILES = (f"etc/tuned/profiles/{PROFILE}/tuned.conf", f"etc/tuned/{PROFILE}/tuned.conf")
_DROP_IN = "etc/systemd/system/tuned.service.d/topovirt.conf"
_ACTIVE = "etc/tuned/active_profile"
# What TuneD has put on the kernel command line (its boot loader plugin).
BOOT = "etc/tuned/bootcmdline"
_MODE = "etc/tuned/profile_mode"

# Strictly placed guests must not have their memory moved by automatic balancing. Kernel work without a place of its own
# runs on the host's CPUs (as in TuneD's cpu-partitioning). A vCPU with a core of its own gains nothing from the host
# polling for it (Documentation/virt/kvm/halt-polling.rst). Nothing here touches the kernel command line.
_PROFILE_TEXT = """\
# Written by the Ansible collection topovirt.kvm; removed by its way back.
[main]
summary=Host of pinned virtual machines with passed-through GPUs
include={include}

[sysctl]
kernel.numa_balancing=0

[sysfs]
{masks}/sys/module/kvm/parameters/halt_poll_ns=0
"""
_MASKS_TEXT = """\
/sys/devices/virtual/workqueue/cpumask={mask}
/sys/bus/workqueue/devices/writeback/cpumask={mask}
"""


class Tuned(Step):
    """The active TuneD profile."""

    name = "tuned"

    def read(self) -> Dict[str, Any]:
        return {"active": active_profile(self.context.run)}

    def obstacles(self) -> List[str]:
        """Why the profile must not be switched: a sentence each."""
        active = self.read()["active"]
        if not self.context.wanted.tuned or active in (None, PROFILE):
            return []
        path = self.context.root / BOOT
        words = boot_words(path.read_text(encoding="utf-8", errors="replace") if path.is_file() else "")
        if not words:
            return []
        return [
            f"the TuneD profile {active} sets kernel arguments ({' '.join(words)}), which TuneD takes from all boot "
            f"entries when another profile is chosen: choose one without first, or keep it with kvm_host_tuned: false"
        ]

    def plan(self) -> List[Change]:
        wanted = self.context.wanted
        if not wanted.tuned:
            return []
        ours = self._ours()
        # A TuneD that was there before keeps its profile until the new boot is verified; one that came with the
        # conversion runs under our token only, so it may have the profile from the start.
        stage = "apply" if ours or self.context.journal.state == "committed" else "commit"
        changes = plan_profile(self, "virtual-host", wanted.housekeeping_cpus)
        if ours:
            condition = f"[Unit]\nConditionKernelCommandLine={TOKEN}={self.context.id}\n"
            changes += self.plan_file(_DROP_IN, condition, reboot=True)
        changes += self.plan_file(_ACTIVE, f"{PROFILE}\n", stage=stage)
        changes += self.plan_file(_MODE, "manual\n", stage=stage)
        return changes

    def early(self) -> bool:
        # A TuneD that stays must find its old profile when the old entry boots; one of ours does not run there.
        return not self._ours()

    def differences(self) -> List[str]:
        found = self.read()["active"]
        return (
            []
            if not self.context.wanted.tuned or found == PROFILE
            else [f"TuneD: wanted profile {PROFILE}, active is {found or 'none'}"]
        )

    def apply(self, changes: Sequence[Change]) -> None:
        super().apply(changes)
        if self.context.acts_now:
            self.context.run(["systemctl", "daemon-reload"])
            status, _out, errors = self.context.run(["systemctl", "restart", "tuned.service"])
            if status != 0:
                raise TopovirtError(f"TuneD did not start: {errors.strip()}", "Look at: journalctl -u tuned")

    def _ours(self) -> bool:
        """Whether TuneD came, or will come, with the conversion."""
        first = self.context.journal.first_priors().get(("packages", "interval", "1"))
        if first is None:
            names = list(package_manager(self.context.root, self.context.run).installed())
        else:
            names = first["prior"]["packages"]
        return _PACKAGE not in {plain_name(name) for name in names}


def boot_words(text: str) -> Tuple[str, ...]:
    """Kernel arguments of the active profile, by the text of the file in which TuneD keeps them."""
    found = re.findall(r"""^TUNED_BOOT_CMDLINE=["']?(.*?)["']?\s*$""", text, re.MULTILINE)
    return split(found[-1]) if found else ()


def active_profile(run: Run) -> Optional[str]:
    """The profile that TuneD runs; ``None`` when it runs none, or does not run."""
    answer = output(run, "tuned-adm", "active")
    return answer.rpartition(":")[2].strip() if "Current active profile:" in answer else None


def plan_profile(step: Step, include: str, housekeeping: Sequence[int]) -> List[Change]:
    """Changes that make our profile, on top of another one.

    :param housekeeping: CPUs that the kernel's own work shall keep to; none where that is left as it is.
    """
    masks = _MASKS_TEXT.format(mask=cpu_mask(housekeeping)) if housekeeping else ""
    text = _PROFILE_TEXT.format(include=include, masks=masks)
    return [change for path in _PROFILES for change in step.plan_file(path, text)]


def cpu_mask(cpus: Sequence[int]) -> str:
    """A CPU mask as the kernel writes it: words of 32 bits in hex, the highest first."""
    value = sum(1 << cpu for cpu in cpus)
    words = []
    while True:
        words.append(f"{value & 0xFFFFFFFF:08x}")
        value >>= 32
        if not value:
            return ",".join(reversed(words))
