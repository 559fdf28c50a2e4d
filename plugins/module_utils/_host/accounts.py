# Copyright: the topovirt.kvm authors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""The account files (passwd, group, shadow, gshadow, subuid, subgid), entry by entry."""

from __future__ import annotations

from typing import Dict, List

# name of the file below /etc -> whether its last field is a list of members
ACCOUNT_FILES = {
    "etc/passwd": False,
    "etc/shadow": False,
    "etc/group": True,
    "etc/gshadow": True,
    "etc/subuid": False,
    "etc/subgid": False,
}


def entries(text: str) -> Dict[str, List[str]]:
    """Entries by name; a name may have several lines in subuid and subgid."""
    found: Dict[str, List[str]] = {}
    for line in text.splitlines():
        found.setdefault(line.split(":", 1)[0], []).append(line)
    return found


def added(before: str, after: str) -> List[str]:
    """Names of entries that are in ``after`` only."""
    return [name for name in entries(after) if name and name not in entries(before)]


def number_of(text: str, name: str) -> int:
    """The user or group id of an entry of passwd or group."""
    return int(entries(text)[name][0].split(":")[2])


def without(path: str, current: str, before: str, after: str, keep: List[str]) -> str:
    """``current`` less what came between ``before`` and ``after``: whole entries, and members of groups.

    :param keep: names whose entries stay (they own files).
    """
    old, new = entries(before), entries(after)
    gone = set(added(before, after)) - set(keep)
    lines = []
    for line in current.splitlines(keepends=True):
        name = line.split(":", 1)[0].rstrip("\n")
        if name in gone:
            continue
        if ACCOUNT_FILES[path] and name in old and name in new:
            extra = set(_members(new[name][0])) - set(_members(old[name][0])) - set(keep)
            if extra & set(_members(line)):
                head = line.rpartition(":")[0]
                line = f"{head}:{','.join(member for member in _members(line) if member not in extra)}\n"
        lines.append(line)
    return "".join(lines)


def _members(line: str) -> List[str]:
    return [member for member in line.rstrip("\n").rpartition(":")[2].split(",") if member]
