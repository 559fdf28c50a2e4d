# Copyright: the topovirt.kvm authors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""``make fidelity``: for every machine, fabric model and size of a VM, how many pairs of its devices reach each other
in the guest as they do on the host: with the planned tree, and beside it with all devices on ports of the root complex.

Nothing is booted, so all of it is planned. Every figure is computed twice: by the collection, from layouts, and here,
from the machine description and the domain definition. The last line is the path of the same as JSON.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from typing import Any

from ansible_collections.topovirt.kvm.plugins.module_utils._errors import TopovirtError
from ansible_collections.topovirt.kvm.plugins.module_utils._topology.compare import Comparison, compare
from ansible_collections.topovirt.kvm.plugins.module_utils._topology.model import Topology
from ansible_collections.topovirt.kvm.plugins.plugin_utils._guest.expected import expected_guest
from ansible_collections.topovirt.kvm.plugins.plugin_utils._guest.layout import Layout
from ansible_collections.topovirt.kvm.plugins.plugin_utils._placement.fabric import MODELS, read_fabric
from ansible_collections.topovirt.kvm.plugins.plugin_utils._placement.plan import make_plan
from ansible_collections.topovirt.kvm.tests.unit.plugins.plugin_utils.guests import Guest

from tests.fidelity.oracle import HostPaths
from tests.tools import goldens, progress, workspace
from tests.twin import description

RESULT = workspace.WORK / "fidelity.json"
BOOT = {"kernel": "/srv/kernel"}


@dataclass(frozen=True)
class Row:
    """One size of VM on one machine. Figures are pairs that are equal, of ``pairs``."""

    machine: str
    model: str
    gpus: int
    basis: str = "planned"
    refused: str = ""  # why no such VM can be, or empty
    devices: int = 0
    pairs: int = 0
    mirror: int = 0
    flat: int = 0
    vcpu_pairs: int = 0
    l3: int | None = None  # of vcpu_pairs
    problems: tuple[str, ...] = ()  # where both computations disagree, or the mirror is not true


def _judged(layout: Layout, topology: Topology) -> Comparison:
    guest = expected_guest(layout, topology)
    return compare(topology, guest["guest_topology"], guest["identity"], guest["node_map"], guest["cpu_map"])


def _plan(machine: str, model: str, gpus: int, topology: Topology, mode: str) -> dict[str, Any]:
    request = {"name": "vm", "gpus": gpus, "boot": BOOT, "pcie": mode}
    vm: dict[str, Any] = make_plan([request], topology, [], model, machine, state="unconverted")["vms"][0]
    return vm


def _row(machine: str, model: str, gpus: int, topology: Topology, host: HostPaths) -> Row:
    try:
        vm, beside_it = (_plan(machine, model, gpus, topology, mode) for mode in ("mirror", "flat"))
    except TopovirtError as error:
        return Row(machine, model, gpus, refused=error.message)
    mirrored, flattened = (_judged(layout, topology) for layout in (vm["layout"], beside_it["layout"]))
    mirror, beside = mirrored["fidelity"]["paths"], flattened["fidelity"]["paths"]
    wanted = host.classes([device["bdf"] for device in vm["layout"]["devices"]])
    problems = []
    if not mirrored["equal"]:
        problems.append("the planned guest is not true: " + "; ".join(cause["cause"] for cause in mirrored["causes"]))
    for what, figure, vm_of in (("mirror", mirror, vm), ("flat", beside, beside_it)):
        defined = Guest(vm_of["domain_xml"])
        own = sum(defined.path_class(a, b) == known for (a, b), known in wanted.items())
        if (figure["equal"], figure["pairs"]) != (own, len(wanted)):
            problems.append(f"{what}: the collection says {figure}, the description {own} of {len(wanted)}")
    cores, caches = mirrored["fidelity"]["siblings"], mirrored["fidelity"]["l3"]
    assert cores is not None
    return Row(
        machine,
        model,
        gpus,
        devices=mirrored["devices"],
        pairs=mirror["pairs"],
        mirror=mirror["equal"],
        flat=beside["equal"],
        vcpu_pairs=cores["pairs"],
        l3=None if caches is None else caches["equal"],
        problems=tuple(problems),
    )


def rows(machine: str) -> Iterator[Row]:
    """Every model that the machine has and every size that the model has."""
    topology, host = goldens.topology(machine), HostPaths(description.load(machine))
    for model in MODELS:
        try:
            sizes = read_fabric(topology, model).sizes
        except TopovirtError:
            continue  # no such fabric on this machine, or module ids that no source tells
        for gpus in sizes:
            yield _row(machine, model, gpus, topology, host)


def _share(equal: int, pairs: int) -> str:
    return f"{equal}/{pairs} {100 * equal / pairs:.0f} %" if pairs else "0/0"


HEAD = ("machine", "fabric model", "GPUs", "devices", "mirror", "flat", "vCPUs sharing L3", "basis")


def text(found: list[Row]) -> str:
    """The table, and below it why some sizes are refused."""
    cells: list[tuple[str, ...]] = [HEAD]
    refused: dict[tuple[str, str], list[Row]] = {}
    for row in found:
        start = (row.machine, row.model, str(row.gpus))
        if row.refused:
            refused.setdefault((row.machine, row.model), []).append(row)
            cells.append((*start, *["-"] * (len(HEAD) - 4), "refused"))
            continue
        caches = "unknown" if row.l3 is None else _share(row.l3, row.vcpu_pairs)
        true, beside = _share(row.mirror, row.pairs), _share(row.flat, row.pairs)
        cells.append((*start, str(row.devices), true, beside, caches, row.basis))
    widths = [max(len(line[column]) for line in cells) for column in range(len(HEAD))]
    lines = ["  ".join(cell.ljust(width) for cell, width in zip(line, widths, strict=True)).rstrip() for line in cells]
    for (machine, model), left_out in refused.items():
        sizes = ", ".join(str(row.gpus) for row in left_out)
        lines += ["", f"refused on {machine}, {model}: {sizes} GPUs; the first one: {left_out[0].refused}"]
    return "\n".join(lines)


def main() -> int:
    progress.end_like_interrupted()
    found: list[Row] = []
    for machine in description.names():
        progress.say(f"planning on {machine}")
        found += rows(machine)
    print(text(found))
    RESULT.write_text(json.dumps([asdict(row) for row in found], indent=1), encoding="utf-8")
    wrong = [f"{row.machine}, {row.model}, {row.gpus} GPUs: {problem}" for row in found for problem in row.problems]
    for problem in wrong:
        print(f"error: {problem}", file=sys.stderr)
    print(RESULT)
    return 1 if wrong else 0
