# Copyright: the topovirt.kvm authors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""What is mounted on the host, in all its mount namespaces."""

from __future__ import annotations

from pathlib import Path
from typing import NamedTuple

from ansible_collections.topovirt.kvm.plugins.module_utils._topology.host_use import reading


class Mount(NamedTuple):
    device: str  # major:minor
    mount_point: str
    fs_type: str
    source: str
    options: str


def all_mounts(root: Path) -> list[Mount]:
    """All mounts of all mount namespaces: a container may hold a disk that the first one does not show."""
    found: dict[Mount, None] = {}
    seen: set[str] = set()
    for process in ["self", *sorted((name for name in reading.names(root / "proc") if name.isdecimal()), key=int)]:
        namespace = reading.link_name(root / "proc" / process / "ns/mnt") if process != "self" else None
        if namespace is not None and namespace in seen:
            continue
        if namespace is not None:
            seen.add(namespace)
        for line in reading.text(root / "proc" / process / "mountinfo").splitlines():
            left, separator, right = line.partition(" - ")
            fields, tail = left.split(), right.split()
            if separator and len(fields) >= 5 and len(tail) >= 2:
                options = tail[2] if len(tail) > 2 else ""
                found[Mount(fields[2], reading.unescape(fields[4]), tail[0], reading.unescape(tail[1]), options)] = None
    return list(found)
