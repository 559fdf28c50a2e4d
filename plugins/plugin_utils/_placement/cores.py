# Copyright: the topovirt.kvm authors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Which cores of a node a VM gets: whole L3 caches as far as possible, so that VMs share as few as can be."""

from __future__ import annotations

from collections.abc import Sequence

from ansible_collections.topovirt.kvm.plugins.module_utils._topology.model import Core


def choose_cores(free: Sequence[Core], count: int) -> list[Core]:
    """``count`` of the free cores of one node, in host order.

    Caches that would be used whole come first, in host order; the rest comes from the fullest cache that it fits into,
    or else from the emptiest ones.
    """
    caches: dict[int | None, list[Core]] = {}
    for core in free:
        caches.setdefault(core["l3"], []).append(core)
    left = list(caches.values())
    chosen: list[Core] = []
    while len(chosen) < count and left:
        need = count - len(chosen)
        whole = [cores for cores in left if len(cores) <= need]
        # The largest whole cache; when none fits whole, the smallest of those that hold the rest.
        taken = max(whole, key=len) if whole else min(left, key=len)
        left.remove(taken)
        chosen += taken[:need]
    return sorted(chosen, key=free.index)


def cores_with(free: Sequence[Core], cpus: frozenset[int]) -> list[Core]:
    """The free cores that have any of these CPUs."""
    return [core for core in free if not cpus.isdisjoint(core["threads"])]


def as_vcpus(cores: Sequence[Core], smt: str) -> list[Core]:
    """The cores with the threads that become vCPUs: all of them, or with ``isolate`` the first of each."""
    return [{**core, "threads": core["threads"][:1]} for core in cores] if smt == "isolate" else list(cores)
