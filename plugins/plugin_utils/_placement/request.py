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
from ansible_collections.topovirt.kvm.plugins.plugin_utils._guest.pcie_tree import MODES as PCIE_MODES

_KEYS = ("name", "gpus", "nics", "nvme", "vcpus", "memory", "boot", "hostdev_properties", "pv_eoi", "pcie", "gpu_p2p")
_KERNEL_KEYS = ("kernel", "initrd", "cmdline")
_DISK_KEYS = ("path", "format")
_POLICY_KEYS = ("vcpus_per_gpu", "memory_per_gpu", "nics_per_gpu")
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
class Request:
    """One VM as asked for. ``None`` stands for "auto"."""

    name: str
    gpus: int
    nics: int | None
    nvme: int
    vcpus: int | None
    memory_bytes: int | None
    boot: KernelBoot | DiskBoot
    hostdev_properties: dict[str, bool | int | str]
    asked: dict[str, Any]  # as given, for the VM's metadata
    pv_eoi: bool | None = None  # ``None``: as libvirt has it
    pcie: str = "mirror"  # one of PCIE_MODES
    gpu_p2p: bool = False


@dataclass(frozen=True)
class Policy:
    """Rules for what a request leaves to "auto". ``None`` stands for the proportional share of the machine."""

    vcpus_per_gpu: int | None = None
    memory_per_gpu_bytes: int | None = None
    nics_per_gpu: int | None = None


class _Problems:
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


def _boot(where: str, value: object, problems: _Problems) -> KernelBoot | DiskBoot:
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


def _properties(where: str, value: object, problems: _Problems) -> dict[str, bool | int | str]:
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


def _request(where: str, value: Mapping[str, Any], problems: _Problems) -> Request:
    problems.unknown_keys(where, value, _KEYS)
    name = value.get("name")
    if not isinstance(name, str) or not _NAME.fullmatch(name):
        problems.add(f"{where}.name", name, "1 to 64 letters, digits or '_.+-', starting with a letter or digit")
    return Request(
        name=str(name),
        gpus=problems.number(f"{where}.gpus", value.get("gpus"), 1),
        nics=problems.auto_number(f"{where}.nics", value.get("nics"), 0),
        nvme=problems.number(f"{where}.nvme", value.get("nvme", 0), 0),
        vcpus=problems.auto_number(f"{where}.vcpus", value.get("vcpus"), 1),
        memory_bytes=problems.size(f"{where}.memory", value.get("memory")),
        boot=_boot(f"{where}.boot", value.get("boot"), problems),
        hostdev_properties=_properties(f"{where}.hostdev_properties", value.get("hostdev_properties"), problems),
        pv_eoi=problems.truth(f"{where}.pv_eoi", value.get("pv_eoi")),
        pcie=problems.choice(f"{where}.pcie", value.get("pcie", PCIE_MODES[0]), PCIE_MODES),
        gpu_p2p=bool(problems.truth(f"{where}.gpu_p2p", value.get("gpu_p2p"))),
        asked={
            key: value[key] for key in ("gpus", "nics", "nvme", "vcpus", "memory", "pcie", "gpu_p2p") if key in value
        },
    )


def parse_requests(raw: object) -> list[Request]:
    """Requests as a user writes them -> checked requests, in the same order.

    :param raw: list of ``{name, gpus, nics, nvme, vcpus, memory, boot, hostdev_properties, pv_eoi, pcie,
        gpu_p2p}``.
    :raises TopovirtError: one error with every problem of every request.
    """
    problems = _Problems()
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


def parse_policy(raw: Mapping[str, Any] | None) -> Policy:
    """``{vcpus_per_gpu, memory_per_gpu, nics_per_gpu}`` -> policy.

    :raises TopovirtError: one error with every problem.
    """
    problems = _Problems()
    value = raw or {}
    problems.unknown_keys("policy", value, _POLICY_KEYS)
    policy = Policy(
        vcpus_per_gpu=problems.auto_number("policy.vcpus_per_gpu", value.get("vcpus_per_gpu"), 1),
        memory_per_gpu_bytes=problems.size("policy.memory_per_gpu", value.get("memory_per_gpu")),
        nics_per_gpu=problems.auto_number("policy.nics_per_gpu", value.get("nics_per_gpu"), 0),
    )
    problems.refuse("Policy")
    return policy
