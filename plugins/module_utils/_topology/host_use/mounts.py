# Copyright: the topovirt.kvm authors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""What is mounted on the host, in all its mount namespaces."""

from __future__ import annotations

from typing import NamedTuple

from ansible_collections.topovirt.kvm.plugins.module_utils._topology.host_use import reading
from ansible_collections.topovirt.kvm.plugins.module_utils._topology.sysfs import Tree


class Mount(NamedTuple):
    device: str  # major:minor
    mount_point: str
    fs_type: str
    source: str
    options: str


def all_mounts(tree: Tree) -> list[Mount]:
    """All mounts of all mount namespaces: a container may hold a disk that the first one does not show."""
    found: dict[Mount, None] = {}
    seen: set[str] = set()
    for process in ["self", *sorted((name for name in tree.names("proc") if name.isdecimal()), key=int)]:
        namespace = tree.link_name(f"proc/{process}/ns/mnt") if process != "self" else None
        if namespace is not None and namespace in seen:
            continue
        if namespace is not None:
            seen.add(namespace)
        for line in reading.lines(tree, f"proc/{process}/mountinfo"):
            mount = _mount(line)
            if mount is not None:
                found[mount] = None
    return list(found)


def _mount(line: str) -> Mount | None:
    """A line of mountinfo (proc(5)): one blank between fields, for a source can be empty."""
    left, separator, right = line.partition(" - ")
    fields, tail = left.split(" "), right.split(" ")
    if not separator or len(fields) < 5 or len(tail) < 2:
        return None
    options = tail[2] if len(tail) > 2 else ""
    return Mount(fields[2], reading.unescape(fields[4]), tail[0], reading.unescape(tail[1]), options)
