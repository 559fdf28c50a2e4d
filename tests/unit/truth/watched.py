# Copyright: the topovirt.kvm authors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Runs a conversion, or one step alone, there and back, on a server made of files: in check mode, then for real, looked
at throughout."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

from ansible_collections.topovirt.kvm.plugins.module_utils._host.face import as_result, shown
from ansible_collections.topovirt.kvm.plugins.module_utils._host.journals import journal_summary
from ansible_collections.topovirt.kvm.plugins.module_utils._host.single import Done
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


def alone(host: FakeHost, name: str, options: dict[str, Any], reboot: bool = False) -> Evidence:
    """A module that does one step alone.

    :param reboot: whether the host boots again before it is looked at.
    """
    return watch(host, host.face(name, **options).present, reboot=reboot)


def alone_back(host: FakeHost, name: str, original: Things) -> Evidence:
    """Its way back."""
    return watch(host, host.face(name).restored, original)


def watch(
    host: FakeHost, act: Callable[[bool], Done], original: Things | None = None, reboot: bool = False
) -> Evidence:
    """In check mode, then for real; what a result says beside its changes must be equal."""
    before, held = observe(host), journal_summary(host.root)
    bytes_before = host.snapshot()
    predicted = _as_module_result(act(True))
    assert (observe(host), host.snapshot()) == (before, bytes_before), "check mode changed something"
    reported = _as_module_result(act(False))
    assert _beside_changes(predicted) == _beside_changes(reported)
    if reboot:
        host.reboot()
    journal = journalled(_touched(held), _touched(journal_summary(host.root)), alone=True)
    seen = observed(before, observe(host))
    return Evidence(changes_of(predicted), changes_of(reported), journal, seen, None, original, reboot)


def _as_module_result(done: Done) -> dict[str, Any]:
    said = {**shown(done.plan), **done.results}
    return {"changed": done.changed, "reboot_required": done.reboot_required, "kept": done.kept, **said}


def _beside_changes(result: dict[str, Any]) -> dict[str, Any]:
    return {key: value for key, value in result.items() if key not in ("plan", "diff")}


def _touched(summary: dict[str, Any]) -> list[dict[str, Any]]:
    """By a conversion and by modules of one step; one excludes the other."""
    return [*summary["touched"], *(touched for face in summary["faces"] for touched in face["touched"])]


def _in(plan: list[Any]) -> Any:
    """Sorts changes as a plan has them."""
    order = {change.key: number for number, change in enumerate(plan)}
    return lambda change: order[(change["step"], change["kind"], change["what"])]
