# Copyright: the topovirt.kvm authors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Requests for VMs that exist: a VM keeps its place while the request still fits it; running VMs never move."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from ansible_collections.topovirt.kvm.plugins.module_utils._errors import TopovirtError
from ansible_collections.topovirt.kvm.plugins.module_utils._libvirt.domains import Allocation
from ansible_collections.topovirt.kvm.plugins.module_utils._topology.cpulist import format_cpulist, parse_cpulist
from ansible_collections.topovirt.kvm.plugins.module_utils._topology.model import Core
from ansible_collections.topovirt.kvm.plugins.plugin_utils._placement.cores import as_vcpus
from ansible_collections.topovirt.kvm.plugins.plugin_utils._placement.fabric import Fabric, GpuSet
from ansible_collections.topovirt.kvm.plugins.plugin_utils._placement.inventory import FABRIC_ROLES, Inventory
from ansible_collections.topovirt.kvm.plugins.plugin_utils._placement.placed import Placed
from ansible_collections.topovirt.kvm.plugins.plugin_utils._placement.policy import Policy
from ansible_collections.topovirt.kvm.plugins.plugin_utils._placement.request import Request
from ansible_collections.topovirt.kvm.plugins.plugin_utils._placement.sizing import Size, size_of

_RUNNING = ("running", "paused")


@dataclass(frozen=True)
class Kept:
    """An existing VM that stays where it is."""

    placed: Placed
    cores: dict[int, list[Core]]
    memory: dict[int, int]  # node -> bytes
    page_size_bytes: int


@dataclass(frozen=True)
class Standing:
    """What existing VMs mean for a batch of requests."""

    kept: dict[str, Kept]
    released: tuple[str, ...]  # VMs that are off and will be placed anew


def _set_of(request: Request, gpus: Sequence[str], switches: Sequence[str], fabric: Fabric) -> GpuSet | None:
    """The GPU set that an existing VM has, None when today's fabric model does not allow it."""
    if not switches and fabric.loose(request) and not any(item.gpus == tuple(gpus) for item in fabric.partitions):
        return GpuSet(tuple(gpus))
    if fabric.model == "shared_nvswitch":
        found = (item for item in fabric.partitions if item.gpus == tuple(gpus))
        return next(found, None) if not switches else None
    wanted = fabric.switches if fabric.model == "full_passthrough" and len(gpus) > 1 else ()
    return GpuSet(tuple(gpus), tuple(switches)) if len(gpus) in fabric.sizes and tuple(switches) == wanted else None


def _unlike(has: Mapping[int, int], wanted: Mapping[int, int], request: Request) -> bool:
    """Whether amounts per node differ; of a VM that may spread, whether their sums do."""
    return sum(has.values()) != sum(wanted.values()) if request.numa == "prefer" else dict(has) != dict(wanted)


def _differences(
    request: Request, policy: Policy, domain: Allocation, inventory: Inventory, fabric: Fabric
) -> tuple[Kept | None, list[str]]:
    """The VM as kept, or how the request differs from it."""
    by_role: dict[str | None, list[str]] = {}
    for bdf in domain["hostdevs"]:
        role = inventory.functions[bdf]["role"] if bdf in inventory.functions else None
        by_role.setdefault(role, []).append(bdf)
    gpus, nics, nvmes = (tuple(by_role.get(role, ())) for role in ("gpu", "nic", "nvme"))
    gone = [bdf for bdf in domain["hostdevs"] if bdf not in inventory.functions]
    found = [f"owns {', '.join(gone)}, which the host no longer has"] if gone else []
    gpu_set = _set_of(request, gpus, sorted(bdf for role in FABRIC_ROLES for bdf in by_role.get(role, ())), fabric)
    if len(gpus) != request.gpus:
        found.append(f"has {len(gpus)} GPUs, {request.gpus} are asked for")
    elif gpu_set is None:
        found.append(f"has GPUs {', '.join(gpus)}, which fabric_model {fabric.model} does not allow")
    exact = {str(fabric.named(name)) for name in request.exact_gpus}
    if exact and exact != set(gpus):
        found.append(f"has GPUs {', '.join(gpus)}, {', '.join(sorted(exact))} are asked for")
    nics_asked = policy.nics(request.gpus) if request.nics is None else request.nics
    for what, has, named, asked in (
        ("NICs", nics, request.exact_nics, nics_asked),
        ("NVMe devices", nvmes, request.exact_nvmes, request.nvme),
    ):
        if named and not set(named) <= set(has):
            found.append(f"has {what} {', '.join(has) or 'none'}, {', '.join(named)} are asked for")
        elif not named and asked is not None and len(has) != asked:
            found.append(f"has {len(has)} {what}, {asked} are asked for")
    pinned = set(parse_cpulist(domain["cpus"]))
    cores: dict[int, list[Core]] = {}
    for node, all_cores in inventory.guest_cores.items():
        chosen = [core for core in as_vcpus(all_cores, request.smt) if pinned.issuperset(core["threads"])]
        if chosen:
            cores[node] = chosen
    if {cpu for chosen in cores.values() for core in chosen for cpu in core["threads"]} != pinned or not pinned:
        found.append(f"is pinned to CPUs {domain['cpus'] or 'none'}, which are not whole cores for guests")
    memory = {int(node): size for node, size in domain["memory_by_node"].items()}
    if gpu_set is None or found:
        return None, found
    size = size_of(request, policy, inventory, gpus)
    if request.exact_cpus and set(request.exact_cpus) != pinned:
        found.append(f"is pinned to CPUs {domain['cpus']}, {format_cpulist(request.exact_cpus)} are asked for")
    # With "prefer" a VM may have been given cores and memory of other nodes: only the sums are held against it.
    has_cores, wanted_cores = {node: len(chosen) for node, chosen in cores.items()}, size.cores
    vcpus = request.vcpus or policy.vcpus(request.gpus)[0]
    if vcpus and not request.exact_cpus and _unlike(has_cores, wanted_cores, request):
        found.append(f"has {len(pinned)} vCPUs, {vcpus} are asked for")
    pages = {node: bytes_ // inventory.page_size_bytes for node, bytes_ in memory.items()}
    if (request.memory_bytes or policy.memory_bytes(request.gpus)) and _unlike(pages, size.pages, request):
        found.append(f"has {domain['memory_bytes'] >> 20} MiB of memory, another size is asked for")
    if set(memory) != set(cores) or domain["page_size_bytes"] is None:
        found.append("has memory that is not in huge pages of its CPUs' nodes")
    if found or domain["page_size_bytes"] is None:
        return None, found
    along = tuple(
        bdf for role, bdfs in by_role.items() if role not in ("gpu", "nic", "nvme", *FABRIC_ROLES) for bdf in bdfs
    )
    kept_size = Size({node: len(chosen) for node, chosen in cores.items()}, pages)
    placed = Placed(request, gpu_set, kept_size, nics, nvmes, along)
    return Kept(placed, cores, memory, domain["page_size_bytes"]), []


def compare_with_existing(
    requests: Sequence[Request],
    policy: Policy,
    domains: Mapping[str, Allocation],
    inventory: Inventory,
    fabric: Fabric,
) -> Standing:
    """Which requested VMs exist and stay, and which are placed anew.

    :param domains: existing VMs by name.
    :raises TopovirtError: when a request would change a running VM or one that is not ours, or when a VM owns
        NVSwitches that the fabric model gives to nobody.
    """
    kept: dict[str, Kept] = {}
    released: list[str] = []
    problems: list[str] = []
    if fabric.model == "shared_nvswitch":
        problems += [
            f"NVSwitch {switch} belongs to VM {inventory.owners[switch]}, but with shared_nvswitch to no VM."
            for switch in fabric.switches
            if switch in inventory.owners and inventory.owners[switch] not in {request.name for request in requests}
        ]
    for request in requests:
        domain = domains.get(request.name)
        if domain is None:
            continue
        if not domain["ours"]:
            problems.append(f"VM {request.name} exists and was not made by topovirt.kvm.")
            continue
        stays, differences = _differences(request, policy, domain, inventory, fabric)
        if stays is not None:
            kept[request.name] = stays
        elif domain["state"] in _RUNNING:
            problems.append(f"VM {request.name} is {domain['state']} and {'; it '.join(differences)}.")
        else:
            released.append(request.name)
    if problems:
        raise TopovirtError(
            " ".join(problems),
            "Running VMs are never moved or changed: stop or delete them first, or ask for what they have.",
        )
    return Standing(kept, tuple(released))
