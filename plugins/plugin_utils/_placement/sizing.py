# Copyright: the topovirt.kvm authors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""How many cores and huge pages of each node a VM gets for its GPUs."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from ansible_collections.topovirt.kvm.plugins.plugin_utils._placement.inventory import Inventory
from ansible_collections.topovirt.kvm.plugins.plugin_utils._placement.request import Policy, Request


@dataclass(frozen=True)
class Size:
    """What a VM needs of each node, and why it cannot be had at all (``problems``)."""

    cores: dict[int, int]
    pages: dict[int, int]
    problems: tuple[str, ...] = ()
    warnings: tuple[str, ...] = ()


def _bits(count: int) -> int:
    return max(0, count - 1).bit_length()


def max_apic_id(sockets: int, cores: int, threads: int) -> int:
    """The highest APIC id: every level of the CPU topology takes a whole number of bits (Intel SDM, CPUID leaf 0Bh)."""
    return ((((sockets - 1) << _bits(cores)) + cores - 1) << _bits(threads)) + threads - 1


def split(amount: int, weights: Mapping[int, int]) -> dict[int, int]:
    """``amount`` over nodes in proportion to ``weights``, by largest remainder, at least one each.

    Gives more than ``amount`` in all when there are more nodes than that.
    """
    whole = sum(weights.values())
    shares = {node: max(1, amount * weight // whole) for node, weight in weights.items()}
    by_remainder = sorted(weights, key=lambda node: (-(amount * weights[node] % whole), node))
    for node in by_remainder:
        if sum(shares.values()) < amount:
            shares[node] += 1
    while sum(shares.values()) > amount and max(shares.values()) > 1:
        shares[max(shares, key=lambda node: (shares[node], node))] -= 1
    return shares


def threads_per_core(inventory: Inventory) -> int:
    """Threads of the host's guest cores; the smallest where they differ."""
    return min((len(core["threads"]) for cores in inventory.guest_cores.values() for core in cores), default=1)


def _cores(
    request: Request, policy: Policy, inventory: Inventory, weights: Mapping[int, int], gpus_on: Mapping[int, int]
) -> tuple[dict[int, int], list[str], list[str]]:
    threads = threads_per_core(inventory)
    asked = request.vcpus
    if asked is None and policy.vcpus_per_gpu is not None:
        asked = policy.vcpus_per_gpu * request.gpus
    if asked is None:
        share = {
            node: max(1, len(inventory.guest_cores.get(node, ())) * count // gpus_on[node])
            for node, count in weights.items()
        }
        most = max(share.values())
        limit = most
        while limit > 1 and max_apic_id(len(share), limit, threads) > inventory.auto_max_apic_id:
            limit -= 1
        warnings = [f"vCPUs are limited to {limit * threads} per NUMA node (APIC ids)."] if limit < most else []
        return {node: min(count, limit) for node, count in share.items()}, [], warnings
    if asked % threads:
        return (
            dict.fromkeys(weights, 1),
            [f"vcpus: {asked} is not a multiple of {threads}; vCPUs come in whole cores, so that no VM shares a core"],
            [],
        )
    cores = split(asked // threads, weights)
    if sum(cores.values()) * threads != asked:
        return cores, [f"vcpus: {asked} is less than one core ({threads} vCPUs) for each of {len(weights)} nodes"], []
    if max_apic_id(len(cores), max(cores.values()), threads) > inventory.max_apic_id:
        why = f"vcpus: {asked} needs APIC ids above {inventory.max_apic_id}, which this host's libvirt and QEMU lack"
        return cores, [why], []
    return cores, [], []


def _pages(
    request: Request, policy: Policy, inventory: Inventory, weights: Mapping[int, int], gpus_on: Mapping[int, int]
) -> tuple[dict[int, int], list[str]]:
    asked = request.memory_bytes
    if asked is None and policy.memory_per_gpu_bytes is not None:
        asked = policy.memory_per_gpu_bytes * request.gpus
    if asked is None:
        return {
            node: max(1, inventory.total_pages.get(node, 0) * count // gpus_on[node]) for node, count in weights.items()
        }, []
    size = inventory.page_size_bytes
    pages = split(-(-asked // size), weights)
    given = sum(pages.values()) * size
    rounded = [f"memory is {given >> 20} MiB instead of {asked >> 20} MiB: whole huge pages on each node."]
    return pages, rounded if given != asked else []


def size_of(request: Request, policy: Policy, inventory: Inventory, gpus: Sequence[str]) -> Size:
    """Cores and pages per node for a VM with these GPUs.

    "auto" is the share of the node's non-housekeeping cores and of its huge pages that the VM's GPUs are of the node's
    GPUs. A figure asked for is split over the nodes in proportion to the VM's GPUs on them.
    """
    weights = Counter(inventory.node_of[gpu] for gpu in gpus)
    gpus_on = Counter(inventory.node_of.values())
    ordered = {node: weights[node] for node in sorted(weights)}
    cores, problems, warnings = _cores(request, policy, inventory, ordered, gpus_on)
    pages, more_warnings = _pages(request, policy, inventory, ordered, gpus_on)
    return Size(cores, pages, tuple(problems), (*warnings, *more_warnings))
