# Copyright: the topovirt.kvm authors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""VMs and comparisons as lines of text, for the output of a playbook."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

_COLUMNS = ("name", "state", "CPUs", "emulator", "memory", "devices", "partition")


def _aligned(rows: Sequence[Sequence[str]]) -> list[str]:
    widths = [max(len(row[column]) for row in rows) for column in range(len(rows[0]))]
    return ["  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip() for row in rows]


def vm_table(domains: Sequence[Mapping[str, Any]]) -> list[str]:
    """One line for each VM of ``vm_info``, below a head; only the head when there is none."""
    rows: list[Sequence[str]] = [_COLUMNS]
    for domain in domains:
        partition = (domain["metadata"] or {}).get("partition")
        rows.append(
            (
                domain["name"],
                domain["state"],
                domain["cpus"] or "-",
                domain["emulator_cpus"] or "-",
                f"{domain['memory_bytes'] / (1 << 30):.1f} GiB",
                " ".join(domain["hostdevs"]) or "-",
                "-" if partition is None else str(partition),
            )
        )
    return _aligned(rows)


def comparison_text(comparison: Mapping[str, Any]) -> list[str]:
    """The matrix of path classes, a line for each device; where host and guest differ, both as ``HOST!GUEST``. Below it
    how true the guest is, and why it is not."""
    matrix = comparison["matrix"]
    rows = [["", *(bdf.removeprefix("0000:") for bdf in matrix["order"])]]
    for bdf, host, guest in zip(matrix["order"], matrix["host"], matrix["guest"], strict=True):
        cells = [one if one == other else f"{one}!{other}" for one, other in zip(host, guest, strict=True)]
        rows.append([bdf, *cells])
    return [*_aligned(rows), *fidelity_text(comparison), *(cause["cause"] for cause in comparison["causes"])]


def fidelity_text(comparison: Mapping[str, Any]) -> list[str]:
    """One line for each figure that there is: ``paths: 190 of 190 pairs equal (100 %)``."""
    lines = []
    for what, figure in comparison["fidelity"].items():
        if figure is not None:
            share = f" ({100 * figure['equal'] / figure['pairs']:.4g} %)" if figure["pairs"] else ""
            lines.append(f"{what}: {figure['equal']} of {figure['pairs']} pairs equal{share}")
    return lines
