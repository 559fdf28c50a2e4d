# Copyright: the topovirt.kvm authors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

from __future__ import annotations

import fcntl
import json
import os
from pathlib import Path

import pytest
from ansible_collections.topovirt.kvm.plugins.module_utils._errors import TopovirtError
from ansible_collections.topovirt.kvm.plugins.module_utils._host.journal import Journal
from ansible_collections.topovirt.kvm.plugins.module_utils._host.lock import host_lock

RECORDS = "var/lib/topovirt/journal/records.jsonl"


@pytest.fixture
def root(tmp_path: Path) -> Path:
    (tmp_path / "etc").mkdir()
    (tmp_path / "etc/machine-id").write_text("abc\n")
    (tmp_path / "var/lib").mkdir(parents=True)
    (tmp_path / "run").mkdir()
    return tmp_path


def begun(root: Path) -> Journal:
    journal = Journal(root)
    journal.begin("id1")
    journal.intent(("step", "file", "etc/x"), {"type": "absent"}, None)
    return journal


def test_records_survive_and_are_waited_for(root: Path, no_waiting_for_disks: list[int]) -> None:
    journal = begun(root)
    waited = len(no_waiting_for_disks)
    journal.set_state("applied")
    assert len(no_waiting_for_disks) == waited + 1
    again = Journal(root)
    assert (again.id, again.state) == ("id1", "applied")
    assert list(again.first_priors()) == [("step", "file", "etc/x")]


def test_only_root_may_look(root: Path) -> None:
    begun(root).save(b"secret")
    for directory, _names, files in os.walk(root / "var/lib/topovirt"):
        assert os.stat(directory).st_mode & 0o077 == 0
        for name in files:
            assert os.stat(os.path.join(directory, name)).st_mode & 0o077 == 0


def test_the_first_prior_state_counts(root: Path) -> None:
    journal = begun(root)
    journal.intent(("step", "file", "etc/x"), {"type": "file"}, None)
    assert Journal(root).first_priors()[("step", "file", "etc/x")]["prior"] == {"type": "absent"}


@pytest.mark.parametrize("tail", [b'{"kind": "int', b'{"kind": "intent", "seq": 2', b"\xff\xfe", b"garbage\n"])
def test_a_last_line_that_was_cut_off_is_dropped(root: Path, tail: bytes) -> None:
    begun(root)
    with (root / RECORDS).open("ab") as file:
        file.write(tail)
    journal = Journal(root)
    assert len(journal.records) == 2
    journal.set_state("applied")
    lines = (root / RECORDS).read_bytes().splitlines()
    assert len(lines) == 3
    assert all(json.loads(line) for line in lines)


def test_a_damaged_line_in_the_middle_is_refused(root: Path) -> None:
    begun(root).set_state("applied")
    lines = (root / RECORDS).read_bytes().splitlines(keepends=True)
    (root / RECORDS).write_bytes(lines[0] + b"garbage\n" + lines[2])
    with pytest.raises(TopovirtError, match=r"Line 2 of the journal .* is damaged"):
        Journal(root)


def test_a_newer_schema_is_refused_unchanged(root: Path) -> None:
    begun(root)
    text = (root / RECORDS).read_text().replace('"schema": 1', '"schema": 2')
    (root / RECORDS).write_text(text)
    with pytest.raises(TopovirtError, match="has schema 2; this version knows 1"):
        Journal(root)
    assert (root / RECORDS).read_text() == text


def test_the_journal_of_another_host_is_refused(root: Path) -> None:
    begun(root)
    (root / "etc/machine-id").write_text("other\n")
    with pytest.raises(TopovirtError, match="belongs to another host: machine id abc, this one is other"):
        Journal(root)


def test_saved_bytes_are_checked(root: Path) -> None:
    journal = begun(root)
    name = journal.save(b"original")
    assert journal.load(name) == b"original"
    (root / "var/lib/topovirt/saved" / name).write_bytes(b"changed!")
    with pytest.raises(TopovirtError, match="was changed"):
        journal.load(name)


# --- the lock -----------------------------------------------------------------------------------------------------


def test_a_held_lock_says_who_holds_it(root: Path) -> None:
    with (
        host_lock(root, "first"),
        pytest.raises(TopovirtError, match=rf"held by first \(process {os.getpid()}\) since"),
        host_lock(root, "second"),
    ):
        pass
    assert not (root / "run/topovirt.lock").exists()
    with host_lock(root, "third"):
        pass


def test_the_lock_of_a_dead_owner_is_taken_over(root: Path) -> None:
    (root / "run/topovirt.lock").write_text('{"owner": "dead", "pid": 1}')
    with host_lock(root, "next"):
        assert json.loads((root / "run/topovirt.lock").read_text())["owner"] == "next"


def test_a_lock_file_that_was_removed_meanwhile_is_no_lock(root: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Another owner leaves between our open and our lock: what we hold then is not what the next one will see."""
    path = root / "run/topovirt.lock"
    flock = fcntl.flock
    times: list[int] = []

    def slow(descriptor: int, operation: int) -> None:
        if not times:
            path.unlink()
        times.append(1)
        flock(descriptor, operation)

    monkeypatch.setattr(fcntl, "flock", slow)
    with host_lock(root, "us"), pytest.raises(TopovirtError, match="held by us"), host_lock(root, "them"):
        pass
    assert len(times) == 3
