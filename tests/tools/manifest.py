# Copyright: the topovirt.kvm authors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Is a host after the way back what it was before? Takes manifests through SSH, and compares two.

Use ``python -m tests.tools.manifest take FILE -- ssh ... HOST`` and ``python -m tests.tools.manifest compare OLD NEW``.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import yaml

HERE = Path(__file__).parent
SCRIPT = HERE / "manifest_host.py"
VOLATILE = HERE / "volatile-paths.yml"
# Logs, package caches, and what stands for a mirror on the emulated server: nothing else may be left out as a whole.
_TREES = ("/var/log", "/var/cache", "/srv/repo")


def take(command: Sequence[str]) -> dict[str, Any]:
    """The manifest of the host that ``command`` (an SSH command line) runs a shell command on, as root."""
    result = subprocess.run([*command, "python3", "-"], input=SCRIPT.read_bytes(), stdout=subprocess.PIPE, check=True)
    manifest: dict[str, Any] = json.loads(result.stdout)
    return manifest


def volatile(file: Path = VOLATILE) -> tuple[set[str], tuple[str, ...]]:
    """Exact paths and trees that are left out.

    :raises ValueError: for an entry without a reason, or a tree that is neither logs, a package cache nor a mirror.
    """
    exact, trees = set(), []
    for entry in yaml.safe_load(file.read_text(encoding="utf-8")):
        if not str(entry.get("reason", "")).strip():
            raise ValueError(f"{entry['path']}: no reason given")
        if entry.get("tree"):
            if not entry["path"].startswith(_TREES):
                raise ValueError(f"{entry['path']}: only logs, package caches and a mirror may be left out as a whole")
            trees.append(entry["path"])
        else:
            exact.add(entry["path"])
    return exact, tuple(trees)


def compare(before: dict[str, Any], after: dict[str, Any], file: Path = VOLATILE) -> list[str]:
    """Differences, one line each; empty when the host is as it was."""
    exact, trees = volatile(file)
    lines: list[str] = []
    old, new = before["files"], after["files"]
    for path in sorted({*old, *new}):
        if path in exact or any(path == tree or path.startswith(f"{tree}/") for tree in trees):
            continue
        if path not in new:
            lines.append(f"file {path}: is gone")
        elif path not in old:
            lines.append(f"file {path}: is new")
        elif old[path] != new[path]:
            names = ("type", "mode", "owner", "group", "extended attributes", "content")
            changed = [name for name, one, two in zip(names, old[path], new[path], strict=True) if one != two]
            lines.append(f"file {path}: {', '.join(changed)} changed")
    for part in ("units", "packages", "manual_packages"):
        lines += [f"{part}: missing {line}" for line in sorted(set(before[part]) - set(after[part]))]
        lines += [f"{part}: new {line}" for line in sorted(set(after[part]) - set(before[part]))]
    for part in ("drivers", "hugepages"):
        for name in sorted({*before[part], *after[part]}):
            if before[part].get(name) != after[part].get(name):
                lines.append(f"{part} {name}: {before[part].get(name)} became {after[part].get(name)}")
    if before["cmdline"] != after["cmdline"]:
        lines.append(f"cmdline: {before['cmdline']!r} became {after['cmdline']!r}")
    return lines


def main(arguments: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    actions = parser.add_subparsers(dest="action", required=True)
    taking = actions.add_parser("take", help="write the manifest of a host")
    taking.add_argument("file", type=Path)
    taking.add_argument("command", nargs="+", help="SSH command line of the host, after --")
    comparing = actions.add_parser("compare", help="print differences; exit status 1 when there are any")
    comparing.add_argument("before", type=Path)
    comparing.add_argument("after", type=Path)
    given = parser.parse_args(arguments)
    if given.action == "take":
        given.file.write_text(json.dumps(take(given.command)), encoding="utf-8")
        return 0
    lines = compare(json.loads(given.before.read_text()), json.loads(given.after.read_text()))
    print("\n".join(lines) if lines else "no differences")
    return 1 if lines else 0


if __name__ == "__main__":
    sys.exit(main())
