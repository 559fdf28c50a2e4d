# Copyright: the topovirt.kvm authors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Between the module ``host_state`` and the logic: parameters, commands, results."""

from __future__ import annotations

import contextlib
import json
import os
from pathlib import Path
from typing import Any, Dict, List, Mapping, Sequence, Tuple

from ansible_collections.topovirt.kvm.plugins.module_utils._errors import TopovirtError
from ansible_collections.topovirt.kvm.plugins.module_utils._host.lock import host_lock
from ansible_collections.topovirt.kvm.plugins.module_utils._host.places import Run
from ansible_collections.topovirt.kvm.plugins.module_utils._host.runner import Report, Runner, describe
from ansible_collections.topovirt.kvm.plugins.module_utils._host.step import Change
from ansible_collections.topovirt.kvm.plugins.module_utils._topology.reader import read_topology

PHASES = {
    "present": ("plan", "record", "apply", "verify", "commit"),
    "restored": ("plan", "undo", "finish"),
}
_READING = ("plan", "verify")


def run_phase(params: Mapping[str, Any], check_mode: bool, run_command: Any) -> Dict[str, Any]:
    """Run one phase and return the result of the module.

    :raises TopovirtError: for refusals and failures.
    """
    state, phase = params["state"], params["phase"]
    if phase not in PHASES[state]:
        raise TopovirtError(
            f"Phase {phase} does not belong to state {state}.", f"Use one of {', '.join(PHASES[state])}."
        )
    demand_root()
    root, run = Path(params["root"]), commands(run_command)
    changes_nothing = check_mode or phase in _READING
    with contextlib.nullcontext() if changes_nothing else host_lock(root, f"host_state ({phase})"):
        report = _run(runner(root, run), state, phase, params, check_mode)
    return as_result(report, phase)


def as_result(report: Report, phase: str) -> Dict[str, Any]:
    """What the module returns of a phase."""
    return {
        "changed": report.changed and phase != "plan",
        "pending": report.changed,
        "id": report.id,
        "journal_state": report.state,
        **shown(report.plan),
        "reboot_required": report.reboot_required,
        "differences": report.differences,
        "kept": report.kept,
        "confirm_within": report.confirm_within,
        "warnings": report.warnings,
    }


def runner(root: Path, run: Run) -> Runner:
    """What converts this host."""
    return Runner(root, run, lambda: read_topology(root, run if root == Path("/") else None))


def demand_root() -> None:
    """:raises TopovirtError: unless root runs the module."""
    if os.geteuid() != 0:
        raise TopovirtError("The state of the host can be read and changed by root only.", "Use become: true.")


def commands(run_command: Any) -> Run:
    """A module's own way to run commands, as the logic runs them: in no language but C's."""

    def run(words: List[str]) -> Tuple[int, str, str]:
        status, out, errors = run_command(
            words, handle_exceptions=False, environ_update={"LC_ALL": "C", "LANGUAGE": "C"}
        )
        return status, out, errors

    return run


def shown(changes: Sequence[Change]) -> Dict[str, Any]:
    """Changes as a module returns them, and what ``--diff`` shows; a directory comes with the file in it."""
    visible = [change for change in changes if change.kind != "directory"]
    return {"plan": [describe(change) for change in visible], "diff": [_diff(change) for change in visible]}


def complaint(result: Mapping[str, Any]) -> str:
    """What a failed verification says: what is wrong, and what happens if nobody does anything."""
    text = f"The host is not as wanted: {'; '.join(result['differences'])}."
    if result["confirm_within"] is None:
        return text
    return (
        f"{text} It reboots into its old boot entry by itself in {result['confirm_within']} s, unless it is corrected "
        f"and committed before."
    )


def _run(phases: Runner, state: str, phase: str, params: Mapping[str, Any], check_mode: bool) -> Report:
    if state == "restored":
        discard = bool(params["discard_images"])
        if phase == "plan":
            return phases.plan_back(discard)
        return (phases.undo if phase == "undo" else phases.finish)(discard, check_mode)
    wanted = params["wanted"] or {}
    if phase == "plan":
        return phases.plan(wanted)
    if phase == "verify":
        return phases.verify(wanted)
    return {"record": phases.record, "apply": phases.apply, "commit": phases.commit}[phase](wanted, check_mode)


def _diff(change: Change) -> Dict[str, str]:
    """What ``--diff`` shows: files as they are, everything else as a line."""
    if isinstance(change.after, dict) and "text" in change.after:
        return {
            "before_header": f"/{change.what}",
            "after_header": f"/{change.what} ({change.stage})",
            "before": change.before or "",
            "after": change.after["text"],
        }
    described = describe(change)
    header = f"{change.step}: {change.kind} {change.what}"
    return {
        "before_header": header,
        "after_header": f"{header} ({change.stage}{', with the next boot' if change.reboot else ''})",
        "before": _line(described["before"]),
        "after": _line(described["after"]),
    }


def _line(value: Any) -> str:
    """A value as text that is the same for equal values: keys of a journaled one come in another order."""
    return f"{value if value is None or isinstance(value, str) else json.dumps(value, sort_keys=True)}\n"
