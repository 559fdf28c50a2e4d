# Copyright: the topovirt.kvm authors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""The journal: what was, before it was changed. Append-only, durable, one JSON record per line.

Each change has an *intent* with the exact prior state before it is made, and an *outcome* after. Undoing needs only
intents: for everything that was touched, the state before the first touch. So a run that was cut off anywhere can be
finished (the next run plans from what is there) or undone.
"""

from __future__ import annotations

import json
import os
import time
from pathlib import Path
from typing import Any, Dict, List, Optional, Tuple

from ansible_collections.topovirt.kvm.plugins.module_utils._errors import TopovirtError
from ansible_collections.topovirt.kvm.plugins.module_utils._host.files import digest, remove_tree, sync_directory
from ansible_collections.topovirt.kvm.plugins.module_utils._host.places import FACES, JOURNAL, SAVED, STATE

SCHEMA = 1

Record = Dict[str, Any]
# (step, kind, what): the identity of a thing that a step touches
Key = Tuple[str, str, str]


class Journal:
    """A journal of the host below ``root``; may not exist yet.

    :param place: directory of the journal and of everything else that goes with it: by default that of a conversion.
    """

    def __init__(self, root: Path, place: Path = STATE) -> None:
        self.place = place
        self._root = root
        self._path = root / place / JOURNAL
        self.records: List[Record] = []
        self._good_bytes = 0
        self._read()

    # --- reading ---

    @property
    def exists(self) -> bool:
        """Whether something was begun and not taken back."""
        return bool(self.records)

    @property
    def id(self) -> str:
        """What the journal was begun with: of a conversion, the value of the token on the kernel command line."""
        return str(self.records[0]["id"]) if self.records else ""

    @property
    def state(self) -> str:
        """``none``, ``begun``, ``recorded``, ``changing``, ``applied``, ``committed`` or ``undoing``."""
        states = [record["state"] for record in self.records if record["kind"] == "state"]
        return states[-1] if states else ("begun" if self.records else "none")

    def first_priors(self) -> Dict[Key, Record]:
        """For everything ever touched, the intent of the first touch, in the order of first touching."""
        return self.priors_since()

    def afters(self) -> Dict[Key, List[Any]]:
        """For everything ever touched, what it was to become with each touch."""
        found: Dict[Key, List[Any]] = {}
        for record in self.records:
            if record["kind"] == "intent":
                found.setdefault(key_of(record), []).append(record["after"])
        return found

    def priors_since(self, state: str = "") -> Dict[Key, Record]:
        """As ``first_priors``, of touches after the journal was last in ``state``; of all when it never was."""
        last = max((r["seq"] for r in self.records if r["kind"] == "state" and r["state"] == state), default=-1)
        first: Dict[Key, Record] = {}
        for record in self.records:
            if record["kind"] == "intent" and record["seq"] > last:
                first.setdefault(key_of(record), record)
        return first

    def made(self, key: Key) -> bool:
        """Whether the change of this thing that was announced last was made as well."""
        done = {record["of"] for record in self.records if record["kind"] == "outcome"}
        announced = [record for record in self.records if record["kind"] == "intent" and key_of(record) == key]
        return bool(announced) and announced[-1]["seq"] in done

    def undone(self) -> List[Key]:
        """What is back in its prior state, by a way back that is under way."""
        return [tuple(record["key"]) for record in self.records if record["kind"] == "undone"]

    def note(self, topic: str) -> Optional[Any]:
        """The newest note on a topic."""
        notes = [record["data"] for record in self.records if record["kind"] == "note" and record["topic"] == topic]
        return notes[-1] if notes else None

    def _read(self) -> None:
        try:
            raw = self._path.read_bytes()
        except FileNotFoundError:
            return
        lines = raw.split(b"\n")
        for number, line in enumerate(lines, 1):
            complete = number < len(lines)  # ended by a newline
            if not line and not complete:
                break
            record = _parse(line) if complete else None
            if record is None:
                if number >= len(lines) - 1:  # cut off while it was written, so nothing was done on its strength
                    break
                raise TopovirtError(
                    f"Line {number} of the journal {self._path} is damaged.",
                    "It is needed for the way back; restore the file from a backup, or change the host by hand.",
                )
            if number == 1:
                self._accept(record)
            self.records.append(record)
            self._good_bytes += len(line) + 1

    def _accept(self, first: Record) -> None:
        schema = first.get("schema")
        if not isinstance(schema, int) or schema > SCHEMA:
            raise TopovirtError(
                f"The journal {self._path} has schema {schema}; this version knows {SCHEMA} and older ones.",
                "Use the version of the collection that wrote it, or a newer one. Nothing was changed.",
            )
        here = machine_id(self._root)
        if first.get("host") != here:
            raise TopovirtError(
                f"The journal {self._path} belongs to another host: machine id {first.get('host')}, "
                f"this one is {here or 'without machine id'}.",
                "It was copied with a disk image. Undo it on the host it belongs to, or remove /var/lib/topovirt here.",
            )

    # --- writing ---

    def begin(self, identity: str) -> None:
        """Start a journal for this host."""
        above = [self._root / parent for parent in self.place.parents if parent == STATE or STATE in parent.parents]
        place = self._root / self.place
        for directory in (*above[::-1], place, place / JOURNAL.parent, place / SAVED):
            if not directory.is_dir():
                directory.mkdir(mode=0o700)
                os.chmod(directory, 0o700)
                sync_directory(directory.parent)
        self._append({"kind": "begin", "schema": SCHEMA, "host": machine_id(self._root), "id": identity})

    def intent(self, key: Key, prior: Any, after: Any) -> int:
        """About to change something. Returns the number of the record."""
        step, change, what = key
        return self._append(
            {"kind": "intent", "step": step, "change": change, "what": what, "prior": prior, "after": after}
        )

    def outcome(self, intent: int) -> None:
        """The change that record ``intent`` announced is done."""
        self._append({"kind": "outcome", "of": intent})

    def mark_undone(self, key: Key) -> None:
        self._append({"kind": "undone", "key": list(key)})

    def set_state(self, state: str) -> None:
        if self.state != state:
            self._append({"kind": "state", "state": state})

    def add_note(self, topic: str, data: Any) -> None:
        """Remember something that is no change, such as an inventory."""
        self._append({"kind": "note", "topic": topic, "data": data})

    def save(self, data: bytes) -> str:
        """Keep bytes outside the journal; returns their name."""
        name = digest(data)
        path = self._root / self.place / SAVED / name
        if not path.exists() or digest(path.read_bytes()) != name:
            new = path.with_name(f"{name}.new")
            descriptor = os.open(new, os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_CLOEXEC, 0o600)
            with os.fdopen(descriptor, "wb") as file:
                file.write(data)
                file.flush()
                os.fsync(file.fileno())
            os.replace(new, path)
            sync_directory(path.parent)
        return name

    def load(self, name: str) -> bytes:
        """Bytes kept by ``save``.

        :raises TopovirtError: when they are gone or not what was saved.
        """
        try:
            data = (self._root / self.place / SAVED / name).read_bytes()
        except OSError as error:
            raise TopovirtError(f"Saved original {name} cannot be read: {error.strerror}.") from None
        if digest(data) != name:
            raise TopovirtError(f"Saved original {name} was changed.", "Restore /var/lib/topovirt from a backup.")
        return data

    def remove(self) -> None:
        """Remove everything that goes with it; it goes last itself, so that an interrupted removal is repeated.

        Journals of others stay, and so do directories that are not empty then.
        """
        last = self._root / self.place / JOURNAL.parent
        for entry in self.leftovers():
            if entry != last:
                remove_tree(entry)
        if last.is_dir():
            remove_tree(last)
        for directory in (self.place, *self.place.parents):
            if directory == STATE.parent or not _remove_empty(self._root / directory):
                break
        self.records = []
        self._good_bytes = 0

    def leftovers(self) -> List[Path]:
        """Everything that goes with the journal, also when the journal itself is not there."""
        place = self._root / self.place
        return sorted(entry for entry in place.iterdir() if entry != self._root / FACES) if place.is_dir() else []

    def _append(self, record: Record) -> int:
        number = len(self.records)
        complete = {"seq": number, "time": int(time.time()), **record}
        line = (json.dumps(complete, sort_keys=True) + "\n").encode("ascii")
        new = not self._path.exists()
        descriptor = os.open(self._path, os.O_WRONLY | os.O_CREAT | os.O_CLOEXEC, 0o600)
        try:
            os.ftruncate(descriptor, self._good_bytes)  # drops a line that was cut off
            os.pwrite(descriptor, line, self._good_bytes)
            os.fsync(descriptor)
        finally:
            os.close(descriptor)
        if new:
            sync_directory(self._path.parent)
        self._good_bytes += len(line)
        self.records.append(json.loads(line))
        return number


def machine_id(root: Path) -> str:
    """The host's own id (machine-id(5)), empty when it has none."""
    try:
        return (root / "etc/machine-id").read_text(encoding="ascii").strip()
    except OSError:
        return ""


def faces_in_force(root: Path) -> List[str]:
    """Names of the modules that have changed one thing on this host and have a journal of it."""
    return sorted(path.relative_to(root / FACES).parts[0] for path in (root / FACES).glob(f"*/{JOURNAL}"))


def key_of(record: Record) -> Key:
    """What a record is about."""
    return (record["step"], record["change"], record["what"])


def _remove_empty(directory: Path) -> bool:
    """Whether it is gone."""
    try:
        directory.rmdir()
    except FileNotFoundError:
        return True
    except OSError:
        return False
    sync_directory(directory.parent)
    return True


def _parse(line: bytes) -> Optional[Record]:
    try:
        record = json.loads(line)
    except ValueError:
        return None
    return record if isinstance(record, dict) and "kind" in record else None
