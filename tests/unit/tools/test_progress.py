# Copyright: the topovirt.kvm authors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Commands leave their output in a log, their status in the result and nothing behind when they are interrupted."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from tests.tools import progress, workspace


@pytest.mark.parametrize(
    ("seconds", "text"), [(9.84, "9.8 s"), (60, "1:00 min"), (75.2, "1:15 min"), (3601, "60:01 min")]
)
def test_times_are_readable(seconds: float, text: str) -> None:
    assert progress.clock(seconds) == text


def test_output_is_logged_and_passed_on_line_by_line(tmp_path: Path) -> None:
    lines: list[str] = []
    command = ["sh", "-c", "printf 'a\\nb'; echo c; echo d >&2; exit 3"]
    assert progress.run_logged(command, tmp_path / "x/log", os.environ, tmp_path, on_line=lines.append) == 3
    assert (tmp_path / "x/log").read_text(encoding="utf-8") == "a\nbc\nd\n"
    assert lines == ["a", "bc", "d"]


def test_a_server_left_running_does_not_hold_the_command(tmp_path: Path) -> None:
    started = time.monotonic()
    command = ["sh", "-c", "sleep 30 & echo $! > pid"]
    assert progress.run_logged(command, tmp_path / "log", os.environ, tmp_path) == 0
    os.kill(int((tmp_path / "pid").read_text(encoding="utf-8")), signal.SIGKILL)
    assert time.monotonic() - started < 20


def test_an_interrupted_run_ends_its_command(tmp_path: Path) -> None:
    program = (
        "import os; from pathlib import Path; from tests.tools import progress; progress.end_like_interrupted();"
        "progress.run_logged(['sh', '-c', 'echo $$ > pid; sleep 60'], Path('log'), os.environ, Path('.'))"
    )
    env = {**os.environ, "PYTHONPATH": str(workspace.ROOT)}
    with subprocess.Popen([sys.executable, "-c", program], cwd=tmp_path, env=env) as process:
        while not (tmp_path / "pid").is_file() or not (tmp_path / "pid").read_text(encoding="utf-8"):
            time.sleep(0.05)
        process.terminate()
        assert process.wait(timeout=20) == 128 + signal.SIGTERM
    with pytest.raises(ProcessLookupError):
        os.kill(int((tmp_path / "pid").read_text(encoding="utf-8")), 0)


def test_the_task_that_runs_now_is_found_in_ansibles_output(tmp_path: Path) -> None:
    log = tmp_path / "log"
    log.write_text("PLAY [a] ****\n\nTASK [kvm_host : Reboot] ****\nchanged: [h]\n", encoding="utf-8")
    assert progress.current_task(log) == "TASK [kvm_host : Reboot]"
    log.write_text("", encoding="utf-8")
    assert progress.current_task(log) == "started"
