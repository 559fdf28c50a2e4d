# Copyright: the topovirt.kvm authors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""The guest's CPU topology: sockets, dies, cores, threads, and what its L3 caches look like from that.

A guest finds the CPUs that share an L3 cache by their APIC ids: those that are equal but for the lowest n bits, where n
comes from the host's own CPUID, passed through (Intel SDM, CPUID leaf 04h; AMD APM, leaf 8000_001Dh). So an L3 cache is
shown as it is when its CPUs fill a range of ids of just that size: as a die of their own, whose ids start at such a
boundary, or, where the host's L3 holds a power of two, as whole caches before parts of them.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import TypedDict

from ansible_collections.topovirt.kvm.plugins.module_utils._topology.model import Core

# NodesPerProcessor of CPUID leaf 8000_001Eh, in which QEMU counts dies on AMD, has three bits.
_AMD_MAX_DIES = 8


class CpuTopology(TypedDict):
    sockets: int
    dies: int
    cores: int
    threads: int


def _bits(count: int) -> int:
    return max(0, count - 1).bit_length()


def apic_ids(shape: CpuTopology) -> list[int]:
    """The APIC id of each vCPU: every level of the topology takes a whole number of bits (Intel SDM, leaf 0Bh)."""
    return [
        (((socket << _bits(shape["dies"]) | die) << _bits(shape["cores"]) | core) << _bits(shape["threads"])) | thread
        for socket in range(shape["sockets"])
        for die in range(shape["dies"])
        for core in range(shape["cores"])
        for thread in range(shape["threads"])
    ]


def _by_l3(cores: Iterable[Core]) -> dict[int | None, list[Core]]:
    groups: dict[int | None, list[Core]] = {}
    for core in cores:
        groups.setdefault(core["l3"], []).append(core)
    return groups


def threads_of_l3(cores: Iterable[Core]) -> dict[int, int]:
    """L3 cache -> number of the host's logical CPUs that share it."""
    return {
        l3: sum(len(core["threads"]) for core in members) for l3, members in _by_l3(cores).items() if l3 is not None
    }


def in_l3_order(cores: Sequence[Core]) -> list[Core]:
    """The cores of a cell, those of an L3 cache together, the caches with most of them first."""
    groups = sorted(_by_l3(cores).values(), key=len, reverse=True)
    return [core for group in groups for core in group]


def pick_cores(free: Sequence[Core], count: int) -> list[Core]:
    """``count`` of a node's free cores, in the host's order, from as few L3 caches as possible.

    Whole caches first; the rest from the cache that it leaves the fewest cores of.
    """
    groups = list(_by_l3(free).values())
    chosen: list[Core] = []
    while groups and len(chosen) < count:
        left = count - len(chosen)
        group = min((group for group in groups if len(group) >= left), key=len, default=max(groups, key=len))
        groups.remove(group)
        chosen += group[:left]
    return sorted(chosen, key=lambda core: core["threads"][0])


def _even_split(cells: Sequence[Sequence[Core]], l3_threads: Mapping[int, int], threads: int) -> int:
    """Into how many L3 caches each cell splits evenly, such that each is shown as it is; 1 when there is no such."""
    counts = {(l3, len(members)) for cores in cells for l3, members in _by_l3(cores).items()}
    split = {len(_by_l3(cores)) for cores in cells}
    sizes = {size for _l3, size in counts}
    if len(split) != 1 or len(sizes) != 1 or any(l3 is None for l3, _size in counts):
        return 1
    (size,) = sizes
    whole = all(_bits(l3_threads[l3]) == _bits(size) + _bits(threads) for l3, _size in counts if l3 is not None)
    return split.pop() if whole else 1


def cpu_topology(
    cells: Sequence[Sequence[Core]], l3_threads: Mapping[int, int], amd: bool, dies: bool, max_apic_id: int
) -> CpuTopology:
    """A socket per cell when all cells are alike; threads only when every core has the same number.

    Where each cell's cores spread evenly over several L3 caches, a die for each of these; a socket for each where dies
    cannot be had.

    :param cells: cores of each cell, in the order of its vCPUs.
    :param l3_threads: see :func:`threads_of_l3`.
    :param dies: whether the host can give a guest dies.
    :param max_apic_id: the highest APIC id that the VM can have.
    """
    kinds = {len(core["threads"]) for cores in cells for core in cores}
    threads = kinds.pop() if len(kinds) == 1 else 1
    sizes = [sum(len(core["threads"]) for core in cores) for cores in cells]
    sockets = len(cells) if len(set(sizes)) == 1 else 1
    plain = CpuTopology(sockets=sockets, dies=1, cores=sum(sizes) // sockets // threads, threads=threads)
    split = _even_split(cells, l3_threads, threads)
    if split == 1 or sockets != len(cells):
        return plain
    cores = plain["cores"] // split
    if dies and not (amd and split > _AMD_MAX_DIES):
        shape = CpuTopology(sockets=sockets, dies=split, cores=cores, threads=threads)
    else:
        shape = CpuTopology(sockets=sockets * split, dies=1, cores=cores, threads=threads)
    return shape if max(apic_ids(shape)) <= max_apic_id else plain


def shows_too_few_l3(
    cells: Sequence[Sequence[Core]], l3_threads: Mapping[int, int], shape: CpuTopology
) -> tuple[int, int] | None:
    """Numbers of L3 caches in guest and host when the guest takes several of them for one, else None."""
    l3_of_vcpu = [core["l3"] for cores in cells for core in cores for _thread in core["threads"]]
    known = [l3 for l3 in l3_of_vcpu if l3 is not None]
    if len(known) < len(l3_of_vcpu) or not known:
        return None
    shift = max(_bits(l3_threads[l3]) for l3 in known)
    package = _bits(shape["dies"]) + _bits(shape["cores"]) + _bits(shape["threads"])
    # QEMU lets no cache reach beyond a package on Intel; on AMD packages of that size are rare enough to be told so.
    shown: dict[int, set[int]] = {}
    for l3, apic_id in zip(known, apic_ids(shape), strict=True):
        shown.setdefault(apic_id >> min(shift, package), set()).add(l3)
    if all(len(members) == 1 for members in shown.values()):
        return None
    return len(shown), len(set(known))
