# Copyright: the topovirt.kvm authors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""The image cache: one folder per image and key, published by rename, guarded by one lock.

Layout: ``<cache>/<image>/<inputs>-<mirror>/``. ``inputs`` is the digest of everything of ours that goes into the image,
``mirror`` that of the package versions. Without a mirror the newest image of the same inputs is used.
"""

from __future__ import annotations

import contextlib
import fcntl
import hashlib
import os
import shutil
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path

from tests.twin.images import process

#: The newest keys of an image that stay: the current one, and one that a running machine or a second checkout may use.
KEEP = 2
UNFINISHED = ".unfinished-"


def digest(parts: Iterable[bytes | str]) -> str:
    """Short digest of a sequence; the borders between the parts count."""
    total = hashlib.sha256()
    for part in parts:
        data = part.encode() if isinstance(part, str) else part
        total.update(f"{len(data)}:".encode() + data)
    return total.hexdigest()[:16]


def digest_of_files(base: Path, names: Iterable[str]) -> str:
    """Digest of files and folders below ``base``: path, executable bit, content. Compiled Python does not count."""
    files: set[Path] = set()
    for name in names:
        path = base / name
        if not path.exists():
            raise FileNotFoundError(path)
        files.update([path] if not path.is_dir() else (p for p in path.rglob("*") if p.is_file() or p.is_symlink()))
    parts: list[bytes | str] = []
    for file in sorted(files):
        if "__pycache__" in file.parts:
            continue
        parts.append(str(file.relative_to(base)))
        if file.is_symlink():
            parts += ["link", os.readlink(file)]
        else:
            parts += ["x" if file.stat().st_mode & 0o111 else "-", file.read_bytes()]
    return digest(parts)


@contextlib.contextmanager
def lock(cache: Path, log: Callable[[str], None]) -> Iterator[None]:
    """Only one bake at a time per cache; a second one waits and says so."""
    cache.mkdir(parents=True, exist_ok=True)
    with (cache / "lock").open("w") as handle:
        try:
            fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            log(f"waiting for another bake in {cache}")
            fcntl.flock(handle, fcntl.LOCK_EX)
        yield


def find(cache: Path, image: str, inputs: str, mirror: str | None) -> Path | None:
    """The finished folder of this key; with ``mirror`` unknown the one of these inputs that was used last."""
    if mirror is not None:
        exact = cache / image / f"{inputs}-{mirror}"
        return exact if exact.is_dir() else None
    candidates = sorted((cache / image).glob(f"{inputs}-*"), key=lambda path: path.stat().st_mtime)
    return candidates[-1] if candidates else None


def mounts_below(folder: Path, mount_table: str) -> list[str]:
    """Mount points in or below a folder, outer ones first, from the text of /proc/self/mountinfo (proc(5))."""
    points = [line.split(" ")[4] for line in mount_table.splitlines()]
    return [point for point in points if Path(point).is_relative_to(folder)]


def publish(cache: Path, image: str, key: str, build: Callable[[Path], None]) -> Path:
    """Build into a folder aside and rename it; call it with the lock held. Nothing half done is ever found."""
    parent = cache / image
    parent.mkdir(parents=True, exist_ok=True)
    for left_over in parent.glob(f"{UNFINISHED}*"):
        for mount in reversed(mounts_below(left_over, Path("/proc/self/mountinfo").read_text())):
            process.output(["umount", "--lazy", mount])
        shutil.rmtree(left_over)
    work = parent / f"{UNFINISHED}{key}-{os.getpid()}"
    work.mkdir()
    try:
        build(work)
    except BaseException:
        shutil.rmtree(work, ignore_errors=True)
        raise
    target = parent / key
    work.rename(target)
    return target


def prune(cache: Path, image: str, current: Path) -> list[Path]:
    """Mark ``current`` as used now and remove all but the ``KEEP`` keys used last; returns what was removed."""
    os.utime(current)
    keys = [path for path in (cache / image).iterdir() if not path.name.startswith(".")]
    keys.sort(key=lambda path: path.stat().st_mtime, reverse=True)
    removed = keys[KEEP:]
    for path in removed:
        shutil.rmtree(path)
    return removed
