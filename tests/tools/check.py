# Copyright: the topovirt.kvm authors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Every check of ``make test``: runs them all, two at a time, and ends with one line that counts.

``python -m tests.tools.check [NAME...]`` runs only the named ones. Logs are kept in .work/log/test.
"""

from __future__ import annotations

import argparse
import concurrent.futures
import fcntl
import os
import shutil
import subprocess
import sys
import time
import xml.etree.ElementTree as ET
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from tests.tools import collection, progress, workspace

LOGS = workspace.WORK / "log/test"
SANITY = workspace.WORK / "sanity/ansible_collections/topovirt/kvm"
JUNIT = LOGS / "unit.xml"
PLUGINS = "ansible_collections.topovirt.kvm.plugins"
# Recorded output of other projects' tools lies beside some checkouts and is no part of this one.
MAY_BE_SKIPPED = ("captures of other projects are not on this machine",)
MEMORY = Path("/dev/shm")
BIN = workspace.VENV / "bin"


@dataclass(frozen=True)
class Gate:
    """One check.

    :param usual_seconds: what it takes on two cores with warm caches, for the reader of the output.
    :param commands: run in this order until one fails.
    """

    name: str
    usual_seconds: int
    commands: tuple[tuple[str, ...], ...]
    cwd: Path = workspace.ROOT


def mypy(*arguments: str) -> tuple[str, ...]:
    return (f"{BIN}/mypy", "--cache-dir", f"{workspace.WORK}/mypy", *arguments)


def gates(tarball: Path) -> list[Gate]:
    """All checks, the long ones first so that two at a time end together."""
    python = f"{sys.version_info.major}.{sys.version_info.minor}"
    sanity = (f"{BIN}/ansible-test", "sanity", "--venv", "--python", python, "--color", "no")
    importer = (f"{workspace.IMPORTER_VENV}/bin/python", "-m", "galaxy_importer.main", str(tarball))
    docs = (f"{BIN}/antsibull-docs", "lint-collection-docs", "--plugin-docs", "--skip-rstcheck", ".")
    # what runs on hosts is checked for their oldest Python, then everything together for the controller's
    types = (
        mypy("--python-version", "3.9", "-p", f"{PLUGINS}.module_utils", "-p", f"{PLUGINS}.modules"),
        mypy("-p", PLUGINS, "-p", "tests"),
    )
    return [
        Gate("sanity", 60, (sanity,), SANITY),
        Gate("unit", 30, ((f"{BIN}/pytest", "tests/unit", f"--junit-xml={JUNIT}", "-q"),)),
        Gate("galaxy-importer", 10, (importer,), LOGS),
        Gate("molecule-default", 30, ((sys.executable, "-m", "tests.tools.scenario", "default"),)),
        Gate("ansible-lint", 10, ((f"{BIN}/ansible-lint", "--offline", "--profile", "production", "--strict"),)),
        Gate("types", 10, types),
        Gate("docs", 10, (docs,), SANITY),
        Gate("changelog", 2, ((f"{BIN}/antsibull-changelog", "lint"),)),
        Gate("lint", 2, ((f"{BIN}/ruff", "check", "--cache-dir", f"{workspace.WORK}/ruff", "."),)),
    ]


def environment(gate: Gate) -> dict[str, str]:
    env = workspace.environment(os.environ)
    if gate.name == "unit" and MEMORY.is_dir():
        env["PYTEST_DEBUG_TEMPROOT"] = str(MEMORY)  # tests of durable writes are many times faster in memory
    env["MYPYPATH"] = f"{workspace.COLLECTIONS}:{workspace.ROOT}"
    if gate.name == "galaxy-importer":
        config = LOGS / "galaxy-importer.cfg"
        config.write_text("[galaxy-importer]\nRUN_ANSIBLE_TEST = False\nCHECK_REQUIRED_TAGS = True\n", encoding="utf-8")
        env["GALAXY_IMPORTER_CONFIG"] = str(config)
        env["PATH"] = f"{workspace.IMPORTER_VENV}/bin:{env['PATH']}"
        env["PYTHONPATH"] = ""
    if gate.name in ("sanity", "docs"):
        env["PYTHONPATH"] = ""
        env["ANSIBLE_COLLECTIONS_PATH"] = str(SANITY.parents[2])
    return env


def copy_for_sanity(root: Path, copy: Path, names: list[str]) -> None:
    """Give ansible-test what ships, in the place and kind of repository that it wants."""
    for path in [path for path in copy.rglob("*") if path.is_file() and ".git" not in path.relative_to(copy).parts[:1]]:
        name = str(path.relative_to(copy))
        if name not in names and not name.startswith("tests/output/"):
            path.unlink()
    for name in names:
        target = copy / name
        target.parent.mkdir(parents=True, exist_ok=True)
        shutil.copy2(root / name, target)
    quiet = {"cwd": copy, "check": True, "stdout": subprocess.DEVNULL, "stderr": subprocess.DEVNULL}
    if not (copy / ".git").is_dir():
        subprocess.run(["git", "init", "--initial-branch=main"], **quiet)  # type: ignore[call-overload]
    (copy / ".git/info").mkdir(exist_ok=True)
    (copy / ".git/info/exclude").write_text("/tests/output/\n", encoding="utf-8")
    subprocess.run(["git", "add", "--all"], **quiet)  # type: ignore[call-overload]


def run_gate(gate: Gate) -> tuple[bool, float]:
    progress.say(f"  ..    {gate.name} (usually {progress.clock(gate.usual_seconds)})")
    started = time.monotonic()
    log = LOGS / f"{gate.name}.log"
    parts = []
    for number, command in enumerate(gate.commands):
        part = LOGS / f"{gate.name}.{number}.part"
        status = progress.run_logged(command, part, environment(gate), gate.cwd)
        output = part.read_text(encoding="utf-8", errors="replace")
        parts.append(f"$ {' '.join(command)}\n{output}\nexit status {status}\n")
        part.unlink()
        if status:
            break
    log.write_text("\n".join(parts), encoding="utf-8")
    seconds = time.monotonic() - started
    progress.say(f"  {'ok' if status == 0 else 'FAIL':<5} {gate.name}: {progress.clock(seconds)}")
    return status == 0, seconds


def unit_counts(junit: Path) -> tuple[int, int]:
    """(passed, failed) of a JUnit report. A skipped test counts as failed: a missing tool is a failure."""
    passed = failed = 0
    for case in ET.parse(junit).getroot().iter("testcase"):
        skipped = case.find("skipped")
        if skipped is not None and any(why in skipped.attrib.get("message", "") for why in MAY_BE_SKIPPED):
            continue
        bad = skipped is not None or any(case.find(kind) is not None for kind in ("failure", "error"))
        failed, passed = failed + bad, passed + (not bad)
    return passed, failed


def run_all(chosen: list[Gate], run: Callable[[Gate], tuple[bool, float]], at_once: int) -> dict[str, bool]:
    with concurrent.futures.ThreadPoolExecutor(max_workers=at_once) as pool:
        results = pool.map(run, chosen)
        return {gate.name: good for gate, (good, _seconds) in zip(chosen, results, strict=True)}


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("names", nargs="*", metavar="NAME")
    options = parser.parse_args()
    progress.end_like_interrupted()
    started = time.monotonic()
    LOGS.mkdir(parents=True, exist_ok=True)
    lock = (LOGS / "lock").open("w", encoding="utf-8")
    try:
        fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        progress.say("another 'make test' runs in this checkout; waiting for it")
        fcntl.flock(lock, fcntl.LOCK_EX)
    JUNIT.unlink(missing_ok=True)
    tarball = collection.build(workspace.WORK / "dist", LOGS / "build.log")
    known = gates(tarball)
    unknown = set(options.names) - {gate.name for gate in known}
    if unknown:
        parser.error(f"no such check: {', '.join(sorted(unknown))}; there are {', '.join(gate.name for gate in known)}")
    copy_for_sanity(workspace.ROOT, SANITY, ["galaxy.yml", *collection.shipped(tarball)])
    chosen = [gate for gate in known if not options.names or gate.name in options.names]
    progress.say(f"{len(chosen)} checks, two at a time; logs in {LOGS.relative_to(workspace.ROOT)}")
    results = run_all(chosen, run_gate, at_once=2)
    for name, good in results.items():
        if not good:
            log = LOGS / f"{name}.log"
            where = log.relative_to(workspace.ROOT)
            progress.say(f"\n--- {name} failed; the end of {where}:\n{progress.tail(log, 40)}")
    passed, failed = sum(results.values()), len(results) - sum(results.values())
    if JUNIT.is_file():
        tests_passed, tests_failed = unit_counts(JUNIT)
        # the gate itself is replaced by its tests; one that failed without a failing test still counts
        passed += tests_passed - results["unit"]
        failed += tests_failed - (not results["unit"] and tests_failed > 0)
    bad = [name for name, good in results.items() if not good]
    verdict = f"{', '.join(bad)} failed" if bad else "all good"
    progress.say(f"\n{verdict} after {progress.clock(time.monotonic() - started)}")
    progress.say(f"{passed} passed, {failed} failed")
    return 1 if failed else 0


if __name__ == "__main__":
    sys.exit(main())
