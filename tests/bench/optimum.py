# Copyright: the topovirt.kvm authors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Placement beside the exhaustive oracle: every multiset of sizes up to 16 GPUs, on empty and on part-filled hosts."""

from __future__ import annotations

from collections.abc import Iterable

from tests.bench.result import Row
from tests.oracle import hosts
from tests.oracle.hosts import Host
from tests.oracle.optimum import Count
from tests.oracle.prove import judged
from tests.oracle.subject import ours
from tests.tools import progress

TOLD = 3  # batches of a host that are told when they are not placed best


def _rows(what: str, some: Iterable[Host]) -> list[Row]:
    count, known, missed = Count(), 0, 0
    for known, host in enumerate(some, start=1):
        found = list(judged(host, ours(host), count))
        missed += len(found)
        for batch, fault in found[:TOLD]:
            progress.say(f"        {host.name}: {batch}: level {fault.level}: {fault.text}")
        if known % 50 == 0:
            progress.say(f"        {count.batches} batches on {known} hosts")
    return [
        Row(f"{what}: batches on {known} hosts, {count.refused} of them refused by the oracle", "", count.batches),
        Row(f"{what}: placements that these are the best of, before symmetry", "", count.placements),
        Row(f"{what}: steps of the oracle", "", count.steps),
        Row(f"{what}: batches that are not answered with the best", "", missed),
    ]


def proven(seeds: int) -> list[Row]:
    """How many batches were compared with the oracle's answer and how many are not the best there is.

    :param seeds: number of part-filled hosts.
    """
    empty = (hosts.empty(*kind) for kind in hosts.kinds())
    return [*_rows("empty hosts", empty), *_rows("part-filled hosts", map(hosts.part_filled, range(seeds)))]
