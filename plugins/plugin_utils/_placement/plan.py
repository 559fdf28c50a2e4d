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
from ansible_collections.topovirt.kvm.plugins.plugin_utils._placement.cores import (
    as_vcpus,
    cores_with,
)
from ansible_collections.topovirt.kvm.plugins.plugin_utils._placement.existing import compare_with_existing
from ansible_collections.topovirt.kvm.plugins.plugin_utils._placement.explain import explain_all
from ansible_collections.topovirt.kvm.plugins.plugin_utils._placement.fabric import Fabric, read_fabric
from ansible_collections.topovirt.kvm.plugins.plugin_utils._placement.inventory import (
    FABRIC_ROLES,
    Inventory,
    take_stock,
)
from ansible_collections.topovirt.kvm.plugins.plugin_utils._placement.placed import Placed
from ansible_collections.topovirt.kvm.plugins.plugin_utils._placement.policy import Policy, parse_policy
from ansible_collections.topovirt.kvm.plugins.plugin_utils._placement.request import Request, parse_requests
from ansible_collections.topovirt.kvm.plugins.plugin_utils._placement.shortage import (
    Sorted,
    place,
    refusal,
    sort_out,
    still_fits,
)
from ansible_collections.topovirt.kvm.plugins.plugin_utils._placement.solve import Solver

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


def _warnings(placed: Placed, fabric: Fabric, inventory: Inventory, has_fabric: bool) -> list[str]:
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
    if has_fabric and fabric.model != "shared_nvswitch" and count == 1:
        found.append("The GPU's NVLinks lead to switches outside the VM: load its driver with NVreg_NvLinkDisable=1.")
    if has_fabric and count > 1 and not placed.gpu_set.switches and placed.gpu_set.partition is None:
        found.append("The GPUs have NVLinks but no partition: CUDA fails to start (802) unless NVLink is disabled.")
    return found


def _pick_cores(placed: Sequence[Placed], inventory: Inventory) -> dict[str, dict[int, list[Core]]]:
    """Free cores of each node to the VMs in turn, of as few L3 caches as possible, those that name theirs first."""
    free = {node: list(cores) for node, cores in inventory.free_cores.items()}
    picked: dict[str, dict[int, list[Core]]] = {}
    for item in sorted(placed, key=lambda item: not item.request.exact_cpus):
        mine: dict[int, list[Core]] = {}
        for node, count in item.size.cores.items():
            named = frozenset(item.request.exact_cpus)
            mine[node] = cores_with(free[node], named) if named else pick_cores(free[node], count)
            free[node] = [core for core in free[node] if core not in mine[node]]
        picked[item.request.name] = {node: as_vcpus(cores, item.request.smt) for node, cores in mine.items()}
    return picked


def _refuse_contradictions(requests: Sequence[Request], fabric: Fabric) -> None:
    """
    :raises TopovirtError: when two requests name the same device or CPU, with all of them.
    """
    named: dict[str, list[str]] = {}
    for request in requests:
        gpus = [str(fabric.named(name)) for name in request.exact_gpus if fabric.named(name) is not None]
        for thing in (*gpus, *request.exact_nics, *request.exact_nvmes, *(f"CPU {cpu}" for cpu in request.exact_cpus)):
            named.setdefault(thing, []).append(request.name)
    twice = [f"{thing} is named by VMs {', '.join(names)}." for thing, names in named.items() if len(names) > 1]
    if twice:
        raise TopovirtError(" ".join(twice), "Give each device and each CPU to one VM. Nothing was planned.")


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
    nccl = nccl_xml(topology, layout)
    return {
        "name": request.name,
        "uuid": uuid,
        "placement": placement,
        "layout": layout,
        "domain_xml": domain_xml(request, uuid, metadata, layout, nccl),
        "nccl_xml": nccl,
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
    exclude: Sequence[str] = (),
    explain: bool = False,
    partial: bool = False,
) -> dict[str, Any]:
    """The plan for a batch of VMs, as docs/architecture.md describes it.

    :param requests: as a user writes them; see :func:`parse_requests`.
    :param domains: every domain that libvirt knows on the host.
    :param host_name: names the host in the UUIDs of new VMs.
    :param policy: rules for "auto"; see :func:`parse_policy`.
    :param state: "converted" or "unconverted"; see :func:`take_stock`.
    :param exclude: addresses of devices that are not given out, such as degraded GPUs.
    :param explain: add ``explanation`` to every VM: why these devices, and what the next best placement was.
    :param partial: plan what fits, higher priority first, and list the others in ``refused``, instead of refusing all.
    :raises TopovirtError: one error that names every problem or shortage.
    """
    wanted = parse_requests(requests)
    rules = parse_policy(policy)
    excluded = [bdf.lower() for bdf in exclude]
    inventory = take_stock(topology, domains, state, fabric_model, rules.reserve, excluded)
    fabric = read_fabric(topology, fabric_model)
    existing = {domain["name"]: domain for domain in domains}
    standing = compare_with_existing(wanted, rules, existing, inventory, fabric)
    if standing.released:
        others = [domain for domain in domains if domain["name"] not in standing.released]
        inventory = take_stock(topology, others, state, fabric_model, rules.reserve, excluded)
    fresh = [request for request in wanted if request.name not in standing.kept]
    _refuse_contradictions(fresh, fabric)
    solver = Solver(inventory, fabric, rules)
    for kept in standing.kept.values():
        solver.keep_apart(kept.placed)
    solved, sorted_out = place(solver, fresh), None
    if partial:
        # Only a batch that does not fit as a whole is taken apart.
        sorted_out = (
            sort_out(solver, fresh) if solved is None else Sorted(solved, [], still_fits(solver.beside(solved)))
        )
        solved = sorted_out.placed
    elif solved is None:
        raise refusal(solver, fresh)
    picked = _pick_cores(solved, inventory)
    new = {placed.request.name: placed for placed in solved}
    explanations = explain_all(solver, solved) if explain else {}
    has_fabric = any(function["role"] in FABRIC_ROLES for function in topology["pci"])
    general = _general_warnings(rules, solver)
    vms: list[dict[str, Any]] = []
    problems: dict[str, TopovirtError] = {}
    for request in wanted:
        stays = standing.kept.get(request.name)
        if stays is not None:
            placed, cores, memory, page_size = stays.placed, stays.cores, stays.memory, stays.page_size_bytes
        elif request.name in new:
            placed, cores, page_size = new[request.name], picked[request.name], inventory.page_size_bytes
            memory = {node: count * page_size for node, count in placed.size.pages.items()}
        else:
            continue
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
            problems[request.name] = error
            continue
        known = existing.get(request.name)
        uuid = (known["uuid"] if known is not None else None) or str(
            uuid5(NAMESPACE_URL, f"{METADATA_NAMESPACE}:{host_name}:{request.name}")
        )
        warnings = [*general, *_warnings(placed, fabric, inventory, has_fabric), *about_layout]
        vm = _vm(placed, placement, layout, topology, fabric, uuid, warnings)
        if request.name in explanations:
            vm["explanation"] = explanations[request.name]
        vms.append(vm)
    if problems and not partial:
        hints = list(dict.fromkeys(problem.hint for problem in problems.values() if problem.hint))
        raise TopovirtError(" ".join(problem.message for problem in problems.values()), " ".join(hints))
    plan = {
        "schema": SCHEMA,
        "basis": make_basis(topology, domains, [parse_domain(vm["domain_xml"]) for vm in vms]),
        "fabric_model": fabric_model,
        "vms": vms,
    }
    return plan if sorted_out is None else {**plan, **_leftover(sorted_out, problems)}


def _leftover(sorted_out: Sorted, problems: Mapping[str, TopovirtError]) -> dict[str, Any]:
    """What was not placed: for want of devices, cores or memory, or because no guest can be laid out so."""
    refused = [*sorted_out.refused, *((name, [error.message]) for name, error in problems.items())]
    return {
        "refused": [{"name": name, "reasons": reasons} for name, reasons in refused],
        "still_fits": sorted_out.still_fits,
    }


def _general_warnings(rules: Policy, solver: Solver) -> list[str]:
    undecided = "The search for the best placement was ended early; there may be a better one."
    return [*rules.warnings, *([undecided] if solver.undecided else [])]
