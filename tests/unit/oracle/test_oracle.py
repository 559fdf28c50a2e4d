# Copyright: the topovirt.kvm authors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""The oracle itself: beside plain trying of everything, without states, bounds or symmetry, on small parts of hosts."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import replace
from itertools import product
from random import Random

import pytest

from tests.oracle import hosts
from tests.oracle.optimum import Optimum, Oracle
from tests.oracle.symmetry import changes_nothing
from tests.oracle.truth import Truth, Unit, Wanted, path

Key = tuple[int, int, tuple[int, ...]]


def part_of(truth: Truth, random: Random) -> Truth:
    """The host with four free GPUs and four units left, so that everything can be tried."""
    free = random.sample(sorted(truth.free), min(4, len(truth.free)))
    units = random.sample(truth.units, min(4, len(truth.units)))
    return replace(truth, free=frozenset(free), units=tuple(units))


def gpu_ways(truth: Truth, batch: Sequence[Wanted]) -> Iterator[list[frozenset[str]]]:
    """Every way to give each free GPU to a VM or to none, as far as sets, sizes and room allow."""
    free = sorted(truth.free)
    for owners in product(range(-1, len(batch)), repeat=len(free)):
        sets = [
            frozenset(gpu for gpu, owner in zip(free, owners, strict=True) if owner == vm) for vm in range(len(batch))
        ]
        used = Counter(truth.node_of[gpu] for gpu, owner in zip(free, owners, strict=True) if owner >= 0)
        if (
            all(len(chosen) == wanted.gpus for chosen, wanted in zip(sets, batch, strict=True))
            and all(truth.allowed(chosen) for chosen in sets)
            and all(count <= truth.room[node] for node, count in used.items())
        ):
            yield sets


def cheapest(truth: Truth, batch: Sequence[Wanted], sets: Sequence[frozenset[str]]) -> int | None:
    """Every way to deal each unit to a GPU or to none."""
    owner = {gpu: vm for vm, chosen in enumerate(sets) for gpu in chosen}
    best = None
    for dealt in product((None, *sorted(owner)), repeat=len(truth.units)):
        pairs = [(unit, gpu) for unit, gpu in zip(truth.units, dealt, strict=True) if gpu is not None]
        if not keeps_groups(pairs, owner, truth) or not keeps_counts(pairs, owner, batch):
            continue
        cost = sum(unit.cost[gpu] for unit, gpu in pairs)
        best = cost if best is None else min(best, cost)
    return best


def keeps_groups(pairs: Sequence[tuple[Unit, str]], owner: dict[str, int], truth: Truth) -> bool:
    vms: dict[frozenset[str], set[int | None]] = {}
    for unit, gpu in pairs:
        tied = {owner.get(other) for other in unit.group & set(truth.gpus)}
        vms.setdefault(unit.group, set()).update({owner[gpu]} | tied)
    return all(len(found) == 1 for found in vms.values())


def keeps_counts(pairs: Sequence[tuple[Unit, str]], owner: dict[str, int], batch: Sequence[Wanted]) -> bool:
    for role in ("nic", "nvme"):
        by_gpu = Counter(gpu for unit, gpu in pairs if unit.role == role)
        by_vm = Counter(owner[gpu] for gpu in by_gpu.elements())
        for vm, wanted in enumerate(batch):
            most = -(-wanted.of(role) // wanted.gpus)
            if by_vm[vm] != wanted.of(role) or any(by_gpu[gpu] > most for gpu in by_gpu if owner[gpu] == vm):
                return False
    return True


def by_trying(truth: Truth, batch: Sequence[Wanted]) -> Optimum | None:
    order = sorted(range(len(batch)), key=lambda vm: -batch[vm].gpus)
    best: tuple[Key, list[object], tuple[frozenset[str], ...]] | None = None
    for sets in gpu_ways(truth, batch):
        cost = cheapest(truth, batch, sets)
        if cost is None:
            continue
        left = truth.free.difference(*sets)
        key = cost, sum(map(truth.nodes, sets)), tuple(-count for count in truth.capacity(left))
        ranks: list[object] = [sorted(sets[vm]) for vm in order]
        if best is None or (key, ranks) < best[:2]:
            best = key, ranks, tuple(sets)
    return None if best is None else Optimum(best[0], best[2])


@pytest.mark.parametrize("seed", range(60))
def test_the_oracle_agrees_with_plain_trying(seed: int) -> None:
    random = Random(seed)
    truth = part_of(hosts.part_filled(seed).truth(), random)
    sizes = random.choice([(1,), (2,), (1, 1), (2, 1), (1, 2), (1, 1, 1), (2, 2)])
    batch = [Wanted(size, random.randint(0, size), random.choice((0, 0, 1))) for size in sizes]
    assert Oracle(truth).best(batch) == by_trying(truth, batch)


def test_the_plain_cases_are_of_both_kinds() -> None:
    kept = [len(part_of(hosts.part_filled(seed).truth(), Random(seed)).free) for seed in range(60)]
    assert kept.count(4) > 20


def test_exchanges_are_proven_and_not_believed() -> None:
    any_gpus = hosts.empty("hgx-h200", "none").truth()
    partitions = hosts.empty("hgx-h200", "shared_nvswitch").truth()
    below_one_switch = {"0000:23:00.0": "0000:24:00.0", "0000:24:00.0": "0000:23:00.0"}  # modules 2 and 4: a partition
    other_switch = {"0000:23:00.0": "0000:53:00.0", "0000:53:00.0": "0000:23:00.0"}
    assert changes_nothing(any_gpus, below_one_switch)
    assert changes_nothing(partitions, below_one_switch)
    assert not changes_nothing(any_gpus, other_switch)  # their NICs stay behind
    other_pair = {"0000:93:00.0": "0000:c3:00.0", "0000:c3:00.0": "0000:93:00.0"}  # modules 7 and 6
    assert not changes_nothing(replace(partitions, units=()), other_pair)  # partitions 5,7 and 6,8 would be torn
    full_node = replace(any_gpus, units=(), blocks=(), room={0: 3, 1: 4})
    assert not changes_nothing(full_node, {"0000:23:00.0": "0000:93:00.0", "0000:93:00.0": "0000:23:00.0"})


@pytest.mark.parametrize(
    "machine,a,b,expected",
    [
        # As `nvidia-smi topo -m` shows these machines; see their descriptions for the sources.
        ("hgx-h200", "0000:23:00.0", "0000:25:00.0", "PIX"),
        ("hgx-h200", "0000:23:00.0", "0000:55:00.0", "NODE"),
        ("hgx-h200", "0000:23:00.0", "0000:95:00.0", "SYS"),
        ("hgx-h200", "0000:23:00.0", "0000:28:00.0", "PHB"),
        ("dgx-2", "0000:30:00.0", "0000:31:00.0", "PIX"),
        ("dgx-2", "0000:30:00.0", "0000:36:00.0", "PXB"),
        ("hgx-a100", "0000:06:00.0", "0000:09:00.0", "PXB"),
        ("hgx-a100", "0000:61:00.0", "0000:61:00.1", "PIX"),
        ("pcie-l40s", "0000:21:00.0", "0000:23:00.0", "PHB"),
    ],
)
def test_paths(machine: str, a: str, b: str, expected: str) -> None:
    functions = {function["bdf"]: function for function in hosts.empty(machine, "none").topology["pci"]}
    assert path(functions, a, b) == path(functions, b, a) == expected


def test_multisets() -> None:
    """Partitions of 1 to 16 into powers of two: sums of https://oeis.org/A018819."""
    made = list(hosts.multisets())
    assert len(made) == len(set(made)) == 1 + 2 + 2 + 4 + 4 + 6 + 6 + 10 + 10 + 14 + 14 + 20 + 20 + 26 + 26 + 36


def test_what_was_looked_at_is_counted() -> None:
    oracle = Oracle(hosts.empty("hgx-h200", "none").truth())
    assert oracle.best([Wanted(4, 0, 0), Wanted(2, 0, 0)]) is not None
    assert oracle.count.placements == 70 * 6  # four of eight GPUs, then two of four
    assert oracle.best([Wanted(8, 0, 0), Wanted(1, 0, 0)]) is None
    assert (oracle.count.batches, oracle.count.refused) == (2, 1)
