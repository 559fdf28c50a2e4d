# Copyright: the topovirt.kvm authors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""What the machine lacks is named, all at once, with the line that installs it."""

from __future__ import annotations

import subprocess
from pathlib import Path

import pytest

from tests.tools import prepare, workspace


@pytest.mark.parametrize("version", ["12", "13"])
def test_supported_releases_pass(version: str) -> None:
    assert prepare.release_problem(f'ID=debian\nVERSION_ID="{version}"\n') is None


@pytest.mark.parametrize("text", ['ID=debian\nVERSION_ID="11"\n', 'ID=ubuntu\nVERSION_ID="12"\n', "ID=debian\n", ""])
def test_other_releases_are_named(text: str) -> None:
    assert "Debian 12 or 13" in (prepare.release_problem(text) or "")


def test_memory_is_judged_by_what_a_machine_of_that_size_reports() -> None:
    assert prepare.memory_problem("MemTotal:       16273848 kB\n") is None
    assert "7.8 GiB" in (prepare.memory_problem("MemTotal:       8167848 kB\n") or "")


def test_one_complaint_per_file_system(tmp_path: Path) -> None:
    assert prepare.disk_problems([tmp_path / "a", tmp_path / "b"], 0) == []
    assert len(prepare.disk_problems([tmp_path / "a", tmp_path / "b"], 1 << 20)) == 1


def test_a_package_that_does_not_exist_is_missing() -> None:
    assert prepare.missing_packages(["dpkg", "no-such-package-at-all"]) == ["no-such-package-at-all"]


def test_the_first_line_of_the_readme_installs_what_is_needed() -> None:
    first = (workspace.ROOT / "README.md").read_text(encoding="utf-8").splitlines()[0]
    assert prepare.apt_line(prepare.apt_packages()) in first


def test_the_list_of_packages_is_sorted_and_without_doubles() -> None:
    assert prepare.apt_packages() == sorted(set(prepare.apt_packages()))


def test_the_cache_is_found_without_a_home(monkeypatch: pytest.MonkeyPatch) -> None:
    assert workspace.cache_dir({}) == Path("/root/.cache/topovirt")
    assert workspace.cache_dir({"HOME": "/h"}) == Path("/h/.cache/topovirt")
    assert workspace.cache_dir({"HOME": "/h", "XDG_CACHE_HOME": "/x"}) == Path("/x/topovirt")
    assert workspace.cache_dir({"XDG_CACHE_HOME": "/x", "TOPOVIRT_CACHE": "/t"}) == Path("/t")


def test_tools_do_not_see_the_users_home_or_ansible_settings() -> None:
    env = workspace.environment({"HOME": "/h", "ANSIBLE_FORKS": "1", "PYTHONHOME": "/p", "https_proxy": "p"})
    assert env["HOME"] == str(workspace.HOME)
    assert env["TOPOVIRT_CACHE"] == "/h/.cache/topovirt"
    assert "ANSIBLE_FORKS" not in env and "PYTHONHOME" not in env
    assert env["https_proxy"] == "p"


def test_help_lists_every_target_that_the_makefile_has() -> None:
    makefile = (workspace.ROOT / "Makefile").read_text(encoding="utf-8")
    (phony,) = [line for line in makefile.splitlines() if line.startswith(".PHONY:")]
    done = subprocess.run(["make", "-C", str(workspace.ROOT), "-s", "help"], capture_output=True, text=True, check=True)
    listed = [line.split()[1] for line in done.stdout.splitlines() if line.startswith("make ")]
    assert sorted(listed) == sorted(set(phony.split()[1:]) - {"python"})
