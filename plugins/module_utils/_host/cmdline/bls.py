# Copyright: the topovirt.kvm authors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""GRUB 2 with entries by the Boot Loader Specification, as in Red Hat's family: a file for each entry."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Dict, List, Optional, Sequence, Tuple

from ansible_collections.topovirt.kvm.plugins.module_utils._errors import TopovirtError
from ansible_collections.topovirt.kvm.plugins.module_utils._host.cmdline import bls_entry
from ansible_collections.topovirt.kvm.plugins.module_utils._host.cmdline.environment import EnvironmentBlock
from ansible_collections.topovirt.kvm.plugins.module_utils._host.cmdline.loader import BootLoader, Entry
from ansible_collections.topovirt.kvm.plugins.module_utils._host.places import TOKEN, Run

ENTRIES = "boot/loader/entries"
_CONFIG = "boot/grub2/grub.cfg"
_DEFAULT = "saved_entry"
# Written anew for an entry of ours; every other key of the host's entry is taken over.
_OWN_KEYS = ("title", "linux", "initrd", "options")


class Bls(BootLoader):
    """Red Hat's GRUB boots the entry that ``saved_entry`` in its environment block names."""

    def __init__(self, root: Path, run: Run) -> None:
        super().__init__(root, EnvironmentBlock(root, run, "boot/grub2/grubenv", "grub2-editenv"))

    @staticmethod
    def found(root: Path) -> bool:
        return (root / _CONFIG).is_file() and "blscfg" in _text(root / _CONFIG)

    def obstacles(self) -> List[str]:
        found = []
        if "next_entry" not in _text(self._root / _CONFIG):
            found.append(
                f"/{_CONFIG} does not know next_entry, so that no entry can be booted once: run grub2-mkconfig -o "
                f"/{_CONFIG}"
            )
        saved = self.default_id()
        if not _is_ours(saved) and not self._file(saved).is_file():
            # Without an id GRUB boots by position, and an entry more moves the positions.
            names = ", ".join(sorted(path.stem for path in (self._root / ENTRIES).glob("*.conf"))) or "there is none"
            found.append(
                f"saved_entry in the environment block of GRUB is {saved!r}, which is the id of no entry: name one "
                f"with grub2-set-default ({names})"
            )
        return [*found, *self.environment.obstacles()]

    def default_entry(self, before: str) -> Entry:
        saved = self.default_id()
        return self._read(before if _is_ours(saved) else saved)

    def next_arguments(self) -> Tuple[str, ...]:
        entry = self._read(self.environment.next_entry() or self.default_id())
        return self.expanded(entry.arguments)

    def files(self, entries: List[Entry], default: Optional[Entry]) -> Dict[str, str]:
        return {f"{ENTRIES}/{entry.id}.conf": _render(entry) for entry in entries}

    def stale(self, entries: List[Entry]) -> List[str]:
        wanted = {f"{entry.id}.conf" for entry in entries}
        there = (self._root / ENTRIES).glob(f"{TOKEN}-*.conf")
        return sorted(f"{ENTRIES}/{path.name}" for path in there if path.name not in wanted)

    def default_id(self) -> str:
        return self.environment.get(_DEFAULT)

    def set_default_id(self, entry_id: str) -> None:
        self.environment.set(_DEFAULT, entry_id)

    def expanded(self, words: Sequence[str]) -> Tuple[str, ...]:
        """GRUB puts the block's variables in; one that is not set leaves nothing."""
        variables = self.environment.variables()
        text = re.sub(r"\$(?:(\w+)|\{(\w+)\})", lambda m: variables.get(m.group(1) or m.group(2), ""), " ".join(words))
        return tuple(text.split())

    def _file(self, entry_id: str) -> Path:
        return self._root / ENTRIES / f"{entry_id}.conf"

    def _read(self, entry_id: str) -> Entry:
        path = self._file(entry_id)
        if not entry_id or not path.is_file():
            raise TopovirtError(
                f"There is no boot entry {entry_id!r} in /{ENTRIES}.", "Choose a default with grub2-set-default ID."
            )
        parsed = bls_entry.parse(entry_id, _text(path))
        kernel = parsed.values("linux")
        if not kernel:
            raise TopovirtError(
                f"The boot entry {entry_id!r} loads no Linux kernel.",
                "Choose another default with grub2-set-default ID.",
            )
        rest = tuple(f"{key} {value.strip()}" for key, value in parsed.lines if key and key.strip() not in _OWN_KEYS)
        return Entry(
            id=entry_id,
            title=(*parsed.values("title"), entry_id)[0],
            kernel=kernel[-1],
            initrds=tuple(word for value in parsed.values("initrd") for word in value.split()),
            arguments=parsed.arguments,
            body=rest,
        )


def _render(entry: Entry) -> str:
    lines = [f"title {entry.title}", f"linux {entry.kernel}", f"initrd {' '.join(entry.initrds)}"]
    lines += [f"options {' '.join(entry.arguments)}", *entry.body]
    return "".join(f"{line}\n" for line in lines)


def _is_ours(entry_id: str) -> bool:
    return entry_id.startswith(f"{TOKEN}-")


def _text(path: Path) -> str:
    return path.read_text(encoding="utf-8", errors="surrogateescape")
