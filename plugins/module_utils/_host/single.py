# Copyright: the topovirt.kvm authors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Run one step alone, with a journal of its own: plan, refuse, journal, apply, verify; all of it or nothing.

A conversion adds a boot entry and leaves what is there. Who wants one thing only wants it in what is there, at every
boot. So the way back is exact for what nobody else touched meanwhile, and leaves the rest to who changed it.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Callable, Dict, List, Sequence, Tuple

from ansible_collections.topovirt.kvm.plugins.module_utils._errors import TopovirtError
from ansible_collections.topovirt.kvm.plugins.module_utils._host.files import capture, digest, write_file
from ansible_collections.topovirt.kvm.plugins.module_utils._host.guard import as_list, vms_in_the_way
from ansible_collections.topovirt.kvm.plugins.module_utils._host.journal import Journal, Key
from ansible_collections.topovirt.kvm.plugins.module_utils._host.places import APART, FACES, Run
from ansible_collections.topovirt.kvm.plugins.module_utils._host.registers import WriteConfig, write_config
from ansible_collections.topovirt.kvm.plugins.module_utils._host.step import (
    AS_BEFORE,
    AS_WRITTEN,
    Alone,
    Change,
    Context,
    Step,
    Thing,
    encoded,
    unique,
    write_attribute,
)
from ansible_collections.topovirt.kvm.plugins.module_utils._host.wanted import nothing
from ansible_collections.topovirt.kvm.plugins.module_utils._topology.model import Topology

# Makes the step, and completes the context's wanted state where the step looks there.
Build = Callable[[Context], Step]


@dataclass
class Done:
    """What a run did, or in check mode would do."""

    plan: List[Change] = field(default_factory=list)
    changed: bool = False
    journal: str = "none"
    reboot_required: bool = False
    kept: List[str] = field(default_factory=list)
    results: Dict[str, Any] = field(default_factory=dict)


@dataclass
class Single:
    """One step of this name. ``topology`` reads the machine when it is called."""

    name: str
    root: Path
    run: Run
    topology: Callable[[], Topology]
    build: Build
    at_once: bool = True
    write: Callable[[Path, str], None] = write_attribute
    write_config: WriteConfig = write_config

    def present(self, check: bool) -> Done:
        """Make the host as wanted.

        :raises TopovirtError: for a refusal, with all reasons, before any change; for a failure, after which everything
            is as it was.
        """
        self._demand_no_other_owner()
        context, step = self._step()
        self._refuse(step.obstacles())
        changes = unique(step.plan())
        self._refuse(self._vms(step) if changes else [])
        done = Done(changes, bool(changes), context.journal.state, any(c.reboot for c in changes), [])
        done.results = step.results(changes)
        if changes and not check:
            self._make(context, step, changes)
            done.journal = context.journal.state
        if not changes or not check:
            done.reboot_required = done.reboot_required or self._step()[1].reboot_required()
        return done

    def restored(self, check: bool) -> Done:
        """Put back what was."""
        journal = Journal(self.root, FACES / self.name)
        if not journal.leftovers():
            return Done()
        if not journal.exists:  # a removal was cut off
            if not check:
                journal.remove()
            return Done(changed=True)
        context, step = self._step(begun=True)
        self._refuse([*self._vms(step), *step.obstacles_back()])
        found = [(thing, step.find(thing)) for thing in things(journal)]
        own = [thing for thing, state in found if state == AS_WRITTEN]
        done = Done([_back(step, thing) for thing in own], True, journal.state)
        mended = step.inherited()
        done.plan += [_less(step, self.root, path, text) for path, text in mended.items()]
        for thing, state in found:
            if state in (AS_BEFORE, AS_WRITTEN):
                continue
            rest = step.without_ours(thing)
            told = "that stays, less what is ours" if rest is not None else "that stays"
            done.kept.append(f"{thing.kind} {_shown(thing)}: {state} meanwhile, so {told}")
            if rest is not None:
                mended[thing.what] = rest
                less = _less(step, self.root, thing.what, rest)
                done.plan += [less] if less.before != rest else []
        done.reboot_required = step.reboot_required()
        if check:
            return done
        journal.set_state("undoing")
        try:
            step.undo([thing.touched for thing in own])
            for path, text in mended.items():
                _rewrite(self.root / path, text)
        except OSError as error:
            raise TopovirtError(f"Not everything could be put back: {error}.", "Correct it and run again.") from None
        self._reload(context)
        journal.remove()
        done.kept += context.kept
        done.journal = "none"
        return done

    def find(self) -> List[Tuple[Key, str]]:
        """What became of everything that was touched."""
        context, step = self._step(begun=True)
        return [((step.name, thing.kind, thing.what), step.find(thing)) for thing in things(context.journal)[::-1]]

    # --- inside ---

    @staticmethod
    def _refuse(reasons: Sequence[str]) -> None:
        if reasons:
            raise TopovirtError(f"This host must not be changed:{as_list(reasons)}", "Nothing was changed.")

    def _vms(self, step: Step) -> List[str]:
        """VMs that run, where they would be disturbed."""
        return vms_in_the_way(self.root) if step.disturbs_vms else []

    def _demand_no_other_owner(self) -> None:
        if Journal(self.root).exists and self.name not in APART:
            raise TopovirtError(
                "This host is converted to a KVM host, which says all of this at once.",
                "Change the kvm_host_* variables and convert again instead. Nothing was changed.",
            )
        if Journal(self.root, FACES / self.name).state == "undoing":
            raise TopovirtError(
                f"A restoration by topovirt.kvm.{self.name} was cut off on this host.",
                f"Finish it first: topovirt.kvm.{self.name} with state: restored. Nothing was changed.",
            )

    def _step(self, begun: bool = False) -> Tuple[Context, Step]:
        journal = Journal(self.root, FACES / self.name)
        context = Context(
            self.root,
            self.run,
            journal,
            self.topology(),
            nothing(),
            self.name,
            self.write,
            self.write_config,
            alone=Alone(self.at_once or begun),
        )
        return context, self.build(context)

    def _make(self, context: Context, step: Step, changes: Sequence[Change]) -> None:
        journal = context.journal
        if not journal.exists:
            journal.begin(self.name)
        journal.set_state("changing")
        try:
            numbers = [journal.intent(change.key, step.prior(change), change.after) for change in changes]
            step.apply(changes)
            for number in numbers:
                journal.outcome(number)
            self._reload(context)
            wrong = self._step()[1].differences() if self.at_once else []
            if wrong:
                raise TopovirtError(f"The effect is not as wanted:{as_list(wrong)}")
        except (TopovirtError, OSError) as error:
            message, hint = (error.message, error.hint) if isinstance(error, TopovirtError) else (f"{error}.", "")
            left = self._roll_back(context, step)
            state = f"Not everything could be put back: {left}" if left else "Everything is as it was before."
            between = "\n" if "\n" in message else " "
            raise TopovirtError(f"{message}{between}{state}", hint) from None
        journal.set_state("applied")

    def _roll_back(self, context: Context, step: Step) -> str:
        """Put back what was when all was last as some run wanted it; returns what went wrong, if anything."""
        journal = context.journal
        touched = things(journal, since="applied")
        try:
            step.undo([thing.touched for thing in touched if step.find(thing) != AS_BEFORE])
            self._reload(context)
        except TopovirtError as error:
            return f"{error.message} Run again with state: restored."
        except OSError as error:
            return f"{error}. Run again with state: restored."
        if any(record["kind"] == "state" and record["state"] == "applied" for record in journal.records):
            journal.set_state("applied")
        else:
            journal.remove()
        return ""

    def _reload(self, context: Context) -> None:
        if context.units_changed:
            self.run(["systemctl", "daemon-reload"])


def things(journal: Journal, since: str = "") -> List[Thing]:
    """Everything that the journal says was touched, the newest first.

    :param since: a state of the journal: only what was touched after it.
    """
    afters = journal.afters()
    first = reversed(list(journal.priors_since(since).items()))
    return [Thing(key[1], key[2], record["prior"], afters[key]) for key, record in first]


def _less(step: Step, root: Path, path: str, text: str) -> Change:
    before = (root / path).read_text(encoding="utf-8", errors="surrogateescape")
    return Change(step.name, "file", path, before, {"text": text}, "undo")


def _rewrite(path: Path, text: str) -> None:
    """Another text in a file that somebody else made, with that one's owner and attributes."""
    state = capture(path, digest)
    write_file(path, encoded(text), state["mode"], {key: value for key, value in state.items() if key != "mtime_ns"})


def _back(step: Step, thing: Thing) -> Change:
    return Change(step.name, thing.kind, thing.what, thing.afters[-1], thing.prior, "undo")


def _shown(thing: Thing) -> str:
    return f"/{thing.what}" if thing.kind in ("file", "link", "directory") else thing.what
