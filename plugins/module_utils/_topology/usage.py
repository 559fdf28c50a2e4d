# Copyright: the topovirt.kvm authors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Which PCI devices the host itself uses, and why.

A device that this module names must never be handed to a guest: the host would lose a disk, its network or a running
job. It therefore errs on the side of "used": what cannot be told apart counts for every candidate.

Everything is read from the files of a tree, so that a recorded tree gives the same answer as the machine it came
from. The one fact without a file, which interface carries an IPv4 address, is asked of ``ip`` when ``run`` is given;
without it the address is found through its connected route.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from itertools import chain

from ansible_collections.topovirt.kvm.plugins.module_utils._topology.host_use import disks, reading, remote
from ansible_collections.topovirt.kvm.plugins.module_utils._topology.host_use.handles import handle_uses, open_files
from ansible_collections.topovirt.kvm.plugins.module_utils._topology.host_use.mounts import all_mounts
from ansible_collections.topovirt.kvm.plugins.module_utils._topology.host_use.network import (
    Nets,
    Run,
    interfaces,
    ssh_sessions,
)
from ansible_collections.topovirt.kvm.plugins.module_utils._topology.model import PciFunction
from ansible_collections.topovirt.kvm.plugins.module_utils._topology.sysfs import Tree


def host_usage(tree: Tree, run: Run | None, pci: Sequence[PciFunction]) -> dict[str, list[str]]:
    """Return ``{bdf: [reason, ...]}`` for every PCI function that the host uses.

    :param tree: the files of the system.
    :param run: runs a command on the same system; ``None`` for a recorded tree.
    :param pci: the functions of the topology; used for drivers, roles and virtual functions.

    A reason is one sentence without a full stop. Devices that are free are not in the result. Files that cannot be
    read count as absent: as an ordinary user the handles of other users' processes stay invisible.
    """
    usage: dict[str, dict[str, None]] = {}
    blocks = disks.Blocks(tree)
    nets = Nets(tree, run)
    handles, sockets_of_sshd = open_files(tree)
    mounts = all_mounts(tree)

    for bdf, reason in chain(
        disks.mounted(blocks, mounts),
        disks.swaps(blocks),
        disks.stacked(blocks),
        disks.signatures(blocks),
        remote.dump_target(tree, blocks, nets),
        disks.fstab(blocks),
        interfaces(nets),
        remote.network_storage(tree, nets, mounts),
        ssh_sessions(tree, nets, sockets_of_sshd),
        handle_uses(tree, blocks, handles, pci),
    ):
        # Names of devices in it can have bytes that no JSON could carry.
        usage.setdefault(bdf, {})[reading.shown(reason)] = None
    return _with_physical(usage, pci)


def _with_physical(usage: Mapping[str, Iterable[str]], pci: Sequence[PciFunction]) -> dict[str, list[str]]:
    """The uses, and with those of virtual functions also their physical ones, which carry them.

    Only uses of its own pass from a function to the one above: in a damaged tree these links can go in circles.
    """
    result = {bdf: list(reasons) for bdf, reasons in usage.items()}
    for function in pci:
        parent = function.get("physfn")
        if parent and function["bdf"] in usage:
            result.setdefault(parent, []).extend(
                f"its virtual function {function['bdf']} is used: {reason}" for reason in usage[function["bdf"]]
            )
    return result
