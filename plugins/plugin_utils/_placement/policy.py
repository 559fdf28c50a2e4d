# Copyright: the topovirt.kvm authors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Rules for what requests leave to "auto", and for what the host keeps: named tables, overridden by single figures."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import cache
from pathlib import Path
from typing import Any

import yaml
from ansible_collections.topovirt.kvm.plugins.module_utils._errors import TopovirtError
from ansible_collections.topovirt.kvm.plugins.module_utils._topology.reserve import BY_RULE, Reserve
from ansible_collections.topovirt.kvm.plugins.plugin_utils._placement.request import Problems

_TABLE = Path(__file__).parent / "data" / "sizing.yml"
_KEYS = (
    "sizing",
    "vcpus_per_gpu",
    "memory_per_gpu",
    "nics_per_gpu",
    "reserve_cores_per_node",
    "reserve_memory_per_node",
)
DEFAULT_SIZING = "proportional"


@dataclass(frozen=True)
class TableSize:
    """A table's figures for one number of GPUs. ``None`` stands for the share of the machine."""

    vcpus: int | None = None
    memory_bytes: int | None = None
    nics: int | None = None


@dataclass(frozen=True)
class Policy:
    """Rules for one batch. Figures per GPU go before the table's; ``None`` stands for the share of the machine."""

    vcpus_per_gpu: int | None = None
    memory_per_gpu_bytes: int | None = None
    nics_per_gpu: int | None = None
    reserve: Reserve = BY_RULE
    sizes: Mapping[int, TableSize] = field(default_factory=dict)  # number of GPUs -> figures
    warnings: tuple[str, ...] = ()

    def vcpus(self, gpus: int) -> tuple[int | None, bool]:
        """vCPUs of a VM of so many GPUs, and whether a table says it, whose figures may not fill whole cores."""
        if self.vcpus_per_gpu is not None:
            return self.vcpus_per_gpu * gpus, False
        return self.sizes.get(gpus, TableSize()).vcpus, True

    def memory_bytes(self, gpus: int) -> int | None:
        """Memory of a VM of so many GPUs."""
        if self.memory_per_gpu_bytes is not None:
            return self.memory_per_gpu_bytes * gpus
        return self.sizes.get(gpus, TableSize()).memory_bytes

    def nics(self, gpus: int) -> int | None:
        """NICs of a VM of so many GPUs."""
        if self.nics_per_gpu is not None:
            return self.nics_per_gpu * gpus
        return self.sizes.get(gpus, TableSize()).nics


@cache
def load_tables(path: Path = _TABLE) -> dict[str, dict[str, Any]]:
    """The named policies as written, checked.

    :raises TopovirtError: when the file does not follow its schema.
    """
    data = yaml.safe_load(path.read_text(encoding="utf-8"))
    if not isinstance(data, Mapping) or data.get("schema") != 1:
        raise TopovirtError(f"{path.name}: schema is not 1.")
    for table in data["policies"]:
        what = f"{path.name}, policy {table.get('name')!r}"
        if set(table) - {"reserve"} != {"name", "source", "verified", "sizes"} or not table["source"]:
            raise TopovirtError(f"{what}: keys are {sorted(table)}.")
        problems = Problems()
        for gpus, size in table["sizes"].items():
            problems.number(what, gpus, 1)
            problems.unknown_keys(f"{what}, {gpus} GPUs", size, ("vcpus", "memory", "nics"))
        _sizes(table, problems)
        problems.refuse(what)
    return {table["name"]: table for table in data["policies"]}


def _sizes(table: Mapping[str, Any], problems: Problems) -> dict[int, TableSize]:
    return {
        gpus: TableSize(
            problems.auto_number("vcpus", size.get("vcpus"), 1),
            problems.size("memory", size.get("memory")),
            problems.auto_number("nics", size.get("nics"), 0),
        )
        for gpus, size in table["sizes"].items()
    }


def parse_policy(raw: Mapping[str, Any] | None) -> Policy:
    """A policy as a user writes it -> checked.

    :param raw: ``{sizing, vcpus_per_gpu, memory_per_gpu, nics_per_gpu, reserve_cores_per_node,
        reserve_memory_per_node}``; ``sizing`` names a table of data/sizing.yml.
    :raises TopovirtError: one error with every problem.
    """
    problems = Problems()
    value = raw or {}
    problems.unknown_keys("policy", value, _KEYS)
    name = value.get("sizing") or DEFAULT_SIZING
    tables = load_tables()
    table = tables[problems.choice("policy.sizing", name, sorted(tables))]
    kept = table.get("reserve", {})
    cores, memory = value.get("reserve_cores_per_node"), value.get("reserve_memory_per_node")
    policy = Policy(
        vcpus_per_gpu=problems.auto_number("policy.vcpus_per_gpu", value.get("vcpus_per_gpu"), 1),
        memory_per_gpu_bytes=problems.size("policy.memory_per_gpu", value.get("memory_per_gpu")),
        nics_per_gpu=problems.auto_number("policy.nics_per_gpu", value.get("nics_per_gpu"), 0),
        reserve=Reserve(
            problems.auto_number(
                "policy.reserve_cores_per_node", kept.get("cores_per_node") if cores is None else cores, 1
            ),
            problems.size("policy.reserve_memory_per_node", kept.get("memory_per_node") if memory is None else memory),
        ),
        sizes=_sizes(table, problems),
        warnings=()
        if table["verified"]
        else (f"Sizing '{name}': its figures are not verified against the vendor's text.",),
    )
    problems.refuse("Policy")
    return policy
