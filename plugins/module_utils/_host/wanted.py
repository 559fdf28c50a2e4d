# Copyright: the topovirt.kvm authors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""What the operator wants of the host, completed by what the machine itself says."""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import Any, Collection, Dict, List, Mapping, Optional, Set

from ansible_collections.topovirt.kvm.plugins.module_utils._errors import TopovirtError
from ansible_collections.topovirt.kvm.plugins.module_utils._topology.config_space import READ_REQUESTS
from ansible_collections.topovirt.kvm.plugins.module_utils._topology.cpulist import format_cpulist, parse_cpulist
from ansible_collections.topovirt.kvm.plugins.module_utils._topology.model import ROLES, PciFunction, Topology
from ansible_collections.topovirt.kvm.plugins.module_utils._topology.pci import BDF
from ansible_collections.topovirt.kvm.plugins.module_utils._topology.reserve import (
    Reserve,
    guest_pages,
    housekeeping_cpus,
)

FABRIC_MODELS = ("full_passthrough", "shared_nvswitch", "none")
# What of the fabric goes to the guest with each model: everything, or nothing because the host partitions it.
_FABRIC_ROLES = {"full_passthrough": ("nvswitch", "fabric_bridge"), "shared_nvswitch": (), "none": ()}
# Kernel arguments by the ACPI table that describes the IOMMU. Translation for the host's own devices is switched off
# (pt); an AMD IOMMU is on by default, an Intel one is not in every kernel (kernel-parameters.txt).
_IOMMU_ARGUMENTS = {"dmar": ("intel_iommu=on", "iommu=pt"), "ivrs": ("iommu=pt",)}

PAGE_SIZES = {"2MiB": 2 << 20, "1GiB": 1 << 30}

# ACS (PCI Express Base Specification): source validation, request and completion redirection and upstream forwarding,
# which Linux switches on itself and IOMMU groups rest on (pci_std_enable_acs, REQ_ACS_FLAGS); translation blocking and
# direct translated peer-to-peer are the operator's to choose. Egress control needs a vector, which nobody gives.
_ACS_OF_GROUPS = 0x1D
_ACS_ALLOWED = 0x5F
# What NVIDIA's "Optimizing VM Configuration for Performance of AI Inference" sets on the ports between GPUs and NICs.
_ACS_DEFAULT = 0x5D
_READ_REQUEST_DEFAULT = 4096

CONFIRM_TIMEOUT = 900
# A server that has just answered needs some time until it was verified.
_CONFIRM_TIMEOUT_MIN = 60


@dataclass(frozen=True)
class PcieAcs:
    """What registers between GPUs and NICs shall hold."""

    bits: int  # of ACS control, as far as a port supports them
    ats: bool  # whether address translation is switched on in devices that can
    max_read_request: int  # bytes, of NICs; 0: as it is


@dataclass(frozen=True)
class Wanted:
    """The wanted state, complete and checked for form; whether the host can have it is the guard's question."""

    fabric_model: str
    devices: Dict[str, Optional[str]]  # BDF -> role of everything that guests may own
    arguments: List[str]  # for the kernel command line, the token aside
    page_size_bytes: int
    pages: Dict[int, int]  # per node
    pages_given: bool  # by the operator, not by rule
    housekeeping: Dict[int, str]  # per node, a CPU list
    packages: List[str]
    services: List[str]
    tuned: bool
    erase_ok: List[str]  # serial numbers of NVMe devices whose content may be lost
    tolerate: List[str]  # names of competitors that are no reason to refuse
    pcie_acs: Optional[PcieAcs]  # None: nothing is set
    sriov: Dict[str, int]  # BDF of a physical function -> number of its virtual functions for guests
    confirm_timeout: int  # seconds from a trial boot to the reboot of a host that nobody confirmed

    @property
    def housekeeping_cpus(self) -> List[int]:
        """All CPUs that the host keeps."""
        return sorted(cpu for cpus in self.housekeeping.values() for cpu in parse_cpulist(cpus))


def nothing() -> Wanted:
    """Of a host of which nothing is wanted."""
    return Wanted("none", {}, [], PAGE_SIZES["2MiB"], {}, False, {}, [], [], False, [], [], None, {}, CONFIRM_TIMEOUT)


def resolve(
    given: Mapping[str, Any], topology: Topology, committed: Optional[Mapping[str, Any]], big_pages: bool
) -> Wanted:
    """Complete the operator's wishes.

    :param given: options of ``host_state.wanted``; absent or ``None`` means the default.
    :param committed: ``host.json`` of a converted host. Page counts that follow from a rule stay as they are committed:
        the size of memory that the kernel reports varies a little from boot to boot.
    :param big_pages: the CPU can map pages of 1 GiB.
    :raises TopovirtError: with everything that is wrong.
    """
    errors: List[str] = []
    reserve = Reserve(cores_per_node=given.get("reserve_cores_per_node"))
    if reserve.cores_per_node is not None and reserve.cores_per_node < 1:
        errors.append(
            f"reserve_cores_per_node is {reserve.cores_per_node}: the host needs at least 1 core of each node"
        )
    fabric_model = given.get("fabric_model") or "full_passthrough"
    roles = given.get("passthrough")
    roles = ["gpu", "nic"] if roles is None else list(roles)
    if fabric_model not in FABRIC_MODELS:
        errors.append(f"fabric model {fabric_model!r} is none of {', '.join(FABRIC_MODELS)}")
    fabric = _FABRIC_ROLES.get(fabric_model, ())
    for role in roles:
        if role not in ROLES:
            errors.append(f"passthrough role {role!r} is none of {', '.join(ROLES)}")
        elif role in ("nvswitch", "fabric_bridge") and role not in fabric:
            errors.append(f"passthrough role {role!r}: fabric model {fabric_model!r} keeps it on the host")
    devices = devices_of(given, topology, [*roles, *fabric], errors)
    page_size, pages, pages_given = _pages(given.get("hugepages") or {}, topology, committed, big_pages, errors)
    pcie_acs = pcie_acs_of(given.get("pcie_acs") or {}, errors)
    sriov = _sriov(given.get("sriov") or {}, errors)
    confirm_timeout = confirm_timeout_of(given)
    if confirm_timeout < _CONFIRM_TIMEOUT_MIN:
        errors.append(
            f"confirm_timeout is {confirm_timeout}: a trial boot needs at least {_CONFIRM_TIMEOUT_MIN} seconds to be "
            f"verified"
        )
    if errors:
        raise TopovirtError(f"The wanted state is wrong: {'; '.join(errors)}.", "Correct the kvm_host_* variables.")
    arguments = list(_IOMMU_ARGUMENTS.get(topology["iommu"]["kind"] or "", ()))
    arguments += _page_arguments(page_size, pages)
    arguments += [word for word in given.get("cmdline") or [] if word not in arguments]
    return Wanted(
        fabric_model=fabric_model,
        devices=devices,
        arguments=arguments,
        page_size_bytes=page_size,
        pages=pages,
        pages_given=pages_given,
        housekeeping={
            node: format_cpulist(cpus)
            for node, cpus in sorted(housekeeping_cpus(topology, fabric_model, reserve).items())
        },
        packages=list(given.get("packages") or []),
        services=list(given.get("services") or []),
        tuned=given.get("tuned") is not False,
        erase_ok=[str(serial) for serial in given.get("erase_ok") or []],
        tolerate=list(given.get("tolerate") or []),
        pcie_acs=pcie_acs,
        sriov=sriov,
        confirm_timeout=confirm_timeout,
    )


def confirm_timeout_of(given: Mapping[str, Any]) -> int:
    """Seconds that a trial boot may stay unconfirmed."""
    value = given.get("confirm_timeout")
    return CONFIRM_TIMEOUT if value is None else int(value)


def pcie_acs_of(given: Mapping[str, Any], errors: List[str]) -> Optional[PcieAcs]:
    """Registers that are wanted; what is wrong is added to ``errors``."""
    values = {key: value for key, value in given.items() if value is not None}
    if not values.pop("enabled", False):
        if values:
            errors.append(f"pcie_acs: {', '.join(sorted(values))} is given, but not enabled: true")
        return None
    bits, size = values.get("bits", _ACS_DEFAULT), values.get("max_read_request", _READ_REQUEST_DEFAULT)
    if bits & _ACS_OF_GROUPS != _ACS_OF_GROUPS or bits & ~_ACS_ALLOWED:
        errors.append(
            f"pcie_acs: bits {bits:#04x} must contain {_ACS_OF_GROUPS:#04x}, without which VMs are not kept apart, and "
            f"nothing beyond {_ACS_ALLOWED:#04x}"
        )
    if size and size not in READ_REQUESTS:
        errors.append(f"pcie_acs: max_read_request {size} is none of 0, {', '.join(map(str, READ_REQUESTS))}")
    return PcieAcs(bits, bool(values.get("ats")), size)


def _sriov(given: Mapping[str, Any], errors: List[str]) -> Dict[str, int]:
    found: Dict[str, int] = {}
    for pf, number in given.items():
        if not BDF.match(str(pf).lower()):
            # YAML reads 0000:41:00.0 as the number 2460.0, to the base of 60.
            errors.append(f"sriov: {pf} is no address of a PCI function; in YAML one needs quotes: '0000:41:00.0'")
        elif isinstance(number, bool) or not re.match(r"[1-9]\d*\Z", str(number)):
            errors.append(f"sriov: {pf} has {number!r} virtual functions, which is no number from 1 on")
        elif str(pf).lower() in found:
            errors.append(f"sriov: {pf} is there twice")
        else:
            found[str(pf).lower()] = int(number)
    return found


def _page_arguments(page_size: int, pages: Mapping[int, int]) -> List[str]:
    """Kernel arguments that reserve pages of 1 GiB before anything else takes a piece of them.

    Per node, for kernels from 5.16 on (kernel-parameters.txt, ``hugepages=``). An older kernel ignores the list, and
    the unit of ``hugepages.py`` then asks for all pages later in boot, when memory may already be in pieces. Smaller
    pages are left to the unit: it always finds enough of them.
    """
    counts = [f"{node}:{count}" for node, count in sorted(pages.items()) if count]
    if page_size != PAGE_SIZES["1GiB"] or not counts:
        return []
    return ["hugepagesz=1G", f"hugepages={','.join(counts)}"]


def switches_above(function: PciFunction, by_bdf: Mapping[str, PciFunction]) -> Set[str]:
    """Upstream ports of the PCIe switches that a function lies below."""
    found = set()
    parent = function["parent"]
    while parent is not None and parent in by_bdf:
        if by_bdf[parent]["kind"] == "upstream_port":
            found.add(parent)
        parent = by_bdf[parent]["parent"]
    return found


def devices_of(
    given: Mapping[str, Any], topology: Topology, roles: List[str], errors: List[str]
) -> Dict[str, Optional[str]]:
    """The passthrough set.

    A GPU or a part of the fabric is taken by its role. A NIC or an NVMe device only when it shares a PCIe switch with a
    GPU, as on boards made for that: an on-board adapter or the disk that the host boots from is never meant by a role.
    Devices named one by one come on top, excluded ones go. All functions of a GPU's slot come with it.
    """
    by_bdf = {function["bdf"]: function for function in topology["pci"]}
    endpoints = [f for f in topology["pci"] if f["kind"] == "endpoint" and f["physfn"] is None]
    near = {switch for f in endpoints if f["role"] == "gpu" for switch in switches_above(f, by_bdf)}
    named = {option: [str(bdf).lower() for bdf in given.get(option) or []] for option in ("devices", "exclude")}
    for option, bdfs in named.items():
        for bdf in bdfs:
            if bdf not in by_bdf:
                errors.append(f"{option}: there is no PCI function {bdf} on this host")
            elif by_bdf[bdf]["kind"] != "endpoint" and option == "devices":
                errors.append(f"{option}: {bdf} is a {by_bdf[bdf]['kind'].replace('_', ' ')}, not an endpoint")
    chosen = {
        f["bdf"]
        for f in endpoints
        if f["role"] in roles and (f["role"] not in ("nic", "nvme") or switches_above(f, by_bdf) & near)
    }
    chosen |= {bdf for bdf in named["devices"] if bdf in by_bdf and by_bdf[bdf]["kind"] == "endpoint"}
    chosen -= set(named["exclude"])
    slots = {bdf.rpartition(".")[0] for bdf in chosen if by_bdf[bdf]["role"] == "gpu"}
    chosen |= {f["bdf"] for f in endpoints if f["bdf"].rpartition(".")[0] in slots} - set(named["exclude"])
    return {f["bdf"]: f["role"] for f in endpoints if f["bdf"] in chosen}


def _pages(
    given: Mapping[str, Any],
    topology: Topology,
    committed: Optional[Mapping[str, Any]],
    big_pages: bool,
    errors: List[str],
) -> tuple[int, Dict[int, int], bool]:
    name = given.get("page_size") or ("1GiB" if big_pages else "2MiB")
    if name not in PAGE_SIZES:
        errors.append(f"huge page size {name!r} is none of {', '.join(PAGE_SIZES)}")
        return PAGE_SIZES["2MiB"], {}, False
    size = PAGE_SIZES[name]
    nodes = {node["id"]: node for node in topology["numa_nodes"]}
    per_node = given.get("per_node")
    if per_node is not None:
        pages = counts_per_node(per_node, nodes, errors)
        return size, {node: pages.get(node, 0) for node in nodes}, True
    if committed is not None and committed["hugepages"]["page_size_bytes"] == size:
        kept = {int(node): int(count) for node, count in committed["hugepages"]["per_node"].items()}
        if set(kept) == set(nodes):
            return size, kept, False
    return size, {node: guest_pages(nodes[node]["memory_bytes"], size) for node in nodes}, False


def counts_per_node(given: Mapping[Any, Any], nodes: Collection[int], errors: List[str]) -> Dict[int, int]:
    """Node to number of huge pages, as far as both are numbers and the node is one of the host's."""
    pages: Dict[int, int] = {}
    for key, value in given.items():
        if not re.match(r"\d+\Z", str(key)) or int(key) not in nodes:
            errors.append(f"huge pages: there is no NUMA node {key}")
        elif isinstance(value, bool) or not re.match(r"\d+\Z", str(value)):
            errors.append(f"huge pages: node {key} has count {value!r}, which is not a number")
        else:
            pages[int(key)] = int(value)
    return pages
