# Copyright: the topovirt.kvm authors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""The main stories again on what the reader reads from the recorded tree of the described server."""

from __future__ import annotations

from copy import deepcopy
from functools import cache
from itertools import combinations
from pathlib import Path
from tempfile import TemporaryDirectory

import pytest
from ansible_collections.topovirt.kvm.plugins.module_utils._topology.model import Topology
from ansible_collections.topovirt.kvm.plugins.module_utils._topology.paths import Paths
from ansible_collections.topovirt.kvm.plugins.module_utils._topology.reader import read_topology
from ansible_collections.topovirt.kvm.plugins.module_utils._topology.reserve import guest_pages
from ansible_collections.topovirt.kvm.plugins.plugin_utils._placement.plan import make_plan
from ansible_collections.topovirt.kvm.tests.unit.plugins.plugin_utils.guests import Guest
from ansible_collections.topovirt.kvm.tests.unit.plugins.plugin_utils.hosts import GIB, host, request

from tests.twin.addresses import module_ids
from tests.twin.description import load
from tests.twin.recorded import record

STORIES = {
    "eight": ("full_passthrough", [8]),
    "four and four": ("shared_nvswitch", [4, 4]),
    "two and one": ("shared_nvswitch", [2, 1]),
    "eight times one": ("shared_nvswitch", [1] * 8),
}


@cache
def _read(scale: str, drivers: str) -> Topology:
    with TemporaryDirectory() as directory:
        machine = load("hgx-h200")
        record(machine, Path(directory), scale, drivers)
        # Conversion saves what nvidia-smi says; before that only nvidia-smi itself knows it.
        return read_topology(Path(directory), module_ids=module_ids(machine) if drivers == "native" else None)


def recorded(scale: str, drivers: str = "vfio") -> Topology:
    """The recorded server; with vfio drivers also with the huge pages that conversion makes."""
    topology = deepcopy(_read(scale, drivers))
    if drivers == "vfio":
        for node in topology["numa_nodes"]:
            pages = guest_pages(node["memory_bytes"], GIB)
            node["hugepages"]["1048576"] = {"total": pages, "free": pages}
    return topology


def devices(topology: Topology, story: str, state: str = "converted") -> list[list[str]]:
    model, sizes = STORIES[story]
    wanted = [request(f"vm{index}", size) for index, size in enumerate(sizes)]
    made = make_plan(wanted, topology, [], model, "host", state=state)
    return [[device["bdf"] for device in vm["placement"]["devices"]] for vm in made["vms"]]


# At boot scale a node has one core for guests, too few for eight VMs.
@pytest.mark.parametrize(
    "scale,story",
    [("real", story) for story in STORIES] + [("boot", story) for story in STORIES if "times" not in story],
)
def test_the_same_placement_as_on_the_described_machine(scale: str, story: str) -> None:
    expected = devices(host(scale), story)
    assert devices(recorded(scale), story) == expected
    assert devices(recorded(scale, "native"), story, "unconverted") == expected


@pytest.mark.parametrize("scale", ["boot", "real"])
@pytest.mark.parametrize("story", ["eight", "four and four"])
def test_the_guest_sees_the_hosts_paths(scale: str, story: str) -> None:
    topology = recorded(scale)
    model, sizes = STORIES[story]
    wanted = [request(f"vm{index}", size) for index, size in enumerate(sizes)]
    paths = Paths(topology)
    for vm in make_plan(wanted, topology, [], model, "host")["vms"]:
        guest = Guest(vm["domain_xml"])
        for a, b in combinations(guest.hostdevs, 2):
            assert guest.path_class(a, b) == paths.path_class(a, b), (a, b)
