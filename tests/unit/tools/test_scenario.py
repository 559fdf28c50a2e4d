# Copyright: the topovirt.kvm authors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""A scenario counts as passed only when molecule says that every phase ran and passed."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.tools import scenario

GOOD = "default                   : actions=6  successful=6  disabled=0  skipped=0  missing=0  failed=0"


@pytest.mark.parametrize(
    ("line", "complete"),
    [
        (GOOD, True),
        (GOOD.replace("failed=0", "failed=1"), False),
        (GOOD.replace("missing=0", "missing=1"), False),
        (GOOD.replace("skipped=0", "skipped=2"), False),
        ("h : ok=1 changed=0 unreachable=0 failed=0 skipped=0 rescued=0 ignored=0", False),
    ],
)
def test_only_a_clean_recap_completes(tmp_path: Path, line: str, complete: bool) -> None:
    report = scenario.Report(tmp_path / "log")
    report.line(line)
    assert report.complete is complete


def test_phases_are_told_with_their_results(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    report = scenario.Report(tmp_path / "log")
    for line in (
        "INFO     [default > create] Executing",
        "INFO     [default > create] Executed: Successful",
        "INFO     [default > verify] Executing",
        "ERROR    [default > verify] \x1b[31mExecuted: Failed\x1b[0m",
    ):
        report.line(line)
    assert [(phase, result) for phase, result, _seconds in report.results] == [
        ("create", "Successful"),
        ("verify", "Failed"),
    ]
    report.line("INFO     [default > destroy] Executing")
    assert report.failed == "verify"
    assert "Failed verify" in capsys.readouterr().out


def test_every_scenario_folder_is_known() -> None:
    assert "default" in scenario.known()


def test_a_skipped_phase_is_noticed(tmp_path: Path) -> None:
    report = scenario.Report(tmp_path / "log")
    report.line("WARNING  [default > verify] Skipping, no tests found.")
    assert report.skipped
