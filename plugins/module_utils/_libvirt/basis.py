# Copyright: the topovirt.kvm authors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""The basis of a plan: what placement looked at, small enough to travel with the plan.

A plan is stale when the basis made from the host as it is now differs from the plan's. Short values are kept as they
are, so that the difference can be told in words; long ones as digests.
"""

from __future__ import annotations

import hashlib
import json
from typing import Any, Collection, Dict, List, Mapping, Sequence

from ansible_collections.topovirt.kvm.plugins.module_utils._libvirt.domains import Allocation
from ansible_collections.topovirt.kvm.plugins.module_utils._topology.model import PciFunction, Topology

SCHEMA = 1

# Aspect -> its name in a sentence.
_DEVICE_WORDS = {
    "ids": "ids",
    "parent": "bridge above",
    "group": "IOMMU group",
    "node": "NUMA node",
    "driver": "driver",
    "module": "module id",
}
_NODE_WORDS = {"cpus": "CPUs", "memory_bytes": "memory", "pages": "huge pages (size in KiB: count)"}
_DOMAIN_WORDS = {"devices": "devices", "cpus": "CPU pins", "memory": "memory", "kind": "kind"}


def _digest(value: Any) -> str:
    return hashlib.sha256(json.dumps(value, sort_keys=True).encode("utf-8")).hexdigest()[:12]


def _device(function: PciFunction) -> Dict[str, Any]:
    return {
        "ids": f"{function['vendor']}:{function['device']}",
        "parent": function["parent"],
        "group": function["iommu_group"],
        "node": function["numa_node"],
        "driver": function["driver"],
        "module": function["module_id"],
        # The reasons may change by the minute (an address, a process); a device with any is never given out.
        "in_use": bool(function["in_use"]),
    }


def _domain(domain: Allocation) -> Dict[str, str]:
    return {
        "devices": _digest(domain["hostdevs"]),
        "cpus": _digest([domain["cpus"], domain["emulator_cpus"]]),
        "memory": _digest([domain["memory_bytes"], domain["memory_by_node"], domain["page_size_bytes"]]),
        # Only this much of the state: a persistent domain keeps what it owns while it is shut off.
        "kind": "persistent" if domain["persistent"] else "transient",
    }


def make_basis(topology: Topology, domains: Sequence[Allocation], planned: Sequence[Allocation] = ()) -> Dict[str, Any]:
    """What placement depends on, item by item.

    :param topology: as ``read_topology`` returns it.
    :param domains: allocations of every domain, as ``vm_info`` returns them.
    :param planned: allocations (``parse_domain`` of their domain XML) that the plan itself will make. While the VMs of
        one plan are defined one after the other, an earlier one must not make the plan stale for a later one.
    """
    return {
        "schema": SCHEMA,
        "devices": {item["bdf"]: _device(item) for item in topology["pci"] if item["role"] is not None},
        "nodes": {
            str(node["id"]): {
                "cpus": node["cpus"],
                "memory_bytes": node["memory_bytes"],
                "pages": {size: pages["total"] for size, pages in sorted(node["hugepages"].items())},
            }
            for node in topology["numa_nodes"]
        },
        "cores": _digest(
            [[core["package"], core["die"], core["node"], core["l3"], core["threads"]] for core in topology["cores"]]
        ),
        "domains": {domain["name"]: _domain(domain) for domain in domains},
        "planned": {domain["name"]: _domain(domain) for domain in planned},
    }


def _aspects(what: str, old: Mapping[str, Any], new: Mapping[str, Any], words: Mapping[str, str]) -> List[str]:
    return [
        f"{what}: {word} was {old.get(key)!s}, is {new.get(key)!s}"
        for key, word in words.items()
        if old.get(key) != new.get(key)
    ]


def _device_changes(old: Mapping[str, Any], new: Mapping[str, Any]) -> List[str]:
    result: List[str] = []
    for bdf in sorted(set(old) | set(new)):
        if bdf not in new:
            result.append(f"device {bdf} is gone")
        elif bdf not in old:
            result.append(f"device {bdf} is new")
        else:
            result += _aspects(f"device {bdf}", old[bdf], new[bdf], _DEVICE_WORDS)
            if old[bdf]["in_use"] != new[bdf]["in_use"]:
                result.append(f"device {bdf} is {'now' if new[bdf]['in_use'] else 'no longer'} used by the host")
    return result


def _node_changes(old: Mapping[str, Any], new: Mapping[str, Any]) -> List[str]:
    result: List[str] = []
    for node in sorted(set(old) | set(new), key=int):
        if node not in new or node not in old:
            result.append(f"NUMA node {node} is {'gone' if node not in new else 'new'}")
        else:
            result += _aspects(f"NUMA node {node}", old[node], new[node], _NODE_WORDS)
    return result


def _domain_changes(
    old: Mapping[str, Any], new: Mapping[str, Any], planned: Mapping[str, Any], without: Collection[str]
) -> List[str]:
    result: List[str] = []
    for name in sorted((set(old) | set(new)) - set(without)):
        if name in new and new[name] == planned.get(name):
            continue
        if name not in new:
            result.append(f"VM {name} is gone")
        elif name not in old:
            result.append(f"VM {name} is new")
        else:
            changed = [word for key, word in _DOMAIN_WORDS.items() if old[name].get(key) != new[name].get(key)]
            if changed:
                result.append(f"VM {name}: {', '.join(changed)} changed")
    return result


def changes(old: Mapping[str, Any], new: Mapping[str, Any], without: Collection[str] = ()) -> List[str]:
    """What changed between two bases, one sentence each; empty when a plan made on ``old`` still holds.

    :param old: the plan's basis; its ``planned`` VMs may be there already.
    :param new: the basis made from the host now.
    :param without: names of domains that do not count: the one that is about to be defined.
    """
    if old.get("schema") != new["schema"]:
        return [f"the plan's basis has schema {old.get('schema')!r}, this version makes {new['schema']}"]
    result = _device_changes(old["devices"], new["devices"])
    result += _node_changes(old["nodes"], new["nodes"])
    if old["cores"] != new["cores"]:
        result.append("the CPU cores (sockets, NUMA nodes, caches or threads) changed")
    return result + _domain_changes(old["domains"], new["domains"], old.get("planned", {}), without)
