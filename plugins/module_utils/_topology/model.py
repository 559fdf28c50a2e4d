# Copyright: the topovirt.kvm authors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""The topology structure, schema 1: plain JSON data, described here field by field.

It is passed between host and controller as a dictionary, so it is typed with ``TypedDict`` and needs no conversion.
Absent knowledge is ``None``, never a guess, and ``unknown`` says why; a ``None`` that is not listed there means that
there is no such thing. Sizes are bytes, link speeds giga-transfers per second and lane. The same as JSON Schema is
``docs/reference/topology.schema.json``.
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
    isolated_cpus: Optional[str]  # cpulist: no load balancing (isolcpus)
    nohz_full_cpus: Optional[str]  # cpulist: no tick while one task runs
    secure_boot: Optional[bool]
    lockdown: Optional[str]  # "none", "integrity" or "confidentiality"; None where the kernel has no lockdown


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
    memory_bytes: Optional[int]
    distances: Dict[str, int]  # node id -> distance, as in ACPI SLIT
    hugepages: Dict[str, HugePages]  # page size in KiB as text -> counts


class Core(TypedDict):
    """A physical core."""

    package: Optional[int]
    die: Optional[int]
    core: Optional[int]
    node: Optional[int]
    l3: Optional[int]  # the last-level cache domain: its first CPU
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


class Acs(TypedDict):
    """Access Control Services as bits of the capability and the control register (PCI Express Base Specification)."""

    supported: int
    enabled: int


class Ats(TypedDict):
    """Address Translation Services."""

    enabled: bool


class SrIov(TypedDict):
    """Virtual functions of a physical function."""

    total: int
    enabled: int


class Capabilities(TypedDict, total=False):
    """What a function can do and what of it is switched on; a key is absent where the function lacks the capability."""

    acs: Acs  # of bridges
    ats: Ats
    sriov: SrIov
    max_read_request_bytes: int  # of endpoints
    resizable_bars: Dict[str, int]  # index of the BAR -> sizes it can have: bit n stands for 2 ** (n + 20) bytes
    fabric_marker: bool  # of adapters that may be a board's fabric bridge: their vital product data carry the mark


# "class" is a keyword of Python, so it cannot be declared in the body of a class.
_Class = TypedDict("_Class", {"class": str})  # six hex digits


class _OfEndpoints(TypedDict, total=False):
    """Keys of endpoints only."""

    driver_override: Optional[str]
    bars: List[Bar]
    reset_methods: List[str]
    power_state: Optional[str]  # "D0", "D1", "D2", "D3hot" or "D3cold"
    physfn: Optional[str]  # BDF of the physical function of a VF
    names: List[str]  # network interfaces, block devices, RDMA devices
    vm: Optional[str]  # the running VM that has it
    module_id: Optional[int]  # the GPU's number on the baseboard


# pylint takes what the call of TypedDict above returns for no class; it is one.
class PciFunction(_Class, _OfEndpoints):  # pylint: disable=inherit-non-class,inconsistent-mro
    """One function of the PCI bus."""

    bdf: str  # "0000:23:00.0", lower case
    kind: str  # one of KINDS
    role: Optional[str]  # one of ROLES
    vendor: str  # four hex digits
    device: str
    subsystem: Optional[str]  # vendor and device: "10de:18be"
    parent: Optional[str]  # BDF of the bridge above, None below a host bridge
    host_bridge: str  # "0000:20", domain and root bus
    numa_node: Optional[int]
    numa_source: Optional[str]  # "own", the BDF or root bus above that knew, None when unknown
    driver: Optional[str]
    iommu_group: Optional[int]
    link: Link
    capabilities: Optional[Capabilities]
    in_use: List[str]  # why the host needs it, one sentence each; empty when free


class Software(TypedDict):
    """What else runs on the machine, and what follows from it."""

    next_cmdline: Optional[str]  # the command line that the next boot will have
    libvirt: Optional[str]  # version
    qemu: Optional[str]
    features: Dict[str, Optional[bool]]  # name -> whether all programs that it takes are new enough


class Unknown(TypedDict):
    """A fact that could not be known, of everything it is missing of, for one reason."""

    fact: str  # key of the structure
    reason: str
    of: List[str]  # BDFs, "node 0", "cpu 3"; empty when it is a fact of the machine


class Topology(TypedDict):
    schema: int
    host: Host
    iommu: Iommu
    software: Software
    numa_nodes: List[Node]  # ascending id
    cores: List[Core]  # ascending first thread
    pci: List[PciFunction]  # ascending BDF
    unknown: List[Unknown]
