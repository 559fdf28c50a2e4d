# Copyright: the topovirt.kvm authors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Run the steps as one transaction: plan all, refuse first, journal, apply in order; the way back reads the journal.

A conversion has these phases, each a call of ``host_state``:
``record`` (inventory before packages come), then Ansible's own package module, ``apply``, a reboot, ``verify``,
``commit``. The way back: ``undo`` (the old boot entry is the default again), a reboot, ``finish``.
Every phase may be repeated, and continues where an earlier run was cut off.
"""

from __future__ import annotations

import os
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, Callable, Dict, List, Mapping, Optional, Sequence, Tuple, Type

from ansible_collections.topovirt.kvm.plugins.module_utils._errors import TopovirtError
from ansible_collections.topovirt.kvm.plugins.module_utils._host import guard, surroundings
from ansible_collections.topovirt.kvm.plugins.module_utils._host.binding import Binding
from ansible_collections.topovirt.kvm.plugins.module_utils._host.boot import Boot
from ansible_collections.topovirt.kvm.plugins.module_utils._host.cmdline.choice import boot_obstacles
from ansible_collections.topovirt.kvm.plugins.module_utils._host.competitors import CONFLICT, Competitor, competitors
from ansible_collections.topovirt.kvm.plugins.module_utils._host.files import digest
from ansible_collections.topovirt.kvm.plugins.module_utils._host.hugepages import Hugepages
from ansible_collections.topovirt.kvm.plugins.module_utils._host.journal import (
    Journal,
    Key,
    Record,
    faces_in_force,
    key_of,
    machine_id,
)
from ansible_collections.topovirt.kvm.plugins.module_utils._host.lock import holder
from ansible_collections.topovirt.kvm.plugins.module_utils._host.packages import Packages
from ansible_collections.topovirt.kvm.plugins.module_utils._host.pcie_acs import PcieAccess
from ansible_collections.topovirt.kvm.plugins.module_utils._host.places import APART, TOKEN, Run, output, token_of
from ansible_collections.topovirt.kvm.plugins.module_utils._host.registers import WriteConfig, write_config
from ansible_collections.topovirt.kvm.plugins.module_utils._host.remembered import (
    HostFile,
    ModuleIds,
    committed_state,
)
from ansible_collections.topovirt.kvm.plugins.module_utils._host.services import Services
from ansible_collections.topovirt.kvm.plugins.module_utils._host.sriov import Sriov
from ansible_collections.topovirt.kvm.plugins.module_utils._host.step import (
    Change,
    Context,
    Step,
    Thing,
    Touched,
    unique,
    write_attribute,
)
from ansible_collections.topovirt.kvm.plugins.module_utils._host.surroundings import FreeBytes, free_bytes
from ansible_collections.topovirt.kvm.plugins.module_utils._host.trial import Trial, failure, last_words
from ansible_collections.topovirt.kvm.plugins.module_utils._host.tuned import Tuned
from ansible_collections.topovirt.kvm.plugins.module_utils._host.wanted import (
    Wanted,
    confirm_timeout_of,
    nothing,
    resolve,
)
from ansible_collections.topovirt.kvm.plugins.module_utils._topology.model import Topology

# In the order of work. The boot entry comes last of what is applied: it makes everything before it take effect.
STEPS: Tuple[Type[Step], ...] = (
    Packages,
    ModuleIds,
    Services,
    Tuned,
    Hugepages,
    Binding,
    Sriov,
    PcieAccess,
    Trial,
    Boot,
    HostFile,
)


@dataclass
class Report:
    """What a phase did, or in check mode would do."""

    id: str
    state: str  # of the journal, see Journal.state
    plan: List[Change] = field(default_factory=list)
    changed: bool = False
    reboot_required: bool = False
    differences: List[str] = field(default_factory=list)
    kept: List[str] = field(default_factory=list)
    warnings: List[str] = field(default_factory=list)
    confirm_within: Optional[int] = None  # seconds until an unconfirmed trial boot ends by itself


@dataclass
class Runner:
    """All phases. ``topology`` reads the machine when it is called, since phases change it."""

    root: Path
    run: Run
    topology: Callable[[], Topology]
    write: Callable[[Path, str], None] = write_attribute
    write_config: WriteConfig = write_config
    free: FreeBytes = free_bytes

    # --- to a KVM host ---

    def plan(self, given: Mapping[str, Any]) -> Report:
        """What a conversion would change, after the guard had its say. Changes nothing."""
        context = self._context(given)
        changes = self._planned(context)
        other = holder(self.root)
        self._refuse(context, changes, [f"another run is changing this host: {other}"] if other else [])
        report = self._report(context, changes, bool(changes))
        report.warnings += [f"{found.name}: {found.text}. {found.remedy}." for found in self._competitors(context)]
        return report

    def record(self, given: Mapping[str, Any], check: bool) -> Report:
        """Begin the transaction: guard, then inventory, if packages are to come or nothing was recorded yet."""
        context = self._context(given)
        changes = self._planned(context)
        self._refuse(context, changes)
        missing = [change for change in changes if change.stage == "packages"]
        begin = not context.journal.exists or context.journal.state == "begun"
        if not check and (begin or missing):
            if not context.journal.exists:
                context.journal.begin(context.id)
            Packages(context).record()
            if begin:
                host = context.topology["host"]
                context.journal.add_note("cmdline", host["cmdline"])
                context.journal.add_note("vms", guard.defined_vms(self.root))
                context.journal.set_state("recorded")
        return self._report(context, missing, bool(missing or begin))

    def apply(self, given: Mapping[str, Any], check: bool) -> Report:
        """Make every change that needs no verified boot, in order."""
        context = self._context(given)
        changes = [change for change in self._planned(context) if change.stage != "packages"]
        self._refuse(context, changes)
        due = [change for change in changes if change.stage == "apply"]
        if check:
            return self._report(context, due, bool(due))
        if not context.journal.exists or context.journal.state == "begun":
            raise TopovirtError("Nothing is recorded on this host.", "Run host_state with phase: record first.")
        still = Packages(context).differences()
        if still:
            raise TopovirtError(f"Packages are missing:{guard.as_list(still)}", "Install them, then run again.")
        shown = self._as_recorded(due, Packages(context).close())
        failed = Boot(context).failed_trial()
        self._make(context, due)
        if due and context.journal.state == "recorded":
            context.journal.set_state("applied")
        report = self._report(context, shown, bool(due))
        report.reboot_required = Boot(context).reboot_required()
        if failed:
            report.warnings.append(f"{failure(failed, last_words(self.run))} The entry is armed for another try.")
        return report

    def verify(self, given: Mapping[str, Any]) -> Report:
        """Compare the effective state with the wanted one, as far as it does not wait for ``commit``."""
        # Until the boot is complete a service that is still starting would look like one that failed. The answer does
        # not matter: a host with some other failed unit is "degraded". A trial boot must be left time for the rest.
        patience = confirm_timeout_of(given) // 2
        output(self.run, "timeout", str(patience), "systemctl", "is-system-running", "--wait")
        context = self._context(given)
        failed = Boot(context).failed_trial()
        if failed:
            raise TopovirtError(
                failure(failed, last_words(self.run)),
                "Correct what kept it from coming up, then run again: that arms another try.",
            )
        report = self._report(context, [], False)
        report.confirm_within = Trial(context).seconds_left()
        report.differences = self._differences(context, self._planned(context))
        if not context.journal.exists:
            report.differences.insert(0, "the host is not converted: there is no journal")
        return report

    def commit(self, given: Mapping[str, Any], check: bool) -> Report:
        """Make what was verified permanent. Refuses while something differs that this phase does not set itself."""
        context = self._context(given)
        planned = self._planned(context)
        changes = [change for change in planned if change.stage == "commit"]
        if check:
            return self._report(context, changes, bool(changes))
        self._demand(self._differences(context, planned), "so nothing is made permanent")
        Trial(context).confirm()
        self._make(context, changes)
        self._demand(self._differences(context, []), "after its last changes")
        context.journal.set_state("committed")
        return self._report(context, changes, bool(changes))

    # --- back to bare metal ---

    def plan_back(self, discard: bool = False) -> Report:
        """What the way back would restore; refuses while VMs are there."""
        context = self._context_back()
        self._refuse_back(context, discard)
        report = self._report(context, self._planned_back(context), False)
        report.changed = bool(context.journal.leftovers())
        report.reboot_required = bool(token_of(context.topology["host"]["cmdline"]))
        return report

    def undo(self, discard: bool, check: bool) -> Report:
        """The first half: everything that must be back before the host boots its old entry."""
        report = self.plan_back(discard)
        context = self._context_back()
        early = [record for record in self._open(context) if self._step(context, record["step"]).early()]
        report.plan = [change for change in report.plan if change.key in {key_of(record) for record in early}]
        report.changed = bool(early)
        if not check and context.journal.exists:
            context.journal.set_state("undoing")
            self._unmake(context, early)
            report.state, report.kept = context.journal.state, context.kept
        return report

    def finish(self, discard: bool, check: bool) -> Report:
        """The second half, under the old boot entry: everything else, then the journal itself.

        Check mode takes it that the first half was done before, as in the real run.
        """
        report = self.plan_back(discard)
        context = self._context_back()
        if check:
            report.plan = [change for change in report.plan if not self._step(context, change.step).early()]
            return report
        if report.reboot_required:
            raise TopovirtError(
                f"The host still runs the boot entry of its conversion (id {context.id}).",
                "Run phase: undo, reboot, then phase: finish.",
            )
        if context.journal.exists:
            context.journal.set_state("undoing")
            self._unmake(context, self._open(context))
        context.journal.remove()
        report.state, report.kept = "none", context.kept
        return report

    def find(self) -> List[Tuple[Key, str]]:
        """What became of everything that the conversion touched."""
        context = self._context_back()
        afters, done = context.journal.afters(), set(context.journal.undone())
        return [
            (key, self._step(context, key[0]).find(Thing(key[1], key[2], record["prior"], afters[key])))
            for key, record in context.journal.first_priors().items()
            if key not in done
        ]

    # --- inside ---

    def _context(self, given: Mapping[str, Any]) -> Context:
        journal = Journal(self.root)
        if journal.state == "undoing":
            raise TopovirtError(
                "A way back to bare metal is under way on this host.",
                "Finish it first: run convert-to-bare-metal again.",
            )
        topology = self.topology()
        flags = _text(self.root / "proc/cpuinfo")
        wanted = resolve(given, topology, committed_state(self.root), " pdpe1gb" in flags)
        return self._with(journal, topology, wanted, journal.id or identity(self.root))

    def _differences(self, context: Context, planned: Sequence[Change]) -> List[str]:
        """What is not as wanted; steps whose effect comes with the commit are left out while that is to come."""
        late = {change.step for change in planned if change.stage == "commit"} - {Boot.name}
        return [text for step in self._steps(context) if step.name not in late for text in step.differences()]

    @staticmethod
    def _demand(wrong: Sequence[str], what: str) -> None:
        if wrong:
            raise TopovirtError(
                f"The host is not as wanted, {what}:{guard.as_list(wrong)}",
                "Until a conversion is committed, the next reboot starts the old boot entry.",
            )

    def _context_back(self) -> Context:
        journal, topology = Journal(self.root), self.topology()
        return self._with(journal, topology, nothing(), journal.id)

    def _with(self, journal: Journal, topology: Topology, wanted: Wanted, identifier: str) -> Context:
        return Context(self.root, self.run, journal, topology, wanted, identifier, self.write, self.write_config)

    def _steps(self, context: Context) -> List[Step]:
        return [kind(context) for kind in STEPS]

    def _step(self, context: Context, name: str) -> Step:
        return next(kind(context) for kind in STEPS if kind.name == name)

    def _planned(self, context: Context) -> List[Change]:
        """All changes that are due.

        :raises TopovirtError: where the host is of a kind for which none can be planned.
        """
        obstacles = boot_obstacles(self.root, self.run)
        for step in (Sriov(context), PcieAccess(context), Tuned(context)):
            obstacles += step.obstacles()
        if obstacles:
            self._raise([*self._reasons(context, True), *obstacles])  # what is not planned is not weighed for space
        return chained(unique([change for step in self._steps(context) for change in step.plan()]))

    def _refuse(self, context: Context, changes: Sequence[Change], more: Sequence[str] = ()) -> None:
        reasons = [*self._reasons(context, bool(changes)), *surroundings.space(self.root, changes, self.free), *more]
        if reasons:
            self._raise(reasons)

    def _reasons(self, context: Context, changes: bool) -> List[str]:
        """VMs that run speak against changes, not against looking."""
        reasons = guard.reasons_against(self.root, self.run, context.topology, context.wanted)
        reasons += [
            f"topovirt.kvm.{face} has changed this host. Restore it first: topovirt.kvm.{face} with state: restored"
            for face in faces_in_force(self.root)
            if face not in APART
        ]
        if changes:
            reasons += guard.vms_in_the_way(self.root)
            reasons += surroundings.versions(context.topology)
            reasons += [
                other.reason("kvm_host_tolerate")
                for other in self._competitors(context)
                if other.severity == CONFLICT and other.name not in context.wanted.tolerate
            ]
        if context.journal.state in ("none", "begun"):
            reasons += surroundings.pending_reboot(self.root, self.run, context.topology)
        return reasons

    def _competitors(self, context: Context) -> List[Competitor]:
        found = competitors(self.root, self.run, context.topology, context.wanted.devices)
        return [other for other in found if not other.now_only]

    @staticmethod
    def _raise(reasons: Sequence[str]) -> None:
        raise TopovirtError(f"This host must not be changed:{guard.as_list(reasons)}", "Nothing was changed.")

    def _refuse_back(self, context: Context, discard: bool) -> None:
        before = set(context.journal.note("vms") or [])
        reasons = [f"VM {name} is running: stop and delete it first" for name in guard.running_vms(self.root)]
        reasons += [
            f"VM {name} is defined: delete it first"
            for name in guard.defined_vms(self.root)
            if name not in before and context.journal.exists
        ]
        reasons += [f"{process} runs a VM: stop it first" for process in guard.other_processes(self.root)]
        if context.journal.exists and not discard:
            reasons += Packages(context).obstacles()
        if reasons:
            raise TopovirtError(
                f"The host cannot go back to bare metal:{guard.as_list(reasons)}", "Nothing was changed."
            )

    def _make(self, context: Context, changes: Sequence[Change]) -> None:
        """Journal, then apply, step by step."""
        for step in self._steps(context):
            own = [change for change in changes if change.step == step.name]
            if not own:
                continue
            numbers = [context.journal.intent(change.key, step.prior(change), change.after) for change in own]
            step.apply(own)
            for number in numbers:
                context.journal.outcome(number)
        self._reload(context)

    @staticmethod
    def _as_recorded(changes: Sequence[Change], brought: Sequence[str]) -> List[Change]:
        """Changes as seen from the state that was recorded: a file that a package has brought since was not there."""
        return [
            replace(change, before=None) if change.kind == "file" and _lies_in(change.what, brought) else change
            for change in changes
        ]

    def _open(self, context: Context) -> List[Record]:
        """First touches that are not undone yet, the newest first."""
        done = set(context.journal.undone())
        return [record for key, record in reversed(list(context.journal.first_priors().items())) if key not in done]

    def _unmake(self, context: Context, records: Sequence[Record]) -> None:
        """Undo first touches. Devices of one step go together, files one by one."""
        rest = list(records)
        while rest:
            name, kind = rest[0]["step"], rest[0]["change"]
            together = [r for r in rest if (r["step"], r["change"]) == (name, kind)] if kind == "device" else rest[:1]
            rest = [record for record in rest if record not in together]
            self._step(context, name).undo([Touched(r["change"], r["what"], r["prior"]) for r in together])
            for record in together:
                context.journal.mark_undone(key_of(record))
        self._reload(context)

    def _reload(self, context: Context) -> None:
        if context.units_changed:
            self.run(["systemctl", "daemon-reload"])

    def _planned_back(self, context: Context) -> List[Change]:
        """What is put back, and to what: a file that a package brought goes with it, one that is gone needs nothing,
        and of a path that several changes touched the oldest state counts."""
        brought = Packages(context).brought()
        records = self._open(context)
        oldest = {record["what"]: record for record in records if _is_of_path(record)}
        changes = []
        for record in records:
            what, prior = record["what"], record["prior"]
            if _is_of_path(record):
                prior = {"type": "absent"} if _lies_in(what, brought) else prior
                gone = prior["type"] == "absent" and not os.path.lexists(self.root / what)
                if gone or oldest[what] is not record:
                    continue
            changes.append(Change(record["step"], record["change"], what, record["after"], prior, "undo"))
        return changes

    def _report(self, context: Context, changes: List[Change], changed: bool) -> Report:
        return Report(context.id, context.journal.state, changes, changed, any(c.reboot for c in changes))


def identity(root: Path) -> str:
    """The id of a conversion: the same at each try on one host, so that check mode can tell exactly what will be."""
    return digest(f"{TOKEN} {machine_id(root)}".encode("ascii"))[:8]


def chained(changes: Sequence[Change]) -> List[Change]:
    """Changes in which what one stage makes of a file is what the next stage finds."""
    texts: Dict[Key, str] = {}
    result = []
    for change in sorted(changes, key=lambda c: c.stage == "commit"):
        if change.kind == "file":
            if texts.get(change.key) != change.after["text"]:  # else an earlier stage has written it already
                result.append(replace(change, before=texts.get(change.key, change.before)))
            texts[change.key] = change.after["text"]
        else:
            result.append(change)
    return result


def _is_of_path(record: Record) -> bool:
    """Whether its prior state is that of a path, see ``files.State``."""
    return isinstance(record["prior"], dict) and "type" in record["prior"]


def _lies_in(what: str, paths: Sequence[str]) -> bool:
    return any(what == path or what.startswith(f"{path}/") for path in paths)


def _text(path: Path) -> str:
    try:
        return path.read_text(encoding="utf-8", errors="replace")
    except OSError:
        return ""


def describe(change: Change) -> Dict[str, Any]:
    """A change as a module returns it, without whole files."""
    before, after = change.before, change.after
    if isinstance(after, dict) and "text" in after:
        before, after = ("present" if before is not None else None), "present"
    elif change.stage == "undo":
        before, after = None, _prior_in_words(change.after)
    return {
        "step": change.step,
        "kind": change.kind,
        "what": change.what,
        "before": before,
        "after": after,
        "stage": change.stage,
        "reboot": change.reboot,
    }


def _prior_in_words(prior: Any) -> Optional[str]:
    if isinstance(prior, dict) and "type" in prior:
        return "absent" if prior["type"] == "absent" else f"the saved {prior['type']}"
    if isinstance(prior, dict) and "driver" in prior:
        return f"driver {prior['driver'] or 'none'}"
    if isinstance(prior, dict) and "autoprobe" in prior:
        return f"{prior['number']} as before"
    if isinstance(prior, dict) and "inventory" in prior:
        return f"as before, with {len(prior['packages'])} packages"
    return None if prior is None else str(prior)
