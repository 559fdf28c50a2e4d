# Copyright: the topovirt.kvm authors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""No placement of any batch is better than ours: every multiset of sizes on every machine, beside the oracle.

``make bench`` does the same for more hosts and without the limit on large batches.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial

import pytest

from tests.oracle import hosts, wrong
from tests.oracle.hosts import Host
from tests.oracle.optimum import Count, Oracle
from tests.oracle.prove import judged
from tests.oracle.subject import ours
from tests.oracle.truth import Wanted
from tests.oracle.verdict import fault
from tests.twin.description import names

SEEDS = 48  # each machine with each fabric model twice

# Any GPUs of sixteen make many choices; batches above this size are left to ``make bench``.
MOST_OF_SIXTEEN = 8

# Hosts on which a wrong solver shows quickly.
CAUGHT_ON = {
    "greedy": lambda: hosts.empty("hgx-h200", "shared_nvswitch"),
    "batch placed one by one": lambda: hosts.part_filled(32),
    "path classes exchanged": lambda: hosts.empty("hgx-h200", "none"),
    "dealing without a limit for each GPU": lambda: hosts.part_filled(13),
    "nodes ignored": lambda: hosts.part_filled(10),
    "capacity ignored": lambda: hosts.part_filled(5),
    "IOMMU groups forgotten": lambda: hosts.empty("dgx-2", "full_passthrough"),
    "cores and pages of VMs forgotten": lambda: hosts.part_filled(7),
}


def a_drive_tied_to_a_nic() -> Host:
    """NIC 25 and drive 27, both next to GPU 23, share an IOMMU group."""
    host = hosts.empty("hgx-h200", "none")
    functions = {function["bdf"]: function for function in host.topology["pci"]}
    functions["0000:27:00.0"]["iommu_group"] = functions["0000:25:00.0"]["iommu_group"]
    return host


ANY_GPUS = partial(hosts.empty, "hgx-h200", "none")
PARTITIONS = partial(hosts.empty, "hgx-h200", "shared_nvswitch")
SIXTEEN = partial(hosts.empty, "dgx-2", "none", False)
SMALL_CASES: dict[str, tuple[Callable[[], Host], list[Wanted]]] = {
    "partitions in order of addresses": (PARTITIONS, [Wanted(2, 2, 0)] * 2),
    "unlike requests as given": (ANY_GPUS, [Wanted(1, 1, 0), Wanted(1, 0, 0)]),
    "a drive tied to a NIC": (a_drive_tied_to_a_nic, [Wanted(1, 1, 1)]),
    "many choices": (SIXTEEN, [Wanted(8, 5, 0), Wanted(4, 2, 0), Wanted(2, 1, 0), Wanted(2, 1, 0)]),
}


@pytest.mark.parametrize("name", SMALL_CASES)
def test_small_cases(name: str) -> None:
    make, batch = SMALL_CASES[name]
    host = make()
    truth = host.truth()
    assert fault(truth, batch, ours(host)(batch), Oracle(truth).best(batch)) is None


def check(host: Host, count: Count) -> None:
    large = len(host.truth().gpus) == hosts.MOST_GPUS and host.model == "none"
    found = judged(host, ours(host), count, MOST_OF_SIXTEEN if large else hosts.MOST_GPUS)
    assert [(host.name, batch, wrong_at.text) for batch, wrong_at in found] == []


@pytest.mark.parametrize("machine", names())
def test_every_batch_on_the_empty_machine(machine: str) -> None:
    count = Count()
    for kind in hosts.kinds():
        if kind[0] == machine:
            check(hosts.empty(*kind), count)
    assert count.refused < count.batches
    print(f"{machine}: {count}")


@pytest.mark.parametrize("seed", range(SEEDS))
def test_every_batch_on_a_part_filled_host(seed: int) -> None:
    count = Count()
    host = hosts.part_filled(seed)
    check(host, count)
    print(f"{host.name}: {count}")


def test_the_part_filled_hosts_are_of_all_kinds() -> None:
    made = [hosts.part_filled(seed) for seed in range(SEEDS)]
    truths = [host.truth() for host in made]
    assert sum(len(truth.free) >= 2 for truth in truths) > SEEDS * 2 // 3
    scarce = [
        truth
        for truth in truths
        if any(room < sum(truth.node_of[gpu] == node for gpu in truth.free) for node, room in truth.room.items())
    ]
    assert SEEDS // 8 < len(scarce) < SEEDS * 3 // 4
    assert {host.nic_rule for host in made} == set(hosts.NIC_RULES)
    assert {host.nvme_rule for host in made} == set(hosts.NVME_RULES)


@pytest.mark.parametrize("name", wrong.SOLVERS)
def test_a_wrong_solver_is_caught(name: str) -> None:
    host = CAUGHT_ON[name]()
    level = wrong.SOLVERS[name].level
    assert any(found.level == level for _batch, found in judged(host, wrong.SOLVERS[name].solver(host), Count()))
    assert all(found.level != level for _batch, found in judged(host, ours(host), Count()))
