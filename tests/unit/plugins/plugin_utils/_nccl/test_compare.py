# Copyright: the topovirt.kvm authors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Host against guest as NCCL sees them: equal with the file on every machine; what no count shows is flagged."""

from __future__ import annotations

from collections.abc import Mapping
from copy import deepcopy
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import pytest
from ansible_collections.topovirt.kvm.plugins.module_utils._errors import TopovirtError
from ansible_collections.topovirt.kvm.plugins.module_utils._topology.model import Topology
from ansible_collections.topovirt.kvm.plugins.module_utils._topology.reader import read_topology
from ansible_collections.topovirt.kvm.plugins.module_utils._topology.reserve import guest_pages
from ansible_collections.topovirt.kvm.plugins.plugin_utils._guest.nccl import nccl_xml
from ansible_collections.topovirt.kvm.plugins.plugin_utils._nccl.compare import NcclComparison, compare_nccl
from ansible_collections.topovirt.kvm.plugins.plugin_utils._placement.plan import make_plan
from ansible_collections.topovirt.kvm.tests.unit.plugins.plugin_utils.guest_kernel import guest_topology
from ansible_collections.topovirt.kvm.tests.unit.plugins.plugin_utils.hosts import GIB, request

from tests.twin.addresses import module_ids
from tests.twin.description import load
from tests.twin.recorded import record


@dataclass(frozen=True)
class Machine:
    """Classes as NCCL has them on the host, and how they are in a guest without the file."""

    fabric: str
    nvlink: bool
    gpu_nic: Mapping[str, int]
    direct: int
    gpu_nic_without: Mapping[str, int]
    pairs_that_differ_without: int


# Two GPUs and two NICs below each of four switches, one of each below each of eight, and so on.
FOURS = {"PIX": 16, "PXN": 48}
EIGHTS = {"PIX": 8, "PXN": 56}
MACHINES = {
    # A NIC is below the upper switch, beside four GPUs, each pair of which is below one of the lower two.
    "dgx-2": Machine("full_passthrough", True, {"PIX": 16, "PXB": 16, "PXN": 96}, 128, {"PIX": 16, "PXN": 112}, 128),
    "hgx-a100": Machine("full_passthrough", True, {"PXB": 16, "PXN": 48}, 64, {"PXB": 16, "PXN": 48}, 128),
    "hgx-b200": Machine("none", True, FOURS, 64, FOURS, 48),
    "hgx-h100": Machine("full_passthrough", True, EIGHTS, 64, EIGHTS, 56),
    "hgx-h200": Machine("full_passthrough", True, FOURS, 64, FOURS, 48),
    "hgx-h200-snc": Machine("full_passthrough", True, EIGHTS, 64, EIGHTS, 56),
    "hgx-h200-snc4": Machine("full_passthrough", True, FOURS, 64, FOURS, 48),
    # As NCCL would have it: XGMI and whatever else RCCL does of its own is not in the model.
    "mi300x": Machine("none", False, {"PXB": 8, "PHB": 24, "SYS": 32}, 8, {"PXB": 8, "PHB": 24, "SYS": 32}, 184),
    # Root ports only, and cards no faster than QEMU's.
    "pcie-l40s": Machine("none", False, {"PHB": 8, "SYS": 8}, 0, {"PHB": 8, "SYS": 8}, 0),
}


@cache
def _read(name: str) -> Topology:
    with TemporaryDirectory() as directory:
        machine = load(name)
        record(machine, Path(directory), "real", "vfio")
        topology = read_topology(Path(directory), module_ids=module_ids(machine))
    for node in topology["numa_nodes"]:
        pages = guest_pages(node["memory_bytes"] or 0, GIB)
        node["hugepages"][str(GIB >> 10)] = {"total": pages, "free": pages}
    return topology


def recorded(name: str) -> Topology:
    return deepcopy(_read(name))


def planned(topology: Topology, name: str, gpus: int | None = None, fabric: str | None = None) -> dict[str, Any]:
    """A VM of the machine, with all GPUs if no number is given."""
    count = gpus if gpus is not None else sum(function["role"] == "gpu" for function in topology["pci"])
    (vm,) = make_plan([request("a", count)], topology, [], fabric or MACHINES[name].fabric, "host")["vms"]
    made: dict[str, Any] = vm
    return made


class Side:
    """A host and its guest."""

    def __init__(self, topology: Topology, vm: dict[str, Any], nvlink: bool) -> None:
        self.topology, self.nvlink, self.text = topology, nvlink, vm["nccl_xml"]
        cells = vm["layout"]["cells"]
        self.guest = guest_topology(vm["domain_xml"], topology, len(cells))
        self.identity: dict[str, str] = {item["bdf"]: item["guest_bdf"] for item in vm["layout"]["devices"]}
        self.nodes: dict[int | str, int] = {cell["id"]: cell["host_node"] for cell in cells}

    def compare(self, text: str | None) -> NcclComparison:
        return compare_nccl(self.topology, self.guest, self.identity, self.nodes, text, nvlink=self.nvlink)

    def of(self, role: str) -> list[str]:
        return [function["bdf"] for function in self.topology["pci"] if function["role"] == role]


def side(name: str = "hgx-h200", gpus: int | None = None, fabric: str | None = None) -> Side:
    topology = recorded(name)
    return Side(topology, planned(topology, name, gpus, fabric), MACHINES[name].nvlink)


def test_every_machine_is_judged() -> None:
    assert set(MACHINES) == {path.stem for path in (Path(__file__).parents[4] / "twin" / "machines").glob("*.yml")}


@pytest.mark.parametrize("name", MACHINES)
def test_with_the_file_the_guest_is_as_the_host(name: str) -> None:
    machine, both = MACHINES[name], side(name)
    comparison = both.compare(both.text)
    assert comparison["differences"] == []
    assert comparison["equal"]
    assert comparison["host"]["gpu_nic"] == machine.gpu_nic
    assert comparison["host"]["direct"] == machine.direct
    assert comparison["guest"] == comparison["host"]


@pytest.mark.parametrize("name", MACHINES)
def test_without_the_file(name: str) -> None:
    machine, both = MACHINES[name], side(name)
    comparison = both.compare(None)
    assert comparison["guest"]["gpu_nic"] == machine.gpu_nic_without
    assert len(comparison["differences"]) == machine.pairs_that_differ_without
    assert comparison["equal"] is (machine.pairs_that_differ_without == 0)


def with_broadcom(name: str, generation: int) -> Topology:
    """A machine with the ids of Broadcom's switches, of whose two levels NCCL makes one."""
    topology = recorded(name)
    functions = {function["bdf"]: function for function in topology["pci"]}
    for function in topology["pci"]:
        if function["kind"] == "upstream_port":
            upper = functions[function["parent"] or ""]["kind"] == "root_port"
            function["vendor"], function["device"] = "1000", "c010" if generation == 4 else "c030"
            function["subsystem"] = "1000:a096" if generation == 4 else "1000:0072" if upper else "1000:1003"
    return topology


@pytest.mark.parametrize("name", ["dgx-2", "hgx-a100"])
@pytest.mark.parametrize("generation", [4, 5])
def test_what_nccl_flattens_on_the_host_it_flattens_in_the_guest(name: str, generation: int) -> None:
    """PIX where the tree says PXB, on both sides; a file without the switches' identity leaves two levels."""
    machine, topology = MACHINES[name], with_broadcom(name, generation)
    both = Side(topology, planned(topology, name), machine.nvlink)
    told = both.compare(both.text)
    near = machine.gpu_nic.get("PIX", 0) + machine.gpu_nic["PXB"]
    assert told["differences"] == []
    assert told["host"]["gpu_nic"] == told["guest"]["gpu_nic"] == {"PIX": near, "PXN": machine.gpu_nic["PXN"]}
    assert both.compare(None)["guest"]["gpu_nic"] == machine.gpu_nic_without
    anonymous = both.text.replace('vendor="0x1000" device="0xc0', 'vendor="0x104c" device="0xc0')
    assert both.compare(anonymous)["guest"]["gpu_nic"] == machine.gpu_nic


@pytest.mark.parametrize("generation", [4, 5])
def test_of_three_levels_one_is_flattened_on_both_sides(generation: int) -> None:
    topology = with_broadcom("mi300x", generation)
    both = Side(topology, planned(topology, "mi300x"), nvlink=False)
    comparison = both.compare(both.text)
    assert comparison["differences"] == []
    assert comparison["host"]["gpu_nic"] == MACHINES["mi300x"].gpu_nic


@pytest.mark.parametrize("name", MACHINES)
@pytest.mark.parametrize("gpus", [2, 4])
def test_small_vms_are_as_the_host_with_the_same_devices(name: str, gpus: int) -> None:
    both = side(name, gpus, "none")
    assert both.compare(both.text)["differences"] == []


def test_the_file_is_made_anew_with_every_layout() -> None:
    """Bus ids follow the layout: a VM of other devices has another file, the same VM the same."""
    topology = recorded("hgx-h200")
    whole, again, half = (planned(topology, "hgx-h200", gpus, "none") for gpus in (8, 8, 4))
    assert whole["nccl_xml"] == again["nccl_xml"] == nccl_xml(topology, whole["layout"])
    assert half["nccl_xml"] != whole["nccl_xml"]
    both = Side(topology, half, True)
    strange = [line for line in both.compare(whole["nccl_xml"])["differences"] if "no function of the guest" in line]
    assert len(strange) == 2


# What class counts do not show.


def test_mis_paired_nics_with_equal_class_counts_are_flagged() -> None:
    """Two NICs of different switches change places: NCCL scores the guest exactly like the host."""
    both = side()
    nics = both.of("nic")
    first, second = nics[0], nics[2]
    both.identity[first], both.identity[second] = both.identity[second], both.identity[first]
    comparison = both.compare(both.text)
    assert comparison["host"] == comparison["guest"]
    assert not comparison["equal"]
    gpu, other = both.of("gpu")[0], both.of("gpu")[2]
    assert f"GPU {gpu} prefers NIC {first} on the host, {second} in the guest." in comparison["differences"]
    assert (
        f"{gpu} to {first} is PIX at 48 GB/s direct on the host, PXN at 48 GB/s direct in the guest."
        in comparison["differences"]
    )
    assert f"GPU {other} prefers NIC {second} on the host, {first} in the guest." in comparison["differences"]


def test_two_nics_of_one_switch_in_the_wrong_order_are_flagged() -> None:
    """No path differs, only which NIC each GPU takes: rails that end on another switch of the network."""
    both = side()
    first, second, *_rest = both.of("nic")
    both.identity[first], both.identity[second] = both.identity[second], both.identity[first]
    comparison = both.compare(both.text)
    gpus = both.of("gpu")
    assert comparison["differences"] == [
        f"GPU {gpus[0]} prefers NIC {first} on the host, {second} in the guest.",
        f"GPU {gpus[1]} prefers NIC {second} on the host, {first} in the guest.",
    ]


def test_swapped_sockets_are_flagged() -> None:
    """Every path and every pick is right, but all processes are bound to the other socket."""
    both = side()
    both.nodes = {0: 1, 1: 0}
    comparison = both.compare(both.text)
    assert comparison["host"] == comparison["guest"]
    assert len(comparison["differences"]) == 16
    assert (
        f"{both.of('gpu')[0]} is on node 0 on the host; in the guest NCCL has it on node 0."
        in (comparison["differences"])
    )


def test_a_file_that_puts_switches_on_the_wrong_node_is_flagged() -> None:
    both = side()
    swapped = both.text.replace('numaid="0"', 'numaid="x"').replace('numaid="1"', 'numaid="0"')
    assert not both.compare(swapped.replace('numaid="x"', 'numaid="1"'))["equal"]


def test_a_bus_id_that_the_booted_guest_does_not_have_is_named() -> None:
    both = side()
    line = next(line for line in both.text.splitlines() if "<pci" in line)
    bus_id = line.split('"')[1]
    comparison = both.compare(both.text.replace(bus_id, "0000:fe:00.0"))
    assert comparison["differences"][0] == "The NCCL file names 0000:fe:00.0, which is no function of the guest."
    # And what follows from it: the switch has stub speeds.
    assert any("0.1875 GB/s in the guest" in line or "0.1875 GB/s direct" in line for line in comparison["differences"])


def test_a_device_that_the_guest_does_not_show_is_named() -> None:
    both = side()
    gpu = both.of("gpu")[3]
    both.guest["pci"] = [item for item in both.guest["pci"] if item["bdf"] != both.identity[gpu]]
    comparison = both.compare(both.text)
    assert f"{gpu} is {both.identity[gpu]} in the guest, but there is no such function." in comparison["differences"]


def test_a_vm_without_gpus_is_not_equal() -> None:
    both = side()
    both.identity = {bdf: inside for bdf, inside in both.identity.items() if bdf not in both.of("gpu")}
    assert both.compare(both.text)["differences"] == [
        "No GPU of the host is in the guest, so there is nothing to compare."
    ]


def test_an_identity_that_is_none_is_refused() -> None:
    both = side()
    first, second, *_rest = both.of("gpu")
    both.identity[second] = both.identity[first]
    with pytest.raises(TopovirtError, match=f"has {both.identity[first]} of the guest for several devices"):
        both.compare(both.text)


def test_a_slow_link_in_the_guest_is_flagged_pair_by_pair() -> None:
    both = side()
    slow = both.text.replace('link_width="16"', 'link_width="8"', 1)
    differences = both.compare(slow)["differences"]
    assert differences
    assert all("24 GB/s" in line for line in differences)
