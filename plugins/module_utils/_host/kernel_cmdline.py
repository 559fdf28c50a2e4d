# Copyright: the topovirt.kvm authors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Kernel arguments of every boot entry that the host has, edited in place: what is not named stays as it is."""

from __future__ import annotations

from typing import Any, Dict, List, Mapping, Optional, Sequence, Set, Tuple

from ansible_collections.topovirt.kvm.plugins.module_utils._errors import TopovirtError
from ansible_collections.topovirt.kvm.plugins.module_utils._host.cmdline.arguments import complaints, split
from ansible_collections.topovirt.kvm.plugins.module_utils._host.cmdline.edit import Edit, Editor, Entries
from ansible_collections.topovirt.kvm.plugins.module_utils._host.cmdline.edit_bls import INHERITED
from ansible_collections.topovirt.kvm.plugins.module_utils._host.cmdline.editors import editor_of
from ansible_collections.topovirt.kvm.plugins.module_utils._host.cmdline.grub_defaults import PATH as GRUB_DEFAULTS
from ansible_collections.topovirt.kvm.plugins.module_utils._host.files import (
    State,
    capture,
    content,
    digest,
    restore,
    write_file,
)
from ansible_collections.topovirt.kvm.plugins.module_utils._host.guard import as_list
from ansible_collections.topovirt.kvm.plugins.module_utils._host.step import (
    AS_BEFORE,
    AS_WRITTEN,
    CHANGED,
    Change,
    Context,
    Step,
    Thing,
    Touched,
    encoded,
)

_GENERATED, _WORDS = "generated", "arguments"
# Topics of notes: digest of the generated file as it was made last; files that were there before the first run; the
# kind of boot configuration, which an operator may have chosen.
_NOTE, _PATHS, _BACKEND = "generated", "paths", "backend"
# Files that grubby may write without being asked: it makes the first on its own account.
_GRUBBYS = (INHERITED, GRUB_DEFAULTS, "boot/grub2/grubenv")


class KernelCmdline(Step):
    """Words that are, and are not, on the kernel command line of every boot entry."""

    name = "kernel_cmdline"

    def __init__(self, context: Context, edit: Edit, backend: str = "auto") -> None:
        """:raises TopovirtError: for a host that boots in another way."""
        super().__init__(context)
        self._edit = edit
        self._asked = backend
        self._editor: Editor = editor_of(context.root, context.run, context.journal.note(_BACKEND) or backend)

    def obstacles(self) -> List[str]:
        reasons = self._editor.obstacles(self._edit)
        if self._asked not in ("auto", self._editor.name):
            reasons.append(
                f"backend {self._asked}: an earlier run changed this host by {self._editor.name}; restore it first "
                f"(topovirt.kvm.{self.name} with state: restored)"
            )
        return reasons

    def read(self) -> Dict[str, Any]:
        return {entry: list(words) for entry, words in self._editor.entries().items()}

    def plan(self) -> List[Change]:
        editor, edit = self._editor, self._edit
        if all(edit.of(words) == words for words in editor.entries().values()) and not self._unsettled():
            return []
        changes, reboot = [], self.reboot_required()
        for path, text in editor.texts(edit).items():
            file = self._path(path)
            mode = file.stat().st_mode & 0o7777 if file.is_file() else 0o644
            changes += self.plan_file(path, text, mode, reboot=reboot)
        if editor.generated:
            changes.append(Change(self.name, _GENERATED, editor.generated, None, "made anew", reboot=reboot))
        if not changes:
            changes += [
                Change(self.name, _WORDS, entry, list(words), list(edit.of(words)), reboot=reboot)
                for entry, words in editor.entries().items()
            ]
        return changes

    def results(self, changes: Sequence[Change]) -> Dict[str, Any]:
        running = self._running()
        wanted = self._edit.of(running)
        return {
            "backend": self._editor.name,
            "entries": [
                {"id": entry, "before": list(words), "after": list(self._edit.of(words))}
                for entry, words in self._editor.entries().items()
            ],
            "running_differs": wanted != running,
            "running_missing": [word for word in wanted if word not in running],
            "running_extra": [word for word in running if word not in wanted],
        }

    def reboot_required(self) -> bool:
        running = self._running()
        added, gone = self._our_words()
        if not self._edit.present and not self._edit.absent:  # of a way back
            return bool(added & set(running) or set(gone) - set(running))
        return self._edit.of(running) != running

    def differences(self) -> List[str]:
        return [
            f"boot entry {entry}: {_missing(words, self._edit.of(words))}"
            for entry, words in self._editor.entries().items()
            if self._edit.of(words) != words
        ]

    def prior(self, change: Change) -> Any:
        return change.before if change.kind == _WORDS else super().prior(change)

    def find(self, thing: Thing) -> str:
        if thing.kind == _WORDS:
            now = self._editor.entries().get(thing.what, ())
            return AS_BEFORE if sorted(now) == sorted(thing.prior) else AS_WRITTEN
        if thing.kind == _GENERATED:  # whoever made it anew meanwhile, it is made anew again
            before = content(thing.prior, self.context.journal.load)
            return AS_BEFORE if before is not None and digest(before) == self._digest(thing.what) else AS_WRITTEN
        found = super().find(thing)
        text = self._editor.read(thing.what)
        if thing.kind != "file" or text is None or found != CHANGED:
            return found
        return AS_WRITTEN if any(self._alike(thing.what, text, after["text"]) for after in thing.afters) else found

    def without_ours(self, thing: Thing) -> Optional[str]:
        """Words that we added go, words that we took away come back; whatever else somebody wrote stays."""
        text = self._editor.read(thing.what)
        if text is None or thing.what not in self._editor.paths():
            return None
        return self._less(thing.what, text, *self._our_words(thing.what))

    def inherited(self) -> Dict[str, str]:
        """Entries of kernels that came meanwhile and inherited from ours."""
        before: Optional[List[str]] = self.context.journal.note(_PATHS)
        if before is None:
            return {}
        words = self._our_words()
        found = {}
        for path in self._editor.paths():
            text = self._editor.read(path) or ""
            less = text if path in before else self._less(path, text, *words)
            if less != text:
                found[path] = less
        return found

    def apply(self, changes: Sequence[Change]) -> None:
        if self.context.journal.note(_PATHS) is None:
            self.context.journal.add_note(_BACKEND, self._editor.name)
            self.context.journal.add_note(_PATHS, self._editor.paths())
        before = self._editor.entries()
        files = {change.what: change for change in changes if change.kind == "file"}
        if self._editor.has_tool(self._edit):
            self._run_tool(before, files)
        super().apply([change for change in changes if change.kind == "directory"])
        for path, change in files.items():
            if self._editor.read(path) != change.after["text"]:  # a tool has its own way with spaces and order
                self._write(change)
        if self._editor.generated:
            self.context.journal.add_note(_NOTE, None)
            self._editor.regenerate()
        self._read_back(before)
        if self._editor.generated:
            self.context.journal.add_note(_NOTE, self._digest(self._editor.generated))

    def undo(self, touched: Sequence[Touched]) -> None:
        for thing in touched:
            if thing.kind == _WORDS:
                self._put_words_back(tuple(thing.prior))
        super().undo([thing for thing in touched if thing.kind not in (_WORDS, _GENERATED)])
        for thing in touched:
            if thing.kind == _GENERATED:  # of the files as they are now
                made = self.context.journal.note(_NOTE)
                if made in (None, self._digest(thing.what)):
                    restore(self._path(thing.what), thing.prior, self.context.journal.load)
                else:
                    self._editor.regenerate()

    # --- inside

    def _running(self) -> Tuple[str, ...]:
        return split(self.context.topology["host"]["cmdline"])

    def _unsettled(self) -> bool:
        """Whether a file that new kernels inherit from, or a drop-in of ours, is not as it would be written."""
        ours = self.context.journal.exists
        return any(
            self._editor.read(path) != text
            for path, text in self._editor.texts(self._edit).items()
            if ours or self._editor.read(path) is not None
        )

    def _run_tool(self, before: Entries, files: Mapping[str, Change]) -> None:
        states = {path: self._state(path) for path in (*_GRUBBYS, *self._editor.paths()) if path not in files}
        gone = [word for words in before.values() for word in words if word not in self._edit.of(words)]
        self._editor.make(self._edit, tuple(dict.fromkeys(gone)))
        for path, state in states.items():
            if self._state(path) != state:
                restore(self._path(path), state, self.context.journal.load)
        self._read_back(before)

    def _read_back(self, before: Entries) -> None:
        """:raises TopovirtError: unless every entry has its old words with the edit, whatever their order."""
        wrong = []
        for entry, words in self._editor.entries().items():
            expected = self._edit.of(before.get(entry, words))
            if sorted(words) != sorted(expected) or sorted(self._edit.of(words)) != sorted(words):
                wrong.append(f"boot entry {entry}: {_missing(words, expected)}")
        wrong += [f"boot entry {entry} is gone" for entry in before.keys() - self._editor.entries().keys()]
        if wrong:
            raise TopovirtError(
                f"The boot entries are not as wanted:{as_list(wrong)}",
                "A word that another program writes, or a file that is read after ours, has to be changed there.",
            )

    def _write(self, change: Change) -> None:
        """Another text in a file that keeps its owner and attributes."""
        path = self._path(change.what)
        state = self._state(change.what)
        meta = {key: value for key, value in state.items() if key != "mtime_ns"} if path.is_file() else None
        write_file(path, encoded(change.after["text"]), change.after["mode"], meta)

    def _our_words(self, only: str = "") -> Tuple[Set[str], List[str]]:
        """Words that were added to a file or an entry, and words that were taken away; of all without ``only``."""
        added: Set[str] = set()
        gone: List[str] = []
        journal = self.context.journal
        for (_step, kind, what), afters in journal.afters().items():
            if kind not in ("file", _WORDS) or only not in ("", what):
                continue
            prior = journal.first_priors()[(self.name, kind, what)]["prior"]
            for after in afters:
                old, new = (prior, after) if kind == _WORDS else self._words_of_file(what, prior, after)
                added |= set(new) - set(old)
                gone += [word for word in old if word not in new and word not in gone]
        return added, gone

    def _words_of_file(self, path: str, prior: State, after: Mapping[str, Any]) -> Tuple[List[str], List[str]]:
        before = (content(prior, self.context.journal.load) or b"").decode("utf-8", "surrogateescape")
        old, new = (
            [word for words in self._editor.parts(path, text)[0] for word in words] for text in (before, after["text"])
        )
        return old, new

    def _less(self, path: str, text: str, added: Set[str], gone: Sequence[str]) -> str:
        def less(words: Tuple[str, ...]) -> Tuple[str, ...]:
            return tuple(word for word in words if word not in added)

        def back(words: Tuple[str, ...]) -> Tuple[str, ...]:
            return (*less(words), *(word for word in gone if word not in words))

        return self._editor.rewrite(path, text, back, less)

    def _put_words_back(self, words: Tuple[str, ...]) -> None:
        """Through the tool, which has no other way: words that were there come back, those that are ours go."""
        now = next(iter(self._editor.entries().values()), ())
        added, gone = self._our_words()
        there = tuple(word for word in gone if word not in now)
        ours = tuple(word for word in now if word in added)
        if there or ours:
            self._editor.make(Edit(present=there), ours)

    def _alike(self, path: str, one: Optional[str], other: str) -> bool:
        """Whether two texts say the same: tools have their own way with spaces and lines."""
        return one is not None and self._editor.parts(path, one) == self._editor.parts(path, other)

    def _state(self, path: str) -> State:
        return capture(self._path(path), self.context.journal.save)

    def _digest(self, path: str) -> Optional[str]:
        file = self._path(path)
        return digest(file.read_bytes()) if file.is_file() else None


def edit_of(options: Mapping[str, Any]) -> Edit:
    """What an operator asks for.

    :raises TopovirtError: with everything that is wrong with the words.
    """
    present, absent = (tuple(options.get(name) or ()) for name in ("present", "absent"))
    wrong = complaints(present, absent)
    if not present and not absent:
        wrong.append("neither present nor absent names an argument")
    if wrong:
        raise TopovirtError(f"The wanted kernel arguments are wrong: {'; '.join(wrong)}.", "Nothing was changed.")
    return Edit(present, absent)


def _missing(words: Sequence[str], expected: Sequence[str]) -> str:
    """How one command line differs from another, in words."""
    less = [word for word in expected if word not in words]
    more = [word for word in words if word not in expected]
    parts = [f"{name} {' '.join(found)}" for name, found in (("lacks", less), ("has", more)) if found]
    return " and ".join(parts) or f"has its words as {' '.join(words)}, wanted {' '.join(expected)}"
