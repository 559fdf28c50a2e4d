# Copyright: the topovirt.kvm authors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from ansible_collections.topovirt.kvm.plugins.module_utils._errors import TopovirtError
from ansible_collections.topovirt.kvm.plugins.module_utils._topology.model import Topology
from ansible_collections.topovirt.kvm.plugins.plugin_utils._placement.fabric import (
    Fabric,
    gpu_sets,
    load_generations,
    read_fabric,
)
from ansible_collections.topovirt.kvm.plugins.plugin_utils._placement.request import Request, parse_requests
from ansible_collections.topovirt.kvm.tests.unit.plugins.plugin_utils.hosts import host, request

EVERY_MODEL = ("full_passthrough", "shared_nvswitch", "none")


def with_module_ids(ids: list[int | None]) -> Topology:
    topology = host()
    gpus = [function for function in topology["pci"] if function["role"] == "gpu"]
    for gpu, module in zip(gpus, ids, strict=True):
        gpu["module_id"] = module
    return topology


def asked(gpus: int, **more: Any) -> Request:
    (parsed,) = parse_requests([request("a", gpus, **more)])
    return parsed


def alone(fabric: Fabric) -> list[list[tuple[str, ...]]]:
    return [[(gpu,)] for gpu in fabric.gpus]


def test_tables_have_the_published_shape() -> None:
    by_name = {generation.name: generation for generation in load_generations().values()}
    counts = {name: len(generation.partitions) for name, generation in by_name.items()}
    # 16-GPU boards: Fabric Manager User Guide, default GPU partitions; 8-GPU boards: a binary tree of 15 blocks.
    assert counts == {"HGX-2": 33, "A100": 35, "Hopper": 15, "Blackwell": 15}
    for generation in by_name.values():
        modules = {module for partition in generation.partitions for module in partition.modules}
        assert modules == set(range(1, len(modules) + 1))
        singles = [partition.modules[0] for partition in generation.partitions if len(partition.modules) == 1]
        assert sorted(singles) == sorted(modules)
        first = 1 if generation.name == "Blackwell" else 0
        numbers = [partition.id for partition in generation.partitions]
        assert numbers == list(range(first, first + len(numbers)))
        assert generation.source


def test_hopper_pairs_are_not_neighbours() -> None:
    hopper = load_generations()["22a3"]
    pairs = [partition.modules for partition in hopper.partitions if len(partition.modules) == 2]
    assert pairs == [(1, 3), (2, 4), (5, 7), (6, 8)]


@pytest.mark.parametrize(
    "change,expected",
    [
        ("schema: 2", "schema"),
        ("partitions: {0: [2, 1]}", "ascending"),
        ("partitions: {0: [1], 1: [1]}", "not twice"),
        ("partitions: {a: [1]}", "partition 'a'"),
        ("source: ''", "source"),
        ("colour: red", "keys"),
    ],
)
def test_a_broken_table_is_refused(tmp_path: Path, change: str, expected: str) -> None:
    entry = {
        "name": "X",
        "found_by": "'0000'",
        "source": "s",
        "full_passthrough": "{8: 4}",
        "partitions": "{0: [1]}",
    }
    key, value = change.split(": ", 1)
    schema = value if key == "schema" else "1"
    if key != "schema":
        entry[key] = value
    lines = ", ".join(f"{name}: {text}" for name, text in entry.items())
    table = tmp_path / "table.yml"
    table.write_text(f"schema: {schema}\ngenerations:\n  - {{{lines}}}\n", encoding="utf-8")
    with pytest.raises(TopovirtError, match=expected):
        load_generations(table)


def test_full_passthrough_on_hopper_offers_eight_and_one() -> None:
    fabric = read_fabric(host(), "full_passthrough")
    assert fabric.sizes == (8, 1)
    free = frozenset(fabric.gpus)
    assert [len(item.switches) for item in gpu_sets(fabric, asked(8), free, alone(fabric))] == [4]
    assert all(not item.switches for item in gpu_sets(fabric, asked(1), free, alone(fabric)))


@pytest.mark.parametrize("count", [2, 3, 4, 5])
def test_full_passthrough_on_hopper_refuses_parts_of_the_board(count: int) -> None:
    reason = read_fabric(host(), "full_passthrough").why_not(asked(count))
    assert "8 or 1" in reason
    assert "shared_nvswitch" in reason


def test_full_passthrough_needs_all_four_switches() -> None:
    topology = host()
    lost = next(function for function in topology["pci"] if function["role"] == "nvswitch")
    topology["pci"].remove(lost)
    with pytest.raises(TopovirtError, match=r"need 4 NVSwitches, this machine shows 3"):
        read_fabric(topology, "full_passthrough")


def test_shared_partitions_follow_module_ids_not_order() -> None:
    fabric = read_fabric(host(), "shared_nvswitch")
    by_id = {item.partition.id: item.gpus for item in fabric.partitions if item.partition is not None}
    buses = {number: [gpu[5:7] for gpu in gpus] for number, gpus in by_id.items()}
    # Wiring of the machine by bus: 2 4 1 3 7 5 6 8.
    assert buses[1] == ["23", "24", "53", "54"]
    assert buses[2] == ["93", "94", "c3", "c4"]
    assert (buses[3], buses[4], buses[5], buses[6]) == (["53", "54"], ["23", "24"], ["93", "94"], ["c3", "c4"])
    assert buses[7] == ["53"]


def test_partition_one_may_lie_on_node_one() -> None:
    # Published H100 wiring: the four GPUs of node 0 are modules 5 to 8, so they are partition 2.
    fabric = read_fabric(with_module_ids([5, 7, 6, 8, 1, 3, 2, 4]), "shared_nvswitch")
    fours = {item.partition.id: item.gpus for item in fabric.partitions if item.partition and len(item.gpus) == 4}
    assert [gpu[5:7] for gpu in fours[2]] == ["23", "24", "53", "54"]


def test_missing_module_ids_are_refused_with_the_way_to_give_them() -> None:
    with pytest.raises(TopovirtError, match=r"0000:24:00\.0, 0000:c4:00\.0") as refusal:
        read_fabric(with_module_ids([2, None, 1, 3, 7, 5, 6, None]), "shared_nvswitch")
    assert "module-ids.json" in refusal.value.hint


def test_missing_module_ids_do_not_matter_elsewhere() -> None:
    topology = with_module_ids([None] * 8)
    assert read_fabric(topology, "full_passthrough").sizes == (8, 1)
    assert read_fabric(topology, "none").sizes == (8, 7, 6, 5, 4, 3, 2, 1)


@pytest.mark.parametrize(
    "ids,expected", [([2, 2, 1, 3, 7, 5, 6, 8], "used twice: 2"), ([9, 4, 1, 3, 7, 5, 6, 8], "not on")]
)
def test_wrong_module_ids_are_refused(ids: list[int | None], expected: str) -> None:
    with pytest.raises(TopovirtError, match=expected):
        read_fabric(with_module_ids(ids), "shared_nvswitch")


def test_a_dead_gpu_takes_its_partitions_with_it() -> None:
    topology = host()
    topology["pci"] = [function for function in topology["pci"] if function["bdf"] != "0000:23:00.0"]  # module 2
    fabric = read_fabric(topology, "shared_nvswitch")
    left = {item.partition.id for item in fabric.partitions if item.partition is not None}
    assert left == {2, 3, 5, 6, 7, 9, 10, 11, 12, 13, 14}
    assert fabric.warnings
    # The rest of the board in one VM is not the whole board.
    assert read_fabric(topology, "full_passthrough").sizes == (1,)


def test_unknown_switches_and_no_switches_are_refused() -> None:
    topology = host()
    for function in topology["pci"]:
        if function["role"] == "nvswitch":
            function["device"] = "ffff"
    for model in ("full_passthrough", "shared_nvswitch"):
        with pytest.raises(TopovirtError, match="ffff, expected one of"):
            read_fabric(topology, model)
    topology["pci"] = [function for function in topology["pci"] if function["role"] != "nvswitch"]
    for model in ("full_passthrough", "shared_nvswitch"):
        with pytest.raises(TopovirtError, match="neither NVSwitches"):
            read_fabric(topology, model)
    assert read_fabric(topology, "none").gpus


def test_one_switch_with_unreadable_ids_is_survived() -> None:
    topology = host()
    next(function for function in topology["pci"] if function["role"] == "nvswitch")["device"] = "0000"
    assert read_fabric(topology, "shared_nvswitch").sizes == (8, 4, 2, 1)


def test_unknown_model() -> None:
    with pytest.raises(TopovirtError, match="expected one of full_passthrough, shared_nvswitch, none"):
        read_fabric(host(), "vgpu")


def test_like_gpus_give_one_choice() -> None:
    fabric = read_fabric(host(), "none")
    groups = [[(gpu,) for gpu in fabric.gpus if gpu[5] == bus] for bus in "259c"]  # two GPUs each
    sets = [item.gpus for item in gpu_sets(fabric, asked(2), frozenset(fabric.gpus), groups)]
    # Either both of one group or one each of two groups: 4 + 6, not 28.
    assert len(sets) == 10
    assert sets[0] == ("0000:23:00.0", "0000:24:00.0")
