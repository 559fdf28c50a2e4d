# Copyright: the topovirt.kvm authors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Hosts to place batches on: every machine of tests/twin, empty or filled in part as a seed says."""

from __future__ import annotations

import os
from collections.abc import Iterator
from copy import deepcopy
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from random import Random
from tempfile import TemporaryDirectory

from ansible_collections.topovirt.kvm.plugins.module_utils._libvirt.domains import Allocation
from ansible_collections.topovirt.kvm.plugins.module_utils._topology.model import PciFunction, Topology
from ansible_collections.topovirt.kvm.plugins.module_utils._topology.reader import read_topology

from tests.oracle.truth import GIB_PAGE, Truth, Wanted, free_cores, read_truth
from tests.twin.addresses import module_ids
from tests.twin.description import load, names
from tests.twin.recorded import record

SIZES = (1, 2, 4, 8, 16)
MOST_GPUS = 16
PAGES = str(GIB_PAGE >> 10)

NIC_RULES = ("share", "each", "share", "none", "double", "one", "mixed")
NVME_RULES = ("none", "none", "large", "one")


@dataclass(frozen=True)
class Host:
    """A host with its VMs, and what each GPU of a new VM brings with it."""

    name: str
    model: str
    topology: Topology
    domains: tuple[Allocation, ...]
    cores_per_gpu: int
    pages_per_gpu: int
    nic_rule: str
    nvme_rule: str

    @property
    def threads_per_core(self) -> int:
        return len(self.topology["cores"][0]["threads"])

    def truth(self) -> Truth:
        return read_truth(self.topology, self.domains, self.model, self.cores_per_gpu, self.pages_per_gpu)

    def batch(self, sizes: tuple[int, ...]) -> list[Wanted]:
        """VMs of these sizes; how many NICs and NVMe devices they want follows the host's rules."""
        roles = [function["role"] for function in self.topology["pci"]]
        nics, gpus = roles.count("nic"), roles.count("gpu")
        wanted = []
        for index, size in enumerate(sizes):
            count = {
                "share": size * nics // gpus,
                "each": size,
                "none": 0,
                "double": 2 * size,
                "one": 1,
                "mixed": (0, size, 1)[index % 3],
            }[self.nic_rule]
            drives = {"none": 0, "large": int(size >= 4), "one": 1}[self.nvme_rule]
            wanted.append(Wanted(size, count, drives))
        return wanted


def multisets(most: int = MOST_GPUS, sizes: tuple[int, ...] = SIZES) -> Iterator[tuple[int, ...]]:
    """Every multiset of the sizes with at most so many GPUs, but for the empty one; largest first."""
    for index, size in enumerate(sizes):
        if size <= most:
            yield (size,)
            for rest in multisets(most - size, sizes[: index + 1]):
                yield (size, *rest)


@cache
def _recorded(machine: str) -> Topology:
    """The machine as sold, read from its recorded tree; devices for VMs, NVMe drives among them, on vfio-pci."""
    memory = "/dev/shm" if os.access("/dev/shm", os.W_OK) else None
    described = load(machine)
    with TemporaryDirectory(dir=memory) as folder:
        record(described, Path(folder), "real", "vfio")
        topology = read_topology(Path(folder), module_ids=module_ids(described))
    for function in topology["pci"]:
        if function["role"] == "nvme":
            function["driver"] = "vfio-pci"
    for node in topology["numa_nodes"]:
        pages = (node["memory_bytes"] or 0) // GIB_PAGE * 15 // 16
        node["hugepages"][PAGES] = {"total": pages, "free": pages}
    return topology


def _isolated(topology: Topology) -> None:
    """As if every switch had ACS: an IOMMU group for each slot."""
    slots: dict[str, int] = {}
    for function in topology["pci"]:
        if function["kind"] == "endpoint" and function["iommu_group"] is not None:
            function["iommu_group"] = slots.setdefault(function["bdf"][:-2], 1000 + len(slots))


def _gpus(topology: Topology) -> list[PciFunction]:
    return [function for function in topology["pci"] if function["role"] == "gpu"]


def _number_modules(topology: Topology, random: Random | None) -> None:
    """Module ids where the machine's description has none: in order of address, or as the seed says."""
    gpus = _gpus(topology)
    if any(gpu["module_id"] is None for gpu in gpus):
        modules = list(range(1, len(gpus) + 1))
        if random is not None:
            random.shuffle(modules)
        for gpu, module in zip(gpus, modules, strict=True):
            gpu["module_id"] = module


@cache
def kinds() -> tuple[tuple[str, str, bool], ...]:
    """Machine, fabric model, whether IOMMU groups are as recorded: all that make sense.

    The switches of dgx-2 have no ACS as recorded, so that its GPUs go in pairs; it is there with ACS too.
    """
    found = []
    for machine in names():
        switches = any(function["role"] == "nvswitch" for function in _recorded(machine)["pci"])
        for model in ("none", "full_passthrough", "shared_nvswitch") if switches else ("none",):
            found += [(machine, model, recorded) for recorded in ((True, False) if machine == "dgx-2" else (True,))]
    return tuple(found)


def empty(machine: str, model: str, recorded: bool = True) -> Host:
    """The machine without VMs, with room for all that its devices allow."""
    topology = deepcopy(_recorded(machine))
    if not recorded:
        _isolated(topology)
    _number_modules(topology, None)
    name = f"{machine}{'' if recorded else ' with ACS'}, {model}"
    return Host(f"{name}, empty", model, topology, (), 1, 8, "share", "none")


def _shares(topology: Topology, model: str) -> tuple[int, int]:
    """Cores and pages that a GPU could have on the node where there are fewest."""
    nodes = [gpu["numa_node"] or 0 for gpu in _gpus(topology)]
    pages = {node["id"]: node["hugepages"][PAGES]["total"] for node in topology["numa_nodes"]}
    cores = {node: len(free_cores(topology, (), node, model)) for node in nodes}
    return min(cores[node] // nodes.count(node) for node in nodes), min(
        pages[node] // nodes.count(node) for node in nodes
    )


class _Filler:
    """Puts VMs on a host until it is as full as the seed wants."""

    def __init__(self, topology: Topology, model: str, random: Random) -> None:
        self.topology, self.model, self.random = topology, model, random
        self.domains: list[Allocation] = []
        self.endpoints = {function["bdf"]: function for function in topology["pci"] if function["kind"] == "endpoint"}
        self.left = {bdf for bdf, function in self.endpoints.items() if not function["in_use"]}
        self.cores = {node["id"]: free_cores(topology, (), node["id"], model) for node in topology["numa_nodes"]}

    def _group(self, bdf: str) -> set[str]:
        number = self.endpoints[bdf]["iommu_group"]
        return {other for other, function in self.endpoints.items() if function["iommu_group"] == number}

    def _take(self, role: str, count: int) -> set[str]:
        """Some devices of a role with their groups: neighbours, or from anywhere."""
        there = sorted(bdf for bdf in self.left if self.endpoints[bdf]["role"] == role)
        count = min(count, len(there))
        start = self.random.randint(0, len(there) - count)
        chosen = there[start : start + count] if self.random.random() < 0.6 else self.random.sample(there, count)
        taken: set[str] = set()
        for bdf in chosen:
            group = self._group(bdf)
            if group <= self.left:
                taken |= group
                self.left -= group
        return taken

    def add(self) -> None:
        """One VM, of which libvirt knows; running ones use their huge pages up."""
        random = self.random
        size = random.choice((1, 1, 2))
        hostdevs = (
            self._take("gpu", size)
            | self._take("nic", random.choice((0, 1, size)))
            | self._take("nvme", random.choice((0, 0, 1)))
        )
        nodes = sorted({self.endpoints[bdf]["numa_node"] or 0 for bdf in hostdevs}) or [0]
        foreign = random.random() < 0.2
        cpus: list[int] = []
        memory: dict[str, int] = {}
        for node in nodes:
            cores = self.cores[node]
            random.shuffle(cores)
            for _core in range(min(len(cores), random.choice((1, 4, 12)))):
                threads = cores.pop()["threads"]
                cpus += threads[:1] if foreign else threads
            counts = next(item for item in self.topology["numa_nodes"] if item["id"] == node)["hugepages"][PAGES]
            memory[str(node)] = (
                min(counts["free"], random.choice((1, 1, counts["total"] // 8, counts["total"] // 2))) * GIB_PAGE
            )
        state = random.choice(("running", "running", "paused", "shut off", "crashed"))
        huge = not foreign or random.random() < 0.5
        if huge and state in ("running", "paused"):
            for item in self.topology["numa_nodes"]:
                item["hugepages"][PAGES]["free"] -= memory.get(str(item["id"]), 0) // GIB_PAGE
        self.domains.append(
            {
                "name": f"old-{len(self.domains)}",
                "uuid": None,
                "state": state,
                "persistent": True,
                "autostart": False,
                "ours": not foreign,
                "hostdevs": sorted(hostdevs),
                "cpus": ",".join(map(str, sorted(cpus))),
                "emulator_cpus": "",
                "memory_bytes": sum(memory.values()),
                "memory_by_node": memory,
                "page_size_bytes": GIB_PAGE if huge else None,
                "metadata": None,
            }
        )


def _spoil(topology: Topology, random: Random) -> None:
    """What a host can be like: devices in use or on other drivers, a switch without ACS, a NIC tied to a drive."""
    devices = [function for function in topology["pci"] if function["role"] in ("gpu", "nic", "nvme", "nvswitch")]
    for function in random.sample(devices, random.choice((0, 0, 1, 2))):
        if random.random() < 0.5:
            function["in_use"] = ["process 4711 holds it"]
        else:
            function["driver"] = random.choice(("nvidia", "mlx5_core", None))
    kind = random.random()
    if kind < 0.15:
        parents = {function["bdf"]: function["parent"] for function in topology["pci"]}
        switch = parents[random.choice(_gpus(topology))["parent"] or ""]
        below = [function for function in devices if function["parent"] and parents[function["parent"]] == switch]
        for function in below if switch else []:
            function["iommu_group"] = below[0]["iommu_group"]
    elif kind < 0.3:
        nics = [function for function in devices if function["role"] == "nic"]
        for drive in [function for function in devices if function["role"] == "nvme"][:1]:
            drive["iommu_group"] = random.choice(nics)["iommu_group"]


def part_filled(seed: int) -> Host:
    """The host of this seed: machines and models take turns, all else is the seed's."""
    random = Random(seed)
    machine, model, recorded = kinds()[seed % len(kinds())]
    topology = deepcopy(_recorded(machine))
    if not recorded:
        _isolated(topology)
    _number_modules(topology, random)
    cores, pages = _shares(topology, model)
    _spoil(topology, random)
    filler = _Filler(topology, model, random)
    for _vm in range(random.randint(1, max(2, len(_gpus(topology)) // 4))):
        filler.add()
    return Host(
        f"{machine}{'' if recorded else ' with ACS'}, {model}, seed {seed}",
        model,
        topology,
        tuple(filler.domains),
        random.choice((1, 1, max(1, cores // 2), cores)),
        random.choice((8, 8, 8, pages // 2, pages)),
        random.choice(NIC_RULES),
        random.choice(NVME_RULES),
    )
