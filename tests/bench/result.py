# Copyright: the topovirt.kvm authors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""One line of the benchmark, as table and as JSON."""

from __future__ import annotations

from dataclasses import dataclass, field


@dataclass(frozen=True)
class Row:
    """A measurement with what it is compared to, all in the same unit."""

    name: str
    unit: str
    ours: float
    peers: dict[str, float] = field(default_factory=dict)
    floor: float | None = None


def table(rows: list[Row]) -> str:
    """Each row with the ratio of ours to every peer and to the floor."""
    lines = [f"{'what':64} {'ours':>12}  beside"]
    for row in rows:
        others = [*row.peers.items(), *([("floor", row.floor)] if row.floor is not None else [])]
        beside = "; ".join(
            f"{name} {value:.4g} {row.unit}".rstrip() + (f", ours / it = {row.ours / value:.2f}" if value else "")
            for name, value in others
        )
        lines.append(f"{row.name:64} {row.ours:>9.4g} {row.unit:2}  {beside}".rstrip())
    return "\n".join(lines)
