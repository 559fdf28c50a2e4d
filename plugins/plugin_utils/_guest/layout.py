# Copyright: the topovirt.kvm authors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Placement -> the guest's shape: NUMA cells, pins, CPU topology, PCIe tree, address space. Decides; emits nothing."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TypedDict

from ansible_collections.topovirt.kvm.plugins.module_utils._topology.cpulist import format_cpulist
from ansible_collections.topovirt.kvm.plugins.module_utils._topology.model import Core, PciFunction, Topology
from ansible_collections.topovirt.kvm.plugins.plugin_utils._guest.cpus import (
    CpuTopology,
    apic_ids,
    cpu_topology,
    in_l3_order,
    shows_too_few_l3,
    threads_of_l3,
)
from ansible_collections.topovirt.kvm.plugins.plugin_utils._guest.mmio import (
    UEFI_MAX_BITS,
    Mmio,
    address_space,
    ram_end,
    window_bytes,
)
from ansible_collections.topovirt.kvm.plugins.plugin_utils._guest.pcie_tree import Controller, GuestDevice, build_tree
from ansible_collections.topovirt.kvm.plugins.plugin_utils._guest.peers import cliques
from ansible_collections.topovirt.kvm.plugins.plugin_utils._guest.properties import (
    Overrides,
    global_arguments,
    overrides,
)
from ansible_collections.topovirt.kvm.plugins.plugin_utils._guest.versions import XAPIC_MAX_ID, read_versions
from ansible_collections.topovirt.kvm.plugins.plugin_utils._placement.request import DiskBoot, Request

# QEMU takes no more threads to write a cell's memory (util/oslib-posix.c).
MAX_ALLOCATION_THREADS = 16


class Cell(TypedDict):
    """A guest NUMA node."""

    id: int
    host_node: int
    vcpus: str  # cpulist
    memory_bytes: int
    distances: list[int]  # to every cell, in order


class Layout(TypedDict):
    """The guest, completely."""

    cells: list[Cell]
    vcpu_pins: list[list[int]]  # [vCPU, host CPU], one to one
    cpu_topology: CpuTopology
    cpu_features: list[str]
    page_size_bytes: int
    emulator_cpus: str
    firmware: str  # "uefi" or "bios"
    pcie: list[Controller]
    devices: list[GuestDevice]
    mmio: Mmio
    allocation_threads: int  # per cell
    iothread_cpus: str  # cpulist; empty when the VM has no disk
    extended_apic: bool  # APIC ids beyond xAPIC's: interrupts are remapped
    overrides: Overrides  # QEMU properties by alias
    qemu_arguments: list[str]
    left_out: list[str]  # elements that the host's libvirt or QEMU does not know, see versions.py


def build_layout(
    request: Request,
    topology: Topology,
    devices: Sequence[str],
    cores_by_node: Mapping[int, Sequence[Core]],
    memory_by_node: Mapping[int, int],
    page_size_bytes: int,
    emulator_cpus: Sequence[int],
) -> tuple[Layout, list[str]]:
    """The layout of one VM, and warnings about it.

    :param devices: BDFs in host order.
    :param cores_by_node: host node -> whole cores, ascending.
    :param memory_by_node: host node -> bytes.
    :raises TopovirtError: when the guest cannot mirror the host, its BARs do not fit the address space, or its GPUs
        cannot be the peers that were asked for.
    """
    functions: dict[str, PciFunction] = {function["bdf"]: function for function in topology["pci"]}
    nodes = {node["id"]: node for node in topology["numa_nodes"]}
    node_of_cpu = {cpu: core["node"] for core in topology["cores"] for cpu in core["threads"]}
    versions = read_versions(topology)
    amd = topology["host"]["cpu_vendor"] == "AuthenticAMD"
    uefi = isinstance(request.boot, DiskBoot)
    order = sorted(cores_by_node)
    cores = [in_l3_order(cores_by_node[number]) for number in order]
    cells: list[Cell] = []
    pins: list[list[int]] = []
    for cell, number in enumerate(order):
        first = len(pins)
        cpus = [cpu for core in cores[cell] for cpu in core["threads"]]
        pins += [[first + offset, cpu] for offset, cpu in enumerate(cpus)]
        cells.append(
            Cell(
                id=cell,
                host_node=number,
                vcpus=format_cpulist(range(first, len(pins))),
                memory_bytes=memory_by_node[number],
                distances=[nodes[number]["distances"][str(other)] for other in order],
            )
        )
    l3_threads = threads_of_l3(topology["cores"])
    shape = cpu_topology(cores, l3_threads, amd, versions.has("dies"), versions.max_apic_id())
    extended = max(apic_ids(shape)) > XAPIC_MAX_ID
    controllers, guest_devices = build_tree(
        devices, functions, {number: cell for cell, number in enumerate(order)}, request.pcie
    )
    peers = cliques(request.name, devices, functions) if request.gpu_p2p else {}
    properties, wanted = overrides(controllers, guest_devices, request.hostdev_properties, peers, versions)
    arguments: list[str] = []
    if not versions.has("override"):
        arguments = global_arguments(controllers, request.hostdev_properties, versions)
        properties = {}
    mmio = address_space(
        request.name,
        window_bytes(controllers, guest_devices, functions, uefi),
        ram_end(request.name, sum(memory_by_node.values()), amd, versions.clears_hypertransport()),
        uefi,
        topology["host"]["phys_bits"],
        versions.has("maxphysaddr"),
        versions.has("maxphysaddr_limit"),
    )
    if mmio["firmware_window_mib"] is not None:
        # The name is the firmware's own; libvirt's element for such values refuses all that begin with opt/ovmf/.
        arguments += ["-fw_cfg", f"name=opt/ovmf/X-PciMmio64Mb,string={mmio['firmware_window_mib']}"]
    wanted = [
        "allocation_threads",
        "nccl_file",
        "poll_control",
        "hotplug",
        *(["firmware_feature"] if uefi else []),
        "maxphysaddr",
        *(["maxphysaddr_limit"] if (mmio["phys_bits"] or 0) > UEFI_MAX_BITS else []),
        *(["dies"] if len({core["l3"] for core in cores[0]}) > 1 else []),
        *(["dma_translation"] if extended else []),
        *wanted,
    ]
    warnings = versions.warnings(wanted)
    if extended and amd:
        warnings.append("More than 255 APIC ids on an AMD host: that its guests accept Intel's IOMMU is not proven.")
    l3 = shows_too_few_l3(cores, l3_threads, shape)
    if l3 is not None:
        warnings.append(
            f"The guest sees {l3[0]} L3 cache(s), its cores have {l3[1]}: they do not spread evenly over whole ones."
        )
    # QEMU never switches topoext on by itself, and without it an AMD guest sees no SMT siblings and no shared L3.
    layout = Layout(
        cells=cells,
        vcpu_pins=pins,
        cpu_topology=shape,
        cpu_features=["topoext"] if amd and shape["threads"] > 1 else [],
        page_size_bytes=page_size_bytes,
        emulator_cpus=format_cpulist(emulator_cpus),
        firmware="uefi" if uefi else "bios",
        pcie=controllers,
        devices=guest_devices,
        mmio=mmio,
        allocation_threads=min(MAX_ALLOCATION_THREADS, *(sum(len(c["threads"]) for c in cell) for cell in cores)),
        iothread_cpus=format_cpulist(cpu for cpu in emulator_cpus if uefi and node_of_cpu.get(cpu) == order[0]),
        extended_apic=extended,
        overrides=properties,
        qemu_arguments=arguments,
        left_out=versions.missing(),
    )
    return layout, warnings
