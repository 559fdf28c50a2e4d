# Copyright: the topovirt.kvm authors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Reads a topology file as strictly as NCCL's own parser, which is no XML parser (NVIDIA/nccl, src/graph/xml.cc)."""

from __future__ import annotations

import re
from dataclasses import dataclass, field

# Of NCCL's ELEMENTS places the parser wants one to be free when it looks for the next tag.
ELEMENTS = 256
_NAME = re.compile(r"[^ />\n\r=\t<]+")
_ATTRIBUTE = re.compile(r""" ([^ />\n\r=\t<]+)=("[^"]*"|'[^']*')""")
_COMMENT = re.compile(r"<!--.*?-->", re.DOTALL)


class Refused(Exception):
    """NCCL's initialization fails."""


@dataclass
class Tag:
    name: str
    attributes: dict[str, str]
    children: list[Tag] = field(default_factory=list)

    def all(self) -> list[Tag]:
        return [self] + [tag for child in self.children for tag in child.all()]


class _Reader:
    def __init__(self, text: str) -> None:
        self.text, self.place, self.count = text, 0, 0

    def skip(self) -> None:
        while self.place < len(self.text):
            comment = _COMMENT.match(self.text, self.place)
            if comment:
                self.place = comment.end()
            elif self.text[self.place] in " \n\r":
                self.place += 1
            else:
                return

    def expect(self, text: str) -> None:
        if not self.text.startswith(text, self.place):
            raise Refused(f"expected {text!r} at {self.text[self.place : self.place + 40]!r}")
        self.place += len(text)

    def name(self) -> str:
        found = _NAME.match(self.text, self.place)
        if not found:
            raise Refused(f"no name at {self.text[self.place : self.place + 40]!r}")
        self.place = found.end()
        return found.group()

    def tag(self) -> Tag:
        if self.count == ELEMENTS:
            raise Refused("too many elements")
        self.count += 1
        self.expect("<")
        if self.text.startswith("?", self.place):
            raise Refused("a declaration")
        tag = Tag(self.name(), {})
        while found := _ATTRIBUTE.match(self.text, self.place):
            tag.attributes[found.group(1)] = found.group(2)[1:-1]
            self.place = found.end()
        if self.text.startswith("/>", self.place):
            self.place += 2
            return tag
        self.expect(">")
        self.skip()
        while not self.text.startswith("</", self.place):
            tag.children.append(self.tag())
            self.skip()
        if self.count == ELEMENTS:
            raise Refused("too many elements")
        self.expect("</")
        if self.name() != tag.name:
            raise Refused(f"{tag.name} is not closed")
        self.expect(">")
        return tag


def parse(text: str) -> Tag:
    """
    :raises Refused: where NCCL refuses the file.
    """
    reader = _Reader(text)
    reader.skip()
    system = reader.tag()
    reader.skip()
    if reader.place != len(text):
        raise Refused("text after the last element")
    if system.name == "system" and system.attributes.get("version") != "1":
        raise Refused("version")
    return system
