# Copyright: the topovirt.kvm authors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""A host of two nodes made by hand: what the report's tests draw."""

from __future__ import annotations

from typing import cast

from ansible_collections.topovirt.kvm.plugins.module_utils._libvirt.domains import Allocation
from ansible_collections.topovirt.kvm.plugins.module_utils._topology.compare import Comparison
from ansible_collections.topovirt.kvm.plugins.module_utils._topology.model import PciFunction, Topology

KEYS = "class subsystem driver_override physfn numa_source iommu_group driver module_id"
HOST_KEYS = "boot_id firmware os_id os_version cpu_vendor cpu_family cpu_model virtualization phys_bits"


def function(bdf: str, parent: str | None, **given: object) -> PciFunction:
    plain: dict[str, object] = dict.fromkeys(KEYS.split())
    plain |= {"kind": "endpoint", "role": None, "numa_node": 0, "vendor": "10de", "device": "2335", "bars": []}
    plain |= {"link": {"max_gtps": 32.0, "max_width": 16}, "reset_methods": [], "names": [], "in_use": []}
    plain |= {"capabilities": {}, "power_state": "D0", "vm": None}
    return cast(PciFunction, {**plain, "bdf": bdf, "parent": parent, "host_bridge": bdf[:7], **given})


def switch(bus: int, node: int, module: int) -> list[PciFunction]:
    """A root port, a switch below it and two GPUs and a NIC below that."""
    bridge, upstream = f"0000:{bus:02x}", f"0000:{bus + 1:02x}:00.0"
    functions = [
        function(f"{bridge}:00.0", None, kind="root_port", numa_node=node),
        function(upstream, f"{bridge}:00.0", kind="upstream_port", numa_node=node),
    ]
    for slot, role in enumerate(("gpu", "gpu", "nic")):
        port = f"0000:{bus + 2:02x}:{slot:02x}.0"
        functions.append(function(port, upstream, kind="downstream_port", numa_node=node))
        own = {"role": role, "numa_node": node, "iommu_group": bus + slot, "driver": "vfio-pci"}
        own["module_id"] = module + slot if role == "gpu" else None
        functions.append(function(f"0000:{bus + 3 + slot:02x}:00.0", port, **own))
    return [{**found, "host_bridge": bridge} for found in functions]


def host() -> Topology:
    used = function(
        "0000:00:03.0", None, role="nic", names=["eno1"], in_use=["carries the default route"], driver="igb"
    )
    shared = [function(f"0000:00:04.{n}", None, role="nvswitch", iommu_group=7, device="22a3") for n in range(2)]
    cores = [
        {"package": n // 2, "die": 0, "core": n % 2, "node": n // 2, "l3": None, "threads": [2 * n, 2 * n + 1]}
        for n in range(4)
    ]
    nodes = [
        {"id": n, "cpus": f"{4 * n}-{4 * n + 3}", "memory_bytes": 8 << 30, "distances": {"0": 10, "1": 21},
         "hugepages": {"1048576": {"total": 4, "free": 2}}}
        for n in range(2)
    ]  # fmt: skip
    running = dict.fromkeys(HOST_KEYS.split()) | {"kernel": "6.12", "arch": "x86_64", "cmdline": "ro <quiet>"}
    topology = {
        "schema": 1,
        "host": running | {"cpu_model_name": "A & B"},
        "iommu": {"kind": "dmar", "active": True, "default_domain": "DMA", "groups": 9},
        "numa_nodes": nodes,
        "software": {"next_cmdline": "", "libvirt": None, "qemu": None, "features": {}},
        "unknown": [],
        "cores": cores,
        "pci": [used, *shared, *switch(0x20, 0, 1), *switch(0x90, 1, 3)],
    }
    return cast(Topology, topology)


def vm(name: str, bdfs: list[str], node: int, partition: int | None) -> Allocation:
    return {
        "name": name, "uuid": None, "state": "running", "persistent": True, "autostart": False, "ours": True,
        "hostdevs": bdfs, "cpus": f"{4 * node + 2}-{4 * node + 3}", "emulator_cpus": f"{4 * node}",
        "memory_bytes": 2 << 30, "memory_by_node": {str(node): 2 << 30}, "page_size_bytes": 1 << 30,
        "metadata": {"schema": 1, "partition": partition},
    }  # fmt: skip


def comparison(order: list[str], host_rows: list[list[str]], guest_rows: list[list[str]]) -> Comparison:
    pairs = len(order) * (len(order) - 1) // 2
    return {
        "equal": host_rows == guest_rows, "cpus_equal": None, "devices": len(order), "pairs": pairs,
        "fidelity": {"paths": {"equal": pairs, "pairs": pairs}, "siblings": None, "l3": None},
        "path_differences": [], "node_differences": [], "link_differences": [], "distance_differences": [],
        "cpu_differences": [], "missing": [], "identity_errors": [], "node_map_errors": [], "cpu_map_errors": [],
        "causes": [],
        "matrix": {"order": order, "host": host_rows, "guest": guest_rows},
    }  # fmt: skip
