# Copyright: the topovirt.kvm authors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""What a user asks for: a list of requests, checked completely before anything is placed."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from ansible_collections.topovirt.kvm.plugins.module_utils._errors import TopovirtError
from ansible_collections.topovirt.kvm.plugins.module_utils._topology.cpulist import parse_cpulist
from ansible_collections.topovirt.kvm.plugins.module_utils._topology.pci import BDF
from ansible_collections.topovirt.kvm.plugins.plugin_utils._guest.pcie_tree import MODES as PCIE_MODES

# What of a request decides where its VM goes and what it is like; kept in the VM's metadata as it was asked for.
_PLACING_KEYS = (
    "gpus", "nics", "nvme", "vcpus", "memory", "smt", "numa", "nvlink", "anti_affinity", "priority", "pcie",
    "gpu_p2p",
)  # fmt: skip
_KEYS = ("name", *_PLACING_KEYS, "boot", "hostdev_properties", "pv_eoi")
_KERNEL_KEYS = ("kernel", "initrd", "cmdline")
_DISK_KEYS = ("path", "format")
_GPU_KEYS = ("bdf", "module_id", "index")
SMT = ("share", "isolate")
NUMA = ("strict", "prefer")
NVLINK = ("required", "preferred", "none")
MAX_PRIORITY = 1000
_DISK_FORMATS = ("qcow2", "raw")

# libvirt refuses names with "/" or a newline and empty ones; the rest keeps names safe in file names and command lines.
_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9_.+-]{0,63}")
_SIZE = re.compile(r"([0-9]+) ?(KiB|MiB|GiB|TiB)")
_UNITS = {"KiB": 1 << 10, "MiB": 1 << 20, "GiB": 1 << 30, "TiB": 1 << 40}
# Property names of QEMU devices: https://qemu-project.gitlab.io/qemu/devel/qom.html
_PROPERTY = re.compile(r"[a-z][a-z0-9_-]*")


@dataclass(frozen=True)
class KernelBoot:
    """Direct kernel boot; paths on the host."""

    kernel: str
    initrd: str | None
    cmdline: str | None


@dataclass(frozen=True)
class DiskBoot:
    """Boot from a disk image; path on the host."""

    path: str
    format: str


@dataclass(frozen=True)
class GpuName:
    """A certain GPU, by ``bdf``, ``module_id`` or ``index`` (its place among the host's GPUs, from 0 on)."""

    kind: str
    value: str | int


@dataclass(frozen=True)
class Request:
    """One VM as asked for. ``None`` stands for "auto"; what names certain devices also fills the number of them."""

    name: str
    gpus: int
    nics: int | None
    nvme: int | None
    vcpus: int | None
    memory_bytes: int | None
    boot: KernelBoot | DiskBoot
    hostdev_properties: dict[str, bool | int | str]
    asked: dict[str, Any]  # as given, for the VM's metadata
    pv_eoi: bool | None = None  # ``None``: as libvirt has it
    exact_gpus: tuple[GpuName, ...] = ()
    exact_nics: tuple[str, ...] = ()
    exact_nvmes: tuple[str, ...] = ()
    exact_cpus: tuple[int, ...] = ()  # the host's logical CPUs
    smt: str = "share"  # "isolate": one vCPU on each core, whose other threads stay idle
    numa: str = "strict"  # "prefer": cores and memory of other nodes where those of the GPUs' nodes do not suffice
    nvlink: str | None = None  # ``None``: as the fabric model has it
    anti_affinity: tuple[str, ...] = ()  # VMs that it shares no NUMA node with
    priority: int = 0
    pcie: str = "mirror"  # one of PCIE_MODES
    gpu_p2p: bool = False


class Problems:
    """Collects every problem of the input, so that one run tells all of them."""

    def __init__(self) -> None:
        self.found: list[str] = []

    def add(self, where: str, value: object, expected: str) -> None:
        self.found.append(f"{where}: {value!r} is not valid, expected {expected}.")

    def number(self, where: str, value: object, least: int) -> int:
        if isinstance(value, int) and not isinstance(value, bool) and value >= least:
            return value
        self.add(where, value, f"a whole number of at least {least}")
        return least

    def auto_number(self, where: str, value: object, least: int) -> int | None:
        if value is None or value == "auto":
            return None
        if isinstance(value, int) and not isinstance(value, bool) and value >= least:
            return value
        self.add(where, value, f"'auto' or a whole number of at least {least}")
        return None

    def truth(self, where: str, value: object) -> bool | None:
        if value is None or isinstance(value, bool):
            return value
        self.add(where, value, "true or false")
        return None

    def choice(self, where: str, value: object, choices: Sequence[str]) -> str:
        if isinstance(value, str) and value in choices:
            return value
        self.add(where, value, f"one of {', '.join(choices)}")
        return choices[0]

    def size(self, where: str, value: object) -> int | None:
        if value is None or value == "auto":
            return None
        match = _SIZE.fullmatch(value.strip()) if isinstance(value, str) else None
        if match and int(match.group(1)) > 0:
            return int(match.group(1)) * _UNITS[match.group(2)]
        self.add(where, value, "'auto' or a number with a unit KiB, MiB, GiB or TiB, such as '120GiB'")
        return None

    def unknown_keys(self, where: str, value: Mapping[str, Any], known: Sequence[str]) -> None:
        for key in value:
            if key not in known:
                self.found.append(f"{where}: unknown key {key!r}, known ones are {', '.join(known)}.")

    def path(self, where: str, value: object) -> str:
        if isinstance(value, str) and value.startswith("/") and "\n" not in value:
            return value
        self.add(where, value, "the absolute path of a file on the host")
        return ""

    def refuse(self, what: str) -> None:
        if self.found:
            raise TopovirtError(
                f"{what}: {len(self.found)} problem(s). " + " ".join(self.found),
                "Correct the request; nothing was planned or changed.",
            )


def _boot(where: str, value: object, problems: Problems) -> KernelBoot | DiskBoot:
    nothing = KernelBoot("", None, None)
    if not isinstance(value, Mapping) or ("kernel" in value) == ("disk" in value):
        problems.add(where, value, "either {kernel, initrd, cmdline} or {disk: {path, format}}")
        return nothing
    if "kernel" in value:
        problems.unknown_keys(where, value, _KERNEL_KEYS)
        initrd, cmdline = value.get("initrd"), value.get("cmdline")
        if cmdline is not None and (not isinstance(cmdline, str) or "\n" in cmdline):
            problems.add(f"{where}.cmdline", cmdline, "one line of text")
            cmdline = None
        return KernelBoot(
            problems.path(f"{where}.kernel", value["kernel"]),
            None if initrd is None else problems.path(f"{where}.initrd", initrd),
            cmdline,
        )
    problems.unknown_keys(where, value, ("disk",))
    disk = value["disk"]
    if not isinstance(disk, Mapping):
        problems.add(f"{where}.disk", disk, "{path, format}")
        return nothing
    problems.unknown_keys(f"{where}.disk", disk, _DISK_KEYS)
    image_format = disk.get("format", "qcow2")
    if image_format not in _DISK_FORMATS:
        problems.add(f"{where}.disk.format", image_format, " or ".join(_DISK_FORMATS))
    return DiskBoot(problems.path(f"{where}.disk.path", disk.get("path")), str(image_format))


def _properties(where: str, value: object, problems: Problems) -> dict[str, bool | int | str]:
    if value is None:
        return {}
    if not isinstance(value, Mapping):
        problems.add(where, value, "a mapping of QEMU property names to values")
        return {}
    for name, item in value.items():
        if not isinstance(name, str) or not _PROPERTY.fullmatch(name):
            problems.add(where, name, "the name of a QEMU device property, such as 'x-no-mmap'")
        elif not isinstance(item, (bool, int, str)):
            problems.add(f"{where}.{name}", item, "a truth value, a number or text")
    return dict(value)


def _gpu_name(where: str, value: object, problems: Problems) -> GpuName | None:
    expected = "an address such as '0000:23:00.0', {module_id: number} or {index: number}"
    if isinstance(value, str):
        value = {"bdf": value}
    if not isinstance(value, Mapping) or len(value) != 1 or next(iter(value)) not in _GPU_KEYS:
        problems.add(where, value, expected)
        return None
    ((kind, name),) = value.items()
    good = isinstance(name, str) if kind == "bdf" else isinstance(name, int) and not isinstance(name, bool)
    if not good or (kind == "bdf" and not BDF.match(name)):
        problems.add(where, value, expected)
        return None
    return GpuName(kind, name.lower() if kind == "bdf" else name)


def _gpus(where: str, value: object, problems: Problems) -> tuple[int, tuple[GpuName, ...]]:
    if not isinstance(value, Sequence) or isinstance(value, str):
        return problems.number(where, value, 1), ()
    if not value:
        problems.add(where, value, "a number or a list of at least one GPU")
    names = tuple(name for item in value if (name := _gpu_name(where, item, problems)) is not None)
    if len(set(names)) != len(names):
        problems.add(where, value, "each GPU once")
    return max(1, len(names)), names


def _devices(where: str, value: object, default: object, problems: Problems) -> tuple[int | None, tuple[str, ...]]:
    """A number, "auto" or a list of addresses."""
    if not isinstance(value, Sequence) or isinstance(value, str):
        return problems.auto_number(where, default if value is None else value, 0), ()
    bdfs = tuple(str(item).lower() for item in value)
    if not all(BDF.match(bdf) for bdf in bdfs) or len(set(bdfs)) != len(bdfs):
        problems.add(where, value, "'auto', a number, or addresses such as '0000:24:00.0', each once")
    return len(bdfs), bdfs


def _vcpus(where: str, value: object, problems: Problems) -> tuple[int | None, tuple[int, ...]]:
    """A number, "auto" or a list of host CPUs such as ``"4-7,52-55"``."""
    if not isinstance(value, str) or value == "auto":
        return problems.auto_number(where, value, 1), ()
    try:
        cpus = tuple(parse_cpulist(value))
    except TopovirtError:
        cpus = ()
    if not cpus:
        problems.add(where, value, "'auto', a number, or host CPUs such as '4-7,52-55'")
    return len(cpus) or None, cpus


def _names(where: str, value: object, own: object, problems: Problems) -> tuple[str, ...]:
    if value is None:
        return ()
    if not isinstance(value, Sequence) or isinstance(value, str) or not all(isinstance(name, str) for name in value):
        problems.add(where, value, "a list of names of VMs")
        return ()
    if own in value:
        problems.add(where, value, "names of other VMs")
    return tuple(value)


def _priority(where: str, value: object, problems: Problems) -> int:
    if isinstance(value, int) and not isinstance(value, bool) and abs(value) <= MAX_PRIORITY:
        return value
    problems.add(where, value, f"a whole number from -{MAX_PRIORITY} to {MAX_PRIORITY}")
    return 0


def _request(where: str, value: Mapping[str, Any], problems: Problems) -> Request:
    problems.unknown_keys(where, value, _KEYS)
    name = value.get("name")
    if not isinstance(name, str) or not _NAME.fullmatch(name):
        problems.add(f"{where}.name", name, "1 to 64 letters, digits or '_.+-', starting with a letter or digit")
    gpus, exact_gpus = _gpus(f"{where}.gpus", value.get("gpus"), problems)
    nics, exact_nics = _devices(f"{where}.nics", value.get("nics"), "auto", problems)
    nvme, exact_nvmes = _devices(f"{where}.nvme", value.get("nvme"), 0, problems)
    vcpus, exact_cpus = _vcpus(f"{where}.vcpus", value.get("vcpus"), problems)
    nvlink = value.get("nvlink")
    return Request(
        name=str(name),
        gpus=gpus,
        nics=nics,
        nvme=nvme,
        vcpus=vcpus,
        memory_bytes=problems.size(f"{where}.memory", value.get("memory")),
        boot=_boot(f"{where}.boot", value.get("boot"), problems),
        hostdev_properties=_properties(f"{where}.hostdev_properties", value.get("hostdev_properties"), problems),
        pv_eoi=problems.truth(f"{where}.pv_eoi", value.get("pv_eoi")),
        asked={key: value[key] for key in _PLACING_KEYS if key in value},
        exact_gpus=exact_gpus,
        exact_nics=exact_nics,
        exact_nvmes=exact_nvmes,
        exact_cpus=exact_cpus,
        smt=problems.choice(f"{where}.smt", value.get("smt", SMT[0]), SMT),
        numa=problems.choice(f"{where}.numa", value.get("numa", NUMA[0]), NUMA),
        nvlink=None if nvlink is None else problems.choice(f"{where}.nvlink", nvlink, NVLINK),
        anti_affinity=_names(f"{where}.anti_affinity", value.get("anti_affinity"), name, problems),
        priority=_priority(f"{where}.priority", value.get("priority", 0), problems),
        pcie=problems.choice(f"{where}.pcie", value.get("pcie", PCIE_MODES[0]), PCIE_MODES),
        gpu_p2p=bool(problems.truth(f"{where}.gpu_p2p", value.get("gpu_p2p"))),
    )


def parse_requests(raw: object) -> list[Request]:
    """Requests as a user writes them -> checked requests, in the same order.

    :param raw: list of mappings; plugins/modules/vm_plan.py documents their keys.
    :raises TopovirtError: one error with every problem of every request.
    """
    problems = Problems()
    requests: list[Request] = []
    if not isinstance(raw, Sequence) or isinstance(raw, str):
        problems.add("requests", raw, "a list of requests")
        raw = []
    for index, value in enumerate(raw):
        name = value.get("name") if isinstance(value, Mapping) else None
        where = f"requests[{index}]" + (f" ({name})" if isinstance(name, str) else "")
        if isinstance(value, Mapping):
            requests.append(_request(where, value, problems))
        else:
            problems.add(where, value, "a mapping with at least name, gpus and boot")
    names = [request.name for request in requests]
    for name in sorted({name for name in names if names.count(name) > 1}):
        problems.found.append(f"requests: the VM name {name!r} is given {names.count(name)} times, expected once.")
    problems.refuse("Requests")
    return requests
