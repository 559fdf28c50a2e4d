# Copyright: the topovirt.kvm authors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""CPUs, NUMA nodes, the running system and its IOMMU."""

from __future__ import annotations

import re
from collections import Counter
from typing import Dict, List, Optional

from ansible_collections.topovirt.kvm.plugins.module_utils._errors import TopovirtError
from ansible_collections.topovirt.kvm.plugins.module_utils._topology.cpulist import format_cpulist, parse_cpulist
from ansible_collections.topovirt.kvm.plugins.module_utils._topology.gaps import Gaps
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
LOCKDOWN = "sys/kernel/security/lockdown"
# UEFI specification, "Globally Defined Variables"; the first four bytes are the attributes that efivarfs puts there.
EFI_VARIABLES = "sys/firmware/efi/efivars"
SECURE_BOOT = f"{EFI_VARIABLES}/SecureBoot-8be4df61-93ca-11d2-aa0d-00e098032b8c"
_SECURE_BOOT_BYTES = 5

_DISTANCE = re.compile(r"[0-9]{1,3}\Z")  # a byte each in ACPI SLIT

# Where the first CPU's paragraph surely ends; the rest of cpuinfo repeats it for every CPU and is slow to make.
_CPUINFO_BYTES = 16384
_CMDLINE_BYTES = 65536


def read_nodes(tree: Tree, gaps: Gaps) -> List[Node]:
    """NUMA nodes, ascending by id, those without CPUs or without memory included."""
    ids = sorted(int(name[4:]) for name in tree.names(NODES) if re.match(r"node\d+\Z", name))
    nodes: List[Node] = []
    for node_id in ids:
        path = f"{NODES}/node{node_id}"
        memory = re.search(r"MemTotal:\s+(\d+) kB", tree.text(f"{path}/meminfo") or "")
        if memory is None:
            gaps.add("memory_bytes", f"{path}/meminfo does not say MemTotal", f"node {node_id}")
        distances = (tree.text(f"{path}/distance") or "").split()
        if not all(map(_DISTANCE.match, distances)):
            gaps.add("distances", f"{path}/distance holds more than numbers", f"node {node_id}")
            distances = []
        nodes.append(
            Node(
                id=node_id,
                cpus=format_cpulist(parse_cpulist(tree.text(f"{path}/cpulist") or "")),
                memory_bytes=int(memory.group(1)) * 1024 if memory else None,
                # The kernel lists the distances of the online nodes only, in the order of their ids.
                distances={str(other): int(value) for other, value in zip(ids, distances)},
                hugepages=_huge_pages(tree, f"{path}/hugepages", f"node {node_id}", gaps),
            )
        )
    return nodes


def _huge_pages(tree: Tree, path: str, node: str, gaps: Gaps) -> Dict[str, HugePages]:
    result: Dict[str, HugePages] = {}
    for name in tree.names(path):
        size = re.match(r"hugepages-(\d+)kB\Z", name)
        if not size:
            continue
        total, free = (tree.number(f"{path}/{name}/{file}") for file in ("nr_hugepages", "free_hugepages"))
        if total is None or free is None or min(total, free) < 0:
            gaps.add("hugepages", f"the counts of {name} are missing or no numbers", node)
        else:
            result[size.group(1)] = HugePages(total=total, free=free)
    return result


def read_cores(tree: Tree, nodes: List[Node], gaps: Gaps) -> List[Core]:
    """Physical cores with their online threads, ascending by first thread."""
    claims: Dict[int, List[int]] = {}
    for node in nodes:
        for cpu in parse_cpulist(node["cpus"]):
            claims.setdefault(cpu, []).append(node["id"])
    cores: List[Core] = []
    seen = set()
    packages = _Shared(tree, "physical_package_id", "core_siblings_list")
    dies = _Shared(tree, "die_id", "die_cpus_list")
    caches: Dict[int, int] = {}
    for cpu in parse_cpulist(tree.text(f"{CPUS}/online") or ""):
        if cpu in seen:
            continue
        path = f"{CPUS}/cpu{cpu}"
        threads = parse_cpulist(tree.text(f"{path}/topology/thread_siblings_list") or "") or [cpu]
        seen.update(threads)
        # Firmware exists that lists a CPU in several nodes: then its node is unknown.
        node_ids = claims.get(cpu, [])
        if len(node_ids) > 1:
            gaps.add("node", f"nodes {', '.join(map(str, node_ids))} all list the CPU", f"cpu {cpu}")
        package, core = packages.number(cpu), _known(tree.number(f"{path}/topology/core_id"))
        for fact, number, file in (("package", package, "physical_package_id"), ("core", core, "core_id")):
            if number is None:
                gaps.add(fact, f"topology/{file} of the CPU is missing or no number", f"cpu {cpu}")
        cores.append(
            Core(
                package=package,
                die=dies.number(cpu),  # no gap: before Linux 5.2 there are none
                core=core,
                node=node_ids[0] if len(node_ids) == 1 else None,
                l3=_l3(tree, cpu, caches),
                threads=threads,
            )
        )
    return cores


def _known(number: Optional[int]) -> Optional[int]:
    """Negative is what the kernel shows for "unknown"."""
    return None if number is None or number < 0 else number


class _Shared:
    """A number that CPUs have in common: read once for all that the kernel lists as having the same
    (https://docs.kernel.org/admin-guide/cputopology.html)."""

    def __init__(self, tree: Tree, file: str, members: str) -> None:
        self._tree = tree
        self._file = file
        self._members = members
        self._numbers: Dict[int, int] = {}

    def number(self, cpu: int) -> Optional[int]:
        if cpu in self._numbers:
            return self._numbers[cpu]
        path = f"{CPUS}/cpu{cpu}/topology"
        number = _known(self._tree.number(f"{path}/{self._file}"))
        if number is not None:
            try:
                members = parse_cpulist(self._tree.text(f"{path}/{self._members}") or "")
            except TopovirtError:
                members = []  # then each of them is asked
            self._numbers.update(dict.fromkeys(members, number))
        return number


def _l3(tree: Tree, cpu: int, caches: Dict[int, int]) -> Optional[int]:
    """The L3 cache, which x86 kernels always present as index 3, named by the first CPU that shares it. Its id names it
    where there is no list: Linux keeps one id for an AMD cache that it does not let span nodes.

    :param caches: what is known, CPU -> cache; it learns of all CPUs that share this one.
    """
    if cpu in caches:
        return caches[cpu]
    path = f"{CPUS}/cpu{cpu}/cache/index3"
    shared = parse_cpulist(tree.text(f"{path}/shared_cpu_list") or "")
    if shared:
        caches.update(dict.fromkeys(shared, shared[0]))
        return shared[0]
    return _known(tree.number(f"{path}/id"))


def read_host(tree: Tree, gaps: Gaps) -> Host:
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
        isolated_cpus=_cpu_set(tree, "isolated", gaps),
        nohz_full_cpus=_cpu_set(tree, "nohz_full", gaps),
        secure_boot=_secure_boot(tree, firmware, gaps),
        lockdown=_lockdown(tree, gaps),
    )


def _cpu_set(tree: Tree, name: str, gaps: Gaps) -> Optional[str]:
    """A set of CPUs; kernels without the feature have no file, and some write "(null)" for none."""
    text = tree.text(f"{CPUS}/{name}") or ""
    try:
        return "" if text == "(null)" else format_cpulist(parse_cpulist(text))
    except TopovirtError as error:
        gaps.add(f"{name}_cpus", str(error))
        return None


def _secure_boot(tree: Tree, firmware: Optional[str], gaps: Gaps) -> Optional[bool]:
    variables = tree.names(EFI_VARIABLES)
    if firmware == "bios" or (variables and SECURE_BOOT.rpartition("/")[2] not in variables):
        return False  # a firmware without the variable cannot do it
    data = tree.raw(SECURE_BOOT, _SECURE_BOOT_BYTES)
    if data is None or len(data) < _SECURE_BOOT_BYTES:
        gaps.add("secure_boot", "the firmware's variable SecureBoot is not readable: is efivarfs mounted?")
        return None
    return data[-1] == 1


def _lockdown(tree: Tree, gaps: Gaps) -> Optional[str]:
    text = tree.text(LOCKDOWN)
    chosen = re.search(r"\[(\w+)\]", text or "")
    if chosen is not None:
        return chosen.group(1)
    if text is not None:
        gaps.add("lockdown", f"/{LOCKDOWN} says {text[:80]!r}")
    elif not tree.exists(LOCKDOWN.rpartition("/")[0]):
        gaps.add("lockdown", "securityfs is not mounted")
    return None


def _number(text: Optional[str]) -> Optional[int]:
    return int(text) if text is not None and text.isdecimal() else None


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
