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
from typing import List, Optional, Tuple


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
    """A boot loader with a file for entries of ours and an entry that is booted once."""

    entries_file: str  # relative to the root: where our entries go
    once_file: str  # relative to the root: where the entry for the next boot is kept

    @abstractmethod
    def obstacles(self) -> List[str]:
        """Why a trial boot is not possible here."""

    @abstractmethod
    def default_entry(self) -> Entry:
        """The entry that the host boots by itself, ours aside."""

    @abstractmethod
    def initrd_path(self, entry: Entry, name: str) -> str:
        """How the boot loader names a file ``name`` that lies beside the kernel of ``entry``."""

    @abstractmethod
    def render(self, current: str, entries: List[Entry], default: Optional[Entry]) -> str:
        """The text of the entries file with exactly these entries of ours; what others wrote into it stays."""

    @abstractmethod
    def without_ours(self, current: str) -> str:
        """The text of the entries file less everything of ours."""

    @abstractmethod
    def next_entry(self) -> str:
        """The id that is booted once, empty when none is set."""

    @abstractmethod
    def set_next_entry(self, entry_id: str) -> None:
        """Boot this entry once; an empty id takes it back."""
