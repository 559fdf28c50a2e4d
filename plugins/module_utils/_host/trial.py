# Copyright: the topovirt.kvm authors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""A boot that is only tried: its command line, and the unit that ends it unless it is confirmed.

The boot loader starts the tried entry once, so any reboot leads back to the entry before. What is left to do is that
a host which does not come back reboots by itself: after a panic (``panic=``), when its root file system is not found
(the initramfs, see ``TRIAL_ARGUMENTS`` of its builder), and when nobody can reach it (the unit here).

Once committed, the entry is without the words of its trial, and the unit is without effect from the next boot on.
"""

from __future__ import annotations

from typing import Any, Dict, List, Optional, Sequence, Tuple

from ansible_collections.topovirt.kvm.plugins.module_utils._errors import TopovirtError
from ansible_collections.topovirt.kvm.plugins.module_utils._host.early_unit import plan_unit
from ansible_collections.topovirt.kvm.plugins.module_utils._host.places import TOKEN, Run, output
from ansible_collections.topovirt.kvm.plugins.module_utils._host.step import Change, Step

UNIT = "topovirt-trial.service"

# Only on the command line of an entry that is tried. The kernel takes a word with a dot for the parameter of a module,
# and hands it on to nobody (Documentation/admin-guide/kernel-parameters.rst).
WORD = f"{TOKEN}.trial"
_PANIC = "panic="
_PANIC_SECONDS = 30  # until the reboot, so that whoever looks at the console can read

_LAST_LINES = 5

# A process of its own that waits, not a timer: it needs neither a free job queue nor a systemd that still works. It
# starts before everything that could hang, waits for no file system, and an emergency shell does not end it. systemd
# is asked first because it unmounts; then come the kernel and, as what nothing can hold up, SysRq.
_UNIT_TEXT = """\
# Written by the Ansible collection topovirt.kvm; removed by its way back.
[Unit]
Description=Reboot of a trial boot that is not confirmed
ConditionKernelCommandLine={token}={id}
ConditionKernelCommandLine={word}
DefaultDependencies=no
IgnoreOnIsolate=yes
Conflicts=shutdown.target
Before=shutdown.target

[Service]
ExecStart=/bin/sh -c 'sleep {seconds}; echo "topovirt: not confirmed within {seconds} s, back to the old boot entry"; \
systemctl reboot --force; sleep 60; systemctl reboot --force --force; echo b > /proc/sysrq-trigger'
StandardOutput=journal+console
OOMScoreAdjust=-1000

[Install]
WantedBy=sysinit.target
"""


def tried_arguments(arguments: Sequence[str], of_initramfs: Sequence[str]) -> Tuple[str, ...]:
    """The command line of an entry while it is tried; what comes last wins.

    The operator's own ``panic=`` stays if it leads to a reboot at all, and not at once: scripts of an initramfs know no
    negative number.
    """
    waits = [word[len(_PANIC) :] for word in arguments if word.startswith(_PANIC)]
    own = bool(waits) and waits[-1].isdecimal() and int(waits[-1]) > 0
    return (*arguments, *([] if own else [f"{_PANIC}{_PANIC_SECONDS}"]), *of_initramfs, WORD)


def is_trial(cmdline: str) -> bool:
    """Whether a kernel command line is that of an entry that was tried."""
    return WORD in cmdline.split()


class Trial(Step):
    """The unit that reboots the host when a trial boot is not confirmed in time."""

    name = "trial"

    def read(self) -> Dict[str, Any]:
        """``{"waiting": whether the unit counts, "since": its start in seconds after the kernel's}``."""
        text = output(self.context.run, "systemctl", "show", "-p", "ActiveState,ActiveEnterTimestampMonotonic", UNIT)
        values = dict(line.split("=", 1) for line in text.splitlines() if "=" in line)
        since = values.get("ActiveEnterTimestampMonotonic", "")
        return {
            "waiting": values.get("ActiveState") == "active",
            "since": int(since) / 1e6 if since.isdecimal() else 0.0,
        }

    def plan(self) -> List[Change]:
        seconds = self.context.wanted.confirm_timeout
        return plan_unit(self, UNIT, _UNIT_TEXT.format(token=TOKEN, id=self.context.id, word=WORD, seconds=seconds))

    def apply(self, changes: Sequence[Change]) -> None:
        super().apply(changes)
        if self._tried():
            # With other seconds it counts anew. One that has ended, because the boot is confirmed, stays so.
            self.context.run(["systemctl", "daemon-reload"])
            self.context.run(["systemctl", "try-restart", UNIT])

    def confirm(self) -> None:
        """The boot is good: the host stays up.

        :raises TopovirtError: the unit cannot be stopped.
        """
        if not self._tried():
            return
        _status, _out, errors = self.context.run(["systemctl", "stop", UNIT])
        if self.read()["waiting"]:
            raise TopovirtError(
                f"{UNIT} cannot be stopped, so the host will reboot by itself: {errors.strip()}",
                "Nothing was made permanent. Stop it, and run again.",
            )

    def seconds_left(self) -> Optional[int]:
        """Until the host reboots by itself; ``None`` when it does not."""
        state = self.read()
        if not self._tried() or not state["waiting"]:
            return None
        uptime = float((self.context.root / "proc/uptime").read_text(encoding="ascii").split()[0])
        return max(0, int(state["since"] + self.context.wanted.confirm_timeout - uptime))

    def _tried(self) -> bool:
        return self.context.under_token and is_trial(self.context.topology["host"]["cmdline"])


def failure(entry: str, words: Sequence[str]) -> str:
    """What to say of a trial that did not last.

    :param words: of :func:`last_words`.
    """
    told = (
        f"Its last errors: {' | '.join(words)}."
        if words
        else "It left no journal: it ended before its journal was written, or the host keeps none."
    )
    return (
        f"The trial boot of entry {entry} failed, and the host recovered by itself: it runs the boot entry that is its "
        f"default, unchanged. {told}"
    )


def last_words(run: Run) -> List[str]:
    """The last errors in the journal of the boot before this one, if that was a trial."""
    head = output(run, "journalctl", "--boot=-1", "--dmesg", "--output=cat", "--no-pager")
    if not any(is_trial(line) for line in head.splitlines() if "ommand line: " in line):
        return []
    text = output(
        run, "journalctl", "--boot=-1", "--priority=err", f"--lines={_LAST_LINES}", "--output=cat", "--no-pager"
    )
    return [line.strip() for line in text.splitlines() if line.strip()]
