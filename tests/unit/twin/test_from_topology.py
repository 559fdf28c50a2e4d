# Copyright: the topovirt.kvm authors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""A machine that is described from its own capture reads like the machine."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import yaml
from ansible_collections.topovirt.kvm.plugins.module_utils._topology.model import Topology
from ansible_collections.topovirt.kvm.plugins.module_utils._topology.reader import read_topology

from tests.twin import description, mutations, qemu, recorded
from tests.twin.from_topology import describe
from tests.unit.plugins.module_utils._topology.machine import two_level_machine


def read(machine: description.Machine, tree: Path, scale: str = "real") -> Topology:
    recorded.record(machine, tree, scale)
    return read_topology(tree)


def again(topology: Topology, tree: Path) -> Topology:
    data, _left_out = describe(topology, "again")
    return read(description.parse(yaml.safe_load(yaml.safe_dump(data))), tree)


def comparable(topology: Topology) -> dict[str, Any]:
    """Without the order in which the kernel names network cards."""
    return {
        **topology,
        "pci": [{key: value for key, value in item.items() if key != "names"} for item in topology["pci"]],
    }


@pytest.mark.parametrize("machine", description.names())
def test_every_machine_reads_like_itself(machine: str, tmp_path: Path) -> None:
    topology = read(description.load(machine), tmp_path / "one")
    assert comparable(again(topology, tmp_path / "two")) == comparable(topology)


def test_what_is_left_out_is_told(tmp_path: Path) -> None:
    recorded.record(description.load("hgx-h200"), tmp_path / "tree", "real")
    mutations.uncore_functions(tmp_path / "tree")
    mutations.a_virtual_function(tmp_path / "tree")
    data, left_out = describe(read_topology(tmp_path / "tree"), "noisy")
    assert "left out: 1 bridges to PCI and virtual functions" in left_out
    assert (
        data["host_bridges"]
        == describe(read(description.load("hgx-h200"), tmp_path / "two"), "noisy")[0]["host_bridges"]
    )


def test_a_machine_without_management_card_gets_one_and_can_boot(tmp_path: Path) -> None:
    data, _left_out = describe(read_topology(two_level_machine(tmp_path).root), "handmade")
    machine = description.parse(data)
    cards = [device for device in machine.devices() if isinstance(device, description.Igb)]
    assert [card.network for card in cards] == ["management"]
    assert machine.scales["boot"].cpus <= 16
    assert qemu.arguments(machine, Path("/firmware"), 2222)


def test_what_no_description_can_say_is_refused_with_all_reasons(tmp_path: Path) -> None:
    recorded.record(description.load("hgx-h200"), tmp_path / "tree")
    mutations.node_ids_have_gaps(tmp_path / "tree")
    mutations.a_pci_domain_wider_than_16_bits(tmp_path / "tree")
    with pytest.raises(description.DescriptionError, match=r"nodes \[2, 5\].*PCI domains"):
        describe(read_topology(tmp_path / "tree"), "odd")
