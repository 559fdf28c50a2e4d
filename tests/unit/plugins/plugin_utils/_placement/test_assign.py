# Copyright: the topovirt.kvm authors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
from __future__ import annotations

from itertools import permutations
from random import Random

import pytest
from ansible_collections.topovirt.kvm.plugins.plugin_utils._placement.assign import Taker, assign


def cheapest(takers: list[Taker], items: list[str], table: dict[tuple[str, str], int | None]) -> int | None:
    """By trying everything: each taker's places are its GPUs in turn, as often as its even share allows."""
    places: list[list[str]] = [[]]
    for taker in takers:
        share = -(-taker.count // len(taker.gpus))
        slots = [gpu for gpu in taker.gpus for _time in range(share)]
        ways = {tuple(sorted(way)) for way in permutations(slots, taker.count)}
        places = [done + list(way) for done in places for way in sorted(ways)]
    totals = []
    for way in places:
        for chosen in permutations(items, len(way)):
            prices = [table[gpu, item] for gpu, item in zip(way, chosen, strict=True)]
            if all(price is not None for price in prices):
                totals.append(sum(price or 0 for price in prices))
    return min(totals, default=None)


@pytest.mark.parametrize("seed", range(60))
def test_the_sum_is_the_least_possible(seed: int) -> None:
    random = Random(seed)
    first, second = random.randint(0, 3), random.randint(0, 2)
    items = [f"nic{index}" for index in range(5)]
    table = {(f"gpu{gpu}", item): random.choice([None, 0, 1, 2, 3, 4, 5]) for gpu in range(4) for item in items}
    takers = [Taker("a", ("gpu0", "gpu1"), first), Taker("b", ("gpu2", "gpu3"), second)]
    handed_out = assign(takers, items, lambda gpu, item: table[gpu, item])
    expected = cheapest(takers, items, table)
    if handed_out is None:
        assert expected is None
        return
    pairs = [pair for taken in handed_out.values() for pair in taken]
    assert sum(table[pair] or 0 for pair in pairs) == expected
    assert len({item for _gpu, item in pairs}) == len(pairs) == first + second
    for taker in takers:
        assert len(handed_out[taker.name]) == taker.count
        assert {gpu for gpu, _item in handed_out[taker.name]} <= set(taker.gpus)


def test_too_few_items() -> None:
    assert assign([Taker("a", ("gpu0",), 2)], ["nic0"], lambda gpu, item: 0) is None


def test_nothing_asked_for() -> None:
    assert assign([Taker("a", ("gpu0",), 0)], ["nic0"], lambda gpu, item: 0) == {"a": []}
