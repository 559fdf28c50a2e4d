# Copyright: the topovirt.kvm authors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""How many cores and huge pages of each node a VM gets for its GPUs."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

from ansible_collections.topovirt.kvm.plugins.plugin_utils._placement.inventory import Inventory
from ansible_collections.topovirt.kvm.plugins.plugin_utils._placement.policy import Policy
from ansible_collections.topovirt.kvm.plugins.plugin_utils._placement.request import Request


@dataclass(frozen=True)
class Size:
    """What a VM needs of each node, and why it cannot be had at all (``problems``)."""

    cores: dict[int, int]
    pages: dict[int, int]
    problems: tuple[str, ...] = ()
    warnings: tuple[str, ...] = ()

    @property
    def nodes(self) -> frozenset[int]:
        """The NUMA nodes that the VM spans."""
        return frozenset((*self.cores, *self.pages))


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


def threads_per_core(inventory: Inventory, smt: str = "share") -> int:
    """vCPUs that a core makes: the threads of the host's guest cores, the smallest where they differ; one alone with
    ``isolate``."""
    if smt == "isolate":
        return 1
    return min((len(core["threads"]) for cores in inventory.guest_cores.values() for core in cores), default=1)


def spread(
    size: Size, cores: Mapping[int, int], pages: Mapping[int, int], nearest: Mapping[int, Sequence[int]]
) -> Size:
    """The size with what its nodes do not have taken from other nodes, nearest first.

    One core and one page of each node of the GPUs stay: without them the guest would have no such node. A node that is
    added gives at least one of both as well.

    :param cores: node -> free cores; ``pages`` likewise.
    :param nearest: node -> all nodes, nearest first.
    :returns: a size of the same sums; the given one when the host does not have as much.
    """
    free = {"cores": dict(cores), "pages": dict(pages)}
    taken: dict[str, dict[int, int]] = {"cores": {}, "pages": {}}
    lacking = {"cores": 0, "pages": 0}
    for what, wanted in (("cores", size.cores), ("pages", size.pages)):
        for node, count in wanted.items():
            taken[what][node] = max(1, min(count, free[what].get(node, 0)))
            free[what][node] = free[what].get(node, 0) - taken[what][node]
            lacking[what] += count - taken[what][node]
    home = sorted(size.nodes)
    others = list(dict.fromkeys(node for node in nearest[home[0]] if node in cores)) if home else []
    for node in [*home, *(node for node in others if node not in home)]:
        if not any(lacking.values()):
            break
        new = node not in size.nodes
        if new and any(free[what].get(node, 0) < 1 for what in free):
            continue
        for what in ("cores", "pages"):
            count = min(max(lacking[what], 1 if new else 0), max(0, free[what].get(node, 0)))
            if count:
                taken[what][node] = taken[what].get(node, 0) + count
                free[what][node] -= count
                lacking[what] -= count
        # The one core or page that an added node had to give was not lacking: a home node keeps it.
        for what in ("cores", "pages"):
            if lacking[what] < 0:
                richest = max(home, key=lambda number: (taken[what][number], -number))
                if taken[what][richest] + lacking[what] < 1:
                    return size
                taken[what][richest] += lacking[what]
                lacking[what] = 0
    if any(lacking.values()):
        return size
    return replace(
        size,
        cores=dict(sorted(taken["cores"].items())),
        pages=dict(sorted(taken["pages"].items())),
        warnings=(
            *size.warnings,
            "Cores or memory of further NUMA nodes are used, as those of the GPUs do not suffice.",
        ),
    )


def _exact_cores(
    request: Request, inventory: Inventory, weights: Mapping[int, int]
) -> tuple[dict[int, int], list[str]]:
    """Cores per node of a request that names the host's CPUs."""
    asked = set(request.exact_cpus)
    found: dict[int, int] = {}
    problems: list[str] = []
    for node, cores in inventory.guest_cores.items():
        for core in cores:
            own = asked.intersection(core["threads"])
            if not own:
                continue
            asked -= own
            wanted = set(core["threads"][:1]) if request.smt == "isolate" else set(core["threads"])
            if own != wanted:
                listed = ", ".join(map(str, sorted(wanted)))
                problems.append(
                    f"vcpus: of the core with CPUs {core['threads']} a VM with smt={request.smt} has {listed}"
                )
            if core not in inventory.free_cores[node]:
                problems.append(f"vcpus: CPU {min(own)} is pinned to another VM")
            found[node] = found.get(node, 0) + 1
    if asked:
        listed = ", ".join(map(str, sorted(asked)))
        problems.append(f"vcpus: CPU {listed} is not of this host, or kept by the host")
    if set(found) != set(weights):
        problems.append(
            f"vcpus: CPUs are of NUMA nodes {sorted(found)}, the GPUs of {sorted(weights)}; a VM has CPUs of each"
        )
    return {node: found.get(node, 1) for node in weights}, problems


def _cores(
    request: Request, policy: Policy, inventory: Inventory, weights: Mapping[int, int], gpus_on: Mapping[int, int]
) -> tuple[dict[int, int], list[str], list[str]]:
    if request.exact_cpus:
        cores, problems = _exact_cores(request, inventory, weights)
        return cores, problems, []
    threads = threads_per_core(inventory, request.smt)
    asked, from_table = (request.vcpus, False) if request.vcpus is not None else policy.vcpus(request.gpus)
    warnings: list[str] = []
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
    if asked % threads and from_table:
        given = max(threads, asked - asked % threads)
        warnings = [f"vCPUs are {given} instead of {asked}: whole cores, so that no VM shares a core."]
        asked = given
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
    return cores, [], warnings


def _pages(
    request: Request, policy: Policy, inventory: Inventory, weights: Mapping[int, int], gpus_on: Mapping[int, int]
) -> tuple[dict[int, int], list[str], list[str]]:
    """Pages per node, problems and warnings."""
    size = inventory.page_size_bytes
    asked = request.memory_bytes
    if asked is not None and asked % size:
        lower = asked // size * size
        nearest = f"{lower >> 20} or {(lower + size) >> 20}" if lower else str(size >> 20)
        return (
            dict.fromkeys(weights, 1),
            [f"memory: {asked >> 20} MiB is not a multiple of the {size >> 20} MiB huge pages; {nearest} MiB is"],
            [],
        )
    if asked is None:
        asked = policy.memory_bytes(request.gpus)
    if asked is None:
        return (
            {
                node: max(1, inventory.total_pages.get(node, 0) * count // gpus_on[node])
                for node, count in weights.items()
            },
            [],
            [],
        )
    pages = split(-(-asked // size), weights)
    given = sum(pages.values()) * size
    if given != asked and request.memory_bytes is not None:
        return pages, [f"memory: {asked >> 20} MiB is less than one huge page for each of {len(weights)} nodes"], []
    rounded = [f"memory is {given >> 20} MiB instead of {asked >> 20} MiB: whole huge pages on each node."]
    return pages, [], rounded if given != asked else []


def size_of(request: Request, policy: Policy, inventory: Inventory, gpus: Sequence[str]) -> Size:
    """Cores and pages per node for a VM with these GPUs.

    "auto" is the share of the node's non-housekeeping cores and of its huge pages that the VM's GPUs are of the node's
    GPUs. A figure asked for is split over the nodes in proportion to the VM's GPUs on them.
    """
    weights = Counter(inventory.node_of[gpu] for gpu in gpus)
    gpus_on = Counter(inventory.node_of.values())
    ordered = {node: weights[node] for node in sorted(weights)}
    cores, problems, warnings = _cores(request, policy, inventory, ordered, gpus_on)
    pages, more_problems, more_warnings = _pages(request, policy, inventory, ordered, gpus_on)
    return Size(cores, pages, (*problems, *more_problems), (*warnings, *more_warnings))
