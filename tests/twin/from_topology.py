# Copyright: the topovirt.kvm authors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""The topology of a real machine, read from a capture -> a machine description, so that it can be booted emulated.

What a description cannot say is left out, and each thing left out is told: functions that are neither devices of ours
nor network cards, BARs that are not 64 bits wide, empty ports.
"""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass, field
from typing import Any

from ansible_collections.topovirt.kvm.plugins.module_utils._topology.model import PciFunction, Topology

from tests.twin.description import LINK_SPEED_CODES, LINK_WIDTHS, DescriptionError

# What the emulator can carry (two cores of a usual machine run it).
BOOT_CPUS, BOOT_GIB = 16, 12
THREADS = 2
GIB = 1 << 30
DIMM_GIB = 64  # what a node has is a multiple of this, but for what firmware and kernel keep
NVME_MIB = 64
SERIES = {"gpu": "gpu", "nvswitch": "nvsw", "nic": "nic", "fabric_bridge": "bridge"}
NATIVE_DRIVERS = {("gpu", "10de"): "nvidia", ("gpu", "1002"): "amdgpu", ("nvswitch", "10de"): "nvidia"}
NETWORK, MANAGEMENT = "02", "management"
FABRIC_VPD = {"name": "fabric bridge", "fields": {"VA": "SMDL=SW_MNG"}}
USUAL_LINK = [2.5, 1]


@dataclass
class _Builder:
    topology: Topology
    kinds: dict[str, dict[str, Any]] = field(default_factory=dict)
    left_out: Counter[str] = field(default_factory=Counter)
    counts: Counter[str] = field(default_factory=Counter)
    has_management: bool = False

    def below(self, bdf: str | None, host_bridge: str) -> list[PciFunction]:
        return [f for f in self.topology["pci"] if f["parent"] == bdf and f["host_bridge"] == host_bridge]

    def ports(self, ports: list[PciFunction]) -> list[dict[str, Any]]:
        return [found for port in ports if (found := self.port(port)) is not None]

    def port(self, port: PciFunction) -> dict[str, Any] | None:
        """What is below a port; None when nothing is that matters."""
        children = self.below(port["bdf"], port["host_bridge"])
        upstream = [child for child in children if child["kind"] == "upstream_port"]
        if upstream:
            inside = self.ports(self.below(upstream[0]["bdf"], port["host_bridge"]))
            return {"switch": inside} if inside else None
        devices = [found for child in children if (found := self.device(child)) is not None]
        if any("igb" in device for device in devices[1:]):
            self.left_out["further functions of a network card"] += len(devices) - 1
            devices = devices[:1]
        return {"functions": devices} if devices else None

    def device(self, function: PciFunction) -> dict[str, Any] | None:
        role = function["role"]
        if function["kind"] != "endpoint" or function["physfn"] is not None:
            self.left_out["bridges to PCI and virtual functions"] += 1
            return None
        if role == "nvme":
            number = self.number("nvme")
            return {"nvme": f"nvme{number}", "serial": f"TWINNVME{number}", "size_mib": NVME_MIB}
        if role in SERIES:
            device: dict[str, Any] = {
                "endpoint": self.kind(function, role),
                "name": f"{SERIES[role]}{self.number(SERIES[role])}",
            }
            if function["module_id"] is not None:
                device["module_id"] = function["module_id"]
            return device
        if function["class"].startswith(NETWORK):
            carries = bool(function["in_use"]) and not self.has_management
            self.has_management = self.has_management or carries
            return {"igb": f"igb{self.number('igb')}", "network": MANAGEMENT if carries else "none"}
        self.left_out["endpoints that are no devices of ours"] += 1
        return None

    def number(self, series: str) -> int:
        self.counts[series] += 1
        return self.counts[series] - 1

    def kind(self, function: PciFunction, role: str) -> str:
        """The name of the function's kind, described once."""
        wide = [bar for bar in function["bars"] if bar["is_64bit"] and bar["index"] in (0, 2, 4)]
        self.left_out["BARs that are not 64 bits wide"] += len(function["bars"]) - len(wide)
        capabilities = function["capabilities"] or {}
        kind = {
            "vendor": function["vendor"],
            "device": function["device"],
            "class": function["class"],
            "revision": "00",
            "subsystem": function["subsystem"] or "0000:0000",
            "bars": {bar["index"]: _size(bar["size_bytes"]) for bar in wide},
            "link": _link(function),
            "ats": "ats" in capabilities,
            "flr": "flr" in function["reset_methods"],
            "native_driver": _native_driver(function, role),
        }
        if capabilities.get("fabric_marker"):
            kind["vpd"] = FABRIC_VPD
        for name, known in self.kinds.items():
            if known == kind:
                return name
        name = f"{SERIES[role]}{function['device']}"
        while name in self.kinds:
            name += "x"
        self.kinds[name] = kind
        return name


def _native_driver(function: PciFunction, role: str) -> str:
    driver = function["driver"]
    if driver is None or driver.startswith("vfio"):
        return NATIVE_DRIVERS.get((role, function["vendor"]), "mlx5_core")
    return driver


def _link(function: PciFunction) -> list[Any]:
    speed, width = function["link"]["max_gtps"], function["link"]["max_width"]
    return [speed, width] if speed in LINK_SPEED_CODES and width in LINK_WIDTHS else list(USUAL_LINK)


def _size(size: int) -> str:
    for unit, shift in (("GiB", 30), ("MiB", 20)):
        if size >= 1 << shift:
            return f"{size >> shift}{unit}"
    return f"{max(size, 4096) >> 10}KiB"


def describe(topology: Topology, name: str) -> tuple[dict[str, Any], list[str]]:
    """The description as data for YAML, and one line for each sort of thing that is not in it.

    :raises DescriptionError: the machine has what no description can say.
    """
    _refuse(topology)
    builder = _Builder(topology)
    bridges: list[dict[str, Any]] = []
    for host_bridge in sorted({function["host_bridge"] for function in topology["pci"]}):
        roots = [f for f in builder.below(None, host_bridge) if f["kind"] != "endpoint"]
        ports = builder.ports(roots)
        if ports:
            node = next((root["numa_node"] for root in roots if root["numa_node"] is not None), 0)
            bridges.append({"bus": int(host_bridge.rpartition(":")[2], 16), "node": node, "ports": ports})
    if not bridges:
        raise DescriptionError(f"{name}: no host bridge has a device that a description could hold")
    if not builder.has_management:
        bridges[-1]["ports"].append({"functions": [{"igb": f"igb{builder.number('igb')}", "network": MANAGEMENT}]})
    links = Counter(tuple(_link(f)) for f in topology["pci"] if f["kind"].endswith("_port"))
    host = topology["host"]
    description = {
        "schema": 1,
        "name": name,
        "title": f"{name}, from a capture",
        "cpu": {
            "vendor": host["cpu_vendor"],
            "family": host["cpu_family"],
            "model": host["cpu_model"],
            "name": host["cpu_model_name"],
            "physical_bits": host["phys_bits"],
            "virtual_bits": 48,
        },
        "scale": _scales(topology),
        "nodes": _nodes(topology),
        "iommu": topology["iommu"]["kind"] or "dmar",
        "devices": builder.kinds,
        "switch": {"link": list(links.most_common(1)[0][0]) if links else list(USUAL_LINK)},
        "host_bridges": bridges,
    }
    return description, [f"left out: {count} {what}" for what, count in sorted(builder.left_out.items()) if count]


def _refuse(topology: Topology) -> None:
    faults = []
    nodes = topology["numa_nodes"]
    if [node["id"] for node in nodes] != list(range(len(nodes))) or not nodes:
        faults.append(f"nodes {[node['id'] for node in nodes]}; expected 0, 1, 2 ...")
    faults += [f"node {node['id']} has no CPU; expected some" for node in nodes if not node["cpus"]]
    faults += [f"node {node['id']} has unknown memory" for node in nodes if node["memory_bytes"] is None]
    domains = {function["bdf"].partition(":")[0] for function in topology["pci"]}
    if domains - {"0000"}:
        faults.append(f"PCI domains {sorted(domains)}; expected 0000 alone")
    if any(core["package"] is None or core["node"] is None for core in topology["cores"]):
        faults.append("a core of unknown socket or node")
    if faults:
        raise DescriptionError("; ".join(faults))


def _scales(topology: Topology) -> dict[str, dict[str, int]]:
    cores, nodes = topology["cores"], topology["numa_nodes"]
    sockets = len({core["package"] for core in cores})
    per_socket = len(cores) // sockets
    caches = len({core["l3"] for core in cores if core["l3"] is not None})
    least = min(node["memory_bytes"] or 0 for node in nodes) / GIB
    real = {
        "sockets": sockets,
        "cores_per_socket": per_socket,
        "threads_per_core": max(len(core["threads"]) for core in cores),
        "memory_gib_per_node": -int(-least // DIMM_GIB) * DIMM_GIB,
    }
    if caches > sockets:
        real["cores_per_l3"] = len(cores) // caches
    boot_cores = max(BOOT_CPUS // THREADS // sockets // 2, len(nodes) // sockets)
    boot = {
        "sockets": sockets,
        "cores_per_socket": boot_cores,
        "threads_per_core": THREADS,
        "memory_gib_per_node": BOOT_GIB // len(nodes),
    }
    return {"real": real, "boot": boot}


def _nodes(topology: Topology) -> list[dict[str, Any]]:
    sockets = sorted({core["package"] for core in topology["cores"] if core["package"] is not None})
    socket_of = {core["node"]: core["package"] for core in topology["cores"]}
    return [
        {
            "id": node["id"],
            "socket": sockets.index(socket_of[node["id"]] or 0),
            "distances": [node["distances"][str(other["id"])] for other in topology["numa_nodes"]],
        }
        for node in topology["numa_nodes"]
    ]
