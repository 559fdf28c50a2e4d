# Copyright: the topovirt.kvm authors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

from __future__ import annotations

import copy
import time
from pathlib import Path

import pytest
from ansible_collections.topovirt.kvm.plugins.module_utils._errors import TopovirtError
from ansible_collections.topovirt.kvm.plugins.module_utils._topology.paths import (
    Paths,
    nearest,
    path_class,
    path_matrix,
    pcie_groups,
)
from ansible_collections.topovirt.kvm.plugins.module_utils._topology.reader import read_topology
from ansible_collections.topovirt.kvm.plugins.module_utils._topology.text import topology_text
from ansible_collections.topovirt.kvm.tests.unit.plugins.module_utils._topology.machine import (
    DOWNSTREAM,
    PCI_BRIDGE,
    ROOT_PORT,
    UPSTREAM,
    Machine,
    two_level_machine,
)

GPU_A, NIC_A, GPU_B, NVME = "0000:25:00.0", "0000:26:00.0", "0000:29:00.0", "0000:2a:00.0"
SWITCH_0, SWITCH_1, NIC_C, GPU_D = "0000:2b:00.0", "0000:2b:00.1", "0000:51:00.0", "0000:91:00.0"

# Read off the drawing of the machine by hand.
EXPECTED = {
    (GPU_A, GPU_A): "LOC",
    (GPU_A, NIC_A): "PIX",  # one switch, 23
    (GPU_A, GPU_B): "PXB",  # 23, 21, 27
    (GPU_A, NVME): "PXB",  # 23, 21
    (GPU_B, NVME): "PXB",
    (NIC_A, GPU_B): "PXB",
    (SWITCH_0, SWITCH_1): "PIX",  # the same port above
    (GPU_A, SWITCH_0): "PHB",  # other root port of host bridge 20
    (NVME, SWITCH_1): "PHB",
    (GPU_A, NIC_C): "NODE",  # host bridges 20 and 50 of node 0
    (SWITCH_0, NIC_C): "NODE",
    (GPU_A, GPU_D): "SYS",
    (NIC_C, GPU_D): "SYS",
}


@pytest.mark.parametrize(("pair", "expected"), EXPECTED.items(), ids=str)
def test_path_classes(tmp_path: Path, pair: tuple[str, str], expected: str) -> None:
    topology = read_topology(two_level_machine(tmp_path).root)
    assert path_class(topology, *pair) == expected
    assert path_class(topology, *pair[::-1]) == expected


@pytest.mark.parametrize(
    ("pair", "expected"),
    [
        ((GPU_A, NIC_A), ["0000:24:00.0", "0000:24:01.0"]),  # turns in switch 23
        ((GPU_A, GPU_B), ["0000:24:00.0", "0000:22:00.0", "0000:28:00.0", "0000:22:01.0"]),  # turns in switch 21
        ((GPU_B, NVME), ["0000:28:00.0", "0000:22:01.0", "0000:22:02.0"]),
        ((NVME, SWITCH_1), ["0000:22:02.0", "0000:20:00.0", "0000:20:01.0"]),  # turns in the host bridge
        ((SWITCH_0, SWITCH_1), []),  # functions of one slot
        ((GPU_A, NIC_C), []),  # leaves the host bridge
        ((GPU_A, GPU_A), []),
    ],
    ids=str,
)
def test_ports_between_two_functions(tmp_path: Path, pair: tuple[str, str], expected: list[str]) -> None:
    paths = Paths(read_topology(two_level_machine(tmp_path).root))
    for one, other in (pair, pair[::-1]):
        assert sorted(paths.ports_between(one, other)) == sorted(expected)


def test_unknown_nodes_are_never_the_same(tmp_path: Path) -> None:
    topology = read_topology(two_level_machine(tmp_path, node_of_devices=-1).root)
    assert path_class(topology, GPU_A, NIC_C) == "SYS"
    assert path_class(topology, NIC_C, GPU_D) == "SYS"
    assert path_class(topology, GPU_A, SWITCH_0) == "PHB"


def test_a_plain_bridge_counts_as_a_switch_and_a_root_port_does_not(tmp_path: Path) -> None:
    machine = Machine(tmp_path)
    machine.port("0000:20:00.0", "pci0000:20", ROOT_PORT)
    machine.port("0000:21:00.0", "0000:20:00.0", PCI_BRIDGE)
    machine.gpu("0000:22:01.0", "0000:21:00.0")
    machine.gpu("0000:22:02.0", "0000:21:00.0")
    machine.port("0000:20:01.0", "pci0000:20", ROOT_PORT)
    machine.port("0000:23:00.0", "0000:20:01.0", UPSTREAM)
    machine.port("0000:23:00.1", "0000:20:01.0", UPSTREAM)
    machine.gpu("0000:24:00.0", "0000:23:00.0")
    machine.gpu("0000:25:00.0", "0000:23:00.1")
    machine.gpu("0000:23:00.2", "0000:20:01.0")
    topology = read_topology(tmp_path)
    assert path_class(topology, "0000:22:01.0", "0000:22:02.0") == "PIX"
    assert path_class(topology, "0000:24:00.0", "0000:25:00.0") == "PXB"  # two switches below one root port
    assert path_class(topology, "0000:24:00.0", "0000:23:00.2") == "PIX"  # one of them
    assert path_class(topology, "0000:22:01.0", "0000:24:00.0") == "PHB"


def test_a_nic_with_a_switch_of_its_own_is_one_more_switch_away(tmp_path: Path) -> None:
    machine = Machine(tmp_path)
    machine.port("0000:20:00.0", "pci0000:20", ROOT_PORT)
    machine.port("0000:21:00.0", "0000:20:00.0", UPSTREAM)
    machine.port("0000:22:00.0", "0000:21:00.0", DOWNSTREAM)
    machine.port("0000:22:01.0", "0000:21:00.0", DOWNSTREAM)
    machine.gpu("0000:23:00.0", "0000:22:00.0")
    machine.port("0000:24:00.0", "0000:22:01.0", UPSTREAM)
    machine.port("0000:25:00.0", "0000:24:00.0", DOWNSTREAM)
    machine.nic("0000:26:00.0", "0000:25:00.0")
    assert path_class(read_topology(tmp_path), "0000:23:00.0", "0000:26:00.0") == "PXB"


def test_matrix(tmp_path: Path) -> None:
    topology = read_topology(two_level_machine(tmp_path).root)
    assert path_matrix(topology, [NIC_A, GPU_D, GPU_A]) == {
        "order": [NIC_A, GPU_D, GPU_A],
        "classes": [["LOC", "SYS", "PIX"], ["SYS", "LOC", "SYS"], ["PIX", "SYS", "LOC"]],
    }
    assert path_matrix(topology)["order"] == [GPU_A, NIC_A, GPU_B, NVME, SWITCH_0, SWITCH_1, NIC_C, GPU_D]


def test_an_unknown_function_is_named(tmp_path: Path) -> None:
    with pytest.raises(TopovirtError, match=r"0000:77:00\.0"):
        path_class(read_topology(two_level_machine(tmp_path).root), GPU_A, "0000:77:00.0")
    with pytest.raises(TopovirtError, match=r"0000:77:00\.0"):
        path_matrix(read_topology(tmp_path), ["0000:77:00.0"])


def test_groups(tmp_path: Path) -> None:
    topology = read_topology(two_level_machine(tmp_path).root)
    assert [(group["switch"], group["devices"]) for group in pcie_groups(topology)] == [
        ("0000:23:00.0", [GPU_A, NIC_A]),
        ("0000:27:00.0", [GPU_B]),
        ("0000:21:00.0", [NVME]),
        (None, [SWITCH_0, SWITCH_1]),
        (None, [NIC_C]),
        (None, [GPU_D]),
    ]
    assert pcie_groups(topology)[0] == {
        "switch": "0000:23:00.0",
        "host_bridge": "0000:20",
        "numa_node": 0,
        "devices": [GPU_A, NIC_A],
    }


def test_nearest(tmp_path: Path) -> None:
    topology = read_topology(two_level_machine(tmp_path).root)
    assert nearest(topology, GPU_A, "nic") == [(NIC_A, "PIX"), (NIC_C, "NODE")]
    assert nearest(topology, GPU_B, "gpu") == [(GPU_A, "PXB"), (GPU_D, "SYS")]
    assert nearest(topology, GPU_D, "nic") == [(NIC_A, "SYS"), (NIC_C, "SYS")]


def test_text(tmp_path: Path) -> None:
    text = topology_text(read_topology(two_level_machine(tmp_path).root), [GPU_A, NIC_A, GPU_D])
    assert text.split("\n\n")[0].splitlines() == [
        "      GPU0  NIC0  GPU1  CPUs     Node  Address",
        "GPU0  X     PIX   SYS   0-1,4-5  0     0000:25:00.0",
        "NIC0  PIX   X     SYS   0-1,4-5  0     0000:26:00.0",
        "GPU1  SYS   SYS   X     2-3,6-7  1     0000:91:00.0",
    ]
    assert "PIX  = one PCIe switch" in text


def test_text_shows_unknown_nodes_and_gpus_first(tmp_path: Path) -> None:
    lines = topology_text(read_topology(two_level_machine(tmp_path, node_of_devices=-1).root)).splitlines()
    assert [line.split()[0] for line in lines[1:9]] == [
        "GPU0", "GPU1", "GPU2", "NVSW0", "NVSW1", "NIC0", "NIC1", "NVME0",
    ]  # fmt: skip
    assert lines[1].split()[-3:] == ["?", "?", GPU_A]


def test_4096_functions_are_no_burden(tmp_path: Path) -> None:
    """2048 devices, each below a port of its own: every pair of 1024, in seconds on a slow machine."""
    small = read_topology(two_level_machine(tmp_path).root)
    functions = {function["bdf"]: function for function in small["pci"]}
    large = copy.deepcopy(small)
    large["pci"] = []
    for number in range(2048):
        bridge, port, device = (f"{number // 32:04x}:00:00.0", f"{number:04x}:01:00.0", f"{number:04x}:02:00.0")
        above = f"{number // 256:04x}:00"
        if number % 32 == 0:
            large["pci"].append({**functions["0000:21:00.0"], "bdf": bridge, "parent": None, "host_bridge": above})
        large["pci"].append({**functions["0000:22:00.0"], "bdf": port, "parent": bridge, "host_bridge": above})
        large["pci"].append({**functions[GPU_A], "bdf": device, "parent": port, "host_bridge": above})
    assert len(large["pci"]) > 4096
    start = time.monotonic()
    matrix = path_matrix(large, [function["bdf"] for function in large["pci"] if function["role"]][:1024])
    groups = pcie_groups(large)
    spent = time.monotonic() - start
    assert [matrix["classes"][0][column] for column in (0, 1, 31, 32, 255, 256)] == [
        "LOC", "PIX", "PIX", "PHB", "PHB", "NODE",
    ]  # fmt: skip
    assert [len(group["devices"]) for group in groups] == [32] * 64
    assert spent < 20
