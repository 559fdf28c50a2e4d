# Copyright: the topovirt.kvm authors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Domain XML -> allocations: what of the host a domain owns. Pure; knows nothing of a connection.

The elements are those of https://libvirt.org/formatdomain.html.
"""

from __future__ import annotations

import json
import xml.etree.ElementTree as ET
from typing import Any, Dict, List, Mapping, Optional, Sequence, Set, TypedDict

from ansible_collections.topovirt.kvm.plugins.module_utils._errors import TopovirtError
from ansible_collections.topovirt.kvm.plugins.module_utils._topology.cpulist import format_cpulist, parse_cpulist

# Our element below <metadata>; its text is a JSON object with a key "schema".
METADATA_NAMESPACE = "urn:topovirt:kvm:1"
METADATA_TAG = f"{{{METADATA_NAMESPACE}}}vm"
METADATA_SCHEMA = 1

# Units of libvirt's scaled integers: decimal ones end in B, binary ones in iB or stand alone.
_UNITS = {
    "b": 1,
    "bytes": 1,
    "k": 1 << 10,
    "kib": 1 << 10,
    "kb": 10**3,
    "m": 1 << 20,
    "mib": 1 << 20,
    "mb": 10**6,
    "g": 1 << 30,
    "gib": 1 << 30,
    "gb": 10**9,
    "t": 1 << 40,
    "tib": 1 << 40,
    "tb": 10**12,
}


class Allocation(TypedDict):
    """What one domain owns, from its XML and libvirt's view of it."""

    name: str
    uuid: Optional[str]
    state: str  # "running", "paused", "shut off" or "crashed"
    persistent: bool
    autostart: bool
    ours: bool  # it carries our metadata
    hostdevs: List[str]  # BDFs, ascending
    cpus: str  # cpulist of all vCPU pins; empty when the vCPUs float
    emulator_cpus: str  # cpulist of emulator and I/O threads; empty when they float
    memory_bytes: int
    memory_by_node: Dict[str, int]  # host node -> bytes, as far as the definition binds memory to one node
    page_size_bytes: Optional[int]  # of huge pages; None for normal ones and for the host's default huge page
    metadata: Optional[Dict[str, Any]]  # ours, None for others' domains


def parse_cpuset(text: str) -> List[int]:
    """``"0-3,^2,8"`` -> ``[0, 1, 3, 8]``: a CPU list in which ``^n`` takes a CPU out again.

    :raises TopovirtError: for anything else.
    """
    parts = [part.strip() for part in text.split(",")]
    chosen = parse_cpulist(",".join(part for part in parts if not part.startswith("^")))
    removed = parse_cpulist(",".join(part[1:] for part in parts if part.startswith("^")))
    return sorted(set(chosen) - set(removed))


def scaled_bytes(value: str, unit: Optional[str], default_unit: str = "KiB") -> int:
    """A number and libvirt's unit -> bytes.

    :raises TopovirtError: for a unit or number that libvirt would refuse too.
    """
    factor = _UNITS.get((unit or default_unit).lower())
    if factor is None or not value.strip().isdecimal():
        raise TopovirtError(f"Memory size '{value}' with unit '{unit}' is not one that libvirt knows.")
    return int(value) * factor


def format_bdf(address: ET.Element) -> str:
    """An ``<address>``, whose numbers may be hexadecimal or decimal -> ``"0000:23:00.0"``."""
    numbers = [int(address.get(key, "0"), 0) for key in ("domain", "bus", "slot", "function")]
    return "{:04x}:{:02x}:{:02x}.{:x}".format(*numbers)


def parse_xml(text: str, what: str = "domain XML") -> ET.Element:
    """:raises TopovirtError: when the text is not well-formed or not a domain."""
    try:
        root = ET.fromstring(text)
    except ET.ParseError as error:
        raise TopovirtError(f"The {what} is not well-formed XML: {error}.") from None
    if root.tag != "domain":
        raise TopovirtError(f"The {what} starts with <{root.tag}>, expected <domain>.")
    return root


def _hostdevs(domain: ET.Element) -> Set[str]:
    found: Set[str] = set()
    devices = domain.find("devices")
    if devices is None:
        return found
    for device in devices:
        # PCI hostdevs, SR-IOV interfaces and userspace NVMe disks all take a whole PCI function from the host.
        owns = (
            (device.tag == "hostdev" and device.get("type") == "pci")
            or (device.tag == "interface" and device.get("type") == "hostdev")
            or (device.tag == "disk" and device.get("type") == "nvme")
        )
        address = device.find("./source/address") if owns else None
        if address is not None:
            found.add(format_bdf(address))
    return found


def _pins(domain: ET.Element) -> Set[int]:
    pins = [pin.get("cpuset", "") for pin in domain.findall("./cputune/vcpupin")]
    if not pins:
        # <vcpu cpuset=...> holds for vCPUs that have no pin of their own.
        pins = [vcpu.get("cpuset", "") for vcpu in domain.findall("./vcpu")]
    return {cpu for text in pins for cpu in parse_cpuset(text)}


def _emulator_pins(domain: ET.Element) -> Set[int]:
    pins = domain.findall("./cputune/emulatorpin") + domain.findall("./cputune/iothreadpin")
    return {cpu for pin in pins for cpu in parse_cpuset(pin.get("cpuset", ""))}


def _memory_bytes(domain: ET.Element) -> int:
    memory = domain.find("./memory")
    return scaled_bytes(memory.text or "", memory.get("unit")) if memory is not None else 0


def _memory_by_node(domain: ET.Element) -> Dict[str, int]:
    cells = {
        cell.get("id", str(index)): scaled_bytes(cell.get("memory", "0"), cell.get("unit"))
        for index, cell in enumerate(domain.findall("./cpu/numa/cell"))
    }
    bound: Dict[str, int] = {}
    whole = domain.find("./numatune/memory")
    default_nodes = parse_cpuset(whole.get("nodeset", "")) if whole is not None else []
    nodes_of_cell = {
        node.get("cellid", ""): parse_cpuset(node.get("nodeset", "")) for node in domain.findall("./numatune/memnode")
    }
    for cell, size in (cells or {"": _memory_bytes(domain)}).items():
        nodes = nodes_of_cell.get(cell, default_nodes)
        if len(nodes) == 1:
            bound[str(nodes[0])] = bound.get(str(nodes[0]), 0) + size
    return bound


def _page_size(domain: ET.Element) -> Optional[int]:
    sizes = [
        scaled_bytes(page.get("size", ""), page.get("unit"))
        for page in domain.findall("./memoryBacking/hugepages/page")
    ]
    return max(sizes) if sizes else None


def read_metadata(domain: ET.Element) -> Optional[Dict[str, Any]]:
    """Our metadata of a parsed domain, None when it has none; unreadable text becomes ``{"unreadable": text}``."""
    element = domain.find(f"./metadata/{METADATA_TAG}")
    if element is None:
        return None
    text = (element.text or "").strip()
    try:
        data = json.loads(text)
    except ValueError:
        data = None
    return data if isinstance(data, dict) else {"unreadable": text}


def metadata_refusal(name: str, metadata: Optional[Mapping[str, Any]]) -> str:
    """Why this version must not change a VM that carries ``metadata``; empty when it may."""
    if metadata is None:
        return ""
    if "unreadable" in metadata:
        return f"VM '{name}': its topovirt metadata is not a JSON object: '{metadata['unreadable']}'."
    schema = metadata.get("schema")
    if not isinstance(schema, int) or schema > METADATA_SCHEMA:
        return (
            f"VM '{name}': its topovirt metadata has schema {schema!r}, this version of topovirt.kvm reads "
            f"up to {METADATA_SCHEMA}."
        )
    return ""


def parse_domain(xml: str, *more: str) -> Allocation:
    """Domain XML -> its allocation entry, as of a persistent domain that is shut off.

    :param xml: the definition that names the domain.
    :param more: further definitions of the same domain. A running domain whose definition was changed owns what the
        live one says and what the next start will need, so give both.
    """
    roots = [parse_xml(text) for text in (xml, *more)]
    memory_by_node: Dict[str, int] = {}
    for root in roots:
        for node, size in _memory_by_node(root).items():
            memory_by_node[node] = max(size, memory_by_node.get(node, 0))
    metadata = next((data for data in map(read_metadata, roots) if data is not None), None)
    return {
        "name": roots[0].findtext("name") or "",
        "uuid": roots[0].findtext("uuid"),
        "state": "shut off",
        "persistent": True,
        "autostart": False,
        "ours": metadata is not None,
        "hostdevs": sorted(set().union(*map(_hostdevs, roots))),
        "cpus": format_cpulist(set().union(*map(_pins, roots))),
        "emulator_cpus": format_cpulist(set().union(*map(_emulator_pins, roots))),
        "memory_bytes": max(map(_memory_bytes, roots)),
        "memory_by_node": dict(sorted(memory_by_node.items())),
        "page_size_bytes": next((size for size in map(_page_size, roots) if size is not None), None),
        "metadata": metadata,
    }


def chosen_names(names: Sequence[str]) -> List[str]:
    """Names of VMs, each once; empty for ``[]`` and ``["all"]``, which both stand for all VMs."""
    found = list(dict.fromkeys(name.strip() for name in names if name.strip()))
    return [] if found == ["all"] else found


def select(domains: Sequence[Allocation], names: Sequence[str]) -> List[Allocation]:
    """The VMs of ours that are named, in that order; all of ours when nothing is named.

    :param names: as :func:`chosen_names` takes them.
    :raises TopovirtError: naming every name that the host does not know or that is not ours.
    """
    wanted = chosen_names(names)
    ours = {domain["name"]: domain for domain in domains if domain["ours"]}
    others = {domain["name"] for domain in domains} - set(ours)
    reasons = [f"VM '{name}' is not known on this host." for name in wanted if name not in ours and name not in others]
    reasons += [f"VM '{name}' was not made by topovirt.kvm." for name in wanted if name in others]
    if reasons:
        raise TopovirtError(
            " ".join(reasons), f"VMs of topovirt.kvm on this host: {', '.join(sorted(ours)) or 'none'}."
        )
    return [ours[name] for name in wanted or sorted(ours)]
