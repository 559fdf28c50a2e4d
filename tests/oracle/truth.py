# Copyright: the topovirt.kvm authors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""What the oracle knows of a host: read from the raw topology and the list of existing VMs, with its own code.

Nothing of the product's placement or path code is used here; what both share is docs/reference/placement.md alone.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import combinations
from typing import Any

from tests.oracle import fabric_rules

COST = {"LOC": 0, "PIX": 1, "PXB": 2, "PHB": 3, "NODE": 4, "SYS": 5}
GIB_PAGE = 1 << 30
ROLES = ("nic", "nvme")


@dataclass(frozen=True)
class Wanted:
    """One VM of a batch, without anything left to "auto" but its name."""

    gpus: int
    nics: int
    nvme: int

    def of(self, role: str) -> int:
        return self.nics if role == "nic" else self.nvme


@dataclass(frozen=True, eq=False)
class Unit:
    """What counts as one NIC or one NVMe device: its functions of one IOMMU group, with the cost to every GPU."""

    role: str
    devices: frozenset[str]
    group: frozenset[str]  # all endpoints of the IOMMU group
    cost: Mapping[str, int]  # GPU -> cost


@dataclass(frozen=True)
class Truth:
    """A host as the written objective sees it."""

    model: str
    gpus: tuple[str, ...]  # all of the machine, ascending
    free: frozenset[str]  # those that a VM can have
    above: Mapping[str, tuple[str, ...]]  # GPU -> bridges, host bridge and node: what it is part of
    node_of: Mapping[str, int]
    room: Mapping[int, int]  # node -> GPUs for which it has cores and huge pages
    group_of: Mapping[str, frozenset[str]]  # endpoint -> endpoints of its IOMMU group
    units: tuple[Unit, ...]  # that a VM can have
    sets: Mapping[frozenset[str], int]  # shared_nvswitch: allowed sets -> number of partition
    switches: frozenset[str]
    switches_free: bool
    blocks: tuple[frozenset[str], ...]

    def allowed(self, chosen: frozenset[str]) -> bool:
        """Does the fabric allow these GPUs as one VM, and do their IOMMU groups hold no other GPU or switch?"""
        if not chosen <= self.free:
            return False
        whole = chosen == frozenset(self.gpus)
        tied = {other for gpu in chosen for other in self.group_of[gpu]}
        own = chosen | (self.switches if self.model == "full_passthrough" and len(chosen) > 1 else frozenset())
        if tied & (frozenset(self.gpus) | self.switches) - own:
            return False
        if self.model == "shared_nvswitch":
            return chosen in self.sets
        if self.model == "full_passthrough" and len(chosen) > 1:
            return whole and self.switches_free
        return True

    def nodes(self, chosen: frozenset[str]) -> int:
        """Number of NUMA nodes of these GPUs."""
        return len({self.node_of[gpu] for gpu in chosen})

    def capacity(self, free: frozenset[str]) -> tuple[int, ...]:
        """For each size of block, largest first, how many are whole; no more than the free GPUs could be."""
        sizes = sorted({len(block) for block in self.blocks}, reverse=True)
        whole = [len(block) for block in self.blocks if block <= free]
        return tuple(min(whole.count(size), len(free) // size) for size in sizes)


def _above(functions: Mapping[str, Any], bdf: str) -> list[str]:
    """Bridges above a function, nearest first."""
    found = []
    while (parent := functions[bdf]["parent"]) in functions:
        found.append(parent)
        bdf = parent
    return found


def _switches_above(functions: Mapping[str, Any], bdf: str) -> list[str]:
    return [bridge for bridge in _above(functions, bdf) if functions[bridge]["kind"] in ("upstream_port", "bridge")]


def path(functions: Mapping[str, Any], a: str, b: str) -> str:
    """Path class as ``nvidia-smi topo -m`` names it: how far up the way between two functions leads.

    Switches on the way are counted: one is PIX, several are PXB. Below one port without a switch it is PIX, over the
    host bridge PHB, between host bridges of one NUMA node NODE, else SYS.
    """
    one, other = functions[a], functions[b]
    if a == b:
        return "LOC"
    if one["host_bridge"] != other["host_bridge"]:
        return "NODE" if one["numa_node"] is not None and one["numa_node"] == other["numa_node"] else "SYS"
    if one["parent"] is not None and one["parent"] == other["parent"]:
        return "PIX"
    up_a, up_b = _switches_above(functions, a), _switches_above(functions, b)
    met = next((switch for switch in up_a if switch in up_b), None)
    if met is None:
        return "PHB"
    return "PIX" if up_a.index(met) + up_b.index(met) == 0 else "PXB"


def _groups(endpoints: Mapping[str, Any]) -> dict[str, frozenset[str]]:
    members: dict[int, set[str]] = {}
    for bdf, function in endpoints.items():
        if function["iommu_group"] is not None:
            members.setdefault(function["iommu_group"], set()).add(bdf)
    alone = [{bdf} for bdf, function in endpoints.items() if function["iommu_group"] is None]
    return {bdf: frozenset(group) for group in (*members.values(), *alone) for bdf in group}


def _taken(endpoints: Mapping[str, Any], domains: Sequence[Mapping[str, Any]]) -> set[str]:
    """Endpoints that no VM can have: a VM owns them, the host uses or drives them, or they have virtual functions."""
    taken = {bdf for domain in domains for bdf in domain["hostdevs"]}
    for bdf, function in endpoints.items():
        drivers = ("vfio-pci",) if function["role"] else ("vfio-pci", None)
        if function["in_use"] or function["driver"] not in drivers:
            taken.add(bdf)
        if function["physfn"] is not None:
            taken.add(function["physfn"])
    return taken


def cpus_of(text: str) -> set[int]:
    """``"0-2,8"`` -> {0, 1, 2, 8}."""
    found: set[int] = set()
    for part in filter(None, text.split(",")):
        first, _dash, last = part.partition("-")
        found.update(range(int(first), int(last or first) + 1))
    return found


def kept_cores(topology: Mapping[str, Any], node: int, model: str) -> list[Any]:
    """The cores that the host keeps: the first of the node, one of eight, at least one and at most two, or at most four
    where Fabric Manager runs on the host."""
    cores = [core for core in topology["cores"] if core["node"] == node]
    most = 4 if model == "shared_nvswitch" else 2
    return cores[: max(1, min(most, len(cores) // 8))] if cores else []


def free_cores(topology: Mapping[str, Any], domains: Sequence[Mapping[str, Any]], node: int, model: str) -> list[Any]:
    """Cores of a node that neither the host keeps nor a VM has a thread of."""
    pinned = {cpu for domain in domains for cpu in cpus_of(domain["cpus"])}
    kept = kept_cores(topology, node, model)
    cores = [core for core in topology["cores"] if core["node"] == node and core not in kept]
    return [core for core in cores if pinned.isdisjoint(core["threads"])]


def free_pages(topology: Mapping[str, Any], domains: Sequence[Mapping[str, Any]], node: int) -> int:
    """1 GiB pages of a node that are free now and promised to no VM that is off, nor to VMs beyond what there is."""
    counts = next(item for item in topology["numa_nodes"] if item["id"] == node)["hugepages"][str(GIB_PAGE >> 10)]
    promised = {"on": 0, "off": 0}
    for domain in domains:
        if domain["page_size_bytes"] == GIB_PAGE:
            state = "on" if domain["state"] in ("running", "paused") else "off"
            promised[state] += -(-domain["memory_by_node"].get(str(node), 0) // GIB_PAGE)
    return max(0, min(counts["free"] - promised["off"], counts["total"] - promised["on"] - promised["off"]))


def _units(
    functions: Mapping[str, Any], groups: Mapping[str, frozenset[str]], taken: set[str], gpus: Sequence[str]
) -> tuple[Unit, ...]:
    found = []
    for group in sorted(set(groups.values()), key=min):
        for role in ROLES:
            devices = [
                bdf for bdf in sorted(group) if functions[bdf]["role"] == role and functions[bdf]["physfn"] is None
            ]
            if not devices or group & taken:
                continue
            costs = [{gpu: COST[path(functions, gpu, bdf)] for gpu in gpus} for bdf in devices]
            if any(cost != costs[0] for cost in costs):
                raise ValueError(
                    f"Functions of {devices} differ in their paths: the objective does not say which counts."
                )
            found.append(Unit(role, frozenset(devices), group, costs[0]))
    return tuple(found)


def _blocks(
    functions: Mapping[str, Any], model: str, gpus: Sequence[str], sets: Mapping[frozenset[str], int]
) -> tuple[frozenset[str], ...]:
    if model == "shared_nvswitch":
        return tuple(sets)
    nodes = {gpu: functions[gpu]["numa_node"] for gpu in gpus}
    # The switch next to it; on a port of its own the GPU itself.
    switches = {gpu: next(iter(_switches_above(functions, gpu)), gpu) for gpu in gpus}
    together = [frozenset(gpus), *(frozenset({gpu}) for gpu in gpus)]
    for place in (nodes, switches):
        together += [frozenset(other for other in gpus if place[other] == place[gpu]) for gpu in gpus]
    return tuple(dict.fromkeys(together))


def read_truth(
    topology: Mapping[str, Any],
    domains: Sequence[Mapping[str, Any]],
    model: str,
    cores_per_gpu: int,
    pages_per_gpu: int,
) -> Truth:
    """The host as the objective sees it.

    :param topology: as the reader returns it, of a converted host.
    :param domains: existing VMs, as docs/architecture.md describes them.
    :param cores_per_gpu: cores that every VM gets for each of its GPUs, from that GPU's node; pages likewise.
    """
    functions = {function["bdf"]: function for function in topology["pci"]}
    endpoints = {bdf: function for bdf, function in functions.items() if function["kind"] == "endpoint"}
    gpus = tuple(sorted(bdf for bdf, function in endpoints.items() if function["role"] == "gpu"))
    switches = frozenset(bdf for bdf, function in endpoints.items() if function["role"] == "nvswitch")
    groups = _groups(endpoints)
    taken = _taken(endpoints, domains)
    sets: dict[frozenset[str], int] = {}
    if model == "shared_nvswitch":
        (device,) = {functions[switch]["device"] for switch in switches}
        by_module = {functions[gpu]["module_id"]: gpu for gpu in gpus}
        for number, modules in fabric_rules.partitions(device).items():
            if modules <= set(by_module):
                sets[frozenset(by_module[module] for module in modules)] = number
    nodes = {functions[gpu]["numa_node"] for gpu in gpus}
    return Truth(
        model=model,
        gpus=gpus,
        free=frozenset(gpu for gpu in gpus if not groups[gpu] & taken),
        above={
            gpu: (*_above(functions, gpu), functions[gpu]["host_bridge"], f"node {functions[gpu]['numa_node']}")
            for gpu in gpus
        },
        node_of={gpu: functions[gpu]["numa_node"] for gpu in gpus},
        room={
            node: min(
                len(free_cores(topology, domains, node, model)) // cores_per_gpu,
                free_pages(topology, domains, node) // pages_per_gpu,
            )
            for node in nodes
        },
        group_of=groups,
        units=_units(functions, groups, taken, gpus),
        sets=sets,
        switches=switches,
        switches_free=not any(groups[switch] & taken for switch in switches),
        blocks=_blocks(functions, model, gpus, sets),
    )


def least_cost(caps: Mapping[str, int], units: Sequence[Unit], count: int) -> int | None:
    """Least sum of costs of dealing ``count`` of the units to GPUs, at most ``caps`` to each; None when it cannot be.

    Tries every GPU for every unit, remembering what is left to be done.
    """
    names = tuple(sorted(caps))
    known: dict[tuple[int, int, tuple[int, ...]], int | None] = {}

    def deal(index: int, left: int, room: tuple[int, ...]) -> int | None:
        if left == 0:
            return 0
        if len(units) - index < left:
            return None
        key = (index, left, room)
        if key not in known:
            ways = [deal(index + 1, left, room)]
            for place, name in enumerate(names):
                if room[place]:
                    rest = deal(index + 1, left - 1, (*room[:place], room[place] - 1, *room[place + 1 :]))
                    ways.append(None if rest is None else rest + units[index].cost[name])
            known[key] = min((way for way in ways if way is not None), default=None)
        return known[key]

    return deal(0, count, tuple(caps[name] for name in names))


def pairs_tied(truth: Truth) -> set[frozenset[str]]:
    """IOMMU groups of units of both roles that hold no GPU: whoever has the one device has the other."""
    groups = {a.group for a, b in combinations(truth.units, 2) if a.group == b.group}
    return {group for group in groups if group.isdisjoint(truth.gpus)}
