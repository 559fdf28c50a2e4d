# Copyright: the topovirt.kvm authors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""An emulated server from power-on to SSH and off again.

One runs at a time per cache (a lock), each in a directory of its own (``.work/twin/<machine>`` unless told otherwise).
What it changes lies in an overlay and a copy of the firmware's variables that are removed with it; logs and
``state.json`` stay.
"""

from __future__ import annotations

import contextlib
import fcntl
import json
import os
import re
import select
import shlex
import signal
import socket
import statistics
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import yaml

from tests.twin import qemu, supervisor
from tests.twin.description import Machine, Nvme, load
from tests.twin.images import shapes
from tests.twin.images.bake import Images, ensure_images
from tests.twin.images.qemu_tree import img_command, qemu_command, qemu_environment
from tests.twin.supervisor import RUNNING, STATE, Launch, Program

CHECKOUT = Path(__file__).parents[2]
DEFAULT_MACHINE = "hgx-h200"

#: A busy underlying machine doubles every figure; beyond this a boot hangs.
SSH_TIMEOUT_S = 300.0
GREETING_TIMEOUT_S = 5.0
ANSWER_TIMEOUT_S = 60.0
STOP_TIMEOUT_S = 20.0
TAIL_LINES = 25

# Lines on the serial console that tell how far a boot has come. The kernel itself is told to be quiet there.
_PHASES = (("kernel", re.compile(rb"Loading (Linux|initial ramdisk)|Booting ")),)
_CONTROL = re.compile(r"\x1b\[[0-9;?=]*[A-Za-z]|[\x00-\x08\x0b-\x1f\x7f]")


class TwinError(Exception):
    """The emulated server cannot do what was asked; the text says why and what to do."""


def cache_directory() -> Path:
    """Where images, lock and boot times live: ``$TOPOVIRT_CACHE``, else ``topovirt`` in the user's cache directory."""
    if "TOPOVIRT_CACHE" in os.environ:
        return Path(os.environ["TOPOVIRT_CACHE"])
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "topovirt"


class Lock:
    """The right to run an emulated server: held by an open file, so it ends with the processes that hold it."""

    def __init__(self, cache: Path) -> None:
        cache.mkdir(parents=True, exist_ok=True)
        self.path = cache / "twin.lock"

    def take(self, holder: dict[str, Any]) -> int:
        """The file descriptor to hold.

        :raises TwinError: says who holds it.
        """
        descriptor = os.open(self.path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o644)
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            os.close(descriptor)
            other = self.holder()
            raise TwinError(
                f"Another emulated server runs: {other.get('machine', 'unknown')} "
                f"in {other.get('directory', 'unknown')}, "
                f"started {other.get('started', 'unknown')} by process {other.get('pid', 'unknown')} "
                f"({other.get('command', 'unknown')}). Only one fits on a machine. End it with: "
                f"python -m tests.twin down --dir {other.get('directory', 'DIR')}"
            ) from None
        os.ftruncate(descriptor, 0)
        os.pwrite(descriptor, json.dumps(holder).encode(), 0)
        return descriptor

    def holder(self) -> dict[str, Any]:
        """What the last holder wrote about itself."""
        try:
            data = json.loads(self.path.read_text(encoding="utf-8"))
        except (OSError, ValueError):
            return {}
        return data if isinstance(data, dict) else {}


class BootTimes:
    """How long the last boots took, for "usually 45 s"."""

    KEPT = 5

    def __init__(self, cache: Path) -> None:
        self.path = cache / "twin-boot-times.json"

    def _all(self) -> dict[str, list[float]]:
        try:
            data = json.loads(self.path.read_text(encoding="utf-8"))
        except (OSError, ValueError):
            return {}
        return data if isinstance(data, dict) else {}

    def usual(self, machine: str) -> float | None:
        """Median of the last boots in seconds."""
        times = self._all().get(machine)
        return statistics.median(times) if times else None

    def add(self, machine: str, seconds: float) -> None:
        data = self._all()
        data[machine] = [*data.get(machine, []), round(seconds, 1)][-self.KEPT :]
        supervisor.write_json(self.path, data)


def start_supervised(directory: Path, launch: Launch, lock: int, owner: int | None) -> int:
    """Start the supervisor and wait until its programs run.

    :param lock: file descriptor that the supervisor keeps open.
    :param owner: pid of the process whose death ends the server; ``None`` for nobody.
    :returns: file descriptor of the control pipe: write ``supervisor.KEEP_GOING`` once the server is up. Closing it
    before
        that, also by dying, ends the server.
    :raises TwinError: a program did not start, or there is no such owner.
    """
    launch.write(directory)
    control_reader, control_writer = os.pipe2(os.O_CLOEXEC)
    arguments = [str(directory), str(control_reader)]
    inherited = [control_reader, lock]
    if owner is not None:
        try:
            inherited.append(os.pidfd_open(owner))
        except OSError as error:
            raise TwinError(
                f"Owner process {owner}: {error.strerror}. Name a running process, or use --keep."
            ) from error
        arguments.append(str(inherited[-1]))
    with (directory / "supervisor.log").open("ab") as log:
        process = subprocess.Popen(
            [sys.executable, "-m", "tests.twin.supervisor", *arguments],
            cwd=CHECKOUT,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=log,
            pass_fds=inherited,
            start_new_session=True,
        )
    os.close(control_reader)
    if owner is not None:
        os.close(inherited[-1])
    assert process.stdout is not None
    with process.stdout:
        answer = process.stdout.readline().decode().strip()
    if answer != RUNNING:
        os.close(control_writer)
        process.wait()
        raise TwinError(f"The emulated server did not start: {answer or 'see supervisor.log'}")
    return control_writer


def _free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    return int(port)


def tail(path: Path, lines: int = TAIL_LINES) -> str:
    """The last lines of a log without terminal control sequences."""
    try:
        data = path.read_bytes()[-(1 << 16) :]
    except OSError:
        return ""
    text = _CONTROL.sub("", data.decode(errors="replace").replace("\r", "\n"))
    return "\n".join([line for line in text.splitlines() if line.strip() and "warning:" not in line][-lines:])


class Server:
    """One emulated server.

    :param variant: a mutation of the machine, see ``description.VARIANTS``.
    :param directory: where its overlay, sockets, logs and state lie; default
        ``.work/twin/<machine>[-<variant>][-<os>]``.
    :param say: told about progress; ``end`` as in ``print``.
    :param os: the distribution on its disk, one of ``shapes.NAMES``.
    """

    def __init__(
        self,
        machine: str = DEFAULT_MACHINE,
        variant: str | None = None,
        directory: Path | None = None,
        cache: Path | None = None,
        say: Callable[[str], None] = lambda text: print(text, end="", flush=True),
        os: str = shapes.DEBIAN,
    ) -> None:
        self.machine_name = machine
        self.variant = variant
        self.os = os
        parts = (machine, variant, None if os == shapes.DEBIAN else os)
        self.directory = (directory or CHECKOUT / ".work" / "twin" / "-".join(filter(None, parts))).absolute()
        self.cache = cache or cache_directory()
        self.say = say

    def up(self, owner: int | None = None) -> float:
        """Boot to the first command that SSH runs; returns the seconds from power-on.

        :param owner: pid of the process whose death ends the server; ``None`` keeps it until :meth:`down`.
        :raises TwinError: with the end of the console when the boot fails.
        """
        machine = load(self.machine_name, self.variant)
        lock = Lock(self.cache).take(
            {
                "machine": machine.name,
                "directory": str(self.directory),
                "pid": owner or os.getpid(),
                "command": shlex.join(sys.argv)[:200],
                "started": time.strftime("%H:%M:%S"),
            }
        )
        try:
            images = ensure_images(self.cache, lambda text: self.say(f"{text}\n"), self.os)
            port = _free_port()
            launch = self._prepare(machine, images, port)
            usual = BootTimes(self.cache).usual(self._title(machine))
            self.say(f"emulated server {self._title(machine)}: firmware... ")
            begin = time.monotonic()
            control = start_supervised(self.directory, launch, lock, owner)
        finally:
            os.close(lock)
        try:
            self._wait_for_ssh(begin)
            seconds = time.monotonic() - begin
            os.write(control, supervisor.KEEP_GOING)
        except BaseException:
            self.down()
            raise
        finally:
            os.close(control)
        BootTimes(self.cache).add(self._title(machine), seconds)
        self.say(f"ssh answers, {seconds:.0f} s" + (f" (usually {usual:.0f} s)\n" if usual else "\n"))
        self._update_state(ready_seconds=round(seconds, 1))
        return seconds

    def _title(self, machine: Machine) -> str:
        return machine.name if self.os == shapes.DEBIAN else f"{machine.name} ({self.os})"

    def _prepare(self, machine: Machine, images: Images, port: int) -> Launch:
        """Fill the run's directory and say which programs make the server."""
        self.directory.mkdir(parents=True, exist_ok=True)
        for old in (*self.directory.glob("*.log"), self.directory / STATE):
            old.unlink(missing_ok=True)
        environment = qemu_environment(images)
        overlay = ["create", "-q", "-f", "qcow2", "-F", "qcow2", "-b", str(images.host_disk), qemu.ROOT_DISK]
        done = subprocess.run(
            [*img_command(images), *overlay],
            cwd=self.directory,
            env={**os.environ, **environment},
            capture_output=True,
            text=True,
            check=False,
        )
        if done.returncode != 0:
            raise TwinError(f"The overlay over {images.host_disk} cannot be made: {done.stderr.strip()}")
        (self.directory / qemu.FIRMWARE_VARIABLES).write_bytes(images.ovmf_vars.read_bytes())
        (self.directory / qemu.WIRING).write_text(qemu.wiring(machine), encoding="utf-8")
        (self.directory / qemu.DEVICE_SOCKETS).mkdir(exist_ok=True)
        disks = [device for device in machine.devices() if isinstance(device, Nvme)]
        for disk in disks:
            with (self.directory / qemu.nvme_image(disk)).open("wb") as image:
                image.truncate(disk.size_mib << 20)
        supervisor.write_json(
            self.directory / STATE,
            {
                "status": "starting",
                "machine": machine.name,
                "variant": self.variant,
                "os": self.os,
                "ssh": {"host": "127.0.0.1", "port": port, "user": "root", "key": str(images.ssh_key)},
                "guest": {"kernel": str(images.guest_kernel), "initrd": str(images.guest_initrd)},
                "started": time.strftime("%Y-%m-%dT%H:%M:%S%z"),
            },
        )
        server = [sys.executable, "-m", "tests.twin.device_server", self.machine_name, qemu.DEVICE_SOCKETS]
        emulator = qemu_command(images) + qemu.arguments(machine, images.ovmf_code, port)
        return Launch(
            programs=[
                Program("devices", server, {"PYTHONPATH": str(CHECKOUT)}, ready_line="ready"),
                Program("qemu", emulator, environment),
            ],
            disposable=[
                *(qemu.ROOT_DISK, qemu.FIRMWARE_VARIABLES, qemu.QMP_SOCKET, qemu.WIRING, qemu.DEVICE_SOCKETS),
                *(qemu.nvme_image(disk) for disk in disks),
            ],
        )

    def _wait_for_ssh(self, begin: float) -> None:
        """Until a command runs; tells how far the boot has come.

        :raises TwinError: QEMU ended or the time is over.
        """
        serial = self.directory / qemu.SERIAL_LOG
        phases = list(_PHASES)
        while time.monotonic() - begin < SSH_TIMEOUT_S:
            data = serial.read_bytes() if phases and serial.exists() else b""
            while phases and phases[0][1].search(data):
                self.say(f"{phases.pop(0)[0]}... ")
            # Not while the firmware runs: QEMU accepts connections at once and delivers all when the network is up.
            if not phases and self._answers() and self.run("true", timeout=ANSWER_TIMEOUT_S).returncode == 0:
                return
            if self.status()["status"] != RUNNING:
                raise TwinError(
                    f"\nThe emulated server ended while booting: {self.status()['reason']}.\n{self._last_words()}"
                )
            time.sleep(0.3)
        raise TwinError(f"\nSSH does not answer after {SSH_TIMEOUT_S:.0f} s.\n{self._last_words()}")

    def _answers(self) -> bool:
        """Whether an SSH server greets: QEMU's port forwarding accepts connections long before there is one.

        Few and patient tries: every one that was given up still reaches the SSH server once the network is up.
        """
        ssh = self.status()["ssh"]
        try:
            with socket.create_connection((ssh["host"], ssh["port"]), timeout=GREETING_TIMEOUT_S) as connection:
                return connection.recv(4) == b"SSH-"
        except OSError:
            return False

    def _last_words(self) -> str:
        words = [f"--- end of {name}:\n{tail(self.directory / name)}" for name in ("qemu.log", qemu.SERIAL_LOG)]
        return "\n".join([*words, f"--- all logs: {self.directory}"])

    def status(self) -> dict[str, Any]:
        """What ``state.json`` says, corrected when the supervisor was killed; its status: running, ended or none."""
        try:
            data = json.loads((self.directory / STATE).read_text(encoding="utf-8"))
        except (OSError, ValueError):
            return {"status": "none", "reason": f"there is no server in {self.directory}"}
        if (
            data["status"] == RUNNING
            and supervisor.start_time(data["supervisor"]["pid"]) != data["supervisor"]["start_time"]
        ):
            data.update(status="ended", reason="its supervisor was killed")
        result: dict[str, Any] = data
        return result

    def _update_state(self, **values: object) -> None:
        state = self.status()
        state.update(values)
        supervisor.write_json(self.directory / STATE, state)

    def down(self) -> None:
        """Pull the plug. Does nothing when no server runs."""
        state = self.status()
        if state["status"] == RUNNING:
            with contextlib.suppress(ProcessLookupError):
                self._end(state["supervisor"]["pid"])
        self._remove_disposable()

    @staticmethod
    def _end(pid: int) -> None:
        """Ask the supervisor to end and wait until it has; then the lock is free as well."""
        pidfd = os.pidfd_open(pid)
        try:
            for number in (signal.SIGTERM, signal.SIGKILL):
                signal.pidfd_send_signal(pidfd, number)
                if select.select([pidfd], [], [], STOP_TIMEOUT_S)[0]:
                    return
        finally:
            os.close(pidfd)

    def _remove_disposable(self) -> None:
        """What a supervisor removes at its end, in case it was killed."""
        if not (self.directory / supervisor.LAUNCH).exists():
            return
        supervisor.remove_disposable(self.directory, Launch.read(self.directory))

    def _running(self) -> dict[str, Any]:
        state = self.status()
        if state["status"] != RUNNING:
            raise TwinError(f"No emulated server runs here: {state['reason']}. Start one with: python -m tests.twin up")
        return state

    def ssh_options(self) -> list[str]:
        """Options that keep the user's own SSH configuration and known hosts out of it."""
        return [
            *("-F", "/dev/null", "-o", "IdentitiesOnly=yes", "-o", "LogLevel=ERROR"),
            *(
                "-o",
                "StrictHostKeyChecking=no",
                "-o",
                "UserKnownHostsFile=/dev/null",
                "-o",
                "GlobalKnownHostsFile=/dev/null",
            ),
        ]

    def ssh_command(self, user: str = "root") -> list[str]:
        """Command words of ``ssh`` up to the remote command.

        :raises TwinError: no server runs.
        """
        ssh = self._running()["ssh"]
        return ["ssh", *self.ssh_options(), "-i", ssh["key"], "-p", str(ssh["port"]), f"{user}@{ssh['host']}"]

    def run(
        self, command: str, timeout: float | None = None, data: str | None = None
    ) -> subprocess.CompletedProcess[str]:
        """Run a shell command as root on the server; its exit status is not judged.

        :param data: given to the command as standard input.
        """
        words = [*self.ssh_command(), command]
        try:
            return subprocess.run(
                words, input=data or "", capture_output=True, text=True, errors="replace", timeout=timeout, check=False
            )
        except subprocess.TimeoutExpired:
            return subprocess.CompletedProcess(words, 255, "", f"no answer within {timeout} s")

    def copy_from(self, command: str) -> bytes:
        """Standard output, as bytes, of a command that must succeed.

        :raises TwinError: with what the command said.
        """
        done = subprocess.run(
            [*self.ssh_command(), command], stdin=subprocess.DEVNULL, capture_output=True, check=False
        )
        if done.returncode != 0:
            raise TwinError(f"'{command[:80]}' failed on the server: {done.stderr.decode(errors='replace').strip()}")
        return done.stdout

    def inventory_text(self, user: str = "root") -> str:
        """An Ansible inventory (YAML) with the server as the one host of ``gpu_hosts``.

        :raises TwinError: no server runs.
        """
        state = self._running()
        ssh = state["ssh"]
        variables = {
            "ansible_host": ssh["host"],
            "ansible_port": ssh["port"],
            "ansible_user": user,
            "ansible_ssh_private_key_file": ssh["key"],
            "ansible_ssh_common_args": shlex.join(self.ssh_options()),
            "ansible_python_interpreter": shapes.interpreter(state["os"]),
        }
        data = {"all": {"children": {"gpu_hosts": {"hosts": {state["machine"]: variables}}}}}
        return yaml.safe_dump(data, sort_keys=False)

    def inventory(self, path: Path, user: str = "root") -> Path:
        """Write :meth:`inventory_text` to ``path``."""
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(self.inventory_text(user), encoding="utf-8")
        return path
