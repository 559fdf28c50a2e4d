# Copyright: the topovirt.kvm authors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Starting and ending: nothing outlives its parent, one server at a time. Stand-in commands instead of QEMU, so that
each test takes about a second; the supervisor is the real one."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import yaml

from tests.twin import lifecycle, supervisor
from tests.twin.lifecycle import BootTimes, Lock, Server, TwinError
from tests.twin.supervisor import Launch, Program

CHECKOUT = lifecycle.CHECKOUT

# What `up` does around the supervisor, in a process of its own that a test can kill. Prints when the server is "up".
STARTER = """
import os, sys, time
from pathlib import Path
from tests.twin import lifecycle, supervisor
directory, cache, owner, adopt = sys.argv[1:]
lock = lifecycle.Lock(Path(cache)).take({"machine": "stand-in", "directory": directory})
launch = supervisor.Launch.read(Path(directory))
control = lifecycle.start_supervised(Path(directory), launch, lock, {"me": os.getpid(), "none": None}[owner])
os.close(lock)
if adopt == "adopt":
    os.write(control, supervisor.KEEP_GOING)
print("up", flush=True)
time.sleep(600)
"""


def eventually(condition: Callable[[], bool], seconds: float = 20) -> bool:
    end = time.monotonic() + seconds
    while time.monotonic() < end:
        if condition():
            return True
        time.sleep(0.02)
    return condition()


def alive(pid: int) -> bool:
    """Whether the process runs; a zombie does not."""
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] not in "ZX"
    except OSError:
        return False


class Run:
    """A directory with stand-in programs, and who was started in it."""

    def __init__(self, tmp_path: Path) -> None:
        self.directory = tmp_path / "run"
        self.directory.mkdir()
        self.cache = tmp_path / "cache"
        self.starters: list[subprocess.Popen[str]] = []
        self.pids: set[int] = set()
        self.launch(
            Program("devices", ["sh", "-c", "echo ready; exec sleep 600"], {}, "ready"),
            Program("qemu", ["sh", "-c", "trap '' TERM INT HUP; echo hello $NAME; exec sleep 600"], {"NAME": "you"}),
        )

    def launch(self, *programs: Program) -> None:
        Launch(list(programs), ["root.qcow2", "devices"]).write(self.directory)
        (self.directory / "root.qcow2").write_text("overlay")
        (self.directory / "devices").mkdir(exist_ok=True)
        (self.directory / "devices" / "gpu0").touch()

    def start(self, owner: str = "me", adopt: str = "adopt") -> subprocess.Popen[str]:
        starter = subprocess.Popen(
            [sys.executable, "-c", STARTER, str(self.directory), str(self.cache), owner, adopt],
            cwd=CHECKOUT,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )
        self.starters.append(starter)
        assert starter.stdout is not None
        self.answer = starter.stdout.readline().strip()
        if self.answer == "up":
            state = self.state()
            self.pids |= {state["supervisor"]["pid"], *state["pids"].values()}
        return starter

    def state(self) -> dict[str, Any]:
        data: dict[str, Any] = json.loads((self.directory / supervisor.STATE).read_text())
        return data

    def nothing_runs(self) -> bool:
        return not any(alive(pid) for pid in self.pids)


@pytest.fixture
def run(tmp_path: Path) -> Iterator[Run]:
    run = Run(tmp_path)
    yield run
    for pid in run.pids:
        if alive(pid):
            os.kill(pid, signal.SIGKILL)
    for starter in run.starters:
        starter.kill()
        starter.communicate()


def test_nothing_survives_an_owner_that_is_killed(run: Run) -> None:
    starter = run.start()
    assert run.answer == "up" and len(run.pids) == 3 and not run.nothing_runs()
    starter.kill()
    assert eventually(run.nothing_runs)
    assert run.state()["reason"] == "the owner died"
    assert not (run.directory / "root.qcow2").exists() and not (run.directory / "devices").exists()
    assert (run.directory / "qemu.log").read_text() == "hello you\n"


def test_nothing_survives_a_supervisor_that_is_killed(run: Run) -> None:
    run.start()
    os.kill(run.state()["supervisor"]["pid"], signal.SIGKILL)
    assert eventually(run.nothing_runs)
    server = Server(directory=run.directory, cache=run.cache)
    assert server.status()["status"] == "ended"
    server.down()
    assert not (run.directory / "root.qcow2").exists(), "down removes what the supervisor no longer could"


def test_nothing_survives_a_starter_that_is_killed_before_the_server_is_up(run: Run) -> None:
    starter = run.start(owner="none", adopt="not yet")
    starter.kill()
    assert eventually(run.nothing_runs)


def test_a_kept_server_outlives_its_starter_until_down(run: Run) -> None:
    starter = run.start(owner="none")
    starter.kill()
    starter.wait()
    time.sleep(0.5)
    assert all(alive(pid) for pid in run.pids)
    Server(directory=run.directory, cache=run.cache).down()
    assert run.nothing_runs()


def test_all_ends_when_a_program_ends(run: Run) -> None:
    run.start()
    os.kill(run.state()["pids"]["devices"], signal.SIGKILL)
    assert eventually(run.nothing_runs)
    assert run.state()["reason"] == "devices ended with status -9"


def test_a_second_server_is_told_who_holds_the_machine(run: Run) -> None:
    run.start()
    with pytest.raises(TwinError, match=rf"stand-in in {run.directory}.*down --dir {run.directory}"):
        Lock(run.cache).take({})
    Server(directory=run.directory, cache=run.cache).down()
    assert eventually(run.nothing_runs)
    os.close(Lock(run.cache).take({}))


def test_a_program_that_does_not_get_ready_is_named(run: Run) -> None:
    run.launch(Program("devices", ["sh", "-c", "echo no such machine; exit 3"], {}, "ready"))
    starter = run.start()
    assert run.answer == ""
    _out, errors = starter.communicate()
    assert "The emulated server did not start: devices ended with status 3" in errors
    assert (run.directory / "devices.log").read_text() == "no such machine\n"


def test_a_command_that_does_not_exist_is_named(run: Run) -> None:
    run.launch(Program("qemu", ["/nonexistent/qemu"], {}))
    _out, errors = run.start().communicate()
    assert "qemu cannot be started: [Errno 2] No such file or directory: '/nonexistent/qemu'" in errors


def test_an_owner_that_does_not_exist_is_refused(run: Run) -> None:
    lock = Lock(run.cache).take({})
    gone = subprocess.Popen(["true"])
    gone.wait()
    try:
        with pytest.raises(TwinError, match=f"Owner process {gone.pid}"):
            lifecycle.start_supervised(run.directory, Launch.read(run.directory), lock, gone.pid)
    finally:
        os.close(lock)


def test_without_a_server_everything_says_so(tmp_path: Path) -> None:
    server = Server(directory=tmp_path / "none", cache=tmp_path)
    assert server.status()["status"] == "none"
    server.down()
    with pytest.raises(TwinError, match="No emulated server runs here"):
        server.run("true")


@pytest.mark.parametrize(("shape", "python"), [("debian", "/usr/bin/python3"), ("rhel9", "/usr/bin/python3.9")])
def test_inventory(run: Run, shape: str, python: str) -> None:
    run.start()
    state = run.state()
    ssh = {"host": "127.0.0.1", "port": 40022, "user": "root", "key": "/cache/key"}
    supervisor.write_json(run.directory / supervisor.STATE, {**state, "machine": "hgx-h200", "os": shape, "ssh": ssh})
    server = Server(directory=run.directory, cache=run.cache)
    host = yaml.safe_load(server.inventory_text("ops"))["all"]["children"]["gpu_hosts"]["hosts"]["hgx-h200"]
    assert (host["ansible_host"], host["ansible_port"], host["ansible_user"]) == ("127.0.0.1", 40022, "ops")
    assert host["ansible_python_interpreter"] == python
    assert "UserKnownHostsFile=/dev/null" in host["ansible_ssh_common_args"]


def test_each_distribution_has_a_directory_of_its_own(tmp_path: Path) -> None:
    names = [Server("pcie-l40s", variant, cache=tmp_path, os=shape).directory.name
             for variant in (None, "no-iommu") for shape in ("debian", "rhel9")]  # fmt: skip
    assert names == ["pcie-l40s", "pcie-l40s-rhel9", "pcie-l40s-no-iommu", "pcie-l40s-no-iommu-rhel9"]


def test_usual_time_is_the_median_of_the_last_boots(tmp_path: Path) -> None:
    times = BootTimes(tmp_path)
    assert times.usual("a") is None
    for seconds in (500, 40, 41, 42, 43, 300):
        times.add("a", seconds)
    times.add("b", 7)
    assert times.usual("a") == 42


def test_tail_of_a_console_is_readable(tmp_path: Path) -> None:
    log = tmp_path / "serial.log"
    log.write_bytes(b"\x1b[2J\x1b[01;01H\x1b[=3hGRUB\r\n\r\n[\x1b[0;32m  OK  \x1b[0m] Started\r\nwarning: noise\n")
    assert lifecycle.tail(log) == "GRUB\n[  OK  ] Started"
    assert lifecycle.tail(tmp_path / "missing") == ""
