# Copyright: the topovirt.kvm authors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""The solver and its rivals on the same input: a topology and a list of VMs, each asking for GPUs and NICs.

Each gives the VMs in turn what it would give them, or None when one of them gets nothing.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass

from ansible_collections.topovirt.kvm.plugins.module_utils._topology.model import Topology
from ansible_collections.topovirt.kvm.plugins.plugin_utils._placement.fabric import read_fabric
from ansible_collections.topovirt.kvm.plugins.plugin_utils._placement.inventory import take_stock
from ansible_collections.topovirt.kvm.plugins.plugin_utils._placement.policy import Policy
from ansible_collections.topovirt.kvm.plugins.plugin_utils._placement.request import parse_requests
from ansible_collections.topovirt.kvm.plugins.plugin_utils._placement.solve import Solver

from tests.bench import go_gpuallocator, nova
from tests.bench.quality import Demand, Given, Host, deal

# Up to so many partitions are walked as the source does; more would take longer than all else here.
WALKED = 20_000


@dataclass(frozen=True)
class Wish:
    gpus: int
    nics: int


def ours(topology: Topology, model: str, wishes: Sequence[Wish]) -> list[Given] | None:
    """The only place that knows the solver's interface."""
    requests = parse_requests(
        [
            {"name": f"vm{number}", "gpus": wish.gpus, "nics": wish.nics, "boot": {"kernel": "/vmlinuz"}}
            for number, wish in enumerate(wishes)
        ]
    )
    solver = Solver(take_stock(topology, [], "unconverted", model), read_fabric(topology, model), Policy())
    solved = solver.solve(requests)
    return None if solved is None else [Given(placed.gpu_set.gpus, placed.nics) for placed in solved]


def ours_by_unit(host: Host, given: Sequence[Given]) -> list[Given]:
    """The same with one function for each NIC."""
    return [Given(vm.gpus, tuple(dict.fromkeys(host.nic_of[nic] for nic in vm.nics))) for vm in given]


def _fewest_nodes(host: Host, gpus: int) -> int:
    """How many NUMA nodes of the empty host it takes for so many GPUs."""
    counts = sorted(Counter(host.node[gpu] for gpu in host.gpus).values(), reverse=True)
    return next(number for number in range(1, len(counts) + 1) if sum(counts[:number]) >= gpus)


def novas(topology: Topology, host: Host, wishes: Sequence[Wish]) -> list[Given] | None:
    """As an operator would set up flavors: own CPUs and memory by share of GPUs, as few NUMA nodes as the GPUs take.

    The first core of each node is kept for the host. Devices have affinity policy "legacy", the default, and are known
    in the order of their addresses.
    """
    cores: dict[int | None, list[frozenset[int]]] = {}
    for core in topology["cores"]:
        cores.setdefault(core["node"], []).append(frozenset(core["threads"]))
    cells = [
        nova.HostCell(
            node["id"],
            (node["memory_bytes"] or 0) >> 20,
            dedicated_cpus=frozenset().union(*cores[node["id"]][1:]),
            siblings=tuple(cores[node["id"]][1:]),
        )
        for node in topology["numa_nodes"]
    ]
    on_node = Counter(host.node[gpu] for gpu in host.gpus)
    cpus = min(len(cell.dedicated_cpus) // on_node[cell.id] for cell in cells if on_node[cell.id])
    memory_mib = min(cell.memory_mib // on_node[cell.id] for cell in cells if on_node[cell.id])
    free = [nova.Device(bdf, host.kind[bdf] or "", host.node[bdf]) for bdf in sorted((*host.gpus, *host.nics))]
    placement: list[Given] = []
    for wish in wishes:
        number = _fewest_nodes(host, wish.gpus)
        vcpus = tuple(range(wish.gpus * cpus // number))
        guest = [nova.GuestCell(vcpus, wish.gpus * memory_mib // number, dedicated=True)] * number
        requests = [nova.DeviceRequest("gpu", wish.gpus)]
        if wish.nics:
            requests.append(nova.DeviceRequest("nic", wish.nics))
        fitted = nova.fit(cells, guest, requests, free)
        if fitted is None:
            return None
        taken = nova.take(free, requests, [item.host for item in fitted]) or []
        cells = nova.use(cells, fitted)
        free = [device for device in free if device not in taken]
        placement.append(
            Given(
                tuple(device.name for device in taken if device.kind == "gpu"),
                tuple(device.name for device in taken if device.kind == "nic"),
            )
        )
    return placement


def go_gpuallocators(host: Host, wishes: Sequence[Wish]) -> list[tuple[str, ...]] | None:
    """GPUs only, as its rule knows no NICs. Scores are by path class: through NVSwitches it sees no NVLinks."""
    scores = [
        [0 if a == b else go_gpuallocator.PATH_SCORES[host.path_class(a, b)] for b in host.gpus] for a in host.gpus
    ]
    free = list(range(len(host.gpus)))
    placement: list[tuple[str, ...]] = []
    for wish in wishes:
        if go_gpuallocator.count_partitions(len(free), wish.gpus) <= WALKED:
            chosen = go_gpuallocator.allocate(scores, free, (), wish.gpus)
        else:
            chosen = go_gpuallocator.allocate_remembering(scores, free, wish.gpus)
        gpus = [gpu for gpu in chosen if gpu is not None]
        if len(gpus) < wish.gpus:
            return None
        free = [gpu for gpu in free if gpu not in gpus]
        placement.append(tuple(host.gpus[gpu] for gpu in sorted(gpus)))
    return placement


def is_walked(host: Host, wishes: Sequence[Wish]) -> bool:
    """Whether go-gpuallocator's rule walks all partitions here, as the source does."""
    left = len(host.gpus)
    for wish in wishes:
        if go_gpuallocator.count_partitions(left, wish.gpus) > WALKED:
            return False
        left -= wish.gpus
    return True


def with_best_nics(host: Host, gpus: Sequence[tuple[str, ...]], wishes: Sequence[Wish]) -> list[Given] | None:
    """NICs for chosen GPUs by the best dealing there is, for all VMs together."""
    demands = [Demand(chosen, host.nics, wish.nics) for chosen, wish in zip(gpus, wishes, strict=True)]
    dealt = deal(demands, host.cost)
    return None if dealt is None else [Given(*pair) for pair in zip(gpus, dealt[1], strict=True)]
