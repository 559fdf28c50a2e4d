# Copyright: the topovirt.kvm authors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Layout -> what the guest's kernel should show. A plan's fidelity is judged on this before anything boots; what a
booted guest shows is the truth.

Bus numbers are counted here anew, as firmware does it, and not taken from the layout: a layout that gives an expander
bus too little room must lose devices here as it would in the guest.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TypedDict

from ansible_collections.topovirt.kvm.plugins.module_utils._topology.cpulist import parse_cpulist
from ansible_collections.topovirt.kvm.plugins.module_utils._topology.model import (
    SCHEMA,
    Core,
    Host,
    Iommu,
    Link,
    Node,
    PciFunction,
    Software,
    Topology,
)
from ansible_collections.topovirt.kvm.plugins.module_utils._topology.pci import bdf_key
from ansible_collections.topovirt.kvm.plugins.plugin_utils._guest.cpus import CpuTopology
from ansible_collections.topovirt.kvm.plugins.plugin_utils._guest.layout import Layout
from ansible_collections.topovirt.kvm.plugins.plugin_utils._guest.pcie_tree import Controller, GuestDevice

EXPANDER = "pcie-expander-bus"
LAST_BUS = 0xFF
# Ports by libvirt's model: kind, vendor and device (QEMU, include/hw/pci/pci.h and hw/pci-bridge/).
_PORTS = {
    "pcie-root-port": ("root_port", "1b36", "000c"),
    "pcie-switch-upstream-port": ("upstream_port", "104c", "8232"),
    "pcie-switch-downstream-port": ("downstream_port", "104c", "8233"),
}


class Expected(TypedDict):
    """Everything that the comparison of a guest with its host takes, but for the host."""

    guest_topology: Topology  # passed-through functions and the ports above them, no paravirtual device
    identity: dict[str, str]  # host BDF -> guest BDF, or "lost" and the planned one of a device that the guest loses
    node_map: dict[int | str, int]  # guest cell -> host node
    cpu_map: dict[int | str, int]  # vCPU -> host CPU


class _Bus:
    """Gives PCI functions their addresses, bus by bus.

    Firmware numbers depth first, in the order of slots. A root bus has the numbers from its own up to the one before
    the next root bus (edk2, OvmfPkg/Library/PciHostBridgeUtilityLib, the scan for root bridges). What is behind a port
    that gets no number does not exist for the guest. Which of several devices are lost is firmware's choice; that some
    are is not.
    """

    def __init__(self, layout: Layout, host: Mapping[str, PciFunction]) -> None:
        self.host = host
        self.pci: list[PciFunction] = []
        self.identity: dict[str, str] = {}
        self.ports: dict[int, list[Controller]] = {}
        self.devices: dict[int, list[GuestDevice]] = {}
        for controller in layout["pcie"]:
            self.ports.setdefault(controller["parent"], []).append(controller)
        for device in layout["devices"]:
            self.devices.setdefault(device["controller"], []).append(device)
        # The root complex of the machine itself is controller 0 and bus 0, on no node.
        roots: list[tuple[int, int, int | None]] = [(0, 0, None)]
        roots += [(c["bus"], c["index"], c["node"]) for c in self.ports.get(0, []) if c["model"] == EXPANDER]
        roots.sort(key=lambda root: root[0])
        limits = [following[0] - 1 for following in roots[1:]] + [LAST_BUS]
        for (number, index, node), limit in zip(roots, limits, strict=True):
            self.root, self.node, self.limit = f"0000:{number:02x}", node, limit
            self._visit(index, number, number, None)

    def _visit(self, index: int, number: int, used: int, parent: str | None) -> int:
        """Everything on bus ``number``, which controller ``index`` opens; returns the last number that is used."""
        for device in self.devices.get(index, []):
            bdf = f"0000:{number:02x}:{device['slot']:02x}.{device['function']:x}"
            self.identity[device["bdf"]] = bdf
            self.pci.append(self._endpoint(bdf, parent, self.host[device["bdf"]]))
        for port in sorted(self.ports.get(index, []), key=lambda port: (port["slot"], port["function"])):
            if port["model"] == EXPANDER:
                continue
            bdf = f"0000:{number:02x}:{port['slot']:02x}.{port['function']:x}"
            self.pci.append(self._port(bdf, parent, port["model"]))
            if used < self.limit:
                used = self._visit(port["index"], used + 1, used + 1, bdf)
        return used

    def _endpoint(self, bdf: str, parent: str | None, host: PciFunction) -> PciFunction:
        function: PciFunction = {**host, **self._place(bdf, parent)}
        function["driver_override"] = function["physfn"] = function["vm"] = None
        function["names"] = []
        return function

    def _port(self, bdf: str, parent: str | None, model: str) -> PciFunction:
        kind, vendor, device = _PORTS[model]
        function: PciFunction = {
            **self._place(bdf, parent),
            "kind": kind,
            "role": None,
            "class": "060400",
            "vendor": vendor,
            "device": device,
            "subsystem": None,
            "link": Link(max_gtps=None, max_width=None),  # emulated, and compared with nothing
            "capabilities": None,
        }
        return function

    def _place(self, bdf: str, parent: str | None) -> PciFunction:
        """The keys that a function's place decides; no IOMMU is emulated, so there are no groups."""
        return {  # type: ignore[typeddict-item]
            "bdf": bdf,
            "parent": parent,
            "host_bridge": self.root,
            "numa_node": self.node,
            "numa_source": None if self.node is None else "own",
            "driver": None,
            "iommu_group": None,
            "in_use": [],
        }


def _width(count: int) -> int:
    """Bits that number ``count`` things."""
    return (count - 1).bit_length()


def _cores(layout: Layout, host: Topology) -> list[Core]:
    """Cores of the guest: vCPUs are numbered thread by thread, core by core, die by die, socket by socket."""
    shape = layout["cpu_topology"]
    node_of = {cpu: cell["id"] for cell in layout["cells"] for cpu in parse_cpulist(cell["vcpus"])}
    caches = _caches(shape, len(layout["vcpu_pins"]), [cpu for _vcpu, cpu in layout["vcpu_pins"]], host)
    cores: list[Core] = []
    for first in range(0, len(layout["vcpu_pins"]), shape["threads"]):
        core, die, package = _position(first, shape)
        cores.append(
            Core(
                package=package,
                die=die,
                core=core,
                node=node_of.get(first),
                l3=caches[first],
                threads=list(range(first, first + shape["threads"])),
            )
        )
    return cores


def _position(vcpu: int, shape: CpuTopology) -> tuple[int, int, int]:
    """Core in its die, die in its package, package."""
    core = vcpu // shape["threads"]
    die = core // shape["cores"]
    return core % shape["cores"], die % shape["dies"], die // shape["dies"]


def _caches(shape: CpuTopology, vcpus: int, host_cpus: Sequence[int], host: Topology) -> list[int | None]:
    """The L3 of each vCPU: its first vCPU.

    With the host's cache information passed through, CPUs share an L3 whose APIC ids differ only in as many low bits as
    the host's number of CPUs below an L3 takes. For Intel's leaf QEMU keeps that within a package (target/i386/cpu.c,
    cpu_x86_cpuid, leaf 4); AMD's leaf 0x8000001D is the host's as it is. Derived from that source, not measured.
    """
    below: dict[int, set[int]] = {}
    for one in host["cores"]:
        if one["l3"] is not None:
            below.setdefault(one["l3"], set()).update(one["threads"])
    used = [len(cpus) for cpus in below.values() if cpus.intersection(host_cpus)]
    if not used:
        return [None] * vcpus
    shared = _width(max(used))
    thread_bits, core_bits, die_bits = _width(shape["threads"]), _width(shape["cores"]), _width(shape["dies"])
    package_bits = thread_bits + core_bits + die_bits
    if host["host"]["cpu_vendor"] != "AuthenticAMD":
        shared = min(shared, package_bits)
    first: dict[int, int] = {}
    found: list[int | None] = []
    for vcpu in range(vcpus):
        core, die, package = _position(vcpu, shape)
        apic = (package << package_bits) | (die << thread_bits + core_bits) | (core << thread_bits)
        found.append(first.setdefault((apic | vcpu % shape["threads"]) >> shared, vcpu))
    return found


def expected_guest(layout: Layout, host: Topology) -> Expected:
    """What the guest of a layout should show.

    :param host: the topology that the layout was made on.
    """
    functions = {function["bdf"]: function for function in host["pci"]}
    bus = _Bus(layout, functions)
    topology = Topology(
        schema=SCHEMA,
        host=Host(
            kernel="",
            arch=host["host"]["arch"],
            cmdline="",
            boot_id=None,
            firmware=layout["firmware"],
            os_id=None,
            os_version=None,
            cpu_vendor=host["host"]["cpu_vendor"],
            cpu_family=host["host"]["cpu_family"],
            cpu_model=host["host"]["cpu_model"],
            cpu_model_name=host["host"]["cpu_model_name"],
            virtualization=None,
            phys_bits=layout["mmio"]["phys_bits"],
            isolated_cpus=None,
            nohz_full_cpus=None,
            secure_boot=None,
            lockdown=None,
        ),
        iommu=Iommu(kind=None, active=False, default_domain=None, groups=0),
        software=Software(next_cmdline=None, libvirt=None, qemu=None, features={}),
        numa_nodes=[
            Node(
                id=cell["id"],
                cpus=cell["vcpus"],
                memory_bytes=cell["memory_bytes"],
                distances={str(other): distance for other, distance in enumerate(cell["distances"])},
                hugepages={},
            )
            for cell in layout["cells"]
        ],
        cores=_cores(layout, host),
        pci=sorted(bus.pci, key=lambda function: bdf_key(function["bdf"])),
        unknown=[],
    )
    planned = {device["bdf"]: device["guest_bdf"] for device in layout["devices"]}
    return Expected(
        guest_topology=topology,
        identity={bdf: bus.identity.get(bdf, f"lost {guest_bdf}") for bdf, guest_bdf in planned.items()},
        node_map={str(cell["id"]): cell["host_node"] for cell in layout["cells"]},
        cpu_map={str(vcpu): cpu for vcpu, cpu in layout["vcpu_pins"]},
    )
