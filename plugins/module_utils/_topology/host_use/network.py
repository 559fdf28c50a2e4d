# Copyright: the topovirt.kvm authors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Network interfaces that the host uses, down to the PCI functions that they rest on."""

from __future__ import annotations

import ipaddress
import json
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Callable, NamedTuple, Union

from ansible_collections.topovirt.kvm.plugins.module_utils._topology.host_use import reading

# (arguments) -> (exit status, standard output, standard error), as AnsibleModule.run_command
Run = Callable[[list[str]], tuple[int, str, str]]
Address = Union[ipaddress.IPv4Address, ipaddress.IPv6Address]
Network = Union[ipaddress.IPv4Network, ipaddress.IPv6Network]

_UP = 0x1  # IFF_UP, include/uapi/linux/if.h
_RTF_UP = 0x1  # include/uapi/linux/route.h
_RTF_LOCAL = 0x80000000  # include/uapi/linux/ipv6_route.h
_TCP_ESTABLISHED = "01"  # include/net/tcp_states.h


class _Route(NamedTuple):
    interface: str
    network: Network
    has_gateway: bool


class Nets:
    """The network interfaces, what each rests on, addresses and routes."""

    def __init__(self, root: Path, run: Run | None) -> None:
        self.root = root
        self.directory = root / "sys/class/net"
        self.names = [name for name in reading.names(self.directory) if (self.directory / name).is_dir()]
        self.routes = [*self._routes4(), *self._routes6()]
        self.addresses = self._addresses(run)

    def pci_of(self, name: str, seen: tuple[str, ...] = ()) -> list[str]:
        """The PCI functions below interface ``name``: its own, or those of all interfaces it is stacked on."""
        if name in seen or name not in self.names:
            return []
        own = reading.bdf_of(self.directory / name / "device") if (self.directory / name / "device").exists() else None
        found = {own} if own else set()
        for entry in reading.names(self.directory / name):
            lower = entry[len("lower_") :] if entry.startswith("lower_") else None
            if lower:
                found.update(self.pci_of(lower, (*seen, name)))
        for lower in reading.text(self.directory / name / "bonding/slaves").split() + reading.names(
            self.directory / name / "brif"
        ):
            found.update(self.pci_of(lower, (*seen, name)))
        return sorted(found)

    def is_up(self, name: str) -> bool:
        flags = reading.text(self.directory / name / "flags").strip()
        if flags:
            return bool(int(flags, 16) & _UP)
        return reading.text(self.directory / name / "operstate").strip() not in ("down", "notpresent", "")

    def uppers(self, name: str) -> list[str]:
        """Interfaces stacked directly on ``name``: bond, bridge, VLAN, macvlan, team, Open vSwitch."""
        found = {entry[len("upper_") :] for entry in reading.names(self.directory / name) if entry.startswith("upper_")}
        for link in ("master", "brport/bridge"):
            target = reading.link_name(self.directory / name / link)
            if target:
                found.add(target)
        for line in reading.text(self.root / "proc/net/vlan/config").splitlines():  # "eth0.5 | 5 | eth0"
            fields = [field.strip() for field in line.split("|")]
            if len(fields) == 3 and fields[2] == name:
                found.add(fields[0])
        for other in self.names:
            if name in reading.text(self.directory / other / "bonding/slaves").split():
                found.add(other)
        return sorted(found)

    def kind(self, name: str) -> str:
        """What an upper interface is, in words."""
        for entry, kind in (("bonding", "bond"), ("bridge", "bridge")):
            if (self.directory / name / entry).is_dir():
                return kind
        for line in reading.text(self.directory / name / "uevent").splitlines():
            if line.startswith("DEVTYPE="):
                return {"vlan": "VLAN", "bond": "bond", "bridge": "bridge"}.get(line[8:], line[8:])
        if name in reading.names(self.root / "proc/net/vlan"):
            return "VLAN"
        return "interface"

    def towards(self, host: str) -> list[str]:
        """The PCI functions that carry the route to ``host``; a name that is no address takes the default route."""
        try:
            address: Address | None = ipaddress.ip_address(host.strip("[]"))
        except ValueError:
            address = None
        if address is not None and address.is_loopback:
            return []
        if address is None:
            routes = [route for route in self.routes if route.network.prefixlen == 0]
        else:
            routes = [r for r in self.routes if r.network.version == address.version and address in r.network]
            longest = max((route.network.prefixlen for route in routes), default=0)
            routes = [route for route in routes if route.network.prefixlen == longest]
        return sorted({bdf for route in routes for bdf in self.pci_of(route.interface)})

    def _routes4(self) -> Iterator[_Route]:
        for line in reading.text(self.root / "proc/net/route").splitlines()[1:]:
            fields = line.split()
            if len(fields) >= 8 and int(fields[3], 16) & _RTF_UP:
                address, gateway, mask = (
                    ipaddress.IPv4Address(int.from_bytes(bytes.fromhex(fields[i]), "little")) for i in (1, 2, 7)
                )
                network = ipaddress.IPv4Network((address, str(mask)), strict=False)
                yield _Route(fields[0], network, int(gateway) != 0)

    def _routes6(self) -> Iterator[_Route]:
        for line in reading.text(self.root / "proc/net/ipv6_route").splitlines():
            fields = line.split()
            if len(fields) < 10 or fields[9] == "lo" or int(fields[8], 16) & _RTF_LOCAL:
                continue
            network = ipaddress.IPv6Network((int(fields[0], 16), int(fields[1], 16)), strict=False)
            if not (network.is_link_local or network.network_address.is_multicast):
                yield _Route(fields[9], network, int(fields[4], 16) != 0)

    def _addresses(self, run: Run | None) -> dict[str, list[Address]]:
        """Addresses per interface. Link-local IPv6 addresses, which the kernel makes itself, do not count."""
        found: dict[str, list[Address]] = {}
        for line in reading.text(self.root / "proc/net/if_inet6").splitlines():
            fields = line.split()
            if len(fields) == 6:
                address = ipaddress.IPv6Address(int(fields[0], 16))
                if not address.is_link_local and not address.is_loopback:
                    found.setdefault(fields[5], []).append(address)
        listed = self._asked(run)
        if listed is not None:
            for name, addresses in listed.items():
                found.setdefault(name, []).extend(addresses)
            return found
        for address4 in self._local4():
            routes = [r for r in self.routes if not r.has_gateway and address4 in r.network]
            for route in sorted(routes, key=lambda r: -r.network.prefixlen)[:1]:
                found.setdefault(route.interface, []).append(address4)
        return found

    def _asked(self, run: Run | None) -> dict[str, list[Address]] | None:
        if run is None:
            return None
        try:
            status, out, _errors = run(["ip", "-4", "-j", "address", "show"])
            links = json.loads(out) if status == 0 else None
        except (OSError, ValueError):
            return None
        if not isinstance(links, list):
            return None
        found: dict[str, list[Address]] = {}
        for link in links:
            locals_ = [info["local"] for info in link.get("addr_info", []) if info.get("local")]
            if locals_ and link["ifname"] != "lo":
                found[link["ifname"]] = [ipaddress.ip_address(local) for local in locals_]
        return found

    def _local4(self) -> list[ipaddress.IPv4Address]:
        """The host's own IPv4 addresses: leaves ``/32 host LOCAL`` of the kernel's routing trie."""
        found: list[ipaddress.IPv4Address] = []
        last = ""
        for line in reading.text(self.root / "proc/net/fib_trie").splitlines():
            leaf = re.match(r"\s*\|-- ([0-9.]+)", line)
            if leaf:
                last = leaf.group(1)
            elif re.match(r"\s*/32 host LOCAL", line) and last:
                address = ipaddress.IPv4Address(last)
                if not address.is_loopback and address not in found:
                    found.append(address)
        return found


def interfaces(nets: Nets) -> Iterator[tuple[str, str]]:
    for name in nets.names:
        functions = nets.pci_of(name)
        if not functions:
            continue
        reasons = []
        if nets.is_up(name) and nets.addresses.get(name):
            reasons.append(f"interface {name} is up with address {', '.join(map(str, nets.addresses[name]))}")
        for route in nets.routes:
            if route.interface == name:
                what = "the default route" if route.network.prefixlen == 0 else f"the route to {route.network}"
                reasons.append(f"interface {name} carries {what}")
        reasons += [f"interface {name} belongs to the {nets.kind(upper)} {upper}" for upper in nets.uppers(name)]
        for reason in reasons:
            for bdf in functions:
                yield bdf, reason


def _tcp_address(text: str) -> Address:
    """An address of /proc/net/tcp or tcp6: words of 32 bits in host order (x86: little endian)."""
    raw = b"".join(bytes.fromhex(text[i : i + 8])[::-1] for i in range(0, len(text), 8))
    address = ipaddress.ip_address(raw)
    mapped = address.ipv4_mapped if isinstance(address, ipaddress.IPv6Address) else None
    return mapped or address


def ssh_sessions(root: Path, nets: Nets, sockets: set[str]) -> Iterator[tuple[str, str]]:
    for table in ("tcp", "tcp6"):
        for line in reading.text(root / "proc/net" / table).splitlines()[1:]:
            fields = line.split()
            if len(fields) < 10 or fields[3] != _TCP_ESTABLISHED or fields[9] not in sockets:
                continue
            local = _tcp_address(fields[1].split(":")[0])
            for name, addresses in nets.addresses.items():
                if local in addresses:
                    for bdf in nets.pci_of(name):
                        yield bdf, f"an SSH session runs through interface {name} ({local})"
