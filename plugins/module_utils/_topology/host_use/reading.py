# Copyright: the topovirt.kvm authors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Small files, directories and links below a root, read so that what is missing or forbidden counts as empty."""

from __future__ import annotations

import os
import re
from pathlib import Path

from ansible_collections.topovirt.kvm.plugins.module_utils._topology.pci import BDF


def text(path: Path) -> str:
    try:
        return path.read_text(encoding="utf-8", errors="surrogateescape")
    except OSError:
        return ""


def names(path: Path) -> list[str]:
    try:
        return sorted(os.listdir(path))
    except OSError:
        return []


def link_name(path: Path) -> str | None:
    try:
        return os.path.basename(os.readlink(path))
    except OSError:
        return None


def bdf_of(path: Path) -> str | None:
    """The PCI function that a sysfs directory lies below: the last BDF of its real path."""
    try:
        parts = path.resolve().parts
    except (OSError, RuntimeError):
        return None
    found = [part for part in parts if BDF.match(part)]
    return found[-1] if found else None


def unescape(field: str) -> str:
    """mountinfo and swaps write blank, tab, newline and backslash as octal."""
    return re.sub(r"\\([0-7]{3})", lambda match: chr(int(match.group(1), 8)), field)
