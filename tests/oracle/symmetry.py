# Copyright: the topovirt.kvm authors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Exchanges of free GPUs that change nothing: what may be taken for the same placement without looking at both.

An exchange is believed only after every fact that the objective looks at was compared before and after it: the cost
of every pair of GPU and unit, the NUMA nodes and what room they have, the blocks, the sets that the fabric allows, and
what is tied together by IOMMU groups.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from itertools import combinations

from tests.oracle.truth import Truth, pairs_tied


def _moved(items: frozenset[str], there: Mapping[str, str]) -> frozenset[str]:
    return frozenset(there.get(item, item) for item in items)


def changes_nothing(truth: Truth, there: Mapping[str, str]) -> bool:
    """Is the host the same after free GPUs took each other's place?

    :param there: GPU -> the GPU in whose place it is; others stay.
    """
    order = sorted(truth.free)
    after = [there.get(gpu, gpu) for gpu in order]
    nodes = {(truth.node_of[a], truth.node_of[b]) for a, b in zip(order, after, strict=True)}
    if len({a for a, _b in nodes}) != len(nodes) or len({b for _a, b in nodes}) != len(nodes):
        return False
    inside = Counter(truth.node_of[gpu] for gpu in order)
    if any(min(inside[a], truth.room[a]) != min(inside[b], truth.room[b]) for a, b in nodes):
        return False
    alone = pairs_tied(truth)
    before_units, after_units = Counter[object](), Counter[object]()
    for unit in truth.units:
        tied = unit.group & truth.free
        # Units that are tied to each other but to no GPU are told apart, so each has to stay as it is.
        name = unit.group if unit.group in alone else None
        before_units[unit.role, name, tied, tuple(unit.cost[gpu] for gpu in order)] += 1
        after_units[unit.role, name, _moved(tied, there), tuple(unit.cost[gpu] for gpu in after)] += 1
    if before_units != after_units:
        return False
    families: list[list[frozenset[str]]] = [
        [block for block in truth.blocks if block <= truth.free],
        [chosen for chosen in truth.sets if chosen <= truth.free],
        [truth.group_of[gpu] & truth.free for gpu in order],
    ]
    return all({_moved(member, there) for member in family} == set(family) for family in families)


def exchange(one: Sequence[str], other: Sequence[str]) -> dict[str, str]:
    """Each GPU of two lists -> the one in whose place it is when the lists change places."""
    there = dict(zip(one, other, strict=True))
    return {**there, **{new: old for old, new in there.items()}}


def _lists(truth: Truth) -> list[tuple[str, ...]]:
    """What may be worth an exchange: free GPUs below each bridge and host bridge, of each node, of each allowed set."""
    keys: dict[str, list[str]] = {}
    for gpu in sorted(truth.free):
        for key in (gpu, *truth.above[gpu]):
            keys.setdefault(key, []).append(gpu)
    sets = (tuple(sorted(chosen)) for chosen in truth.sets if chosen <= truth.free)
    return list(dict.fromkeys([*map(tuple, keys.values()), *sets]))


def exchanges(truth: Truth) -> Iterator[dict[str, str]]:
    """Exchanges of two lists of GPUs, in order or in reverse, that change nothing; those of few GPUs first."""
    lists = sorted(_lists(truth), key=lambda gpus: (len(gpus), gpus))
    for a, b in combinations(lists, 2):
        if len(a) == len(b) and not set(a) & set(b):
            for other in dict.fromkeys((b, b[::-1])):
                there = exchange(a, other)
                if changes_nothing(truth, there):
                    yield there
