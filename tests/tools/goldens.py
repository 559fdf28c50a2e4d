# Copyright: the topovirt.kvm authors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Golden runs: what is designed for every machine, as text that a person can review, in tests/goldens.

``python -m tests.tools.inside tests.tools.goldens`` writes them; a test holds the committed ones against it.
"""

from __future__ import annotations

import json
import os
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from ansible_collections.topovirt.kvm.plugins.module_utils._topology.cpulist import format_cpulist
from ansible_collections.topovirt.kvm.plugins.module_utils._topology.model import Topology
from ansible_collections.topovirt.kvm.plugins.module_utils._topology.reader import read_topology
from ansible_collections.topovirt.kvm.plugins.plugin_utils._report.design import Design, design

from tests.tools import workspace
from tests.twin import description, recorded
from tests.twin.addresses import module_ids

GOLDENS = workspace.ROOT / "tests" / "goldens"

# Machine -> fabric model, and the GPUs of each VM that is asked for. Some ask for more than fits.
BATCHES: dict[str, tuple[str, list[int]]] = {
    "dgx-2": ("full_passthrough", [16]),
    "hgx-a100": ("none", [8, 4, 2]),
    "hgx-b200": ("none", [5, 3]),
    "hgx-h100": ("shared_nvswitch", [4, 2, 8, 1]),
    "hgx-h200": ("full_passthrough", [8, 1]),
    "hgx-h200-snc": ("none", [4, 1]),
    "hgx-h200-snc4": ("none", [8]),
    "mi300x": ("none", [8]),
    "pcie-l40s": ("none", [3, 2, 4]),
}


def topology(machine: str) -> Topology:
    """The machine as sold and as it boots, before a conversion."""
    known = description.load(machine)
    memory = "/dev/shm" if os.access("/dev/shm", os.W_OK) else None
    with tempfile.TemporaryDirectory(dir=memory) as folder:
        recorded.record(known, Path(folder), "real")
        return read_topology(Path(folder), module_ids=module_ids(known))


def designed(machine: str) -> Design:
    model, sizes = BATCHES[machine]
    vms = [{"name": f"vm{number}-{gpus}gpu", "gpus": gpus} for number, gpus in enumerate(sizes)]
    return design(topology(machine), vms, model, name=machine)


def _figures(figures: dict[str, Any]) -> str:
    known = {what: figures[what] for what in ("paths", "siblings", "l3") if figures[what] is not None}
    return ", ".join(f"{what} {figure['equal']}/{figure['pairs']}" for what, figure in known.items())


def _tree(layout: dict[str, Any], roles: dict[str, str], parent: int, depth: int) -> Iterator[str]:
    for device in layout["devices"]:
        if device["controller"] == parent:
            yield f"{'  ' * depth}{roles[device['bdf']]} {device['guest_bdf']} = {device['bdf']}"
    for controller in layout["pcie"]:
        if controller["parent"] == parent:
            cell = "" if controller["node"] is None else f" cell {controller['node']}"
            name = controller["model"].removeprefix("pcie-")
            yield (
                f"{'  ' * depth}{name} {controller['guest_bdf']} opens {controller['bus']:02x}{cell}"
                f" = {controller['host']}"
            )
            yield from _tree(layout, roles, controller["index"], depth + 1)


def _vm(summary: dict[str, Any], files: dict[str, str]) -> Iterator[str]:
    spec = json.loads(files[f"{summary['name']}.spec.json"])
    layout, placement = spec["layout"], spec["placement"]
    shape, mmio, pins = layout["cpu_topology"], layout["mmio"], dict(layout["vcpu_pins"])
    yield ""
    yield f"VM {spec['name']}: planned pairs equal: {_figures(spec['fidelity'])}"
    yield (
        f"{shape['sockets']} sockets, {shape['dies']} dies, {shape['cores']} cores, {shape['threads']} threads;"
        f" emulator on {layout['emulator_cpus']}; partition {placement['partition']}"
    )
    yield f"window {mmio['window_bytes'] >> 30} GiB, {mmio['needed_bits']} of {mmio['phys_bits']} address bits"
    for cell in layout["cells"]:
        vcpus = [vcpu for vcpu in pins if vcpu in _numbers(cell["vcpus"])]
        yield (
            f"cell {cell['id']} on node {cell['host_node']}: vCPUs {cell['vcpus']} on CPUs"
            f" {format_cpulist(pins[vcpu] for vcpu in vcpus)}, {cell['memory_bytes'] >> 30} GiB,"
            f" distances {' '.join(map(str, cell['distances']))}"
        )
    yield from _tree(layout, {device["bdf"]: device["role"] for device in placement["devices"]}, 0, 0)
    yield from (f"warning: {warning}" for warning in spec["warnings"])
    yield from (f"cause: {cause['cause']}" for cause in spec["causes"])
    yield from (
        f"{item['relation']} of vCPUs {item['vcpus']}: guest {' | '.join(item['guest'])};"
        f" host {' | '.join(item['host'])}"
        for item in spec["cpu_differences"]
    )
    yield from files[f"{spec['name']}.nccl.xml"].splitlines()


def _numbers(cpulist: str) -> set[int]:
    found: set[int] = set()
    for part in cpulist.split(","):
        first, _dash, last = part.partition("-")
        found.update(range(int(first), int(last or first) + 1))
    return found


def golden(machine: str) -> str:
    """One machine's golden run."""
    made = designed(machine)
    plan = made["plan"]
    lines = [
        f"{machine}, as sold, fabric_model {plan['fabric_model']}",
        f"placed: {', '.join(vm['name'] for vm in plan['placed']) or 'none'}",
        *(f"refused: {vm['name']}: {' '.join(vm['reasons'])}" for vm in plan["refused"]),
        f"one more VM fits with GPUs: {', '.join(map(str, plan['still_fits']['gpus'])) or 'none'}",
    ]
    for summary in plan["placed"]:
        lines += _vm(summary, made["files"])
    return "\n".join(lines) + "\n"


def main() -> int:
    GOLDENS.mkdir(exist_ok=True)
    for machine in BATCHES:
        (GOLDENS / f"{machine}.txt").write_text(golden(machine), encoding="utf-8")
    return 0


if __name__ == "__main__":
    sys.exit(main())
