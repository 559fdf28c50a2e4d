# Copyright: the topovirt.kvm authors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""The best-effort rule of NVIDIA's go-gpuallocator, which picks GPUs for containers on Kubernetes nodes.

Source: https://github.com/NVIDIA/go-gpuallocator, ``gpuallocator/besteffort_policy.go``. The rule: divide all free
GPUs into sets of the wanted size, in every possible way; of these partitions the one with the highest sum of scores
wins, the first of equal ones; of its sets the one with the highest score is given. GPUs that do not fill a set are made
up with padding, which is never spread over several sets. A set's score is the sum over its pairs.

What the rule does not know: NICs, NVSwitches (its ``internal/links/device.go`` counts NVLinks that lead to another GPU
directly), IOMMU groups, later VMs of another size.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from functools import cache
from itertools import combinations

# Points of a pair by the names of `nvidia-smi topo -m`; two GPUs on one board get 60.
PATH_SCORES = {"SYS": 10, "NODE": 20, "PHB": 30, "PXB": 40, "PIX": 50, "board": 60}
NVLINK_SCORE = 100  # for each NVLink, on top

PAD = None
GpuSet = tuple[int | None, ...]
Scores = Sequence[Sequence[int]]  # of each pair of GPUs, in both orders


def sets(devices: Sequence[int | None], size: int) -> Iterator[GpuSet]:
    """Every set of ``size`` devices, in their order; none of size 0."""
    if size > 0:
        yield from combinations(devices, size)


def partitions(devices: Sequence[int], size: int) -> Iterator[list[GpuSet]]:
    """Every way to divide the devices into sets of ``size``; for size 1, as in the source, each device alone."""
    if size <= 0 or size > len(devices):
        return
    if size == 1:
        for device in devices:
            yield [(device,)]
        return
    padding = -len(devices) % size
    yield from _divided((*devices, *[PAD] * padding), size, padding)


def _first_sets(devices: GpuSet, size: int, padding: int) -> Iterator[tuple[GpuSet, GpuSet]]:
    """Each set that the first device can be in, with what is left then."""
    for others in sets(devices[1:], size - 1):
        chosen = (devices[0], *others)
        if chosen.count(PAD) in (0, padding):
            yield chosen, tuple(device for device in devices if device not in chosen)


def _divided(devices: GpuSet, size: int, padding: int) -> Iterator[list[GpuSet]]:
    if len(devices) == size:
        yield [devices]
        return
    for chosen, left in _first_sets(devices, size, padding):
        for rest in _divided(left, size, padding):
            yield [chosen, *rest]


def count_partitions(devices: int, size: int) -> int:
    """How many partitions there are of so many devices; padding counts as devices, so it is an upper bound."""
    number = -(-devices // size)
    return math.factorial(number * size) // (math.factorial(size) ** number * math.factorial(number))


def set_score(scores: Scores, gpus: GpuSet) -> int:
    """Sum over the pairs; padding scores nothing."""
    return sum(scores[a][b] for a, b in combinations([gpu for gpu in gpus if gpu is not PAD], 2))


def _walked(scores: Scores, available: Sequence[int], required: Sequence[int], size: int) -> list[GpuSet]:
    known = cache(lambda gpus: set_score(scores, gpus))
    candidates = (
        partition
        for partition in partitions(available, size)
        if any(PAD not in gpus and set(required) <= set(gpus) for gpus in partition)
    )
    return max(candidates, key=lambda partition: sum(map(known, partition)), default=[])


def _remembered(scores: Scores, available: Sequence[int], size: int) -> list[GpuSet]:
    padding = -len(available) % size

    @cache
    def best(devices: GpuSet) -> tuple[int, list[GpuSet]]:
        if len(devices) == size:
            return set_score(scores, devices), [devices]
        found: tuple[int, list[GpuSet]] | None = None
        for chosen, left in _first_sets(devices, size, padding):
            score, rest = best(left)
            score += set_score(scores, chosen)
            if found is None or score > found[0]:
                found = score, [chosen, *rest]
        return found or (0, [])

    return best((*available, *[PAD] * padding))[1]


def allocate(scores: Scores, available: Sequence[int], required: Sequence[int], size: int) -> GpuSet:
    """The GPUs for a request of ``size`` that has to contain ``required``; empty when there are none.

    As in the source a padded set can win where it scores more than full ones; it has fewer GPUs then
    (https://github.com/NVIDIA/go-gpuallocator/pull/80).
    """
    if not len(required) <= size <= len(available) or size <= 0:
        return ()
    return _best_set(scores, _walked(scores, available, required, size), required)


def allocate_remembering(scores: Scores, available: Sequence[int], size: int) -> GpuSet:
    """The same answer without walking every partition: what is best for a rest is found once.

    For machines where the source's rule would walk millions of partitions (16 GPUs by twos: 2 027 025).
    """
    if not 1 < size <= len(available):
        return allocate(scores, available, (), size)
    return _best_set(scores, _remembered(scores, available, size), ())


def _best_set(scores: Scores, partition: list[GpuSet], required: Sequence[int]) -> GpuSet:
    fitting = [gpus for gpus in partition if set(required) <= set(gpus)]
    return max(fitting, key=lambda gpus: set_score(scores, gpus), default=())
