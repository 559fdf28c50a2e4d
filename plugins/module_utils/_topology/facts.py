# Copyright: the topovirt.kvm authors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""The small summary of a topology that becomes a host fact."""

from __future__ import annotations

import hashlib
import json
from pathlib import Path
from typing import Any, Dict, List, Optional

from ansible_collections.topovirt.kvm.plugins.module_utils._topology.model import ROLES, PciFunction, Topology
from ansible_collections.topovirt.kvm.plugins.module_utils._topology.paths import Paths
from ansible_collections.topovirt.kvm.plugins.module_utils._topology.sysfs import Tree

# Facts travel with every task, so they stay small whatever the machine.
MAX_BYTES = 2048

HOST_STATE = "var/lib/topovirt/host.json"
_HOST_STATE_BYTES = 1 << 20

# What changes from one look to the next while the machine stays what it is.
_MOMENTARY = ("in_use", "vm", "driver", "driver_override", "names", "capabilities", "power_state")


def summarize(topology: Topology, converted_id: Optional[str]) -> Dict[str, Any]:
    """The fact ``topovirt``: at most MAX_BYTES of JSON.

    Groups are PCIe groups; on a machine with too many of them, NUMA nodes (``grouped_by`` says which).
    """
    devices = [function for function in topology["pci"] if function["role"]]
    counts = {role: sum(device["role"] == role for device in devices) for role in ROLES}
    facts: Dict[str, Any] = {
        "schema": topology["schema"],
        "digest": digest(topology),
        "converted": converted_id,
        "counts": {role: count for role, count in counts.items() if count},
        "health": {
            "module_ids": _module_ids_known(devices),
            "iommu": topology["iommu"]["kind"],
            "iommu_active": topology["iommu"]["active"],
            "in_use": sum(bool(device["in_use"]) for device in devices),
        },
        "grouped_by": "switch",
        "groups": _by_switch(topology),
    }
    if _size(facts) > MAX_BYTES:
        facts["grouped_by"] = "node"
        facts["groups"] = _by_node(topology, devices)
    return facts


def _size(facts: Dict[str, Any]) -> int:
    return len(json.dumps(facts).encode())


def _module_ids_known(devices: List[PciFunction]) -> Optional[bool]:
    gpus = [device for device in devices if device["role"] == "gpu"]
    return all(gpu["module_id"] is not None for gpu in gpus) if gpus else None


def _share(devices: List[PciFunction]) -> Dict[str, str]:
    """Role -> "free/all"."""
    shares = {}
    for role in ROLES:
        own = [device for device in devices if device["role"] == role]
        if own:
            shares[role] = f"{sum(not device['in_use'] for device in own)}/{len(own)}"
    return shares


def _by_switch(topology: Topology) -> List[Dict[str, Any]]:
    functions = {function["bdf"]: function for function in topology["pci"]}
    return [
        {
            "at": group["switch"] or functions[group["devices"][0]]["parent"] or group["host_bridge"],
            "node": group["numa_node"],
            **_share([functions[bdf] for bdf in group["devices"]]),
        }
        for group in Paths(topology).groups()
    ]


def _by_node(topology: Topology, devices: List[PciFunction]) -> List[Dict[str, Any]]:
    nodes: List[Optional[int]] = [node["id"] for node in topology["numa_nodes"]]
    shares = [(node, _share([device for device in devices if device["numa_node"] == node])) for node in [*nodes, None]]
    return [{"node": node, **share} for node, share in shares if share]


def digest(topology: Topology) -> str:
    """Changes when hardware, firmware, kernel or its command line change, not with load, use or driver."""
    stable = {
        "host": {key: value for key, value in topology["host"].items() if key != "boot_id"},
        "iommu": topology["iommu"],
        "nodes": [{key: value for key, value in node.items() if key != "hugepages"} for node in topology["numa_nodes"]],
        "cores": topology["cores"],
        "pci": [
            {key: value for key, value in function.items() if key not in _MOMENTARY} for function in topology["pci"]
        ],
    }
    return hashlib.sha256(json.dumps(stable, sort_keys=True).encode()).hexdigest()[:16]


def read_converted_id(root: Path) -> Optional[str]:
    """Id of the conversion that is committed on the host, None when there is none."""
    try:
        state = json.loads(Tree(root).raw(HOST_STATE, _HOST_STATE_BYTES) or b"{}")
    except ValueError:
        return None
    return state.get("id") if isinstance(state, dict) else None
