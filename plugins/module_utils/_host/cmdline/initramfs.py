# Copyright: the topovirt.kvm authors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""What builds an initramfs of our own beside the host's: from the same configuration, with early binding added."""

from __future__ import annotations

import os
from abc import ABC, abstractmethod
from pathlib import Path
from typing import ClassVar, Dict, List, Sequence

from ansible_collections.topovirt.kvm.plugins.module_utils._errors import TopovirtError
from ansible_collections.topovirt.kvm.plugins.module_utils._host.files import digest, remove_tree, sync_directory
from ansible_collections.topovirt.kvm.plugins.module_utils._host.places import STATE, TOKEN, Run

_BOOT = Path("boot")
_TREE = STATE / "initramfs"  # there while an image is built


class Initramfs(ABC):
    """A builder of initramfs images."""

    program: ClassVar[str]  # that builds them
    paths: ClassVar[Sequence[str]]  # where it may lie, relative to the root
    pattern: ClassVar[str]  # how the family names images, ``{kernel}`` aside

    # Kernel arguments with which a trial boot whose root file system is not found reboots rather than opens a shell.
    trial_arguments: ClassVar[Sequence[str]] = ()

    def __init__(self, root: Path, run: Run) -> None:
        self._root = root
        self._run = run

    @classmethod
    def found(cls, root: Path) -> bool:
        return any((root / path).exists() for path in cls.paths)

    def image(self, identity: str, kernel: str) -> Path:
        """Where our image for a kernel goes, relative to the root."""
        return _BOOT / f"{TOKEN}-{identity}-{self.pattern.format(kernel=kernel)}"

    def kernel_of(self, image: str) -> str:
        """The kernel that an image of ours is for."""
        before, _kernel, after = self.pattern.partition("{kernel}")
        return Path(image).name.partition(before)[2][: -len(after) or None]

    def inputs_digest(self, identity: str, devices: Sequence[str], kernel: str) -> str:
        """Changes when the image has to be built again."""
        text = "".join(self._additions(identity, devices).values()) + kernel
        return digest(text.encode("ascii"))[:16]

    def build(self, identity: str, devices: Sequence[str], image: Path) -> None:
        """Build ``image`` (absolute, replaced in one step).

        :raises TopovirtError: with what the program says; nothing is left behind.
        """
        kernel, new, tree = self.kernel_of(image.name), image.with_name(f"{image.name}.new"), self._root / _TREE
        remove_tree(tree)
        try:
            self._lay_out(tree, self._additions(identity, devices))
            status, out, errors = self._run(self._command(tree, kernel, new))
        finally:
            remove_tree(tree)
        if status != 0 or not new.is_file():
            remove_tree(new)
            raise TopovirtError(
                f"{self.program} failed for kernel {kernel}: {(errors or out).strip()}",
                "Nothing was changed for the next boot; correct it and run again.",
            )
        with new.open("rb+") as file:
            os.fsync(file.fileno())
        new.replace(image)
        sync_directory(image.parent)

    @abstractmethod
    def _additions(self, identity: str, devices: Sequence[str]) -> Dict[str, str]:
        """Files that the image has besides the host's own, by path."""

    @abstractmethod
    def _lay_out(self, tree: Path, additions: Dict[str, str]) -> None:
        """Make the directory ``tree`` that the program takes the additions from."""

    @abstractmethod
    def _command(self, tree: Path, kernel: str, target: Path) -> List[str]:
        """What builds the image."""


def lay(tree: Path, files: Dict[str, str], mode: int) -> None:
    """Write files below a directory, with the directories above them."""
    for name, text in files.items():
        path = tree / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text, encoding="ascii")
        path.chmod(mode)
