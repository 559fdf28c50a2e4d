# Copyright: the topovirt.kvm authors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Runs a conversion, or its way back, on a server made of files: in check mode, then for real, looked at throughout."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from ansible_collections.topovirt.kvm.plugins.module_utils._host.face import as_result
from ansible_collections.topovirt.kvm.plugins.module_utils._host.journals import journal_summary
from ansible_collections.topovirt.kvm.tests.unit.plugins.module_utils._host.fake_host import FakeHost

from tests.truth.effects import changes_of
from tests.truth.evidence import Evidence
from tests.truth.judge import journalled
from tests.truth.things import Observed, Things, observed
from tests.unit.truth.looking import observe


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
