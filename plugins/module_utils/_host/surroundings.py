# Copyright: the topovirt.kvm authors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Reasons in the host's software and disks not to convert it now: space, versions, a reboot that is due already."""

from __future__ import annotations

import os
import re
from pathlib import Path
from typing import Callable, Dict, List, Sequence, Tuple

from ansible_collections.topovirt.kvm.plugins.module_utils._errors import TopovirtError
from ansible_collections.topovirt.kvm.plugins.module_utils._host.cmdline.choice import boot_loader
from ansible_collections.topovirt.kvm.plugins.module_utils._host.places import STATE, Run
from ansible_collections.topovirt.kvm.plugins.module_utils._host.step import Change
from ansible_collections.topovirt.kvm.plugins.module_utils._topology.model import Topology

FreeBytes = Callable[[Path], int]

_MIB = 1 << 20
# QEMU, libvirt, firmware and what they need took 560 MiB on a minimal Debian 13; with room for downloads.
_PACKAGES_BYTES = 1024 * _MIB
# Inventory and saved originals took 12 MiB on the same; large hosts have more files.
_STATE_BYTES = 64 * _MIB
# An image of ours has the modules of vfio on top of the host's own; until it is complete the old one stays.
_IMAGE_MARGIN_BYTES = 32 * _MIB

# VMs get their firmware by <os firmware=...> (https://libvirt.org/formatdomain.html); everything newer has a way
# without it.
_OLDEST_LIBVIRT = (5, 2)


def free_bytes(path: Path) -> int:
    """What root may still write to the file system below a path."""
    info = os.statvfs(path)
    return info.f_bfree * info.f_frsize


def space(root: Path, changes: Sequence[Change], free: FreeBytes) -> List[str]:
    """File systems that have no room for what is planned."""
    needs: Dict[str, Tuple[int, str]] = {}
    if changes:
        needs[str(STATE.parent)] = (_STATE_BYTES, "the journal of the conversion")
    images = [change for change in changes if change.kind == "initramfs"]
    if images:
        sizes = [path.stat().st_size for pattern in ("initrd*", "initramfs*") for path in (root / "boot").glob(pattern)]
        needs["boot"] = (max(sizes, default=0) + _IMAGE_MARGIN_BYTES, "an initramfs of its own")
    if any(change.stage == "packages" for change in changes):
        needs["usr"] = (_PACKAGES_BYTES, "packages")
    found: List[str] = []
    together: Dict[int, List[str]] = {}
    for path in needs:
        if (root / path).is_dir():
            together.setdefault(os.stat(root / path).st_dev, []).append(path)
    for paths in together.values():
        needed, there = sum(needs[path][0] for path in paths), free(root / paths[0])
        if there < needed:
            what = " and ".join(needs[path][1] for path in paths)
            found.append(
                f"the file system of /{paths[0]} has {there // _MIB} MiB left, and the conversion needs "
                f"{needed // _MIB} MiB there for {what}: make room"
            )
    return found


def versions(topology: Topology) -> List[str]:
    """Programs that are installed and too old."""
    text = topology["software"]["libvirt"] or ""
    found = re.match(r"(\d+)\.(\d+)", text)
    if found is None or (int(found[1]), int(found[2])) >= _OLDEST_LIBVIRT:
        return []
    oldest = ".".join(map(str, _OLDEST_LIBVIRT))
    return [f"libvirt is {text}, VMs need {oldest} or newer for their firmware: upgrade it"]


def pending_reboot(root: Path, run: Run, topology: Topology) -> List[str]:
    """Signs that the next boot would bring something else than the conversion: then nobody knows what broke it."""
    found = []
    if (root / "run/reboot-required").exists():
        packages = root / "run/reboot-required.pkgs"
        names = (
            sorted(set(packages.read_text(encoding="utf-8", errors="replace").split())) if packages.is_file() else []
        )
        found.append(f"a reboot is due{' for ' if names else ''}{', '.join(names)}: reboot first")
    elif (root / "usr/bin/needs-restarting").exists() and run(["needs-restarting", "--reboothint"])[0] == 1:
        found.append("a reboot is due (needs-restarting --reboothint says why): reboot first")
    try:
        default = boot_loader(root, run).default_entry("").kernel_version
    except (TopovirtError, OSError):
        return found  # an obstacle of its own
    running = topology["host"]["kernel"]
    if default and default != running:
        found.append(f"the default boot entry starts kernel {default}, and {running} is running: reboot first")
    return found
