# Copyright: the topovirt.kvm authors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Network interfaces that the host uses, down to the PCI functions that they rest on."""

from __future__ import annotations

import ipaddress
import re
from collections.abc import Iterator
from itertools import islice
from typing import Callable, NamedTuple, Union

from ansible_collections.topovirt.kvm.plugins.module_utils._topology.host_use import reading
from ansible_collections.topovirt.kvm.plugins.module_utils._topology.sysfs import Tree

# (arguments) -> (exit status, standard output, standard error), as AnsibleModule.run_command
Run = Callable[[list[str]], tuple[int, str, str]]
Address = Union[ipaddress.IPv4Address, ipaddress.IPv6Address]
Network = Union[ipaddress.IPv4Network, ipaddress.IPv6Network]

_NET = "sys/class/net"

_UP = 0x1  # IFF_UP, include/uapi/linux/if.h
_RTF_UP = 0x1  # include/uapi/linux/route.h
_RTF_LOCAL = 0x80000000  # include/uapi/linux/ipv6_route.h
_TCP_ESTABLISHED = "01"  # include/net/tcp_states.h


class _Route(NamedTuple):
    interface: str
    network: Network
    has_gateway: bool


class Nets:
    """The network interfaces, what each rests on, addresses and routes.

    All names are as the text of a file would have them: tables, links and directories name the same interfaces.
    """

    def __init__(self, tree: Tree, run: Run | None) -> None:
        self.tree = tree
        listed = (name for name in tree.names(_NET) if tree.is_directory(f"{_NET}/{name}"))
        self._paths = {reading.shown(name): f"{_NET}/{name}" for name in listed}
        self.names = list(self._paths)
        self._entries = {name: self._shown_names(path) for name, path in self._paths.items()}
        self._slaves = {name: self._text(name, "bonding/slaves").split() for name in self.names}
        self._vlans = list(self._vlan_pairs())
        self._steps: dict[str, tuple[list[str], list[str]]] = {}
        self.routes = [*self._routes4(), *self._routes6()]
        self.addresses = self._addresses(run)

    def _shown_names(self, path: str) -> list[str]:
        return [reading.shown(name) for name in self.tree.names(path)]

    def _text(self, name: str, attribute: str) -> str:
        return self.tree.text(f"{self._paths[name]}/{attribute}") or ""

    def pci_of(self, name: str) -> list[str]:
        """The PCI functions below interface ``name``: its own, or those of all interfaces it is stacked on."""
        found: set[str] = set()
        seen, todo = {name}, [name]
        while todo:  # a damaged tree can have circles, and piles too high for a recursion
            own, below = self._step(todo.pop())
            found.update(own)
            todo += [lower for lower in below if lower not in seen]
            seen.update(below)
        return sorted(found)

    def _step(self, name: str) -> tuple[list[str], list[str]]:
        """The PCI function of ``name`` itself, if any, and the interfaces right below it."""
        if name not in self._steps:
            self._steps[name] = (self._own(name), self._lower(name)) if name in self._paths else ([], [])
        return self._steps[name]

    def _own(self, name: str) -> list[str]:
        device = f"{self._paths[name]}/device"
        bdf = reading.bdf_of(self.tree, device) if self.tree.is_directory(device) else None
        return [bdf] if bdf else []

    def _lower(self, name: str) -> list[str]:
        linked = [entry[len("lower_") :] for entry in self._entries[name] if entry.startswith("lower_")]
        return linked + self._slaves[name] + self._shown_names(f"{self._paths[name]}/brif")

    def is_up(self, name: str) -> bool:
        flags = self.tree.number(f"{self._paths[name]}/flags", 16)
        if flags is not None:
            return bool(flags & _UP)
        return self._text(name, "operstate") not in ("down", "notpresent", "")

    def uppers(self, name: str) -> list[str]:
        """Interfaces stacked directly on ``name``: bond, bridge, VLAN, macvlan, team, Open vSwitch."""
        found = {entry[len("upper_") :] for entry in self._entries[name] if entry.startswith("upper_")}
        for link in ("master", "brport/bridge"):
            target = self.tree.link_name(f"{self._paths[name]}/{link}")
            if target:
                found.add(reading.shown(target))
        found.update(vlan for vlan, lower in self._vlans if lower == name)
        found.update(bond for bond, slaves in self._slaves.items() if name in slaves)
        return sorted(found)

    def _vlan_pairs(self) -> Iterator[tuple[str, str]]:
        """VLAN interfaces and what each is on: lines like ``eth0.5 | 5 | eth0``."""
        for line in reading.lines(self.tree, "proc/net/vlan/config"):
            fields = [field.strip() for field in line.split("|")]
            if len(fields) == 3:
                yield fields[0], fields[2]

    def kind(self, name: str) -> str:
        """What an upper interface is, in words."""
        if name in self._paths:
            for entry, kind in (("bonding", "bond"), ("bridge", "bridge")):
                if self.tree.is_directory(f"{self._paths[name]}/{entry}"):
                    return kind
            for line in self._text(name, "uevent").splitlines():
                if line.startswith("DEVTYPE="):
                    return {"vlan": "VLAN", "bond": "bond", "bridge": "bridge"}.get(line[8:], line[8:])
        if name in self._shown_names("proc/net/vlan"):
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
        yield from filter(None, map(_route4, islice(reading.lines(self.tree, "proc/net/route"), 1, None)))

    def _routes6(self) -> Iterator[_Route]:
        yield from filter(None, map(_route6, reading.lines(self.tree, "proc/net/ipv6_route")))

    def _addresses(self, run: Run | None) -> dict[str, list[Address]]:
        """Addresses per interface. Link-local IPv6 addresses, which the kernel makes itself, do not count."""
        found: dict[str, list[Address]] = {}
        for line in reading.lines(self.tree, "proc/net/if_inet6"):
            fields = line.split()
            address = _address6(fields[0]) if len(fields) == 6 else None
            if address is not None and not address.is_link_local and not address.is_loopback:
                found.setdefault(fields[5], []).append(address)
        listed = _asked(run)
        if listed is not None:
            for name, addresses in listed.items():
                found.setdefault(name, []).extend(addresses)
            return found
        for address4 in self._local4():
            routes = [r for r in self.routes if not r.has_gateway and address4 in r.network]
            for route in sorted(routes, key=lambda r: -r.network.prefixlen)[:1]:
                found.setdefault(route.interface, []).append(address4)
        return found

    def _local4(self) -> list[ipaddress.IPv4Address]:
        """The host's own IPv4 addresses: leaves ``/32 host LOCAL`` of the kernel's routing trie."""
        found: dict[ipaddress.IPv4Address, None] = {}
        last: ipaddress.IPv4Address | None = None
        for line in reading.lines(self.tree, "proc/net/fib_trie"):
            leaf = re.match(r"\s*\|-- ([0-9.]+)", line)
            if leaf:
                last = _address4(leaf.group(1))
            elif last is not None and not last.is_loopback and re.match(r"\s*/32 host LOCAL", line):
                found[last] = None
        return list(found)


def _address4(text: str) -> ipaddress.IPv4Address | None:
    try:
        return ipaddress.IPv4Address(text)
    except ValueError:
        return None


def _address6(digits: str) -> ipaddress.IPv6Address | None:
    """An address as the IPv6 tables of /proc/net have it: 32 hexadecimal digits."""
    try:
        return ipaddress.IPv6Address(bytes.fromhex(digits))
    except ValueError:
        return None


def _route4(line: str) -> _Route | None:
    """A line of /proc/net/route, whose addresses are words in host order (x86: little endian)."""
    fields = line.split()
    try:
        if not int(fields[3], 16) & _RTF_UP:
            return None
        address, gateway, mask = (ipaddress.IPv4Address(bytes.fromhex(fields[i])[::-1]) for i in (1, 2, 7))
        network = ipaddress.IPv4Network((address, str(mask)), strict=False)
    except (IndexError, ValueError):
        return None
    return _Route(fields[0], network, int(gateway) != 0)


def _route6(line: str) -> _Route | None:
    """A line of /proc/net/ipv6_route, when it leads out of the machine."""
    fields = line.split()
    address = _address6(fields[0]) if len(fields) >= 10 else None
    if address is None or fields[9] == "lo":
        return None
    try:
        if int(fields[8], 16) & _RTF_LOCAL:
            return None
        network = ipaddress.IPv6Network((address, int(fields[1], 16)), strict=False)
        has_gateway = int(fields[4], 16) != 0
    except ValueError:
        return None
    if network.is_link_local or network.network_address.is_multicast:
        return None
    return _Route(fields[9], network, has_gateway)


def _asked(run: Run | None) -> dict[str, list[Address]] | None:
    """IPv4 addresses per interface as ``ip`` lists them; None when it cannot be asked."""
    if run is None:
        return None
    import json  # for this answer alone

    try:
        status, out, _errors = run(["ip", "-4", "-j", "address", "show"])
        return _listed(json.loads(out)) if status == 0 else None
    except (OSError, ValueError):
        return None


def _listed(links: object) -> dict[str, list[Address]] | None:
    if not isinstance(links, list):
        return None
    found: dict[str, list[Address]] = {}
    for link in links:
        name, infos = (link.get("ifname"), link.get("addr_info")) if isinstance(link, dict) else (None, None)
        if not isinstance(name, str) or name == "lo" or not isinstance(infos, list):
            continue
        for info in infos:
            address = _address4(str(info.get("local"))) if isinstance(info, dict) else None
            if address is not None:
                found.setdefault(reading.shown(name), []).append(address)
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


def _tcp_address(text: str) -> Address | None:
    """An address of /proc/net/tcp or tcp6: words of 32 bits in host order (x86: little endian)."""
    try:
        address = ipaddress.ip_address(b"".join(bytes.fromhex(text[i : i + 8])[::-1] for i in range(0, len(text), 8)))
    except ValueError:
        return None
    mapped = address.ipv4_mapped if isinstance(address, ipaddress.IPv6Address) else None
    return mapped or address


def ssh_sessions(tree: Tree, nets: Nets, sockets: set[str]) -> Iterator[tuple[str, str]]:
    for table in ("tcp", "tcp6"):
        for line in islice(reading.lines(tree, f"proc/net/{table}"), 1, None):
            fields = line.split()
            if len(fields) < 10 or fields[3] != _TCP_ESTABLISHED or fields[9] not in sockets:
                continue
            local = _tcp_address(fields[1].split(":")[0])
            for name, addresses in nets.addresses.items():
                if local in addresses:
                    for bdf in nets.pci_of(name):
                        yield bdf, f"an SSH session runs through interface {name} ({local})"
