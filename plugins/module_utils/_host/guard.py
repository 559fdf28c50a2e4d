# Copyright: the topovirt.kvm authors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Reasons not to convert this host. Nothing is changed while there is one, and all are told at once."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Dict, Iterable, List, Mapping, Optional, Sequence, Set

from ansible_collections.topovirt.kvm.plugins.module_utils._host.places import Run
from ansible_collections.topovirt.kvm.plugins.module_utils._host.wanted import Wanted
from ansible_collections.topovirt.kvm.plugins.module_utils._topology.model import PciFunction, Topology
from ansible_collections.topovirt.kvm.plugins.module_utils._topology.reserve import guest_pages

_VFIO = "vfio-pci"


def reasons_against(root: Path, run: Run, topology: Topology, wanted: Wanted) -> List[str]:
    """Why the host cannot, or must not, become what is wanted: one sentence each, empty when nothing speaks against."""
    return [
        *_machine(topology),
        *_memory(topology, wanted),
        *_devices(topology, wanted),
        *_disks(root, run, topology, wanted),
    ]


def running_vms(root: Path) -> List[str]:
    """Names of the VMs that run: libvirt keeps a status file of each in /run."""
    return sorted(path.stem for path in (root / "run/libvirt/qemu").glob("*.xml"))


def defined_vms(root: Path) -> List[str]:
    """Names of the VMs that libvirt knows persistently."""
    return sorted(path.stem for path in (root / "etc/libvirt/qemu").glob("*.xml"))


def other_processes(root: Path) -> List[str]:
    """QEMU processes that no libvirt knows, as "name (pid 12)"."""
    known = {_text(path).strip() for path in (root / "run/libvirt/qemu").glob("*.pid")}
    found = []
    for entry in (root / "proc").glob("[0-9]*"):
        name = _text(entry / "comm").strip()
        if re.match(r"qemu-system-|qemu-kvm", name) and entry.name not in known:
            found.append(f"{name} (pid {entry.name})")
    return sorted(found)


def vms_in_the_way(root: Path) -> List[str]:
    """Every VM that runs, as a reason not to change what it may use."""
    return [
        *(f"VM {name} is running: stop it first" for name in running_vms(root)),
        *(f"{process} runs a VM: stop it first" for process in other_processes(root)),
    ]


def _machine(topology: Topology) -> Iterable[str]:
    host, iommu = topology["host"], topology["iommu"]
    if host["arch"] != "x86_64":
        yield f"the CPU architecture is {host['arch']}, only x86_64 is supported"
        return
    if iommu["kind"] is None:
        yield "there is no IOMMU (no ACPI table DMAR or IVRS): switch on VT-d or AMD-Vi in the firmware setup"
    if host["virtualization"] is None:
        yield "the CPU shows neither vmx nor svm: switch on VT-x or SVM in the firmware setup"


def _memory(topology: Topology, wanted: Wanted) -> Iterable[str]:
    size = wanted.page_size_bytes
    for node in topology["numa_nodes"]:
        count, most = wanted.pages.get(node["id"], 0), guest_pages(node["memory_bytes"], size)
        if wanted.pages_given and count > most:
            known = node["memory_bytes"]
            memory = "an unknown amount" if known is None else f"{known / 2**30:.1f} GiB"
            yield (
                f"node {node['id']} has {memory} of memory: of {count} huge pages of "
                f"{_size(size)} at most {most} fit beside what the host needs"
            )
    if not any(wanted.pages.values()):
        yield f"no node has memory for a huge page of {_size(size)} beside what the host needs"


def _devices(topology: Topology, wanted: Wanted) -> Iterable[str]:
    if not wanted.devices:
        yield "the passthrough set is empty: no GPU was found and kvm_host_devices names nothing"
    yield from device_reasons(topology, wanted.devices)


def device_reasons(topology: Topology, devices: Mapping[str, Optional[str]]) -> Iterable[str]:
    """Devices that the host needs, and IOMMU groups that are not taken as a whole.

    :param devices: BDF -> role of all that are to go to guests.
    """
    by_bdf = {function["bdf"]: function for function in topology["pci"]}
    for bdf, role in devices.items():
        for use in by_bdf[bdf]["in_use"]:
            yield f"{_title(bdf, role)} is in use by the host: {use}"
    for group, members in sorted(_groups(topology).items()):
        chosen = [f["bdf"] for f in members if f["bdf"] in devices]
        if not chosen:
            continue
        for other in members:
            if other["bdf"] in devices:
                continue
            what = f"{_title(other['bdf'], other['role'])} shares IOMMU group {group} with {', '.join(chosen)}"
            if other["in_use"]:
                yield f"{what} and is in use by the host: {'; '.join(other['in_use'])}"
            else:
                yield f"{what} but is not in the passthrough set: a group goes to guests as a whole or not at all"


def _groups(topology: Topology) -> Dict[int, List[PciFunction]]:
    """Members of each IOMMU group that count for passthrough: PCI bridges (class 0604) need no vfio driver."""
    groups: Dict[int, List[PciFunction]] = {}
    for function in topology["pci"]:
        if function["iommu_group"] is not None and not function["class"].startswith("0604"):
            groups.setdefault(function["iommu_group"], []).append(function)
    return groups


def _disks(root: Path, run: Run, topology: Topology, wanted: Wanted) -> Iterable[str]:
    by_bdf: Mapping[str, PciFunction] = {function["bdf"]: function for function in topology["pci"]}
    for bdf, role in wanted.devices.items():
        if not by_bdf[bdf]["class"].startswith("0108") or by_bdf[bdf]["driver"] == _VFIO:
            continue
        serials = {_text(path / "serial").strip() for path in _controllers(root, bdf)} - {""}
        if serials & set(wanted.erase_ok):
            continue
        for disk in _disks_of(root, bdf):
            for signature in _signatures(root, run, disk):
                yield (
                    f"{_title(bdf, role)} holds data: /dev/{disk} has {signature}. If it may be lost, name the serial "
                    f"number {', '.join(sorted(serials)) or '(unknown)'} in kvm_host_erase_ok"
                )


def _controllers(root: Path, bdf: str) -> List[Path]:
    return sorted((root / "sys/bus/pci/devices" / bdf / "nvme").glob("nvme*"))


def _disks_of(root: Path, bdf: str) -> List[str]:
    names: Set[str] = set()
    for controller in _controllers(root, bdf):
        names.update(path.name for path in controller.glob("nvme*n*"))
    found = set()
    for name in names:  # with native multipath the controller shows nvme0c0n1, the disk is nvme0n1
        found.add(re.sub(r"^(nvme\d+)c\d+(n\d+)$", r"\1\2", name))
    return sorted(name for name in found if re.match(r"^nvme\d+n\d+$", name))


def _signatures(root: Path, run: Run, disk: str) -> List[str]:
    """What a disk carries: partitions the kernel shows, what udev knows, and what wipefs finds by reading it."""
    found = []
    block = root / "sys/class/block" / disk
    partitions = sorted(path.parent.name for path in block.glob(f"{disk}p*/partition"))
    if partitions:
        found.append(f"partitions {', '.join(partitions)}")
    udev = _text(root / "run/udev/data" / f"b{_text(block / 'dev').strip()}")
    for key, meaning in (("ID_PART_TABLE_TYPE", "partition table"), ("ID_FS_TYPE", "signature")):
        value = re.search(rf"^E:{key}=(.+)$", udev, re.MULTILINE)
        if value:
            found.append(f"a {meaning} {value.group(1)}")
    if not found:
        try:
            status, out, errors = run(["wipefs", "--no-act", "--noheadings", "--output", "TYPE", f"/dev/{disk}"])
        except OSError as error:
            status, out, errors = 1, "", str(error)
        found.extend(f"a signature {name}" for name in out.split())
        if status != 0:
            found.append(f"unknown content (wipefs failed: {errors.strip()})")
    return found


def _title(bdf: str, role: object) -> str:
    return f"{role or 'device'} {bdf}"


def _size(size_bytes: int) -> str:
    return f"{size_bytes >> 30} GiB" if size_bytes >= 1 << 30 else f"{size_bytes >> 20} MiB"


def _text(path: Path) -> str:
    try:
        return path.read_text(encoding="utf-8", errors="replace")
    except OSError:
        return ""


def as_list(reasons: Sequence[str]) -> str:
    """Reasons as they are shown to a person."""
    return "".join(f"\n - {reason}" for reason in reasons)
