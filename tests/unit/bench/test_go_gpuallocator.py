# Copyright: the topovirt.kvm authors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""go-gpuallocator's rule, rebuilt: it answers as the source's own tests say.

Machines and answers: ``gpuallocator/common_test.go`` and ``gpuallocator/besteffort_test.go`` of
https://github.com/NVIDIA/go-gpuallocator.
"""

from __future__ import annotations

import random

import pytest

from tests.bench.go_gpuallocator import (
    NVLINK_SCORE,
    PAD,
    PATH_SCORES,
    Scores,
    allocate,
    allocate_remembering,
    count_partitions,
    partitions,
    sets,
)

# NVLinks of each pair as numbers, path class as first letter: SYS, NODE, host bridge (PHB), one switch (PIX).
_LETTERS = {"S": "SYS", "N": "NODE", "H": "PHB", "I": "PIX"}

RTX8000 = (
    "0002 0020 0200 2000",
    ".NS. N..S S..N .SN.",  # the pairs with NVLinks have no other link
)
DGX1_PASCAL = (
    "01111000 10110100 11010010 11100001 10000111 01001011 00101101 00011110",
    ".HIHSSSS H.HISSSS IH.HSSSS HIH.SSSS SSSS.HIH SSSSH.HI SSSSIH.H SSSSHIH.",
)
DGX1_VOLTA = (
    "01122000 10210200 12020010 21200001 20000112 02001021 00101202 00012120",
    ".IHHSSSS I.HHSSSS HH.ISSSS HHI.SSSS SSSS.IHH SSSSI.HH SSSSHH.I SSSSHHI.",
)
ALL = range(8)


def scores(machine: tuple[str, str]) -> list[list[int]]:
    links, paths = (rows.split() for rows in machine)
    return [
        [NVLINK_SCORE * int(link) + (0 if path == "." else PATH_SCORES[_LETTERS[path]]) for link, path in pairs]
        for pairs in (zip(*rows, strict=True) for rows in zip(links, paths, strict=True))
    ]


@pytest.mark.parametrize("machine", [RTX8000, DGX1_PASCAL, DGX1_VOLTA])
def test_the_tables_above_hold_each_pair_in_both_orders(machine: tuple[str, str]) -> None:
    table = scores(machine)
    assert table == [list(row) for row in zip(*table, strict=True)]


@pytest.mark.parametrize(
    ("available", "required", "size", "given"),
    [
        pytest.param([0, 2, 4, 5], [], 2, {4, 5}, id="one NVLink, same switch before others"),
        pytest.param([0, 4, 5, 6], [], 2, {5, 6}, id="one NVLink, same socket before others"),
        pytest.param([0, 3, 1], [], 2, {0, 3}, id="two NVLinks in a socket"),
        pytest.param([0, 1, 4], [], 2, {0, 4}, id="two NVLinks between sockets"),
        pytest.param(ALL, [4], 1, {4}, id="one required, one asked for"),
        pytest.param(ALL, [4], 2, {4, 7}, id="one required, two asked for"),
        pytest.param(ALL, [4], 4, {4, 5, 6, 7}, id="one required, four asked for"),
        pytest.param(range(1, 8), [0, 1, 2, 3], 4, set(), id="a required one is taken"),
        pytest.param(ALL, [0, 2, 4, 6], 4, {0, 2, 4, 6}, id="all required"),
        pytest.param(ALL, [1, 2, 3, 4, 5, 6], 4, set(), id="more required than asked for"),
        pytest.param([1, 2, 3, 4, 5], [1, 2, 3, 4, 5, 6], 1, set(), id="more required than there are"),
    ],
)
def test_one_request_on_a_dgx_1(available: list[int], required: list[int], size: int, given: set[int]) -> None:
    assert set(allocate(scores(DGX1_VOLTA), available, required, size)) == given


@pytest.mark.parametrize(
    ("machine", "size", "given"),
    [
        (RTX8000, 1, [{0}, {1}, {2}, {3}]),
        (RTX8000, 2, [{0, 3}, {1, 2}]),
        (RTX8000, 4, [{0, 1, 2, 3}]),
        (DGX1_PASCAL, 1, [{gpu} for gpu in ALL]),
        (DGX1_PASCAL, 2, [{0, 2}, {1, 3}, {4, 6}, {5, 7}]),
        (DGX1_PASCAL, 4, [{0, 1, 2, 3}, {4, 5, 6, 7}]),
        (DGX1_PASCAL, 8, [set(ALL)]),
        (DGX1_VOLTA, 1, [{gpu} for gpu in ALL]),
        (DGX1_VOLTA, 2, [{0, 3}, {1, 2}, {4, 7}, {5, 6}]),
        (DGX1_VOLTA, 4, [{0, 1, 2, 3}, {4, 5, 6, 7}]),
        (DGX1_VOLTA, 8, [set(ALL)]),
    ],
)
def test_requests_until_nothing_is_left(machine: tuple[str, str], size: int, given: list[set[int]]) -> None:
    table = scores(machine)
    free = list(range(len(table)))
    for expected in given:
        gpus = allocate(table, free, [], size)
        assert set(gpus) == expected
        free = [gpu for gpu in free if gpu not in gpus]
    assert allocate(table, free, [], 1) == ()


def pairs_of_fourteen() -> Scores:
    """Fourteen GPUs: pairs with two NVLinks, the last pair with four; no other link."""
    table = [[0] * 14 for _gpu in range(14)]
    for first in range(0, 14, 2):
        table[first][first + 1] = table[first + 1][first] = NVLINK_SCORE * (4 if first == 12 else 2)
    return table


def test_the_best_set_is_the_last_one_of_the_best_partition() -> None:
    """The source walks 135 135 partitions for this; here what is best for a rest is found once."""
    assert allocate_remembering(pairs_of_fourteen(), range(14), 2) == (12, 13)


def test_sets_of_four_devices() -> None:
    expected = {
        0: [],
        1: [(0,), (1,), (2,), (3,)],
        2: [(0, 1), (0, 2), (0, 3), (1, 2), (1, 3), (2, 3)],
        3: [(0, 1, 2), (0, 1, 3), (0, 2, 3), (1, 2, 3)],
        4: [(0, 1, 2, 3)],
        5: [],
    }
    assert {size: list(sets(range(4), size)) for size in expected} == expected


def test_partitions_of_four_devices() -> None:
    expected = {
        0: set(),
        1: {frozenset({frozenset({gpu})}) for gpu in range(4)},
        2: {frozenset({frozenset({0, gpu}), frozenset({1, 2, 3} - {gpu})}) for gpu in (1, 2, 3)},
        3: {frozenset({frozenset(set(range(4)) - {gpu}), frozenset({gpu, PAD})}) for gpu in range(4)},
        4: {frozenset({frozenset(range(4))})},
        5: set(),
    }
    found = {size: list(partitions(range(4), size)) for size in expected}
    assert {size: {frozenset(map(frozenset, item)) for item in items} for size, items in found.items()} == expected
    assert [len(items) for items in found.values()] == [0, 4, 3, 4, 1, 0]
    assert all(len(gpus) == size for size, items in found.items() for partition in items for gpus in partition)


def test_remembering_changes_no_answer() -> None:
    """With few different scores, so that many partitions are equal and the first of them has to win."""
    chance = random.Random(1)
    for _round in range(60):
        count = chance.randint(2, 9)
        table = [[0] * count for _gpu in range(count)]
        for a in range(count):
            for b in range(a):
                table[a][b] = table[b][a] = chance.choice((10, 20, 50))
        for size in range(1, count + 1):
            free = sorted(chance.sample(range(count), chance.randint(size, count)))
            assert allocate_remembering(table, free, size) == allocate(table, free, [], size)


def test_number_of_partitions() -> None:
    for devices, size in ((8, 2), (8, 4), (8, 8), (9, 3)):
        assert count_partitions(devices, size) == sum(1 for _item in partitions(range(devices), size))
    assert count_partitions(16, 2) == 2_027_025
