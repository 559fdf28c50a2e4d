# Copyright: the topovirt.kvm authors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Storage that the host reaches over the network, and the interfaces that lead there."""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator

from ansible_collections.topovirt.kvm.plugins.module_utils._topology.host_use import reading
from ansible_collections.topovirt.kvm.plugins.module_utils._topology.host_use.disks import BLOCK, Blocks
from ansible_collections.topovirt.kvm.plugins.module_utils._topology.host_use.mounts import Mount
from ansible_collections.topovirt.kvm.plugins.module_utils._topology.host_use.network import Nets
from ansible_collections.topovirt.kvm.plugins.module_utils._topology.sysfs import Tree

_ISCSI = "sys/class/iscsi_connection"
_NVME = "sys/class/nvme"

_NETWORK_FILE_SYSTEMS = (
    "nfs",
    "nfs4",
    "ceph",
    "cifs",
    "smb3",
    "lustre",
    "glusterfs",
    "9p",
    "beegfs",
    "gpfs",
    "fuse.sshfs",
)


def _servers(mount: Mount) -> list[str]:
    """The servers of a network file system: the ``addr=`` that the kernel used, else what the source names."""
    given = re.findall(r"(?:^|,)addr=([^,]+)", mount.options)
    if given:
        return given
    found = re.findall(r"\[([0-9a-fA-F:]+)\]|(?<![0-9])([0-9]{1,3}(?:\.[0-9]{1,3}){3})", mount.source)
    return [v6 or v4 for v6, v4 in found] or [mount.source.lstrip("/").split(":")[0].split("/")[0]]


def network_storage(tree: Tree, nets: Nets, mounts: Iterable[Mount]) -> Iterator[tuple[str, str]]:
    for mount in mounts:
        if mount.fs_type in _NETWORK_FILE_SYSTEMS and mount.options.find("trans=virtio") < 0:
            for server in _servers(mount):
                for bdf in nets.towards(server):
                    yield bdf, f"the network mount {mount.mount_point} ({mount.fs_type}) reaches {server} through it"
    for connection in tree.names(_ISCSI):
        paths = (f"{_ISCSI}/{connection}/{name}" for name in ("address", "persistent_address"))
        server = next(filter(None, map(tree.text, paths)), "")
        for bdf in nets.towards(server) if server else []:
            yield bdf, f"an iSCSI session reaches {server} through it"
    for controller in tree.names(_NVME):
        transport = tree.text(f"{_NVME}/{controller}/transport")
        address = re.search(r"traddr=([^,\s]+)", tree.text(f"{_NVME}/{controller}/address") or "")
        if transport in ("tcp", "rdma") and address:
            for bdf in nets.towards(address.group(1)):
                yield bdf, f"NVMe over {transport} ({controller}) reaches {address.group(1)} through it"
    for name in tree.names(BLOCK):
        if re.match(r"^nbd\d+$", name) and tree.text(f"{BLOCK}/{name}/pid"):
            for bdf in nets.towards("default"):
                yield bdf, f"the network block device /dev/{name} may run through it"


def dump_target(tree: Tree, blocks: Blocks, nets: Nets) -> Iterator[tuple[str, str]]:
    """The targets of kexec-tools' kdump.conf(5); a dump into a mounted file system is covered by the mount."""
    for line in reading.lines(tree, "etc/kdump.conf"):
        fields = line.split("#", 1)[0].split()
        if len(fields) < 2:
            continue
        if fields[0] in ("raw", "ext2", "ext3", "ext4", "xfs", "btrfs", "minix", "f2fs"):
            for name in blocks.resolve(fields[1]):
                for bdf in blocks.pci_of(name):
                    yield bdf, f"{blocks.title(name)} on it is the crash dump target (/etc/kdump.conf)"
        elif fields[0] in ("nfs", "ssh"):
            server = fields[1].rsplit("@", 1)[-1].split(":")[0]
            for bdf in nets.towards(server):
                yield bdf, f"the crash dump goes to {server} through it (/etc/kdump.conf)"
