# Copyright: the topovirt.kvm authors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Every VM that can be asked for: machine x fabric model x size x firmware, planned on the machine as it is sold."""

from __future__ import annotations

import os
import tempfile
from collections.abc import Collection, Iterable, Iterator
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

from ansible_collections.topovirt.kvm.plugins.module_utils._errors import TopovirtError
from ansible_collections.topovirt.kvm.plugins.module_utils._topology.model import Topology
from ansible_collections.topovirt.kvm.plugins.module_utils._topology.reader import read_topology
from ansible_collections.topovirt.kvm.plugins.module_utils._topology.reserve import guest_pages
from ansible_collections.topovirt.kvm.plugins.plugin_utils._placement.fabric import MODELS, read_fabric
from ansible_collections.topovirt.kvm.plugins.plugin_utils._placement.plan import make_plan

from tests.twin import description, recorded

SIZES = (1, 2, 4, 8, 16)  # GPUs
NAME = "vm"
# How a VM boots decides its firmware: a disk goes through UEFI, a kernel through the BIOS.
BOOTS: dict[str, dict[str, Any]] = {
    "uefi": {"disk": {"path": "/images/disk.raw", "format": "raw"}},
    "bios": {"kernel": "/images/vmlinuz", "initrd": "/images/initrd", "cmdline": "console=ttyS0"},
}
GIB = 1 << 30
_MEMORY = Path("/dev/shm")  # trees are thousands of files: twenty times quicker to write there than on a disk


@dataclass(frozen=True, order=True)
class Case:
    """One VM on an otherwise empty machine."""

    machine: str
    model: str  # one of MODELS
    gpus: int
    firmware: str  # key of BOOTS

    def __str__(self) -> str:
        return f"{self.machine} {self.model} {self.gpus} {self.firmware}"


@cache
def tree(machine: str) -> tempfile.TemporaryDirectory[str]:
    """The recorded tree of a converted machine; it goes with the process."""
    folder = tempfile.TemporaryDirectory(dir=_MEMORY if os.access(_MEMORY, os.W_OK) else None)
    recorded.record(description.load(machine), Path(folder.name), "real", "vfio")
    return folder


@cache
def _read(machine: str) -> Topology:
    return read_topology(Path(tree(machine).name))


def converted(machine: str) -> Topology:
    """What the reader says of the machine after its conversion: as sold, on vfio-pci, with huge pages of 1 GiB.

    Shared by all callers: copy it before changing it.
    """
    topology = _read(machine)
    for node in topology["numa_nodes"]:
        pages = guest_pages(node["memory_bytes"], GIB)
        node["hugepages"]["1048576"] = {"total": pages, "free": pages}
    return topology


def sizes(machine: str, model: str) -> list[int]:
    """Those of SIZES that the model offers on the machine, ascending; none where the model does not suit it."""
    try:
        offered = read_fabric(converted(machine), model).sizes
    except TopovirtError:
        return []
    return [size for size in SIZES if size in offered]


def cases(machines: Iterable[str] | None = None, firmware: Collection[str] = tuple(BOOTS)) -> Iterator[Case]:
    """Every case of the machines (all by default)."""
    for machine in machines or description.names():
        for model in MODELS:
            for size in sizes(machine, model):
                for kind in firmware:
                    yield Case(machine, model, size, kind)


def plan(case: Case, **more: Any) -> dict[str, Any]:
    """The VM of the plan, as docs/architecture.md describes it.

    :param more: further keys of the request.
    :raises TopovirtError: the machine cannot have it.
    """
    request = {"name": NAME, "gpus": case.gpus, "boot": BOOTS[case.firmware], **more}
    (vm,) = make_plan([request], converted(case.machine), [], case.model, case.machine)["vms"]
    result: dict[str, Any] = vm
    return result


def largest(machine: str, firmware: Collection[str] | None = None) -> tuple[Case, dict[str, str]]:
    """The VM with the most devices that can be planned, with UEFI if it can be, and those that cannot.

    :param firmware: keys of BOOTS to choose from; all by default.

    :returns: the case, and for each case of at least as many GPUs that is refused: its text -> why.
    :raises TopovirtError: the machine can have no VM at all.
    """
    refused: dict[Case, str] = {}
    found: dict[Case, int] = {}
    for case in cases([machine], firmware or BOOTS):
        try:
            found[case] = len(plan(case)["layout"]["devices"])
        except TopovirtError as error:
            refused[case] = error.message
    if not found:
        raise TopovirtError(f"{machine} can have no VM: {'; '.join(refused.values())}")
    best = max(found, key=lambda case: (case.gpus, found[case], case.firmware == "uefi"))
    return best, {str(case): why for case, why in refused.items() if case.gpus >= best.gpus}
