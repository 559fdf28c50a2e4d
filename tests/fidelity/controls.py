# Copyright: the topovirt.kvm authors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Guests that are wrong on purpose: libvirt and QEMU take them without a word, the judge of the boot must not.

Besides, guests at the edge: with no more address bits than the planner says are needed.
"""

from __future__ import annotations

import copy
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from lxml import etree

from tests.fidelity.cases import Case
from tests.fidelity.guest_tree import Findings

#: The smallest machine; its GPUs sit on several root ports of several host bridges, and their BARs are large.
CASE = Case("pcie-l40s", "none", 8, "uefi")
#: What QEMU gives a CPU that nobody set a width for; OVMF then has an eighth of 1 TiB for all BARs.
FEW_BITS = 40


def narrow_gap(vm: dict[str, Any]) -> dict[str, Any]:
    """Two bus numbers for the first expander bus, which has more ports."""
    changed = copy.deepcopy(vm)
    domain = etree.fromstring(changed["domain_xml"])
    first, second = domain.findall("devices/controller[@model='pcie-expander-bus']/target")[:2]
    second.set("busNr", str(int(first.get("busNr", "")) + 2))
    changed["domain_xml"] = etree.tostring(domain, encoding="unicode")
    return changed


def narrow_addresses(vm: dict[str, Any]) -> dict[str, Any]:
    """Too few address bits for the BARs."""
    return _with_bits(vm, FEW_BITS)


def fewest_addresses(vm: dict[str, Any]) -> dict[str, Any]:
    """As many address bits as the plan says are needed; the BARs must fit."""
    return _with_bits(vm, vm["layout"]["mmio"]["needed_bits"])


def _with_bits(vm: dict[str, Any], bits: int) -> dict[str, Any]:
    changed = copy.deepcopy(vm)
    changed["layout"]["mmio"]["phys_bits"] = bits
    return changed


@dataclass(frozen=True)
class Control:
    """A mutation of the plan, and the findings that it must have."""

    name: str
    mutate: Callable[[dict[str, Any]], dict[str, Any]]
    found: Callable[[Findings], list[str]]


CONTROLS = (
    Control("bus gap too small", narrow_gap, lambda findings: findings.lost),
    Control("too few address bits", narrow_addresses, lambda findings: findings.wrong_bars),
)
