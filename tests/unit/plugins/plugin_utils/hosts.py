# Copyright: the topovirt.kvm authors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Topologies to plan on, made from a machine description: converted hosts, devices on vfio-pci, huge pages in place."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import yaml
from ansible_collections.topovirt.kvm.plugins.module_utils._topology.model import Core, PciFunction, Topology
from ansible_collections.topovirt.kvm.plugins.module_utils._topology.reserve import guest_pages

MACHINES = Path(__file__).parents[3] / "twin" / "machines"
GIB = 1 << 30
_SIZES = {"MiB": 1 << 20, "GiB": GIB}


def _function(bdf: str, kind: str, parent: str | None, bridge: str, node: int | None, group: int) -> PciFunction:
    return {
        "bdf": bdf,
        "kind": kind,
        "role": None,
        "class": "060400",
        "vendor": "104c",
        "device": "8232",
        "subsystem": None,
        "parent": parent,
        "host_bridge": bridge,
        "numa_node": node,
        "numa_source": "own",
        "driver": "pcieport",
        "driver_override": None,
        "iommu_group": group,
        "bars": [],
        "link": {"max_gtps": 32.0, "max_width": 16},
        "reset_methods": [],
        "capabilities": {},
        "power_state": "D0",
        "physfn": None,
        "names": [],
        "in_use": [],
        "vm": None,
        "module_id": None,
    }


class _Host:
    """Numbers buses depth first, as firmware does."""

    def __init__(self, description: dict[str, Any]) -> None:
        self.kinds = description["devices"]
        self.pci: list[PciFunction] = []
        self.group = 0

    def endpoint(self, spec: dict[str, Any], bdf: str, parent: str | None, bridge: str, node: int) -> None:
        function = _function(bdf, "endpoint", parent, bridge, node, self.group)
        function["driver"] = "vfio-pci"
        if "endpoint" in spec:
            kind = self.kinds[spec["endpoint"]]
            roles = {"030200": "gpu", "068000": "nvswitch", "020700": "nic"}
            function["role"] = roles[kind["class"]]
            function["class"] = kind["class"]
            function["vendor"], function["device"] = str(kind["vendor"]), str(kind["device"])
            function["subsystem"] = kind["subsystem"]
            function["bars"] = [
                {
                    "index": index,
                    "size_bytes": int(size[:-3]) * _SIZES[size[-3:]],
                    "is_64bit": True,
                    "prefetchable": True,
                }
                for index, size in kind["bars"].items()
            ]
            function["link"] = {"max_gtps": float(kind["link"][0]), "max_width": kind["link"][1]}
            function["module_id"] = spec.get("module_id")
        elif "nvme" in spec:
            function["role"], function["class"] = "nvme", "010802"
            function["vendor"], function["device"] = "1b36", "0010"
        else:
            function["class"], function["vendor"], function["device"] = "020000", "8086", "10c9"
            function["driver"] = "igb"
            if spec["network"] == "management":
                function["in_use"] = ["default route through eth0"]
        self.pci.append(function)

    def port(self, bridge: str, parent: str | None, bus: int, slot: int, kind: str, node: int) -> str:
        bdf = f"0000:{bus:02x}:{slot:02x}.0"
        self.group += 1
        self.pci.append(_function(bdf, kind, parent, bridge, node, self.group))
        return bdf

    def switch(self, members: list[dict[str, Any]], bus: int, parent: str, bridge: str, node: int) -> int:
        """Builds a switch whose upstream port sits on ``bus``; returns the next free bus number."""
        upstream = self.port(bridge, parent, bus, 0, "upstream_port", node)
        following = bus + 2
        for slot, member in enumerate(members):
            downstream = self.port(bridge, upstream, bus + 1, slot, "downstream_port", node)
            if "switch" in member:
                following = self.switch(member["switch"], following, downstream, bridge, node)
            else:
                self.endpoint(member, f"0000:{following:02x}:00.0", downstream, bridge, node)
                following += 1
        return following

    def bridge(self, spec: dict[str, Any]) -> None:
        name, node, following = f"0000:{spec['bus']:02x}", spec["node"], spec["bus"] + 1
        for slot, port in enumerate(spec["ports"]):
            root = self.port(name, None, spec["bus"], slot, "root_port", node)
            if "switch" in port:
                following = self.switch(port["switch"], following, root, name, node)
                continue
            self.group += 1
            for function, member in enumerate(port["functions"]):
                self.endpoint(member, f"0000:{following:02x}:00.{function}", root, name, node)
            following += 1


def host(scale: str = "real", machine: str | dict[str, Any] = "hgx-h200") -> Topology:
    """A converted host of the described machine at "real" or "boot" scale."""
    description = (
        yaml.safe_load((MACHINES / f"{machine}.yml").read_text(encoding="utf-8"))
        if isinstance(machine, str)
        else machine
    )
    builder = _Host(description)
    for bridge in description["host_bridges"]:
        builder.bridge(bridge)
    size = description["scale"][scale]
    per_socket, threads = size["cores_per_socket"], size["threads_per_core"]
    count = size["sockets"] * per_socket
    # As Linux numbers them on Intel servers: first threads of all cores, then second threads.
    cores: list[Core] = [
        {
            "package": core // per_socket,
            "die": 0,
            "core": core % per_socket,
            "node": core // per_socket,
            "l3": core // per_socket,
            "threads": [core + thread * count for thread in range(threads)],
        }
        for core in range(count)
    ]
    memory = size["memory_gib_per_node"] * GIB
    pages = guest_pages(memory, GIB)
    return {
        "schema": 1,
        "host": {
            "kernel": "6.12.0",
            "arch": "x86_64",
            "cmdline": "",
            "boot_id": None,
            "firmware": "uefi",
            "os_id": "debian",
            "os_version": "13",
            "cpu_vendor": "GenuineIntel",
            "cpu_family": 6,
            "cpu_model": 143,
            "cpu_model_name": None,
            "virtualization": "vmx",
            "phys_bits": 52,
            "isolated_cpus": "",
            "nohz_full_cpus": "",
            "secure_boot": False,
            "lockdown": "none",
        },
        "software": {"next_cmdline": "", "libvirt": None, "qemu": None, "features": {}},
        "unknown": [],
        "iommu": {"kind": description["iommu"], "active": True, "default_domain": "DMA-FQ", "groups": builder.group},
        "numa_nodes": [
            {
                "id": node["id"],
                "cpus": "",
                "memory_bytes": memory,
                "distances": {str(other): distance for other, distance in enumerate(node["distances"])},
                "hugepages": {"1048576": {"total": pages, "free": pages}, "2048": {"total": 0, "free": 0}},
            }
            for node in description["nodes"]
        ],
        "cores": cores,
        "pci": sorted(builder.pci, key=lambda function: function["bdf"]),
    }


def request(name: str, gpus: int, **more: Any) -> dict[str, Any]:
    """A request that boots a kernel."""
    boot = {"kernel": "/images/vmlinuz", "initrd": "/images/initrd", "cmdline": "console=ttyS0"}
    return {"name": name, "gpus": gpus, "boot": boot, **more}
