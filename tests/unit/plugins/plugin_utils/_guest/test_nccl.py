# Copyright: the topovirt.kvm authors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
from __future__ import annotations

import re
import xml.etree.ElementTree as ET
from typing import Any

import pytest
from ansible_collections.topovirt.kvm.plugins.plugin_utils._placement.plan import make_plan
from ansible_collections.topovirt.kvm.tests.unit.plugins.plugin_utils._guest.test_pcie_tree import KINDS, SCALE, leaf
from ansible_collections.topovirt.kvm.tests.unit.plugins.plugin_utils.guests import Guest
from ansible_collections.topovirt.kvm.tests.unit.plugins.plugin_utils.hosts import host, request


def text(gpus: int, model: str = "shared_nvswitch") -> tuple[str, str]:
    (vm,) = make_plan([request("a", gpus)], host(), [], model, "host")["vms"]
    return vm["nccl_xml"], vm["domain_xml"]


def test_switches_have_the_hosts_speed_at_the_guests_address() -> None:
    nccl, domain = text(8, "full_passthrough")
    guest = Guest(domain)
    upstream = {bdf for bdf, port in guest.ports.items() if port.model == "pcie-switch-upstream-port"}
    switches = ET.fromstring(nccl).findall("cpu/pci")
    assert {switch.get("busid") for switch in switches} == upstream
    for switch in switches:
        assert switch.get("class") == "0x060400"
        assert (switch.get("link_speed"), switch.get("link_width")) == ("32.0 GT/s PCIe", "16")
        assert not list(switch)


def test_switches_are_below_the_cpu_of_their_cell() -> None:
    nccl, domain = text(8, "full_passthrough")
    guest = Guest(domain)
    for cpu in ET.fromstring(nccl).findall("cpu"):
        for switch in cpu.findall("pci"):
            assert guest.ports[switch.get("busid", "")].cell == int(cpu.get("numaid", ""))


def test_cpus_are_the_hosts() -> None:
    cpus = ET.fromstring(text(8, "full_passthrough")[0]).findall("cpu")
    assert [cpu.attrib for cpu in cpus] == [
        {"numaid": numaid, "arch": "x86_64", "vendor": "GenuineIntel", "familyid": "6", "modelid": "143"}
        for numaid in ("0", "1")
    ]


def test_a_tenant_of_node_one_names_its_own_node() -> None:
    vm = make_plan([request("a", 4), request("b", 4)], host(), [], "shared_nvswitch", "host")["vms"][1]
    cpus = ET.fromstring(vm["nccl_xml"]).findall("cpu")
    assert [cpu.get("numaid") for cpu in cpus] == ["0"]
    assert len(cpus[0].findall("pci")) == 2


@pytest.mark.parametrize("gpus", [1, 2, 4, 8])
def test_syntax_is_what_nccl_parses(gpus: int) -> None:
    nccl, _domain = text(gpus)
    assert nccl.startswith('<system version="1">\n')
    assert "\t" not in nccl
    assert "<?" not in nccl
    assert len(list(ET.fromstring(nccl).iter())) <= 256
    for tag in re.findall(r"<[a-z][^>]*>", nccl):
        assert re.fullmatch(r'<[a-z]+( [a-z_]+="[^"\n]*")*/?>', tag), tag
    for busid in re.findall(r'busid="([^"]*)"', nccl):
        assert re.fullmatch(r"[0-9a-f]{4}:[0-9a-f]{2}:[0-9a-f]{2}\.0", busid)
    assert not re.search(r"<(gpu|nic|net)\b|affinity", nccl)


def plan_on(bridges: list[dict[str, Any]], gpus: int) -> dict[str, Any]:
    nodes = [{"id": 0, "distances": [10, 21]}, {"id": 1, "distances": [21, 10]}]
    topology = host(
        "real", {"devices": KINDS, "scale": SCALE, "nodes": nodes, "iommu": "dmar", "host_bridges": bridges}
    )
    for function in topology["pci"]:
        if function["kind"] == "upstream_port":
            function["vendor"], function["device"] = "1000", "c030"
            function["subsystem"] = "1000:0100"
    (vm,) = make_plan([request("a", gpus)], topology, [], "none", "host")["vms"]
    result: dict[str, Any] = vm
    return result


def test_two_levels_are_nested_and_have_the_hosts_identity() -> None:
    vm = plan_on([{"bus": 0x20, "node": 0, "ports": [{"switch": [leaf(), leaf()]}]}], 2)
    (top,) = ET.fromstring(vm["nccl_xml"]).findall("cpu/pci")
    assert len(top.findall("pci")) == 2
    for switch in (top, *top.findall("pci")):
        # NCCL flattens two levels of this switch on the host and must know it again in the guest.
        assert [switch.get(key) for key in ("vendor", "device", "subsystem_vendor", "subsystem_device")] == [
            "0x1000",
            "0xc030",
            "0x1000",
            "0x0100",
        ]


def test_devices_on_root_ports_are_told_with_their_speed() -> None:
    ports = [{"functions": [{"endpoint": "gpu"}]}, {"functions": [{"endpoint": "nic"}]}]
    vm = plan_on([{"bus": 0x20, "node": 0, "ports": ports}], 1)
    leaves = ET.fromstring(vm["nccl_xml"]).findall("cpu/pci")
    guest = {device["guest_bdf"] for device in vm["layout"]["devices"]}
    assert {leaf_.get("busid") for leaf_ in leaves} == guest
    assert [(leaf_.get("class"), leaf_.get("link_speed")) for leaf_ in leaves] == [
        ("0x030200", "32.0 GT/s PCIe"),
        ("0x020700", "32.0 GT/s PCIe"),
    ]


def test_the_slower_end_of_an_uplink_counts() -> None:
    topology = host()
    for function in topology["pci"]:
        if function["kind"] == "root_port":
            function["link"] = {"max_gtps": 16.0, "max_width": 8}
    (vm,) = make_plan([request("a", 1)], topology, [], "shared_nvswitch", "host")["vms"]
    (switch,) = ET.fromstring(vm["nccl_xml"]).findall("cpu/pci")
    assert (switch.get("link_speed"), switch.get("link_width")) == ("16.0 GT/s PCIe", "8")
