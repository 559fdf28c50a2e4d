# Copyright: the topovirt.kvm authors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Run molecule scenarios, each alone, and print the times of its phases: ``scenario NAME...``, ``scenario --all``.

Exit status 0 means that every phase of every named scenario ran and passed. A scenario that cannot start, a phase
without its playbook and a skipped phase are failures.
"""

from __future__ import annotations

import argparse
import os
import re
import sys
import time
from pathlib import Path

from tests.tools import progress, workspace

SCENARIOS = workspace.ROOT / "extensions/molecule"
PHASE = re.compile(r"\[(?P<scenario>[\w-]+) > (?P<phase>[\w-]+)\] (?P<event>Executing|Executed: (?P<result>.+))$")
RECAP = re.compile(r"^\S+\s*: actions=\d+\s+successful=\d+\s+disabled=0\s+skipped=0\s+missing=0\s+failed=0\s*$")

COLOUR = re.compile(r"\x1b\[[0-9;]*m")
OWNER = "TOPOVIRT_SCENARIO_OWNER"  # the process with which an emulated server ends
SKIPPED = "Skipping, "  # what molecule says of a phase without playbook or tests, and then counts as good


def known() -> list[str]:
    return sorted(folder.name for folder in SCENARIOS.iterdir() if (folder / "molecule.yml").is_file())


class Report:
    """Turns molecule's messages into phases with times."""

    def __init__(self, log: Path) -> None:
        self.log = log
        self.phase = "start"
        self.started = self.began = time.monotonic()
        self.complete = False
        self.skipped = False
        self.failed = ""
        self.results: list[tuple[str, str, float]] = []

    def line(self, text: str) -> None:
        text = COLOUR.sub("", text)
        self.complete = self.complete or RECAP.match(text) is not None
        self.skipped = self.skipped or SKIPPED in text
        found = PHASE.search(text)
        if not found:
            return
        if found["event"] == "Executing":
            self.phase, self.began = found["phase"], time.monotonic()
            progress.say(f"  ..    {self.phase}")
        else:
            seconds = time.monotonic() - self.began
            self.results.append((found["phase"], found["result"], seconds))
            good = found["result"] == "Successful"
            self.failed = self.failed or ("" if good else found["phase"])
            word = "ok" if good else found["result"]
            progress.say(f"  {word:<5} {found['phase']}: {progress.clock(seconds)}")

    def beat(self, seconds: float) -> None:
        progress.say(f"        {progress.clock(seconds)}  {self.phase}: {progress.current_task(self.log)}")


def run(name: str) -> bool:
    """Run one scenario from create to destroy; False when any phase did not pass."""
    log = workspace.WORK / f"log/scenario/{name}.log"
    report = Report(log)
    progress.say(f"scenario {name}; log in {log.relative_to(workspace.ROOT)}")
    command = [str(workspace.VENV / "bin/molecule"), "test", "--scenario-name", name]
    environment = {**workspace.environment(os.environ), OWNER: str(os.getpid())}
    status = progress.run_logged(command, log, environment, workspace.ROOT, on_line=report.line, on_beat=report.beat)
    passed = status == 0 and report.complete and not report.skipped
    if not passed:
        where = report.failed or report.phase
        progress.say(f"\n--- scenario {name} failed in {where}; the end of its log:\n{progress.tail(log, 60)}\n")
    verdict = "passed" if passed else f"FAILED in {report.failed or report.phase}"
    progress.say(f"scenario {name}: {verdict} after {progress.clock(time.monotonic() - report.started)}")
    return passed


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("names", nargs="*", metavar="NAME")
    parser.add_argument("--all", action="store_true", help="every scenario")
    options = parser.parse_args()
    progress.end_like_interrupted()
    there = known()
    names = there if options.all else options.names
    unknown = [name for name in names if name not in there]
    if unknown or not names:
        parser.error(f"no such scenario: {', '.join(unknown) or 'none named'}; there are {', '.join(there)}")
    results = {name: run(name) for name in names}
    progress.say(f"{sum(results.values())} passed, {len(results) - sum(results.values())} failed")
    return 0 if all(results.values()) else 1


if __name__ == "__main__":
    sys.exit(main())
