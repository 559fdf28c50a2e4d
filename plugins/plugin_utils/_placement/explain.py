# Copyright: the topovirt.kvm authors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Why a VM got these devices, and what the next best placement of its batch was."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from ansible_collections.topovirt.kvm.plugins.plugin_utils._placement.placed import Placed, Solution
from ansible_collections.topovirt.kvm.plugins.plugin_utils._placement.solve import Solver

# The levels of the objective (docs/reference/placement.md) in the words of an answer.
_LEVELS = (
    "more distance between GPUs and their NICs and NVMe devices: {other} instead of {best}",
    "more NUMA nodes: {other} instead of {best}",
    "fewer GPUs together for later VMs",
    "equal in everything but the order of devices on the host",
)


def explain_all(solver: Solver, placed: Sequence[Placed]) -> dict[str, dict[str, Any]]:
    """VM -> ``{pairs, distance, nodes, next_best}``.

    ``pairs`` lists GPU, device and path class as the devices were dealt; ``distance`` is their sum of costs;
    ``next_best`` is null when there is no other placement of the batch, otherwise the VM's GPUs in it and why it was
    not taken.
    Placements are told apart by their GPUs.
    """
    found: dict[str, dict[str, Any]] = {}
    standing: list[Placed] = []
    for priority in sorted({item.request.priority for item in placed}, reverse=True):
        batch = [item for item in placed if item.request.priority == priority]
        solutions = solver.beside(standing).solutions([item.request for item in batch], 2)
        for index, item in enumerate(batch):
            pairs = solver.attacher.dealt(item)
            found[item.request.name] = {
                "pairs": [{"gpu": gpu, "device": device, "path": path} for gpu, device, path in pairs],
                "distance": solver.attacher.distance(pairs),
                "nodes": sorted(item.size.nodes),
                "next_best": _next_best(solutions, index),
            }
        standing += batch
    return found


def _next_best(solutions: Sequence[Solution], index: int) -> dict[str, Any] | None:
    if len(solutions) < 2:
        return None
    best, other = solutions
    levels = list(zip(best.value, other.value, strict=True))
    level = next(number for number, (ours, theirs) in enumerate(levels) if ours != theirs)
    return {
        "gpus": list(other.placed[index].gpu_set.gpus),
        "why_not": _LEVELS[level].format(best=levels[level][0], other=levels[level][1]),
    }
