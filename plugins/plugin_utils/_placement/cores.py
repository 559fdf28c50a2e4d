# Copyright: the topovirt.kvm authors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Cores that a request names, and what of its cores become vCPUs."""

from __future__ import annotations

from collections.abc import Sequence

from ansible_collections.topovirt.kvm.plugins.module_utils._topology.model import Core


def cores_with(free: Sequence[Core], cpus: frozenset[int]) -> list[Core]:
    """The free cores that have any of these CPUs."""
    return [core for core in free if not cpus.isdisjoint(core["threads"])]


def as_vcpus(cores: Sequence[Core], smt: str) -> list[Core]:
    """The cores with the threads that become vCPUs: all of them, or with ``isolate`` the first of each."""
    return [{**core, "threads": core["threads"][:1]} for core in cores] if smt == "isolate" else list(cores)
