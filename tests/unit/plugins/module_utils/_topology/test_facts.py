# Copyright: the topovirt.kvm authors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

from __future__ import annotations

import copy
import json
from pathlib import Path
from typing import Any

import pytest
from ansible_collections.topovirt.kvm.plugins.module_utils._errors import TopovirtError
from ansible_collections.topovirt.kvm.plugins.module_utils._topology.cpulist import format_cpulist, parse_cpulist
from ansible_collections.topovirt.kvm.plugins.module_utils._topology.face import read_for, runner
from ansible_collections.topovirt.kvm.plugins.module_utils._topology.facts import digest, read_converted_id, summarize
from ansible_collections.topovirt.kvm.plugins.module_utils._topology.model import Topology
from ansible_collections.topovirt.kvm.plugins.module_utils._topology.reader import read_topology
from ansible_collections.topovirt.kvm.plugins.module_utils._topology.schema import as_topology
from ansible_collections.topovirt.kvm.tests.unit.plugins.module_utils._topology.machine import (
    ROOT_PORT,
    Machine,
    two_level_machine,
)


@pytest.fixture
def topology(tmp_path: Path) -> Topology:
    return read_topology(two_level_machine(tmp_path).root)


def test_summary(topology: Topology) -> None:
    for function in topology["pci"]:
        if function["bdf"] in ("0000:26:00.0", "0000:91:00.0"):
            function["in_use"] = ["somebody does"]
    facts = summarize(topology, "a1b2")
    assert facts == {
        "schema": 1,
        "digest": digest(topology),
        "converted": "a1b2",
        "counts": {"gpu": 3, "nvswitch": 2, "nic": 2, "nvme": 1},
        "health": {"module_ids": False, "iommu": "dmar", "iommu_active": True, "in_use": 2},
        "grouped_by": "switch",
        "groups": [
            {"at": "0000:23:00.0", "node": 0, "gpu": "1/1", "nic": "0/1"},
            {"at": "0000:27:00.0", "node": 0, "gpu": "1/1"},
            {"at": "0000:21:00.0", "node": 0, "nvme": "1/1"},
            {"at": "0000:20:01.0", "node": 0, "nvswitch": "2/2"},
            {"at": "0000:50:00.0", "node": 0, "nic": "1/1"},
            {"at": "0000:90:00.0", "node": 1, "gpu": "0/1"},
        ],
    }
    for number, function in enumerate(f for f in topology["pci"] if f["role"] == "gpu"):
        function["module_id"] = number
    assert summarize(topology, None)["health"]["module_ids"] is True


def test_a_summary_stays_small_on_a_machine_with_many_groups(tmp_path: Path) -> None:
    machine = Machine(tmp_path)
    for node in range(6):
        machine.node(node, f"{node}", "10 20 20 20 20 20")
    for bus in range(60):
        machine.port(f"0000:{bus:02x}:00.0", f"pci0000:{bus:02x}", ROOT_PORT)
        machine.pci(f"0000:{bus + 100:02x}:00.0", f"0000:{bus:02x}:00.0", "144d:a80a", "0x010802", bus % 7 - 1)
    topology = read_topology(tmp_path)
    topology["pci"][-1]["in_use"] = ["/ is on it"]
    facts = summarize(topology, "f" * 36)
    assert len(json.dumps(facts).encode()) <= 2048
    assert facts["grouped_by"] == "node"
    assert facts["groups"] == [
        {"node": 0, "nvme": "9/9"},
        {"node": 1, "nvme": "9/9"},
        {"node": 2, "nvme": "8/9"},
        {"node": 3, "nvme": "8/8"},
        {"node": 4, "nvme": "8/8"},
        {"node": 5, "nvme": "8/8"},
        {"node": None, "nvme": "9/9"},
    ]  # fmt: skip


@pytest.mark.parametrize(
    ("changes", "same"),
    [
        ({"boot_id": "other"}, True),
        ({"driver": "vfio-pci"}, True),
        ({"in_use": ["x"]}, True),
        ({"names": ["eth9"]}, True),
        ({"cmdline": "quiet"}, False),
        ({"numa_node": 1}, False),
        ({"module_id": 4}, False),
        ({"iommu_group": 99}, False),
    ],
)
def test_digest_changes_with_the_machine_and_not_with_its_use(
    topology: Topology, changes: dict[str, Any], same: bool
) -> None:
    other: Any = copy.deepcopy(topology)
    for key, value in changes.items():
        (other["host"] if key in other["host"] else other["pci"][9])[key] = value
    assert other != topology
    assert (digest(other) == digest(topology)) is same


@pytest.mark.parametrize(
    ("state", "expected"), [('{"id": "a1b2"}', "a1b2"), (None, None), ("[]", None), ("{", None), ("{}", None)]
)
def test_converted_id(tmp_path: Path, state: str | None, expected: str | None) -> None:
    if state is not None:
        Machine(tmp_path).write("var/lib/topovirt/host.json", state)
    assert read_converted_id(tmp_path) == expected


class FakeModule:
    """An AnsibleModule as far as the faces need one."""

    def __init__(self, root: str) -> None:
        self.params = {"root": root, "module_ids": None, "roles": {"8086:1592": "nic"}}
        self.commands: list[list[str]] = []

    def run_command(self, words: list[str], handle_exceptions: bool, environ_update: dict[str, str]) -> Any:
        assert not handle_exceptions
        assert environ_update["LC_ALL"] == "C"
        self.commands.append(words)
        return 127, "", ""


def test_no_command_runs_for_another_root_than_the_machines(tmp_path: Path) -> None:
    machine = Machine(tmp_path)
    machine.gpu("0000:21:00.0", "pci0000:20", driver="nvidia")
    machine.pci("0000:31:00.0", "pci0000:20", "8086:1592", "0x020000")
    module = FakeModule(str(tmp_path))
    assert [function["role"] for function in read_for(module)["pci"]] == ["gpu", "nic"]
    assert module.commands == []
    assert runner(module)(["ip", "link"]) == (127, "", "")
    assert module.commands == [["ip", "link"]]


@pytest.mark.parametrize(
    ("text", "numbers"), [("0-3,8", [0, 1, 2, 3, 8]), ("", []), ("5", [5]), ("7,1-2,2-3\n", [1, 2, 3, 7])]
)
def test_parse_cpulist(text: str, numbers: list[int]) -> None:
    assert parse_cpulist(text) == numbers


@pytest.mark.parametrize("text", ["a", "1-", "-1", "3-1", "1--2", "0-99999999", "1 2", "0x1"])
def test_wrong_cpulists_are_refused(text: str) -> None:
    with pytest.raises(TopovirtError, match="CPU list"):
        parse_cpulist(text)


@pytest.mark.parametrize(
    ("numbers", "text"), [([], ""), ([3], "3"), ([1, 0], "0-1"), ([0, 1, 2, 8, 8, 10], "0-2,8,10")]
)
def test_format_cpulist(numbers: list[int], text: str) -> None:
    assert format_cpulist(numbers) == text


def test_as_topology_accepts_what_the_reader_returns_after_json(topology: Topology) -> None:
    assert as_topology(json.loads(json.dumps(topology)), "topology") == topology


@pytest.mark.parametrize(
    ("value", "message"),
    [
        ([], "is a list"),
        ({}, "schema None"),
        ({"schema": 2}, "schema 2"),
        ({"schema": 1, "pci": 3}, "host is missing.*pci is not a list"),
        ({"schema": 1, "pci": [{"bdf": "0000:01:00.0"}]}, "0000:01:00.0 lacks capabilities, class, device"),
    ],
)
def test_what_is_no_topology_is_refused_with_all_reasons(value: Any, message: str) -> None:
    with pytest.raises(TopovirtError, match=message):
        as_topology(value, "guest_topology")
