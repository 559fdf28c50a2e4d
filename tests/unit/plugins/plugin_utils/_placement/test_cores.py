# Copyright: the topovirt.kvm authors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
from __future__ import annotations

from ansible_collections.topovirt.kvm.plugins.module_utils._topology.model import Core
from ansible_collections.topovirt.kvm.plugins.plugin_utils._placement.cores import as_vcpus, cores_with


def cores(*caches: int) -> list[Core]:
    """One core for each number, which is its L3 cache."""
    return [
        {"package": 0, "die": 0, "core": core, "node": 0, "l3": cache, "threads": [core, core + 100]}
        for core, cache in enumerate(caches)
    ]


def numbers(chosen: list[Core]) -> list[int | None]:
    return [core["core"] for core in chosen]


def test_vcpus_of_cores() -> None:
    assert [core["threads"] for core in as_vcpus(cores(0, 0), "share")] == [[0, 100], [1, 101]]
    assert [core["threads"] for core in as_vcpus(cores(0, 0), "isolate")] == [[0], [1]]


def test_cores_that_have_certain_cpus() -> None:
    assert numbers(cores_with(cores(0, 0, 0), frozenset({101, 2}))) == [1, 2]
