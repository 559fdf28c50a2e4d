# Copyright: the topovirt.kvm authors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

from __future__ import annotations

from pathlib import Path

import pytest
from ansible_collections.topovirt.kvm.plugins.module_utils._topology.compare import compare, describe
from ansible_collections.topovirt.kvm.plugins.module_utils._topology.compare_cpus import Cpus, compare_cpus
from ansible_collections.topovirt.kvm.plugins.module_utils._topology.model import Core, Topology
from ansible_collections.topovirt.kvm.plugins.module_utils._topology.reader import read_topology
from ansible_collections.topovirt.kvm.tests.unit.plugins.module_utils._topology.machine import Machine


def machine(root: Path, *groups: tuple[int, int, list[int]]) -> Topology:
    """A machine with cores of (node, L3, threads)."""
    made = Machine(root)
    made.node(0, "0-3", "10 21")
    made.node(1, "4-7", "21 10")
    topology = read_topology(root)
    topology["cores"] = [
        Core(package=node, die=0, core=number, node=node, l3=l3, threads=threads)
        for number, (node, l3, threads) in enumerate(groups)
    ]
    return topology


@pytest.fixture
def host(tmp_path: Path) -> Topology:
    """Two nodes with an L3 each, second threads numbered last."""
    return machine(tmp_path / "host", (0, 0, [0, 4]), (0, 0, [1, 5]), (1, 2, [2, 6]), (1, 2, [3, 7]))


GUEST = ((0, 0, [0, 1]), (0, 0, [2, 3]), (1, 4, [4, 5]), (1, 4, [6, 7]))
PINS = {0: 0, 1: 4, 2: 1, 3: 5, 4: 2, 5: 6, 6: 3, 7: 7}
CELLS = {0: 0, 1: 1}


def compared(host: Topology, guest: Topology, cells: dict[int, int] = CELLS, pins: dict[int, int] = PINS) -> Cpus:
    found = compare_cpus(host, guest, cells, pins)
    assert found is not None
    return found


def test_a_true_guest_is_equal_whatever_its_numbers(host: Topology, tmp_path: Path) -> None:
    found = compared(host, machine(tmp_path / "guest", *GUEST))
    assert not found["differences"] and not found["errors"]
    assert found["siblings"] == found["l3"] == {"equal": 28, "pairs": 28}


def test_threads_that_are_no_siblings_on_the_host_are_flagged(host: Topology, tmp_path: Path) -> None:
    """vCPUs 1 and 2 have changed their pins: two cores of the guest are each half of two of the host."""
    found = compared(host, machine(tmp_path / "guest", *GUEST), pins={**PINS, 1: 1, 2: 4})
    assert found["differences"] == [
        {"relation": "siblings", "vcpus": "0-3", "guest": ["0-1", "2-3"], "host": ["0,2", "1,3"]}
    ]
    assert found["siblings"] == {"equal": 24, "pairs": 28}
    assert found["l3"] == {"equal": 28, "pairs": 28}


def test_one_l3_in_the_guest_for_two_of_the_host_is_flagged(host: Topology, tmp_path: Path) -> None:
    guest = machine(tmp_path / "guest", *((node, 0, threads) for node, _l3, threads in GUEST))
    found = compared(host, guest)
    assert found["differences"] == [{"relation": "l3", "vcpus": "0-7", "guest": ["0-7"], "host": ["0-3", "4-7"]}]
    assert found["l3"] == {"equal": 12, "pairs": 28}


def test_an_l3_that_one_side_does_not_know_is_not_compared(host: Topology, tmp_path: Path) -> None:
    guest = machine(tmp_path / "guest", *GUEST)
    guest["cores"][0]["l3"] = None
    found = compared(host, guest)
    assert (found["l3"], found["differences"]) == (None, [])


def test_swapped_sockets_are_flagged_though_all_groups_are_right(host: Topology, tmp_path: Path) -> None:
    found = compared(host, machine(tmp_path / "guest", *GUEST), cells={0: 1, 1: 0})
    assert found["differences"] == [
        {"relation": "node", "vcpus": "0-3", "guest": ["0"], "host": ["0"]},
        {"relation": "node", "vcpus": "4-7", "guest": ["1"], "host": ["1"]},
    ]


def test_a_map_that_does_not_fit_is_flagged(host: Topology, tmp_path: Path) -> None:
    pins = {**PINS, 9: 0, 7: 99}
    del pins[6]
    assert compared(host, machine(tmp_path / "guest", *GUEST), pins=pins)["errors"] == [
        "vCPU 9 is no CPU of the guest's kernel",
        "vCPU 7 runs on CPU 99, which the host does not have",
        "the guest's CPU 6 runs on no known CPU",
        "vCPUs 0 and 9 both run on CPU 0",
    ]


def test_cpus_do_not_decide_about_devices_but_are_told(host: Topology, tmp_path: Path) -> None:
    guest = machine(tmp_path / "guest", *((node, 0, threads) for node, _l3, threads in GUEST))
    pins: dict[int | str, int] = {str(vcpu): cpu for vcpu, cpu in PINS.items()}
    result = compare(host, guest, {}, {0: 0, 1: 1}, pins)
    assert result["cpus_equal"] is False
    assert result["fidelity"]["l3"] == {"equal": 12, "pairs": 28}
    assert describe(result).endswith(
        "CPUs differ, 1 times: l3 of vCPUs 0-7 is 0-7 in the guest, 0-3 | 4-7 on the host."
    )
    assert compare(host, guest, {}, {0: 0, 1: 1})["cpus_equal"] is None
