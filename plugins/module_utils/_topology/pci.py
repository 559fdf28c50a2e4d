# Copyright: the topovirt.kvm authors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""PCI functions as sysfs presents them: place in the tree, NUMA node, BARs, link, driver, IOMMU group."""

from __future__ import annotations

import os
import re
from typing import Dict, FrozenSet, List, NamedTuple, Optional, Tuple

from ansible_collections.topovirt.kvm.plugins.module_utils._topology.cpulist import parse_cpulist
from ansible_collections.topovirt.kvm.plugins.module_utils._topology.model import Bar, Link, Node, PciFunction
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

# Offsets and values of the configuration header (PCI Local Bus Specification 3.0, 6.1) and of the PCI Express
# capability (PCI Express Base Specification, "Device/Port Type").
_HEADER_BYTES = 64
_STATUS, _STATUS_CAPABILITIES = 0x06, 0x10
_HEADER_TYPE, _HEADER_TYPE_MASK, _HEADER_BRIDGE = 0x0E, 0x7F, 1
_CAPABILITIES = 0x34
_CAPABILITY_PCI_EXPRESS = 0x10
_MAX_CAPABILITIES = 48  # as many as fit between the header and byte 256
_PORT_KINDS = {4: "root_port", 5: "upstream_port", 6: "downstream_port"}

_BRIDGE_CLASSES = ("0604", "0609")  # PCI-to-PCI bridges (PCI Code and ID Assignment Specification)

# What PCI Express defines; firmware and dead devices also report 0, 63 and 255.
_LINK_WIDTHS = (1, 2, 4, 8, 12, 16, 32)

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


class _Raw(NamedTuple):
    """What the first pass reads and only the second one can judge."""

    node: Optional[int]
    pcie: bool
    header_is_bridge: Optional[bool]
    port_type: Optional[str]


def bdf_key(bdf: str) -> Tuple[int, int, int, int]:
    """Order of BDFs: by number, for domains differ in length."""
    domain, bus, rest = bdf.split(":")
    device, function = rest.split(".")
    return int(domain, 16), int(bus, 16), int(device, 16), int(function)


def read_functions(tree: Tree, nodes: List[Node]) -> Tuple[List[PciFunction], Dict[str, str]]:
    """All PCI functions, ascending by BDF, and the path of each below the root.

    Roles, uses and module ids are not known here: they are ``None`` and empty.
    """
    listed = frozenset(tree.names(DEVICES))
    places = sorted(filter(None, (_place(tree, name, listed) for name in listed)), key=lambda p: bdf_key(p.bdf))
    parents = {place.parent for place in places}
    names = _children_names(tree)
    functions: Dict[str, PciFunction] = {}
    raw: Dict[str, _Raw] = {}
    for place in places:
        functions[place.bdf], raw[place.bdf] = _read(tree, place, place.bdf in parents, names.get(place.bdf, []))
    buses: Dict[str, Optional[int]] = {}
    for place in sorted(places, key=lambda p: len(p.ancestors)):
        function = functions[place.bdf]
        above = functions[place.parent]["kind"] if place.parent in functions else None
        function["kind"] = _kind(raw[place.bdf], function["kind"] == "bridge", above)
        if function["kind"] == "endpoint":
            function["bars"] = _bars(tree.text(f"{place.path}/resource") or "")
        _locate(tree, place, function, raw, nodes, buses)
    return list(functions.values()), {place.bdf: place.path for place in places}


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


def _read(tree: Tree, place: _Place, is_parent: bool, names: List[str]) -> Tuple[PciFunction, _Raw]:
    path = place.path
    entries = frozenset(tree.names(path))
    class_code = _identifier(tree.text(f"{path}/class"), 6) or "000000"
    bridge = is_parent or class_code.startswith(_BRIDGE_CLASSES)
    subsystem_vendor = _identifier(tree.text(f"{path}/subsystem_vendor"), 4)
    group = tree.link_name(f"{path}/iommu_group") if "iommu_group" in entries else None
    override = tree.text(f"{path}/driver_override") if "driver_override" in entries else None
    node = tree.number(f"{path}/numa_node")
    methods = tree.text(f"{path}/reset_method") if "reset_method" in entries else None
    function = PciFunction(
        bdf=place.bdf,
        kind="bridge" if bridge else "endpoint",
        role=None,
        class_code=class_code,
        vendor=_identifier(tree.text(f"{path}/vendor"), 4) or "0000",
        device=_identifier(tree.text(f"{path}/device"), 4) or "0000",
        # Zero is what the kernel shows for "none" (bridges without the subsystem capability).
        subsystem_vendor=None if subsystem_vendor == "0000" else subsystem_vendor,
        subsystem_device=(
            None if subsystem_vendor in (None, "0000") else _identifier(tree.text(f"{path}/subsystem_device"), 4)
        ),
        parent=place.parent,
        host_bridge=place.host_bridge,
        numa_node=None,
        numa_source=None,
        driver=tree.link_name(f"{path}/driver") if "driver" in entries else None,
        driver_override=None if override in ("", "(null)") else override,
        iommu_group=int(group) if group is not None and group.isdigit() else None,
        bars=[],
        link=_link(tree, path) if "max_link_speed" in entries else Link(max_gtps=None, max_width=None),
        reset_methods=(methods or "").split(),
        physfn=tree.link_name(f"{path}/physfn") if "physfn" in entries else None,
        names=sorted(set(names)),
        in_use=[],
        module_id=None,
    )
    header_is_bridge, port_type = _port(tree, path) if bridge else (None, None)
    return function, _Raw(
        node=node if node is not None and node >= 0 else None,
        pcie="max_link_speed" in entries,
        header_is_bridge=header_is_bridge,
        port_type=port_type,
    )


def _identifier(text: Optional[str], digits: int) -> Optional[str]:
    """``0x10DE`` as ``10de``."""
    try:
        return None if text is None else format(int(text, 16), f"0{digits}x")
    except ValueError:
        return None


def _link(tree: Tree, path: str) -> Link:
    speed = re.match(r"(\d+(?:\.\d+)?) GT/s", tree.text(f"{path}/max_link_speed") or "")
    width = tree.number(f"{path}/max_link_width")
    return Link(
        max_gtps=float(speed.group(1)) if speed else None,
        max_width=width if width in _LINK_WIDTHS else None,
    )


def _bars(text: str) -> List[Bar]:
    """Memory BARs and the expansion ROM from ``resource``: one line of start, end and flags for each."""
    bars: List[Bar] = []
    for index, line in enumerate(text.splitlines()[: _ROM_INDEX + 1]):
        try:
            start, end, flags = (int(word, 16) for word in line.split())
        except ValueError:
            continue
        if flags & _RESOURCE_MEMORY and end > start:
            bars.append(
                Bar(
                    index=index,
                    size_bytes=end - start + 1,
                    is_64bit=bool(flags & _RESOURCE_64BIT),
                    prefetchable=bool(flags & _RESOURCE_PREFETCH),
                )
            )
    return bars


def _port(tree: Tree, path: str) -> Tuple[Optional[bool], Optional[str]]:
    """Whether the header is a bridge's, and the kind that the PCI Express capability names.

    Without root the kernel shows only the header: then the kind is ``None``, and so is a header that is unreadable.
    Only the bytes needed are read, for each is an access to the device.
    """
    descriptor = tree.open(f"{path}/config")
    if descriptor is None:
        return None, None
    try:
        header = os.pread(descriptor, _HEADER_BYTES, 0)
        if len(header) < _HEADER_BYTES or header[0:2] == b"\xff\xff":
            return None, None
        is_bridge = header[_HEADER_TYPE] & _HEADER_TYPE_MASK == _HEADER_BRIDGE
        if not header[_STATUS] & _STATUS_CAPABILITIES:
            return is_bridge, "bridge"
        offset = header[_CAPABILITIES] & 0xFC
        for _step in range(_MAX_CAPABILITIES):
            if offset < _HEADER_BYTES:
                return is_bridge, "bridge"
            capability = os.pread(descriptor, 4, offset)
            if len(capability) < 4:
                return is_bridge, None
            if capability[0] == _CAPABILITY_PCI_EXPRESS:
                return is_bridge, _PORT_KINDS.get(capability[2] >> 4, "bridge")
            offset = capability[1] & 0xFC
        return is_bridge, None
    except OSError:
        return None, None
    finally:
        os.close(descriptor)


def _kind(raw: _Raw, bridge: bool, parent_kind: Optional[str]) -> str:
    """What a function is. A port whose capability is unreadable is told by its place, which PCI Express fixes:
    a port on the root bus is a root port, below an upstream port there are only downstream ports, and a bridge
    below a root or downstream port begins a switch (or a PCI bus, which is one more bridge to cross just as well)."""
    if not bridge or raw.header_is_bridge is False:
        return "endpoint"
    if raw.port_type is not None:
        return raw.port_type
    if not raw.pcie:
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
    """The NUMA node: its own, else the nearest ancestor's, else the root bus's, else unknown."""
    for bdf in (place.bdf, *place.ancestors):
        node = raw[bdf].node if bdf in raw else None
        if node is not None:
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
