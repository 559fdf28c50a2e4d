# Copyright: the topovirt.kvm authors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""The TuneD profile of a host as it is: a stock one, or one of ours that includes it, with isolated cores.

``tuned-adm`` switches it and TuneD writes more files than it says: the state of all of them goes into the journal.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import Any, Dict, Iterator, List, Mapping, Optional, Sequence, Set

from ansible_collections.topovirt.kvm.plugins.module_utils._errors import TopovirtError
from ansible_collections.topovirt.kvm.plugins.module_utils._host.cmdline.arguments import split
from ansible_collections.topovirt.kvm.plugins.module_utils._host.cmdline.bls import ENTRIES
from ansible_collections.topovirt.kvm.plugins.module_utils._host.cmdline.environment import (
    EnvironmentBlock,
    variables_of,
)
from ansible_collections.topovirt.kvm.plugins.module_utils._host.files import State, capture, content, digest, restore
from ansible_collections.topovirt.kvm.plugins.module_utils._host.services import unit_state
from ansible_collections.topovirt.kvm.plugins.module_utils._host.step import (
    AS_BEFORE,
    AS_WRITTEN,
    CHANGED,
    Change,
    Context,
    Step,
    Thing,
    Touched,
)
from ansible_collections.topovirt.kvm.plugins.module_utils._host.tuned import (
    BOOT,
    PROFILE,
    active_profile,
    boot_words,
    plan_profile,
)
from ansible_collections.topovirt.kvm.plugins.module_utils._topology.cpulist import format_cpulist, parse_cpulist

_UNIT = "tuned.service"
_PLACES = ("etc/tuned/profiles", "etc/tuned", "usr/lib/tuned/profiles", "usr/lib/tuned")
_VARIABLES = "etc/tuned/cpu-partitioning-variables.conf"
_MODE = "etc/tuned/profile_mode"
_ENVIRONMENTS = ("boot/grub2/grubenv", "boot/grub/grubenv")
_BOOT_VARIABLES = ("tuned_params", "tuned_initrd")
# What TuneD and its boot loader plugin write when a profile is switched (plugin_bootloader.py of TuneD 2.2x).
_WRITTEN = (
    "etc/tuned/active_profile",
    _MODE,
    BOOT,
    *_ENVIRONMENTS,
    "boot/grub2/grub.cfg",
    "boot/grub/grub.cfg",
    "etc/default/grub",
)

_PARTITIONING = "cpu-partitioning"
_KIND, _NOTE = "profile", "written"


@dataclass(frozen=True)
class WantedProfile:
    name: str
    include: Optional[str] = None  # of a profile of ours
    isolated: Optional[List[int]] = None


class TunedProfile(Step):
    """The active TuneD profile, and what it needs."""

    name = "tuned_profile"

    def __init__(self, context: Context, wanted: Optional[WantedProfile]) -> None:
        super().__init__(context)
        self._wanted = wanted

    def obstacles(self) -> List[str]:
        return list(self._obstacles())

    def read(self) -> Dict[str, Any]:
        return {"active": active_profile(self.context.run), "mode": self._text(_MODE).strip() or None}

    def plan(self) -> List[Change]:
        wanted = self._demand()
        changes: List[Change] = []
        if wanted.include is not None:
            kept = sorted(self._cpus() - set(wanted.isolated)) if wanted.isolated else []
            changes += plan_profile(self, wanted.include, kept)
        if wanted.isolated and wanted.include == _PARTITIONING:
            text = _with_isolated(self._text(_VARIABLES), format_cpulist(wanted.isolated))
            changes += self.plan_file(_VARIABLES, text)
        active = self.read()["active"]
        if changes or active != wanted.name:
            partitioned = _PARTITIONING in (wanted.name, wanted.include)  # its kernel arguments wait for the next boot
            changes.append(Change(self.name, _KIND, "active", active, wanted.name, reboot=partitioned))
        return changes

    def results(self, changes: Sequence[Change]) -> Dict[str, Any]:
        return {"active": self.read()["active"]}

    def reboot_required(self) -> bool:
        """Whether the running kernel lacks arguments of the active profile, or has those that the way back takes."""
        running = set(split(self.context.topology["host"]["cmdline"]))
        profile = set(boot_words(self._text(BOOT)))
        if self._wanted is not None:
            return bool(profile - running)
        states = [prior["files"][BOOT] for prior in self._priors()]
        before = {word for state in states for word in boot_words(self._content(state))}
        return bool((profile - before) & running)

    def differences(self) -> List[str]:
        wanted, found = self._demand().name, self.read()["active"]
        return [] if found == wanted else [f"TuneD: wanted profile {wanted}, active is {found or 'none'}"]

    def prior(self, change: Change) -> Any:
        if change.kind != _KIND:
            return super().prior(change)
        save = self.context.journal.save
        return {**self.read(), "files": {path: capture(self._path(path), save) for path in self._written()}}

    def find(self, thing: Thing) -> str:
        if thing.kind != _KIND:
            return super().find(thing)
        now = self.read()["active"]
        if now == thing.prior["active"] and all(
            self._state(path) == state for path, state in thing.prior["files"].items()
        ):
            return AS_BEFORE
        return AS_WRITTEN if now in (*thing.afters, thing.prior["active"]) else CHANGED

    def apply(self, changes: Sequence[Change]) -> None:
        super().apply([change for change in changes if change.kind != _KIND])
        journal = self.context.journal
        for change in changes:
            if change.kind == _KIND:
                journal.add_note(_NOTE, None)
                self._switch("profile", change.after)
                journal.add_note(_NOTE, {path: self._digest(path) for path in self._written()})

    def undo(self, touched: Sequence[Touched]) -> None:
        super().undo([thing for thing in touched if thing.kind != _KIND])  # what the old profile reads
        for thing in touched:
            if thing.kind == _KIND:
                self._back(thing.prior)

    # --- inside

    def _demand(self) -> WantedProfile:
        if self._wanted is None:
            raise TopovirtError("No profile is wanted.")
        return self._wanted

    def _obstacles(self) -> Iterator[str]:
        wanted = self._demand()
        state = unit_state(self.context.run, _UNIT)
        if state["enabled"] != "enabled" or not state["active"]:
            yield (
                f"{_UNIT} is {state['enabled']} and {'active' if state['active'] else 'inactive'}: install TuneD and "
                f"run systemctl enable --now {_UNIT}"
            )
        base = wanted.include or wanted.name
        if not any((self.context.root / place / base / "tuned.conf").is_file() for place in _PLACES):
            yield f"there is no TuneD profile {base}: name another one, or install the package that has it"
        isolated = set(wanted.isolated or [])
        missing = isolated - self._cpus()
        if missing:
            yield f"isolated_cores names CPUs {format_cpulist(missing)}, which this host does not have"
        for node in self.context.topology["numa_nodes"]:
            cpus = set(parse_cpulist(node["cpus"]))
            if cpus and not cpus - isolated:
                yield f"isolated_cores leaves node {node['id']} no CPU of {node['cpus']}: the host needs at least one"

    def _cpus(self) -> Set[int]:
        return {cpu for core in self.context.topology["cores"] for cpu in core["threads"]}

    def _switch(self, *words: str) -> None:
        status, out, errors = self.context.run(["tuned-adm", *words])
        if status != 0:
            said = (errors or out).strip()
            raise TopovirtError(f"tuned-adm {' '.join(words)} failed: {said}.", "Look at: journalctl -u tuned")

    def _back(self, prior: Mapping[str, Any]) -> None:
        """Let TuneD take its settings back, then put back the files that nobody else wrote meanwhile."""
        made: Optional[Dict[str, str]] = self.context.journal.note(_NOTE)
        own = [path for path in prior["files"] if made is None or made.get(path) == self._digest(path)]
        if prior["active"] is None:
            self._switch("off")
        elif prior["mode"] == "auto":
            self._switch("auto_profile")
        else:
            self._switch("profile", prior["active"])
        for path, state in prior["files"].items():
            if path in own:
                restore(self._path(path), state, self.context.journal.load)
            elif path in _ENVIRONMENTS:
                self._restore_variables(path, state)
            elif self._state(path) != state:
                self.context.kept.append(f"file /{path}: {CHANGED} meanwhile, so that stays, as TuneD left it")

    def _restore_variables(self, path: str, state: State) -> None:
        """Only those of TuneD: boot loader and system keep others in the same block."""
        before = variables_of(content(state, self.context.journal.load) or b"")
        tool = "grub2-editenv" if path.startswith("boot/grub2") else "grub-editenv"
        block = EnvironmentBlock(self.context.root, self.context.run, path, tool)
        for name in _BOOT_VARIABLES:
            if block.get(name) != before.get(name, ""):
                block.set(name, before.get(name, ""))

    def _written(self) -> List[str]:
        entries = sorted((self.context.root / ENTRIES).glob("*.conf"))
        return [*_WRITTEN, *(f"{ENTRIES}/{path.name}" for path in entries)]

    def _priors(self) -> List[Mapping[str, Any]]:
        first = self.context.journal.first_priors()
        return [record["prior"] for (_step, kind, _what), record in first.items() if kind == _KIND]

    def _state(self, path: str) -> State:
        return capture(self._path(path), digest)

    def _content(self, state: State) -> str:
        return (content(state, self.context.journal.load) or b"").decode("utf-8", "replace")

    def _text(self, path: str) -> str:
        file = self._path(path)
        return file.read_text(encoding="utf-8", errors="surrogateescape") if file.is_file() else ""

    def _digest(self, path: str) -> Optional[str]:
        file = self._path(path)
        return digest(file.read_bytes()) if file.is_file() else None


def wanted_profile(options: Mapping[str, Any]) -> WantedProfile:
    """What an operator asks for.

    :raises TopovirtError: when it is not one profile.
    """
    own = options.get("own")
    if bool(own) == bool(options.get("profile")):
        raise TopovirtError("Exactly one of profile and own says which profile is wanted.", "Nothing was changed.")
    if not own:
        return WantedProfile(str(options["profile"]))
    cpus = own.get("isolated_cores")
    isolated = parse_cpulist(str(cpus)) if cpus is not None else None
    if isolated == []:
        raise TopovirtError("own.isolated_cores names no CPU.", "Leave it out, or name some, like 2-3,8.")
    if own["include"] == _PARTITIONING and isolated is None:
        raise TopovirtError("own.include cpu-partitioning needs own.isolated_cores.", "Nothing was changed.")
    return WantedProfile(PROFILE, str(own["include"]), isolated)


def _with_isolated(text: str, cpus: str) -> str:
    """The variables file with these isolated cores and everything else as it is."""
    pattern = re.compile(r"^[ \t]*isolated_cores[ \t]*=.*$", re.MULTILINE)
    line = f"isolated_cores={cpus}"
    if pattern.search(text):
        return pattern.sub(line, text)
    return f"{text}{'' if not text or text.endswith(chr(10)) else chr(10)}{line}\n"
