# Copyright: the topovirt.kvm authors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Why requests do not fit: every shortage of every request at once, and what would fit."""

from __future__ import annotations

from collections.abc import Sequence

from ansible_collections.topovirt.kvm.plugins.module_utils._errors import TopovirtError
from ansible_collections.topovirt.kvm.plugins.plugin_utils._placement.request import KernelBoot, Request
from ansible_collections.topovirt.kvm.plugins.plugin_utils._placement.solve import Free, Placed, Solver


def _auto(gpus: int) -> Request:
    return Request("any", gpus, None, 0, None, None, KernelBoot("/", None, None), {}, {})


def largest_fitting(solver: Solver, free: Free) -> int:
    """GPUs of the largest VM, otherwise left to "auto", that still fits; 0 for none."""
    for size in solver.fabric.sizes:
        request = _auto(size)
        if any(not solver.problems(request, item, free) for item in solver.sets(size, free)):
            return size
    return 0


def _reasons(solver: Solver, request: Request, free: Free) -> list[str]:
    """Why a request does not fit into what is free; of several GPU sets those that miss least speak."""
    impossible = solver.fabric.why_not(request.gpus)
    if impossible:
        return [impossible]
    sets = solver.sets(request.gpus, free)
    if sets:
        found = [solver.problems(request, item, free) for item in sets]
        least = min(map(len, found))
        return list(dict.fromkeys(problem for problems in found if len(problems) == least for problem in problems))
    taken = solver.kept_back("gpu")
    if len(free.gpus) >= request.gpus:
        what = "partition" if solver.fabric.model == "shared_nvswitch" else "set"
        return [f"asks for {request.gpus} GPUs, {len(free.gpus)} are free but form no {what} of that size{taken}"]
    return [f"asks for {request.gpus} GPUs, {len(free.gpus)} are free{taken}"]


def refusal(solver: Solver, requests: Sequence[Request]) -> TopovirtError:
    """The error for a batch that does not fit. Requests are tried in their order; each shortage is told."""
    accepted: list[Placed] = []
    shortages: list[str] = []
    free = solver.free
    for request in requests:
        tried = None
        if not solver.fabric.why_not(request.gpus):
            tried = solver.solve([*(placed.request for placed in accepted), request])
        if tried is not None:
            accepted = tried
            free = solver.free
            for placed in accepted:
                free = free.without(placed)
        else:
            reasons = _reasons(solver, request, free) or ["does not fit beside the VMs before it"]
            shortages.append(f"VM {request.name}: {'; '.join(reasons)}.")
    fitting = ", ".join(placed.request.name for placed in accepted) or "none of them"
    more = largest_fitting(solver, free)
    beside = f"a VM of {more} GPU{'s' if more > 1 else ''}" if more else "no further VM"
    return TopovirtError(
        f"{len(shortages)} of {len(requests)} VMs cannot be placed. {' '.join(shortages)}",
        f"What fits: {fitting}; beside that {beside}. Nothing was changed.",
    )
