# Copyright: the topovirt.kvm authors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Whether a domain is defined as wanted. Pure.

libvirt completes every definition that it is given: default attributes, automatic controllers, addresses, a MAC. So two
definitions are not compared as documents. Both become flat ``path -> value`` tables, and a definition is as wanted when

1. everything that is wanted is there with the same value, and
2. nothing more is there in the parts that libvirt never fills by itself (devices of the host, pins, memory policy ...).
"""

from __future__ import annotations

import json
import re
import xml.etree.ElementTree as ET
from typing import Dict, List, NamedTuple, Optional, Sequence, Tuple

from ansible_collections.topovirt.kvm.plugins.module_utils._errors import TopovirtError
from ansible_collections.topovirt.kvm.plugins.module_utils._libvirt.domains import (
    METADATA_NAMESPACE,
    METADATA_TAG,
    format_bdf,
    parse_cpuset,
    parse_xml,
    scaled_bytes,
)
from ansible_collections.topovirt.kvm.plugins.module_utils._topology.cpulist import format_cpulist

QEMU_NAMESPACE = "http://libvirt.org/schemas/domain/qemu/1.0"
_PREFIXES = {METADATA_NAMESPACE: "topovirt:", QEMU_NAMESPACE: "qemu:"}

# Elements that hold a scaled integer as text; the unit is an attribute.
_SIZES = {"memory", "currentMemory", "maxMemory", "hard_limit", "soft_limit", "swap_hard_limit"}
# Elements with a scaled integer in an attribute.
_SIZE_ATTRIBUTES = {"page": "size", "cell": "memory"}
_CPULISTS = {"cpuset", "nodeset", "cpus"}
# What tells elements of one tag apart; all others are told apart by their order.
_KEYS: Dict[str, Tuple[str, ...]] = {
    "vcpupin": ("vcpu",),
    "iothreadpin": ("iothread",),
    "memnode": ("cellid",),
    "cell": ("id",),
    "sibling": ("id",),
    "feature": ("name",),
    "timer": ("name",),
    "qemu:device": ("alias",),
    "qemu:property": ("name",),
}
# Parts in which an element or attribute that nobody asked for is a difference ...
_OWNED = re.compile(
    r"(cputune|numatune|memoryBacking|iothreads|sysinfo|qemu:override|qemu:commandline|metadata/topovirt:vm)($|[/@\[])"
    r"|cpu/(numa|feature|topology|cache|maxphysaddr)($|[/@\[])"
    r"|os/(kernel|initrd|cmdline)$"
    r"|features/(ioapic|kvm|hyperv|pmu)($|[/@])"
    r"|devices/(hostdev|disk|interface|filesystem|channel|tpm|shmem|rng)\[[^]]*\]$"
)
# ... but for these, which libvirt fills in.
_FILLED_IN = re.compile(r"cpu/topology@(dies|clusters)$")


class Difference(NamedTuple):
    """One path at which two definitions differ; None where it does not exist."""

    path: str
    before: Optional[str]
    after: Optional[str]


def _tag(element: ET.Element) -> str:
    namespace, brace, local = element.tag.rpartition("}")
    if not brace:
        return element.tag
    return _PREFIXES.get(namespace[1:], f"{{{namespace[1:]}}}") + local


def _value(name: str, value: str) -> str:
    if name in _CPULISTS:
        return format_cpulist(parse_cpuset(value))
    return str(int(value, 16)) if re.fullmatch(r"0x[0-9a-fA-F]+", value) else value


def _key(element: ET.Element, tag: str) -> Optional[str]:
    if tag == "hostdev":
        address = element.find("./source/address")
        if address is not None and address.get("bus"):
            return format_bdf(address)
        return None
    if tag in ("disk", "channel"):
        target = element.find("./target")
        return None if target is None else target.get("dev") or target.get("name")
    if tag == "controller":
        # The index may be left out of a controller that is the only one of its kind.
        return f"{element.get('type')},{int(element.get('index', '0'), 0)}"
    names = _KEYS.get(tag)
    if names is None or any(element.get(name) is None for name in names):
        return None
    return ",".join(_value(name, element.get(name, "")) for name in names)


def _attributes(element: ET.Element, tag: str) -> Dict[str, str]:
    size = _SIZE_ATTRIBUTES.get(tag, "")
    keys = ("type", "index") if tag == "controller" else _KEYS.get(tag, ())
    if _key(element, tag) is None:
        keys = ()
    found: Dict[str, str] = {}
    for name, value in element.attrib.items():
        if name in keys or (name == "unit" and (tag in _SIZES or size)):
            continue
        found[name] = str(scaled_bytes(value, element.get("unit"))) if name == size else _value(name, value)
    return found


def _text(element: ET.Element, tag: str) -> str:
    text = (element.text or "").strip()
    if tag in _SIZES and text.isdecimal():
        return str(scaled_bytes(text, element.get("unit")))
    if tag == "topovirt:vm":
        try:
            return json.dumps(json.loads(text), sort_keys=True)
        except ValueError:
            return text
    return text


def flatten(xml: str, what: str = "domain XML") -> Dict[str, str]:
    """Domain XML -> ``{"devices/hostdev[0000:23:00.0]/address@bus": "4", ...}``; an element's own value is its text."""
    table: Dict[str, str] = {}

    def visit(element: ET.Element, path: str) -> None:
        ordinals: Dict[str, int] = {}
        tags = [_tag(child) for child in element]
        for child, tag in zip(element, tags):
            if tag == "alias" and not child.get("name", "").startswith("ua-"):
                continue  # libvirt's own; only names that start with ua- are the user's
            key = _key(child, tag)
            if key is None and (tags.count(tag) > 1 or path == "devices"):
                key = str(ordinals.get(tag, 0))
                ordinals[tag] = ordinals.get(tag, 0) + 1
            here = f"{path}/{tag}" if path else tag
            here = here if key is None else f"{here}[{key}]"
            table[here] = _text(child, tag)
            for name, value in _attributes(child, tag).items():
                table[f"{here}@{name}"] = value
            visit(child, here)

    root = parse_xml(xml, what)
    table["@type"] = root.get("type", "")
    visit(root, "")
    # The name and our metadata say who the VM is; the UUID is libvirt's to keep.
    table.pop("uuid", None)
    return table


def _same(path: str, before: Optional[str], after: str) -> bool:
    if path == "os/type@machine" and before is not None and not after.startswith("pc-"):
        # libvirt replaces the alias ("q35") by the version that it stands for ("pc-q35-10.0").
        return before == after or before.startswith(f"pc-{after}-")
    return before == after


def compare(current: str, wanted: str) -> List[Difference]:
    """At which paths ``current`` (libvirt's XML) is not as ``wanted``; empty when it is. Ascending by path.

    :raises TopovirtError: when either is not a domain.
    """
    before, after = flatten(current, "current domain XML"), flatten(wanted, "wanted domain XML")
    found = [
        Difference(path, before.get(path), value)
        for path, value in after.items()
        if not _same(path, before.get(path), value)
    ]
    found += [
        Difference(path, value, None)
        for path, value in before.items()
        if path not in after and _OWNED.match(path) and not _FILLED_IN.match(path)
    ]
    return sorted(found)


def render(differences: Sequence[Difference]) -> Dict[str, str]:
    """The two texts of Ansible's diff."""

    def side(values: Sequence[Optional[str]]) -> str:
        lines = [
            f"{difference.path} = {value}\n" if value else f"{difference.path}\n"
            for difference, value in zip(differences, values)
            if value is not None
        ]
        return "".join(lines)

    return {
        "before": side([difference.before for difference in differences]),
        "after": side([difference.after for difference in differences]),
    }


def with_identity(xml: str, uuid: Optional[str], files: Sequence[str], disks: Sequence[str] = ()) -> str:
    """The wanted definition as it will be given to libvirt.

    :param uuid: of the domain that has the name already: libvirt keeps one UUID for one name.
    :param files: paths made for this VM, noted in our metadata, so that they can be removed with it.
    :param disks: images that hold the VM's data, noted like that.
    :raises TopovirtError: when the definition has no metadata of ours.
    """
    for namespace, prefix in _PREFIXES.items():
        ET.register_namespace(prefix.rstrip(":"), namespace)
    root = parse_xml(xml)
    element = root.find(f"./metadata/{METADATA_TAG}")
    try:
        metadata = json.loads(element.text or "") if element is not None else None
    except ValueError:
        metadata = None
    if element is None or not isinstance(metadata, dict):
        raise TopovirtError(
            f"VM '{root.findtext('name')}': domain_xml has no topovirt metadata ({METADATA_TAG}, a JSON object).",
            "Take domain_xml from the plan that topovirt.kvm.vm_plan returns.",
        )
    element.text = json.dumps({**metadata, "files": sorted(files), "disks": sorted(disks)}, sort_keys=True)
    if uuid is not None:
        own = root.find("./uuid")
        if own is None:
            own = ET.SubElement(root, "uuid")
        own.text = uuid
    ET.indent(root)
    return ET.tostring(root, encoding="unicode") + "\n"
