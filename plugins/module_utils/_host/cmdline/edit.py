# Copyright: the topovirt.kvm authors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""How the kernel arguments of the entries that a host has are changed; one file for each kind of boot configuration."""

from __future__ import annotations

from abc import ABC, abstractmethod
from dataclasses import dataclass
from pathlib import Path
from typing import Callable, ClassVar, Dict, List, Optional, Tuple

from ansible_collections.topovirt.kvm.plugins.module_utils._errors import TopovirtError
from ansible_collections.topovirt.kvm.plugins.module_utils._host.cmdline.arguments import edited, name_of
from ansible_collections.topovirt.kvm.plugins.module_utils._host.places import Run

Words = Tuple[str, ...]
# Entry -> words of its command line.
Entries = Dict[str, Words]
Change = Callable[[Words], Words]


@dataclass(frozen=True)
class Edit:
    """What is to be on every command line, and what is not."""

    present: Words = ()
    absent: Words = ()

    def of(self, words: Words) -> Words:
        return edited(words, self.present, self.absent)

    def of_rest(self, words: Words) -> Words:
        """For words that are put behind those that ``of`` makes: nothing is added."""
        return edited(words, (), (*self.absent, *(name_of(word) for word in self.present)))

    def then(self, later: Edit) -> Edit:
        """Both edits, of which the later one counts where they speak of the same."""
        absent = [word for word in self.absent if word not in later.absent]
        absent = [word for word in absent if not any(name_of(word) == name_of(new) for new in later.present)]
        present = (*later.of_rest(self.present), *later.present)
        # Other values of a word do not come back when it goes itself: with it there was no other.
        names = {name_of(word) for word in present}
        displaced = [name_of(word) for word in self.present if name_of(word) not in names]
        return Edit(present, tuple(dict.fromkeys((*absent, *displaced, *later.absent))))


class Editor(ABC):
    """The boot configuration of a host. Files are texts that are planned; tools are run by ``make``."""

    name: ClassVar[str]
    generated: Optional[str] = None  # a file that a program makes of the others

    def __init__(self, root: Path, run: Run) -> None:
        self.root = root
        self.run = run

    @staticmethod
    @abstractmethod
    def found(root: Path) -> bool:
        """Whether the host below ``root`` boots this way."""

    def obstacles(self, edit: Edit) -> List[str]:
        """Why it cannot be edited: a sentence each."""
        return []

    @abstractmethod
    def entries(self) -> Entries:
        """The entries of the host, as they are on disk."""

    def paths(self) -> List[str]:
        """Files with command lines that take part."""
        return []

    def rewrite(self, path: str, text: str, of: Change, of_rest: Change) -> str:
        """A text of such a file with other words.

        :param of_rest: for words that are put behind others on the same command line.
        """
        return text

    def texts(self, edit: Edit) -> Dict[str, str]:
        """Path to text of every file that takes part, as it shall be."""
        return {path: self.rewrite(path, self.read(path) or "", edit.of, edit.of_rest) for path in self.paths()}

    def parts(self, path: str, text: str) -> Tuple[List[Words], str]:
        """The words on the command lines of a text, and the text without them."""
        found: List[Words] = []

        def take(words: Words) -> Words:
            found.append(words)
            return ()

        rest = self.rewrite(path, text, take, take)
        return found, rest

    def has_tool(self, edit: Edit) -> bool:
        """Whether ``make`` changes the entries, rather than who has the texts."""
        return False

    def make(self, edit: Edit, gone: Words) -> None:
        """Change the entries with the host's own tool.

        :param gone: words that leave some entry.
        :raises TopovirtError: when the tool fails.
        """
        raise NotImplementedError

    def regenerate(self) -> None:
        """Make ``generated`` anew.

        :raises TopovirtError: when the program fails.
        """
        raise NotImplementedError

    def read(self, path: str) -> Optional[str]:
        """The text of a file, ``None`` when there is none."""
        file = self.root / path
        return file.read_text(encoding="utf-8", errors="surrogateescape") if file.is_file() else None

    def command(self, words: List[str]) -> str:
        """Run a tool and return what it says.

        :raises TopovirtError: when it fails or is not there.
        """
        try:
            status, out, errors = self.run(words)
        except OSError as error:
            raise TopovirtError(f"{words[0]} cannot be run: {error.strerror or error}.") from None
        if status != 0:
            said = (errors or out).strip()
            raise TopovirtError(f"{' '.join(words)} failed with status {status}: {said or 'it says nothing'}.")
        return out
