# Copyright: the topovirt.kvm authors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""What is designed for every machine is what somebody reviewed."""

from __future__ import annotations

import pytest

from tests.tools import goldens
from tests.twin import description


def test_every_machine_has_a_golden_run_and_nothing_else_has() -> None:
    assert set(goldens.BATCHES) == set(description.names())
    assert {path.stem for path in goldens.GOLDENS.glob("*.txt")} == set(goldens.BATCHES)


@pytest.mark.parametrize("machine", goldens.BATCHES)
def test_the_golden_run_is_current(machine: str) -> None:
    committed = (goldens.GOLDENS / f"{machine}.txt").read_text(encoding="utf-8")
    assert committed == goldens.golden(machine), (
        "review what changed, then write it: python -m tests.tools.inside tests.tools.goldens"
    )
