# Copyright: the topovirt.kvm authors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

from __future__ import annotations

import time
from pathlib import Path

import pytest
from ansible_collections.topovirt.kvm.plugins.module_utils._errors import TopovirtError
from ansible_collections.topovirt.kvm.plugins.module_utils._topology.paths import (
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
    """2048 devices, each below a port of its own: reading all and every pair of 512, in seconds on a slow machine."""
    machine = Machine(tmp_path)
    for domain in range(1, 9):
        root_port = machine.port(f"{domain:04x}:00:00.0", f"pci{domain:04x}:00", ROOT_PORT, 0)
        up = machine.port(f"{domain:04x}:01:00.0", root_port, UPSTREAM, 0)
        for number in range(255):
            down = machine.port(f"{domain:04x}:02:{number // 8:02x}.{number % 8}", up, DOWNSTREAM, 0)
            if number < 64:
                machine.nic(f"{domain:04x}:{number + 3:02x}:00.0", down, 0)
            else:
                machine.pci(f"{domain:04x}:{number % 200 + 3:02x}:01.{number // 200}", down)
    start = time.monotonic()
    topology = read_topology(tmp_path)
    matrix = path_matrix(topology)
    spent = time.monotonic() - start
    assert len(topology["pci"]) == 8 * (2 + 2 * 255)
    assert len(matrix["order"]) == 512
    assert (matrix["classes"][0][1], matrix["classes"][0][511]) == ("PIX", "NODE")
    assert spent < 20
