# Copyright: the topovirt.kvm authors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""The NVLink fabric of a host: which sets of GPUs may form a VM, and which NVSwitches go with them.

Rules: NVIDIA Fabric Manager User Guide, https://docs.nvidia.com/hgx-platforms/fabric-manager-user-guide/
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cache
from pathlib import Path
from typing import Any

import yaml
from ansible_collections.topovirt.kvm.plugins.module_utils._errors import TopovirtError
from ansible_collections.topovirt.kvm.plugins.module_utils._topology.model import PciFunction, Topology
from ansible_collections.topovirt.kvm.plugins.plugin_utils._placement.request import GpuName, Request

# Boards whose NVSwitches are not on PCI: a network adapter bridges to them.
BRIDGE = "fabric_bridge"
MODELS = ("full_passthrough", "shared_nvswitch", "none")

_TABLE = Path(__file__).parent / "data" / "nvlink_partitions.yml"
_MODULE_IDS_HINT = (
    "Module ids come from 'nvidia-smi -q' (Module Id) while the nvidia driver holds the GPUs; conversion records "
    "them before it binds GPUs to vfio-pci. Otherwise write {bdf: id} as JSON to /var/lib/topovirt/module-ids.json on "
    "the host."
)


@dataclass(frozen=True)
class Partition:
    """A set of GPUs that Fabric Manager can connect among themselves."""

    id: int
    modules: tuple[int, ...]


@dataclass(frozen=True)
class Generation:
    """One generation of NVSwitch boards."""

    name: str
    found_by: str  # device id of its NVSwitches, or BRIDGE
    source: str
    full_passthrough: dict[int, int]  # GPUs of a VM -> NVSwitches, or functions of the bridge, of the VM
    partitions: tuple[Partition, ...]


@dataclass(frozen=True)
class GpuSet:
    """GPUs that may form one VM together."""

    gpus: tuple[str, ...]  # BDFs in host order
    switches: tuple[str, ...] = ()
    partition: Partition | None = None


@dataclass(frozen=True)
class Fabric:
    """What the host's fabric allows under one model."""

    model: str
    generation: Generation | None
    gpus: tuple[str, ...]
    switches: tuple[str, ...]
    partitions: tuple[GpuSet, ...]  # shared_nvswitch: partitions whose members all exist here
    sizes: tuple[int, ...]  # GPU counts that a VM can have, descending
    warnings: tuple[str, ...] = ()
    modules: Mapping[str, int] = field(default_factory=dict)  # GPU -> module id, as far as known

    def loose(self, request: Request) -> bool:
        """Whether the request's GPUs need not be connected among themselves."""
        return request.nvlink in ("none", "preferred") and 1 < request.gpus <= len(self.gpus)

    def resolve(self, request: Request) -> GpuSet | None:
        """The set of the GPUs that a request names; None when they do not exist or may not form a VM."""
        named = [self.named(name) for name in request.exact_gpus]
        gpus = tuple(sorted(gpu for gpu in named if gpu is not None))
        if len(set(gpus)) != len(request.exact_gpus):
            return None
        if request.nvlink != "none" or len(gpus) == 1:
            if self.model == "none" or (len(gpus) == 1 and self.model == "full_passthrough"):
                return GpuSet(gpus)
            if self.model == "full_passthrough" and gpus == self.gpus:
                return GpuSet(gpus, self.switches)
            found = next((item for item in self.partitions if item.gpus == gpus), None)
            if found is not None:
                return found
        return GpuSet(gpus) if self.loose(request) else None

    def named(self, name: GpuName) -> str | None:
        """BDF of a GPU that is named in a request; None when there is none such."""
        if name.kind == "index":
            return self.gpus[name.value] if 0 <= int(name.value) < len(self.gpus) else None  # type: ignore[index]
        if name.kind == "module_id":
            return next((gpu for gpu, module in self.modules.items() if module == name.value), None)
        return str(name.value) if name.value in self.gpus else None

    def why_not(self, request: Request) -> str:
        """Why no VM can have so many GPUs, or just these, on this machine; empty when one can."""
        if request.exact_gpus:
            return self._why_not_these(request)
        count = request.gpus
        if request.nvlink == "required" and count > 1 and self.model == "none":
            return f"asks for {count} GPUs with NVLink, but with fabric_model none no GPUs are connected"
        if count in self.sizes or self.loose(request):
            return ""
        allowed = " or ".join(str(size) for size in self.sizes) or "none at all"
        if count > len(self.gpus):
            return f"asks for {count} GPUs, this machine has {len(self.gpus)}; a VM can have {allowed}"
        if self.model == "full_passthrough" and self.generation is not None:
            return (
                f"asks for {count} GPUs, but with full_passthrough on an {self.generation.name} board a VM has "
                f"{allowed} GPUs: its NVSwitches cannot be divided (shared_nvswitch offers more sizes)"
            )
        return f"asks for {count} GPUs, but with {self.model} a VM on this machine can have {allowed}"

    def _why_not_these(self, request: Request) -> str:
        missing = [f"{name.kind} {name.value}" for name in request.exact_gpus if self.named(name) is None]
        if missing:
            return (
                f"asks for GPU {', '.join(missing)}, which this machine does not have (it has {', '.join(self.gpus)})"
            )
        if self.resolve(request) is not None:
            return ""
        gpus = sorted(str(self.named(name)) for name in request.exact_gpus)
        if len(set(gpus)) < len(gpus):
            return f"names GPU {', '.join(sorted({gpu for gpu in gpus if gpus.count(gpu) > 1}))} more than once"
        modules = f" (module ids {', '.join(str(self.modules.get(gpu)) for gpu in gpus)})" if self.modules else ""
        return (
            f"asks for GPUs {', '.join(gpus)}{modules}, which {self.model} cannot connect among themselves "
            "(nvlink: none gives them without NVLink)"
        )


def _check_generation(raw: Any) -> Generation:
    """One entry of the table, refused with its name when it breaks the schema."""
    what = f"nvlink_partitions.yml, generation {raw.get('name')!r}"
    if set(raw) != {"name", "found_by", "source", "full_passthrough", "partitions"}:
        raise TopovirtError(f"{what}: keys are {sorted(raw)}.")
    seen: set[tuple[int, ...]] = set()
    for number, modules in raw["partitions"].items():
        members = tuple(modules)
        if not isinstance(number, int) or members != tuple(sorted(set(members))) or not members or members in seen:
            raise TopovirtError(f"{what}: partition {number!r} has members {modules!r}, expected ascending, not twice.")
        seen.add(members)
    if not raw["source"] or not all(isinstance(part, int) for pair in raw["full_passthrough"].items() for part in pair):
        raise TopovirtError(f"{what}: source or full_passthrough is not as expected.")
    return Generation(
        name=str(raw["name"]),
        found_by=str(raw["found_by"]),
        source=str(raw["source"]),
        full_passthrough=dict(raw["full_passthrough"]),
        partitions=tuple(Partition(number, tuple(modules)) for number, modules in sorted(raw["partitions"].items())),
    )


@cache
def load_generations(path: Path = _TABLE) -> dict[str, Generation]:
    """The checked table, keyed by the NVSwitch's PCI device id, or by ``BRIDGE``.

    :raises TopovirtError: when the table does not follow its schema.
    """
    data = yaml.safe_load(path.read_text(encoding="utf-8"))
    if not isinstance(data, Mapping) or data.get("schema") != 1:
        raise TopovirtError(f"{path.name}: schema is not 1.")
    generations = [_check_generation(raw) for raw in data["generations"]]
    return {generation.found_by: generation for generation in generations}


def _generation(switches: list[PciFunction]) -> Generation:
    known = load_generations()
    if all(switch["role"] == BRIDGE for switch in switches):
        return known[BRIDGE]
    devices = sorted({switch["device"] for switch in switches})
    # One switch of a published capture reads all-zero ids, so one known id is enough; two different ones are not.
    found = [known[device] for device in devices if device in known]
    if len(found) != 1:
        names = ", ".join(
            f"10de:{device} ({generation.name})" for device, generation in known.items() if device != BRIDGE
        )
        raise TopovirtError(
            f"NVSwitches of this machine have device ids {', '.join(devices)}, expected one of {names}.",
            "Use fabric_model none to plan single-GPU VMs without NVLink.",
        )
    return found[0]


def _partitions(generation: Generation, gpus: list[PciFunction]) -> tuple[tuple[GpuSet, ...], tuple[str, ...]]:
    missing = [gpu["bdf"] for gpu in gpus if gpu["module_id"] is None]
    if missing:
        raise TopovirtError(
            f"fabric_model shared_nvswitch needs the module id of every GPU; unknown for {', '.join(missing)}.",
            _MODULE_IDS_HINT,
        )
    by_module: dict[int, list[str]] = {}
    for gpu in gpus:
        by_module.setdefault(gpu["module_id"] or 0, []).append(gpu["bdf"])
    twice = [f"{module} ({', '.join(bdfs)})" for module, bdfs in sorted(by_module.items()) if len(bdfs) > 1]
    known = {module for partition in generation.partitions for module in partition.modules}
    strange = [f"{module} ({bdfs[0]})" for module, bdfs in sorted(by_module.items()) if module not in known]
    if twice or strange:
        parts = ([f"used twice: {', '.join(twice)}"] if twice else []) + (
            [f"not on an {generation.name} board: {', '.join(strange)}"] if strange else []
        )
        raise TopovirtError(f"Module ids of the GPUs are wrong; {'; '.join(parts)}.", _MODULE_IDS_HINT)
    sets: list[GpuSet] = []
    for partition in generation.partitions:
        if all(module in by_module for module in partition.modules):
            members = tuple(sorted(by_module[module][0] for module in partition.modules))
            sets.append(GpuSet(members, (), partition))
    # A board with all its GPUs fills 8 or 16 consecutive module ids from 1 or 9 on.
    expected = len(gpus) in (8, 16)
    warnings = () if expected else (f"{len(gpus)} GPUs found; partitions with missing members are not offered.",)
    return tuple(sets), warnings


def read_fabric(topology: Topology, model: str) -> Fabric:
    """What the host's fabric allows.

    :param model: one of ``MODELS``.
    :raises TopovirtError: when the model does not suit the machine, a generation is unknown or module ids are missing.
    """
    if model not in MODELS:
        raise TopovirtError(f"fabric_model: {model!r} is not valid, expected one of {', '.join(MODELS)}.")
    gpus = [function for function in topology["pci"] if function["role"] == "gpu" and function["physfn"] is None]
    # A board shows either; were both there, the switches themselves would be what partitions are made of.
    switches = [function for function in topology["pci"] if function["role"] == "nvswitch"] or [
        function for function in topology["pci"] if function["role"] == BRIDGE and function["physfn"] is None
    ]
    gpu_bdfs = tuple(gpu["bdf"] for gpu in gpus)
    modules = {gpu["bdf"]: gpu["module_id"] for gpu in gpus if gpu["module_id"] is not None}
    if model == "none":
        return Fabric(model, None, gpu_bdfs, (), (), tuple(range(len(gpus), 0, -1)), (), modules)
    if not switches:
        raise TopovirtError(
            f"fabric_model is {model}, but this machine shows neither NVSwitches nor a bridge to them on PCI.",
            "Use fabric_model none for machines without NVSwitches.",
        )
    generation = _generation(switches)
    switch_bdfs = tuple(switch["bdf"] for switch in switches)
    if model == "shared_nvswitch":
        partitions, warnings = _partitions(generation, gpus)
        sizes = tuple(sorted({len(item.gpus) for item in partitions}, reverse=True))
        return Fabric(model, generation, gpu_bdfs, switch_bdfs, partitions, sizes, warnings, modules)
    whole = generation.full_passthrough.get(len(gpus))
    if whole is not None and whole != len(switches) and len(gpus) > 1:
        raise TopovirtError(
            f"fabric_model full_passthrough: {len(gpus)} GPUs of an {generation.name} board need {whole} NVSwitches, "
            f"this machine shows {len(switches)} ({', '.join(switch_bdfs)}).",
            "Check the board's health, or use single-GPU VMs with fabric_model none.",
        )
    sizes = (len(gpus), 1) if whole is not None and len(gpus) > 1 else (1,)
    return Fabric(model, generation, gpu_bdfs, switch_bdfs, (), sizes, (), modules)


def gpu_sets(
    fabric: Fabric, request: Request, free: frozenset[str], groups: Sequence[Sequence[tuple[str, ...]]]
) -> list[GpuSet]:
    """All sets of free GPUs that may form the VM, in stable order.

    :param free: GPUs that can still be given out.
    :param groups: GPUs that can only be drawn together, grouped with those that can stand for them: of equal choices
        only the one with the first GPUs in host order is made.
    """
    if request.exact_gpus:
        exact = fabric.resolve(request)
        return [] if exact is None or not free.issuperset(exact.gpus) else [exact]
    connected = [] if request.nvlink == "none" and request.gpus > 1 else _connected(fabric, request.gpus, free, groups)
    if connected or not fabric.loose(request):
        return connected
    return [GpuSet(gpus) for gpus in _drawn(groups, request.gpus)]


def _connected(
    fabric: Fabric, count: int, free: frozenset[str], groups: Sequence[Sequence[tuple[str, ...]]]
) -> list[GpuSet]:
    """Sets as the fabric model makes them."""
    if count not in fabric.sizes:
        return []
    if fabric.model == "shared_nvswitch":
        return [item for item in fabric.partitions if len(item.gpus) == count and free.issuperset(item.gpus)]
    if fabric.model == "full_passthrough" and count > 1:
        return [GpuSet(fabric.gpus, fabric.switches)] if free.issuperset(fabric.gpus) else []
    return [GpuSet(gpus) for gpus in _drawn(groups, count)]


def _drawn(groups: Sequence[Sequence[tuple[str, ...]]], count: int) -> list[tuple[str, ...]]:
    sizes = [sum(map(len, group)) for group in groups]
    return sorted(tuple(sorted(gpus)) for gpus in _draw(groups, sizes, 0, count))


def _draw(
    groups: Sequence[Sequence[tuple[str, ...]]], sizes: Sequence[int], first: int, count: int
) -> Iterator[tuple[str, ...]]:
    """Ways to draw ``count`` GPUs from the groups from ``first`` on; of each group always its first ones."""
    if count == 0:
        yield ()
        return
    if first == len(groups) or sum(sizes[first:]) < count:
        return
    drawn: tuple[str, ...] = ()
    for atom in ((), *groups[first]):
        drawn += atom
        if len(drawn) > count:
            return
        for rest in _draw(groups, sizes, first + 1, count - len(drawn)):
            yield drawn + rest


def blocks(fabric: Fabric, groups: Mapping[str, str], nodes: Mapping[str, int]) -> list[frozenset[str]]:
    """Sets of GPUs worth keeping whole for later VMs: partitions, or else the machine, nodes and PCIe groups."""
    if fabric.model == "shared_nvswitch":
        return [frozenset(item.gpus) for item in fabric.partitions]
    found = {frozenset(fabric.gpus)} | {frozenset({gpu}) for gpu in fabric.gpus}
    for key in set(groups.values()):
        found.add(frozenset(gpu for gpu in fabric.gpus if groups[gpu] == key))
    for node in set(nodes.values()):
        found.add(frozenset(gpu for gpu in fabric.gpus if nodes[gpu] == node))
    return sorted(found, key=lambda block: (-len(block), sorted(block)))
