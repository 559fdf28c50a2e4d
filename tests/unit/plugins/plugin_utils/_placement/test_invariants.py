# Copyright: the topovirt.kvm authors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""What holds for every plan, whatever is asked for: nothing is given twice, nothing that is not to be given."""

from __future__ import annotations

from collections import Counter
from itertools import chain
from typing import Any

from ansible_collections.topovirt.kvm.plugins.module_utils._errors import TopovirtError
from ansible_collections.topovirt.kvm.plugins.plugin_utils._placement.plan import make_plan
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from tests.oracle import hosts
from tests.oracle.hosts import Host
from tests.oracle.truth import GIB_PAGE, cpus_of, free_cores, free_pages, kept_cores

SEEDS = 96

REQUEST = st.fixed_dictionaries(
    {
        "gpus": st.sampled_from((1, 1, 1, 2, 2, 4)),
        "nics": st.one_of(st.just("auto"), st.integers(0, 2)),
        "nvme": st.integers(0, 1),
        "vcpus": st.one_of(st.just("auto"), st.sampled_from((2, 4, 8, 64))),
        "memory": st.one_of(st.just("auto"), st.sampled_from(("1GiB", "7GiB", "64GiB"))),
    }
)


def check_devices(host: Host, vms: list[dict[str, Any]]) -> None:
    functions = {function["bdf"]: function for function in host.topology["pci"] if function["kind"] == "endpoint"}
    given_out = [[device["bdf"] for device in vm["placement"]["devices"]] for vm in vms]
    owned = [bdf for domain in host.domains for bdf in domain["hostdevs"]]
    assert max(Counter([*chain(*given_out), *owned]).values(), default=1) == 1
    truth = host.truth()
    for devices in given_out:
        for bdf in devices:
            function = functions[bdf]
            assert truth.group_of[bdf] <= set(devices), f"the group of {bdf} is torn"
            assert not function["in_use"] and function["driver"] in ("vfio-pci", None), bdf
        gpus = frozenset(bdf for bdf in devices if functions[bdf]["role"] == "gpu")
        assert truth.allowed(gpus)


def check_cpus(host: Host, vms: list[dict[str, Any]]) -> None:
    topology = host.topology
    kept = {
        cpu
        for node in topology["numa_nodes"]
        for core in kept_cores(topology, node["id"], host.model)
        for cpu in core["threads"]
    }
    pins = [[cpu for _vcpu, cpu in vm["layout"]["vcpu_pins"]] for vm in vms]
    free = {
        node["id"]: {
            cpu for core in free_cores(topology, host.domains, node["id"], host.model) for cpu in core["threads"]
        }
        for node in topology["numa_nodes"]
    }
    assert max(Counter(chain(*pins)).values(), default=1) == 1
    for vm, cpus in zip(vms, pins, strict=True):
        placement = vm["placement"]
        by_node = {int(node): cpus_of(text) for node, text in placement["cpus_by_node"].items()}
        assert set(cpus) == set().union(*by_node.values())
        assert all(cpus <= free[node] for node, cpus in by_node.items())
        assert cpus_of(placement["emulator_cpus"]) <= kept
        assert kept.isdisjoint(cpus)


def check_memory(host: Host, vms: list[dict[str, Any]]) -> None:
    used: Counter[int] = Counter()
    for vm in vms:
        placement = vm["placement"]
        gpu_nodes = {device["numa_node"] for device in placement["devices"] if device["role"] == "gpu"}
        assert set(map(int, placement["memory_by_node"])) == gpu_nodes == set(placement["nodes"])
        for node, size in placement["memory_by_node"].items():
            assert size > 0 and size % GIB_PAGE == 0
            used[int(node)] += size // GIB_PAGE
        cells = {cell["host_node"]: cell["memory_bytes"] for cell in vm["layout"]["cells"]}
        assert cells == {int(node): size for node, size in placement["memory_by_node"].items()}
    for node, pages in used.items():
        assert pages <= free_pages(host.topology, host.domains, node)


def check_count(requests: list[dict[str, Any]], vms: list[dict[str, Any]]) -> None:
    """Each VM has what it asked for; devices that come along with a group may be more."""
    for asked, vm in zip(requests, vms, strict=True):
        roles = Counter(device["role"] for device in vm["placement"]["devices"])
        assert roles["gpu"] == asked["gpus"]
        assert asked["nics"] == "auto" or roles["nic"] >= asked["nics"]
        assert roles["nvme"] >= asked["nvme"]
        if asked["vcpus"] != "auto":
            assert len(vm["layout"]["vcpu_pins"]) == asked["vcpus"]


def test_what_holds_for_every_plan() -> None:
    made: Counter[bool] = Counter()

    @settings(max_examples=250, derandomize=True, database=None, deadline=None, suppress_health_check=list(HealthCheck))
    @given(st.integers(0, SEEDS - 1), st.lists(REQUEST, min_size=1, max_size=3))
    def hold(seed: int, requests: list[dict[str, Any]]) -> None:
        host = hosts.part_filled(seed)
        named = [{**asked, "name": f"vm{number}", "boot": {"kernel": "/k"}} for number, asked in enumerate(requests)]
        try:
            vms = make_plan(named, host.topology, host.domains, host.model, "host")["vms"]
        except TopovirtError as error:
            assert str(error).strip()
            made[False] += 1
            return
        made[True] += 1
        check_count(named, vms)
        check_devices(host, vms)
        check_cpus(host, vms)
        check_memory(host, vms)

    hold()
    assert made[True] >= 50 and made[False] >= 20
