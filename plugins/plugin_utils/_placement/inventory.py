# Copyright: the topovirt.kvm authors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""What of a host can be given to VMs, what cannot and why."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from ansible_collections.topovirt.kvm.plugins.module_utils._errors import TopovirtError
from ansible_collections.topovirt.kvm.plugins.module_utils._libvirt.domains import Allocation
from ansible_collections.topovirt.kvm.plugins.module_utils._topology.config_space import SILENT
from ansible_collections.topovirt.kvm.plugins.module_utils._topology.cpulist import parse_cpulist
from ansible_collections.topovirt.kvm.plugins.module_utils._topology.model import (
    SCHEMA,
    Core,
    HugePages,
    Node,
    PciFunction,
    Topology,
)
from ansible_collections.topovirt.kvm.plugins.module_utils._topology.paths import Paths
from ansible_collections.topovirt.kvm.plugins.module_utils._topology.reserve import (
    BY_RULE,
    Reserve,
    guest_pages,
    housekeeping_cpus,
)
from ansible_collections.topovirt.kvm.plugins.plugin_utils._guest.versions import read_versions

STATES = ("converted", "unconverted")

# Preferred first: 1 GiB pages make a big guest's memory fast to map for DMA and cheap to translate.
PAGE_SIZES = (1 << 30, 2 << 20)
# What connects the GPUs of a board: NVSwitches on PCI, or the bridge through which those of later boards are reached.
FABRIC_ROLES = ("nvswitch", "fabric_bridge")
_NEAR = ("PIX", "PXB")


@dataclass(frozen=True)
class Unit:
    """Devices of one role that can only move together, as they share an IOMMU group."""

    devices: tuple[str, ...]
    tied_to: frozenset[str]  # GPUs and parts of the fabric in the same group: the VM must own them all
    by_name: bool = False  # virtual functions go only to whom a request names them for


@dataclass(frozen=True)
class Inventory:
    """A host's devices, cores and huge pages, with existing VMs taken out."""

    functions: dict[str, PciFunction]
    paths: Paths
    groups: dict[int, tuple[str, ...]]  # IOMMU group -> endpoints
    owners: dict[str, str]  # BDF -> VM that has it
    withheld: dict[str, str]  # BDF -> why the host keeps it
    node_of: dict[str, int]  # GPU -> NUMA node
    pcie_group_of: dict[str, str]  # GPU -> key of its PCIe group
    nics: tuple[Unit, ...]  # all that a VM could ever have, taken ones included
    nvmes: tuple[Unit, ...]
    guest_cores: dict[int, tuple[Core, ...]]  # node -> all cores but housekeeping ones
    free_cores: dict[int, tuple[Core, ...]]
    housekeeping: dict[int, tuple[int, ...]]  # node -> logical CPUs
    page_size_bytes: int
    total_pages: dict[int, int]
    free_pages: dict[int, int]
    nearest_nodes: dict[int, tuple[int, ...]]  # node -> all nodes, nearest first
    nodes_of: dict[str, frozenset[int]]  # existing VM -> the nodes that it spans
    max_apic_id: int  # that a VM can have when it is asked for
    auto_max_apic_id: int  # and unasked

    def why_taken(self, bdf: str) -> str:
        """Why a device cannot be given out; empty when it can."""
        if bdf in self.owners:
            return f"belongs to VM {self.owners[bdf]}"
        return self.withheld.get(bdf, "")

    def group_of(self, bdf: str) -> tuple[str, ...]:
        """The endpoints that share the device's IOMMU group, itself included."""
        number = self.functions[bdf]["iommu_group"]
        return (bdf,) if number is None else self.groups.get(number, (bdf,))

    def near_nics(self) -> tuple[Unit, ...]:
        """NICs that share a switch with some GPU; all of them when there are none such."""
        own = tuple(unit for unit in self.nics if not unit.by_name)
        near = tuple(
            unit for unit in own if any(self.paths.path_class(unit.devices[0], gpu) in _NEAR for gpu in self.node_of)
        )
        return near or own


def _withheld(function: PciFunction, has_vfs: bool, state: str) -> str:
    if function["in_use"]:
        return f"the host uses it ({'; '.join(function['in_use'])})"
    if has_vfs:
        return "it has virtual functions"
    if state == "converted" and function["role"] is not None and function["driver"] != "vfio-pci":
        return f"its driver is {function['driver'] or 'none'}, expected vfio-pci"
    if state == "converted" and function["driver"] not in (None, "vfio-pci"):
        return f"its driver is {function['driver']}, expected vfio-pci or none"
    return ""


def _units(
    groups: dict[int, tuple[str, ...]], functions: dict[str, PciFunction], role: str, withheld: dict[str, str]
) -> tuple[Unit, ...]:
    units: dict[tuple[str, ...], Unit] = {}
    for bdf, function in functions.items():
        if function["role"] != role or function["kind"] != "endpoint":
            continue
        number = function["iommu_group"]
        together = (bdf,) if number is None else groups[number]
        devices = tuple(other for other in together if functions[other]["role"] == role)
        if any(other in withheld for other in together):
            continue
        tied = frozenset(other for other in together if functions[other]["role"] in ("gpu", *FABRIC_ROLES))
        units[devices] = Unit(devices, tied, any(functions[other]["physfn"] is not None for other in devices))
    return tuple(units.values())


def _nodes_of_gpus(topology: Topology) -> dict[str, int]:
    only = topology["numa_nodes"][0]["id"] if len(topology["numa_nodes"]) == 1 else None
    nodes: dict[str, int] = {}
    unknown: list[str] = []
    for function in topology["pci"]:
        if function["role"] == "gpu" and function["physfn"] is None:
            node = function["numa_node"] if function["numa_node"] is not None else only
            if node is None:
                unknown.append(function["bdf"])
            else:
                nodes[function["bdf"]] = node
    if unknown:
        raise TopovirtError(
            f"The NUMA node of GPU {', '.join(unknown)} is unknown: neither the device nor a bridge above it says one.",
            "Check the firmware's NUMA settings; without them a VM's CPUs and memory cannot be placed near its GPUs.",
        )
    return nodes


def _promised(domains: Sequence[Allocation], node: int, size: int) -> int:
    return sum(-(-domain["memory_by_node"].get(str(node), 0) // size) for domain in domains)


def _pages(topology: Topology, size: int) -> dict[str, dict[int, int]]:
    none: HugePages = {"total": 0, "free": 0}
    counts = {node["id"]: node["hugepages"].get(str(size >> 10), none) for node in topology["numa_nodes"]}
    return {
        "total": {node: count["total"] for node, count in counts.items()},
        "free": {node: count["free"] for node, count in counts.items()},
    }


def _memory(
    topology: Topology, domains: Sequence[Allocation], state: str, reserve: Reserve
) -> tuple[int, dict[int, int], dict[int, int]]:
    """Page size, and per node all pages for guests and the free ones among them."""
    numbers = [node["id"] for node in topology["numa_nodes"]]
    if state == "unconverted":
        size = PAGE_SIZES[0]
        total = {node["id"]: guest_pages(node["memory_bytes"], size, reserve) for node in topology["numa_nodes"]}
        return size, total, {node: max(0, total[node] - _promised(domains, node, size)) for node in numbers}
    size = next((size for size in PAGE_SIZES if any(_pages(topology, size)["total"].values())), PAGE_SIZES[0])
    pages = _pages(topology, size)
    owners = [domain for domain in domains if domain["page_size_bytes"] == size]
    idle = [domain for domain in owners if domain["state"] in ("shut off", "crashed")]
    free: dict[int, int] = {}
    for node in numbers:
        # A running VM's pages are no longer free; those of a VM that is off are, but they are promised to it.
        unpromised = pages["total"][node] - _promised(owners, node, size)
        free[node] = max(0, min(unpromised, pages["free"][node] - _promised(idle, node, size)))
    return size, pages["total"], free


def _nearest(node: Node, numbers: Sequence[int]) -> tuple[int, ...]:
    # 255 is what the kernel's tables use for "unreachable" (ACPI, System Locality Information Table).
    return tuple(sorted(numbers, key=lambda other: (node["distances"].get(str(other), 255), other)))


def _nodes_of(domain: Allocation, topology: Topology) -> frozenset[int]:
    pinned = set(parse_cpulist(domain["cpus"]))
    of_cpus = {
        core["node"] for core in topology["cores"] if core["node"] is not None and pinned.intersection(core["threads"])
    }
    return frozenset(of_cpus | {int(node) for node in domain["memory_by_node"]})


def _kept_back(topology: Topology, state: str, excluded: Sequence[str]) -> dict[str, str]:
    """BDF -> why the host keeps an endpoint, whoever owns it."""
    silent = {
        bdf
        for gap in topology["unknown"]
        if (gap["fact"], gap["reason"]) == ("capabilities", SILENT)
        for bdf in gap["of"]
    }
    endpoints = [function for function in topology["pci"] if function["kind"] == "endpoint"]
    parents = {function["physfn"] for function in endpoints}
    found: dict[str, str] = {}
    for function in endpoints:
        bdf = function["bdf"]
        if bdf in excluded:
            found[bdf] = "it is excluded by request"
        elif bdf in silent:
            found[bdf] = f"it may be broken: {SILENT}"
        elif reason := _withheld(function, bdf in parents, state):
            found[bdf] = reason
    return found


def take_stock(
    topology: Topology,
    domains: Sequence[Allocation],
    state: str = "converted",
    fabric_model: str = "none",
    reserve: Reserve = BY_RULE,
    excluded: Sequence[str] = (),
) -> Inventory:
    """Topology and existing VMs -> what is there and what is free.

    :param domains: every domain that libvirt knows; what they own is never given out again.
    :param state: "converted": only devices on vfio-pci and existing huge pages count. "unconverted": plan for a host
        before its conversion; drivers do not matter and huge pages are those that conversion would make.
    :param fabric_model: says whether Fabric Manager runs on the host, which then keeps more cores.
    :param reserve: what the host keeps, where not by rule.
    :param excluded: BDFs of devices that are not given out, such as degraded GPUs.
    :raises TopovirtError: for a topology of another schema, a host without IOMMU, a GPU of unknown NUMA node.
    """
    if topology["schema"] != SCHEMA:
        raise TopovirtError(
            f"The topology has schema {topology['schema']}, this version reads {SCHEMA}.",
            "Read the host again with the same version of topovirt.kvm.",
        )
    if state == "converted" and not topology["iommu"]["active"]:
        raise TopovirtError(
            "The host's IOMMU is not active: its kernel made no IOMMU groups, so no device can be passed through.",
            "Switch it on in the firmware (VT-d, AMD-Vi) and convert the host.",
        )
    functions = {function["bdf"]: function for function in topology["pci"]}
    endpoints = {bdf: function for bdf, function in functions.items() if function["kind"] == "endpoint"}
    members: dict[int, list[str]] = {}
    for bdf, function in endpoints.items():
        if function["iommu_group"] is not None:
            members.setdefault(function["iommu_group"], []).append(bdf)
    groups = {number: tuple(bdfs) for number, bdfs in members.items()}
    owners = {bdf: domain["name"] for domain in domains for bdf in domain["hostdevs"]}
    # libvirt binds a device of managed='yes' only while its VM runs, so an owner explains any driver.
    withheld = {bdf: reason for bdf, reason in _kept_back(topology, state, excluded).items() if bdf not in owners}
    paths = Paths(topology)
    node_of = _nodes_of_gpus(topology)
    page_size, total_pages, free_pages = _memory(topology, domains, state, reserve)
    housekeeping = {node: tuple(cpus) for node, cpus in housekeeping_cpus(topology, fabric_model, reserve).items()}
    reserved = {cpu for cpus in housekeeping.values() for cpu in cpus}
    pinned = {cpu for domain in domains for cpu in parse_cpulist(domain["cpus"])}
    numbers = [node["id"] for node in topology["numa_nodes"]]
    versions = read_versions(topology)
    guest_cores = {
        node: tuple(
            core for core in topology["cores"] if core["node"] == node and not reserved.intersection(core["threads"])
        )
        for node in numbers
    }
    return Inventory(
        functions=functions,
        paths=paths,
        groups=groups,
        owners=owners,
        withheld=withheld,
        node_of=node_of,
        pcie_group_of={
            gpu: next(iter(paths.switches(gpu)), None) or functions[gpu]["parent"] or gpu for gpu in node_of
        },
        nics=_units(groups, endpoints, "nic", withheld),
        nvmes=_units(groups, endpoints, "nvme", withheld),
        guest_cores=guest_cores,
        free_cores={
            node: tuple(core for core in cores if not pinned.intersection(core["threads"]))
            for node, cores in guest_cores.items()
        },
        housekeeping=housekeeping,
        page_size_bytes=page_size,
        total_pages=total_pages,
        free_pages=free_pages,
        nearest_nodes={node["id"]: _nearest(node, numbers) for node in topology["numa_nodes"]},
        nodes_of={domain["name"]: _nodes_of(domain, topology) for domain in domains},
        max_apic_id=versions.max_apic_id(),
        auto_max_apic_id=versions.auto_max_apic_id(topology["host"]["cpu_vendor"] == "AuthenticAMD"),
    )
