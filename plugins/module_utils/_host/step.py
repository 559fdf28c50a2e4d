# Copyright: the topovirt.kvm authors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""A step of the conversion: it reads, plans changes as data, applies them, undoes them and verifies the effect."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Callable, ClassVar, Dict, List, NamedTuple, Optional, Sequence, Tuple

from ansible_collections.topovirt.kvm.plugins.module_utils._errors import TopovirtError
from ansible_collections.topovirt.kvm.plugins.module_utils._host.files import (
    State,
    capture,
    contents,
    digest,
    remove_tree,
    restore,
    write_file,
    write_link,
)
from ansible_collections.topovirt.kvm.plugins.module_utils._host.journal import Journal, Key
from ansible_collections.topovirt.kvm.plugins.module_utils._host.places import TOKEN, Run, token_of
from ansible_collections.topovirt.kvm.plugins.module_utils._host.registers import WriteConfig, write_config
from ansible_collections.topovirt.kvm.plugins.module_utils._host.wanted import Wanted
from ansible_collections.topovirt.kvm.plugins.module_utils._topology.model import Topology


@dataclass(frozen=True)
class Change:
    """One difference between what is and what shall be. Plain data: check mode shows it, the real run executes it."""

    step: str
    kind: str  # "file", "link", "directory", "removal" of a file, or one of the step's own
    what: str  # path, unit, BDF, package
    before: Any
    after: Any  # for a file {"text", "mode"}, for a link {"target"}
    stage: str = "apply"  # "packages": by the package manager; "apply"; "commit": after the new boot was verified
    reboot: bool = False  # takes effect with the next boot only

    @property
    def key(self) -> Key:
        return (self.step, self.kind, self.what)


class Touched(NamedTuple):
    """Something that was changed, with its state before the first change."""

    kind: str
    what: str
    prior: Any


class Thing(NamedTuple):
    """Something that a journal says was touched."""

    kind: str
    what: str
    prior: Any
    afters: Sequence[Any]  # what it was to become, by each touch

    @property
    def touched(self) -> Touched:
        return Touched(self.kind, self.what, self.prior)


# What became of something that was touched.
AS_BEFORE, AS_WRITTEN, CHANGED, GONE = "as before", "as written", "changed by somebody", "gone"
NOT_COMPARED = "not compared"
_ON_DISK = ("file", "link", "directory", "removal")


@dataclass(frozen=True)
class Alone:
    """That a step is no part of a conversion: what it makes acts at every boot."""

    at_once: bool  # also in the running system


def write_attribute(path: Path, text: str) -> None:
    """Write a sysfs attribute of the running kernel."""
    with path.open("w", encoding="ascii") as file:
        file.write(text)


@dataclass
class Context:
    """What every step works on."""

    root: Path
    run: Run
    journal: Journal
    topology: Topology
    wanted: Wanted
    id: str  # of this conversion
    write: Callable[[Path, str], None] = write_attribute
    write_config: WriteConfig = write_config
    units_changed: bool = False
    kept: List[str] = field(default_factory=list)  # what a way back left in place, and why
    alone: Optional[Alone] = None

    @property
    def under_token(self) -> bool:
        """Whether the host runs the boot entry of this conversion."""
        return bool(self.id) and token_of(self.topology["host"]["cmdline"]) == self.id

    @property
    def acts_now(self) -> bool:
        """Whether what is made takes effect in the running system, too."""
        return self.under_token if self.alone is None else self.alone.at_once

    @property
    def condition(self) -> str:
        """Line of a systemd unit that says when it acts."""
        return f"ConditionKernelCommandLine={TOKEN}={self.id}\n" if self.alone is None else ""


class Step:
    """Base of all steps; knows files, links and directories.

    ``obstacles``, ``obstacles_back``, ``results``, ``find`` and ``without_ours`` are for a step that stands alone
    (``single.py``).
    """

    name: ClassVar[str]
    disturbs_vms: ClassVar[bool] = False  # whether what it changes is in the way of VMs that run

    def __init__(self, context: Context) -> None:
        self.context = context

    def read(self) -> Dict[str, Any]:
        """The effective and the persistent state that this step is about."""
        raise NotImplementedError

    def plan(self) -> List[Change]:
        """What has to change; empty when the host is as wanted. Changes nothing."""
        raise NotImplementedError

    def obstacles(self) -> List[str]:
        """Why the changes cannot, or must not, be made: a sentence each."""
        return []

    def obstacles_back(self) -> List[str]:
        """Why the changes cannot, or must not, be taken back: a sentence each."""
        return []

    def results(self, changes: Sequence[Change]) -> Dict[str, Any]:
        """What a module returns beside the changes, before they are made."""
        return {}

    def reboot_required(self) -> bool:
        """Whether the running system is not what the next boot will make of it."""
        return False

    def find(self, thing: Thing) -> str:
        """What became of something that was touched: AS_BEFORE, AS_WRITTEN, CHANGED or GONE, and NOT_COMPARED for kinds
        that only a conversion has."""
        if thing.kind not in _ON_DISK:
            return NOT_COMPARED
        path = self._path(thing.what)
        now = capture(path, digest)
        if _but_time(now) == _but_time(thing.prior):
            return AS_BEFORE
        if now["type"] == "absent":
            return AS_WRITTEN if thing.kind == "removal" else GONE
        return AS_WRITTEN if any(self._is(now, thing.kind, after) for after in thing.afters) else CHANGED

    def without_ours(self, thing: Thing) -> Optional[str]:
        """The text of a file that somebody changed meanwhile, less what is ours; ``None`` where nothing can be told."""
        return None

    def inherited(self) -> Dict[str, str]:
        """Files that nobody of us touched and that have something of ours, with their text without it."""
        return {}

    def early(self) -> bool:
        """Whether the step is undone before the reboot of the way back; the others are after it."""
        return False

    def differences(self) -> List[str]:
        """Where the effective state is not the wanted one, a sentence each."""
        return []

    def prior(self, change: Change) -> Any:
        """The exact state before a change, for the journal."""
        return capture(self._path(change.what), self.context.journal.save)

    def apply(self, changes: Sequence[Change]) -> None:
        """Make changes of this step; all priors are in the journal. May be repeated after an interruption."""
        for change in changes:
            path = self._path(change.what)
            if change.kind == "directory":
                path.mkdir(mode=change.after["mode"], exist_ok=True)
                path.chmod(change.after["mode"])
            elif change.kind == "link":
                write_link(path, change.after["target"])
            elif change.kind == "removal":
                remove_tree(path)
            elif change.kind == "file":
                write_file(path, encoded(change.after["text"]), change.after["mode"])
            else:
                raise TopovirtError(f"Step {self.name} cannot apply a change of kind {change.kind}.")
            self._note_unit(change.what)

    def undo(self, touched: Sequence[Touched]) -> None:
        """Put things back, in the given order. May be repeated after an interruption."""
        for thing in touched:
            path = self._path(thing.what)
            if path.parent.is_dir():  # its directory may have gone with a package
                restore(path, thing.prior, self.context.journal.load)
            if thing.kind == "directory" and thing.prior["type"] == "absent" and path.is_dir():
                self.context.kept.append(f"directory /{thing.what}: it holds files that are not ours")
            self._note_unit(thing.what)

    # --- planning helpers ---

    def plan_file(
        self, what: str, text: str, mode: int = 0o644, stage: str = "apply", reboot: bool = False
    ) -> List[Change]:
        """Changes that make ``what`` (relative to the root) a file with this text, directories above it included."""
        path = self._path(what)
        before = path.read_text(encoding="utf-8", errors="surrogateescape") if path.is_file() else None
        if before == text and path.stat().st_mode & 0o7777 == mode:
            return []
        after = {"text": text, "mode": mode}
        return [*self._plan_parents(what, stage), Change(self.name, "file", what, before, after, stage, reboot)]

    def plan_link(self, what: str, target: str) -> List[Change]:
        """Changes that make ``what`` a symbolic link to ``target``."""
        path = self._path(what)
        before = str(path.readlink()) if path.is_symlink() else None
        if before == target:
            return []
        return [*self._plan_parents(what, "apply"), Change(self.name, "link", what, before, {"target": target})]

    def plan_removal(self, what: str, stage: str = "apply") -> Change:
        """The change that takes a file away."""
        return Change(self.name, "removal", what, "present", None, stage)

    def _plan_parents(self, what: str, stage: str) -> List[Change]:
        missing = []
        for parent in Path(what).parents:
            if (
                parent == self.context.journal.place or self._path(str(parent)).is_dir()
            ):  # ours is made with the journal
                break
            missing.append(Change(self.name, "directory", str(parent), None, {"mode": 0o755}, stage))
        return missing[::-1]

    @staticmethod
    def _is(now: State, kind: str, after: Any) -> bool:
        if kind == "directory":
            return bool(now["type"] == "directory")
        if kind == "removal":
            return False
        if kind == "link":
            return now["type"] == "link" and now["target"] == after["target"]
        if now["type"] != "file" or now["mode"] != after["mode"]:
            return False
        return _but_time(now) == {**_but_time(now), **contents(encoded(after["text"]), digest)}

    def _path(self, what: str) -> Path:
        return self.context.root / what

    def _note_unit(self, what: str) -> None:
        if what.startswith("etc/systemd/system/"):
            self.context.units_changed = True


def encoded(text: str) -> bytes:
    """The bytes of a file that was read as text, whatever its encoding."""
    return text.encode("utf-8", "surrogateescape")


def _but_time(state: State) -> State:
    return {key: value for key, value in state.items() if key != "mtime_ns"}


def unique(changes: Sequence[Change]) -> List[Change]:
    """The changes without repetitions of the same directory."""
    seen: Dict[Tuple[Key, str], Change] = {}
    for change in changes:
        seen.setdefault((change.key, change.stage), change)
    return list(seen.values())
