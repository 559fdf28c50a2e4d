# Copyright: the topovirt.kvm authors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""The machine description: YAML to typed data, checked in full before anything is built from it.

A description is the single source of an emulated server: of its QEMU command line (``qemu.py``), of the config spaces
of its endpoints (``config_space.py``) and of its recorded tree (``recorded.py``). ``machines/hgx-h200.yml`` shows
the usual elements, ``hgx-a100.yml`` switches below switches, ``hgx-b200.yml`` vital product data.
"""

from __future__ import annotations

import dataclasses
import re
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml

MACHINES = Path(__file__).parent / "machines"

# PCI Express: lane speeds in GT/s and their code in the link registers (PCIe base specification, link capabilities).
LINK_SPEED_CODES = {2.5: 1, 5.0: 2, 8.0: 3, 16.0: 4, 32.0: 5, 64.0: 6}
LINK_WIDTHS = (1, 2, 4, 8, 16)
IOMMU_KINDS = ("dmar", "ivrs")  # by the ACPI table that announces it: Intel's and AMD's
CPU_VENDORS = ("GenuineIntel", "AuthenticAMD")
NETWORKS = ("management", "none")
SCALES = ("real", "boot")

_SIZES = {"KiB": 1 << 10, "MiB": 1 << 20, "GiB": 1 << 30}


class DescriptionError(Exception):
    """A description that cannot be used; the message lists every fault with element, value and what was expected."""


@dataclass(frozen=True)
class Link:
    """The widest and fastest that a port or endpoint can do."""

    gtps: float
    width: int


@dataclass(frozen=True)
class Vpd:
    """Vital product data: the product's name and the read-only fields by keyword."""

    name: str
    fields: Mapping[str, str]


@dataclass(frozen=True)
class EndpointKind:
    """What endpoints of one kind have in common."""

    name: str
    vendor: int
    device: int
    class_code: int  # 24 bits: base class, sub-class, interface
    revision: int
    subsystem_vendor: int
    subsystem_device: int
    bars: Mapping[int, int]  # index of the BAR's first register -> bytes; all are 64-bit memory BARs
    link: Link
    ats: bool
    flr: bool
    native_driver: str  # the driver that holds it on a bare-metal server
    vpd: Vpd | None = None


@dataclass(frozen=True)
class Endpoint:
    """An inert endpoint that answers over vfio-user."""

    name: str
    kind: EndpointKind
    module_id: int | None  # a GPU's number on its baseboard
    serial: int  # 64-bit device serial number, unique in the machine


@dataclass(frozen=True)
class Nvme:
    """QEMU's own NVMe controller with one namespace."""

    name: str
    serial: str
    size_mib: int


@dataclass(frozen=True)
class Igb:
    """QEMU's own Intel 82576 network card, which has working SR-IOV."""

    name: str
    network: str  # one of NETWORKS


Device = Endpoint | Nvme | Igb


@dataclass(frozen=True)
class Slot:
    """One slot below a root port or a downstream port; its devices are functions 0, 1 ... of one card."""

    devices: tuple[Device, ...]

    @property
    def buses(self) -> int:
        """How many bus numbers it takes, from the bus that it is on."""
        return 1

    def slots(self) -> Iterator[Slot]:
        yield self


@dataclass(frozen=True)
class Switch:
    """A PCIe switch below a root port or a downstream port of another switch: what each of its downstream ports has."""

    ports: tuple[Switch | Slot, ...]

    @property
    def buses(self) -> int:
        """The bus of its upstream port, the bus inside, and what is below."""
        return 2 + sum(port.buses for port in self.ports)

    def slots(self) -> Iterator[Slot]:
        for port in self.ports:
            yield from port.slots()


@dataclass(frozen=True)
class HostBridge:
    bus: int
    node: int
    ports: tuple[Switch | Slot, ...]

    def slots(self) -> Iterator[Slot]:
        for port in self.ports:
            yield from port.slots()


@dataclass(frozen=True)
class Node:
    id: int
    socket: int
    distances: tuple[int, ...]


@dataclass(frozen=True)
class Scale:
    """How large the CPU and memory part is: as sold, or as booted for tests."""

    sockets: int
    cores_per_socket: int
    threads_per_core: int
    memory_gib_per_node: int
    cores_per_l3: int

    @property
    def cpus(self) -> int:
        return self.sockets * self.cores_per_socket * self.threads_per_core


@dataclass(frozen=True)
class Cpu:
    """The CPU that the server is sold with; booted, it is the emulated one (``qemu.py``)."""

    vendor: str  # one of CPU_VENDORS
    family: int
    model: int
    name: str
    physical_bits: int
    virtual_bits: int


@dataclass(frozen=True)
class Machine:
    name: str
    title: str
    variant: str | None
    cpu: Cpu
    scales: Mapping[str, Scale]
    nodes: tuple[Node, ...]
    iommu: str | None  # one of IOMMU_KINDS, None when the firmware offers none
    switch_link: Link
    host_bridges: tuple[HostBridge, ...]

    def slots(self) -> Iterator[Slot]:
        """Every slot in the order of the description."""
        for bridge in self.host_bridges:
            yield from bridge.slots()

    def devices(self) -> Iterator[Device]:
        """Every device in the order of the description."""
        for slot in self.slots():
            yield from slot.devices

    def endpoints(self) -> Iterator[Endpoint]:
        return (device for device in self.devices() if isinstance(device, Endpoint))


def _without_iommu(machine: Machine) -> Machine:
    """The same server with its IOMMU switched off in the firmware's setup."""
    return dataclasses.replace(machine, iommu=None)


VARIANTS: Mapping[str, Callable[[Machine], Machine]] = {"no-iommu": _without_iommu}


def names() -> list[str]:
    """Names of the machines that are described."""
    return sorted(path.stem for path in MACHINES.glob("*.yml"))


def load(machine: str, variant: str | None = None) -> Machine:
    """Read the description called ``machine`` (or the file at that path) and apply ``variant``."""
    path = Path(machine) if machine.endswith(".yml") else MACHINES / f"{machine}.yml"
    if not path.is_file():
        raise DescriptionError(f"machine '{machine}': no such description; there are: {', '.join(names())}")
    try:
        data = yaml.safe_load(path.read_text(encoding="utf-8"))
    except yaml.YAMLError as error:
        raise DescriptionError(f"{path.name}: not YAML: {error}") from error
    result = parse(data, path.name)
    if variant is None:
        return result
    if variant not in VARIANTS:
        raise DescriptionError(f"variant '{variant}': unknown; there are: {', '.join(sorted(VARIANTS))}")
    return dataclasses.replace(VARIANTS[variant](result), variant=variant)


def parse(data: Any, source: str = "description") -> Machine:
    """Turn the parsed YAML of a description into a :class:`Machine` or raise one error with every fault."""
    return _Parser(source).machine(data)


class _Parser:
    """Collects faults while it builds, so that one run shows them all. Placeholders never leave it."""

    def __init__(self, source: str) -> None:
        self.source = source
        self.faults: list[str] = []
        self.kinds: dict[str, EndpointKind] = {}
        self.names: set[str] = set()
        self.serials: set[str] = set()
        self.endpoint_count = 0

    def fault(self, where: str, value: object, expected: str) -> None:
        self.faults.append(f"{where}: {value!r}; expected {expected}")

    def mapping(
        self, data: Any, where: str, required: set[str], optional: frozenset[str] = frozenset()
    ) -> dict[str, Any]:
        if not isinstance(data, dict):
            self.fault(where, data, "a mapping")
            return {}
        for key in sorted(required - set(data)):
            self.faults.append(f"{where}.{key}: missing")
        for key in sorted(set(map(str, data)) - required - optional):
            self.faults.append(f"{where}.{key}: unknown; expected one of {', '.join(sorted(required | optional))}")
        return data

    def items(self, data: Any, where: str) -> list[Any]:
        if isinstance(data, list) and data:
            return data
        if data is not None:
            self.fault(where, data, "a list that is not empty")
        return []

    def integer(self, data: dict[str, Any], key: str, where: str, low: int, high: int) -> int:
        value = data.get(key, low)
        if isinstance(value, bool) or not isinstance(value, int) or not low <= value <= high:
            self.fault(f"{where}.{key}", value, f"a whole number from {low} to {high}")
            return low
        return value

    def text(self, data: dict[str, Any], key: str, where: str, pattern: str = r".+") -> str:
        value = data.get(key, "")
        if key in data and not (isinstance(value, str) and re.fullmatch(pattern, value)):
            self.fault(
                f"{where}.{key}", value, f"text like {pattern}" + ("" if isinstance(value, str) else " (quote it)")
            )
        return str(value)

    def choice(self, data: dict[str, Any], key: str, where: str, choices: tuple[str, ...]) -> str:
        value = data.get(key, choices[0])
        if value not in choices:
            self.fault(f"{where}.{key}", value, " or ".join(choices))
        return str(value)

    def boolean(self, data: dict[str, Any], key: str, where: str) -> bool:
        value = data.get(key, False)
        if not isinstance(value, bool):
            self.fault(f"{where}.{key}", value, "true or false")
        return bool(value)

    def hexadecimal(self, data: dict[str, Any], key: str, where: str, digits: int) -> int:
        value = self.text(data, key, where, rf"[0-9a-f]{{{digits}}}")
        return int(value, 16) if re.fullmatch(r"[0-9a-f]+", value) else 0

    def machine(self, data: Any) -> Machine:
        required = {"schema", "name", "title", "cpu", "scale", "nodes", "iommu", "devices", "switch", "host_bridges"}
        top = self.mapping(data, self.source, required)
        if top.get("schema", 1) != 1:
            self.fault("schema", top["schema"], "1")
        scales = {name: self.scale(top.get("scale"), name) for name in SCALES}
        nodes = tuple(
            self.node(item, f"nodes[{i}]", i, top) for i, item in enumerate(self.items(top.get("nodes"), "nodes"))
        )
        for name, scale in scales.items():
            sockets = {node.socket for node in nodes}
            if sockets != set(range(scale.sockets)):
                self.fault(f"scale.{name}.sockets", scale.sockets, f"as many as the nodes name: {sorted(sockets)}")
        kinds = self.mapping(top.get("devices", {}), "devices", set(), frozenset(map(str, top.get("devices") or {})))
        self.kinds = {name: self.kind(item, name) for name, item in kinds.items()}
        switch = self.mapping(top.get("switch", {}), "switch", {"link"})
        bridges = tuple(
            self.host_bridge(item, f"host_bridges[{i}]", len(nodes))
            for i, item in enumerate(self.items(top.get("host_bridges"), "host_bridges"))
        )
        self.check_buses(bridges)
        result = Machine(
            name=self.text(top, "name", self.source, r"[a-z0-9][a-z0-9-]*"),
            title=self.text(top, "title", self.source),
            variant=None,
            cpu=self.cpu(top.get("cpu")),
            scales=scales,
            nodes=nodes,
            iommu=self.choice(top, "iommu", self.source, IOMMU_KINDS),
            switch_link=self.link(switch, "switch"),
            host_bridges=bridges,
        )
        if self.faults:
            raise DescriptionError("\n".join(f"{self.source}: {fault}" for fault in self.faults))
        return result

    def cpu(self, item: Any) -> Cpu:
        keys = {"vendor", "family", "model", "name", "physical_bits", "virtual_bits"}
        data = self.mapping(item, "cpu", keys)
        return Cpu(
            vendor=self.choice(data, "vendor", "cpu", CPU_VENDORS),
            family=self.integer(data, "family", "cpu", 0, 0xFFFF),
            model=self.integer(data, "model", "cpu", 0, 0xFFFF),
            name=self.text(data, "name", "cpu"),
            physical_bits=self.integer(data, "physical_bits", "cpu", 32, 52),
            virtual_bits=self.integer(data, "virtual_bits", "cpu", 48, 57),
        )

    def scale(self, scales: Any, name: str) -> Scale:
        data = self.mapping(scales, "scale", set(SCALES)).get(name, {})
        where = f"scale.{name}"
        keys = {"sockets", "cores_per_socket", "threads_per_core", "memory_gib_per_node"}
        data = self.mapping(data, where, keys, frozenset({"cores_per_l3"}))
        cores = self.integer(data, "cores_per_socket", where, 1, 256)
        cores_per_l3 = self.integer(data, "cores_per_l3", where, 1, cores) if "cores_per_l3" in data else cores
        if cores % cores_per_l3:
            self.fault(f"{where}.cores_per_l3", cores_per_l3, f"a divisor of cores_per_socket, {cores}")
        return Scale(
            sockets=self.integer(data, "sockets", where, 1, 8),
            cores_per_socket=cores,
            threads_per_core=self.integer(data, "threads_per_core", where, 1, 2),
            memory_gib_per_node=self.integer(data, "memory_gib_per_node", where, 1, 1 << 16),
            cores_per_l3=cores_per_l3,
        )

    def node(self, item: Any, where: str, position: int, top: dict[str, Any]) -> Node:
        data = self.mapping(item, where, {"id", "socket", "distances"})
        if data.get("id", position) != position:
            self.fault(f"{where}.id", data["id"], f"{position}, its position")
        count = len(top.get("nodes") or [])
        distances = data.get("distances", [])
        if not (isinstance(distances, list) and len(distances) == count and all(isinstance(d, int) for d in distances)):
            self.fault(f"{where}.distances", distances, f"{count} whole numbers")
        elif any((d == 10) != (i == position) or not 10 <= d <= 254 for i, d in enumerate(distances)):
            self.fault(f"{where}.distances", distances, "10 to itself, 11 to 254 to others")
        return Node(id=position, socket=self.integer(data, "socket", where, 0, 7), distances=tuple(distances))

    def kind(self, item: Any, name: str) -> EndpointKind:
        where = f"devices.{name}"
        keys = {"vendor", "device", "class", "revision", "subsystem", "bars", "link", "ats", "flr", "native_driver"}
        data = self.mapping(item, where, keys, frozenset({"vpd"}))
        subsystem = self.text(data, "subsystem", where, r"[0-9a-f]{4}:[0-9a-f]{4}")
        vendor, _, device = subsystem.partition(":")
        return EndpointKind(
            name=name,
            vendor=self.hexadecimal(data, "vendor", where, 4),
            device=self.hexadecimal(data, "device", where, 4),
            class_code=self.hexadecimal(data, "class", where, 6),
            revision=self.hexadecimal(data, "revision", where, 2),
            subsystem_vendor=int(vendor, 16) if re.fullmatch(r"[0-9a-f]{4}", vendor) else 0,
            subsystem_device=int(device, 16) if re.fullmatch(r"[0-9a-f]{4}", device) else 0,
            bars=self.bars(data.get("bars", {}), f"{where}.bars"),
            link=self.link(data, where),
            ats=self.boolean(data, "ats", where),
            flr=self.boolean(data, "flr", where),
            native_driver=self.text(data, "native_driver", where, r"[a-z0-9_-]+"),
            vpd=self.vpd(data["vpd"], f"{where}.vpd") if "vpd" in data else None,
        )

    def vpd(self, item: Any, where: str) -> Vpd:
        """Lengths are those that the format can hold; RV is the checksum, which nobody writes by hand."""
        data = self.mapping(item, where, {"name", "fields"})
        fields = data.get("fields", {})
        fields = self.mapping(fields, f"{where}.fields", set(), frozenset(map(str, fields)))
        for keyword in fields:
            if not re.fullmatch(r"[A-Z][A-Z0-9]", str(keyword)) or keyword == "RV":
                self.fault(f"{where}.fields", keyword, "a keyword of two capitals or digits, not RV")
            self.text(fields, keyword, f"{where}.fields", r"[ -~]{1,255}")
        return Vpd(self.text(data, "name", where, r"[ -~]{1,255}"), fields)

    def bars(self, data: Any, where: str) -> dict[int, int]:
        result: dict[int, int] = {}
        entries: dict[Any, Any] = self.mapping(data, where, set(), frozenset("024"))
        for index, text in entries.items():
            match = re.fullmatch(r"([1-9][0-9]*)(KiB|MiB|GiB)", text) if isinstance(text, str) else None
            size = int(match[1]) * _SIZES[match[2]] if match else 0
            if size < 4096 or size & (size - 1):
                self.fault(f"{where}.{index}", text, "a power of two like 32MiB, at least 4KiB")
            elif index in (0, 2, 4):
                result[index] = size
        return result

    def link(self, data: dict[str, Any], where: str) -> Link:
        value = data.get("link", [2.5, 1])
        if not (
            isinstance(value, list) and len(value) == 2 and value[0] in LINK_SPEED_CODES and value[1] in LINK_WIDTHS
        ):
            self.fault(
                f"{where}.link", value, f"[GT/s, lanes], GT/s of {list(LINK_SPEED_CODES)}, lanes of {list(LINK_WIDTHS)}"
            )
            return Link(2.5, 1)
        return Link(float(value[0]), value[1])

    def host_bridge(self, item: Any, where: str, node_count: int) -> HostBridge:
        data = self.mapping(item, where, {"bus", "node", "ports"})
        ports = self.items(data.get("ports"), f"{where}.ports")
        return HostBridge(
            bus=self.integer(data, "bus", where, 1, 0xFF),
            node=self.integer(data, "node", where, 0, max(0, node_count - 1)),
            ports=tuple(self.port(port, f"{where}.ports[{i}]") for i, port in enumerate(ports)),
        )

    def port(self, item: Any, where: str) -> Switch | Slot:
        data = self.mapping(item, where, set(), frozenset({"switch", "functions"}))
        if len(data) != 1:
            self.fault(where, item, "either switch: or functions:")
        key = "switch" if "switch" in data else "functions"
        entries = self.items(data.get(key), f"{where}.{key}")
        limit = 32 if key == "switch" else 8
        if len(entries) > limit:
            self.fault(f"{where}.{key}", f"{len(entries)} devices", f"{limit} at most")
        if key == "functions":
            return Slot(tuple(self.device(entry, f"{where}.{key}[{i}]") for i, entry in enumerate(entries)))
        return Switch(tuple(self.downstream(entry, f"{where}.{key}[{i}]") for i, entry in enumerate(entries)))

    def downstream(self, item: Any, where: str) -> Switch | Slot:
        """What is below a downstream port: a device alone needs no list of functions."""
        if isinstance(item, dict) and item.keys() & {"switch", "functions"}:
            return self.port(item, where)
        return Slot((self.device(item, where),))

    def device(self, item: Any, where: str) -> Device:
        result: Device
        if isinstance(item, dict) and "nvme" in item:
            data = self.mapping(item, where, {"nvme", "serial", "size_mib"})
            serial = self.text(data, "serial", where, r"[A-Z0-9]{1,20}")
            if serial in self.serials:
                self.fault(f"{where}.serial", serial, "a serial that no other NVMe has")
            self.serials.add(serial)
            result = Nvme(self.name(data, "nvme", where), serial, self.integer(data, "size_mib", where, 1, 1 << 20))
        elif isinstance(item, dict) and "igb" in item:
            data = self.mapping(item, where, {"igb", "network"})
            result = Igb(self.name(data, "igb", where), self.choice(data, "network", where, NETWORKS))
        else:
            data = self.mapping(item, where, {"endpoint", "name"}, frozenset({"module_id"}))
            result = self.endpoint(data, where)
        return result

    def endpoint(self, data: dict[str, Any], where: str) -> Endpoint:
        kind = self.kinds.get(str(data.get("endpoint")))
        if kind is None:
            self.fault(f"{where}.endpoint", data.get("endpoint"), f"one of {', '.join(self.kinds)}")
            kind = EndpointKind("", 0, 0, 0, 0, 0, 0, {}, Link(2.5, 1), False, False, "")
        module_id = self.integer(data, "module_id", where, 1, 255) if "module_id" in data else None
        if module_id is not None and f"module {module_id}" in self.serials:
            self.fault(f"{where}.module_id", module_id, "a module id that no other endpoint has")
        self.serials.add(f"module {module_id}")
        self.endpoint_count += 1
        # High half: the kind's ids, low half: a running number; unique in the machine and stable over boots.
        serial = (kind.vendor << 48) | (kind.device << 32) | self.endpoint_count
        return Endpoint(self.name(data, "name", where), kind, module_id, serial)

    def name(self, data: dict[str, Any], key: str, where: str) -> str:
        name = self.text(data, key, where, r"[a-z][a-z0-9]*")
        if name in self.names:
            self.fault(f"{where}.{key}", name, "a name that no other device has")
        self.names.add(name)
        return name

    def check_buses(self, bridges: tuple[HostBridge, ...]) -> None:
        """Each root bus must leave room for the buses that the firmware numbers below it."""
        limits = [bridge.bus for bridge in bridges[1:]] + [0x100]
        for index, (bridge, limit) in enumerate(zip(bridges, limits, strict=False)):
            last = bridge.bus + sum(port.buses for port in bridge.ports)
            if last >= limit:
                self.fault(
                    f"host_bridges[{index}].bus",
                    hex(bridge.bus),
                    f"ascending, with room up to bus {last:#04x} below it",
                )
        management = [
            device
            for bridge in bridges
            for slot in bridge.slots()
            for device in slot.devices
            if isinstance(device, Igb) and device.network == "management"
        ]
        if len(management) != 1:
            self.fault(
                "host_bridges", f"{len(management)} cards with network management", "exactly one, which carries SSH"
            )
