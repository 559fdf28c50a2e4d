# Copyright: the topovirt.kvm authors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""How fast the reader is: beside a bare loop over the same files, beside lstopo, beside Ansible's own facts.

All times are medians, in one run, turn by turn, on trees in memory. Only their ratios mean anything elsewhere.
"""

from __future__ import annotations

import os
import shutil
import statistics
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial
from pathlib import Path

from ansible_collections.topovirt.kvm.plugins.module_utils._topology.reader import read_topology

from tests.bench import lstopo
from tests.bench.result import Row
from tests.tools import workspace
from tests.unit.plugins.module_utils._topology.machine import DOWNSTREAM, ROOT_PORT, UPSTREAM, Machine

ROUNDS = 7
SIZES = (512, 1024, 2048, 4096)
_HEADER = 64
STRACE = "strace"

_KINDS = {"open": "file", "os.listdir": "directory", "os.scandir": "directory"}
_recording: list[tuple[str, str]] | None = None
_hooked = False


def median(
    *works: Callable[[], object], rounds: int = ROUNDS, clock: Callable[[], float] = time.perf_counter
) -> list[float]:
    """Seconds of each work, taken in turn so that a busy moment falls on all of them."""
    times: list[list[float]] = [[] for _work in works]
    for _round in range(rounds):
        for work, taken in zip(works, times, strict=True):
            began = clock()
            work()
            taken.append(clock() - began)
    return [statistics.median(taken) for taken in times]


@contextmanager
def recorded_accesses() -> Iterator[list[tuple[str, str]]]:
    """What is opened ("file") and listed ("directory") meanwhile, from Python's own audit events."""
    global _recording, _hooked

    def hook(event: str, arguments: tuple[object, ...]) -> None:
        if _recording is not None and event in _KINDS and isinstance(arguments[0], str):
            _recording.append((_KINDS[event], arguments[0]))

    if not _hooked:
        sys.addaudithook(hook)  # for ever: there is no way to take one back
        _hooked = True
    _recording = []
    try:
        yield _recording
    finally:
        _recording = None


def bare_loop(accesses: list[tuple[str, str]]) -> None:
    """Open and read the same files, list the same directories, and do nothing with it."""
    for kind, path in accesses:
        if kind == "directory":
            os.listdir(path)
            continue
        descriptor = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
        os.read(descriptor, _HEADER if path.endswith("/config") else 4096)
        os.close(descriptor)


def files_of(tree: Path) -> list[tuple[str, str]]:
    """What the reader opens and lists in ``tree``, as far as it is there."""
    with recorded_accesses() as accesses:
        read_topology(tree)
    return [(kind, path) for kind, path in accesses if path.startswith(str(tree)) and os.path.exists(path)]


def run_lstopo(tree: Path) -> Callable[[], object]:
    words, environment = lstopo.command(tree)
    return lambda: subprocess.run(words, env=environment, capture_output=True, check=True)


def process(code: str) -> Callable[[], object]:
    """Python with the collection on its path, running ``code``."""
    environment = {"PYTHONPATH": str(workspace.COLLECTIONS), "PATH": "/usr/bin:/bin"}
    return lambda: subprocess.run([sys.executable, "-S", "-c", code], env=environment, check=True)


def read_as_process(tree: Path) -> Callable[[], object]:
    """The reader and nothing else: the root as text, for to import ``pathlib`` alone takes longer than the reader."""
    module = "ansible_collections.topovirt.kvm.plugins.module_utils._topology.reader"
    return process(f"from {module} import read_topology; read_topology({str(tree)!r})")


def on_one_machine(name: str, tree: Path) -> list[Row]:
    """A server as sold."""
    accesses = files_of(tree)
    lstopo.complete(tree)
    ours, floor = median(lambda: read_topology(tree), lambda: bare_loop(accesses))
    whole, start, peer = median(read_as_process(tree), process("pass"), run_lstopo(tree))
    return [
        Row(f"{name}: read the tree, in the process", "ms", 1e3 * ours, {}, 1e3 * floor),
        Row(
            f"{name}: read the tree, as a process",
            "ms",
            1e3 * whole,
            {"lstopo + start of Python": 1e3 * (peer + start)},
        ),
    ]


def big_machine(root: Path, functions: int, cpus: int) -> None:
    """Switches with eight devices each, as many as it takes."""
    machine = Machine(root)
    machine.system()
    machine.write("sys/devices/system/cpu/online", f"0-{cpus - 1}\n")
    half = cpus // 2
    for core in range(half):
        machine.core(core // (half // 2), core % (half // 2), [core, core + half], core // 8)
    for node in range(2):
        first = node * half // 2
        last = first + half // 2 - 1
        machine.node(node, f"{first}-{last},{first + half}-{last + half}", "10 21" if node == 0 else "21 10")
    # A root port, an upstream port, eight downstream ports and their devices.
    for number in range(functions // 18):
        domain, bus = divmod(number * 10, 240)
        name = f"{domain:04x}"
        root_port = machine.port(f"{name}:{bus:02x}:00.0", f"pci{name}:{bus:02x}", ROOT_PORT, number % 2)
        upstream = machine.port(f"{name}:{bus + 1:02x}:00.0", root_port, UPSTREAM, number % 2)
        for slot in range(8):
            port = machine.port(f"{name}:{bus + 1:02x}:{slot + 1:02x}.0", upstream, DOWNSTREAM, number % 2)
            machine.gpu(f"{name}:{bus + 2 + slot:02x}:00.0", port, number % 2)
    machine.uevents()
    for cpu in (root / "sys/devices/system/cpu").glob("cpu[0-9]*"):
        package = int((cpu / "topology/physical_package_id").read_text())
        listed = (root / f"sys/devices/system/node/node{package}/cpulist").read_text()
        for name in ("core_siblings_list", "die_cpus_list"):
            (cpu / "topology" / name).write_text(listed)
        (cpu / "cache/index3/shared_cpu_list").write_text((cpu / "topology/thread_siblings_list").read_text())
        (cpu / "cache/index3/level").write_text("3\n")
        (cpu / "cache/index3/type").write_text("Unified\n")


def growth(folder: Path) -> list[Row]:
    """Per file at each size, and per file beside lstopo at the largest."""
    rows = []
    for functions in SIZES:
        tree = folder / str(functions)
        big_machine(tree, functions, cpus=512)
        accesses = files_of(tree)
        count = len(accesses)
        ours, floor = median(partial(read_topology, tree), partial(bare_loop, accesses), rounds=3)
        peers = {}
        if functions == SIZES[-1]:
            lstopo.complete(tree)
            opened = lstopo_accesses(tree)
            [peer] = median(run_lstopo(tree), rounds=3)
            peers = {f"lstopo, {opened} files": 1e6 * peer / opened}
            # Who opens fewer files for the same facts looks slow per file, so the whole is shown as well.
            whole = {"lstopo, with its start": 1e3 * peer}
            rows.append(Row(f"{functions} functions, 512 CPUs: read the tree", "ms", 1e3 * ours, whole, 1e3 * floor))
        name = f"{functions} functions, 512 CPUs: per file, {count} files"
        rows.append(Row(name, "µs", 1e6 * ours / count, peers, 1e6 * floor / count))
    return rows


def need_strace() -> None:
    """:raises FileNotFoundError: strace, which counts what lstopo opens, is missing; names the package."""
    if shutil.which(STRACE) is None:
        raise FileNotFoundError("strace is missing: apt-get install -y --no-install-recommends strace")


def lstopo_accesses(tree: Path) -> int:
    """How many files and directories of the tree lstopo opens, as strace counts them."""
    words, environment = lstopo.command(tree)
    done = subprocess.run(
        [STRACE, "-f", "-e", "trace=openat,open", *words], env=environment, capture_output=True, text=True, check=True
    )
    opened = [line for line in done.stderr.splitlines() if "open" in line and "ENOENT" not in line and '"' in line]
    return max(1, sum("/usr/" not in line and "/etc/" not in line for line in opened))


def as_tasks() -> Row:
    """The module and Ansible's own fact module as ad-hoc commands on this machine."""
    environment = workspace.environment(os.environ)
    ansible = str(workspace.VENV / "bin/ansible")

    def task(module: str) -> Callable[[], object]:
        words = [ansible, "localhost", "-m", module]
        return lambda: subprocess.run(words, env=environment, capture_output=True, check=True, cwd=workspace.ROOT)

    ours, setup = median(task("topovirt.kvm.topology_info"), task("ansible.builtin.setup"), rounds=3)
    return Row("one task on this machine", "s", ours, {"ansible.builtin.setup": setup})
