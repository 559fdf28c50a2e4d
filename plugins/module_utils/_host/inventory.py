# Copyright: the topovirt.kvm authors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""What lies on the host's disks before packages come and after: so that what they brought can be taken away exactly.

A package manager removes what a package owns. Maintainer scripts and daemons make more: users, directories, enablement
links, generated caches, entries in shared files. An inventory is the list of paths, and the exact state of every file
that such scripts may edit.
"""

from __future__ import annotations

import base64
import gzip
import json
import os
import stat
from pathlib import Path
from typing import Any, Collection, Dict, Iterator, List, Tuple

from ansible_collections.topovirt.kvm.plugins.module_utils._errors import TopovirtError
from ansible_collections.topovirt.kvm.plugins.module_utils._host.files import State, capture, digest

# Where packages leave things. Home directories and /run, /tmp, /proc, /sys, /dev are nobody's business here.
_STARTS = ("boot", "etc", "opt", "root", "srv", "usr", "var")

# Other programs' data and caches: huge, or changing all the time for reasons that are not ours; and databases of
# package managers, which only they may write.
_SKIPPED = frozenset(
    {
        "root/.ansible",
        "usr/lib/sysimage/rpm",
        "usr/src",
        "var/cache/apt",
        "var/cache/dnf",
        "var/cache/man",
        "var/lib/apt/lists",
        "var/lib/apt/periodic",
        "var/lib/containerd",
        "var/lib/containers",
        "var/lib/dnf",
        "var/lib/docker",
        "var/lib/kubelet",
        "var/lib/rpm",
        "var/lib/systemd/timers",
        "var/lib/topovirt",
        "var/log/journal",
        "var/tmp",
    }
)
# Files below these may be edited by package scripts: their exact state is kept.
_EDITED = (
    "etc/",
    "var/cache/debconf/",
    "var/cache/ldconfig/",
    "var/lib/apt/extended_states",
    "var/lib/dpkg/",
    "var/lib/pam/",
    "var/lib/systemd/",
    "var/lib/ucf/",
)
_NOT_EDITED = ("var/lib/dpkg/info/", "var/lib/dpkg/updates/", "var/lib/systemd/random-seed", "var/lib/systemd/catalog/")
# Generated files below /usr that no package owns (schema caches, module lists); byte code follows its source.
_GENERATED_MAX_BYTES = 4 << 20
_NOT_GENERATED = ("usr/local/", "usr/lib/modules/")
# A separate file system mounted this deep (/var/lib, /boot/efi) is part of the system; deeper ones hold data.
_MOUNT_DEPTH = 2

Inventory = Dict[str, Any]  # {"paths": {path: "d" | "f" | "l" | "o"}, "states": {path: State}}


def take(root: Path, owned: Collection[str]) -> Inventory:
    """Paths below ``root``, and states of the files that package scripts may edit.

    :param owned: paths that packages own, relative to the root.
    """
    paths: Dict[str, str] = {}
    states: Dict[str, State] = {}
    for path, entry in _walk(root):
        kind = _kind(entry)
        paths[path] = kind
        if kind in "fl" and _editable(path, entry, owned):
            states[path] = _state(root / path)
    return {"paths": paths, "states": states}


def difference(root: Path, before: Inventory) -> Dict[str, Any]:
    """What came since ``before``: ``{"created": [topmost new paths], "changed": {path: digest of the state now}}``.

    A file that is gone has the digest of an absent one.
    """
    old = before["paths"]
    created: List[str] = []
    for path, entry in _walk(root):
        if path in old or (created and path.startswith(f"{created[-1]}/")):
            continue
        if path.startswith("var/log/") and not entry.is_dir(follow_symlinks=False) and path.count("/") == 2:
            continue  # logs rotate
        created.append(path)
    changed = {}
    for path, state in before["states"].items():
        now = fingerprint(root / path)
        if now != state_fingerprint(state):
            changed[path] = now
    return {"created": created, "changed": changed}


def fingerprint(path: Path) -> str:
    """Digest of the exact state of a file, its modification time aside."""
    return state_fingerprint(_state(path))


def pack(data: Any) -> bytes:
    return gzip.compress(json.dumps(data, sort_keys=True).encode("ascii"), compresslevel=1, mtime=0)


def unpack(data: bytes) -> Any:
    return json.loads(gzip.decompress(data))


def owners(root: Path, users: Collection[int], groups: Collection[int]) -> Dict[Tuple[str, int], str]:
    """One path for each of these user and group ids that owns something: ``{("user", 105): "/srv/x"}``."""
    found: Dict[Tuple[str, int], str] = {}
    for start in (*_STARTS, "home", "tmp"):
        if start == "usr":
            continue
        for directory, names, files in os.walk(root / start):
            for name in (*names, *files):
                path = os.path.join(directory, name)
                try:
                    info = os.lstat(path)
                except OSError:
                    continue
                shown = "/" + os.path.relpath(path, root)
                if info.st_uid in users:
                    found.setdefault(("user", info.st_uid), shown)
                if info.st_gid in groups:
                    found.setdefault(("group", info.st_gid), shown)
    return found


def encode(text: str) -> str:
    return base64.b64encode(text.encode("utf-8", "surrogateescape")).decode("ascii")


def decode(saved: str) -> bytes:
    """The bytes of a large file of an inventory, which stand where other states have a name."""
    return base64.b64decode(saved)


def state_fingerprint(state: State) -> str:
    """What ``fingerprint`` gives for a file in this state."""
    return digest(json.dumps({k: v for k, v in state.items() if k != "mtime_ns"}, sort_keys=True).encode("ascii"))


def _state(path: Path) -> State:
    try:
        return capture(path, lambda data: base64.b64encode(data).decode("ascii"))
    except (TopovirtError, OSError):
        return {"type": "absent"}


def _editable(path: str, entry: os.DirEntry[str], owned: Collection[str]) -> bool:
    if path.startswith(_NOT_EDITED):
        return False
    if path.startswith(_EDITED):
        return True
    if not path.startswith("usr/") or path in owned or "/__pycache__/" in path or path.startswith(_NOT_GENERATED):
        return False
    return entry.is_file(follow_symlinks=False) and entry.stat(follow_symlinks=False).st_size <= _GENERATED_MAX_BYTES


def _kind(entry: os.DirEntry[str]) -> str:
    if entry.is_symlink():
        return "l"
    if entry.is_dir(follow_symlinks=False):
        return "d"
    return "f" if stat.S_ISREG(entry.stat(follow_symlinks=False).st_mode) else "o"


def _walk(root: Path) -> Iterator[Tuple[str, os.DirEntry[str]]]:
    """Every path below the starts, a directory before its content."""
    for start in _STARTS:
        top = root / start
        if top.is_dir() and not top.is_symlink():
            yield from _walk_directory(str(top), start, os.lstat(top).st_dev)


def _walk_directory(directory: str, path: str, device: int) -> Iterator[Tuple[str, os.DirEntry[str]]]:
    try:
        entries = sorted(os.scandir(directory), key=lambda entry: entry.name)
    except OSError:
        return
    for entry in entries:
        below = f"{path}/{entry.name}"
        if below in _SKIPPED:
            continue
        yield below, entry
        if entry.is_dir(follow_symlinks=False):
            there = entry.stat(follow_symlinks=False).st_dev
            if there == device or below.count("/") <= _MOUNT_DEPTH:
                yield from _walk_directory(entry.path, below, there)
