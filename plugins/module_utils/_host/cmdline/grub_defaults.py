# Copyright: the topovirt.kvm authors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Shell assignments of ``/etc/default/grub``, as text in and text out."""

from __future__ import annotations

import re
from typing import Callable, Tuple

from ansible_collections.topovirt.kvm.plugins.module_utils._host.cmdline.arguments import split

PATH = "etc/default/grub"

Words = Tuple[str, ...]


def _assignment(name: str) -> str:
    return rf"""^([ \t]*(?:export[ \t]+)?{name}=)(?:"((?:[^"\\\n]|\\.)*)"|'([^'\n]*)'|([^\s"'#;]*))"""


def words_of(text: str, name: str) -> Words:
    """Words of the last assignment to a variable; none when there is none."""
    found = list(re.finditer(_assignment(name), text, re.MULTILINE))
    return _words(found[-1]) if found else ()


def with_words(text: str, name: str, edit: Callable[[Words], Words]) -> str:
    """The text with other words in the last assignment to a variable; the same text when there is nothing to do."""
    found = list(re.finditer(_assignment(name), text, re.MULTILINE))
    if not found:
        return text
    last = found[-1]
    words = edit(_words(last))
    if words == _words(last):
        return text
    value = " ".join(words)
    escaped = value.replace('"', '\\"')
    quoted = f"'{value}'" if last.group(3) is not None else f'"{escaped}"'
    return f"{text[: last.start()]}{last.group(1)}{quoted}{text[last.end() :]}"


def _words(found: re.Match[str]) -> Words:
    double, single, bare = found.group(2), found.group(3), found.group(4)
    return split(double.replace('\\"', '"') if double is not None else single if single is not None else bare)
