# Copyright: the topovirt.kvm authors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Versions, the features that follow from them, and what is said when they are unknown."""

from __future__ import annotations

from pathlib import Path

import pytest
from ansible_collections.topovirt.kvm.plugins.module_utils._topology.gaps import Gaps
from ansible_collections.topovirt.kvm.plugins.module_utils._topology.module_ids import Run
from ansible_collections.topovirt.kvm.plugins.module_utils._topology.software import read_software
from ansible_collections.topovirt.kvm.plugins.module_utils._topology.sysfs import Tree

LIBVIRTD, QEMU = "/usr/sbin/libvirtd", "/usr/bin/qemu-system-x86_64"


def host(root: Path, libvirt: str, qemu: str) -> Run:
    """A host with both programs, which print what they do in real life."""
    answers = {
        LIBVIRTD: f"{LIBVIRTD} (libvirt) {libvirt}\n",
        QEMU: f"QEMU emulator version {qemu} (Debian 1:{qemu}+ds-1)\nCopyright (c) 2003-2025 Fabrice Bellard\n",
    }
    for program in answers:
        file = root / program.lstrip("/")
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_text("", encoding="utf-8")

    def run(words: list[str]) -> tuple[int, str, str]:
        assert words[1:] == ["--version"]
        return 0, answers[words[0]], ""

    return run


@pytest.mark.parametrize(
    ("kernel", "libvirt", "qemu", "expected"),
    [
        ("6.12.94-amd64", "11.3.0", "10.0.8", [True, True, True, False]),
        ("5.14.0-570.el9.x86_64", "10.10.0", "9.1.0", [True, True, False, False]),
        ("5.14.0-570.el9.x86_64", "10.10.0", "9.2.0", [True, True, None, False]),
        ("6.1.0-40-amd64", "9.0.0", "7.2.17", [True, True, False, False]),
        ("5.15.0-160-generic", "8.0.0", "6.2.0", [False, False, False, False]),
        ("6.17.0", "11.6.0", "10.1.0", [True, True, True, None]),
        ("6.17.0", "11.10.0", "10.1.0", [True, True, True, True]),
    ],
)
def test_features(tmp_path: Path, kernel: str, libvirt: str, qemu: str, expected: list[bool | None]) -> None:
    software = read_software(Tree(tmp_path), tmp_path, host(tmp_path, libvirt, qemu), kernel, Gaps())
    assert (software["libvirt"], software["qemu"]) == (libvirt, qemu)
    names = ("qemu_override", "maxphysaddr", "large_bar_fast_mapping", "iommufd")
    assert [software["features"][name] for name in names] == expected


def test_nothing_is_installed(tmp_path: Path) -> None:
    def run(words: list[str]) -> tuple[int, str, str]:
        raise AssertionError(f"{words} was started")

    gaps = Gaps()
    software = read_software(Tree(tmp_path), tmp_path, run, "6.12.0", gaps)
    assert (software["libvirt"], software["qemu"], software["next_cmdline"]) == (None, None, None)
    assert {gap["fact"] for gap in gaps.listed()}.isdisjoint({"libvirt", "qemu"})


@pytest.mark.parametrize("answer", [(1, "", "broken"), (0, "no number", ""), OSError("not executable")])
def test_a_program_that_does_not_tell(tmp_path: Path, answer: tuple[int, str, str] | OSError) -> None:
    host(tmp_path, "11.3.0", "10.0.8")

    def run(words: list[str]) -> tuple[int, str, str]:
        if isinstance(answer, OSError):
            raise answer
        return answer

    gaps = Gaps()
    software = read_software(Tree(tmp_path), tmp_path, run, "6.12.0", gaps)
    assert (software["libvirt"], software["features"]["maxphysaddr"]) == (None, None)
    reasons = {gap["fact"]: gap["reason"] for gap in gaps.listed()}
    assert reasons["libvirt"] == f"{LIBVIRTD} --version prints no version"
    assert reasons["maxphysaddr"] == "without libvirt nobody can tell"


def test_no_command_runs_for_a_recorded_tree(tmp_path: Path) -> None:
    host(tmp_path, "11.3.0", "10.0.8")
    gaps = Gaps()
    assert read_software(Tree(tmp_path), tmp_path, None, "6.12.0", gaps)["libvirt"] is None
    assert "no command is run" in {gap["fact"]: gap["reason"] for gap in gaps.listed()}["libvirt"]
