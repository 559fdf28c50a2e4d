# Copyright: the topovirt.kvm authors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""A trial boot counts as failed as meant, and the host as recovered, only when console and host say so."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from tests.demo import trials
from tests.demo.operator import Failure, Operator, Played

BEFORE: dict[str, Any] = {
    "files": {},
    "units": [],
    "packages": [],
    "manual_packages": [],
    "cmdline": "root=x",
    "drivers": {"0000:23:00.0": ["nvidia", "(null)"]},
    "hugepages": {"node0": "0"},
}
SABOTAGE = trials.Sabotage("a thing", "break", ("it broke",))


@pytest.fixture
def mine(tmp_path: Path) -> Any:
    (tmp_path / "serial.log").write_text("it broke in an earlier boot\n")
    return SimpleNamespace(server=SimpleNamespace(directory=tmp_path, copy_from=lambda command: b""))


def judge(monkeypatch: pytest.MonkeyPatch, mine: Operator, said: str, now: dict[str, Any]) -> None:
    console = trials.Console(mine.server)
    with (mine.server.directory / "serial.log").open("a") as log:
        log.write(said)
    monkeypatch.setattr(trials, "record", lambda server: {**BEFORE, "files": {"/new": []}, **now})
    trials.judge(mine, BEFORE, SABOTAGE, console, "soon")


def test_a_host_that_recovered(monkeypatch: pytest.MonkeyPatch, mine: Operator) -> None:
    judge(monkeypatch, mine, "so it broke\n", {})  # files are not compared, the conversion is prepared


def test_the_proof_must_be_of_this_boot(monkeypatch: pytest.MonkeyPatch, mine: Operator) -> None:
    with pytest.raises(Failure, match="the console does not show it broke"):
        judge(monkeypatch, mine, "all is well\n", {})


@pytest.mark.parametrize(
    "now",
    [
        {"cmdline": "root=x topovirt=1"},
        {"drivers": {"0000:23:00.0": ["vfio-pci", "vfio-pci"]}},
        {"hugepages": {"node0": "5"}},
    ],
)
def test_a_host_that_did_not_recover(monkeypatch: pytest.MonkeyPatch, mine: Operator, now: dict[str, Any]) -> None:
    with pytest.raises(Failure, match="not as before"):
        judge(monkeypatch, mine, "it broke", now)


def test_somebody_must_be_told(tmp_path: Path) -> None:
    played = Played(0, 0, "", tmp_path)
    trials.demand_words(
        played, "[WARNING]: The trial boot of entry\ntopovirt-ab failed, and the host\nrecovered by itself"
    )
    with pytest.raises(Failure, match="nobody was told"):
        trials.demand_words(played, "ok: [host]")
