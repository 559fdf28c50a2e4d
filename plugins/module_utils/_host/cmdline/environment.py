# Copyright: the topovirt.kvm authors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""GRUB's environment block: variables that GRUB reads at boot, and of which it takes back the entry to boot once."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Dict, List, Tuple

from ansible_collections.topovirt.kvm.plugins.module_utils._errors import TopovirtError
from ansible_collections.topovirt.kvm.plugins.module_utils._host.places import Run

_BYTES = 1024  # an environment block has this size, always (GRUB manual, "The GRUB environment block")
_SIGNATURE = b"# GRUB Environment Block\n"
# GRUB can read, but not write, an environment block on these (its manual, same place).
_NO_WRITE = re.compile(r"^(btrfs|zfs|f2fs|cpiofs|newc|odc|romfs|squash4|tarfs)$")
_NEXT = "next_entry"


class EnvironmentBlock:
    """The block of one host.

    :param path: of the block, relative to the root; a link is followed, as on hosts that keep it beside the firmware.
    :param editor: GRUB's own program that changes it.
    """

    def __init__(self, root: Path, run: Run, path: str, editor: str) -> None:
        self._root = root
        self._run = run
        self._shown = f"/{path}"
        self._editor = editor
        self.path = _followed(root, path)

    def obstacles(self) -> List[str]:
        """Why GRUB cannot boot an entry once here."""
        found = []
        file = self._root / self.path
        raw = file.read_bytes() if file.is_file() else None
        create = f"run {self._editor} {self._shown} create"
        if raw is None:
            found.append(f"{self._shown} is missing: {create}")
        elif len(raw) != _BYTES or not raw.startswith(_SIGNATURE):
            found.append(f"{self._shown} is no environment block: {create}")
        fs_type, source = self._mount()
        if _NO_WRITE.match(fs_type) or re.match(r"/dev/(md|dm-|mapper/)", source):
            found.append(
                f"{self._shown.rpartition('/')[0]} lies on {fs_type} on {source}, where GRUB cannot take back that an "
                f"entry is booted once: put /boot on a plain partition"
            )
        return found

    def variables(self) -> Dict[str, str]:
        """All variables; none where there is no block."""
        try:
            return variables_of((self._root / self.path).read_bytes())
        except OSError:
            return {}

    def get(self, name: str) -> str:
        """A variable's value, empty when it is not set."""
        return self.variables().get(name, "")

    def set(self, name: str, value: str) -> None:
        """Give a variable a value and read it back; an empty value unsets it.

        :raises TopovirtError: the editor failed or changed nothing.
        """
        words = ["set", f"{name}={value}"] if value else ["unset", name]
        status, _out, errors = self._run([self._editor, str(self._root / self.path), *words])
        if status != 0 or self.get(name) != value:
            raise TopovirtError(f"{self._editor} could not change {name} in {self._shown}: {errors.strip()}")

    def next_entry(self) -> str:
        """The id that is booted once, empty when none is set."""
        return self.get(_NEXT)

    def set_next_entry(self, entry_id: str) -> None:
        """Boot this entry once; an empty id takes it back."""
        self.set(_NEXT, entry_id)

    def _mount(self) -> Tuple[str, str]:
        """File system type and source of what the block lies on."""
        best, found = -1, ("", "")
        try:
            lines = (self._root / "proc/self/mountinfo").read_text(encoding="utf-8", errors="replace").splitlines()
        except OSError:
            return found
        for line in lines:
            left, _separator, right = line.partition(" - ")
            point = left.split()[4].rstrip("/")
            if f"/{self.path}".startswith(f"{point}/") and len(point) >= best:
                best, found = len(point), (right.split()[0], right.split()[1])
        return found


def variables_of(block: bytes) -> Dict[str, str]:
    """The variables of a block."""
    lines = block[len(_SIGNATURE) :].decode("utf-8", "replace").splitlines()
    pairs = (line.partition("=") for line in lines if "=" in line and not line.startswith("#"))
    return {name: value for name, _equals, value in pairs}


def lasting(block: bytes) -> List[bytes]:
    """The lines of a block but for the entry to boot once, comments and the padding; their order means nothing."""
    lines = [line for line in block.split(b"\n") if line.strip(b"#") and not line.startswith(f"{_NEXT}=".encode())]
    return sorted(line for line in lines if not line.startswith((b"# GRUB", b"# WARNING")))


def _followed(root: Path, path: str) -> str:
    """The path without links, below the root."""
    try:
        return str((root / path).resolve().relative_to(root.resolve()))
    except ValueError:  # an absolute link, which leads out of a tree that is not the running one
        return path
