# Copyright: the topovirt.kvm authors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Device nodes and sockets that processes hold open, and the PCI functions behind the nodes."""

from __future__ import annotations

import os
import re
from collections.abc import Iterable, Iterator, Sequence
from typing import NamedTuple

from ansible_collections.topovirt.kvm.plugins.module_utils._topology.host_use import reading
from ansible_collections.topovirt.kvm.plugins.module_utils._topology.host_use.disks import Blocks
from ansible_collections.topovirt.kvm.plugins.module_utils._topology.model import PciFunction
from ansible_collections.topovirt.kvm.plugins.module_utils._topology.pci import BDF
from ansible_collections.topovirt.kvm.plugins.module_utils._topology.sysfs import Tree

_NVIDIA_GPUS = "proc/driver/nvidia/gpus"


class Handle(NamedTuple):
    path: str  # below /dev
    process: str  # "name (pid 12)"


def open_files(tree: Tree) -> tuple[list[Handle], set[str]]:
    """Device nodes that processes hold open, and the socket inodes of SSH servers."""
    handles: dict[Handle, None] = {}
    sockets: set[str] = set()
    for process in sorted((name for name in tree.names("proc") if name.isdecimal()), key=int):
        name = tree.text(f"proc/{process}/comm") or "process"
        for descriptor in tree.names(f"proc/{process}/fd"):
            target = tree.link(f"proc/{process}/fd/{descriptor}") or ""
            if target.startswith("/dev/"):
                path = target[len("/dev/") :]
                path = path[: -len(" (deleted)")] if path.endswith(" (deleted)") else path
                handles[Handle(path, f"{name} (pid {process})")] = None
            elif target.startswith("socket:[") and name.startswith("sshd"):
                sockets.add(target[len("socket:[") : -1])
    return list(handles), sockets


def _nvidia_minors(tree: Tree) -> dict[int, str]:
    """Minor number of /dev/nvidiaN -> BDF, as the NVIDIA driver's README describes /proc/driver/nvidia/gpus."""
    found: dict[int, str] = {}
    for name in tree.names(_NVIDIA_GPUS):
        minor = re.search(r"Device Minor:\s*([0-9]{1,9})\b", tree.text(f"{_NVIDIA_GPUS}/{name}/information") or "")
        if minor and BDF.match(name.lower()):
            found[int(minor.group(1))] = name.lower()
    return found


def handle_uses(
    tree: Tree, blocks: Blocks, handles: Iterable[Handle], pci: Sequence[PciFunction]
) -> Iterator[tuple[str, str]]:
    minors = _nvidia_minors(tree)

    def driven(role: str) -> list[str]:
        return [f["bdf"] for f in pci if f["role"] == role and f["driver"] and f["driver"].startswith("nvidia")]

    for handle in handles:
        base = os.path.basename(handle.path)
        bdfs: list[str] = []
        if re.match(r"^nvidia-nvswitch", base):
            bdfs = driven("nvswitch")  # the driver documents no map from these nodes to PCI functions
        elif re.match(r"^nvidia[0-9]{1,9}$", base):
            mapped = minors.get(int(base[len("nvidia") :]))
            bdfs = [mapped] if mapped else driven("gpu")
        elif re.match(r"^nvidia(ctl$|-uvm|-modeset|-cap)", base):
            bdfs = driven("gpu")
        elif handle.path.startswith("dri/"):
            bdf = reading.bdf_of(tree, f"sys/class/drm/{base}/device")
            bdfs = [bdf] if bdf else []
        elif handle.path.startswith("infiniband/"):
            for klass in ("infiniband_verbs", "infiniband_mad", "infiniband_ucm"):
                if tree.is_directory(f"sys/class/{klass}/{base}/device"):
                    bdf = reading.bdf_of(tree, f"sys/class/{klass}/{base}/device")
                    bdfs = [bdf] if bdf else []
        elif base in blocks:
            bdfs = blocks.pci_of(base)
        elif re.match(r"^(nvme\d+|ng\d+n\d+)$", handle.path):
            klass = "nvme" if base.startswith("nvme") else "nvme-generic"
            bdf = reading.bdf_of(tree, f"sys/class/{klass}/{base}/device")
            bdfs = [bdf] if bdf else []
        for bdf in bdfs:
            yield bdf, f"{handle.process} has /dev/{handle.path} open"
