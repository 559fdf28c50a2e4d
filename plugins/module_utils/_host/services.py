# Copyright: the topovirt.kvm authors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""systemd units: their state, and setting it."""

from __future__ import annotations

from typing import Any, Dict, List, Sequence

from ansible_collections.topovirt.kvm.plugins.module_utils._errors import TopovirtError
from ansible_collections.topovirt.kvm.plugins.module_utils._host.places import Run
from ansible_collections.topovirt.kvm.plugins.module_utils._host.step import (
    AS_BEFORE,
    AS_WRITTEN,
    CHANGED,
    GONE,
    Change,
    Step,
    Thing,
    Touched,
)

NOT_FOUND = "not-found"
# States that `systemctl enable` and `disable` move between (systemctl(1), "is-enabled").
_ENABLED = ("enabled", "enabled-runtime")
_WANTED = {"enabled": True, "active": True}


def unit_state(run: Run, unit: str) -> Dict[str, Any]:
    """``{"enabled": "enabled" | "disabled" | "not-found" | ..., "active": bool}``."""
    words = _ask(run, "is-enabled", unit).split()
    return {"enabled": words[0] if words else NOT_FOUND, "active": _ask(run, "is-active", unit).strip() == "active"}


def _ask(run: Run, question: str, unit: str) -> str:
    try:
        _status, out, _errors = run(["systemctl", question, unit])  # the status says what the word says
    except OSError:
        return ""
    return out


class Services(Step):
    """Daemons that the KVM host needs are enabled and running."""

    name = "services"

    def read(self) -> Dict[str, Any]:
        return {unit: unit_state(self.context.run, unit) for unit in self.context.wanted.services}

    def plan(self) -> List[Change]:
        recorded = self.context.journal.note("units") or {}
        touched = self.context.journal.first_priors()
        changes = []
        for unit, state in self.read().items():
            # A package's own scripts may have enabled the unit meanwhile; it still is a change of the conversion.
            first = (self.name, "unit", unit) not in touched
            before = recorded.get(unit, state) if first else state
            if not _good(state) or (first and not _good(before)):
                changes.append(Change(self.name, "unit", unit, before, _WANTED))
        return changes

    def differences(self) -> List[str]:
        return [
            f"unit {unit}: wanted enabled and active, found {state['enabled']} and "
            f"{'active' if state['active'] else 'inactive'}"
            for unit, state in self.read().items()
            if not _good(state)
        ]

    def prior(self, change: Change) -> Any:
        return change.before

    def find(self, thing: Thing) -> str:
        state = unit_state(self.context.run, thing.what)
        if state == thing.prior:
            return AS_BEFORE
        return GONE if state["enabled"] == NOT_FOUND else AS_WRITTEN if _good(state) else CHANGED

    def apply(self, changes: Sequence[Change]) -> None:
        for change in changes:
            state = unit_state(self.context.run, change.what)
            if state["enabled"] == NOT_FOUND:
                raise TopovirtError(
                    f"Unit {change.what} does not exist.", "Check kvm_host_packages and kvm_host_services."
                )
            if state["enabled"] not in _ENABLED:
                _do(self.context.run, "enable", change.what)
            if not state["active"]:
                _do(self.context.run, "start", change.what)

    def undo(self, touched: Sequence[Touched]) -> None:
        for thing in touched:
            prior, state = thing.prior, unit_state(self.context.run, thing.what)
            if NOT_FOUND in (prior["enabled"], state["enabled"]):
                continue  # came with a package and goes with it
            if prior["enabled"] == "disabled" and state["enabled"] in _ENABLED:
                _do(self.context.run, "disable", thing.what)
            if not prior["active"] and state["active"]:
                _do(self.context.run, "stop", thing.what)


def _good(state: Dict[str, Any]) -> bool:
    return bool(state["enabled"] in _ENABLED and state["active"])


def _do(run: Run, verb: str, unit: str) -> None:
    status, _out, errors = run(["systemctl", verb, unit])
    if status != 0:
        raise TopovirtError(f"systemctl {verb} {unit} failed: {errors.strip()}", f"Look at: journalctl -u {unit}")
