# Copyright: the topovirt.kvm authors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""What a boot loader must be able to do for us, and which one this host has.

The conversion never rewrites an existing entry: it adds one of its own, boots it once, and makes it the default after
it was verified.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from dataclasses import dataclass, field
from pathlib import Path
from typing import Dict, List, Optional, Sequence, Tuple

from ansible_collections.topovirt.kvm.plugins.module_utils._host.cmdline.environment import EnvironmentBlock


@dataclass(frozen=True)
class Entry:
    """A boot entry. Paths are as the boot loader sees them."""

    id: str
    title: str
    kernel: str
    initrds: Tuple[str, ...]
    arguments: Tuple[str, ...]
    options: Tuple[str, ...] = ()  # of the menu entry
    body: Tuple[str, ...] = field(default=())  # commands before the kernel is loaded, such as finding its disk

    @property
    def kernel_version(self) -> str:
        """The release in the kernel's file name (``vmlinuz-<release>``)."""
        name = self.kernel.rsplit("/", 1)[-1]
        return name.partition("-")[2]


class BootLoader(ABC):
    """A boot loader with entries of ours and an entry that is booted once.

    :param environment: where it keeps the entry for the next boot.
    """

    shared_file: Optional[str] = None  # relative to the root: where our entries stand among those of others

    def __init__(self, root: Path, environment: EnvironmentBlock) -> None:
        self._root = root
        self.environment = environment

    @abstractmethod
    def obstacles(self) -> List[str]:
        """Why a trial boot is not possible here."""

    @abstractmethod
    def default_entry(self, before: str) -> Entry:
        """The entry that the host boots by itself, ours aside.

        :param before: id of the entry that was the default before ours, empty when ours never was.
        :raises TopovirtError: there is none that boots Linux.
        """

    @abstractmethod
    def next_arguments(self) -> Tuple[str, ...]:
        """The kernel command line of the next boot.

        :raises TopovirtError: no entry boots Linux.
        :raises OSError: a file cannot be read.
        """

    def initrd_path(self, entry: Entry, name: str) -> str:
        """How the boot loader names a file ``name`` that lies beside the kernel of ``entry``."""
        return f"{entry.kernel.rpartition('/')[0]}/{name}"

    @abstractmethod
    def files(self, entries: List[Entry], default: Optional[Entry]) -> Dict[str, str]:
        """Path (relative to the root) -> text of the files that hold exactly these entries of ours.

        :param default: which of them the host boots by itself, where a file says so.
        """

    def stale(self, entries: List[Entry]) -> List[str]:
        """Files of entries of ours that are not among these."""
        return []

    def without_ours(self, current: str) -> str:
        """The text of the shared file less everything of ours."""
        return current

    def default_id(self) -> Optional[str]:
        """The default where the environment block names it; None where a file does, see :meth:`files`."""
        return None

    def set_default_id(self, entry_id: str) -> None:
        """Change it; only where :meth:`default_id` is not None."""
        raise NotImplementedError

    def expanded(self, words: Sequence[str]) -> Tuple[str, ...]:
        """Kernel arguments as the boot loader hands them over."""
        return tuple(words)
