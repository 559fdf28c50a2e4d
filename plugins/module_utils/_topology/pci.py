# Copyright: the topovirt.kvm authors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""PCI functions as sysfs presents them: place in the tree, NUMA node, BARs, link, driver, IOMMU group."""

from __future__ import annotations

import re
from typing import Dict, FrozenSet, List, NamedTuple, Optional, Tuple

from ansible_collections.topovirt.kvm.plugins.module_utils._topology.config_space import (
    Config,
    needed_bytes,
    read_config,
)
from ansible_collections.topovirt.kvm.plugins.module_utils._topology.cpulist import parse_cpulist
from ansible_collections.topovirt.kvm.plugins.module_utils._topology.gaps import Gaps
from ansible_collections.topovirt.kvm.plugins.module_utils._topology.model import (
    Bar,
    Capabilities,
    Link,
    Node,
    PciFunction,
    SrIov,
)
from ansible_collections.topovirt.kvm.plugins.module_utils._topology.sysfs import Tree

DEVICES = "sys/bus/pci/devices"

# Domains can have more than four digits (VMD, virtual machines of one cloud): 10000:00:04.0.
BDF = re.compile(r"[0-9a-f]{4,8}:[0-9a-f]{2}:[0-9a-f]{2}\.[0-7]\Z")
_ROOT_BUS = re.compile(r"pci([0-9a-f]{4,8}:[0-9a-f]{2})\Z")

# Flags of a resource line (include/linux/ioport.h).
_RESOURCE_MEMORY = 0x200
_RESOURCE_PREFETCH = 0x2000
_RESOURCE_64BIT = 0x100000
_ROM_INDEX = 6

_BRIDGE_CLASSES = ("0604", "0609")  # PCI-to-PCI bridges (PCI Code and ID Assignment Specification)

# What the kernel tells of a function at once: dev_uevent() of drivers/base/core.c and pci_uevent() of
# drivers/pci/pci-driver.c, which write these lines one after the other.
_UEVENT = re.compile(
    r"^PCI_CLASS=([0-9A-F]{4,6})\nPCI_ID=([0-9A-F]{4}):([0-9A-F]{4})\n"
    r"PCI_SUBSYS_ID=([0-9A-F]{4}):([0-9A-F]{4})\nPCI_SLOT_NAME=(\S+)$",
    re.MULTILINE,
)
_UEVENT_DRIVER = re.compile(r"^DRIVER=([^\s/]+)$", re.MULTILINE)

_HEXADECIMAL = re.compile(r"0[xX]([0-9A-Fa-f]{1,6})\Z")
_SPEED = re.compile(r"(\d+(?:\.\d+)?) GT/s")

_NO_NODE = "neither the function nor a bridge above nor its root bus names a node of this machine"

# What PCI Express defines; firmware and dead devices also report 0, 63 and 255.
_LINK_WIDTHS = ("1", "2", "4", "8", "12", "16", "32")

# Linux's names (drivers/pci/pci.c); it also says "error" and "unknown".
_POWER_STATES = ("D0", "D1", "D2", "D3hot", "D3cold")

# With multipathing, path 1 of namespace 2 of subsystem 0 is nvme0c1n2; the disk that one uses is nvme0n2.
_NVME_PATH = re.compile(r"(nvme\d+)c\d+(n\d+)\Z")

# Directories of links to what drivers make of functions; partitions have no place of their own in sys/block.
_CHILD_CLASSES = ("sys/class/net", "sys/class/infiniband", "sys/block")


class _Place(NamedTuple):
    """Where a function is, from its path below ``sys/devices``."""

    bdf: str
    path: str
    host_bridge: str
    root_path: str
    ancestors: Tuple[str, ...]  # functions above it, nearest first, also beyond a host bridge that is itself a function
    parent: Optional[str]


class _Identity(NamedTuple):
    """What a function is by its numbers, and who drives it."""

    class_code: str
    vendor: str
    device: str
    subsystem: Optional[str]
    driver: Optional[str]


class _Raw(NamedTuple):
    """What the first pass reads and only the second one can judge."""

    entries: FrozenSet[str]  # names of the function's files
    node: Optional[int]
    express: bool
    config: Optional[Config]  # None where it is not worth a read: a conventional endpoint


def bdf_key(bdf: str) -> Tuple[int, int, int, int]:
    """Order of BDFs: by number, for domains differ in length."""
    domain, bus, rest = bdf.split(":")
    device, function = rest.split(".")
    return int(domain, 16), int(bus, 16), int(device, 16), int(function)


def read_functions(tree: Tree, nodes: List[Node], gaps: Gaps) -> Tuple[List[PciFunction], Dict[str, str]]:
    """All PCI functions, ascending by BDF, and the path of each below the root.

    Roles, uses and module ids are not known here: they are ``None`` and empty.
    """
    listed = tree.entries(DEVICES)
    places = sorted(filter(None, (_place(tree, name, listed) for name in listed)), key=lambda p: bdf_key(p.bdf))
    parents = {place.parent for place in places}
    names = _children_names(tree)
    functions: Dict[str, PciFunction] = {}
    raw: Dict[str, _Raw] = {}
    for place in places:
        functions[place.bdf], raw[place.bdf] = _read(tree, place, place.bdf in parents, gaps)
    buses: Dict[str, Optional[int]] = {}
    for place in sorted(places, key=lambda p: len(p.ancestors)):
        function = functions[place.bdf]
        above = functions[place.parent]["kind"] if place.parent in functions else None
        function["kind"] = _kind(raw[place.bdf], function["kind"] == "bridge", above)
        if function["kind"] == "endpoint":
            _complete(tree, place, function, raw[place.bdf].entries, names.get(place.bdf, []), gaps)
        _locate(tree, place, function, raw, nodes, buses)
    for function in functions.values():
        if function["numa_node"] is None and len(nodes) > 1:
            gaps.add("numa_node", _NO_NODE, function["bdf"])
    return list(functions.values()), {place.bdf: place.path for place in places}


def needed_config(tree: Tree, functions: List[PciFunction]) -> Dict[str, bytes]:
    """Path below the root -> what of it is read, of the configuration space of every function that has one read."""
    result: Dict[str, bytes] = {}
    for function in functions:
        place = _place(tree, function["bdf"], frozenset())
        if place is None:
            continue
        express = tree.exists(f"{place.path}/max_link_speed")
        if express or function["kind"] != "endpoint" or function["class"].startswith(_BRIDGE_CLASSES):
            data = needed_bytes(tree, place.path, express)
            if data is not None:
                result[f"{place.path}/config"] = data
    return result


def _place(tree: Tree, name: str, listed: FrozenSet[str]) -> Optional[_Place]:
    target = tree.link(f"{DEVICES}/{name}")
    if target is None or not BDF.match(name):
        return None
    parts = [part for part in target.split("/") if part not in ("", ".", "..")]
    root = max((index for index, part in enumerate(parts) if _ROOT_BUS.match(part)), default=None)
    if parts[:1] != ["devices"] or parts[-1] != name or root is None:
        return None
    above = [part for part in parts[:-1] if BDF.match(part)][::-1]
    return _Place(
        bdf=name,
        path="/".join(["sys", *parts]),
        host_bridge=parts[root][len("pci") :],
        root_path="/".join(["sys", *parts[: root + 1]]),
        ancestors=tuple(above),
        # A bridge that is on the path but not listed (being removed, or left out of a recording) cannot be a parent.
        parent=next((part for part in parts[-2:root:-1] if part in listed), None),
    )


def _children_names(tree: Tree) -> Dict[str, List[str]]:
    """Network interfaces, RDMA devices and disks by the function that carries them."""
    result: Dict[str, List[str]] = {}
    for directory in _CHILD_CLASSES:
        for name in tree.names(directory):
            target = tree.link(f"{directory}/{name}") or ""
            owner = next((part for part in target.split("/")[::-1] if BDF.match(part)), None)
            if owner is not None:
                result.setdefault(owner, []).append(_NVME_PATH.sub(r"\1\2", name))
    return result


def _read(tree: Tree, place: _Place, is_parent: bool, gaps: Gaps) -> Tuple[PciFunction, _Raw]:
    path = place.path
    entries = tree.entries(path)
    identity = _told(tree, place, entries) or _asked(tree, place, entries, gaps)
    bridge = is_parent or identity.class_code.startswith(_BRIDGE_CLASSES)
    express = "max_link_speed" in entries
    config = read_config(tree, path, express) if bridge or express else None
    if config is not None and config.reason is not None:
        gaps.add("capabilities", config.reason, place.bdf)
    group = tree.link_name(f"{path}/iommu_group") if "iommu_group" in entries else None
    node = tree.number(f"{path}/numa_node")
    function: PciFunction = {
        "bdf": place.bdf,
        "kind": "bridge" if bridge else "endpoint",
        "role": None,
        "class": identity.class_code,
        "vendor": identity.vendor,
        "device": identity.device,
        "subsystem": identity.subsystem,
        "parent": place.parent,
        "host_bridge": place.host_bridge,
        "numa_node": None,
        "numa_source": None,
        "driver": identity.driver,
        "iommu_group": int(group) if group is not None and group.isdecimal() else None,
        "link": _link(tree, place, gaps) if express else Link(max_gtps=None, max_width=None),
        "capabilities": _capabilities(tree, place, entries, config, gaps),
        "in_use": [],
    }
    return function, _Raw(
        entries=entries, node=node if node is not None and node >= 0 else None, express=express, config=config
    )


def _told(tree: Tree, place: _Place, entries: FrozenSet[str]) -> Optional[_Identity]:
    """The identity as ``uevent`` tells it, which saves a read for each number of it.

    None unless it tells all and of this very function: there are recordings whose directories are copies under another
    name. Then nothing of it counts, so that no numbers are put together from two sources. A driver counts only where
    its link is, too; where one of both is missing the link is right.
    """
    text = tree.text(f"{place.path}/uevent") if "uevent" in entries else None
    found = _UEVENT.search(text or "")
    if text is None or found is None or found.group(6) != place.bdf:
        return None
    class_code, vendor, device, subsystem_vendor, subsystem_device = (word.lower() for word in found.groups()[:5])
    driver = _UEVENT_DRIVER.search(text) if "driver" in entries else None
    return _Identity(
        class_code=class_code.zfill(6),
        vendor=vendor,
        device=device,
        subsystem=_subsystem(subsystem_vendor, subsystem_device),
        driver=driver.group(1) if driver else _linked_driver(tree, place.path, entries),
    )


def _asked(tree: Tree, place: _Place, entries: FrozenSet[str], gaps: Gaps) -> _Identity:
    """The identity from a file for each number and the driver's link."""
    path = place.path
    subsystem = None
    if "subsystem_vendor" in entries:
        names = ("subsystem_vendor", "subsystem_device")
        subsystem = _subsystem(*(_identifier(tree.text(f"{path}/{name}"), 4) for name in names))
    return _Identity(
        class_code=_number(tree, place, "class", 6, gaps),
        vendor=_number(tree, place, "vendor", 4, gaps),
        device=_number(tree, place, "device", 4, gaps),
        subsystem=subsystem,
        driver=_linked_driver(tree, path, entries),
    )


def _linked_driver(tree: Tree, path: str, entries: FrozenSet[str]) -> Optional[str]:
    return tree.link_name(f"{path}/driver") if "driver" in entries else None


def _subsystem(vendor: Optional[str], device: Optional[str]) -> Optional[str]:
    # Zero is what the kernel shows for "none" (bridges without the subsystem capability).
    return None if vendor in (None, "0000") or device is None else f"{vendor}:{device}"


def _complete(
    tree: Tree, place: _Place, function: PciFunction, entries: FrozenSet[str], names: List[str], gaps: Gaps
) -> None:
    """Add what only endpoints have; roles' part of it is filled in later."""
    path = place.path
    override = tree.text(f"{path}/driver_override") if "driver_override" in entries else None
    methods = tree.text(f"{path}/reset_method") if "reset_method" in entries else None
    function["driver_override"] = None if override in ("", "(null)") else override
    function["bars"] = _bars(tree.text(f"{path}/resource") or "")
    function["reset_methods"] = (methods or "").split()
    function["power_state"] = _power_state(tree, place, entries, gaps)
    function["physfn"] = tree.link_name(f"{path}/physfn") if "physfn" in entries else None
    function["names"] = sorted(set(names))
    function["vm"] = None
    function["module_id"] = None


def _capabilities(
    tree: Tree, place: _Place, entries: FrozenSet[str], config: Optional[Config], gaps: Gaps
) -> Optional[Capabilities]:
    path = place.path
    found = Capabilities() if config is None else config.capabilities
    if found is not None and "sriov_totalvfs" in entries:
        total, enabled = (tree.number(f"{path}/{file}") for file in ("sriov_totalvfs", "sriov_numvfs"))
        if total is None or enabled is None or min(total, enabled) < 0:
            gaps.add("capabilities", "the kernel's counts of virtual functions are no numbers", place.bdf)
            return None
        found["sriov"] = SrIov(total=total, enabled=enabled)
    return found


def _power_state(tree: Tree, place: _Place, entries: FrozenSet[str], gaps: Gaps) -> Optional[str]:
    state = tree.text(f"{place.path}/power_state") if "power_state" in entries else None
    if state in _POWER_STATES:
        return state
    reason = "this kernel does not tell it (Linux 5.12 and newer do)" if state is None else f"the kernel says {state!r}"
    gaps.add("power_state", reason, place.bdf)
    return None


def _identifier(text: Optional[str], digits: int) -> Optional[str]:
    """``0x10DE`` as ``10de``."""
    found = _HEXADECIMAL.match(text or "")
    return found.group(1).lower().zfill(digits) if found and len(found.group(1)) <= digits else None


def _number(tree: Tree, place: _Place, fact: str, digits: int, gaps: Gaps) -> str:
    """A number that every function has; zeros, which no function has, when it cannot be read."""
    text = tree.text(f"{place.path}/{fact}")
    value = _identifier(text, digits)
    if value is None:
        gaps.add(fact, f"the kernel says {text!r}; zeros stand for it", place.bdf)
    return value or "0" * digits


def _link(tree: Tree, place: _Place, gaps: Gaps) -> Link:
    speed_text = tree.text(f"{place.path}/max_link_speed")
    width_text = tree.text(f"{place.path}/max_link_width")
    speed = _SPEED.match(speed_text or "")
    width = int(width_text) if width_text in _LINK_WIDTHS else None
    if speed is None or width is None:
        gaps.add("link", f"the kernel says speed {speed_text!r} and width {width_text!r}", place.bdf)
    return Link(max_gtps=float(speed.group(1)) if speed else None, max_width=width)


def _bars(text: str) -> List[Bar]:
    """Memory BARs and the expansion ROM from ``resource``: one line of start, end and flags for each."""
    bars: List[Bar] = []
    for index, line in enumerate(text.splitlines()[: _ROM_INDEX + 1]):
        try:
            start, end, flags = line.split()
            kind = int(flags, 16)
            size = int(end, 16) - int(start, 16) + 1 if kind & _RESOURCE_MEMORY else 0
        except ValueError:
            continue
        if size > 1:
            bars.append(
                Bar(
                    index=index,
                    size_bytes=size,
                    is_64bit=bool(kind & _RESOURCE_64BIT),
                    prefetchable=bool(kind & _RESOURCE_PREFETCH),
                )
            )
    return bars


def _kind(raw: _Raw, bridge: bool, parent_kind: Optional[str]) -> str:
    """What a function is. A port whose capability is unreadable is told by its place, which PCI Express fixes:
    a port on the root bus is a root port, below an upstream port there are only downstream ports, and a bridge
    below a root or downstream port begins a switch (or a PCI bus, which is one more bridge to cross just as well)."""
    if not bridge or raw.config is None or raw.config.is_bridge is False:
        return "endpoint"
    if raw.config.port_kind is not None:
        return raw.config.port_kind
    if not raw.express:
        return "bridge"
    if parent_kind is None:
        return "root_port"
    return "downstream_port" if parent_kind == "upstream_port" else "upstream_port"


def _locate(
    tree: Tree,
    place: _Place,
    function: PciFunction,
    raw: Dict[str, _Raw],
    nodes: List[Node],
    buses: Dict[str, Optional[int]],
) -> None:
    """The NUMA node: its own, else the nearest ancestor's, else the root bus's, else unknown. A node that the machine
    does not have is no knowledge; without any node listed (a kernel without NUMA) what the function says counts."""
    numbers = {node["id"] for node in nodes}
    for bdf in (place.bdf, *place.ancestors):
        node = raw[bdf].node if bdf in raw else None
        if node is not None and (node in numbers or not numbers):
            function["numa_node"] = node
            function["numa_source"] = "own" if bdf == place.bdf else bdf
            return
    bus = place.host_bridge
    if bus not in buses:
        buses[bus] = _bus_node(tree.text(f"{place.root_path}/pci_bus/{bus}/cpulistaffinity"), nodes)
    function["numa_node"] = buses[bus]
    function["numa_source"] = None if buses[bus] is None else bus


def _bus_node(affinity: Optional[str], nodes: List[Node]) -> Optional[int]:
    """The node whose CPUs are exactly the bus's. The kernel shows all CPUs when it does not know the node, so with
    one node with CPUs the list says nothing."""
    populated = [node for node in nodes if node["cpus"]]
    if not affinity or len(populated) < 2:
        return None
    cpus = parse_cpulist(affinity)
    matches = [node["id"] for node in populated if parse_cpulist(node["cpus"]) == cpus]
    return matches[0] if len(matches) == 1 else None
