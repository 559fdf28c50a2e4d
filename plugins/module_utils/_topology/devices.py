# Copyright: the topovirt.kvm authors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""What a PCI function is to us: its device role, by rules on class and vendor, never by lists of device ids."""

from __future__ import annotations

import re
from typing import Dict, List, Mapping, Optional, Set, Tuple

from ansible_collections.topovirt.kvm.plugins.module_utils._errors import TopovirtError
from ansible_collections.topovirt.kvm.plugins.module_utils._topology.gaps import Gaps
from ansible_collections.topovirt.kvm.plugins.module_utils._topology.model import ROLES, PciFunction
from ansible_collections.topovirt.kvm.plugins.module_utils._topology.pci import BDF
from ansible_collections.topovirt.kvm.plugins.module_utils._topology.sysfs import Tree

NVIDIA = "10de"
AMD = "1002"
MELLANOX = "15b3"

_ETHERNET = "0200"

# (class prefix, vendor or None for any) -> role. The first match counts.
# Data-centre boards of NVIDIA are "3D controllers" (0302), those of AMD "display controllers" (0380) or, since
# MI300, "processing accelerators" (1200). NVSwitches of generation 1 to 3 are "other bridges" (0680).
# An Ethernet function alone does not say whether it carries the data or the operator's login: it is a data NIC when its
# vendor is the one of the fabric's adapters, or when it shares a PCIe switch with a GPU. Users name others.
_RULES: Tuple[Tuple[str, Optional[str], str], ...] = (
    ("0680", NVIDIA, "nvswitch"),
    ("0300", NVIDIA, "gpu"),
    ("0302", NVIDIA, "gpu"),
    ("1200", AMD, "gpu"),
    ("0300", AMD, "gpu"),
    ("0302", AMD, "gpu"),
    ("0380", AMD, "gpu"),
    ("0207", None, "nic"),
    (_ETHERNET, MELLANOX, "nic"),
    ("010802", None, "nvme"),
)

# Fabric bridges of boards whose NVSwitches are not on PCI: a physical function carries this field in its vital product
# data (read in NVIDIA's pcilibs-rs; platform table of the fabric manager's guide).
_BRIDGE_KEYWORD = b"VA"
_BRIDGE_FIELD = b"SMDL=SW_MNG"
# The shortest vital product data with that field: a read-only resource with one keyword, and the end tag.
MARKED_VPD = (
    b"\x90"
    + (len(_BRIDGE_FIELD) + 3).to_bytes(2, "little")
    + _BRIDGE_KEYWORD
    + bytes([len(_BRIDGE_FIELD)])
    + _BRIDGE_FIELD
    + b"\x78"
)
_VPD_BYTES = 32768  # the address space of vital product data (PCI Local Bus Specification 3.0, appendix I)

_VENDOR_DEVICE = re.compile(r"[0-9a-f]{4}:[0-9a-f]{4}\Z")
_CLASS = re.compile(r"[0-9a-f]{4}(?:[0-9a-f]{2})?\Z")

NO_ROLE = "none"


def assign_roles(
    tree: Tree,
    functions: List[PciFunction],
    paths: Mapping[str, str],
    gaps: Gaps,
    overrides: Optional[Mapping[str, str]] = None,
) -> None:
    """Set ``role`` of every endpoint, and the fabric marker of those that may have one.

    :param overrides: BDF, ``vendor:device`` or class (four or six hex digits) -> role or ``none``; the most exact wins.
    :raises TopovirtError: naming every key and role of ``overrides`` that is not one.
    """
    wanted = _checked(overrides or {})
    for function in functions:
        if function["kind"] == "endpoint":
            function["role"] = _by_rule(function)
    _near_gpus(functions)
    bridges = {
        function["bdf"].rpartition(".")[0]
        for function in functions
        if _may_be_bridge(function) and _is_marked(tree, paths[function["bdf"]], function, gaps)
    }
    for function in functions:
        if function["kind"] != "endpoint":
            continue
        if _may_be_bridge(function) and function["bdf"].rpartition(".")[0] in bridges:
            function["role"] = "fabric_bridge"
        keys = (
            function["bdf"],
            f"{function['vendor']}:{function['device']}",
            function["class"],
            function["class"][:4],
        )
        role = next((wanted[key] for key in keys if key in wanted), function["role"])
        function["role"] = None if role == NO_ROLE else role


def _by_rule(function: PciFunction) -> Optional[str]:
    for prefix, vendor, role in _RULES:
        if function["class"].startswith(prefix) and vendor in (None, function["vendor"]):
            return role
    return None


def _near_gpus(functions: List[PciFunction]) -> None:
    """Ethernet functions that share a PCIe switch with a GPU are there to feed it, whoever made them."""
    by_bdf = {function["bdf"]: function for function in functions}

    def switches(function: PciFunction) -> Set[str]:
        found = set()
        parent = function["parent"]
        while parent is not None and parent in by_bdf:
            if by_bdf[parent]["kind"] == "upstream_port":
                found.add(parent)
            parent = by_bdf[parent]["parent"]
        return found

    near: Set[str] = set()
    for function in functions:
        if function["role"] == "gpu":
            near |= switches(function)
    for function in functions:
        if function["kind"] == "endpoint" and function["role"] is None and function["class"].startswith(_ETHERNET):
            function["role"] = "nic" if switches(function) & near else None


def _is_marked(tree: Tree, path: str, function: PciFunction, gaps: Gaps) -> bool:
    """Whether the vital product data mark a fabric bridge; an adapter without such data has no mark."""
    vpd = tree.raw(f"{path}/vpd", _VPD_BYTES) if tree.exists(f"{path}/vpd") else b""
    if vpd is None:
        gaps.add("fabric_marker", "its vital product data cannot be read: root may", function["bdf"])
        return False
    marked = is_fabric_bridge(vpd)
    if function["capabilities"] is not None:
        function["capabilities"]["fabric_marker"] = marked
    return marked


def _may_be_bridge(function: PciFunction) -> bool:
    return function["role"] == "nic" and function["vendor"] == MELLANOX and function["physfn"] is None


def is_fabric_bridge(vpd: bytes) -> bool:
    """Whether vital product data carry the management mark: keyword VA with a field that is exactly the mark.
    A search of the raw bytes would also find it inside serial numbers."""
    return any(
        keyword == _BRIDGE_KEYWORD and _BRIDGE_FIELD in value.rstrip(b"\0 ").split(b":")
        for keyword, value in vpd_fields(vpd)
    )


def vpd_fields(vpd: bytes) -> List[Tuple[bytes, bytes]]:
    """Keywords and values of the read-only and read-write sections (PCI Local Bus Specification 3.0, appendix I)."""
    fields: List[Tuple[bytes, bytes]] = []
    offset = 0
    while offset < len(vpd):
        tag = vpd[offset]
        if not tag & 0x80:  # small resource: name in bits 6:3, length in bits 2:0
            if tag >> 3 == 0x0F:  # the end tag
                break
            offset += 1 + (tag & 7)
            continue
        length = int.from_bytes(vpd[offset + 1 : offset + 3], "little")
        body = vpd[offset + 3 : offset + 3 + length]
        if tag in (0x90, 0x91):
            position = 0
            while position + 3 <= len(body):
                size = body[position + 2]
                fields.append((body[position : position + 2], body[position + 3 : position + 3 + size]))
                position += 3 + size
        offset += 3 + length
    return fields


def _checked(overrides: Mapping[str, str]) -> Dict[str, str]:
    result: Dict[str, str] = {}
    errors = []
    for key, role in overrides.items():
        name = str(key).lower()
        if not any(pattern.match(name) for pattern in (BDF, _VENDOR_DEVICE, _CLASS)):
            errors.append(f"{key!r} is neither a BDF nor vendor:device nor a class of four or six hex digits")
        if role not in (*ROLES, NO_ROLE):
            errors.append(f"{key!r} has role {role!r}, which is none of {', '.join((*ROLES, NO_ROLE))}")
        result[name] = str(role)
    if errors:
        raise TopovirtError(f"Device roles: {'; '.join(errors)}.", "Quote keys, like '10de:2335' or '0200'.")
    return result
