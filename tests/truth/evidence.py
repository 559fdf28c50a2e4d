# Copyright: the topovirt.kvm authors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""All that was found out about one run, and what follows from it."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from tests.truth.effects import Effect, effects, effects_back
from tests.truth.judge import Journalled, Verdict, verdict
from tests.truth.things import Observed, Thing, Things


@dataclass(frozen=True)
class Evidence:
    """What a run was to do, said that it did, wrote down, and did.

    :param plain: what its packages bring by themselves.
    :param original: of a way back: the host before its conversion.
    :param booted: whether the host booted, or started what is new, between both looks at it.
    """

    predicted: list[dict[str, Any]]
    reported: list[dict[str, Any]]
    journal: Journalled
    seen: Observed
    plain: Observed | None
    original: Things | None = None
    booted: bool = True

    def verdict(self) -> Verdict:
        expected: dict[Thing, Effect] = (
            effects(self.predicted, self.booted)
            if self.original is None
            else effects_back(self.predicted, self.original, self.seen.before)
        )
        return verdict(self.predicted, self.reported, self.journal, self.seen, expected, self.plain)
