# Copyright: the topovirt.kvm authors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Placement -> the guest's shape: NUMA cells, pins, CPU topology, PCIe tree, address space. Decides; emits nothing."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TypedDict

from ansible_collections.topovirt.kvm.plugins.module_utils._topology.cpulist import format_cpulist
from ansible_collections.topovirt.kvm.plugins.module_utils._topology.model import Core, PciFunction, Topology
from ansible_collections.topovirt.kvm.plugins.plugin_utils._guest.mmio import Mmio, address_space, window_bytes
from ansible_collections.topovirt.kvm.plugins.plugin_utils._guest.pcie_tree import Controller, GuestDevice, build_tree


class Cell(TypedDict):
    """A guest NUMA node."""

    id: int
    host_node: int
    vcpus: str  # cpulist
    memory_bytes: int
    distances: list[int]  # to every cell, in order


class CpuTopology(TypedDict):
    sockets: int
    dies: int
    cores: int
    threads: int


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


def _cpu_topology(cells: Sequence[Sequence[Core]]) -> CpuTopology:
    """A socket per cell when all cells are alike; threads only when every core has the same number."""
    kinds = {len(core["threads"]) for cores in cells for core in cores}
    threads = kinds.pop() if len(kinds) == 1 else 1
    sizes = [sum(len(core["threads"]) for core in cores) for cores in cells]
    sockets = len(cells) if len(set(sizes)) == 1 else 1
    return CpuTopology(sockets=sockets, dies=1, cores=sum(sizes) // sockets // threads, threads=threads)


def build_layout(
    name: str,
    topology: Topology,
    devices: Sequence[str],
    cores_by_node: Mapping[int, Sequence[Core]],
    memory_by_node: Mapping[int, int],
    page_size_bytes: int,
    emulator_cpus: Sequence[int],
    uefi: bool,
) -> Layout:
    """The layout of one VM.

    :param devices: BDFs in host order.
    :param cores_by_node: host node -> whole cores, ascending.
    :param memory_by_node: host node -> bytes.
    :param uefi: whether the guest boots through UEFI firmware, which bounds the window for BARs.
    :raises TopovirtError: when the guest cannot mirror the host or its BARs do not fit the address space.
    """
    functions: dict[str, PciFunction] = {function["bdf"]: function for function in topology["pci"]}
    nodes = {node["id"]: node for node in topology["numa_nodes"]}
    order = sorted(cores_by_node)
    cells: list[Cell] = []
    pins: list[list[int]] = []
    for cell, number in enumerate(order):
        cpus = [cpu for core in cores_by_node[number] for cpu in core["threads"]]
        first = len(pins)
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
    shape = _cpu_topology([cores_by_node[number] for number in order])
    controllers, guest_devices = build_tree(devices, functions, {number: cell for cell, number in enumerate(order)})
    # QEMU never switches topoext on by itself, and without it an AMD guest sees no SMT siblings and no shared L3.
    amd_smt = topology["host"]["cpu_vendor"] == "AuthenticAMD" and shape["threads"] > 1
    return Layout(
        cells=cells,
        vcpu_pins=pins,
        cpu_topology=shape,
        cpu_features=["topoext"] if amd_smt else [],
        page_size_bytes=page_size_bytes,
        emulator_cpus=format_cpulist(emulator_cpus),
        firmware="uefi" if uefi else "bios",
        pcie=controllers,
        devices=guest_devices,
        mmio=address_space(
            name,
            window_bytes(controllers, guest_devices, functions),
            sum(memory_by_node.values()),
            uefi,
            topology["host"]["phys_bits"],
        ),
    )
