# Copyright: the topovirt.kvm authors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Say what runs, how long it usually takes and how long it took; keep the output of commands in a log per step."""

from __future__ import annotations

import contextlib
import os
import signal
import subprocess
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

HEARTBEAT_SECONDS = 15
POLL_SECONDS = 0.3
GRACE_SECONDS = 60  # an emulated server that is shut down in good order


def say(text: str) -> None:
    print(text, flush=True)


def clock(seconds: float) -> str:
    """``75.2`` as ``1:15``, shorter times as ``9.8 s``."""
    if seconds < 60:
        return f"{seconds:.1f} s"
    return f"{int(seconds) // 60}:{int(seconds) % 60:02d} min"


def tail(log: Path, lines: int) -> str:
    return "\n".join(log.read_text(encoding="utf-8", errors="replace").splitlines()[-lines:])


def current_task(log: Path) -> str:
    """What Ansible is at, from its own output; otherwise the last line."""
    lines = [line.strip() for line in log.read_text(encoding="utf-8", errors="replace").splitlines() if line.strip()]
    for line in reversed(lines):
        if line.startswith(("TASK [", "PLAY [", "RUNNING HANDLER [")):
            return line.rstrip("* ")
    return lines[-1] if lines else "started"


def run_logged(
    command: Sequence[str],
    log: Path,
    env: Mapping[str, str],
    cwd: Path,
    on_line: Callable[[str], None] | None = None,
    on_beat: Callable[[float], None] | None = None,
) -> int:
    """Run a command with no input, its output in ``log``, and return its exit status.

    The output goes to a file, not through a pipe: a server that the command leaves running would keep a pipe open.

    :param on_line: called with each line that was added to the log, soon after.
    :param on_beat: called every HEARTBEAT_SECONDS with the seconds so far.
    When this process is interrupted, the command's process group ends before the interruption goes on.
    """
    log.parent.mkdir(parents=True, exist_ok=True)
    started = beat = time.monotonic()
    with log.open("wb") as output, log.open(encoding="utf-8", errors="replace") as reader:
        process = subprocess.Popen(
            command, stdin=subprocess.DEVNULL, stdout=output, stderr=subprocess.STDOUT, env=dict(env), cwd=cwd,
            start_new_session=True,
        )  # fmt: skip
        try:
            status, rest = None, ""
            while status is None:
                with contextlib.suppress(subprocess.TimeoutExpired):
                    status = process.wait(timeout=POLL_SECONDS)
                *lines, rest = (rest + reader.read()).split("\n")
                if on_line:
                    for line in lines:
                        on_line(line)
                if on_beat and time.monotonic() - beat >= HEARTBEAT_SECONDS:
                    beat = time.monotonic()
                    on_beat(beat - started)
            return status
        finally:
            if process.poll() is None:
                end_group(process)


def end_group(process: subprocess.Popen[bytes]) -> None:
    """Ask a process group to end and insist after a while."""
    os.killpg(process.pid, signal.SIGTERM)
    try:
        process.wait(timeout=GRACE_SECONDS)
    except subprocess.TimeoutExpired:
        os.killpg(process.pid, signal.SIGKILL)
        process.wait()


def end_like_interrupted() -> None:
    """Make SIGTERM and SIGHUP unwind the program as an interrupt does, so that whatever was started is ended."""

    def stop(number: int, _frame: object) -> None:
        raise SystemExit(128 + number)

    for number in (signal.SIGTERM, signal.SIGHUP):
        signal.signal(number, stop)
