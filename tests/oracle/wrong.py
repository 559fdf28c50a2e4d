# Copyright: the topovirt.kvm authors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Solvers that are wrong in one respect each; an oracle that lets one of them pass is worth nothing."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from copy import deepcopy
from dataclasses import dataclass, replace
from itertools import combinations
from typing import Any
from unittest.mock import patch

from ansible_collections.topovirt.kvm.plugins.module_utils._libvirt.domains import Allocation
from ansible_collections.topovirt.kvm.plugins.module_utils._topology.paths import Paths
from ansible_collections.topovirt.kvm.plugins.plugin_utils._placement import attach, solve
from ansible_collections.topovirt.kvm.plugins.plugin_utils._placement.sizing import Size

from tests.oracle.hosts import PAGES, Host
from tests.oracle.subject import Answer, Place, ours
from tests.oracle.truth import GIB_PAGE, ROLES, Truth, Unit, Wanted, free_cores


def _first_fit(truth: Truth, wanted: Wanted, gone: set[str]) -> frozenset[str] | None:
    """The first GPUs in host order that are allowed and have room, with the first units in host order."""
    used = [truth.node_of[gpu] for gpu in gone & truth.free]
    for chosen in combinations(sorted(truth.free - gone), wanted.gpus):
        gpus = frozenset(chosen)
        nodes = [*used, *(truth.node_of[gpu] for gpu in gpus)]
        if not truth.allowed(gpus) or any(nodes.count(node) > room for node, room in truth.room.items()):
            continue
        switches = truth.switches if truth.model == "full_passthrough" and len(gpus) > 1 else frozenset()
        taken: set[str] = {other for bdf in gpus | switches for other in truth.group_of[bdf]}
        for role in ROLES:
            left = wanted.of(role) - sum(unit.role == role and unit.group <= taken for unit in truth.units)
            loose = [unit for unit in truth.units if unit.role == role and _loose(unit, truth, gone | taken)]
            if left > len(loose):
                break
            taken.update(bdf for unit in loose[: max(0, left)] for bdf in unit.group)
        else:
            return frozenset(taken)
    return None


def _loose(unit: Unit, truth: Truth, gone: set[str]) -> bool:
    return unit.group.isdisjoint(gone) and unit.group.isdisjoint(truth.gpus)


def greedy(host: Host) -> Place:
    """Each VM in turn gets the first that fits in host order. It keeps every hard constraint."""
    truth = host.truth()

    def place(batch: Sequence[Wanted]) -> Answer:
        gone: set[str] = set()
        answer = []
        for wanted in batch:
            devices = _first_fit(truth, wanted, gone)
            if devices is None:
                return None
            gone |= devices
            answer.append(devices)
        return answer

    return place


def one_by_one(host: Host) -> Place:
    """Our solver, asked for each VM of a batch alone: the best for the first, not for all."""

    def place(batch: Sequence[Wanted]) -> Answer:
        answer: list[frozenset[str]] = []
        now = host
        for wanted in batch:
            placed = ours(now)([wanted])
            if placed is None:
                return None
            answer += placed
            now = _with_vm(now, placed[0])
        return answer

    return place


def _with_vm(host: Host, devices: frozenset[str]) -> Host:
    """The host with one more VM, which has cores and pages of its GPUs' nodes."""
    topology = deepcopy(host.topology)
    cpus: list[int] = []
    memory: dict[str, int] = {}
    for node in topology["numa_nodes"]:
        gpus = [function for function in topology["pci"] if function["role"] == "gpu" and function["bdf"] in devices]
        count = sum(gpu["numa_node"] == node["id"] for gpu in gpus)
        for core in free_cores(topology, host.domains, node["id"], host.model)[: count * host.cores_per_gpu]:
            cpus += core["threads"]
        memory[str(node["id"])] = count * host.pages_per_gpu * GIB_PAGE
        node["hugepages"][PAGES]["free"] -= count * host.pages_per_gpu
    new: Allocation = {
        "name": f"new-{len(host.domains)}",
        "uuid": None,
        "state": "running",
        "persistent": True,
        "autostart": False,
        "ours": True,
        "hostdevs": sorted(devices),
        "cpus": ",".join(map(str, sorted(cpus))),
        "emulator_cpus": "",
        "memory_bytes": sum(memory.values()),
        "memory_by_node": memory,
        "page_size_bytes": GIB_PAGE,
        "metadata": None,
    }
    return replace(host, topology=topology, domains=(*host.domains, new))


def _without_groups(host: Host) -> Place:
    """IOMMU groups are forgotten: every function seems to have one of its own."""
    topology = deepcopy(host.topology)
    for number, function in enumerate(topology["pci"]):
        function["iommu_group"] = number
    return ours(replace(host, topology=topology))


def _without_owners(host: Host) -> Place:
    """Cores and huge pages of VMs that exist are forgotten, their devices are not."""
    topology = deepcopy(host.topology)
    for node in topology["numa_nodes"]:
        node["hugepages"][PAGES]["free"] = node["hugepages"][PAGES]["total"]
    domains = deepcopy(host.domains)
    for domain in domains:
        domain["cpus"], domain["memory_by_node"] = "", {}
    return ours(replace(host, topology=topology, domains=domains))


def _with(target: Any, name: str, changed: Callable[[Any], Any]) -> Callable[[Host], Place]:
    """Our solver with one of its functions changed."""

    def solver(host: Host) -> Place:
        def place(batch: Sequence[Wanted]) -> Answer:
            with patch.object(target, name, changed(getattr(target, name))):
                return ours(host)(batch)

        return place

    return solver


def _far_is_near(right: Any) -> Any:
    exchanged = {"PIX": "NODE", "NODE": "PIX"}
    return lambda self, a, b: exchanged.get(right(self, a, b), right(self, a, b))


def _no_limit(right: Any) -> Any:
    # A GPU that is named as often as there are devices may have them all.
    return lambda takers, items, cost: right(
        [replace(taker, gpus=taker.gpus * max(1, taker.count)) for taker in takers], items, cost
    )


def _no_nodes(_right: Any) -> Any:
    return property(lambda self: frozenset())


def _no_capacity(_right: Any) -> Any:
    return lambda self, free, left: ()


@dataclass(frozen=True)
class Wrong:
    """A wrong solver and the level of the objective at which it has to be caught; 0 are the hard constraints."""

    solver: Callable[[Host], Place]
    level: int


SOLVERS = {
    "greedy": Wrong(greedy, 1),
    "batch placed one by one": Wrong(one_by_one, 1),
    "path classes exchanged": Wrong(_with(Paths, "path_class", _far_is_near), 1),
    "dealing without a limit for each GPU": Wrong(_with(attach, "assign", _no_limit), 1),
    "nodes ignored": Wrong(_with(Size, "nodes", _no_nodes), 2),
    "capacity ignored": Wrong(_with(solve.Solver, "still_whole", _no_capacity), 3),
    "IOMMU groups forgotten": Wrong(_without_groups, 0),
    "cores and pages of VMs forgotten": Wrong(_without_owners, 0),
}
