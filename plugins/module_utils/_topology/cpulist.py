# Copyright: the topovirt.kvm authors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""CPU lists as the kernel writes them (``0-3,8``)."""

from __future__ import annotations

from typing import Iterable, List, Set

from ansible_collections.topovirt.kvm.plugins.module_utils._errors import TopovirtError

# No Linux kernel numbers CPUs beyond this (CONFIG_NR_CPUS of x86 ends at 8192); it bounds what a bad list can cost.
_MAX_CPUS = 1 << 16


def parse_cpulist(text: str) -> List[int]:
    """Numbers in a CPU or node list, ascending and each once.

    :raises TopovirtError: for anything but numbers and ascending ranges separated by commas.
    """
    numbers: Set[int] = set()
    for part in filter(None, (piece.strip() for piece in text.split(","))):
        first, dash, last = part.partition("-")
        if not (first.isdecimal() and (last.isdecimal() if dash else not last)):
            raise TopovirtError(f"CPU list {text!r}: {part!r} is neither a number nor a range.", "Write it like 0-3,8.")
        low, high = int(first), int(last or first)
        if low > high or high >= _MAX_CPUS:
            raise TopovirtError(f"CPU list {text!r}: the range {part!r} does not ascend below {_MAX_CPUS}.")
        numbers.update(range(low, high + 1))
    return sorted(numbers)


def format_cpulist(cpus: Iterable[int]) -> str:
    """The shortest list that names exactly these CPUs: ``[0, 1, 2, 8]`` is ``0-2,8``."""
    ranges: List[List[int]] = []
    for cpu in sorted(set(cpus)):
        if ranges and cpu == ranges[-1][1] + 1:
            ranges[-1][1] = cpu
        else:
            ranges.append([cpu, cpu])
    return ",".join(str(low) if low == high else f"{low}-{high}" for low, high in ranges)
