# Copyright: the topovirt.kvm authors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Keeps the processes of one emulated server together and lets none of them outlive whoever wanted it.

Run as ``python -m tests.twin.supervisor DIRECTORY CONTROL [OWNER]``. CONTROL is the number of an inherited pipe's
reading end, OWNER that of an inherited pidfd. It starts the programs of ``DIRECTORY/launch.json`` in order and says
``running`` on its standard output, or why not. It ends everything when

* one of the programs ends, or SIGTERM or SIGINT arrives,
* the pipe closes before a ``k`` came through it: whoever started the server died before it was up,
* the owner dies.

The programs get SIGKILL from the kernel when the supervisor dies (PR_SET_PDEATHSIG), so killing it the hard way ends
them too. An inherited lock file descriptor stays open as long as the supervisor lives.
"""

from __future__ import annotations

import contextlib
import ctypes
import dataclasses
import json
import os
import selectors
import shutil
import signal
import subprocess
import sys
import time
from dataclasses import dataclass
from pathlib import Path

from tests.twin.capped_log import CappedLog

LAUNCH = "launch.json"
STATE = "state.json"
KEEP_GOING = b"k"
RUNNING = "running"

PR_SET_PDEATHSIG = 1  # linux/prctl.h
READY_TIMEOUT_S = 60.0
CHUNK = 1 << 16


@dataclass(frozen=True)
class Program:
    """One program of the server. Its output goes to ``<name>.log``."""

    name: str
    argv: list[str]
    environment: dict[str, str]  # added to the supervisor's
    ready_line: str | None = None  # the next program starts after this line of output


@dataclass(frozen=True)
class Launch:
    """What the supervisor is to run.

    :param disposable: files and directories (relative to the run's directory) that are removed when the server ends.
    """

    programs: list[Program]
    disposable: list[str]

    def write(self, directory: Path) -> None:
        (directory / LAUNCH).write_text(json.dumps(dataclasses.asdict(self), indent=1), encoding="utf-8")

    @classmethod
    def read(cls, directory: Path) -> Launch:
        data = json.loads((directory / LAUNCH).read_text(encoding="utf-8"))
        return cls([Program(**program) for program in data["programs"]], data["disposable"])


def write_json(path: Path, data: object) -> None:
    """Replace ``path`` in one step, so that no reader sees half of it."""
    new = path.with_name(path.name + ".new")
    new.write_text(json.dumps(data, indent=1) + "\n", encoding="utf-8")
    new.replace(path)


def start_time(pid: int) -> int | None:
    """When the process started, in clock ticks since boot (proc(5), field 22), ``None`` when it has ended.

    A pid may be used again; together with the start time it names one process for ever.
    """
    try:
        text = Path(f"/proc/{pid}/stat").read_text(encoding="utf-8", errors="replace")
    except OSError:
        return None
    fields = text.rpartition(")")[2].split()
    return None if fields[0] in "ZX" else int(fields[19])


def remove_disposable(directory: Path, launch: Launch) -> None:
    """Remove what nobody needs once the server has ended."""
    for name in launch.disposable:
        path = directory / name
        if path.is_dir():
            shutil.rmtree(path)
        else:
            path.unlink(missing_ok=True)


class _Failed(Exception):
    """The server could not be started."""


class Supervisor:
    def __init__(self, directory: Path, control: int, owner: int | None) -> None:
        self.directory = directory
        self.launch = Launch.read(directory)
        self.selector = selectors.DefaultSelector()
        self.children: dict[str, subprocess.Popen[bytes]] = {}
        self.logs: dict[str, CappedLog] = {}
        self.output: dict[str, bytes] = {}  # of programs whose ready line has not come yet
        self.selector.register(control, selectors.EVENT_READ, "control")
        if owner is not None:
            self.selector.register(owner, selectors.EVENT_READ, "owner")
        signals, self._signal_writer = os.pipe2(os.O_NONBLOCK | os.O_CLOEXEC)
        self.selector.register(signals, selectors.EVENT_READ, "signal")
        signal.set_wakeup_fd(self._signal_writer)
        for number in (signal.SIGTERM, signal.SIGINT, signal.SIGHUP):
            signal.signal(number, lambda *_: None)

    def run(self) -> int:
        reason = ""
        try:
            for program in self.launch.programs:
                self.start(program)
            self.write_state(RUNNING)
            self.report(RUNNING)
            reason = self.watch(None)
        except _Failed as error:
            reason = str(error)
            self.report(reason)
        finally:
            self.end()
            self.write_state(reason or "ended by an error of the supervisor")
        return 0

    def report(self, line: str) -> None:
        """Tell the starter once, then let go of its pipe."""
        with contextlib.suppress(OSError):  # the starter may be gone; the control pipe says so too
            os.write(1, f"{line}\n".encode())
        null = os.open(os.devnull, os.O_RDWR)
        os.dup2(null, 1)
        os.close(null)

    def start(self, program: Program) -> None:
        parent = os.getpid()
        libc = ctypes.CDLL(None, use_errno=True)

        def die_with_parent() -> None:
            libc.prctl(PR_SET_PDEATHSIG, signal.SIGKILL)
            if os.getppid() != parent:
                os._exit(1)

        try:
            child = subprocess.Popen(
                program.argv,
                cwd=self.directory,
                env={**os.environ, **program.environment},
                stdin=subprocess.DEVNULL,
                stdout=subprocess.PIPE,
                stderr=subprocess.STDOUT,
                preexec_fn=die_with_parent,  # the supervisor has one thread
            )
        except OSError as error:
            raise _Failed(f"{program.name} cannot be started: {error}") from error
        assert child.stdout is not None
        self.children[program.name] = child
        self.logs[program.name] = CappedLog(self.directory / f"{program.name}.log")
        self.selector.register(child.stdout, selectors.EVENT_READ, f"output {program.name}")
        self.selector.register(os.pidfd_open(child.pid), selectors.EVENT_READ, f"end {program.name}")
        if program.ready_line is not None:
            self.output[program.name] = b""
            reason = self.watch(program)
            if reason:
                raise _Failed(reason)

    def watch(self, until_ready: Program | None) -> str:
        """Serve until something ends the server and say what; with a program, until that is ready: then say nothing."""
        deadline = time.monotonic() + READY_TIMEOUT_S
        while True:
            for key, _events in self.selector.select(0.2 if until_ready else None):
                word, _space, name = str(key.data).partition(" ")
                reason = self.happened(word, name, key.fd)
                if reason:
                    return reason
            if until_ready is None:
                continue
            wanted = str(until_ready.ready_line).encode()
            if wanted in self.output[until_ready.name].split(b"\n"):
                del self.output[until_ready.name]
                return ""
            if time.monotonic() > deadline:
                return f"{until_ready.name} did not say '{until_ready.ready_line}' within {READY_TIMEOUT_S:.0f} s"

    def happened(self, word: str, name: str, descriptor: int) -> str:
        """Deal with one event; the reason when it ends the server."""
        if word == "output":
            data = os.read(descriptor, CHUNK)
            if data:
                self.logs[name].feed(data)
                if name in self.output:
                    self.output[name] += data
            else:
                self.selector.unregister(descriptor)
            return ""
        if word == "control":
            if os.read(descriptor, 1) == KEEP_GOING:
                self.selector.unregister(descriptor)
                return ""
            return "whoever started the server died before it was up"
        if word == "end":
            return f"{name} ended with status {self.children[name].wait()}"
        return "the owner died" if word == "owner" else "asked to end"

    def end(self) -> None:
        """Kill what runs, keep its last words, remove what nobody needs any more."""
        for child in reversed(list(self.children.values())):
            child.kill()
        for name, child in self.children.items():
            child.wait()
            assert child.stdout is not None
            os.set_blocking(child.stdout.fileno(), False)
            while data := child.stdout.read(CHUNK):
                self.logs[name].feed(data)
            self.logs[name].close()
        remove_disposable(self.directory, self.launch)

    def write_state(self, status: str) -> None:
        """Who runs, for ``status`` and ``down``. What the starter knows beforehand stays in the file."""
        path = self.directory / STATE
        try:
            known = json.loads(path.read_text(encoding="utf-8"))
        except (OSError, ValueError):
            known = {}
        running = status == RUNNING
        known.update(
            status=RUNNING if running else "ended",
            reason="" if running else status,
            supervisor={"pid": os.getpid(), "start_time": start_time(os.getpid())},
            pids={name: child.pid for name, child in self.children.items()} if running else {},
        )
        write_json(path, known)


def main() -> int:
    directory, control, *owner = sys.argv[1:]
    return Supervisor(Path(directory), int(control), int(owner[0]) if owner else None).run()


if __name__ == "__main__":
    sys.exit(main())
