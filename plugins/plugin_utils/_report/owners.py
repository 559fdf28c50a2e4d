# Copyright: the topovirt.kvm authors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Who owns what on a host: the one place where picture and tables take owners and their colours from."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from ansible_collections.topovirt.kvm.plugins.module_utils._libvirt.domains import Allocation, parse_cpuset
from ansible_collections.topovirt.kvm.plugins.module_utils._topology.model import PciFunction

# Fill and line of each VM, told apart also by readers who do not see red and green alike
# (after the qualitative palette of Okabe and Ito, lightened so that black text stays readable).
PALETTE = (
    ("#bfe0f5", "#0072b2"),
    ("#fbdca4", "#b97a00"),
    ("#bfe8d8", "#00795a"),
    ("#f3cfe1", "#a8457f"),
    ("#f8cdb5", "#b84a00"),
    ("#d9d6f2", "#5b4fb0"),
    ("#f4efb0", "#8a8200"),
    ("#cfd8dc", "#455a64"),
)
FREE = ("#ffffff", "#8b98a5")
HOST = ("#e9ecef", "#6c757d")


@dataclass(frozen=True)
class Owner:
    """A VM, the host itself or nobody.

    :param kind: ``vm``, ``host`` or ``free``.
    """

    kind: str
    name: str
    fill: str
    line: str


NOBODY = Owner("free", "free", *FREE)
THE_HOST = Owner("host", "used by the host", *HOST)


class Owners:
    """Owners of devices and CPUs by what libvirt's domains and the host's own use say."""

    def __init__(self, domains: Sequence[Allocation]) -> None:
        self.vms: dict[str, Owner] = {}
        self._devices: dict[str, Owner] = {}
        self._cpus: dict[int, Owner] = {}
        # VMs on fabric partitions: the host itself drives the NVSwitches that connect them.
        self._host_drives_fabric = any((domain["metadata"] or {}).get("partition") is not None for domain in domains)
        for number, domain in enumerate(sorted(domains, key=lambda domain: domain["name"])):
            owner = Owner("vm", domain["name"], *PALETTE[number % len(PALETTE)])
            self.vms[owner.name] = owner
            self._devices.update(dict.fromkeys(domain["hostdevs"], owner))
            self._cpus.update(dict.fromkeys(parse_cpuset(domain["cpus"]) if domain["cpus"] else [], owner))

    def of_device(self, function: PciFunction) -> Owner:
        if function["bdf"] in self._devices:
            return self._devices[function["bdf"]]
        shared = self._host_drives_fabric and function["role"] == "nvswitch" and function["driver"] != "vfio-pci"
        return THE_HOST if function["in_use"] or shared else NOBODY

    def of_cpu(self, cpu: int) -> Owner:
        return self._cpus.get(cpu, NOBODY)


def short_bdf(bdf: str) -> str:
    """``0000:23:00.0`` as ``23:00.0``; the domain stays where it says something."""
    return bdf.removeprefix("0000:")


def gib(count: int) -> str:
    """Bytes as a reader wants them: ``4 GiB``, ``1.5 TiB``, ``300 MiB``."""
    for unit, size in (("TiB", 1024**4), ("GiB", 1024**3)):
        if count >= size:
            return f"{count / size:.1f}".removesuffix(".0") + f" {unit}"
    return f"{count / 1024**2:.0f} MiB"
