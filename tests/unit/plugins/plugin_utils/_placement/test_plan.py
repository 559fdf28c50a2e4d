# Copyright: the topovirt.kvm authors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Stories on the described H200 server: who gets what, what is refused and why."""

from __future__ import annotations

import json
import xml.etree.ElementTree as ET
from typing import Any

import pytest
from ansible_collections.topovirt.kvm.plugins.module_utils._errors import TopovirtError
from ansible_collections.topovirt.kvm.plugins.module_utils._libvirt.basis import changes, make_basis
from ansible_collections.topovirt.kvm.plugins.module_utils._libvirt.domains import Allocation, parse_domain
from ansible_collections.topovirt.kvm.plugins.module_utils._topology.cpulist import parse_cpulist
from ansible_collections.topovirt.kvm.plugins.module_utils._topology.model import PciFunction, Topology
from ansible_collections.topovirt.kvm.plugins.module_utils._topology.reserve import housekeeping_cpus
from ansible_collections.topovirt.kvm.plugins.plugin_utils._placement.plan import make_plan
from ansible_collections.topovirt.kvm.tests.unit.plugins.plugin_utils.hosts import GIB, host, request

SCALES = pytest.mark.parametrize("scale", ["boot", "real"])


def plan(
    requests: list[dict[str, Any]],
    model: str,
    topology: Topology | None = None,
    domains: list[Allocation] | None = None,
    **more: Any,
) -> dict[str, Any]:
    return make_plan(requests, topology or host(), domains or [], model, "gpu-host-1", **more)


def refusal(*arguments: Any, **more: Any) -> TopovirtError:
    with pytest.raises(TopovirtError) as caught:
        plan(*arguments, **more)
    return caught.value


def buses(vm: dict[str, Any], role: str) -> list[str]:
    return [device["bdf"][5:7] for device in vm["placement"]["devices"] if device["role"] == role]


def modules(vm: dict[str, Any]) -> set[int]:
    return {device["module_id"] for device in vm["placement"]["devices"] if device["role"] == "gpu"}


def as_domains(made: dict[str, Any], topology: Topology, state: str = "running") -> list[Allocation]:
    """What libvirt would list after the plan was carried out; running VMs use up huge pages."""
    domains = []
    for vm in made["vms"]:
        domain = parse_domain(vm["domain_xml"])
        domain["state"] = state
        domains.append(domain)
        if state == "running":
            for node in topology["numa_nodes"]:
                used = domain["memory_by_node"].get(str(node["id"]), 0) // GIB
                node["hugepages"]["1048576"]["free"] -= used
    return domains


def function(topology: Topology, bdf: str) -> PciFunction:
    return next(item for item in topology["pci"] if item["bdf"] == bdf)


# --- sizes ---


@SCALES
def test_eight_gpus_with_all_nics_and_switches(scale: str) -> None:
    (vm,) = plan([request("big", 8)], "full_passthrough", host(scale))["vms"]
    assert buses(vm, "gpu") == ["23", "24", "53", "54", "93", "94", "c3", "c4"]
    assert buses(vm, "nic") == ["25", "26", "55", "56", "95", "96", "c5", "c6"]
    assert buses(vm, "nvswitch") == ["28"] * 4
    assert vm["placement"]["nodes"] == [0, 1]
    assert vm["placement"]["partition"] is None
    assert not vm["warnings"]


@SCALES
def test_two_tenants_of_four_on_partitions_one_and_two(scale: str) -> None:
    first, second = plan([request("t0", 4), request("t1", 4)], "shared_nvswitch", host(scale))["vms"]
    assert first["placement"]["partition"] == {"id": 1, "modules": [1, 2, 3, 4]}
    assert second["placement"]["partition"] == {"id": 2, "modules": [5, 6, 7, 8]}
    assert (modules(first), modules(second)) == ({1, 2, 3, 4}, {5, 6, 7, 8})
    assert (first["placement"]["nodes"], second["placement"]["nodes"]) == ([0], [1])
    assert buses(first, "nic") == ["25", "26", "55", "56"]
    assert buses(second, "nic") == ["95", "96", "c5", "c6"]
    assert not buses(first, "nvswitch") + buses(second, "nvswitch")


@pytest.mark.parametrize("gpus,model", [(1, "full_passthrough"), (1, "shared_nvswitch"), (2, "shared_nvswitch")])
def test_small_vms_get_their_own_switches_nics(gpus: int, model: str) -> None:
    (vm,) = plan([request("a", gpus)], model, host("boot"))["vms"]
    pairs = {"23": "25", "24": "26", "53": "55", "54": "56", "93": "95", "94": "96", "c3": "c5", "c4": "c6"}
    assert len(buses(vm, "gpu")) == gpus
    assert buses(vm, "nic") == sorted(pairs[gpu] for gpu in buses(vm, "gpu"))
    if gpus == 2:
        assert modules(vm) in ({1, 3}, {2, 4}, {5, 7}, {6, 8})


@pytest.mark.parametrize("model", ["shared_nvswitch", "full_passthrough"])
def test_eight_vms_of_one_gpu(model: str) -> None:
    topology = host()
    vms = plan([request(f"vm{number}", 1) for number in range(8)], model, topology)["vms"]
    gpus = [bus for vm in vms for bus in buses(vm, "gpu")]
    nics = [bus for vm in vms for bus in buses(vm, "nic")]
    assert gpus == ["23", "24", "53", "54", "93", "94", "c3", "c4"]
    assert nics == ["25", "26", "55", "56", "95", "96", "c5", "c6"]


def test_a_mixed_batch_is_packed_whatever_its_order() -> None:
    sizes = {"a": 1, "b": 2, "c": 4, "d": 1}
    for names in ("abcd", "dcba", "bdac"):
        vms = plan([request(name, sizes[name]) for name in names], "shared_nvswitch")["vms"]
        assert [vm["name"] for vm in vms] == list(names)
        assert {bus for vm in vms for bus in buses(vm, "gpu")} == {"23", "24", "53", "54", "93", "94", "c3", "c4"}


def test_a_small_vm_leaves_room_for_a_large_one() -> None:
    topology = host()
    running = as_domains(plan([request("old", 1)], "shared_nvswitch", topology), topology)
    both = plan([request("x", 1), request("y", 2)], "shared_nvswitch", topology, running)["vms"]
    taken = {function(topology, bdf)["module_id"] for bdf in running[0]["hostdevs"]} - {None}
    taken |= modules(both[0]) | modules(both[1])
    assert taken <= {1, 2, 3, 4} or taken <= {5, 6, 7, 8}


def test_the_place_that_keeps_more_partitions_whole_wins_over_the_first() -> None:
    topology = host()
    function(topology, "0000:53:00.0")["in_use"] = ["kept"]  # module 1, partner of module 3
    (vm,) = plan([request("a", 1)], "shared_nvswitch", topology)["vms"]
    assert modules(vm) == {3}


# --- CPUs and memory ---


@pytest.mark.parametrize(
    "scale,sizes,model",
    [
        ("boot", (8,), "full_passthrough"),
        ("boot", (4, 4), "shared_nvswitch"),
        ("real", (8,), "full_passthrough"),
        ("real", (4, 4), "shared_nvswitch"),
        ("real", (2, 1, 4, 1), "shared_nvswitch"),
        ("real", (1,) * 8, "shared_nvswitch"),
    ],
)
def test_pins_are_disjoint_and_leave_housekeeping_alone(scale: str, sizes: tuple[int, ...], model: str) -> None:
    topology = host(scale)
    vms = plan([request(f"vm{index}", size) for index, size in enumerate(sizes)], model, topology)["vms"]
    kept = {cpu for cpus in housekeeping_cpus(topology, model).values() for cpu in cpus}
    node_of = {cpu: core["node"] for core in topology["cores"] for cpu in core["threads"]}
    used: list[int] = []
    for vm in vms:
        root = ET.fromstring(vm["domain_xml"])
        pins = {int(pin.get("vcpu", "")): int(pin.get("cpuset", "")) for pin in root.findall("cputune/vcpupin")}
        assert sorted(pins) == list(range(int(root.findtext("vcpu") or 0)))
        used += pins.values()
        emulator = root.find("cputune/emulatorpin")
        assert emulator is not None
        emulator_cpus = parse_cpulist(emulator.get("cpuset", ""))
        assert emulator_cpus and set(emulator_cpus) <= kept
        assert {node_of[cpu] for cpu in emulator_cpus} == {node_of[cpu] for cpu in pins.values()}
        for cell in root.findall("cpu/numa/cell"):
            memnode = next(m for m in root.findall("numatune/memnode") if m.get("cellid") == cell.get("id"))
            vcpus = parse_cpulist(cell.get("cpus", ""))
            assert {str(node_of[pins[vcpu]]) for vcpu in vcpus} == {memnode.get("nodeset")}
    assert len(used) == len(set(used))
    assert not kept.intersection(used)
    assert set(used) | kept == set(node_of)  # nothing of the machine is left idle


def test_siblings_stay_together() -> None:
    topology = host()
    (vm,) = plan([request("a", 2, vcpus=10)], "shared_nvswitch", topology)["vms"]
    threads = [core["threads"] for core in topology["cores"]]
    pins = [cpu for _vcpu, cpu in vm["layout"]["vcpu_pins"]]
    assert len(pins) == 10
    assert all(pins[index : index + 2] in threads for index in range(0, 10, 2))
    assert vm["layout"]["cpu_topology"] == {"sockets": 1, "dies": 1, "cores": 5, "threads": 2}


def test_memory_is_the_nodes_own() -> None:
    (vm,) = plan([request("a", 8, memory="100GiB")], "full_passthrough")["vms"]
    assert vm["placement"]["memory_by_node"] == {"0": 50 * GIB, "1": 50 * GIB}
    assert vm["placement"]["page_size_bytes"] == GIB


def test_two_mib_pages_when_there_are_no_larger_ones() -> None:
    topology = host()
    for node in topology["numa_nodes"]:
        node["hugepages"] = {"2048": {"total": 1000, "free": 1000}, "1048576": {"total": 0, "free": 0}}
    (vm,) = plan([request("a", 4)], "shared_nvswitch", topology)["vms"]
    assert vm["placement"]["page_size_bytes"] == 2 << 20
    assert vm["placement"]["memory_by_node"] == {"0": 1000 * (2 << 20)}


# --- existing VMs ---


def test_existing_vms_keep_what_they_have() -> None:
    topology = host()
    running = as_domains(plan([request("t0", 4)], "shared_nvswitch", topology), topology)
    (vm,) = plan([request("t1", 4)], "shared_nvswitch", topology, running)["vms"]
    assert vm["placement"]["partition"]["id"] == 2
    error = refusal([request("t1", 8)], "shared_nvswitch", topology, running)
    assert "VM t1: asks for 8 GPUs, 4 are free" in error.message
    assert "0000:23:00.0: belongs to VM t0" in error.message
    assert "a VM of 4, 2 or 1 GPUs" in error.hint


def test_cpus_of_existing_vms_are_not_given_out_again() -> None:
    topology = host()
    running = as_domains(plan([request("old", 1)], "shared_nvswitch", topology), topology)
    vms = plan([request(f"vm{number}", 1) for number in range(7)], "shared_nvswitch", topology, running)["vms"]
    pins = [cpu for vm in vms for _vcpu, cpu in vm["layout"]["vcpu_pins"]] + parse_cpulist(running[0]["cpus"])
    assert len(pins) == len(set(pins)) == 8 * 22


def test_pages_promised_to_a_vm_that_is_off_are_not_given_out_when_others_use_the_rest() -> None:
    topology = host()
    off = as_domains(plan([request("old", 1, memory="30GiB")], "shared_nvswitch", topology), topology, "shut off")
    topology["numa_nodes"][0]["hugepages"]["1048576"]["free"] = 40  # something else holds 932 of 972
    error = refusal([request("a", 1, memory="2TiB"), request("b", 8)], "shared_nvswitch", topology, off)
    assert "of NUMA node 0, 10 are free" in error.message


def test_a_shut_off_vm_still_owns_its_devices_and_memory() -> None:
    topology = host()
    off = as_domains(plan([request("t0", 4)], "shared_nvswitch", topology), topology, "shut off")
    assert "4 are free" in refusal([request("t1", 8)], "shared_nvswitch", topology, off).message
    (vm,) = plan([request("t1", 4)], "shared_nvswitch", topology, off)["vms"]
    assert vm["placement"]["nodes"] == [1]


@SCALES
@pytest.mark.parametrize("state", ["running", "shut off"])
def test_a_second_run_plans_the_same(scale: str, state: str) -> None:
    topology = host(scale)
    wanted = [request("t0", 4), request("t1", 4, memory="2GiB")]
    first = plan(wanted, "shared_nvswitch", topology)
    again = plan(wanted, "shared_nvswitch", topology, as_domains(first, topology, state))
    assert [vm["domain_xml"] for vm in again["vms"]] == [vm["domain_xml"] for vm in first["vms"]]
    assert [vm["placement"] for vm in again["vms"]] == [vm["placement"] for vm in first["vms"]]


def test_running_vms_never_move_for_a_newcomer() -> None:
    topology = host()
    running = as_domains(plan([request("a", 1), request("b", 1)], "shared_nvswitch", topology), topology)
    again = plan([request("new", 4), request("a", 1), request("b", 1)], "shared_nvswitch", topology, running)
    by_name = {vm["name"]: [device["bdf"] for device in vm["placement"]["devices"]] for vm in again["vms"]}
    assert {name: sorted(by_name[name]) for name in "ab"} == {vm["name"]: vm["hostdevs"] for vm in running}


def test_a_running_vm_is_not_changed() -> None:
    topology = host()
    running = as_domains(plan([request("a", 2)], "shared_nvswitch", topology), topology)
    error = refusal([request("a", 4)], "shared_nvswitch", topology, running)
    assert "VM a is running and has 2 GPUs, 4 are asked for" in error.message


def test_a_vm_whose_device_is_gone_is_planned_anew_when_it_is_off() -> None:
    topology = host()
    wanted = [request("a", 1)]
    off = as_domains(plan(wanted, "shared_nvswitch", topology), topology, "shut off")
    lost = next(bdf for bdf in off[0]["hostdevs"] if function(topology, bdf)["role"] == "nic")
    topology["pci"].remove(function(topology, lost))
    (vm,) = plan([request("a", 1, nics=1)], "shared_nvswitch", topology, off)["vms"]
    assert lost not in [device["bdf"] for device in vm["placement"]["devices"]]
    off[0]["state"] = "running"
    assert f"owns {lost}, which the host no longer has" in refusal(wanted, "shared_nvswitch", topology, off).message


def test_a_vm_that_is_off_is_planned_anew() -> None:
    topology = host()
    off = as_domains(plan([request("a", 2)], "shared_nvswitch", topology), topology, "shut off")
    (vm,) = plan([request("a", 8)], "shared_nvswitch", topology, off)["vms"]
    assert len(buses(vm, "gpu")) == 8
    assert vm["uuid"] == off[0]["uuid"]


def test_a_foreign_vm_of_the_same_name_is_refused() -> None:
    topology = host()
    (foreign,) = as_domains(plan([request("a", 2)], "shared_nvswitch", topology), topology)
    foreign["ours"] = False
    assert "was not made by topovirt.kvm" in refusal([request("a", 2)], "shared_nvswitch", topology, [foreign]).message


def test_switches_in_a_vm_rule_out_shared_mode() -> None:
    topology = host()
    running = as_domains(plan([request("big", 8)], "full_passthrough", topology), topology)
    assert (
        "NVSwitch 0000:28:00.0 belongs to VM big"
        in refusal([request("a", 1)], "shared_nvswitch", topology, running).message
    )


# --- what cannot be given out ---


def test_nvme_devices_of_the_host_are_named_when_one_is_missing() -> None:
    topology = host()
    for item in topology["pci"]:
        if item["role"] == "nvme":
            item["driver"] = "nvme"
    error = refusal([request("a", 1, nvme=1)], "shared_nvswitch", topology)
    assert "needs 1 NVMe devices, 0 are free (not available: 0000:27:00.0: its driver is nvme" in error.message


def test_devices_off_vfio_are_not_given_out_but_can_be_planned_for() -> None:
    topology = host()
    for item in topology["pci"]:
        if item["role"] in ("gpu", "nic"):
            item["driver"] = "nvidia" if item["role"] == "gpu" else "mlx5_core"
    for node in topology["numa_nodes"]:
        node["hugepages"] = {}
    error = refusal([request("a", 1)], "shared_nvswitch", topology)
    assert "its driver is nvidia, expected vfio-pci" in error.message
    before = plan([request("a", 1)], "shared_nvswitch", topology, state="unconverted")["vms"][0]["placement"]
    after = plan([request("a", 1)], "shared_nvswitch", host())["vms"][0]["placement"]
    assert before == after


def test_a_gpu_that_the_host_uses_is_not_given_out() -> None:
    topology = host()
    function(topology, "0000:24:00.0")["in_use"] = ["process 77 holds /dev/nvidia1"]
    for state in ("converted", "unconverted"):
        error = refusal([request("a", 8)], "full_passthrough", topology, state=state)
        assert "process 77 holds /dev/nvidia1" in error.message
    (vm,) = plan([request("a", 4)], "shared_nvswitch", topology)["vms"]
    assert vm["placement"]["partition"]["id"] == 2


def test_a_used_switch_blocks_the_whole_board() -> None:
    topology = host()
    function(topology, "0000:28:00.2")["in_use"] = ["process 5 holds /dev/nvidia-nvswitch2"]
    assert "nvswitch 0000:28:00.2" in refusal([request("a", 8)], "full_passthrough", topology).message


def test_iommu_groups_are_kept_whole() -> None:
    topology = host()
    # A GPU with an audio function in its group: it goes along.
    gpu = function(topology, "0000:23:00.0")
    audio: PciFunction = {**gpu, "bdf": "0000:23:00.1", "role": None, "class": "040300", "module_id": None}
    topology["pci"].append(audio)
    topology["pci"].sort(key=lambda item: item["bdf"])
    (vm,) = plan([request("a", 4)], "shared_nvswitch", topology)["vms"]
    assert "0000:23:00.1" in [device["bdf"] for device in vm["placement"]["devices"]]
    assert any("0000:23:00.1" in warning for warning in vm["warnings"])
    # Held by the host, it keeps the GPU back.
    audio["driver"] = "snd_hda_intel"
    error = refusal([request("a", 8)], "full_passthrough", topology)
    assert "0000:23:00.1: its driver is snd_hda_intel" in error.message


def test_gpus_of_one_group_cannot_be_parted() -> None:
    topology = host()
    function(topology, "0000:24:00.0")["iommu_group"] = function(topology, "0000:23:00.0")["iommu_group"]
    vms = plan([request("a", 1), request("b", 2)], "shared_nvswitch", topology)["vms"]
    assert all("23" not in buses(vm, "gpu") or "24" in buses(vm, "gpu") for vm in vms)
    (vm,) = plan([request("a", 4)], "shared_nvswitch", topology)["vms"]
    assert buses(vm, "gpu") == ["23", "24", "53", "54"]


def test_a_nic_in_the_group_of_anothers_gpu_is_not_given_out() -> None:
    topology = host()
    # NIC 0000:25:00.0 cannot be parted from GPU 0000:24:00.0.
    function(topology, "0000:25:00.0")["iommu_group"] = function(topology, "0000:24:00.0")["iommu_group"]
    vms = plan([request(f"vm{number}", 1) for number in range(8)], "shared_nvswitch", topology)["vms"]
    owners = {device["bdf"]: vm["name"] for vm in vms for device in vm["placement"]["devices"]}
    assert owners["0000:25:00.0"] == owners["0000:24:00.0"] != owners["0000:23:00.0"]
    assert sum(len(vm["placement"]["devices"]) for vm in vms) == len(owners) == 16


def test_a_gpu_beside_a_switch_of_its_group_is_never_shared() -> None:
    topology = host()
    function(topology, "0000:23:00.0")["iommu_group"] = function(topology, "0000:28:00.0")["iommu_group"]
    (vm,) = plan([request("a", 4)], "shared_nvswitch", topology)["vms"]
    assert vm["placement"]["partition"]["id"] == 2
    assert "nvswitch 0000:28:00.0 shares IOMMU group" in refusal([request("a", 8)], "shared_nvswitch", topology).message


def test_nics_are_never_shared() -> None:
    vms = plan([request(f"vm{number}", 1, nics=2) for number in range(4)], "shared_nvswitch")["vms"]
    nics = [bus for vm in vms for bus in buses(vm, "nic")]
    assert len(nics) == len(set(nics)) == 8
    # Two NICs of its own switch each, so the VMs lie on four switches.
    assert all(len({bus[0] for bus in buses(vm, "nic") + buses(vm, "gpu")}) == 1 for vm in vms)


def test_nvme_of_the_same_switch() -> None:
    (vm,) = plan([request("a", 2, nvme=1)], "shared_nvswitch")["vms"]
    assert buses(vm, "nvme")[0][0] == buses(vm, "gpu")[0][0]


def test_distant_nics_are_told() -> None:
    (vm,) = plan([request("a", 1, nics=3)], "shared_nvswitch")["vms"]
    assert any("NODE" in warning for warning in vm["warnings"])


def test_single_gpus_of_an_nvswitch_board_are_warned_of_their_links() -> None:
    (vm,) = plan([request("a", 1)], "full_passthrough")["vms"]
    assert any("NVreg_NvLinkDisable" in warning for warning in vm["warnings"])


# --- refusals ---


@pytest.mark.parametrize("count", [2, 4])
def test_parts_of_a_hopper_board_are_refused_naming_eight_and_one(count: int) -> None:
    error = refusal([request("a", count)], "full_passthrough")
    assert f"asks for {count} GPUs" in error.message
    assert "8 or 1" in error.message


def test_all_shortages_of_all_vms_come_in_one_error() -> None:
    requests = [request("ok", 4), request("cpu", 2, vcpus=200), request("mem", 1, memory="4TiB"), request("big", 16)]
    error = refusal(requests, "shared_nvswitch")
    assert "3 of 4 VMs cannot be placed" in error.message
    assert "VM cpu: needs 100 cores of NUMA node 1, 44 are free" in error.message
    assert "VM mem: needs 4096 huge pages of 1024 MiB of NUMA node 1, 972 are free" in error.message
    assert "VM big: asks for 16 GPUs, this machine has 8" in error.message
    assert "What fits: ok; beside that a VM of 4, 2 or 1 GPUs" in error.hint


def test_several_shortages_of_one_vm() -> None:
    error = refusal([request("a", 4, vcpus=200, memory="4TiB", nics=20, nvme=9)], "shared_nvswitch")
    for part in ("100 cores", "4096 huge pages", "needs 20 NICs, 8 are free", "needs 9 NVMe devices, 4 are free"):
        assert part in error.message


def test_more_vms_than_gpus() -> None:
    error = refusal([request(f"vm{number}", 4) for number in range(3)], "shared_nvswitch")
    assert "1 of 3 VMs cannot be placed. VM vm2: asks for 4 GPUs, 0 are free" in error.message


def test_free_gpus_that_form_no_partition() -> None:
    topology = host()
    for bdf in ("0000:23:00.0", "0000:93:00.0"):
        function(topology, bdf)["in_use"] = ["kept"]
    error = refusal([request("a", 4)], "shared_nvswitch", topology)
    assert "6 are free but form no partition of that size" in error.message


def test_no_iommu() -> None:
    topology = host()
    topology["iommu"] = {"kind": None, "active": False, "default_domain": None, "groups": 0}
    assert "IOMMU is not active" in refusal([request("a", 1)], "shared_nvswitch", topology).message


def test_unknown_numa_node_of_a_gpu() -> None:
    topology = host()
    function(topology, "0000:23:00.0")["numa_node"] = None
    assert "0000:23:00.0" in refusal([request("a", 1)], "shared_nvswitch", topology).message


def test_too_few_address_bits() -> None:
    topology = host()
    topology["host"]["phys_bits"] = 42
    error = refusal([request("a", 8)], "full_passthrough", topology)
    assert "offers 42" in error.message


def test_no_pages_at_all() -> None:
    topology = host()
    for node in topology["numa_nodes"]:
        node["hugepages"] = {}
    assert "0 are free" in refusal([request("a", 1)], "shared_nvswitch", topology).message


# --- the plan as data ---


def test_plans_are_plain_json_and_repeatable() -> None:
    requests = [request("t0", 4), request("t1", 2), request("t2", 1)]
    first = plan(requests, "shared_nvswitch")
    assert json.loads(json.dumps(first)) == first
    assert plan(requests, "shared_nvswitch") == first


def test_uuids_depend_on_host_and_name_only() -> None:
    (a,) = plan([request("a", 1)], "shared_nvswitch")["vms"]
    (same,) = plan([request("a", 8)], "full_passthrough")["vms"]
    (other,) = make_plan([request("a", 1)], host(), [], "shared_nvswitch", "gpu-host-2")["vms"]
    assert a["uuid"] == same["uuid"] != other["uuid"]


def test_the_basis_holds_while_the_plan_is_carried_out() -> None:
    topology = host()
    made = plan([request("t0", 4), request("t1", 4)], "shared_nvswitch", topology)
    running = as_domains(made, topology)
    assert changes(made["basis"], make_basis(topology, running[:1]), without=["t1"]) == []
    function(topology, "0000:23:00.0")["driver"] = None
    assert changes(made["basis"], make_basis(topology, []))


def test_metadata_of_the_definition() -> None:
    (vm,) = plan([request("t0", 4, memory="64GiB")], "shared_nvswitch")["vms"]
    metadata = parse_domain(vm["domain_xml"])["metadata"]
    assert metadata == {
        "schema": 1,
        "fabric_model": "shared_nvswitch",
        "partition": 1,
        "modules": [1, 2, 3, 4],
        "requested": {"gpus": 4, "memory": "64GiB"},
    }
