# Copyright: the topovirt.kvm authors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Which PCI devices the host itself uses, and why.

A device that this module names must never be handed to a guest: the host would lose a disk, its network or a running
job. It therefore errs on the side of "used": what cannot be told apart counts for every candidate.

Everything is read from files below ``root``, so that a recorded tree gives the same answer as the machine it came
from. The one fact without a file, which interface carries an IPv4 address, is asked of ``ip`` when ``run`` is given;
without it the address is found through its connected route.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from ansible_collections.topovirt.kvm.plugins.module_utils._topology.host_use import disks, remote
from ansible_collections.topovirt.kvm.plugins.module_utils._topology.host_use.handles import handle_uses, open_files
from ansible_collections.topovirt.kvm.plugins.module_utils._topology.host_use.mounts import all_mounts
from ansible_collections.topovirt.kvm.plugins.module_utils._topology.host_use.network import (
    Nets,
    Run,
    interfaces,
    ssh_sessions,
)
from ansible_collections.topovirt.kvm.plugins.module_utils._topology.model import PciFunction


def host_usage(root: Path, run: Run | None, pci: Sequence[PciFunction]) -> dict[str, list[str]]:
    """Return ``{bdf: [reason, ...]}`` for every PCI function that the host uses.

    :param root: root of the file tree, ``/`` on a live system.
    :param run: runs a command on the same system; ``None`` for a recorded tree.
    :param pci: the functions of the topology; used for drivers, roles and virtual functions.

    A reason is one sentence without a full stop. Devices that are free are not in the result. Files that cannot be
    read count as absent: as an ordinary user the handles of other users' processes stay invisible.
    """
    usage: dict[str, list[str]] = {}
    blocks = disks.Blocks(root)
    nets = Nets(root, run)
    handles, sockets_of_sshd = open_files(root)
    mounts = all_mounts(root)

    for bdf, reason in [
        *disks.mounted(root, blocks, mounts),
        *disks.swaps(root, blocks),
        *disks.stacked(blocks),
        *disks.signatures(root, blocks),
        *remote.dump_target(root, blocks, nets),
        *disks.fstab(root, blocks),
        *interfaces(nets),
        *remote.network_storage(root, nets, mounts),
        *ssh_sessions(root, nets, sockets_of_sshd),
        *handle_uses(root, blocks, handles, pci),
    ]:
        reasons = usage.setdefault(bdf, [])
        if reason not in reasons:
            reasons.append(reason)

    for function in pci:  # a physical function carries its virtual ones
        parent = function.get("physfn")
        if parent and function["bdf"] in usage:
            usage.setdefault(parent, []).extend(
                f"its virtual function {function['bdf']} is used: {reason}" for reason in usage[function["bdf"]]
            )
    return usage
