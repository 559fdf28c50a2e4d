# Copyright: the topovirt.kvm authors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Small files that belong to a VM (its NCCL topology file, for one): written whole or not at all, and put back."""

from __future__ import annotations

import contextlib
import os
import stat
from pathlib import Path
from typing import List, NamedTuple, Optional, Sequence

from ansible_collections.topovirt.kvm.plugins.module_utils._errors import TopovirtError
from ansible_collections.topovirt.kvm.plugins.module_utils._host.files import write_file

# Files of VMs lie here and nowhere else, so that removing a VM can never remove anything of somebody else's.
DIRECTORIES = ("/var/lib/topovirt/vms", "/var/lib/libvirt/images/topovirt")


class WantedFile(NamedTuple):
    path: str  # absolute
    content: str
    mode: int


class PriorFile(NamedTuple):
    """What was at a path before; content None when nothing was."""

    path: str
    content: Optional[bytes]
    mode: int


def check_paths(paths: Sequence[str]) -> None:
    """:raises TopovirtError: naming every path that is not below our directories."""
    wrong = [
        path
        for path in paths
        if os.path.normpath(path) != path or not any(path.startswith(f"{parent}/") for parent in DIRECTORIES)
    ]
    if wrong:
        raise TopovirtError(
            f"Files of a VM must lie below {' or '.join(DIRECTORIES)}, these do not: {', '.join(wrong)}."
        )


def below(root: Path, path: str) -> Path:
    """The place of an absolute ``path`` below ``root``."""
    return root / path.lstrip("/")


def make_directories(place: Path) -> None:
    """Make what is missing of a directory and those above it.

    Search permission lets libvirt's own user reach a file whose name it was given; it cannot list the directory.
    """
    if not place.is_dir():
        make_directories(place.parent)
        place.mkdir(exist_ok=True)
        place.chmod(0o711)


def read_prior(root: Path, path: str) -> PriorFile:
    place = below(root, path)
    try:
        return PriorFile(path, place.read_bytes(), stat.S_IMODE(place.stat().st_mode))
    except FileNotFoundError:
        return PriorFile(path, None, 0)


def differs(root: Path, wanted: WantedFile) -> bool:
    """Whether the file has to be written."""
    prior = read_prior(root, wanted.path)
    return prior.content != wanted.content.encode("utf-8") or prior.mode != wanted.mode


def write_bytes(root: Path, path: str, content: bytes, mode: int) -> None:
    """Write a file so that a reader sees the old or the new one, never a part; missing directories are made."""
    place = below(root, path)
    make_directories(place.parent)
    write_file(place, content, mode)


def write(root: Path, wanted: WantedFile) -> None:
    write_bytes(root, wanted.path, wanted.content.encode("utf-8"), wanted.mode)


def restore(root: Path, prior: PriorFile) -> None:
    """Undo a write."""
    if prior.content is None:
        remove(root, prior.path)
    else:
        write_bytes(root, prior.path, prior.content, prior.mode)


def remove(root: Path, path: str) -> None:
    """Remove a file that may be gone already, and our directories above it when they are empty now."""
    with contextlib.suppress(FileNotFoundError):
        below(root, path).unlink()
    for parent in Path(path).parents:
        if not any(str(parent).startswith(directory) for directory in DIRECTORIES):
            break
        # Not empty: another file is still there.
        with contextlib.suppress(OSError):
            below(root, str(parent)).rmdir()


def existing(root: Path, paths: Sequence[str]) -> List[str]:
    return [path for path in paths if os.path.lexists(below(root, path))]
