# Copyright: the topovirt.kvm authors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""What the search for uses reads or makes of names, beyond what ``Tree`` offers for plain attributes."""

from __future__ import annotations

import io
import re
from collections.abc import Iterator

from ansible_collections.topovirt.kvm.plugins.module_utils._topology.pci import BDF
from ansible_collections.topovirt.kvm.plugins.module_utils._topology.sysfs import Tree

# Tables grow with mounts, routes and connections. A line that is cut off could be the one that names a device in use,
# so this is far above what 100000 mounts (the kernel's default limit for a namespace) need.
_TABLE_BYTES = 64 << 20


def lines(tree: Tree, path: str) -> Iterator[str]:
    """The lines of a file that can be larger than one page; none when it cannot be read.

    Only a line feed ends a line: names of files may hold any other character that Python takes for an end.
    """
    for line in io.BytesIO(tree.raw(path, _TABLE_BYTES) or b""):
        yield line.rstrip(b"\n").decode("utf-8", "replace")


def shown(name: str) -> str:
    """The name of a file or the target of a link as the text of a file would have it.

    Python keeps bytes of names that are not UTF-8 as surrogates, which neither equal that text nor can be encoded.
    """
    return name.encode("utf-8", "surrogateescape").decode("utf-8", "replace")


def bdf_of(tree: Tree, path: str) -> str | None:
    """The PCI function that a sysfs directory lies below: the last BDF of its real path."""
    found = [part for part in (tree.resolved(path) or "").split("/") if BDF.match(part)]
    return found[-1] if found else None


def unescape(field: str) -> str:
    """mountinfo and swaps write blank, tab, newline and backslash as octal."""
    return re.sub(r"\\([0-7]{3})", lambda match: chr(int(match.group(1), 8)), field)
