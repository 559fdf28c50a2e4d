# Copyright: the topovirt.kvm authors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""The host lock: one run at a time changes the host or its VMs."""

from __future__ import annotations

import contextlib
import fcntl
import json
import os
import time
from pathlib import Path
from typing import Any, Dict, Iterator

from ansible_collections.topovirt.kvm.plugins.module_utils._errors import TopovirtError
from ansible_collections.topovirt.kvm.plugins.module_utils._host.places import LOCK


@contextlib.contextmanager
def host_lock(root: Path, owner: str) -> Iterator[None]:
    """Hold ``/run/topovirt.lock``.

    :param owner: what is going on, for the message that somebody else gets.
    :raises TopovirtError: when another run holds it; never waits.

    The kernel's lock on the file counts, so that a lock whose owner died is free at once; the content (owner, process,
    boot id, time) only tells a person who holds it.
    """
    path = root / LOCK
    path.parent.mkdir(parents=True, exist_ok=True)
    descriptor = _take(path)
    try:
        content = {"owner": owner, "pid": os.getpid(), "boot_id": _boot_id(root), "time": int(time.time())}
        os.ftruncate(descriptor, 0)
        os.pwrite(descriptor, (json.dumps(content, sort_keys=True) + "\n").encode(), 0)
        yield
    finally:
        with contextlib.suppress(FileNotFoundError):
            os.unlink(path)  # while the lock is held: the next one makes its own file
        os.close(descriptor)


def holder(root: Path) -> str:
    """Who holds the lock now, in words; empty when nobody does. Not for a process that holds it itself."""
    try:
        descriptor = os.open(root / LOCK, os.O_RDONLY | os.O_CLOEXEC | os.O_NOFOLLOW)
    except OSError:
        return ""
    try:
        fcntl.flock(descriptor, fcntl.LOCK_SH | fcntl.LOCK_NB)
    except OSError:
        return _in_words(descriptor)
    finally:
        os.close(descriptor)
    return ""


def _in_words(descriptor: int) -> str:
    held = _content(descriptor)
    since = time.strftime("%H:%M:%S UTC", time.gmtime(held["time"])) if "time" in held else "an unknown time"
    return f"{held.get('owner', 'another run')} (process {held.get('pid', 'unknown')}) since {since}"


def _take(path: Path) -> int:
    while True:
        descriptor = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC | os.O_NOFOLLOW, 0o600)
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError:
            held = _in_words(descriptor)
            os.close(descriptor)
            raise TopovirtError(
                f"The host lock {path} is held by {held}.", "Wait until it is done and run again."
            ) from None
        try:
            if os.path.samestat(os.fstat(descriptor), os.stat(path)):
                return descriptor
        except FileNotFoundError:
            pass
        os.close(descriptor)  # the owner before us removed the file between our open and our lock


def _content(descriptor: int) -> Dict[str, Any]:
    try:
        data = json.loads(os.pread(descriptor, 4096, 0))
    except ValueError:
        return {}
    return data if isinstance(data, dict) else {}


def _boot_id(root: Path) -> str:
    try:
        return (root / "proc/sys/kernel/random/boot_id").read_text(encoding="ascii").strip()
    except OSError:
        return ""
