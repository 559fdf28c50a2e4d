# Copyright: the topovirt.kvm authors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""How fast and how good placement is, beside Nova's rule and go-gpuallocator's (``nova.py``, ``go_gpuallocator.py``).

All machines of tests/twin as sold. The rivals know no fabric, so they are compared with fabric model "none"; on dgx-2
as if its switches had ACS, for without it pairs of GPUs share IOMMU groups, which the rivals do not know either.
"""

from __future__ import annotations

import copy
import time
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial

from ansible_collections.topovirt.kvm.plugins.module_utils._topology.model import Topology

from tests.bench import contestants, reader
from tests.bench.contestants import Wish
from tests.bench.quality import Given, Host
from tests.bench.result import Row

SINGLES = (1, 2, 4, 8, 16)
MIXES = ((4, 2, 1, 1), (2, 1, 1))
SINGLE_GOAL_MS = 20
FULL_HOST_GOAL_MS = 200
FULL_HOST = 16  # VMs of one GPU that the goal speaks of
GROUPED = "dgx-2"
MODELS = ("full_passthrough", "shared_nvswitch")
OURS, NOVA, GO, GO_REMEMBERING = "ours", "Nova", "go-gpuallocator", "go-gpuallocator, searched faster"

NOTES = (
    "Times are CPU times from a topology to the devices of every VM, those of go-gpuallocator to the GPUs only;",
    f"'{GO_REMEMBERING}': its rule would walk more than {contestants.WALKED} partitions, here it gets the same sooner.",
    "4 x 2: four VMs of two GPUs. NICs of a VM: its GPUs' share of those near GPUs; go-gpuallocator's are dealt best.",
    "Path costs: sum over GPU-NIC pairs, from PIX 1 to SYS 5. Nodes: NUMA nodes of a VM's GPUs, summed over the VMs.",
    "Left in one node: GPUs of the largest VM that still fits within one NUMA node, CPUs and NICs not looked at.",
    "Sums are over the batches that all three place; dgx-2 is taken as with ACS.",
)


@dataclass(frozen=True)
class Case:
    """A machine and a batch for it."""

    machine: str
    topology: Topology
    host: Host
    wishes: tuple[Wish, ...]

    @property
    def name(self) -> str:
        sizes = Counter(wish.gpus for wish in self.wishes)
        return f"{self.machine}: " + " + ".join(f"{count} x {size}" for size, count in sizes.items())


def ungrouped(topology: Topology) -> Topology:
    """The same with every PCI function in an IOMMU group of its own."""
    other = copy.deepcopy(topology)
    for number, function in enumerate(other["pci"]):
        function["iommu_group"] = number
    return other


def batches(gpus: int) -> list[tuple[int, ...]]:
    """Sizes of the VMs of each batch, largest first."""
    found: list[tuple[int, ...]] = [(size,) for size in SINGLES if size <= gpus]
    found += [(1,) * gpus, (2,) * (gpus // 2), (4,) * (gpus // 4)]
    return found + [mix for mix in MIXES if sum(mix) <= gpus]


def cases(machine: str, topology: Topology) -> list[Case]:
    host = Host(topology)
    near = host.near_nics()
    return [
        Case(machine, topology, host, tuple(Wish(size, size * near // len(host.gpus)) for size in sizes))
        for sizes in batches(len(host.gpus))
    ]


def _milliseconds(works: Sequence[Callable[[], object]]) -> list[float]:
    """Medians of the CPU time of all works, taken in turn after one round that does not count."""
    began = time.process_time()
    for work in works:
        work()
    taken = time.process_time() - began
    rounds = 7 if taken < 0.1 else 3 if taken < 0.5 else 1
    return [1e3 * seconds for seconds in reader.median(*works, rounds=rounds, clock=time.process_time)]


def beside_rivals(case: Case) -> tuple[Row, dict[str, list[Given] | None]]:
    """Times of all three on one batch, and what they gave."""
    works: dict[str, Callable[[], object]] = {
        OURS: lambda: contestants.ours(case.topology, "none", case.wishes),
        NOVA: lambda: contestants.novas(case.topology, Host(case.topology), case.wishes),
        GO if contestants.is_walked(case.host, case.wishes) else GO_REMEMBERING: lambda: contestants.go_gpuallocators(
            Host(case.topology), case.wishes
        ),
    }
    ours, *others = _milliseconds(list(works.values()))
    own = contestants.ours(case.topology, "none", case.wishes)
    gpus = contestants.go_gpuallocators(case.host, case.wishes)
    given = {
        OURS: None if own is None else contestants.ours_by_unit(case.host, own),
        NOVA: contestants.novas(case.topology, case.host, case.wishes),
        GO: None if gpus is None else contestants.with_best_nics(case.host, gpus, case.wishes),
    }
    return Row(case.name, "ms", ours, dict(zip(list(works)[1:], others, strict=True))), given


def qualities(machine: str, found: Sequence[tuple[Case, dict[str, list[Given] | None]]]) -> list[Row]:
    """Sums over the batches of one machine that all three place."""
    measures: dict[str, Callable[[Host, list[Given]], int]] = {
        "path costs": Host.path_costs,
        "nodes": Host.spans,
        "left in one node": Host.largest_left,
    }
    sums = {name: Counter({OURS: 0, NOVA: 0, GO: 0}) for name in measures}
    together = 0
    for case, given in found:
        placed = {who: placement for who, placement in given.items() if placement is not None}
        if len(placed) < len(given):
            continue
        together += 1
        for name, measure in measures.items():
            for who, placement in placed.items():
                sums[name][who] += measure(case.host, placement)
    return [
        Row(
            f"{machine}: {name}, {together} of {len(found)} batches",
            "",
            total[OURS],
            {NOVA: total[NOVA], GO: total[GO]},
        )
        for name, total in sums.items()
    ]


def fabrics(topology: Topology) -> list[str]:
    """Models other than "none" that the machine can have."""
    functions = topology["pci"]
    if not any(function["role"] == "nvswitch" for function in functions):
        return []
    known = all(function["module_id"] is not None for function in functions if function["role"] == "gpu")
    return [model for model in MODELS if known or model != "shared_nvswitch"]


def slowest_single(model: str, of_machine: Sequence[Case]) -> Row:
    """The slowest request for one VM that the model can place, beside the goal."""
    works = {}
    for case in of_machine:
        work = partial(contestants.ours, case.topology, model, case.wishes)
        if len(case.wishes) == 1 and work() is not None:
            works[case.wishes[0].gpus] = work
    slowest, gpus = max(zip(_milliseconds(list(works.values())), works, strict=True))
    name = f"{of_machine[0].machine}, {model}: slowest single request, {gpus}-GPU VM"
    return Row(name, "ms", slowest, {"goal": SINGLE_GOAL_MS})


def rows(topologies: Mapping[str, Topology]) -> list[Row]:
    """Goals first, then times beside the rivals, then quality.

    :param topologies: machines by name, their module ids known.
    """
    goals: list[Row] = []
    times: list[Row] = []
    quality: list[Row] = []
    refused = Counter({OURS: 0, NOVA: 0, GO: 0})
    for machine, topology in topologies.items():
        of_machine = cases(machine, ungrouped(topology) if machine == GROUPED else topology)
        goals.append(slowest_single("none", of_machine))
        as_it_is = cases(machine, topology)
        goals += [slowest_single(model, as_it_is) for model in fabrics(topology)]
        found = []
        for case in of_machine:
            row, given = beside_rivals(case)
            times.append(row)
            found.append((case, given))
            refused.update(who for who, placement in given.items() if placement is None)
            if len(case.wishes) == len(case.host.gpus) == FULL_HOST:
                goals.append(Row(f"{case.name}, the full host", "ms", row.ours, {"goal": FULL_HOST_GOAL_MS}))
        quality += qualities(machine, found)
    counts = Row(f"batches refused, of {len(times)}", "", refused[OURS], {NOVA: refused[NOVA], GO: refused[GO]})
    return [*goals, *times, *quality, counts]
