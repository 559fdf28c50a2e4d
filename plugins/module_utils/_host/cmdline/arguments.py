# Copyright: the topovirt.kvm authors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Words of a kernel command line: parted as the kernel parts them, compared as it compares them, added and removed."""

from __future__ import annotations

import re
from typing import List, Sequence, Tuple

# What follows this word goes to the first process and is no argument of the kernel (kernel-parameters.txt).
_END = "--"
# GRUB expands or unquotes these wherever they stand, and takes the others for ends of its command outside quotes (GRUB
# manual, "Quoting"); a value that needs them cannot be written the same way for every boot loader.
_NEVER = re.compile(r"""[$`\\'\x00-\x1f\x7f]""")
_NOT_BARE = re.compile(r"[;&|<>{}]")


def split(text: str) -> Tuple[str, ...]:
    """Words of a command line; a space between double quotes belongs to its word (the kernel's ``next_arg``)."""
    return tuple(re.findall(r'(?:[^\s"]|"[^"]*(?:"|\Z))+', text))


def name_of(word: str) -> str:
    """The name of an argument, in the form in which two spellings of it are equal: the kernel takes ``-`` for ``_``."""
    return _plain(word).partition("=")[0].replace("-", "_")


def same(one: str, other: str) -> bool:
    """Whether two words say the same to the kernel, wherever their quotes and dashes are."""
    return _comparable(one) == _comparable(other)


def edited(words: Sequence[str], present: Sequence[str], absent: Sequence[str]) -> Tuple[str, ...]:
    """``words`` with ``present`` in them and ``absent`` not.

    An argument replaces every other value of its name, as in ``grubby``; the values of a name that may be given several
    times are therefore all given. What is already there, in the given order, stays where it is.

    :param absent: names, each without regard to its value, or ``name=value`` for exactly that.
    """
    end = list(words).index(_END) if _END in words else len(words)
    kept = [word for word in words[:end] if not any(_meant(gone, word) for gone in absent)]
    names = {name_of(word) for word in present}
    own = [_comparable(word) for word in kept if name_of(word) in names]
    if own != [_comparable(word) for word in present]:
        kept = [*(word for word in kept if name_of(word) not in names), *present]
    return (*kept, *words[end:])


def complaints(present: Sequence[str], absent: Sequence[str]) -> List[str]:
    """What is wrong with the arguments that were asked for, a sentence each."""
    found = []
    for option, words in (("present", present), ("absent", absent)):
        for word in words:
            bare = re.sub(r'"[^"]*"', "", word)
            if split(word) != (word,) or word.count('"') % 2:
                found.append(f"{option}: {word!r} is not one argument: put spaces of its value between double quotes")
            elif not name_of(word) or word == _END:
                found.append(f"{option}: {word!r} has no name")
            elif _NEVER.search(word) or _NOT_BARE.search(bare):
                found.append(f"{option}: {word!r} has a character that boot loaders do not pass on as it is")
    for word in present:
        found += [f"{word} is wanted present and, by {gone}, absent" for gone in absent if _meant(gone, word)]
    return found


def _meant(gone: str, word: str) -> bool:
    return same(gone, word) if "=" in gone else name_of(gone) == name_of(word)


def _comparable(word: str) -> Tuple[str, str, str]:
    _name, equals, value = _plain(word).partition("=")
    return name_of(word), equals, value


def _plain(word: str) -> str:
    return word.replace('"', "")
