# Copyright: the topovirt.kvm authors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Entry files of the Boot Loader Specification under GRUB, as on RHEL: every entry, and what new kernels inherit from.

``grubby`` changes them where the host has it. It goes by patterns and its status is not the whole truth, so every entry
is read back word by word by whoever calls this.
"""

from __future__ import annotations

from pathlib import Path
from typing import ClassVar, List, Tuple

from ansible_collections.topovirt.kvm.plugins.module_utils._host.cmdline import bls_entry, grub_defaults
from ansible_collections.topovirt.kvm.plugins.module_utils._host.cmdline.arguments import name_of, split
from ansible_collections.topovirt.kvm.plugins.module_utils._host.cmdline.bls import ENTRIES
from ansible_collections.topovirt.kvm.plugins.module_utils._host.cmdline.bls import Bls as BlsLoader
from ansible_collections.topovirt.kvm.plugins.module_utils._host.cmdline.edit import (
    Change,
    Edit,
    Editor,
    Entries,
    Words,
)
from ansible_collections.topovirt.kvm.plugins.module_utils._host.cmdline.environment import EnvironmentBlock

# Arguments of kernels that are installed later (kernel-install(8)); grubby keeps the second up to date, too.
INHERITED = "etc/kernel/cmdline"
_MAIN, _MORE = "GRUB_CMDLINE_LINUX", "GRUB_CMDLINE_LINUX_DEFAULT"
_BLOCK = "boot/grub2/grubenv"
_KERNELOPTS = "$kernelopts"


class EntryFiles(Editor):
    """Entry files, whatever boot loader reads them."""

    directories: ClassVar[Tuple[str, ...]]

    def entries(self) -> Entries:
        return {path: bls_entry.parse(path, self.read(path) or "").arguments for path in self.files()}

    def files(self) -> List[str]:
        """Paths of the entry files, relative to the root."""
        return [
            f"{directory}/{path.name}"
            for directory in self.directories
            for path in sorted((self.root / directory).glob("*.conf"))
        ]

    def paths(self) -> List[str]:
        return [*self.files(), *([INHERITED] if self.read(INHERITED) is not None else [])]

    def rewrite(self, path: str, text: str, of: Change, of_rest: Change) -> str:
        if path == INHERITED:
            words = split(text)
            other_words = of(words)
            return text if other_words == words else " ".join(other_words) + "\n"
        entry = bls_entry.parse(path, text)
        other = entry.with_arguments(of(entry.arguments))
        return text if other is entry else bls_entry.render(other)


class Bls(EntryFiles):
    name = "bls"
    directories = (ENTRIES,)

    @staticmethod
    def found(root: Path) -> bool:
        return BlsLoader.found(root)

    def obstacles(self, edit: Edit) -> List[str]:
        """Words in a variable of GRUB's environment cannot be taken away where only its name stands."""
        hidden = split(EnvironmentBlock(self.root, self.run, _BLOCK, "grub2-editenv").get(_KERNELOPTS[1:]))
        stay = [word for word in hidden if word not in edit.of_rest(hidden)]
        return [
            f"boot entry {path} takes {' '.join(stay)} from the variable kernelopts in /boot/grub2/grubenv: write it "
            f"out first, as grubby --update-kernel=ALL does"
            for path, words in self.entries().items()
            if stay and _KERNELOPTS in words
        ]

    def paths(self) -> List[str]:
        return [*super().paths(), *([grub_defaults.PATH] if self.read(grub_defaults.PATH) is not None else [])]

    def rewrite(self, path: str, text: str, of: Change, of_rest: Change) -> str:
        if path != grub_defaults.PATH:
            return super().rewrite(path, text, of, of_rest)
        return grub_defaults.with_words(grub_defaults.with_words(text, _MAIN, of), _MORE, of_rest)

    def has_tool(self, edit: Edit) -> bool:
        # grubby parts words at every space, may keep the last value of a name only, and edits one line of an entry.
        quoted = any('"' in word for word in (*edit.present, *edit.absent))
        names = [name_of(word) for word in edit.present]
        entries = (bls_entry.parse(path, self.read(path) or "") for path in self.files())
        if quoted or len(set(names)) < len(names) or any(len(entry.values("options")) > 1 for entry in entries):
            return False
        return any((self.root / place).exists() for place in ("usr/sbin/grubby", "sbin/grubby"))

    def make(self, edit: Edit, gone: Words) -> None:
        words = ["grubby", "--update-kernel=ALL"]
        if gone:
            words.append(f"--remove-args={' '.join(gone)}")
        if edit.present:
            words.append(f"--args={' '.join(edit.present)}")
        self.command(words)
