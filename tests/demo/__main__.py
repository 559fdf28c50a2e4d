# Copyright: the topovirt.kvm authors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""The whole job on an emulated server, as an operator would do it: ``python -m tests.demo [--machine M] [--keep]``.

To KVM host, one VM with everything, two tenants, and back to bare metal exactly as before; at every step what runs, how
long it usually takes and what came out. Ends with a table and the path of the report pages. The first failure ends it
with one line that says what failed and where the log is.
"""

from __future__ import annotations

import argparse
import fcntl
import json
import os
import re
import shutil
import sys
import time
import traceback
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from tests.demo import steady, story
from tests.demo.operator import Failure, Operator, Played, changes, record
from tests.tools import manifest, progress, workspace
from tests.twin.description import DescriptionError
from tests.twin.images.process import BakeError
from tests.twin.lifecycle import Server, TwinError

FOLDER = workspace.WORK / "demo"


@dataclass(frozen=True)
class Phase:
    """One step of the story.

    :param usual_seconds: on two cores without /dev/kvm.
    :param kind: what of it is not real: "", "emulated" or "stand-in".
    :param run: does it and returns what came out in a few words; raises Failure.
    """

    title: str
    usual_seconds: int
    run: Callable[[], str]
    kind: str = ""


class Demo:
    """The story on one server."""

    def __init__(self, server: Server, keep: bool) -> None:
        self.server = server
        self.keep = keep
        self.operator = Operator(server, FOLDER)
        self.booted = False
        self.before: Any = None
        self.predicted: dict[str, str] = {}

    def phases(self) -> list[Phase]:
        return [
            Phase("build the collection and install it", 5, self.operator.install),
            Phase("boot the server: firmware, GRUB, kernel, SSH", 50, self.boot, "emulated"),
            Phase("record how the host is now", 35, self.record),
            Phase("convert-to-kvm --check --diff: what would change", 40, self.predict),
            Phase("convert-to-kvm: packages, boot entry, one reboot, verification", 260, self.convert),
            Phase(
                "deploy-vms: one VM with 8 GPUs, 8 NICs, 4 NVSwitches",
                140,
                lambda: self.deploy("deploy-one", story.ONE_VM),
            ),
            Phase("deploy-vms: 4 GPUs under full_passthrough are refused", 15, self.refused),
            Phase(
                "verify-vms: what the guest's kernel sees against the host",
                30,
                lambda: self.verify("verify-one", "one-vm", 1),
            ),
            Phase("report-host", 15, lambda: self.report("report-one", "one-vm")),
            Phase("delete-vms", 20, lambda: self.delete("delete-one")),
            Phase("convert-to-kvm: fabric model shared_nvswitch", 80, self.share, "stand-in"),
            Phase(
                "deploy-vms: a tenant with 4 GPUs",
                75,
                lambda: self.deploy("deploy-first", story.FIRST_TENANT),
                "stand-in",
            ),
            Phase(
                "deploy-vms: a second tenant with 4 GPUs beside it",
                100,
                lambda: self.deploy("deploy-two", story.TWO_TENANTS),
                "stand-in",
            ),
            Phase("verify-vms: both tenants", 40, lambda: self.verify("verify-two", "two-tenants", 2)),
            Phase("report-host", 15, lambda: self.report("report-two", "two-tenants")),
            Phase("delete-vms", 20, lambda: self.delete("delete-two")),
            Phase("convert-to-bare-metal: undo everything, one reboot", 185, self.back),
            Phase("compare the host with how it was", 35, self.as_before),
        ]

    def boot(self) -> str:
        seconds = self.server.up(owner=None if self.keep else os.getpid())
        self.booted = True
        images = self.operator.images()
        self.operator.write_inventory(story.variables(images, str(self.operator.reports)))
        return f"SSH after {seconds:.0f} s"

    def record(self) -> str:
        self.before = record(self.server)
        (FOLDER / "before.json").write_text(json.dumps(self.before, indent=1), encoding="utf-8")
        return f"{len(self.before['files'])} paths"

    def predict(self) -> str:
        self.predicted = changes(self.play("check", "convert_to_kvm", "--check", "--diff").text)
        return f"{len(self.predicted)} tasks would change something"

    def convert(self) -> str:
        played = self.play("convert", "convert_to_kvm", "--diff")
        errors = story.prediction_errors(self.predicted, changes(played.text))
        if errors:
            raise Failure(f"check mode did not tell the truth: {'; '.join(errors)}; compare check.log and convert.log")
        return f"{played.changed} tasks changed something, as check mode had said"

    def share(self) -> str:
        self.operator.write_inventory(
            story.variables(self.operator.images(), str(self.operator.reports)) | story.SHARED_FABRIC
        )
        return f"{self.play('share', 'convert_to_kvm').changed} tasks changed something"

    def deploy(self, name: str, requests: Mapping[str, Any]) -> str:
        self.play(name, "deploy_vms", variables=requests)
        wanted = sorted(vm["name"] for vm in requests["gpu_vms"])
        running = self.vms("--state-running")
        if running != wanted:
            raise Failure(f"libvirt runs {', '.join(running) or 'no VM'}, wanted {', '.join(wanted)}")
        resets = steady.settle(self.server, lambda text: progress.say(f"        {text}"))
        hung = f", after {resets} resets of guests that the emulated CPU hung" if resets else ""
        return f"{', '.join(running)} running{hung}"

    def refused(self) -> str:
        there = self.vms("--all")
        played = self.operator.play("refused", "deploy_vms", variables=story.TOO_SMALL, beat=tell_task)
        if played.status == 0:
            raise Failure(f"4 GPUs were not refused; see {played.log}")
        if not all(re.search(rf"\b{count}\b", played.reason) for count in (1, 8)):
            raise Failure(f"the refusal does not name 1 and 8 as what is possible: {played.reason}")
        if self.vms("--all") != there:
            raise Failure("the refused request changed the VMs of the host")
        return played.reason

    def verify(self, name: str, folder: str, vms: int) -> str:
        reports = self.operator.reports / folder
        self.play(name, "verify_vms", variables={"topovirt_report_dir": str(reports)})
        found = sorted((reports / self.server.machine_name).glob("*.json"))
        if len(found) != vms:
            raise Failure(f"{vms} comparisons expected in {reports}, found {len(found)}")
        said = []
        for path in found:
            result = json.loads(path.read_text(encoding="utf-8"))
            print_matrix(path.stem, result)
            if not result["equal"]:
                raise Failure(f"{path.stem} does not see what the host has; see {path}")
            said.append(f"{path.stem}: {result['devices']} devices, {result['pairs']} pairs equal")
        return "; ".join(said)

    def report(self, name: str, folder: str) -> str:
        reports = self.operator.reports / folder
        self.play(name, "report_host", variables={"topovirt_report_dir": str(reports)})
        return str((reports / self.server.machine_name / "report.html").relative_to(workspace.ROOT))

    def delete(self, name: str) -> str:
        self.play(name, "delete_vms", "-e", "vms=all")
        left = self.vms("--all")
        if left:
            raise Failure(f"libvirt still knows {', '.join(left)}")
        return "no VM left"

    def back(self) -> str:
        return f"{self.play('back', 'convert_to_bare_metal').changed} tasks changed something"

    def as_before(self) -> str:
        after = record(self.server)
        (FOLDER / "after.json").write_text(json.dumps(after, indent=1), encoding="utf-8")
        differences = manifest.compare(self.before, after)
        if differences:
            shown = "\n    ".join(differences[:20])
            raise Failure(f"{len(differences)} things are not as before:\n    {shown}")
        return f"{len(after['files'])} paths, packages, units, drivers and command line as before"

    def vms(self, which: str) -> list[str]:
        done = self.server.run(f"virsh --quiet list --name {which}", timeout=60)
        if done.returncode:
            raise Failure(f"virsh list failed on the server: {done.stderr.strip()}")
        return sorted(done.stdout.split())

    def play(self, name: str, playbook: str, *arguments: str, variables: Mapping[str, Any] | None = None) -> Played:
        return self.operator.must_play(name, playbook, *arguments, variables=variables, beat=tell_task)


def tell_task(seconds: float, log: Path) -> None:
    """What a playbook does just now, for whoever waits."""
    progress.say(f"        {progress.clock(seconds)}  {progress.current_task(log)}")


def print_matrix(vm: str, result: Mapping[str, Any]) -> None:
    """Host and guest in one matrix: equal cells show the class, others both, in brackets."""
    matrix = result["matrix"]
    names = [bdf.removeprefix("0000:") for bdf in matrix["order"]]
    progress.say(f"\n        {vm}: path classes that the guest's kernel shows; [host>guest] where they differ")
    progress.say("        " + " " * 8 + " ".join(f"{name:>7}" for name in names))
    for name, host_row, guest_row in zip(names, matrix["host"], matrix["guest"], strict=True):
        cells = [
            host if host == guest else f"[{host}>{guest}]" for host, guest in zip(host_row, guest_row, strict=True)
        ]
        progress.say(f"        {name:<8}" + " ".join(f"{cell:>7}" for cell in cells))


def table(done: list[tuple[Phase, float, str]]) -> str:
    """The summary: what ran, what of it is not real, how long it took, what came out."""
    lines = [f"{'':3} {'phase':<66} {'seconds':>7}  {'':9} result"]
    for number, (phase, seconds, result) in enumerate(done, start=1):
        lines.append(f"{number:>2}. {phase.title:<66} {seconds:>7.0f}  {phase.kind:<9} {result[:110]}")
    return "\n".join(lines)


def tell(demo: Demo) -> list[tuple[Phase, float, str]]:
    """Run all phases; a failure names its phase."""
    done: list[tuple[Phase, float, str]] = []
    phases = demo.phases()
    for number, phase in enumerate(phases, start=1):
        kind = f" [{phase.kind}]" if phase.kind else ""
        progress.say(f"[{number}/{len(phases)}] {phase.title}{kind} (usually {progress.clock(phase.usual_seconds)})")
        started = time.monotonic()
        try:
            result = phase.run()
        except Failure as failure:
            raise Failure(f"phase {number}/{len(phases)}, {phase.title}: {failure}") from failure
        except (TwinError, BakeError, DescriptionError) as error:
            raise Failure(f"phase {number}/{len(phases)}, {phase.title}: {error}") from error
        seconds = time.monotonic() - started
        done.append((phase, seconds, result))
        progress.say(f"        {progress.clock(seconds)}: {result}")
    return done


def unexpected(error: Exception) -> Failure:
    """An error of the driver itself as one line; its traceback is kept for whoever mends it."""
    log = FOLDER / "log/traceback.log"
    log.parent.mkdir(parents=True, exist_ok=True)
    log.write_text("".join(traceback.format_exception(error)), encoding="utf-8")
    return Failure(f"unexpected {type(error).__name__}: {error} (a fault of the demo itself; {log.name} has the rest)")


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--machine", default="hgx-h200", help="a description in tests/twin/machines (default hgx-h200)")
    parser.add_argument("--keep", action="store_true", help="leave the server up")
    options = parser.parse_args()
    progress.end_like_interrupted()
    lock = (workspace.WORK / "demo.lock").open("w", encoding="utf-8")
    try:
        fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        progress.say("Another demo runs in this checkout; only one can.")
        return 1
    shutil.rmtree(FOLDER, ignore_errors=True)
    started = time.monotonic()
    status = 1
    server = Server(options.machine)
    demo = Demo(server, options.keep)
    try:
        done = tell(demo)
        status = 0
        progress.say(f"\n{table(done)}\n")
        progress.say(f"All {len(done)} phases passed in {progress.clock(time.monotonic() - started)}.")
        for folder in ("one-vm", "two-tenants"):
            progress.say(f"Report page: {FOLDER / 'report' / folder / options.machine / 'report.html'}")
    except Exception as error:
        failure = error if isinstance(error, Failure) else unexpected(error)
        progress.say(f"\nFAILED after {progress.clock(time.monotonic() - started)}: {failure}")
        progress.say(f"All logs: {FOLDER.relative_to(workspace.ROOT)}/log, the server's: {server.directory}")
    finally:
        if demo.booted and options.keep:
            progress.say("The server stays up. Log in: .work/venv/bin/python -m tests.twin ssh " + options.machine)
            progress.say(f"End it:  .work/venv/bin/python -m tests.twin down {options.machine}")
        elif demo.booted:
            server.down()
    return status


if __name__ == "__main__":
    sys.exit(main())
