# Copyright: the topovirt.kvm authors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""CPUs, NUMA nodes, the running system and its IOMMU."""

from __future__ import annotations

import re
from collections import Counter
from typing import Dict, List, Optional

from ansible_collections.topovirt.kvm.plugins.module_utils._topology.cpulist import format_cpulist, parse_cpulist
from ansible_collections.topovirt.kvm.plugins.module_utils._topology.model import (
    Core,
    Host,
    HugePages,
    Iommu,
    Node,
    PciFunction,
)
from ansible_collections.topovirt.kvm.plugins.module_utils._topology.sysfs import Tree

CPUS = "sys/devices/system/cpu"
NODES = "sys/devices/system/node"
IOMMU_GROUPS = "sys/kernel/iommu_groups"
ACPI_TABLES = "sys/firmware/acpi/tables"

# Where the first CPU's paragraph surely ends; the rest of cpuinfo repeats it for every CPU and is slow to make.
_CPUINFO_BYTES = 16384
_CMDLINE_BYTES = 65536


def read_nodes(tree: Tree) -> List[Node]:
    """NUMA nodes, ascending by id, those without CPUs or without memory included."""
    ids = sorted(int(name[4:]) for name in tree.names(NODES) if re.match(r"node\d+\Z", name))
    nodes: List[Node] = []
    for node_id in ids:
        path = f"{NODES}/node{node_id}"
        memory = re.search(r"MemTotal:\s+(\d+) kB", tree.text(f"{path}/meminfo") or "")
        distances = (tree.text(f"{path}/distance") or "").split()
        nodes.append(
            Node(
                id=node_id,
                cpus=format_cpulist(parse_cpulist(tree.text(f"{path}/cpulist") or "")),
                memory_bytes=int(memory.group(1)) * 1024 if memory else 0,
                # The kernel lists the distances of the online nodes only, in the order of their ids.
                distances={str(other): int(value) for other, value in zip(ids, distances)},
                hugepages=_huge_pages(tree, f"{path}/hugepages"),
            )
        )
    return nodes


def _huge_pages(tree: Tree, path: str) -> Dict[str, HugePages]:
    result: Dict[str, HugePages] = {}
    for name in tree.names(path):
        size = re.match(r"hugepages-(\d+)kB\Z", name)
        if size:
            result[size.group(1)] = HugePages(
                total=tree.number(f"{path}/{name}/nr_hugepages") or 0,
                free=tree.number(f"{path}/{name}/free_hugepages") or 0,
            )
    return result


def read_cores(tree: Tree, nodes: List[Node]) -> List[Core]:
    """Physical cores with their online threads, ascending by first thread."""
    claims: Dict[int, List[int]] = {}
    for node in nodes:
        for cpu in parse_cpulist(node["cpus"]):
            claims.setdefault(cpu, []).append(node["id"])
    cores: List[Core] = []
    seen = set()
    for cpu in parse_cpulist(tree.text(f"{CPUS}/online") or ""):
        if cpu in seen:
            continue
        path = f"{CPUS}/cpu{cpu}"
        threads = parse_cpulist(tree.text(f"{path}/topology/thread_siblings_list") or "") or [cpu]
        seen.update(threads)
        # Firmware exists that lists a CPU in several nodes: then its node is unknown.
        node_ids = claims.get(cpu, [])
        cores.append(
            Core(
                package=tree.number(f"{path}/topology/physical_package_id") or 0,
                die=tree.number(f"{path}/topology/die_id") or 0,  # absent before Linux 5.2, where a package is a die
                core=tree.number(f"{path}/topology/core_id") or 0,
                node=node_ids[0] if len(node_ids) == 1 else None,
                l3=_l3(tree, path),
                threads=threads,
            )
        )
    return cores


def _l3(tree: Tree, path: str) -> Optional[int]:
    """Id of the L3 cache, which x86 kernels always present as index 3; without an id its first CPU names it."""
    own = tree.number(f"{path}/cache/index3/id")
    if own is not None:
        return own
    return next(iter(parse_cpulist(tree.text(f"{path}/cache/index3/shared_cpu_list") or "")), None)


def read_host(tree: Tree) -> Host:
    """The running system."""
    cpu = _first_cpu(tree)
    flags = cpu.get("flags", "").split()
    release = _os_release(tree)
    bits = re.match(r"(\d+) bits physical", cpu.get("address sizes", ""))
    firmware = None
    if tree.exists("sys/firmware"):
        firmware = "uefi" if tree.exists("sys/firmware/efi") else "bios"
    return Host(
        kernel=tree.text("proc/sys/kernel/osrelease") or "",
        # Linux tells its architecture in a file since 6.1; before that the long-mode flag does.
        arch=tree.text("proc/sys/kernel/arch") or ("x86_64" if "lm" in flags else ""),
        cmdline=(tree.raw("proc/cmdline", _CMDLINE_BYTES) or b"").decode("utf-8", "replace").strip(),
        boot_id=tree.text("proc/sys/kernel/random/boot_id"),
        firmware=firmware,
        os_id=release.get("ID"),
        os_version=release.get("VERSION_ID"),
        cpu_vendor=cpu.get("vendor_id"),
        cpu_family=_number(cpu.get("cpu family")),
        cpu_model=_number(cpu.get("model")),
        cpu_model_name=cpu.get("model name"),
        virtualization=next((flag for flag in ("vmx", "svm") if flag in flags), None),
        phys_bits=int(bits.group(1)) if bits else None,
    )


def _number(text: Optional[str]) -> Optional[int]:
    return int(text) if text is not None and text.isdigit() else None


def _first_cpu(tree: Tree) -> Dict[str, str]:
    text = (tree.raw("proc/cpuinfo", _CPUINFO_BYTES) or b"").decode("utf-8", "replace").split("\n\n", 1)[0]
    pairs = (line.partition(":") for line in text.splitlines())
    return {key.strip(): value.strip() for key, _colon, value in pairs}


def _os_release(tree: Tree) -> Dict[str, str]:
    """os-release(5): the first of the two files that exists."""
    text = next(filter(None, (tree.text(path) for path in ("etc/os-release", "usr/lib/os-release"))), "")
    pairs = (line.partition("=") for line in text.splitlines())
    return {key.strip(): value.strip().strip("\"'") for key, _equals, value in pairs}


def read_iommu(tree: Tree, functions: List[PciFunction]) -> Iommu:
    """The IOMMU as firmware (ACPI tables) and kernel (groups) present it."""
    groups = tree.names(IOMMU_GROUPS)
    endpoints = Counter(
        function["iommu_group"]
        for function in functions
        if function["kind"] == "endpoint" and function["iommu_group"] is not None
    )
    types: Dict[str, int] = {}
    for group, count in sorted(endpoints.items()):
        domain = tree.text(f"{IOMMU_GROUPS}/{group}/type")
        if domain:
            types[domain] = types.get(domain, 0) + count
    return Iommu(
        kind=next((table.lower() for table in ("DMAR", "IVRS") if tree.exists(f"{ACPI_TABLES}/{table}")), None),
        active=bool(groups),
        default_domain=max(types, key=lambda domain: (types[domain], domain)) if types else None,
        groups=len(groups),
    )
