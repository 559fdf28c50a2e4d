# Copyright: the topovirt.kvm authors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""The image cache: keys, publishing, pruning."""

from __future__ import annotations

import multiprocessing
import multiprocessing.synchronize
import os
import time
from pathlib import Path

import pytest

from tests.twin.images import store


def _tree(base: Path) -> Path:
    (base / "a").mkdir(parents=True)
    (base / "a/one").write_text("1")
    (base / "two").write_text("2")
    return base


def test_key_follows_content_mode_and_place(tmp_path: Path) -> None:
    base = _tree(tmp_path / "x")
    names = ["a", "two"]
    first = store.digest_of_files(base, names)
    assert store.digest_of_files(_tree(tmp_path / "y"), names) == first
    seen = {first}
    (base / "a/one").write_text("1 ")
    seen.add(store.digest_of_files(base, names))
    (base / "two").chmod(0o755)
    seen.add(store.digest_of_files(base, names))
    (base / "a/one").rename(base / "a/other")
    seen.add(store.digest_of_files(base, names))
    assert len(seen) == 4


def test_key_ignores_compiled_python(tmp_path: Path) -> None:
    base = _tree(tmp_path)
    first = store.digest_of_files(base, ["a"])
    (base / "a/__pycache__").mkdir()
    (base / "a/__pycache__/one.pyc").write_bytes(b"x")
    assert store.digest_of_files(base, ["a"]) == first


def test_missing_input_is_an_error(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError):
        store.digest_of_files(tmp_path, ["absent"])


def test_digest_sees_the_borders_between_parts() -> None:
    assert store.digest(["ab", "c"]) != store.digest(["a", "bc"])


def test_failed_build_leaves_nothing(tmp_path: Path) -> None:
    def build(work: Path) -> None:
        (work / "half").write_text("x")
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        store.publish(tmp_path, "host", "k-m", build)
    assert list((tmp_path / "host").iterdir()) == []
    assert store.find(tmp_path, "host", "k", "m") is None


def test_publish_clears_what_a_killed_bake_left(tmp_path: Path) -> None:
    left_over = tmp_path / "host" / f"{store.UNFINISHED}old-1"
    left_over.mkdir(parents=True)
    made = store.publish(tmp_path, "host", "k-m", lambda work: (work / "disk").touch())
    assert made == tmp_path / "host/k-m"
    assert (made / "disk").exists()
    assert not left_over.exists()


def test_mounts_that_a_killed_bake_left_are_found() -> None:
    table = (
        "1 0 8:1 / / rw - ext4 /dev/a rw\n2 1 0:5 / /c/host/.u/tree/dev rw - tmpfs tmpfs rw\n"
        "3 2 0:6 / /c/host/.u/tree/dev/null rw - devtmpfs d rw\n4 1 0:7 / /c/host/.u2/proc rw - proc proc rw\n"
    )
    assert store.mounts_below(Path("/c/host/.u"), table) == ["/c/host/.u/tree/dev", "/c/host/.u/tree/dev/null"]


def test_find_without_mirror_takes_the_last_used_of_the_same_inputs(tmp_path: Path) -> None:
    for age, key in ((30, "k-old"), (20, "k-new"), (10, "other-new")):
        folder = tmp_path / "host" / key
        folder.mkdir(parents=True)
        os.utime(folder, (time.time() - age, time.time() - age))
    assert store.find(tmp_path, "host", "k", None) == tmp_path / "host/k-new"
    assert store.find(tmp_path, "host", "k", "newer") is None
    assert store.find(tmp_path, "host", "absent", None) is None


def test_prune_keeps_the_last_used(tmp_path: Path) -> None:
    folders = []
    for age in (40, 30, 20, 10):
        folder = tmp_path / "host" / f"k{age}-m"
        folder.mkdir(parents=True)
        os.utime(folder, (time.time() - age, time.time() - age))
        folders.append(folder)
    removed = store.prune(tmp_path, "host", folders[1])
    assert sorted(removed) == sorted([folders[0], folders[2]])
    assert folders[1].exists()
    assert folders[3].exists()


def _hold(cache: Path, ready: multiprocessing.synchronize.Event, seconds: float) -> None:
    with store.lock(cache, lambda _: None):
        ready.set()
        time.sleep(seconds)


def test_second_bake_waits_and_says_so(tmp_path: Path) -> None:
    ready = multiprocessing.Event()
    other = multiprocessing.Process(target=_hold, args=(tmp_path, ready, 0.5))
    other.start()
    assert ready.wait(10)
    said: list[str] = []
    with store.lock(tmp_path, said.append):
        assert not other.is_alive() or other.exitcode is None
    other.join()
    assert len(said) == 1
    assert "waiting" in said[0]
