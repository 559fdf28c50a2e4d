# Copyright: the topovirt.kvm authors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Is an answer right: does it keep the hard constraints, and is nothing better?"""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass

from tests.oracle.optimum import Key, Optimum
from tests.oracle.truth import ROLES, Truth, Wanted, least_cost


def broken(truth: Truth, batch: Sequence[Wanted], answer: Sequence[frozenset[str]]) -> list[str]:
    """Which hard constraints an answer breaks, in words."""
    found = []
    given = Counter(bdf for devices in answer for bdf in devices)
    found += [f"{bdf} is given {times} times" for bdf, times in given.items() if times > 1]
    used: Counter[int] = Counter()
    units = {bdf: unit for unit in truth.units for bdf in unit.devices}
    for wanted, devices in zip(batch, answer, strict=True):
        gpus = devices & set(truth.gpus)
        used.update(truth.node_of[gpu] for gpu in gpus)
        if len(gpus) != wanted.gpus or not truth.allowed(gpus):
            found.append(f"{sorted(gpus)} cannot be a VM of {wanted.gpus} GPUs")
        switches = truth.switches if truth.model == "full_passthrough" and len(gpus) > 1 else frozenset()
        if devices & truth.switches != switches:
            found.append(f"VM of {sorted(gpus)} has switches {sorted(devices & truth.switches)}")
        own = {units[bdf] for bdf in devices if bdf in units}
        for role in ROLES:
            loose = [unit for unit in own if unit.role == role and unit.group == unit.devices]
            count = sum(unit.role == role for unit in own)
            if count < wanted.of(role) or len(loose) > wanted.of(role):
                found.append(f"VM of {sorted(gpus)} has {count} times {role}, {wanted.of(role)} are asked for")
        closed = {other for bdf in gpus | switches for other in truth.group_of[bdf]} | {
            other for unit in own for other in unit.group
        }
        if devices != closed:
            found.append(f"VM of {sorted(gpus)}: {sorted(devices ^ closed)} too many or left out of whole groups")
    for node, count in used.items():
        if count > truth.room[node]:
            found.append(f"{count} GPUs' cores and huge pages of node {node}, there is room for {truth.room[node]}")
    return found


def value(truth: Truth, batch: Sequence[Wanted], answer: Sequence[frozenset[str]]) -> Key:
    """Levels 1 to 3 of an answer that keeps the hard constraints."""
    cost = nodes = 0
    free = truth.free
    for wanted, devices in zip(batch, answer, strict=True):
        gpus = devices & set(truth.gpus)
        free -= gpus
        nodes += truth.nodes(gpus)
        for role in ROLES:
            count = wanted.of(role)
            units = [unit for unit in truth.units if unit.role == role and unit.devices <= devices]
            cost += least_cost(dict.fromkeys(gpus, -(-count // len(gpus))), units, count) or 0
    return cost, nodes, tuple(-count for count in truth.capacity(free))


@dataclass(frozen=True)
class Fault:
    """What is wrong with an answer."""

    level: int  # of the objective; 0 for a hard constraint or a wrong refusal
    text: str


def fault(
    truth: Truth, batch: Sequence[Wanted], answer: Sequence[frozenset[str]] | None, best: Optimum | None
) -> Fault | None:
    """What is wrong with an answer; None for the best placement and for the right refusal.

    :param best: what the oracle says of this batch.
    """
    if answer is None or best is None:
        return None if answer is None and best is None else Fault(0, f"answer {answer}, the best is {best}")
    problems = broken(truth, batch, answer)
    if problems:
        return Fault(0, "; ".join(problems))
    reached = value(truth, batch, answer)
    for level, (ours, theirs) in enumerate(zip(reached, best.key, strict=True), start=1):
        if ours != theirs:
            sets = [sorted(chosen) for chosen in best.sets]
            return Fault(level, f"cost, nodes, -capacity are {reached}; the best are {best.key} with {sets}")
    for index, (devices, first) in enumerate(zip(answer, best.sets, strict=True)):
        chosen = devices & set(truth.gpus)
        if chosen != first:
            return Fault(4, f"VM {index} has {sorted(chosen)}; equal sets that come first are {best.sets}")
    return None
