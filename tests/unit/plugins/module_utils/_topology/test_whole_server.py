# Copyright: the topovirt.kvm authors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""The reader on the recorded tree of a whole server. Expected values are read off the machine's description by hand."""

from __future__ import annotations

import json
from collections import Counter
from pathlib import Path

import pytest
from ansible_collections.topovirt.kvm.plugins.module_utils._topology.facts import summarize
from ansible_collections.topovirt.kvm.plugins.module_utils._topology.model import PciFunction, Topology
from ansible_collections.topovirt.kvm.plugins.module_utils._topology.paths import Paths
from ansible_collections.topovirt.kvm.plugins.module_utils._topology.reader import read_topology

from tests.twin.description import load
from tests.twin.recorded import record

MAX_BYTES = 64 * 1024


def read(place: Path, scale: str, drivers: str) -> Topology:
    root = place / "tree"
    record(load("hgx-h200"), root, scale, drivers)
    return read_topology(root)


@pytest.fixture(scope="module", params=["boot", "real"])
def topology(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Topology:
    return read(tmp_path_factory.mktemp("machine"), request.param, "native")


def by_role(topology: Topology, role: str) -> list[PciFunction]:
    return [function for function in topology["pci"] if function["role"] == role]


def test_devices(topology: Topology) -> None:
    assert Counter(function["role"] for function in topology["pci"] if function["role"]) == {
        "gpu": 8,
        "nic": 8,
        "nvswitch": 4,
        "nvme": 4,
    }
    kinds = Counter(function["kind"] for function in topology["pci"])
    assert (kinds["upstream_port"], kinds["downstream_port"], kinds["bridge"]) == (4, 20, 0)
    assert {function["driver"] for function in by_role(topology, "gpu")} == {"nvidia"}
    assert {function["numa_source"] for function in by_role(topology, "gpu")} == {"own"}
    assert all(function.get("module_id") is None for function in topology["pci"])  # nobody asked the driver


def test_large_bars_and_links(topology: Topology) -> None:
    for gpu in by_role(topology, "gpu"):
        assert {bar["index"]: bar["size_bytes"] for bar in gpu["bars"]} == {0: 1 << 24, 2: 1 << 38, 4: 1 << 25}
        assert gpu["link"] == {"max_gtps": 32.0, "max_width": 16}
    ports = [function for function in topology["pci"] if function["kind"] == "upstream_port"]
    assert [port["link"] for port in ports] == [{"max_gtps": 32.0, "max_width": 16}] * 4
    assert not any("bars" in function for function in topology["pci"] if function["kind"] != "endpoint")


def test_every_switch_has_two_gpus_two_nics_and_a_disk(topology: Topology) -> None:
    functions = {function["bdf"]: function for function in topology["pci"]}
    groups = Paths(topology).groups()
    with_switch = [group for group in groups if group["switch"]]
    assert [group["numa_node"] for group in with_switch] == [0, 0, 1, 1]
    for group in with_switch:
        assert Counter(functions[bdf]["role"] for bdf in group["devices"]) == {"gpu": 2, "nic": 2, "nvme": 1}
    others = [[functions[bdf]["role"] for bdf in group["devices"]] for group in groups if not group["switch"]]
    assert others == [["nvswitch"] * 4]


def test_paths(topology: Topology) -> None:
    paths = Paths(topology)
    gpus = [gpu["bdf"] for gpu in by_role(topology, "gpu")]
    nics = [nic["bdf"] for nic in by_role(topology, "nic")]
    switches = [switch["bdf"] for switch in by_role(topology, "nvswitch")]
    # From one GPU, two by two along the four switches.
    assert paths.matrix(gpus)["classes"][0] == ["LOC", "PIX", "NODE", "NODE", "SYS", "SYS", "SYS", "SYS"]
    assert [paths.path_class(gpus[5], nic) for nic in nics] == [
        "SYS", "SYS", "SYS", "SYS", "PIX", "PIX", "NODE", "NODE",
    ]  # fmt: skip
    assert [paths.path_class(switches[0], gpu) for gpu in gpus] == [
        "PHB", "PHB", "NODE", "NODE", "SYS", "SYS", "SYS", "SYS",
    ]  # fmt: skip
    assert paths.path_class(switches[0], switches[3]) == "PIX"


def test_nvswitches_share_one_iommu_group_and_gpus_share_none(topology: Topology) -> None:
    assert len({switch["iommu_group"] for switch in by_role(topology, "nvswitch")}) == 1
    assert len({gpu["iommu_group"] for gpu in by_role(topology, "gpu")}) == 8
    assert (topology["iommu"]["kind"], topology["iommu"]["active"]) == ("dmar", True)


def test_the_host_uses_its_disk_and_its_network(topology: Topology) -> None:
    used = {function["names"][0]: function["in_use"] for function in topology["pci"] if function["in_use"]}
    assert set(used) == {"vda", "eth1"}
    assert not any(function["in_use"] for function in topology["pci"] if function["role"])


def test_it_is_compact(topology: Topology) -> None:
    assert len(json.dumps(topology)) < MAX_BYTES
    assert len(json.dumps(summarize(topology, "x" * 36))) <= 2048


@pytest.mark.parametrize(
    ("scale", "cores", "threads", "first"),
    [("boot", 4, 8, [0, 1]), ("real", 96, 192, [0, 96])],
)
def test_cores_and_nodes(tmp_path: Path, scale: str, cores: int, threads: int, first: list[int]) -> None:
    topology = read(tmp_path, scale, "native")
    assert len(topology["cores"]) == cores
    assert sum(len(core["threads"]) for core in topology["cores"]) == threads
    assert topology["cores"][0]["threads"] == first
    assert [core["package"] for core in topology["cores"]] == [core["node"] for core in topology["cores"]]
    assert [node["distances"] for node in topology["numa_nodes"]] == [{"0": 10, "1": 21}, {"0": 21, "1": 10}]


def test_module_ids_outlive_the_driver(tmp_path: Path) -> None:
    gpus = by_role(read(tmp_path, "boot", "vfio"), "gpu")
    assert {gpu["driver"] for gpu in gpus} == {"vfio-pci"}
    assert [gpu["module_id"] for gpu in gpus] == [2, 4, 1, 3, 7, 5, 6, 8]
