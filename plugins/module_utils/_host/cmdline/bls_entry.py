# Copyright: the topovirt.kvm authors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""A boot entry file of the Boot Loader Specification (type 1): text to lines of key and value, and back."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Sequence, Tuple

from ansible_collections.topovirt.kvm.plugins.module_utils._host.cmdline.arguments import split

_OPTIONS = "options"


@dataclass(frozen=True)
class BlsEntry:
    """An entry. Comments and blank lines are lines with an empty key.

    A value that begins with white space carries the whole space between itself and its key: some tools write columns.
    """

    id: str  # file name without .conf
    lines: Tuple[Tuple[str, str], ...]

    def values(self, key: str) -> Tuple[str, ...]:
        """Values of a key, in the order of the file."""
        return tuple(value.strip() for found, value in self.lines if found.strip() == key)

    @property
    def arguments(self) -> Tuple[str, ...]:
        """Words of all ``options``, which boot loaders join; variables such as ``$tuned_params`` are words too."""
        return tuple(word for value in self.values(_OPTIONS) for word in split(value))

    def with_arguments(self, words: Sequence[str]) -> BlsEntry:
        """The entry with these words, in the place of its first ``options``; itself when it has them."""
        if tuple(words) == self.arguments:
            return self
        lines, text = [], " ".join(words)
        written = False
        for key, value in self.lines:
            if key.strip() != _OPTIONS:
                lines.append((key, value))
            elif not written:
                gap = value[: len(value) - len(value.lstrip())]
                lines.append((key, gap + text))
                written = True
        if not written:
            lines.append((_OPTIONS, text))
        return replace(self, lines=tuple(lines))


def parse(entry_id: str, text: str) -> BlsEntry:
    """The entry that ``text`` is; every text is one."""
    return BlsEntry(entry_id, tuple(_line(line) for line in text[: -1 if text.endswith("\n") else None].split("\n")))


def render(entry: BlsEntry) -> str:
    """The text of an entry: of one that was parsed, its own, but for a newline that was missing at the end."""
    return "".join(f"{key}{_gap(key, value)}{value}\n" for key, value in entry.lines)


def _line(line: str) -> Tuple[str, str]:
    content = line.lstrip()
    if not content or content.startswith("#"):
        return "", line
    word = content.split(None, 1)[0]
    end = len(line) - len(content) + len(word)
    key, rest = line[:end], line[end:]
    plain = rest.startswith(" ") and not rest[1:2].isspace() and len(rest) > 1
    return key, rest[1:] if plain else rest


def _gap(key: str, value: str) -> str:
    return " " if key and value and not value[0].isspace() else ""
