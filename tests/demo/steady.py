# Copyright: the topovirt.kvm authors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Wait until guests answer; reset those that the emulated CPU has hung.

KVM inside the emulated server runs on a CPU that QEMU emulates, with its virtualization extension; there guests hang
while they start, see "A fault of the emulation" in docs/what-is-emulated.md. ``operator.py`` keeps it rare, tenants
start one after the other, and what hangs nevertheless is reset. Real CPUs do not do that, so the collection knows
nothing of it, and every reset is told.
"""

from __future__ import annotations

import shlex
import time
from collections.abc import Callable

from tests.demo.operator import Failure
from tests.twin.lifecycle import Server

ANSWER_SECONDS = 120  # a guest with 20 devices answers after about 45
RESETS = 5
_PAUSE_SECONDS = 3
_PING = shlex.quote('{"execute":"guest-ping"}')


def running(server: Server) -> list[str]:
    """Names of the VMs that run."""
    return sorted(server.copy_from("virsh --quiet list --name").decode().split())


def silent(server: Server, names: list[str]) -> list[str]:
    """Those whose guest agent does not answer."""
    script = f"for vm in {shlex.join(names)}; do virsh qemu-agent-command $vm {_PING} >/dev/null 2>&1 || echo $vm; done"
    return server.copy_from(script).decode().split()


def settle(server: Server, say: Callable[[str], None], now: Callable[[], float] = time.monotonic) -> int:
    """Wait for the guests of all VMs that run; returns how many resets that took.

    :raises Failure: a guest stays silent.
    """
    waiting = running(server)
    for resets in range(RESETS + 1):
        end = now() + ANSWER_SECONDS
        while waiting and now() < end:
            waiting = silent(server, waiting)
            if waiting:
                time.sleep(_PAUSE_SECONDS)
        if not waiting:
            return resets
        if resets < RESETS:
            say(f"the emulated CPU hung the start of {', '.join(waiting)}: reset")
            server.copy_from("; ".join(f"virsh reset {shlex.quote(name)}" for name in waiting))
    raise Failure(f"{', '.join(waiting)} does not answer, also after {RESETS} resets")
