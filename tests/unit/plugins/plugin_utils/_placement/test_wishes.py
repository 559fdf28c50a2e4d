# Copyright: the topovirt.kvm authors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""What a request may ask for beside numbers: certain devices and CPUs, SMT, NUMA, NVLink, distance, priority."""

from __future__ import annotations

from copy import deepcopy
from typing import Any

import pytest
from ansible_collections.topovirt.kvm.plugins.module_utils._errors import TopovirtError
from ansible_collections.topovirt.kvm.plugins.module_utils._topology.config_space import SILENT
from ansible_collections.topovirt.kvm.plugins.module_utils._topology.cpulist import parse_cpulist
from ansible_collections.topovirt.kvm.plugins.module_utils._topology.model import Topology
from ansible_collections.topovirt.kvm.plugins.plugin_utils._placement.plan import make_plan
from ansible_collections.topovirt.kvm.tests.unit.plugins.plugin_utils.hosts import GIB, host, request


def plan(
    requests: list[dict[str, Any]], model: str = "none", topology: Topology | None = None, **more: Any
) -> dict[str, Any]:
    return make_plan(requests, topology or host(), [], model, "host", **more)


def refused(requests: list[dict[str, Any]], model: str = "none", topology: Topology | None = None, **more: Any) -> str:
    with pytest.raises(TopovirtError) as error:
        plan(requests, model, topology, **more)
    return str(error.value)


def buses(vm: dict[str, Any], role: str) -> list[str]:
    return [device["bdf"][5:7] for device in vm["placement"]["devices"] if device["role"] == role]


def test_certain_gpus_and_the_nearest_nics_follow() -> None:
    certain: Any = ["0000:93:00.0", "0000:c4:00.0"]
    other, vm = plan([request("b", 2), request("a", certain)])["vms"]
    assert (buses(vm, "gpu"), buses(vm, "nic")) == (["93", "c4"], ["95", "c6"])
    # The two that the first left alone, so that the pairs of the other node stay whole.
    assert buses(other, "gpu") == ["94", "c3"]


def test_gpus_by_module_id_and_by_index() -> None:
    # Wiring of the machine by bus: 2 4 1 3 7 5 6 8.
    by_module: Any = [{"module_id": 7}]
    by_index: Any = [{"index": 7}]
    first, second = plan([request("a", by_module), request("b", by_index)])["vms"]
    assert (buses(first, "gpu"), buses(second, "gpu")) == (["93"], ["c4"])


def test_certain_gpus_have_to_form_a_partition() -> None:
    pair: Any = [{"module_id": 1}, {"module_id": 3}]
    (vm,) = plan([request("a", pair)], "shared_nvswitch")["vms"]
    assert vm["placement"]["partition"] == {"id": 3, "modules": [1, 3]}
    strangers: Any = [{"module_id": 1}, {"module_id": 2}]
    assert "cannot connect among themselves" in refused([request("a", strangers)], "shared_nvswitch")
    (vm,) = plan([request("a", strangers, nvlink="none")], "shared_nvswitch")["vms"]
    assert vm["placement"]["partition"] is None
    assert any("802" in warning for warning in vm["warnings"])


def test_certain_devices_that_are_not_there_or_something_else() -> None:
    no_gpu: Any = ["0000:99:00.0"]
    told = refused(
        [
            request("a", no_gpu),
            request("b", 1, nics=["0000:99:00.0", "0000:23:00.0"]),
            request("c", 1, nvme=["0000:25:00.0"]),
        ]
    )
    assert "VM a: asks for GPU bdf 0000:99:00.0, which this machine does not have" in told
    assert "VM b: nic 0000:99:00.0: this host has no such device; nic 0000:23:00.0: it is a gpu" in told
    assert "VM c: nvme 0000:25:00.0: it is a nic" in told


def test_two_vms_that_want_the_same_things() -> None:
    gpu: Any = ["0000:23:00.0"]
    told = refused(
        [
            request("a", gpu, nics=["0000:25:00.0"], vcpus="10,58"),
            request("b", gpu, nics=["0000:25:00.0"], vcpus="10,58"),
        ]
    )
    for thing in ("0000:23:00.0", "0000:25:00.0", "CPU 10", "CPU 58"):
        assert f"{thing} is named by VMs a, b" in told


def test_certain_nics_are_kept_for_who_asked() -> None:
    taken, other = plan([request("a", 1, nics=["0000:26:00.0"]), request("b", 1, nics=1)])["vms"]
    assert buses(taken, "nic") == ["26"]
    assert buses(other, "nic") != ["26"]


def with_virtual_functions() -> Topology:
    """The first NIC stays with the host and has two virtual functions for guests."""
    topology = host()
    (physical,) = [function for function in topology["pci"] if function["bdf"] == "0000:25:00.0"]
    physical["driver"] = "mlx5_core"
    for number in (1, 2):
        function = deepcopy(physical)
        function["bdf"], function["physfn"] = f"0000:25:00.{number}", "0000:25:00.0"
        function["driver"], function["iommu_group"] = "vfio-pci", 900 + number
        topology["pci"].append(function)
    topology["pci"].sort(key=lambda function: function["bdf"])
    return topology


def test_virtual_functions_go_to_who_names_them_only() -> None:
    topology = with_virtual_functions()
    named = [request("a", 1, nics=["0000:25:00.1"]), request("b", 1, nics=["0000:25:00.2"]), request("c", 6)]
    first, second, others = plan(named, topology=topology)["vms"]
    assert [device["bdf"] for device in first["placement"]["devices"]][1:] == ["0000:25:00.1"]
    assert [device["bdf"] for device in second["placement"]["devices"]][1:] == ["0000:25:00.2"]
    assert "bus='0x25' slot='0x00' function='0x1'" in first["domain_xml"].replace('"', "'")
    (eight,) = plan([request("all", 8)], topology=topology)["vms"]
    for vm in (others, eight):
        assert not [device for device in vm["placement"]["devices"] if device["bdf"].startswith("0000:25:")]
    assert len(buses(eight, "nic")) == 7
    assert "needs 8 NICs, 7 are free" in refused([request("all", 8, nics=8)], topology=topology)
    assert "nic 0000:25:00.0: it has virtual functions" in refused(
        [request("a", 1, nics=["0000:25:00.0"])], topology=topology
    )


def test_certain_cpus() -> None:
    gpu: Any = ["0000:23:00.0"]
    # 48 cores per socket: CPU n and n + 96 are threads of one core.
    (vm,) = plan([request("a", gpu, vcpus="20-21,116-117")])["vms"]
    assert vm["placement"]["cpus_by_node"] == {"0": "20-21,116-117"}
    others = plan([request("a", gpu, vcpus="20-21,116-117"), request("b", 3, vcpus=80)])["vms"]
    mine, theirs = (set(parse_cpulist(vm["placement"]["cpus_by_node"]["0"])) for vm in others)
    assert len(theirs) == 80
    assert not mine & theirs


@pytest.mark.parametrize(
    "cpus,expected",
    [
        ("20", "of the core with CPUs [20, 116] a VM with smt=share has 20, 116"),
        ("0,96", "CPU 0, 96 is not of this host, or kept by the host"),
        ("9999", "CPU 9999 is not of this host"),
        ("60,156", "CPUs are of NUMA nodes [1], the GPUs of [0]"),
    ],
)
def test_cpus_that_cannot_be_had(cpus: str, expected: str) -> None:
    gpu: Any = ["0000:23:00.0"]
    assert expected in refused([request("a", gpu, vcpus=cpus)])


def test_isolated_siblings() -> None:
    vm, other = plan([request("a", 1, vcpus=4, smt="isolate"), request("b", 1, vcpus=4)])["vms"]
    assert vm["layout"]["cpu_topology"]["threads"] == 1
    pinned = parse_cpulist(vm["placement"]["cpus_by_node"]["0"])
    assert len(pinned) == 4
    assert max(pinned) < 48
    # The idle threads stay idle.
    assert not {cpu + 96 for cpu in pinned} & set(parse_cpulist(other["placement"]["cpus_by_node"]["0"]))


def test_strict_numa_refuses_and_prefer_takes_the_rest_from_elsewhere() -> None:
    gpu: Any = ["0000:23:00.0"]
    assert "huge pages of 1024 MiB of NUMA node 0, 972 are free" in refused([request("a", gpu, memory="1000GiB")])
    (vm,) = plan([request("a", gpu, memory="1000GiB", vcpus=4, numa="prefer")])["vms"]
    assert vm["placement"]["memory_by_node"] == {"0": 972 * GIB, "1": 28 * GIB}
    assert [cell["host_node"] for cell in vm["layout"]["cells"]] == [0, 1]
    assert sum(len(parse_cpulist(cpus)) for cpus in vm["placement"]["cpus_by_node"].values()) == 4
    assert any("further NUMA nodes" in warning for warning in vm["warnings"])
    (near,) = plan([request("a", gpu, memory="100GiB", numa="prefer")])["vms"]
    assert near["placement"]["nodes"] == [0]
    assert "huge pages" in refused([request("a", gpu, memory="4TiB", numa="prefer")])


def test_nvlink_wishes() -> None:
    assert "no GPUs are connected" in refused([request("a", 2, nvlink="required")])
    assert "a VM on this machine can have 8 or 4 or 2 or 1" in refused([request("a", 3)], "shared_nvswitch")
    (loose,) = plan([request("a", 3, nvlink="preferred")], "shared_nvswitch")["vms"]
    assert loose["placement"]["partition"] is None
    assert len(buses(loose, "gpu")) == 3
    (linked,) = plan([request("a", 4, nvlink="preferred")], "shared_nvswitch")["vms"]
    assert linked["placement"]["partition"] is not None
    (free,) = plan([request("a", 4, nvlink="none")], "full_passthrough")["vms"]
    assert (len(buses(free, "gpu")), buses(free, "nvswitch")) == (4, [])


def test_vms_kept_apart_share_no_node() -> None:
    first, second = plan([request("a", 1), request("b", 1, anti_affinity=["a"])])["vms"]
    assert set(first["placement"]["nodes"]).isdisjoint(second["placement"]["nodes"])
    assert "cannot be placed" in refused([request("a", 8, nics=0), request("b", 1, anti_affinity=["a"])])
    third = [*(request(name, 1, anti_affinity=["a", "b", "c"]) for name in ("x",)), request("a", 1), request("b", 1)]
    one, *others = plan(third)["vms"]
    assert all(set(one["placement"]["nodes"]).isdisjoint(vm["placement"]["nodes"]) for vm in others)
    told = refused([request("a", 1), request("b", 1, anti_affinity=["a"]), request("c", 1, anti_affinity=["a", "b"])])
    assert "which a VM uses that it is to be kept apart from" in told


def test_apart_also_when_the_other_one_asked_or_stands_already() -> None:
    first, second = plan([request("a", 1, anti_affinity=["b"], priority=1), request("b", 1)])["vms"]
    assert set(first["placement"]["nodes"]).isdisjoint(second["placement"]["nodes"])


def test_higher_priority_chooses_first() -> None:
    # Both want the board's first partition of four; whoever is more important gets the first node.
    later, sooner = plan([request("a", 4), request("b", 4, priority=5)], "shared_nvswitch")["vms"]
    assert (sooner["placement"]["nodes"], later["placement"]["nodes"]) == ([0], [1])


def test_what_fits_is_planned_and_the_rest_told() -> None:
    made = plan(
        [request("a", 8), request("b", 4, priority=2), request("c", 2)], "shared_nvswitch", partial=True, explain=True
    )
    assert [vm["name"] for vm in made["vms"]] == ["b", "c"]
    (entry,) = made["refused"]
    assert entry["name"] == "a"
    assert any("asks for 8 GPUs, 4 are free" in reason for reason in entry["reasons"])
    assert made["still_fits"] == [2, 1]


def test_nothing_is_refused_when_all_fits() -> None:
    made = plan([request("a", 4)], "shared_nvswitch", partial=True)
    assert (made["refused"], made["still_fits"]) == ([], [4, 2, 1])


def test_an_explanation_names_pairs_and_the_next_best() -> None:
    (vm,) = plan([request("a", 4)], "shared_nvswitch", explain=True)["vms"]
    told = vm["explanation"]
    assert told["distance"] == 4
    assert told["pairs"][0] == {"gpu": "0000:23:00.0", "device": "0000:25:00.0", "path": "PIX"}
    assert told["next_best"]["gpus"] == ["0000:93:00.0", "0000:94:00.0", "0000:c3:00.0", "0000:c4:00.0"]
    assert "order of devices" in told["next_best"]["why_not"]
    (whole,) = plan([request("a", 8)], "full_passthrough", explain=True)["vms"]
    assert whole["explanation"]["next_best"] is None


def test_the_next_best_can_be_farther() -> None:
    gone = ["0000:95:00.0", "0000:96:00.0", "0000:c5:00.0", "0000:c6:00.0", "0000:55:00.0", "0000:56:00.0"]
    (vm,) = plan([request("a", 1, nics=1)], explain=True, exclude=gone)["vms"]
    assert buses(vm, "gpu") == ["23"]
    assert vm["explanation"]["next_best"]["why_not"].endswith("4 instead of 1")


def test_excluded_and_silent_gpus_are_not_given_out() -> None:
    assert "0000:23:00.0: it is excluded by request" in refused(
        [request("a", 8)], "full_passthrough", exclude=["0000:23:00.0"]
    )
    topology = host()
    topology["unknown"].append({"fact": "capabilities", "reason": SILENT, "of": ["0000:23:00.0"]})
    assert "0000:23:00.0: it may be broken" in refused([request("a", 8)], "full_passthrough", topology)
    (vm,) = plan([request("a", 1)], "shared_nvswitch", topology)["vms"]
    assert buses(vm, "gpu") != ["23"]


def test_the_table_of_the_dgx_2_in_whole_cores() -> None:
    (vm,) = plan([request("a", 1)], policy={"sizing": "dgx-2"})["vms"]
    assert len(parse_cpulist(vm["placement"]["cpus_by_node"]["0"])) == 4
    assert vm["placement"]["memory_by_node"] == {"0": 90 * GIB}
    assert buses(vm, "nic") == []
    assert any("4 instead of 5" in warning for warning in vm["warnings"])


def test_fabric_manager_on_the_host_keeps_more_cores() -> None:
    (with_manager,) = plan([request("a", 4)], "shared_nvswitch")["vms"]
    (without,) = plan([request("a", 4)], "none")["vms"]
    assert with_manager["placement"]["emulator_cpus"] == "0-3,96-99"
    assert without["placement"]["emulator_cpus"] == "0-1,96-97"
    (mine,) = plan([request("a", 4)], "none", policy={"reserve_cores_per_node": 3})["vms"]
    assert mine["placement"]["emulator_cpus"] == "0-2,96-98"
