# Copyright: the topovirt.kvm authors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""OpenStack Nova's way to fit a VM to the NUMA nodes of a host: the first permutation of nodes that has room.

Sources: https://opendev.org/openstack/nova, release 34.0.0, ``nova/virt/hardware.py`` (numa_fit_instance_to_host) and
``nova/pci/stats.py`` (PciDeviceStats); documented in https://docs.openstack.org/nova/latest/admin/cpu-topologies.html
and https://docs.openstack.org/nova/latest/configuration/extra-specs.html (hw:pci_numa_affinity_policy).

The rule: sort the host's nodes, unless the VM needs all; walk their permutations in that order; take the first in which
each of the VM's nodes has CPUs and memory on its host node and the PCI devices can be had under their affinity policy.
Each PCI device is a pool of its own, pools are used in their order.

Left out, as no request here asks for it: CPU thread policies other than the default, emulator threads, physical
networks, virtual functions, resource providers of Placement, page sizes by name. What the rule does not know: which
devices are near each other within a node, IOMMU groups, NVLink.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import chain, permutations

POLICIES = ("required", "legacy", "preferred", "socket")


@dataclass(frozen=True)
class Pages:
    """Memory pages of one size on a host node."""

    size_kib: int
    total: int
    used: int = 0


@dataclass(frozen=True)
class HostCell:
    """A NUMA node of the host. CPUs for VMs that share them and CPUs for VMs of their own are kept apart."""

    id: int
    memory_mib: int
    shared_cpus: frozenset[int] = frozenset()
    dedicated_cpus: frozenset[int] = frozenset()
    siblings: tuple[frozenset[int], ...] = ()  # logical CPUs of each core
    pages: tuple[Pages, ...] = ()
    socket: int | None = None
    used_shared: int = 0
    used_memory_mib: int = 0
    pinned: frozenset[int] = frozenset()

    @property
    def free_cpus(self) -> frozenset[int]:
        return self.dedicated_cpus - self.pinned

    @property
    def free_memory_mib(self) -> int:
        return self.memory_mib - self.used_memory_mib


@dataclass(frozen=True)
class GuestCell:
    """A NUMA node of a VM."""

    cpus: tuple[int, ...]
    memory_mib: int
    dedicated: bool = False
    page_kib: int | None = None


@dataclass(frozen=True)
class Fitted:
    """A VM's node on a host node; the pinning is vCPU -> CPU, empty for shared CPUs."""

    host: int
    guest: GuestCell
    pinning: Mapping[int, int]


@dataclass(frozen=True)
class Limits:
    """How far shared CPUs and memory may be overcommitted."""

    cpu: float
    memory: float


@dataclass(frozen=True)
class Device:
    """A PCI device that VMs can have; ``kind`` is what requests match."""

    name: str
    kind: str
    node: int | None


@dataclass(frozen=True)
class DeviceRequest:
    kind: str
    count: int
    policy: str = "legacy"


def _memory_fits(host: HostCell, guest: GuestCell) -> bool:
    wanted = guest.memory_mib << 10
    if guest.page_kib is None and not host.pages:
        return guest.memory_mib <= host.memory_mib
    size = guest.page_kib or min(pages.size_kib for pages in host.pages)
    for pages in host.pages:
        if pages.size_kib == size:
            # Only pages that the VM asks for by size are never promised twice.
            usable = pages.total - (pages.used if guest.page_kib else 0)
            return wanted <= usable * size and wanted % size == 0
    return False


def pin(host: HostCell, cpus: Sequence[int]) -> dict[int, int] | None:
    """vCPU -> CPU: as many threads of each core as enough cores have free; when none is enough, any free CPUs.

    None when there are too few.
    """
    cores = [sorted(core & host.free_cpus) for core in host.siblings]
    for threads in range(max(map(len, cores), default=0), 0, -1):
        usable = [core[:threads] for core in cores if len(core) >= threads]
        if threads * len(usable) >= len(cpus):
            return dict(zip(sorted(cpus), chain(*usable), strict=False))
    singly = list(chain(*cores))
    return dict(zip(sorted(cpus), singly, strict=False)) if len(singly) >= len(cpus) else None


def fit_cell(host: HostCell, guest: GuestCell, limits: Limits | None = None) -> Fitted | None:
    """One node of a VM on one node of the host; None when it does not fit."""
    if not _memory_fits(host, guest):
        return None
    if guest.dedicated:
        if guest.memory_mib > host.free_memory_mib:
            return None
        pinning = pin(host, guest.cpus)
        return None if pinning is None else Fitted(host.id, guest, pinning)
    if len(guest.cpus) > len(host.shared_cpus):
        return None
    if limits is not None and (
        host.used_shared + len(guest.cpus) > len(host.shared_cpus) * limits.cpu
        or host.used_memory_mib + guest.memory_mib > host.memory_mib * limits.memory
    ):
        return None
    return Fitted(host.id, guest, {})


def _near(
    devices: Sequence[Device], request: DeviceRequest, nodes: Sequence[int], sockets: Mapping[int, int | None]
) -> list[Device]:
    """Devices that the affinity policy allows, those to be used first in front."""
    strict = [device for device in devices if device.node in nodes]
    if request.policy == "required" or len(strict) >= request.count:
        return strict
    if request.policy == "socket":
        if None in sockets.values():
            return []
        wanted = {sockets.get(node) for node in nodes} - {None}
        allowed = {node for node, socket in sockets.items() if socket in wanted}
        return [device for device in devices if device.node in allowed]
    loose = [device for device in devices if device.node is None or device.node in nodes]
    if request.policy == "legacy" or len(loose) >= request.count:
        return loose
    return sorted(devices, key=lambda device: device.node is not None and device.node not in nodes)


def take(
    devices: Sequence[Device],
    requests: Sequence[DeviceRequest],
    nodes: Sequence[int] | None,
    sockets: Mapping[int, int | None] | None = None,
) -> list[Device] | None:
    """Devices for all requests in turn; None when one cannot be met.

    :param devices: free ones, in the order in which Nova came to know them.
    :param nodes: host nodes that the VM is on; None for a VM without NUMA nodes, which can have any device.
    :param sockets: host node -> socket, for policy "socket".
    """
    taken: list[Device] = []
    for request in requests:
        fitting = [device for device in devices if device.kind == request.kind and device not in taken]
        if nodes is not None:
            fitting = _near(fitting, request, nodes, sockets or {})
        if len(fitting) < request.count:
            return None
        taken += fitting[: request.count]
    return taken


def _in_order(
    host: Sequence[HostCell], dedicated: bool, wants_devices: bool, devices: Sequence[Device] | None, pack: bool
) -> list[HostCell]:
    """The host's nodes as they are tried; each sort keeps the order of the one before among equals."""
    cells = sorted(host, key=lambda cell: cell.free_memory_mib, reverse=not pack)
    if dedicated:
        cells.sort(key=lambda cell: len(cell.free_cpus), reverse=not pack)
    else:
        cells.sort(key=lambda cell: cell.used_shared, reverse=pack)
    if devices is not None:
        count = Counter(device.node for device in devices)
        cells.sort(key=lambda cell: count[cell.id], reverse=wants_devices)
    return cells


def fit(
    host: Sequence[HostCell],
    guest: Sequence[GuestCell],
    requests: Sequence[DeviceRequest] = (),
    devices: Sequence[Device] | None = None,
    limits: Limits | None = None,
    pack: bool = False,
) -> list[Fitted] | None:
    """The VM's nodes on the first permutation of host nodes that has room; None when none has.

    :param devices: free PCI devices; None when Nova does not look at them.
    :param pack: try nodes that are used most first, not last; ``[compute]packing_host_numa_cells_allocation_strategy``,
        which is off by default since release 26 (Zed).
    """
    if not host or not guest or len(host) < len(guest):
        return None
    cells: Sequence[HostCell] = host
    if len(host) > len(guest):
        cells = _in_order(host, guest[0].dedicated, bool(requests), devices, pack)
    sockets = {cell.id: cell.socket for cell in host}
    known: dict[tuple[int, int], Fitted | None] = {}
    for chosen in permutations(cells, len(guest)):
        fitted: list[Fitted] = []
        for index, cell in enumerate(chosen):
            if (cell.id, index) not in known:
                known[cell.id, index] = fit_cell(cell, guest[index], limits)
            found = known[cell.id, index]
            if found is None:
                break
            fitted.append(found)
        if len(fitted) < len(guest):
            continue
        nodes = [item.host for item in fitted]
        if requests and devices is not None and take(devices, requests, nodes, sockets) is None:
            continue
        return fitted
    return None


def use(host: Sequence[HostCell], fitted: Sequence[Fitted]) -> list[HostCell]:
    """The host after a VM has taken its CPUs and memory."""
    cells = {cell.id: cell for cell in host}
    for item in fitted:
        cell = cells[item.host]
        size = item.guest.page_kib or min((pages.size_kib for pages in cell.pages), default=0)
        cells[item.host] = replace(
            cell,
            used_memory_mib=cell.used_memory_mib + item.guest.memory_mib,
            used_shared=cell.used_shared + (0 if item.guest.dedicated else len(item.guest.cpus)),
            pinned=cell.pinned | frozenset(item.pinning.values()),
            pages=tuple(
                replace(pages, used=pages.used + (item.guest.memory_mib << 10) // size)
                if pages.size_kib == size
                else pages
                for pages in cell.pages
            ),
        )
    return list(cells.values())
