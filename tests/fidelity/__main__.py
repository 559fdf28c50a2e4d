# Copyright: the topovirt.kvm authors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Guests before other people's judges: ``python -m tests.fidelity validate [MACHINE...]``."""

from __future__ import annotations

import argparse
import json
import sys
from dataclasses import asdict
from pathlib import Path

from tests.fidelity import cases, validate
from tests.tools import progress
from tests.twin import description
from tests.twin.images import bake
from tests.twin.images.process import BakeError
from tests.twin.lifecycle import cache_directory


def main() -> int:
    progress.end_like_interrupted()
    parser = argparse.ArgumentParser(prog="python -m tests.fidelity", description=__doc__)
    commands = parser.add_subparsers(dest="command", required=True)
    judge = commands.add_parser("validate", help="libvirt's schema and translation, for every machine, model and size")
    judge.add_argument("machines", nargs="*", metavar="MACHINE", help=f"default: {' '.join(description.names())}")
    judge.add_argument("--json", type=Path, help="also write the results there")
    options = parser.parse_args()
    unknown = set(options.machines) - set(description.names())
    if unknown:
        parser.error(f"no such machine: {', '.join(sorted(unknown))}")
    try:
        return validated(options.machines, options.json)
    except BakeError as error:
        print(f"error: {error}", file=sys.stderr)
        return 1


def validated(machines: list[str], output: Path | None) -> int:
    libvirt = bake.ensure_libvirt(cache_directory(), progress.say)
    verdicts = validate.judge(libvirt, cases.cases(machines))
    print(validate.table(verdicts))
    if output is not None:
        output.write_text(json.dumps([asdict(verdict) for verdict in verdicts], indent=1), encoding="utf-8")
    return 0 if all(verdict.good or verdict.refused for verdict in verdicts) else 1


if __name__ == "__main__":
    sys.exit(main())
