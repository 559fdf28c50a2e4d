# Copyright: the topovirt.kvm authors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Rules that hold for every file of the project, and that no linter knows."""

from __future__ import annotations

import ast
import re
import subprocess
from pathlib import Path
from typing import Any

import pytest
import yaml

from tests.tools import workspace

ROOT = workspace.ROOT
HEADER = (ROOT / "plugins/module_utils/_errors.py").read_text(encoding="utf-8").splitlines()[:3]
MAX_ROLE_TASKS = 10
PRODUCT = ("plugins", "roles", "playbooks", "meta")


def tracked(*patterns: str) -> list[Path]:
    """Files of the project: known to git, or new and not ignored."""
    command = ["git", "-C", str(ROOT), "ls-files", "--cached", "--others", "--exclude-standard", "--", *patterns]
    names = subprocess.run(command, capture_output=True, text=True, check=True).stdout.splitlines()
    return [ROOT / name for name in names if (ROOT / name).is_file()]


def name(path: Path) -> str:
    return str(path.relative_to(ROOT))


def roles() -> list[Path]:
    return sorted({ROOT / "roles" / path.relative_to(ROOT / "roles").parts[0] for path in tracked("roles")})


def tasks_of(content: Any) -> int:
    """Tasks of a file, those inside blocks included; a block itself is none."""
    count = 0
    for task in content or []:
        inner = [task[key] for key in ("block", "rescue", "always") if key in task]
        count += sum(map(tasks_of, inner)) if inner else 1
    return count


def test_every_python_file_starts_with_the_header() -> None:
    for path in tracked("*.py"):
        lines = path.read_text(encoding="utf-8").splitlines()
        if lines and path.name != "__init__.py":
            start = 1 if lines[0].startswith("#!") else 0
            assert lines[start : start + 3] == HEADER, name(path)


def test_init_files_are_empty_and_the_plugins_have_none() -> None:
    for path in tracked("*__init__.py"):
        assert not path.read_text(encoding="utf-8"), name(path)
        assert path.relative_to(ROOT).parts[0] != "plugins", name(path)


def test_what_runs_on_the_host_never_imports_the_controllers_half() -> None:
    for path in tracked("plugins/module_utils/*.py", "plugins/modules/*.py"):
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            modules = [node.module or ""] if isinstance(node, ast.ImportFrom) else []
            modules += [alias.name for alias in node.names] if isinstance(node, ast.Import) else []
            assert not [module for module in modules if "plugin_utils" in module], name(path)


def test_the_product_does_not_know_the_emulated_server() -> None:
    known = re.compile(r"tests[./]twin|\btwin\b|TWINNVME|hgx-h200", re.IGNORECASE)
    for path in tracked(*PRODUCT):
        for number, line in enumerate(path.read_text(encoding="utf-8", errors="replace").splitlines(), start=1):
            # QEMU's own process names and libvirt's emulator threads are no emulated server.
            assert not known.search(line), f"{name(path)}:{number}: {line.strip()}"


def test_each_playbook_has_a_twin_that_a_collection_can_address() -> None:
    there = {path.name for path in tracked("playbooks/*.yml") if path.parent == ROOT / "playbooks"}
    dashed = {file for file in there if "-" in file}
    assert {file for file in there if "_" in file} == {file.replace("-", "_") for file in dashed}
    for file in dashed:
        (play,) = yaml.safe_load((ROOT / "playbooks" / file.replace("-", "_")).read_text(encoding="utf-8"))
        assert set(play) == {"name", "ansible.builtin.import_playbook"}, file
        assert play["ansible.builtin.import_playbook"] == file


@pytest.mark.parametrize("role", roles(), ids=lambda role: str(role.name))
def test_roles_are_small_and_described(role: Path) -> None:
    files = tracked(f"roles/{role.name}/tasks", f"roles/{role.name}/handlers")
    assert sum(tasks_of(yaml.safe_load(path.read_text(encoding="utf-8"))) for path in files) <= MAX_ROLE_TASKS
    specs = yaml.safe_load((role / "meta/argument_specs.yml").read_text(encoding="utf-8"))
    options = set(specs["argument_specs"]["main"].get("options", {}))
    defaults = role / "defaults/main.yml"
    given = set(yaml.safe_load(defaults.read_text(encoding="utf-8")) or {}) if defaults.is_file() else set()
    assert {option for option in options | given if not option.startswith(f"{role.name}_")} == set()
    assert given <= options


def test_every_sanity_exception_has_its_reason() -> None:
    for path in tracked("tests/sanity/ignore-*.txt"):
        for line in path.read_text(encoding="utf-8").splitlines():
            assert "#" in line, f"{name(path)}: {line}"
