# Copyright: the topovirt.kvm authors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
from __future__ import annotations

from itertools import product
from random import Random

import pytest
from ansible_collections.topovirt.kvm.plugins.module_utils._topology.model import Topology
from ansible_collections.topovirt.kvm.plugins.plugin_utils._placement.inventory import take_stock
from ansible_collections.topovirt.kvm.plugins.plugin_utils._placement.policy import Policy
from ansible_collections.topovirt.kvm.plugins.plugin_utils._placement.request import Request, parse_requests
from ansible_collections.topovirt.kvm.plugins.plugin_utils._placement.sizing import (
    Size,
    max_apic_id,
    size_of,
    split,
    spread,
)
from ansible_collections.topovirt.kvm.tests.unit.plugins.plugin_utils.hosts import host, request

NODE0 = ["0000:23:00.0", "0000:24:00.0", "0000:53:00.0", "0000:54:00.0"]
NODE1 = ["0000:93:00.0", "0000:94:00.0", "0000:c3:00.0", "0000:c4:00.0"]


def one(**more: object) -> Request:
    return parse_requests([request("a", 1, **more)])[0]


@pytest.mark.parametrize("seed", range(100))
def test_split_gives_all_away_in_proportion(seed: int) -> None:
    random = Random(seed)
    amount = random.randint(1, 500)
    weights = {node: random.randint(1, 8) for node in random.sample(range(8), random.randint(1, 8))}
    shares = split(amount, weights)
    assert set(shares) == set(weights)
    assert min(shares.values()) >= 1
    if amount >= len(weights):
        assert sum(shares.values()) == amount
    whole = sum(weights.values())
    if all(amount * weight >= whole for weight in weights.values()):
        assert all(abs(shares[node] - amount * weights[node] / whole) < 1 for node in weights)


@pytest.mark.parametrize("sockets", [1, 2, 3, 8])
@pytest.mark.parametrize("cores", [1, 11, 48, 64, 65, 128])
@pytest.mark.parametrize("threads", [1, 2])
def test_apic_ids_are_those_of_packed_bit_fields(sockets: int, cores: int, threads: int) -> None:
    def width(count: int) -> int:
        bits = 0
        while 2**bits < count:
            bits += 1
        return bits

    ids = [
        socket * 2 ** (width(cores) + width(threads)) + core * 2 ** width(threads) + thread
        for socket, core, thread in product(range(sockets), range(cores), range(threads))
    ]
    assert max_apic_id(sockets, cores, threads) == max(ids)


def test_auto_is_the_gpus_share_of_their_nodes() -> None:
    inventory = take_stock(host(), [], fabric_model="shared_nvswitch")
    # 48 cores, 4 for a host with Fabric Manager: 44 for 4 GPUs. 1024 GiB less 5 %: 972 pages for 4 GPUs.
    assert size_of(one(), Policy(), inventory, NODE0[:1]).cores == {0: 11}
    assert size_of(one(), Policy(), inventory, NODE0[:1]).pages == {0: 243}
    both = size_of(one(), Policy(), inventory, [*NODE0, *NODE1])
    assert (both.cores, both.pages) == ({0: 44, 1: 44}, {0: 972, 1: 972})


def test_every_node_gives_at_least_one_core_and_page() -> None:
    inventory = take_stock(host("boot"), [])
    size = size_of(one(), Policy(), inventory, NODE0[:1])
    assert (size.cores, size.pages) == ({0: 1}, {0: 1})


def test_explicit_figures_are_split_over_the_nodes() -> None:
    inventory = take_stock(host(), [])
    size = size_of(one(vcpus=12, memory="100GiB"), Policy(), inventory, [*NODE0[:2], NODE1[0]])
    assert (size.cores, size.pages) == ({0: 4, 1: 2}, {0: 67, 1: 33})
    assert not size.problems


def test_policy_stands_in_for_auto() -> None:
    inventory = take_stock(host(), [])
    policy = Policy(vcpus_per_gpu=10, memory_per_gpu_bytes=100 << 30)
    assert size_of(one(), policy, inventory, NODE0[:1]).cores == {0: 5}
    assert size_of(one(vcpus=4, memory="7GiB"), policy, inventory, NODE0[:1]).cores == {0: 2}
    assert size_of(one(vcpus=4, memory="7GiB"), policy, inventory, NODE0[:1]).pages == {0: 7}


def test_half_cores_are_refused() -> None:
    problems = size_of(one(vcpus=3), Policy(), take_stock(host(), []), NODE0[:1]).problems
    assert any("3 is not a multiple of 2" in problem for problem in problems)


def test_fewer_cores_than_nodes_are_refused() -> None:
    problems = size_of(one(vcpus=2), Policy(), take_stock(host(), []), [NODE0[0], NODE1[0]]).problems
    assert any("less than one core" in problem for problem in problems)


def test_memory_that_fills_no_whole_pages_is_a_problem_and_one_of_a_policy_is_rounded_up() -> None:
    inventory = take_stock(host(), [])
    (problem,) = size_of(one(memory="1500MiB"), Policy(), inventory, NODE0[:1]).problems
    assert "1500 MiB is not a multiple of the 1024 MiB huge pages; 1024 or 2048 MiB is" in problem
    size = size_of(one(), Policy(memory_per_gpu_bytes=1500 << 20), inventory, NODE0[:1])
    assert size.pages == {0: 2}
    assert "2048 MiB instead of 1500 MiB" in size.warnings[0]


def wide(cores_per_node: int) -> Topology:
    topology = host()
    topology["cores"] = [
        {"package": node, "die": 0, "core": core, "node": node, "l3": node, "threads": [2 * number, 2 * number + 1]}
        for node in (0, 1)
        for core in range(cores_per_node)
        for number in [node * cores_per_node + core]
    ]
    return topology


@pytest.mark.parametrize("libvirt,vendor", [("10.6.0", "GenuineIntel"), ("11.3.0", "AuthenticAMD")])
def test_auto_stays_within_xapic_where_more_may_cost_something(libvirt: str, vendor: str) -> None:
    topology = wide(96)
    topology["software"]["libvirt"] = libvirt
    topology["host"]["cpu_vendor"] = vendor
    size = size_of(one(), Policy(), take_stock(topology, []), [*NODE0, *NODE1])
    # Two sockets of 64 cores with two threads would reach id 255, the broadcast address.
    assert size.cores == {0: 63, 1: 63}
    assert max_apic_id(2, 63, 2) <= 254 < max_apic_id(2, 64, 2)
    assert "APIC" in size.warnings[0]


def test_auto_takes_all_cores_where_interrupts_can_be_remapped_alone() -> None:
    topology = wide(96)
    topology["software"]["libvirt"], topology["software"]["qemu"] = "10.7.0", "9.1.0"
    size = size_of(one(), Policy(), take_stock(topology, []), [*NODE0, *NODE1])
    assert (size.cores, size.warnings) == ({0: 94, 1: 94}, ())


@pytest.mark.parametrize(
    "libvirt,qemu,refused",
    [("3.3.0", "2.12.0", True), ("9.0.0", "7.2.22", True), ("9.0.0", "8.1.0", False), (None, None, False)],
)
def test_explicit_vcpus_beyond_apic_ids_are_refused(libvirt: str | None, qemu: str | None, refused: bool) -> None:
    topology = wide(96)
    topology["software"]["libvirt"], topology["software"]["qemu"] = libvirt, qemu
    problems = size_of(one(vcpus=300), Policy(), take_stock(topology, []), [*NODE0, *NODE1]).problems
    assert any("APIC" in problem for problem in problems) == refused


NEAREST = {0: (0, 1, 2), 1: (1, 0, 2), 2: (2, 1, 0)}


def test_what_fits_at_home_stays_there() -> None:
    size = Size({0: 4}, {0: 10})
    assert spread(size, {0: 4, 1: 8}, {0: 10, 1: 10}, NEAREST).cores == {0: 4}


def test_the_rest_comes_from_the_nearest_node_with_something_of_both() -> None:
    found = spread(Size({0: 8}, {0: 10}), {0: 6, 1: 8, 2: 8}, {0: 10, 1: 0, 2: 5}, NEAREST)
    # Node 1 has no page, so node 2 gives the cores, and one page for its guest node.
    assert found.cores == {0: 6, 2: 2}
    assert found.pages == {0: 9, 2: 1}
    assert found.nodes == frozenset({0, 2})
    assert found.warnings


def test_nodes_of_the_gpus_help_each_other_first() -> None:
    found = spread(Size({0: 4, 1: 4}, {0: 2, 1: 2}), {0: 2, 1: 8, 2: 8}, {0: 2, 1: 2, 2: 2}, NEAREST)
    assert (found.cores, found.pages) == ({0: 2, 1: 6}, {0: 2, 1: 2})


@pytest.mark.parametrize(
    "cores,pages",
    [
        ({0: 1, 1: 2}, {0: 4, 1: 4}),  # too few cores in all
        ({0: 0, 1: 9}, {0: 4, 1: 4}),  # none at home: the guest would not have the GPU's node
        ({0: 4, 1: 4}, {0: 1, 1: 1}),
    ],
)
def test_a_size_that_the_host_does_not_have_stays_too_large(cores: dict[int, int], pages: dict[int, int]) -> None:
    found = spread(Size({0: 4}, {0: 4}), cores, pages, NEAREST)
    assert any(count > cores.get(node, 0) for node, count in found.cores.items()) or any(
        count > pages.get(node, 0) for node, count in found.pages.items()
    )
