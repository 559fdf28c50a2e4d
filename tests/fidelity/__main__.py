# Copyright: the topovirt.kvm authors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""How true guests are to their hosts: as planned (table), before libvirt (validate), and by the kernel of a guest that
QEMU boots (boot)."""

from __future__ import annotations

import argparse
import json
import os
import sys
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

from ansible_collections.topovirt.kvm.plugins.module_utils._errors import TopovirtError

from tests.fidelity import boot, cases, controls, table, validate
from tests.tools import progress
from tests.twin import description
from tests.twin.images import bake
from tests.twin.images.process import BakeError
from tests.twin.lifecycle import TwinError, cache_directory

#: Two cores are shared with whatever else runs.
NICENESS = 10


def main() -> int:
    progress.end_like_interrupted()
    parser = argparse.ArgumentParser(prog="python -m tests.fidelity", description=__doc__)
    commands = parser.add_subparsers(dest="command", required=True)
    commands.add_parser("table", help="machine x fabric model x size: planned fidelity, mirrored and flat")
    judge = commands.add_parser("validate", help="libvirt's schema and translation, for every machine, model and size")
    start = commands.add_parser("boot", help="boot the largest VM of each machine and judge what its kernel sees")
    start.add_argument("--firmware", choices=sorted(cases.BOOTS), help="default: uefi where the planner allows it")
    start.add_argument("--fewest-bits", action="store_true", help="with no more address bits than the plan needs")
    start.add_argument("--controls", action="store_true", help="boot guests that are wrong on purpose instead")
    for command in (judge, start):
        command.add_argument("machines", nargs="*", metavar="MACHINE", help=f"of {', '.join(description.names())}")
        command.add_argument("--json", type=Path, help="also write the results there")
    options = parser.parse_args()
    if options.command == "table":
        return table.main()
    unknown = set(options.machines) - set(description.names())
    if unknown:
        parser.error(f"no such machine: {', '.join(sorted(unknown))}")
    os.nice(max(0, NICENESS - os.nice(0)))
    try:
        if options.command == "validate":
            return validated(options.machines, options.json)
        if options.controls:
            return controlled(options.json)
        return booted(options.machines or description.names(), options.firmware, options.fewest_bits, options.json)
    except (BakeError, TwinError, TopovirtError) as error:
        print(f"error: {error}", file=sys.stderr)
        return 1


def write(output: Path | None, results: Sequence[Any]) -> None:
    if output is not None:
        output.write_text(json.dumps([asdict(result) for result in results], indent=1), encoding="utf-8")


def validated(machines: list[str], output: Path | None) -> int:
    libvirt = bake.ensure_libvirt(cache_directory(), progress.say)
    verdicts = validate.judge(libvirt, cases.cases(machines))
    print(validate.table(verdicts))
    write(output, verdicts)
    return 0 if all(verdict.good or verdict.refused for verdict in verdicts) else 1


def booted(machines: Sequence[str], firmware: str | None, fewest_bits: bool, output: Path | None) -> int:
    images = bake.ensure_guest_images(cache_directory(), progress.say)
    results, refused = [], {}
    for machine in machines:
        case, larger = cases.largest(machine, [firmware] if firmware else None)
        refused.update(larger)
        progress.say(f"booting {case}")
        vm = controls.fewest_addresses(cases.plan(case)) if fewest_bits else cases.plan(case)
        results.append(boot.boot(images, case, vm, cache_directory()))
        write(output, results)
    print(boot.table(results))
    for case_name, why in refused.items():
        print(f"{case_name}: refused by the planner: {why}")
    return 1 if any(result.faults for result in results) else 0


def controlled(output: Path | None) -> int:
    images = bake.ensure_guest_images(cache_directory(), progress.say)
    vm = cases.plan(controls.CASE)
    results, missed = [], []
    for control in controls.CONTROLS:
        progress.say(f"booting {controls.CASE}: {control.name}")
        result = boot.boot(images, controls.CASE, control.mutate(vm), cache_directory())
        results.append(result)
        found = control.found(result.findings) if result.findings is not None else []
        print(f"{control.name}: {len(found)} found" + (f", such as: {found[0]}" if found else ""))
        if not found:
            missed.append(f"{control.name} was not flagged; {'; '.join(result.faults) or 'nothing was'}")
    write(output, results)
    for miss in missed:
        print(f"error: {miss}", file=sys.stderr)
    return 1 if missed else 0


if __name__ == "__main__":
    sys.exit(main())
