# Copyright: the topovirt.kvm authors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""The topology structure, schema 1: plain JSON data, described here field by field.

It is passed between host and controller as a dictionary, so it is typed with ``TypedDict`` and needs no conversion.
Absent knowledge is ``None``, never a guess. Sizes are bytes, link speeds giga-transfers per second and lane.
"""

from __future__ import annotations

from typing import Dict, List, Optional, TypedDict

SCHEMA = 1

# What the function is in the PCI tree.
KINDS = ("endpoint", "root_port", "upstream_port", "downstream_port", "bridge")

# What the function is to us; other endpoints have role None.
ROLES = ("gpu", "nvswitch", "fabric_bridge", "nic", "nvme")


class Host(TypedDict):
    """The running system."""

    kernel: str  # release, as `uname -r` prints it
    arch: str  # "x86_64"
    cmdline: str  # the running kernel's command line
    boot_id: Optional[str]
    firmware: Optional[str]  # "uefi" or "bios"
    os_id: Optional[str]  # ID of os-release
    os_version: Optional[str]  # VERSION_ID of os-release
    cpu_vendor: Optional[str]  # as /proc/cpuinfo says: "GenuineIntel", "AuthenticAMD"
    cpu_family: Optional[int]
    cpu_model: Optional[int]
    cpu_model_name: Optional[str]
    virtualization: Optional[str]  # "vmx" or "svm", None when the CPU flag is absent
    phys_bits: Optional[int]  # physical address width


class Iommu(TypedDict):
    """The IOMMU as firmware and kernel present it. The kind comes from ACPI, never from the CPU vendor."""

    kind: Optional[str]  # "dmar" or "ivrs": the ACPI table that is present
    active: bool  # the kernel made IOMMU groups
    default_domain: Optional[str]  # group type of most endpoints: "identity", "DMA", "DMA-FQ"
    groups: int


class HugePages(TypedDict):
    total: int
    free: int


class Node(TypedDict):
    """A NUMA node."""

    id: int
    cpus: str  # cpulist
    memory_bytes: int
    distances: Dict[str, int]  # node id -> distance, as in ACPI SLIT
    hugepages: Dict[str, HugePages]  # page size in KiB as text -> counts


class Core(TypedDict):
    """A physical core."""

    package: int
    die: int
    core: int
    node: Optional[int]
    l3: Optional[int]  # id of the last-level cache domain
    threads: List[int]  # logical CPUs, ascending


class Bar(TypedDict):
    """A memory BAR; I/O BARs are left out, for nothing of ours sizes or maps them."""

    index: int  # 0..5, 6 is the expansion ROM
    size_bytes: int
    is_64bit: bool
    prefetchable: bool


class Link(TypedDict):
    """Speeds as `max_link_speed` says: the maximum; an idle device lowers its current speed."""

    max_gtps: Optional[float]
    max_width: Optional[int]


class PciFunction(TypedDict):
    """One function of the PCI bus."""

    bdf: str  # "0000:23:00.0", lower case
    kind: str  # one of KINDS
    role: Optional[str]  # one of ROLES
    class_code: str  # six hex digits
    vendor: str  # four hex digits
    device: str
    subsystem_vendor: Optional[str]
    subsystem_device: Optional[str]
    parent: Optional[str]  # BDF of the bridge above, None below a host bridge
    host_bridge: str  # "0000:20", domain and root bus
    numa_node: Optional[int]
    numa_source: Optional[str]  # "own", the BDF or root bus above that knew, None when unknown
    driver: Optional[str]
    driver_override: Optional[str]
    iommu_group: Optional[int]
    bars: List[Bar]  # empty for bridges
    link: Link
    reset_methods: List[str]
    physfn: Optional[str]  # BDF of the physical function of a VF
    names: List[str]  # network interfaces, block devices, RDMA devices
    in_use: List[str]  # why the host needs it, one sentence each; empty when free
    module_id: Optional[int]  # the GPU's number on the baseboard


class Topology(TypedDict):
    schema: int
    host: Host
    iommu: Iommu
    nodes: List[Node]  # ascending id
    cores: List[Core]  # ascending first thread
    pci: List[PciFunction]  # ascending BDF
