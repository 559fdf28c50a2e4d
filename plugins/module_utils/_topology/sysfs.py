# Copyright: the topovirt.kvm authors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Read attributes below a root directory: the live machine, a chroot or a recorded tree, without knowing which."""

from __future__ import annotations

import errno
import os
from typing import TYPE_CHECKING, Dict, FrozenSet, List, Optional, Union

if TYPE_CHECKING:
    from pathlib import Path

# One page: the most that a sysfs attribute can hold, and what the kernel returns in a single read
# (https://docs.kernel.org/filesystems/sysfs.html, "Reading/Writing Attribute Data").
ATTRIBUTE_BYTES = 4096

# How much of a larger file is asked for at once: a buffer of this size is made for each read.
_PIECE_BYTES = 1 << 16

# As many links as Linux follows in one path before it gives up (path_resolution(7)).
_MAX_LINKS = 40

# Asking for one name costs as much as listing a directory of a few, and most directories are asked for one.
_QUESTIONS = 2

# A FIFO in a recorded tree must not block the reader.
_FLAGS = os.O_RDONLY | os.O_CLOEXEC | os.O_NONBLOCK


class Tree:
    """The files below ``root``. Paths are relative to it, without a leading slash.

    Whatever is missing or unreadable reads as ``None`` (or an empty list). Below any root but ``/`` symbolic links
    are followed as if the root were the root of the file system, so a recorded tree never shows the live machine.
    """

    def __init__(self, root: Union[str, Path]) -> None:
        self._root = os.path.abspath(root).rstrip("/")
        self._live = not self._root
        self._directories: Dict[str, Optional[str]] = {"": self._root}
        self._asked: Dict[str, int] = {}  # directory -> how often what is in it was no known directory

    @property
    def live(self) -> bool:
        """Whether this is the running machine itself."""
        return self._live

    def _directory(self, path: str) -> Optional[str]:
        """Real path of a directory; asked once per directory."""
        if self._live:
            return f"/{path}"
        try:
            return self._directories[path]
        except KeyError:
            return self._find(path)

    def _find(self, path: str) -> Optional[str]:
        known, unknown = path, []
        while known not in self._directories:
            known, _separator, name = known.rpartition("/")
            unknown.append(name)
        real = self._directories[known]
        for name in reversed(unknown):
            known = f"{known}/{name}" if known else name
            real = self._directories[known] = None if real is None else self._step(real, name, known)
        return real

    def _step(self, real: str, name: str, path: str) -> Optional[str]:
        """Real path of ``path``, which is ``name`` in the directory that is really ``real``: mostly one question, and
        where a second one is asked of the same directory, the answer to all further ones."""
        if name not in ("", ".", ".."):
            above = path[: -len(name)]
            self._asked[above] = self._asked.get(above, 0) + 1
            if self._asked[above] == _QUESTIONS:
                self._learn(real, above)
            if path in self._directories:
                return self._directories[path]
            try:
                os.readlink(f"{real}/{name}")
            except OSError as error:
                return f"{real}/{name}" if error.errno == errno.EINVAL else None  # EINVAL: there, and no link
        return self._resolve(path)

    def _learn(self, real: str, above: str) -> None:
        """Note the directories in ``above``, which is really ``real``; links among them stay to be asked for."""
        try:
            with os.scandir(real) as entries:
                for entry in entries:
                    if entry.is_dir(follow_symlinks=False):
                        self._directories[above + entry.name] = entry.path
        except OSError:
            pass  # then each is asked for

    def _resolve(self, path: str, strict: bool = True) -> Optional[str]:
        """Real path of anything below the root; links, absolute ones included, stay inside.

        :param strict: None for what is not there; otherwise the rest of the path is taken as it is written.
        """
        todo = path.split("/")[::-1]
        done: List[str] = []
        links = 0
        while todo:
            part = todo.pop()
            if part in ("", "."):
                continue
            if part == "..":
                del done[-1:]
                continue
            try:
                target = os.readlink("/".join([self._root, *done, part]))
            except OSError as error:
                if strict and error.errno != errno.EINVAL:  # EINVAL: there, and no link
                    return None
                done.append(part)
                continue
            links += 1
            if links > _MAX_LINKS:
                return None
            if target.startswith("/"):
                done = []
            todo.extend(target.split("/")[::-1])
        return "/".join([self._root, *done])

    def open(self, path: str) -> Optional[int]:
        """A file descriptor for reading, which the caller closes."""
        directory, _separator, name = path.rpartition("/")
        real = self._directory(directory)
        if real is None:
            return None
        try:
            return os.open(f"{real}/{name}", _FLAGS if self._live else _FLAGS | os.O_NOFOLLOW)
        except OSError as error:
            if error.errno != errno.ELOOP or self._live:
                return None
        target = self._resolve(path)
        try:
            return None if target is None else os.open(target, _FLAGS | os.O_NOFOLLOW)
        except OSError:
            return None

    def raw(self, path: str, limit: int) -> Optional[bytes]:
        """The first ``limit`` bytes of a file."""
        descriptor = self.open(path)
        if descriptor is None:
            return None
        parts = []
        try:
            while limit > 0:
                part = os.read(descriptor, min(limit, _PIECE_BYTES))
                if not part:
                    break
                parts.append(part)
                limit -= len(part)
        except OSError:
            return None
        finally:
            os.close(descriptor)
        return b"".join(parts)

    def text(self, path: str) -> Optional[str]:
        """The value of an attribute, stripped; one read, as sysfs allows."""
        descriptor = self.open(path)
        if descriptor is None:
            return None
        try:
            return os.read(descriptor, ATTRIBUTE_BYTES).decode("utf-8", "replace").strip()
        except OSError:
            return None
        finally:
            os.close(descriptor)

    def number(self, path: str, base: int = 10) -> Optional[int]:
        """The value of an attribute as a number."""
        text = self.text(path)
        try:
            return None if text is None else int(text, base)
        except ValueError:
            return None

    def names(self, path: str) -> List[str]:
        """The names in a directory, sorted."""
        return sorted(self.entries(path))

    def entries(self, path: str) -> FrozenSet[str]:
        """The names in a directory."""
        real = self._directory(path)
        try:
            return frozenset() if real is None else frozenset(os.listdir(real))
        except OSError:
            return frozenset()

    def link(self, path: str) -> Optional[str]:
        """What a symbolic link says, unresolved."""
        directory, _separator, name = path.rpartition("/")
        real = self._directory(directory)
        try:
            return None if real is None else os.readlink(f"{real}/{name}")
        except OSError:
            return None

    def link_name(self, path: str) -> Optional[str]:
        """The last component of what a symbolic link says: how sysfs names a driver or a group."""
        target = self.link(path)
        return None if target is None else target.rsplit("/", 1)[-1]

    def resolved(self, path: str) -> Optional[str]:
        """Where ``path`` really is below the root, links followed; nothing needs to be there. ``None``: a circle."""
        real = self._resolve(path, strict=False)
        return None if real is None else real[len(self._root) + 1 :]

    def is_directory(self, path: str) -> bool:
        """Whether ``path`` is a directory or a link to one."""
        real = self._directory(path)
        return real is not None and os.path.isdir(real)

    def exists(self, path: str) -> bool:
        """Whether there is something at ``path``."""
        directory, _separator, name = path.rpartition("/")
        real = self._directory(directory)
        return real is not None and os.path.lexists(f"{real}/{name}")
