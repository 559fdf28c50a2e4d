# Copyright: the topovirt.kvm authors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""``make bench``: what reader and placement cost beside others, how much rubbish the reader survives, and whether
placement is optimal.

The last line is the path of the same as JSON: a list of {name, unit, ours, peers, floor}.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
import tempfile
from collections.abc import Mapping
from dataclasses import asdict
from pathlib import Path

from ansible_collections.topovirt.kvm.plugins.module_utils._topology.model import Topology
from ansible_collections.topovirt.kvm.plugins.module_utils._topology.reader import read_topology

from tests.bench import fuzz, lstopo, optimum, placement, reader
from tests.bench.result import Row, table
from tests.tools import progress, workspace
from tests.twin import description, mutations, recorded
from tests.twin.addresses import module_ids

RESULT = workspace.WORK / "bench.json"
MUTATIONS = 100_000
TREES_AT_ONCE = 2000
PART_FILLED_HOSTS = 500
MACHINES = ("hgx-h200", "dgx-2")


def as_sold(memory: str | None) -> dict[str, Topology]:
    """Every machine as sold, with the module ids that are known of it."""
    found = {}
    for name in description.names():
        machine = description.load(name)
        with tempfile.TemporaryDirectory(dir=memory) as folder:
            recorded.record(machine, Path(folder), "real")
            found[name] = read_topology(Path(folder), module_ids=module_ids(machine))
    return found


def sizes(topologies: Mapping[str, Topology]) -> list[Row]:
    """Bytes of the topology as JSON."""
    return [
        Row(f"{name}: size of the topology", "B", len(json.dumps(topology))) for name, topology in topologies.items()
    ]


def survived() -> Row:
    """Read harmed trees until there were as many mutations as it takes."""
    total = fuzz.Count()
    while total.mutations < MUTATIONS:
        count = fuzz.fuzz(TREES_AT_ONCE, derandomize=False)
        total = fuzz.Count(total.trees + count.trees, total.mutations + count.mutations)
        progress.say(f"        {total.mutations} mutations of {total.trees} trees")
    return Row(f"mutations survived, in {total.trees} trees", "", total.mutations)


def main() -> int:
    progress.end_like_interrupted()
    try:
        lstopo.program()
        reader.need_strace()
    except FileNotFoundError as error:
        print(f"error: {error}", file=sys.stderr)
        return 1
    rows = []
    memory = "/dev/shm" if os.access("/dev/shm", os.W_OK) else None
    with tempfile.TemporaryDirectory(dir=memory) as folder:
        for name in MACHINES:
            progress.say(f"reading {name}")
            tree = Path(folder) / name
            recorded.record(description.load(name), tree, "real")
            mutations.uncore_functions(tree)  # as many functions as the real server has
            rows += reader.on_one_machine(name, tree)
        progress.say("reading machines of 512 to 4096 functions")
        rows += reader.growth(Path(folder))
    progress.say("running tasks")
    rows.append(reader.as_tasks())
    progress.say("placing VMs")
    topologies = as_sold(memory)
    rows += sizes(topologies)
    placed = placement.rows(topologies)
    progress.say(f"harming trees, {MUTATIONS} mutations")
    rows.append(survived())
    progress.say(f"placing every batch on every machine, empty and filled in {PART_FILLED_HOSTS} ways")
    rows += optimum.proven(PART_FILLED_HOSTS)
    print(table(rows))
    print("", "Placement", *placement.NOTES, table(placed), sep="\n")
    RESULT.write_text(json.dumps([asdict(row) for row in [*rows, *placed]], indent=1), encoding="utf-8")
    print(RESULT)
    return 0


if __name__ == "__main__":
    try:
        sys.exit(main())
    except subprocess.CalledProcessError as error:
        print(f"error: {error}\n{(error.stderr or b'')[-2000:]!r}", file=sys.stderr)
        sys.exit(1)
