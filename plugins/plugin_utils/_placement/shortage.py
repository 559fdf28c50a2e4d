# Copyright: the topovirt.kvm authors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Why requests do not fit: every shortage of every request at once, and what would fit."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

from ansible_collections.topovirt.kvm.plugins.module_utils._errors import TopovirtError
from ansible_collections.topovirt.kvm.plugins.plugin_utils._placement.placed import Placed
from ansible_collections.topovirt.kvm.plugins.plugin_utils._placement.request import KernelBoot, Request
from ansible_collections.topovirt.kvm.plugins.plugin_utils._placement.solve import Solver


@dataclass
class Sorted:
    """A batch taken apart: what can be placed together, and why the others cannot."""

    placed: list[Placed] = field(default_factory=list)
    refused: list[tuple[str, list[str]]] = field(default_factory=list)  # VM and its shortages
    still_fits: list[int] = field(default_factory=list)  # GPUs of one further VM, largest first


def _auto(gpus: int) -> Request:
    return Request("any", gpus, None, 0, None, None, KernelBoot("/", None, None), {}, {})


def still_fits(solver: Solver) -> list[int]:
    """Sizes of one VM, otherwise left to "auto", that still fits; largest first."""
    return [size for size in solver.fabric.sizes if solver.solutions([_auto(size)], 1)]


def _reasons(solver: Solver, request: Request) -> list[str]:
    """Why a request does not fit into what is free; of several GPU sets those that miss least speak."""
    impossible = solver.impossible(request)
    if impossible:
        return impossible
    free = solver.free
    sets = solver.sets(request, free.gpus)
    if sets:
        found = [solver.problems(request, item, free) for item in sets]
        least = min(map(len, found))
        return list(dict.fromkeys(problem for problems in found if len(problems) == least for problem in problems))
    taken = solver.kept_back("gpu")
    if request.exact_gpus:
        return [f"asks for GPUs of which not all are free{taken}"]
    if len(free.gpus) >= request.gpus and (tied := solver.ties()):
        return [f"asks for {request.gpus} GPUs, {len(free.gpus)} are free, but {'; '.join(tied)}{taken}"]
    if len(free.gpus) >= request.gpus:
        what = "partition" if solver.fabric.model == "shared_nvswitch" else "set"
        return [f"asks for {request.gpus} GPUs, {len(free.gpus)} are free but form no {what} of that size{taken}"]
    return [f"asks for {request.gpus} GPUs, {len(free.gpus)} are free{taken}"]


def sort_out(solver: Solver, requests: Sequence[Request]) -> Sorted:
    """Take requests one after the other, higher priority first, and keep what fits beside those before."""
    result = Sorted()
    accepted: list[Request] = []
    for request in sorted(requests, key=lambda request: -request.priority):
        tried = None if solver.impossible(request) else place(solver, [*accepted, request])
        if tried is not None:
            accepted.append(request)
            result.placed = tried
        else:
            reasons = _reasons(solver.beside(result.placed), request) or ["does not fit beside the VMs before it"]
            result.refused.append((request.name, reasons))
    result.still_fits = still_fits(solver.beside(result.placed))
    return result


def place(solver: Solver, requests: Sequence[Request]) -> list[Placed] | None:
    """The best placement, those of higher priority as a batch of their own before the others; None without any."""
    if any(solver.impossible(request) for request in requests):
        return None
    placed: list[Placed] = []
    for priority in sorted({request.priority for request in requests}, reverse=True):
        there = solver.beside(placed)
        found = there.solve([request for request in requests if request.priority == priority])
        solver.undecided = solver.undecided or there.undecided
        if found is None:
            return None
        placed += found
    return placed


def refusal(solver: Solver, requests: Sequence[Request]) -> TopovirtError:
    """The error for a batch that does not fit."""
    result = sort_out(solver, requests)
    shortages = [f"VM {name}: {'; '.join(reasons)}." for name, reasons in result.refused]
    fitting = ", ".join(placed.request.name for placed in result.placed) or "none of them"
    return TopovirtError(
        f"{len(shortages)} of {len(requests)} VMs cannot be placed. {' '.join(shortages)}",
        f"What fits: {fitting}; beside that {describe_sizes(result.still_fits)}. Nothing was changed.",
    )


def describe_sizes(sizes: Sequence[int]) -> str:
    """ "a VM of 4, 2 or 1 GPUs"."""
    if not sizes:
        return "no further VM"
    listed = " or ".join(filter(None, [", ".join(map(str, sizes[:-1])), str(sizes[-1])]))
    return f"a VM of {listed} GPU{'' if list(sizes) == [1] else 's'}"
