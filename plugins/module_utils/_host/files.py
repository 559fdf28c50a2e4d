# Copyright: the topovirt.kvm authors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Files as exact states: capture one, write one, put a captured one back."""

from __future__ import annotations

import base64
import hashlib
import os
import shutil
import stat
from pathlib import Path
from typing import Any, Callable, Dict, Optional

from ansible_collections.topovirt.kvm.plugins.module_utils._errors import TopovirtError

# A state is JSON: {"type": "absent"}, {"type": "file", "mode", "uid", "gid", "mtime_ns", "xattrs", "data" | "saved"},
# {"type": "link", "target", "uid", "gid"} or {"type": "directory", "mode", "uid", "gid", "xattrs"}.
State = Dict[str, Any]

# Larger contents are kept as files of their own, so that the journal stays readable.
_INLINE_BYTES = 16384
_SUFFIX = ".topovirt-new"


def digest(data: bytes) -> str:
    return hashlib.sha256(data).hexdigest()


def capture(path: Path, save: Callable[[bytes], str]) -> State:
    """The exact state of ``path``.

    :param save: keeps bytes and returns a name for them; used for large files.
    :raises TopovirtError: for what cannot be put back (device node, socket, pipe).
    """
    try:
        info = os.lstat(path)
    except FileNotFoundError:
        return {"type": "absent"}
    owner = {"uid": info.st_uid, "gid": info.st_gid}
    if stat.S_ISLNK(info.st_mode):
        return {"type": "link", "target": os.readlink(path), **owner}
    common = {"mode": stat.S_IMODE(info.st_mode), **owner, "xattrs": _xattrs(path)}
    if stat.S_ISDIR(info.st_mode):
        return {"type": "directory", **common}
    if not stat.S_ISREG(info.st_mode):
        raise TopovirtError(f"{path} is neither a file, a link nor a directory.", "Move it out of the way.")
    data = path.read_bytes()
    return {"type": "file", **common, "mtime_ns": info.st_mtime_ns, **contents(data, save)}


def contents(data: bytes, save: Callable[[bytes], str]) -> State:
    """The part of a file's state that holds its bytes."""
    return {"data": base64.b64encode(data).decode("ascii")} if len(data) <= _INLINE_BYTES else {"saved": save(data)}


def content(state: State, load: Callable[[str], bytes]) -> Optional[bytes]:
    """The bytes of a captured file, ``None`` when it was no file."""
    if state["type"] != "file":
        return None
    return base64.b64decode(state["data"]) if "data" in state else load(state["saved"])


def restore(path: Path, state: State, load: Callable[[str], bytes]) -> None:
    """Make ``path`` what ``state`` says. Does nothing when it already is; may be repeated after an interruption."""
    _discard(path.with_name(path.name + _SUFFIX))
    kind = state["type"]
    if kind == "absent":
        if path.is_dir() and not path.is_symlink():
            _remove_empty(path)
        else:
            _discard(path)
    elif kind == "link":
        write_link(path, state["target"])
        os.lchown(path, state["uid"], state["gid"])
    elif kind == "directory":
        path.mkdir(exist_ok=True)
        _set_meta(path, state)
    else:
        data = content(state, load)
        if data is None:
            raise TopovirtError(f"{path}: its recorded state has no content, so the file cannot be written back.")
        write_file(path, data, state["mode"], state)


def write_file(path: Path, data: bytes, mode: int, meta: Optional[State] = None) -> None:
    """Replace a file in one step, durable before it returns.

    :param meta: owner, extended attributes and modification time to set, as captured.
    """
    new = path.with_name(path.name + _SUFFIX)
    _discard(new)
    descriptor = os.open(new, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600)
    with os.fdopen(descriptor, "wb") as file:
        file.write(data)
        file.flush()
        os.fsync(file.fileno())
    if meta is not None:
        _set_meta(new, meta)
    os.chmod(new, mode)
    os.replace(new, path)
    sync_directory(path.parent)


def write_link(path: Path, target: str) -> None:
    """Replace a symbolic link in one step."""
    new = path.with_name(path.name + _SUFFIX)
    _discard(new)
    os.symlink(target, new)
    os.replace(new, path)
    sync_directory(path.parent)


def sync_directory(path: Path) -> None:
    """Make names in a directory durable."""
    descriptor = os.open(path, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def remove_tree(path: Path) -> None:
    """Remove whatever is at ``path``, if anything."""
    if path.is_dir() and not path.is_symlink():
        shutil.rmtree(path)
    else:
        _discard(path)


def _set_meta(path: Path, state: State) -> None:
    os.chown(path, state["uid"], state["gid"])
    os.chmod(path, state["mode"])
    wanted = {name: base64.b64decode(value) for name, value in state.get("xattrs", {}).items()}
    for name in _xattrs(path):
        if name not in wanted:
            os.removexattr(path, name)
    for name, value in wanted.items():
        if base64.b64encode(value).decode("ascii") != _xattrs(path).get(name):
            os.setxattr(path, name, value)
    if "mtime_ns" in state:
        os.utime(path, ns=(state["mtime_ns"], state["mtime_ns"]))


def _xattrs(path: Path) -> Dict[str, str]:
    try:
        names = os.listxattr(path)
        return {name: base64.b64encode(os.getxattr(path, name)).decode("ascii") for name in sorted(names)}
    except OSError:  # the file system has none
        return {}


def _discard(path: Path) -> None:
    try:
        os.unlink(path)
    except FileNotFoundError:
        return
    sync_directory(path.parent)


def _remove_empty(path: Path) -> None:
    """A directory of ours goes only when nobody put anything into it."""
    try:
        path.rmdir()
    except OSError:
        return
    sync_directory(path.parent)
