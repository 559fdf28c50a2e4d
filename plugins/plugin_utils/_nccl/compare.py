# Copyright: the topovirt.kvm authors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Host against guest as NCCL sees them, device by device: which path, how wide, direct or not, and which NIC.

The host's view is that of the passed-through devices alone, so a small VM is held against what NCCL would do with the
same devices on the host.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping
from typing import TypedDict

from ansible_collections.topovirt.kvm.plugins.module_utils._errors import TopovirtError
from ansible_collections.topovirt.kvm.plugins.module_utils._topology.model import Topology
from ansible_collections.topovirt.kvm.plugins.module_utils._topology.pci import bdf_key
from ansible_collections.topovirt.kvm.plugins.plugin_utils._nccl.detect import file_version, read_file
from ansible_collections.topovirt.kvm.plugins.plugin_utils._nccl.view import Counts, Pair, View, class_counts, view


class NcclComparison(TypedDict):
    equal: bool
    pairs: int  # compared, both directions
    differences: list[str]  # sentences, by the host's addresses
    host: Counts
    guest: Counts


def compare_nccl(
    host_topology: Topology,
    guest_topology: Topology,
    identity: Mapping[str, str],
    node_map: Mapping[int | str, int],
    nccl_xml: str | None,
    *,
    nvlink: bool,
) -> NcclComparison:
    """Compare NCCL's view of the passed-through GPUs and NICs on the host and in the guest.

    :param guest_topology: as the guest's own kernel shows it.
    :param identity: host BDF -> guest BDF.
    :param node_map: guest cell (number, or its text after a trip through JSON) -> host node.
    :param nccl_xml: the file in the guest, None without one.
    :param nvlink: whether the VM's GPUs reach each other through NVSwitches.
    :raises TopovirtError: when NCCL would refuse the file, or when the identity is none.
    """
    twice = sorted(bdf for bdf, count in Counter(identity.values()).items() if count > 1)
    if twice:
        raise TopovirtError(
            f"The identity has {', '.join(twice)} of the guest for several devices of the host.",
            "Give what topovirt.kvm.guest_capture returns as identity.",
        )
    there = {function["bdf"] for function in guest_topology["pci"]}
    roles = {function["bdf"]: function["role"] for function in host_topology["pci"]}
    wanted = [bdf for bdf in sorted(identity, key=bdf_key) if roles.get(bdf) in ("gpu", "nic")]
    compared = [bdf for bdf in wanted if identity[bdf] in there]
    differences = [
        f"{bdf} is {identity[bdf]} in the guest, but there is no such function."
        for bdf in wanted
        if bdf not in compared
    ]
    gpus = [bdf for bdf in compared if roles[bdf] == "gpu"]
    nics = [bdf for bdf in compared if roles[bdf] == "nic"]
    if not gpus:
        differences.append("No GPU of the host is in the guest, so there is nothing to compare.")
    # NVML and the network plug-in count what is there by its own addresses.
    inside_gpus, inside_nics = (sorted((identity[bdf] for bdf in some), key=bdf_key) for some in (gpus, nics))
    if nccl_xml is not None:
        differences += _strange_bus_ids(nccl_xml, file_version(guest_topology, inside_gpus), there)
    on_host = view(host_topology, gpus, nics, nvlink=nvlink)
    in_guest = view(guest_topology, inside_gpus, inside_nics, nccl_xml, nvlink=nvlink)
    differences += _pair_differences(on_host, in_guest, identity)
    differences += _preference_differences(on_host, in_guest, identity)
    differences += _node_differences(on_host, in_guest, identity, node_map)
    return NcclComparison(
        equal=not differences,
        pairs=len(on_host["pairs"]),
        differences=differences,
        host=class_counts(on_host),
        guest=class_counts(in_guest),
    )


def _strange_bus_ids(nccl_xml: str, version: str, there: set[str]) -> list[str]:
    """NCCL says nothing about an entry that matches no function; it reads sysfs instead."""
    tree = read_file(nccl_xml, version).walk()
    ids = [element.attributes.get("busid", "") for element in tree if element.name == "pci"]
    return [
        f"The NCCL file names {bus_id}, which is no function of the guest." for bus_id in ids if bus_id not in there
    ]


def _pair_differences(host: View, guest: View, identity: Mapping[str, str]) -> list[str]:
    inside = {(pair["source"], pair["target"]): pair for pair in guest["pairs"]}
    found: list[str] = []
    for pair in host["pairs"]:
        other = inside[identity[pair["source"]], identity[pair["target"]]]
        if _shown(pair) != _shown(other):
            found.append(
                f"{pair['source']} to {pair['target']} is {_shown(pair)} on the host, {_shown(other)} in the guest."
            )
    return found


def _shown(pair: Pair) -> str:
    speed = "" if pair["gbs"] is None else f" at {pair['gbs']:.4g} GB/s"
    return f"{pair['path']}{speed}{' direct' if pair['direct'] else ''}"


def _preference_differences(host: View, guest: View, identity: Mapping[str, str]) -> list[str]:
    outside = {inside: bdf for bdf, inside in identity.items()}
    found: list[str] = []
    for gpu, nic in host["preferred"].items():
        other = outside[guest["preferred"][identity[gpu]]]
        if other != nic:
            found.append(f"GPU {gpu} prefers NIC {nic} on the host, {other} in the guest.")
    return found


def _node_differences(
    host: View, guest: View, identity: Mapping[str, str], node_map: Mapping[int | str, int]
) -> list[str]:
    """Class counts are the same with the sockets swapped, but processes are bound to the wrong one."""
    node_of_cell = {int(cell): node for cell, node in node_map.items()}
    found: list[str] = []
    for bdf, node in host["nodes"].items():
        cell = guest["nodes"][identity[bdf]]
        if node_of_cell.get(cell, -1) != (node if node in node_of_cell.values() else -1):
            found.append(f"{bdf} is on node {node} on the host; in the guest NCCL has it on node {cell}.")
    return found
