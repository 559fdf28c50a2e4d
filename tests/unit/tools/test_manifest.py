# Copyright: the topovirt.kvm authors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

from __future__ import annotations

import copy
import os
from pathlib import Path
from typing import Any

import pytest

from tests.tools import manifest, manifest_host


@pytest.fixture
def tree(tmp_path: Path) -> Path:
    (tmp_path / "etc").mkdir()
    (tmp_path / "etc/passwd").write_text("root:x:0\nadmin:x:1\n")
    (tmp_path / "etc/conf").write_text("one")
    (tmp_path / "etc/link").symlink_to("conf")
    return tmp_path


def of(root: Path, **parts: Any) -> dict[str, Any]:
    whole = {
        "files": manifest_host.file_system(str(root)),
        "units": ["ssh.service enabled"],
        "packages": ["ii bash"],
        "manual_packages": ["bash"],
        "cmdline": "quiet",
        "drivers": {"0000:23:00.0": ["nvidia", "(null)"]},
        "hugepages": {"node0": "0"},
    }
    return {**copy.deepcopy(whole), **parts}


def test_the_same_host(tree: Path) -> None:
    assert manifest.compare(of(tree), of(tree)) == []


def test_temporary_directories_of_services_are_named_anew_by_each_boot(tree: Path) -> None:
    before = of(tree)
    (tree / "var/tmp/systemd-private-5f0c-polkit.service-x/tmp").mkdir(parents=True)
    (tree / "var/tmp/mine").touch()
    assert manifest.compare(before, of(tree)) == [f"file /var{path}: is new" for path in ("", "/tmp", "/tmp/mine")]


@pytest.mark.parametrize(
    ("change", "line"),
    [
        (lambda t: (t / "etc/conf").write_text("two"), "file /etc/conf: content changed"),
        (lambda t: (t / "etc/conf").chmod(0o600), "file /etc/conf: mode changed"),
        (lambda t: os.chown(t / "etc/conf", 5, 6), "file /etc/conf: owner, group changed"),
        (lambda t: os.setxattr(t / "etc/conf", "user.x", b"1"), "file /etc/conf: extended attributes changed"),
        (lambda t: (t / "etc/conf").unlink(), "file /etc/conf: is gone"),
        (lambda t: (t / "etc/new").touch(), "file /etc/new: is new"),
        (lambda t: (t / "etc/passwd").write_text("root:x:0\n"), "file /etc/passwd: content changed"),
        (
            lambda t: ((t / "etc/link").unlink(), (t / "etc/link").symlink_to("other")),
            "file /etc/link: content changed",
        ),
    ],
)
def test_a_changed_file(tree: Path, change: Any, line: str) -> None:
    before = of(tree)
    change(tree)
    assert manifest.compare(before, of(tree)) == [line]


def test_account_files_are_compared_by_entry(tree: Path) -> None:
    before = of(tree)
    (tree / "etc/passwd").write_text("admin:x:1\nroot:x:0\n")
    assert manifest.compare(before, of(tree)) == []


@pytest.mark.parametrize(
    ("parts", "line"),
    [
        ({"units": ["ssh.service disabled"]}, "units: missing ssh.service enabled"),
        ({"packages": ["ii bash", "ii tuned"]}, "packages: new ii tuned"),
        ({"manual_packages": []}, "manual_packages: missing bash"),
        ({"cmdline": "quiet iommu=pt"}, "cmdline: 'quiet' became 'quiet iommu=pt'"),
        ({"drivers": {"0000:23:00.0": [None, "(null)"]}}, "drivers 0000:23:00.0: ['nvidia', '(null)'] became"),
        ({"hugepages": {"node0": "5"}}, "hugepages node0: 0 became 5"),
    ],
)
def test_a_changed_state(tree: Path, parts: dict[str, Any], line: str) -> None:
    found = manifest.compare(of(tree), of(tree, **parts))
    assert found[0].startswith(line)


def test_volatile_paths_are_few_and_have_reasons() -> None:
    exact, trees = manifest.volatile()
    assert trees
    assert not [path for path in exact if "*" in path or path.endswith("/")]


@pytest.mark.parametrize(
    ("text", "part"),
    [
        ("- {path: /etc/x}\n", "no reason given"),
        ("- {path: /etc, tree: true, reason: lazy}\n", "only logs, package caches"),
    ],
)
def test_exceptions_are_reviewed(tmp_path: Path, text: str, part: str) -> None:
    file = tmp_path / "volatile.yml"
    file.write_text(text)
    with pytest.raises(ValueError, match=part):
        manifest.volatile(file)


def test_volatile_paths_do_not_count(tree: Path, tmp_path: Path) -> None:
    file = tmp_path / "volatile.yml"
    file.write_text("- {path: /etc/conf, reason: test}\n- {path: /var/log, tree: true, reason: logs}\n")
    before = of(tree)
    (tree / "etc/conf").write_text("two")
    (tree / "var/log").mkdir(parents=True)
    assert manifest.compare(before, of(tree), file) == ["file /var: is new"]
