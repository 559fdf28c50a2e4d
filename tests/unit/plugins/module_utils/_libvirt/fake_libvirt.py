# Copyright: the topovirt.kvm authors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""A libvirt for tests: the part of its Python binding that we call, over domains held in memory.

Like the real one it completes what it is given (automatic controllers, default attributes), keeps a live and a
persistent definition apart and answers with error codes. The figures are those of libvirt's public headers.
"""

from __future__ import annotations

import uuid
import xml.etree.ElementTree as ET
from collections.abc import Callable
from typing import Any

VIR_ERR_NO_DOMAIN = 42
VIR_ERR_OPERATION_INVALID = 55
VIR_DOMAIN_DEFINE_VALIDATE = 1
VIR_DOMAIN_XML_INACTIVE = 2
VIR_DOMAIN_SHUTDOWN_ACPI_POWER_BTN = 1
VIR_DOMAIN_SHUTDOWN_GUEST_AGENT = 2
VIR_DOMAIN_UNDEFINE_MANAGED_SAVE = 1
VIR_DOMAIN_UNDEFINE_SNAPSHOTS_METADATA = 2
VIR_DOMAIN_UNDEFINE_NVRAM = 4
VIR_DOMAIN_UNDEFINE_CHECKPOINTS_METADATA = 16


class libvirtError(Exception):
    def __init__(self, message: str, code: int = VIR_ERR_OPERATION_INVALID) -> None:
        super().__init__(message)
        self.code = code

    def get_error_code(self) -> int:
        return self.code


class Clock:
    """Time that passes only while somebody sleeps; ``events`` happen when it has passed."""

    def __init__(self) -> None:
        self.now = 0.0
        self.events: list[tuple[float, Callable[[], None]]] = []

    def time(self) -> float:
        return self.now

    def sleep(self, seconds: float) -> None:
        self.now += seconds
        due = [event for event in self.events if event[0] <= self.now]
        self.events = [event for event in self.events if event[0] > self.now]
        for _when, action in due:
            action()

    def after(self, seconds: float, action: Callable[[], None]) -> None:
        self.events.append((self.now + seconds, action))


def completed(xml: str) -> str:
    """What libvirt makes of a definition: more than was asked for, nothing of it changed in meaning."""
    root = ET.fromstring(xml)
    if root.find("uuid") is None:
        ET.SubElement(root, "uuid").text = str(uuid.uuid5(uuid.NAMESPACE_DNS, root.findtext("name") or ""))
    for memory in root.findall("memory"):
        if memory.get("unit") == "GiB":
            memory.set("unit", "KiB")
            memory.text = str(int(memory.text or "0") << 20)
        ET.SubElement(root, "currentMemory", unit="KiB").text = memory.text
    machine = root.find("os/type")
    if machine is not None and machine.get("machine") == "q35":
        machine.set("machine", "pc-q35-10.0")
    ET.SubElement(root, "on_crash").text = "destroy"
    devices = root.find("devices")
    if devices is not None:
        ET.SubElement(devices, "controller", type="sata", index="0")
        ET.SubElement(devices, "input", type="mouse", bus="ps2")
        for hostdev in devices.findall("hostdev"):
            ET.SubElement(hostdev, "driver", name="vfio")
            address = hostdev.find("source/address")
            if address is not None:
                address.set("bus", hex(int(address.get("bus", "0"), 0)))
    return ET.tostring(root, encoding="unicode")


class Domain:
    def __init__(self, connection: Connection, name: str) -> None:
        self.connection = connection
        self.name = name
        self.persistent_xml: str | None = None
        self.live_xml: str | None = None
        self.paused = False
        self.start_error: str | None = None
        self.agent: str | None = None  # "connected" or "disconnected" while it runs
        self.stops_after: dict[int, float] = {VIR_DOMAIN_SHUTDOWN_ACPI_POWER_BTN: 3}  # flag -> seconds
        self.calls: list[str] = []

    def isActive(self) -> int:
        self._known()
        return int(self.live_xml is not None)

    def isPersistent(self) -> int:
        return int(self.persistent_xml is not None)

    def autostart(self) -> int:
        return 0

    def state(self) -> list[int]:
        return [3 if self.paused else 1 if self.live_xml is not None else 5, 0]

    def XMLDesc(self, flags: int) -> str:
        self._known()
        text = self.persistent_xml if flags & VIR_DOMAIN_XML_INACTIVE or self.live_xml is None else self.live_xml
        assert text is not None
        if self.live_xml is None or flags & VIR_DOMAIN_XML_INACTIVE:
            return text
        root = ET.fromstring(text)
        root.set("id", "7")
        for target in root.findall("./devices/channel/target"):
            target.set("state", self.agent or "disconnected")
        for number, device in enumerate(root.findall("./devices/hostdev")):
            ET.SubElement(device, "alias", name=f"hostdev{number}")
        return ET.tostring(root, encoding="unicode")

    def create(self) -> None:
        self.calls.append("create")
        error = self.start_error or self.connection.start_error
        if error:
            raise libvirtError(error)
        self.live_xml = self.persistent_xml

    def resume(self) -> None:
        self.calls.append("resume")
        self.paused = False

    def stop(self) -> None:
        self.live_xml = None
        if self.persistent_xml is None:
            self.connection.domains.pop(self.name, None)

    def shutdownFlags(self, flags: int) -> None:
        self.calls.append(f"shutdown {flags}")
        if flags == VIR_DOMAIN_SHUTDOWN_GUEST_AGENT and self.agent != "connected":
            raise libvirtError("Guest agent is not responding")
        if flags in self.stops_after:
            self.connection.clock.after(self.stops_after[flags], self.stop)

    def destroy(self) -> None:
        self.calls.append("destroy")
        self.stop()

    def undefineFlags(self, flags: int) -> None:
        self.calls.append(f"undefine {flags}")
        self.persistent_xml = None
        if self.live_xml is None:
            self.connection.domains.pop(self.name)

    def _known(self) -> None:
        if self.name not in self.connection.domains:
            raise libvirtError("Domain not found", VIR_ERR_NO_DOMAIN)


class Connection:
    def __init__(self) -> None:
        self.domains: dict[str, Domain] = {}
        self.clock = Clock()
        self.start_error: str | None = None
        self.define_error: str | None = None
        self.closed = False

    def listAllDomains(self, _flags: int) -> list[Domain]:
        return list(self.domains.values())

    def lookupByName(self, name: str) -> Domain:
        if name not in self.domains:
            raise libvirtError(f"Domain not found: no domain with matching name '{name}'", VIR_ERR_NO_DOMAIN)
        return self.domains[name]

    def defineXML(self, xml: str) -> Domain:
        if self.define_error:
            raise libvirtError(self.define_error)
        name = ET.fromstring(xml).findtext("name") or ""
        domain = self.domains.setdefault(name, Domain(self, name))
        domain.calls.append("define")
        domain.persistent_xml = completed(xml)
        return domain

    def defineXMLFlags(self, xml: str, flags: int) -> Domain:
        if flags & VIR_DOMAIN_DEFINE_VALIDATE and "<unknown-to-the-schema" in xml:
            raise libvirtError("XML document failed to validate against schema")
        return self.defineXML(xml)

    def close(self) -> None:
        self.closed = True


class Binding:
    """Stands where the module ``libvirt`` stands."""

    libvirtError = libvirtError
    VIR_ERR_NO_DOMAIN = VIR_ERR_NO_DOMAIN
    VIR_DOMAIN_DEFINE_VALIDATE = VIR_DOMAIN_DEFINE_VALIDATE
    VIR_DOMAIN_XML_INACTIVE = VIR_DOMAIN_XML_INACTIVE
    VIR_DOMAIN_SHUTDOWN_ACPI_POWER_BTN = VIR_DOMAIN_SHUTDOWN_ACPI_POWER_BTN
    VIR_DOMAIN_SHUTDOWN_GUEST_AGENT = VIR_DOMAIN_SHUTDOWN_GUEST_AGENT
    VIR_DOMAIN_UNDEFINE_MANAGED_SAVE = VIR_DOMAIN_UNDEFINE_MANAGED_SAVE
    VIR_DOMAIN_UNDEFINE_SNAPSHOTS_METADATA = VIR_DOMAIN_UNDEFINE_SNAPSHOTS_METADATA
    VIR_DOMAIN_UNDEFINE_NVRAM = VIR_DOMAIN_UNDEFINE_NVRAM
    VIR_DOMAIN_UNDEFINE_CHECKPOINTS_METADATA = VIR_DOMAIN_UNDEFINE_CHECKPOINTS_METADATA

    def __init__(self, connection: Connection | None = None) -> None:
        self.connection = connection
        self.handler: Any = None

    def registerErrorHandler(self, handler: Any, context: Any) -> None:
        self.handler = handler

    def open(self, uri: str) -> Connection:
        if self.connection is None:
            raise libvirtError(f"Failed to connect socket of {uri}")
        return self.connection
