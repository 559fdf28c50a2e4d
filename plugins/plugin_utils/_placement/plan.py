# Copyright: the topovirt.kvm authors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""The whole of ``vm_plan``: requests, topology and existing VMs -> plan. Pure."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any
from uuid import NAMESPACE_URL, uuid5

from ansible_collections.topovirt.kvm.plugins.module_utils._errors import TopovirtError
from ansible_collections.topovirt.kvm.plugins.module_utils._libvirt.basis import make_basis
from ansible_collections.topovirt.kvm.plugins.module_utils._libvirt.domains import (
    METADATA_NAMESPACE,
    METADATA_SCHEMA,
    Allocation,
    parse_domain,
)
from ansible_collections.topovirt.kvm.plugins.module_utils._topology.cpulist import format_cpulist, parse_cpulist
from ansible_collections.topovirt.kvm.plugins.module_utils._topology.model import Core, Topology
from ansible_collections.topovirt.kvm.plugins.module_utils._topology.paths import CLASSES
from ansible_collections.topovirt.kvm.plugins.plugin_utils._guest.cpus import pick_cores
from ansible_collections.topovirt.kvm.plugins.plugin_utils._guest.domain import domain_xml
from ansible_collections.topovirt.kvm.plugins.plugin_utils._guest.layout import Layout, build_layout
from ansible_collections.topovirt.kvm.plugins.plugin_utils._guest.nccl import nccl_xml
from ansible_collections.topovirt.kvm.plugins.plugin_utils._placement.existing import compare_with_existing
from ansible_collections.topovirt.kvm.plugins.plugin_utils._placement.fabric import Fabric, read_fabric
from ansible_collections.topovirt.kvm.plugins.plugin_utils._placement.inventory import Inventory, take_stock
from ansible_collections.topovirt.kvm.plugins.plugin_utils._placement.request import parse_policy, parse_requests
from ansible_collections.topovirt.kvm.plugins.plugin_utils._placement.shortage import refusal
from ansible_collections.topovirt.kvm.plugins.plugin_utils._placement.solve import Placed, Solver

SCHEMA = 1


def _placement(
    placed: Placed,
    inventory: Inventory,
    cores: Mapping[int, Sequence[Core]],
    memory: Mapping[int, int],
    page_size: int,
) -> dict[str, Any]:
    functions = inventory.functions
    partition = placed.gpu_set.partition
    return {
        "nodes": sorted(cores),
        "devices": [
            {
                "bdf": bdf,
                "role": functions[bdf]["role"],
                "numa_node": functions[bdf]["numa_node"],
                "module_id": functions[bdf]["module_id"],
            }
            for bdf in placed.devices
        ],
        "cpus_by_node": {
            str(node): format_cpulist(cpu for core in cores[node] for cpu in core["threads"]) for node in sorted(cores)
        },
        "memory_by_node": {str(node): memory[node] for node in sorted(memory)},
        "page_size_bytes": page_size,
        "emulator_cpus": format_cpulist(cpu for node in cores for cpu in inventory.housekeeping[node]),
        "partition": None if partition is None else {"id": partition.id, "modules": list(partition.modules)},
    }


def _warnings(placed: Placed, fabric: Fabric, inventory: Inventory, has_switches: bool) -> list[str]:
    found = [*fabric.warnings, *placed.size.warnings]
    if placed.along:
        found.append(f"Devices of the same IOMMU groups go along with the VM's: {', '.join(placed.along)}.")
    for nic in placed.nics:
        best = min(
            (inventory.paths.path_class(gpu, nic) for gpu in placed.gpu_set.gpus), key=CLASSES.index, default="SYS"
        )
        if CLASSES.index(best) > CLASSES.index("PXB"):
            found.append(f"NIC {nic} is {best} from the VM's nearest GPU; NCCL uses GPUDirect RDMA up to PXB only.")
    count = len(placed.gpu_set.gpus)
    if has_switches and fabric.model != "shared_nvswitch" and count == 1:
        found.append("The GPU's NVLinks lead to switches outside the VM: load its driver with NVreg_NvLinkDisable=1.")
    if has_switches and fabric.model == "none" and count > 1:
        found.append("The GPUs have NVLinks but no partition: CUDA fails to start (802) unless NVLink is disabled.")
    return found


def _pick_cores(placed: Sequence[Placed], inventory: Inventory) -> dict[str, dict[int, list[Core]]]:
    """Free cores of each node to the VMs in turn, of as few L3 caches as possible."""
    free = {node: list(cores) for node, cores in inventory.free_cores.items()}
    picked: dict[str, dict[int, list[Core]]] = {}
    for item in placed:
        mine = {node: pick_cores(free[node], count) for node, count in item.size.cores.items()}
        picked[item.request.name] = mine
        for node, cores in mine.items():
            gone = {core["threads"][0] for core in cores}
            free[node] = [core for core in free[node] if core["threads"][0] not in gone]
    return picked


def _vm(
    placed: Placed,
    placement: dict[str, Any],
    layout: Layout,
    topology: Topology,
    fabric: Fabric,
    uuid: str,
    warnings: list[str],
) -> dict[str, Any]:
    request = placed.request
    partition = placed.gpu_set.partition
    metadata = {
        "schema": METADATA_SCHEMA,
        "fabric_model": fabric.model,
        "partition": None if partition is None else partition.id,
        "modules": None if partition is None else list(partition.modules),
        "requested": request.asked,
    }
    return {
        "name": request.name,
        "uuid": uuid,
        "placement": placement,
        "layout": layout,
        "domain_xml": domain_xml(request, uuid, metadata, layout),
        "nccl_xml": nccl_xml(topology, layout),
        "warnings": warnings,
    }


def make_plan(
    requests: object,
    topology: Topology,
    domains: Sequence[Allocation],
    fabric_model: str,
    host_name: str,
    policy: Mapping[str, Any] | None = None,
    state: str = "converted",
) -> dict[str, Any]:
    """The plan for a batch of VMs, as docs/architecture.md describes it.

    :param requests: as a user writes them; see :func:`parse_requests`.
    :param domains: every domain that libvirt knows on the host.
    :param host_name: names the host in the UUIDs of new VMs.
    :param policy: rules for "auto"; see :func:`parse_policy`.
    :param state: "converted" or "unconverted"; see :func:`take_stock`.
    :raises TopovirtError: one error that names every problem or shortage.
    """
    wanted = parse_requests(requests)
    rules = parse_policy(policy)
    inventory = take_stock(topology, domains, state)
    fabric = read_fabric(topology, fabric_model)
    existing = {domain["name"]: domain for domain in domains}
    standing = compare_with_existing(wanted, rules, existing, inventory, fabric)
    if standing.released:
        others = [domain for domain in domains if domain["name"] not in standing.released]
        inventory = take_stock(topology, others, state)
    solver = Solver(inventory, fabric, rules)
    fresh = [request for request in wanted if request.name not in standing.kept]
    solved = solver.solve(fresh)
    if solved is None:
        raise refusal(solver, fresh)
    picked = _pick_cores(solved, inventory)
    new = {placed.request.name: placed for placed in solved}
    has_switches = any(function["role"] == "nvswitch" for function in topology["pci"])
    vms: list[dict[str, Any]] = []
    problems: list[TopovirtError] = []
    for request in wanted:
        kept = standing.kept.get(request.name)
        if kept is not None:
            placed, cores, memory, page_size = kept.placed, kept.cores, kept.memory, kept.page_size_bytes
        else:
            placed, cores, page_size = new[request.name], picked[request.name], inventory.page_size_bytes
            memory = {node: count * page_size for node, count in placed.size.pages.items()}
        placement = _placement(placed, inventory, cores, memory, page_size)
        try:
            layout, about_layout = build_layout(
                request,
                topology,
                placed.devices,
                cores,
                memory,
                page_size,
                parse_cpulist(placement["emulator_cpus"]),
            )
        except TopovirtError as error:
            problems.append(error)
            continue
        known = existing.get(request.name)
        uuid = (known["uuid"] if known is not None else None) or str(
            uuid5(NAMESPACE_URL, f"{METADATA_NAMESPACE}:{host_name}:{request.name}")
        )
        warnings = [*_warnings(placed, fabric, inventory, has_switches), *about_layout]
        vms.append(_vm(placed, placement, layout, topology, fabric, uuid, warnings))
    if problems:
        hints = list(dict.fromkeys(problem.hint for problem in problems if problem.hint))
        raise TopovirtError(" ".join(problem.message for problem in problems), " ".join(hints))
    return {
        "schema": SCHEMA,
        "basis": make_basis(topology, domains, [parse_domain(vm["domain_xml"]) for vm in vms]),
        "fabric_model": fabric_model,
        "vms": vms,
    }
