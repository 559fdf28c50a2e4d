# Copyright: the topovirt.kvm authors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Runs a conversion, or its way back, on a server made of files: in check mode, then for real, looked at throughout."""

from __future__ import annotations

from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from ansible_collections.topovirt.kvm.plugins.module_utils._host.face import as_result, journal_summary
from ansible_collections.topovirt.kvm.tests.unit.plugins.module_utils._host.fake_host import FakeHost

from tests.truth.effects import Change, Effect, changes_of, effects, effects_back
from tests.truth.judge import Journalled, Verdict, journalled, verdict
from tests.truth.things import Observed, Thing, Things, observed
from tests.unit.truth.looking import observe


@dataclass(frozen=True)
class Evidence:
    """What a run was to do, said that it did, wrote down, and did."""

    predicted: list[dict[str, Any]]
    reported: list[dict[str, Any]]
    journal: Journalled
    seen: Observed
    plain: Observed | None
    original: Things | None = None  # of the way back: the host before its conversion

    def verdict(self) -> Verdict:
        expected: dict[Thing, Effect] = (
            effects(self.predicted)
            if self.original is None
            else effects_back(self.predicted, self.original, self.seen.before)
        )
        return verdict(self.predicted, self.reported, self.journal, self.seen, expected, self.plain)

    def without(self, change: Change) -> Evidence:
        """As if neither plan nor report nor journal knew of a change that was made: only the observer does."""
        key = (change["step"], change["kind"], change["what"])

        def left(changes: list[dict[str, Any]]) -> list[dict[str, Any]]:
            return [item for item in changes if (item["step"], item["kind"], item["what"]) != key]

        journal = replace(self.journal, after=self.journal.after - {key})
        return replace(self, predicted=left(self.predicted), reported=left(self.reported), journal=journal)

    def claiming(self, change: dict[str, Any]) -> Evidence:
        """As if plan, report and journal all held a change that was never made."""
        key = (change["step"], change["kind"], change["what"])
        return replace(
            self,
            predicted=[*self.predicted, change],
            reported=[*self.reported, change],
            journal=replace(self.journal, after=self.journal.after | {key}),
        )


def plain_installation(kind: type[FakeHost], root: Path, *, wanted: dict[str, Any] | None = None) -> Observed:
    """What the packages bring to another server of this kind, without the collection."""
    host = kind(root)
    before = observe(host)
    host.install(*(wanted or host.wanted)["packages"])
    host.reboot()
    return observed(before, observe(host))


def conversion(host: FakeHost, wanted: dict[str, Any] | None = None, plain: Observed | None = None) -> Evidence:
    """All phases as the role runs them, in check mode and for real."""
    wanted, runner = wanted or host.wanted, host.runner()
    before, touched = observe(host), journal_summary(host.root)["touched"]
    bytes_before = host.snapshot()
    phases = ("record", "apply", "commit")
    predicted = [c for p in phases for c in changes_of(as_result(getattr(runner, p)(wanted, check=True), p))]
    assert changes_of(as_result(runner.plan(wanted), "plan")) == predicted
    assert (observe(host), host.snapshot()) == (before, bytes_before), "check mode changed something"

    reported = changes_of(as_result(runner.record(wanted, check=False), "record"))
    host.install(*[change["what"] for change in reported if change["kind"] == "package"])
    applied = runner.apply(wanted, check=False)
    reported += changes_of(as_result(applied, "apply"))
    if applied.reboot_required:
        host.reboot()
    reported += changes_of(as_result(runner.commit(wanted, check=False), "commit"))
    journal = journalled(touched, journal_summary(host.root)["touched"])
    return Evidence(predicted, reported, journal, observed(before, observe(host)), plain)


def way_back(host: FakeHost, original: Things, plain: Observed | None = None) -> Evidence:
    """Both halves as the role runs them, in check mode and for real."""
    runner = host.runner()
    before, touched = observe(host), journal_summary(host.root)["touched"]
    bytes_before = host.snapshot()
    phases = ("undo", "finish")
    predicted = [c for p in phases for c in changes_of(as_result(getattr(runner, p)(False, True), p))]
    assert changes_of(as_result(runner.plan_back(), "plan")) == sorted(predicted, key=_in(runner.plan_back().plan))
    assert (observe(host), host.snapshot()) == (before, bytes_before), "check mode changed something"

    undone = runner.undo(False, False)
    reported = changes_of(as_result(undone, "undo"))
    if undone.reboot_required:
        host.reboot()
    reported += changes_of(as_result(runner.finish(False, False), "finish"))
    journal = journalled(touched, journal_summary(host.root)["touched"])
    return Evidence(predicted, reported, journal, observed(before, observe(host)), plain, original)


def _in(plan: list[Any]) -> Any:
    """Sorts changes as a plan has them."""
    order = {change.key: number for number, change in enumerate(plan)}
    return lambda change: order[(change["step"], change["kind"], change["what"])]
