# Copyright: the topovirt.kvm authors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Which PCI devices the host itself uses, and why.

A device that this module names must never be handed to a guest: the host would lose a disk, its network or a running
job. It therefore errs on the side of "used": what cannot be told apart counts for every candidate.

Everything is read from files below ``root``, so that a recorded tree gives the same answer as the machine it came
from. The one fact without a file, which interface carries an IPv4 address, is asked of ``ip`` when ``run`` is given;
without it the address is found through its connected route.
"""

from __future__ import annotations

import ipaddress
import json
import os
import re
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import Callable, NamedTuple, Union

from ansible_collections.topovirt.kvm.plugins.module_utils._topology.model import PciFunction

# (arguments) -> (exit status, standard output, standard error), as AnsibleModule.run_command
Run = Callable[[list[str]], tuple[int, str, str]]
Address = Union[ipaddress.IPv4Address, ipaddress.IPv6Address]
Network = Union[ipaddress.IPv4Network, ipaddress.IPv6Network]

_BDF = re.compile(r"^[0-9a-f]{4,}:[0-9a-f]{2}:[0-9a-f]{2}\.[0-7]$")
_NETWORK_FILE_SYSTEMS = (
    "nfs",
    "nfs4",
    "ceph",
    "cifs",
    "smb3",
    "lustre",
    "glusterfs",
    "9p",
    "beegfs",
    "gpfs",
    "fuse.sshfs",
)
# A signature that makes a disk part of something larger, even while that is not assembled (names as in libblkid).
_MEMBER_SIGNATURES = {
    "LVM2_member": "an LVM physical volume",
    "linux_raid_member": "a member of an md array",
    "zfs_member": "a member of a ZFS pool",
    "mpath_member": "a path of a multipath device",
    "ddf_raid_member": "a member of a firmware RAID set",
    "isw_raid_member": "a member of a firmware RAID set",
    "ceph_bluestore": "a Ceph object store",
    "drbd": "a DRBD backing device",
    "bcache": "a bcache device",
}
_UP = 0x1  # IFF_UP, include/uapi/linux/if.h
_RTF_UP = 0x1  # include/uapi/linux/route.h
_RTF_LOCAL = 0x80000000  # include/uapi/linux/ipv6_route.h
_TCP_ESTABLISHED = "01"  # include/net/tcp_states.h


class _Mount(NamedTuple):
    device: str  # major:minor
    mount_point: str
    fs_type: str
    source: str
    options: str


class _Route(NamedTuple):
    interface: str
    network: Network
    has_gateway: bool


class _Handle(NamedTuple):
    path: str  # below /dev
    process: str  # "name (pid 12)"


def host_usage(root: Path, run: Run | None, pci: Sequence[PciFunction]) -> dict[str, list[str]]:
    """Return ``{bdf: [reason, ...]}`` for every PCI function that the host uses.

    :param root: root of the file tree, ``/`` on a live system.
    :param run: runs a command on the same system; ``None`` for a recorded tree.
    :param pci: the functions of the topology; used for drivers, roles and virtual functions.

    A reason is one sentence without a full stop. Devices that are free are not in the result. Files that cannot be
    read count as absent: as an ordinary user the handles of other users' processes stay invisible.
    """
    usage: dict[str, list[str]] = {}
    blocks = _Blocks(root)
    nets = _Nets(root, run)
    handles, sockets_of_sshd = _open_files(root)
    mounts = _mounts(root)

    for bdf, reason in [
        *_mounted(root, blocks, mounts),
        *_swaps(root, blocks),
        *_stacked(blocks),
        *_signatures(root, blocks),
        *_dump_target(root, blocks, nets),
        *_fstab(root, blocks),
        *_interfaces(nets),
        *_network_storage(root, nets, mounts),
        *_ssh_sessions(root, nets, sockets_of_sshd),
        *_handles(root, blocks, handles, pci),
    ]:
        reasons = usage.setdefault(bdf, [])
        if reason not in reasons:
            reasons.append(reason)

    for function in pci:  # a physical function carries its virtual ones
        parent = function["physfn"]
        if parent and function["bdf"] in usage:
            usage.setdefault(parent, []).extend(
                f"its virtual function {function['bdf']} is used: {reason}" for reason in usage[function["bdf"]]
            )
    return usage


# --- reading -------------------------------------------------------------------------------------------------------


def _text(path: Path) -> str:
    try:
        return path.read_text(encoding="utf-8", errors="surrogateescape")
    except OSError:
        return ""


def _names(path: Path) -> list[str]:
    try:
        return sorted(os.listdir(path))
    except OSError:
        return []


def _link_name(path: Path) -> str | None:
    try:
        return os.path.basename(os.readlink(path))
    except OSError:
        return None


def _bdf_of(path: Path) -> str | None:
    """The PCI function that a sysfs directory lies below: the last BDF of its real path."""
    try:
        parts = path.resolve().parts
    except (OSError, RuntimeError):
        return None
    found = [part for part in parts if _BDF.match(part)]
    return found[-1] if found else None


def _unescape(field: str) -> str:
    """mountinfo and swaps write blank, tab, newline and backslash as octal."""
    return re.sub(r"\\([0-7]{3})", lambda match: chr(int(match.group(1), 8)), field)


# --- block devices -------------------------------------------------------------------------------------------------


class _Blocks:
    """The block devices and what lies below each."""

    def __init__(self, root: Path) -> None:
        self.root = root
        self.directory = root / "sys/class/block"
        self.names = _names(self.directory)
        self.by_number = {_text(self.directory / name / "dev").strip(): name for name in self.names}
        self._pci: dict[str, list[str]] = {}

    def pci_of(self, name: str) -> list[str]:
        """The PCI functions that block device ``name`` finally rests on."""
        if name not in self._pci:
            self._pci[name] = []  # breaks a loop in a damaged tree
            self._pci[name] = sorted(set(self._find(name)))
        return self._pci[name]

    def _find(self, name: str) -> Iterator[str]:
        try:
            real = (self.directory / name).resolve()
        except (OSError, RuntimeError):
            return
        below = _names(real / "slaves")
        if not below and real.parent.name in self.names:  # a partition of a stacked device
            below = [real.parent.name] if _names(real.parent / "slaves") else []
        for slave in below:
            yield from self.pci_of(slave)
        subsystem = next((part for part in real.parents if re.match(r"^nvme-subsys\d+$", part.name)), None)
        if subsystem is not None:  # native NVMe multipath: the disk hangs on the subsystem, its controllers are links
            for controller in _names(subsystem):
                if re.match(r"^nvme\d+$", controller):
                    bdf = _bdf_of(subsystem / controller)
                    if bdf:
                        yield bdf
        bdf = _bdf_of(real)
        if bdf:
            yield bdf
        backing = _text(real / "loop/backing_file").strip()
        if backing.startswith("/dev/"):
            for device in self.resolve(backing):
                yield from self.pci_of(device)

    def title(self, name: str) -> str:
        """The name that an administrator knows: the mapper name of a dm device, else the kernel's."""
        mapper = _text(self.directory / name / "dm/name").strip()
        return f"/dev/mapper/{mapper}" if mapper else f"/dev/{name}"

    def udev(self, name: str) -> dict[str, str]:
        """What udev's database knows of a block device."""
        number = _text(self.directory / name / "dev").strip()
        lines = _text(self.root / "run/udev/data" / f"b{number}").splitlines() if number else []
        return dict(line[2:].split("=", 1) for line in lines if line.startswith("E:") and "=" in line)

    def resolve(self, spec: str) -> list[str]:
        """Kernel names for ``/dev/...``, ``UUID=``, ``LABEL=``, ``PARTUUID=`` or ``PARTLABEL=``."""
        spec = spec.strip().strip('"')
        keys = {"UUID": "ID_FS_UUID", "LABEL": "ID_FS_LABEL", "PARTUUID": "ID_PART_ENTRY_UUID"}
        keys["PARTLABEL"] = "ID_PART_ENTRY_NAME"
        tag, _equals, value = spec.partition("=")
        if tag in keys and value:
            found = [name for name in self.names if self.udev(name).get(keys[tag]) == value.strip('"')]
            link = self.root / "dev/disk" / f"by-{tag.lower()}" / value.strip('"')
            target = _link_name(link)
            return sorted(set(found + ([target] if target in self.names else [])))
        if not spec.startswith("/dev/"):
            return []
        name = os.path.basename(spec)
        if spec.startswith("/dev/mapper/"):
            dm = [block for block in self.names if _text(self.directory / block / "dm/name").strip() == name]
            if dm:
                return dm
        if spec == f"/dev/{name}" and name in self.names:
            return [name]
        target = _link_name(self.root / spec.lstrip("/"))
        return [target] if target and target in self.names else []


def _mounts(root: Path) -> list[_Mount]:
    """All mounts of all mount namespaces: a container may hold a disk that the first one does not show."""
    found: dict[_Mount, None] = {}
    seen: set[str] = set()
    for process in ["self", *sorted((name for name in _names(root / "proc") if name.isdigit()), key=int)]:
        namespace = _link_name(root / "proc" / process / "ns/mnt") if process != "self" else None
        if namespace is not None and namespace in seen:
            continue
        if namespace is not None:
            seen.add(namespace)
        for line in _text(root / "proc" / process / "mountinfo").splitlines():
            left, separator, right = line.partition(" - ")
            fields, tail = left.split(), right.split()
            if separator and len(fields) >= 5 and len(tail) >= 2:
                options = tail[2] if len(tail) > 2 else ""
                found[_Mount(fields[2], _unescape(fields[4]), tail[0], _unescape(tail[1]), options)] = None
    return list(found)


def _mounted(root: Path, blocks: _Blocks, mounts: Iterable[_Mount]) -> Iterator[tuple[str, str]]:
    for mount in mounts:
        names = [blocks.by_number[mount.device]] if mount.device in blocks.by_number else blocks.resolve(mount.source)
        if mount.fs_type == "btrfs":  # an anonymous device number; the members are listed apart
            for uuid in _names(root / "sys/fs/btrfs"):
                members = _names(root / "sys/fs/btrfs" / uuid / "devices")
                if any(name in members for name in names):
                    names = sorted(set(names) | set(members))
        for name in names:
            for bdf in blocks.pci_of(name):
                yield bdf, f"{blocks.title(name)} on it is mounted on {mount.mount_point} ({mount.fs_type})"


def _swaps(root: Path, blocks: _Blocks) -> Iterator[tuple[str, str]]:
    for line in _text(root / "proc/swaps").splitlines()[1:]:
        for name in blocks.resolve(_unescape(line.split()[0])) if line.split() else []:
            for bdf in blocks.pci_of(name):
                yield bdf, f"{blocks.title(name)} on it is swap space"


def _stacked(blocks: _Blocks) -> Iterator[tuple[str, str]]:
    for name in blocks.names:
        for holder in _names(blocks.directory / name / "holders"):
            uuid = _text(blocks.directory / holder / "dm/uuid")
            kinds = {"LVM-": "LVM volume", "mpath-": "multipath device", "CRYPT-": "encrypted volume"}
            kind = next((text for start, text in kinds.items() if uuid.startswith(start)), "")
            kind = kind or ("md array" if holder.startswith("md") else "device")
            for bdf in blocks.pci_of(name):
                yield bdf, f"/dev/{name} on it is part of the {kind} {blocks.title(holder)}"


def _signatures(root: Path, blocks: _Blocks) -> Iterator[tuple[str, str]]:
    for name in blocks.names:
        known = blocks.udev(name)
        meaning = _MEMBER_SIGNATURES.get(known.get("ID_FS_TYPE", ""))
        if meaning is None and known.get("DM_MULTIPATH_DEVICE_PATH") == "1":
            meaning = _MEMBER_SIGNATURES["mpath_member"]
        if meaning:
            for bdf in blocks.pci_of(name):
                yield bdf, f"/dev/{name} on it is {meaning}"


def _fstab(root: Path, blocks: _Blocks) -> Iterator[tuple[str, str]]:
    for line in _text(root / "etc/fstab").splitlines():
        fields = line.split("#", 1)[0].split()
        if len(fields) >= 3:
            for name in blocks.resolve(_unescape(fields[0])):
                for bdf in blocks.pci_of(name):
                    yield bdf, f"/etc/fstab names {blocks.title(name)} on it for {_unescape(fields[1])}"


def _dump_target(root: Path, blocks: _Blocks, nets: _Nets) -> Iterator[tuple[str, str]]:
    """The targets of kexec-tools' kdump.conf(5); a dump into a mounted file system is covered by the mount."""
    for line in _text(root / "etc/kdump.conf").splitlines():
        fields = line.split("#", 1)[0].split()
        if len(fields) < 2:
            continue
        if fields[0] in ("raw", "ext2", "ext3", "ext4", "xfs", "btrfs", "minix", "f2fs"):
            for name in blocks.resolve(fields[1]):
                for bdf in blocks.pci_of(name):
                    yield bdf, f"{blocks.title(name)} on it is the crash dump target (/etc/kdump.conf)"
        elif fields[0] in ("nfs", "ssh"):
            server = fields[1].rsplit("@", 1)[-1].split(":")[0]
            for bdf in nets.towards(server):
                yield bdf, f"the crash dump goes to {server} through it (/etc/kdump.conf)"


# --- network -------------------------------------------------------------------------------------------------------


class _Nets:
    """The network interfaces, what each rests on, addresses and routes."""

    def __init__(self, root: Path, run: Run | None) -> None:
        self.root = root
        self.directory = root / "sys/class/net"
        self.names = [name for name in _names(self.directory) if (self.directory / name).is_dir()]
        self.routes = [*self._routes4(), *self._routes6()]
        self.addresses = self._addresses(run)

    def pci_of(self, name: str, seen: tuple[str, ...] = ()) -> list[str]:
        """The PCI functions below interface ``name``: its own, or those of all interfaces it is stacked on."""
        if name in seen or name not in self.names:
            return []
        own = _bdf_of(self.directory / name / "device") if (self.directory / name / "device").exists() else None
        found = {own} if own else set()
        for entry in _names(self.directory / name):
            lower = entry[len("lower_") :] if entry.startswith("lower_") else None
            if lower:
                found.update(self.pci_of(lower, (*seen, name)))
        for lower in _text(self.directory / name / "bonding/slaves").split() + _names(self.directory / name / "brif"):
            found.update(self.pci_of(lower, (*seen, name)))
        return sorted(found)

    def is_up(self, name: str) -> bool:
        flags = _text(self.directory / name / "flags").strip()
        if flags:
            return bool(int(flags, 16) & _UP)
        return _text(self.directory / name / "operstate").strip() not in ("down", "notpresent", "")

    def uppers(self, name: str) -> list[str]:
        """Interfaces stacked directly on ``name``: bond, bridge, VLAN, macvlan, team, Open vSwitch."""
        found = {entry[len("upper_") :] for entry in _names(self.directory / name) if entry.startswith("upper_")}
        for link in ("master", "brport/bridge"):
            target = _link_name(self.directory / name / link)
            if target:
                found.add(target)
        for line in _text(self.root / "proc/net/vlan/config").splitlines():  # "eth0.5 | 5 | eth0"
            fields = [field.strip() for field in line.split("|")]
            if len(fields) == 3 and fields[2] == name:
                found.add(fields[0])
        for other in self.names:
            if name in _text(self.directory / other / "bonding/slaves").split():
                found.add(other)
        return sorted(found)

    def kind(self, name: str) -> str:
        """What an upper interface is, in words."""
        for entry, kind in (("bonding", "bond"), ("bridge", "bridge")):
            if (self.directory / name / entry).is_dir():
                return kind
        for line in _text(self.directory / name / "uevent").splitlines():
            if line.startswith("DEVTYPE="):
                return {"vlan": "VLAN", "bond": "bond", "bridge": "bridge"}.get(line[8:], line[8:])
        if name in _names(self.root / "proc/net/vlan"):
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
        for line in _text(self.root / "proc/net/route").splitlines()[1:]:
            fields = line.split()
            if len(fields) >= 8 and int(fields[3], 16) & _RTF_UP:
                address, gateway, mask = (
                    ipaddress.IPv4Address(int.from_bytes(bytes.fromhex(fields[i]), "little")) for i in (1, 2, 7)
                )
                network = ipaddress.IPv4Network((address, str(mask)), strict=False)
                yield _Route(fields[0], network, int(gateway) != 0)

    def _routes6(self) -> Iterator[_Route]:
        for line in _text(self.root / "proc/net/ipv6_route").splitlines():
            fields = line.split()
            if len(fields) < 10 or fields[9] == "lo" or int(fields[8], 16) & _RTF_LOCAL:
                continue
            network = ipaddress.IPv6Network((int(fields[0], 16), int(fields[1], 16)), strict=False)
            if not (network.is_link_local or network.network_address.is_multicast):
                yield _Route(fields[9], network, int(fields[4], 16) != 0)

    def _addresses(self, run: Run | None) -> dict[str, list[Address]]:
        """Addresses per interface. Link-local IPv6 addresses, which the kernel makes itself, do not count."""
        found: dict[str, list[Address]] = {}
        for line in _text(self.root / "proc/net/if_inet6").splitlines():
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
        for line in _text(self.root / "proc/net/fib_trie").splitlines():
            leaf = re.match(r"\s*\|-- ([0-9.]+)", line)
            if leaf:
                last = leaf.group(1)
            elif re.match(r"\s*/32 host LOCAL", line) and last:
                address = ipaddress.IPv4Address(last)
                if not address.is_loopback and address not in found:
                    found.append(address)
        return found


def _interfaces(nets: _Nets) -> Iterator[tuple[str, str]]:
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


def _servers(mount: _Mount) -> list[str]:
    """The servers of a network file system: the ``addr=`` that the kernel used, else what the source names."""
    given = re.findall(r"(?:^|,)addr=([^,]+)", mount.options)
    if given:
        return given
    found = re.findall(r"\[([0-9a-fA-F:]+)\]|(\d+\.\d+\.\d+\.\d+)", mount.source)
    return [v6 or v4 for v6, v4 in found] or [mount.source.lstrip("/").split(":")[0].split("/")[0]]


def _network_storage(root: Path, nets: _Nets, mounts: Iterable[_Mount]) -> Iterator[tuple[str, str]]:
    for mount in mounts:
        if mount.fs_type in _NETWORK_FILE_SYSTEMS and mount.options.find("trans=virtio") < 0:
            for server in _servers(mount):
                for bdf in nets.towards(server):
                    yield bdf, f"the network mount {mount.mount_point} ({mount.fs_type}) reaches {server} through it"
    sysfs = root / "sys"
    for connection in _names(sysfs / "class/iscsi_connection"):
        directory = sysfs / "class/iscsi_connection" / connection
        server = (_text(directory / "address") or _text(directory / "persistent_address")).strip()
        for bdf in nets.towards(server) if server else []:
            yield bdf, f"an iSCSI session reaches {server} through it"
    for controller in _names(sysfs / "class/nvme"):
        transport = _text(sysfs / "class/nvme" / controller / "transport").strip()
        address = re.search(r"traddr=([^,\s]+)", _text(sysfs / "class/nvme" / controller / "address"))
        if transport in ("tcp", "rdma") and address:
            for bdf in nets.towards(address.group(1)):
                yield bdf, f"NVMe over {transport} ({controller}) reaches {address.group(1)} through it"
    for name in _names(sysfs / "class/block"):
        if re.match(r"^nbd\d+$", name) and _text(sysfs / "class/block" / name / "pid").strip():
            for bdf in nets.towards("default"):
                yield bdf, f"the network block device /dev/{name} may run through it"


def _tcp_address(text: str) -> Address:
    """An address of /proc/net/tcp or tcp6: words of 32 bits in host order (x86: little endian)."""
    raw = b"".join(bytes.fromhex(text[i : i + 8])[::-1] for i in range(0, len(text), 8))
    address = ipaddress.ip_address(raw)
    mapped = address.ipv4_mapped if isinstance(address, ipaddress.IPv6Address) else None
    return mapped or address


def _ssh_sessions(root: Path, nets: _Nets, sockets: set[str]) -> Iterator[tuple[str, str]]:
    for table in ("tcp", "tcp6"):
        for line in _text(root / "proc/net" / table).splitlines()[1:]:
            fields = line.split()
            if len(fields) < 10 or fields[3] != _TCP_ESTABLISHED or fields[9] not in sockets:
                continue
            local = _tcp_address(fields[1].split(":")[0])
            for name, addresses in nets.addresses.items():
                if local in addresses:
                    for bdf in nets.pci_of(name):
                        yield bdf, f"an SSH session runs through interface {name} ({local})"


# --- open handles --------------------------------------------------------------------------------------------------


def _open_files(root: Path) -> tuple[list[_Handle], set[str]]:
    """Device nodes that processes hold open, and the socket inodes of SSH servers."""
    handles: dict[_Handle, None] = {}
    sockets: set[str] = set()
    for process in sorted((name for name in _names(root / "proc") if name.isdigit()), key=int):
        name = _text(root / "proc" / process / "comm").strip() or "process"
        for descriptor in _names(root / "proc" / process / "fd"):
            try:
                target = os.readlink(root / "proc" / process / "fd" / descriptor)
            except OSError:
                continue
            if target.startswith("/dev/"):
                path = target[len("/dev/") :]
                path = path[: -len(" (deleted)")] if path.endswith(" (deleted)") else path
                handles[_Handle(path, f"{name} (pid {process})")] = None
            elif target.startswith("socket:[") and name.startswith("sshd"):
                sockets.add(target[len("socket:[") : -1])
    return list(handles), sockets


def _nvidia_minors(root: Path) -> dict[int, str]:
    """Minor number of /dev/nvidiaN -> BDF, as the NVIDIA driver's README describes /proc/driver/nvidia/gpus."""
    found: dict[int, str] = {}
    for bdf in _names(root / "proc/driver/nvidia/gpus"):
        minor = re.search(r"Device Minor:\s*(\d+)", _text(root / "proc/driver/nvidia/gpus" / bdf / "information"))
        if minor:
            found[int(minor.group(1))] = bdf.lower()
    return found


def _handles(
    root: Path, blocks: _Blocks, handles: Iterable[_Handle], pci: Sequence[PciFunction]
) -> Iterator[tuple[str, str]]:
    minors = _nvidia_minors(root)

    def driven(role: str) -> list[str]:
        return [f["bdf"] for f in pci if f["role"] == role and f["driver"] and f["driver"].startswith("nvidia")]

    for handle in handles:
        base = os.path.basename(handle.path)
        bdfs: list[str] = []
        if re.match(r"^nvidia-nvswitch", base):
            bdfs = driven("nvswitch")  # the driver documents no map from these nodes to PCI functions
        elif re.match(r"^nvidia\d+$", base):
            mapped = minors.get(int(base[len("nvidia") :]))
            bdfs = [mapped] if mapped else driven("gpu")
        elif re.match(r"^nvidia(ctl$|-uvm|-modeset|-cap)", base):
            bdfs = driven("gpu")
        elif handle.path.startswith("dri/"):
            bdf = _bdf_of(root / "sys/class/drm" / base / "device")
            bdfs = [bdf] if bdf else []
        elif handle.path.startswith("infiniband/"):
            for klass in ("infiniband_verbs", "infiniband_mad", "infiniband_ucm"):
                if (root / "sys/class" / klass / base / "device").exists():
                    bdf = _bdf_of(root / "sys/class" / klass / base / "device")
                    bdfs = [bdf] if bdf else []
        elif base in blocks.names:
            bdfs = blocks.pci_of(base)
        elif re.match(r"^(nvme\d+|ng\d+n\d+)$", handle.path):
            klass = "nvme" if base.startswith("nvme") else "nvme-generic"
            bdf = _bdf_of(root / "sys/class" / klass / base / "device")
            bdfs = [bdf] if bdf else []
        for bdf in bdfs:
            yield bdf, f"{handle.process} has /dev/{handle.path} open"
