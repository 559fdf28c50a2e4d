# Copyright: the topovirt.kvm authors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""The NCCL file, rule by rule: what NCCL refuses, what it misreads in silence, and what has to be in it."""

from __future__ import annotations

import re
import xml.etree.ElementTree as ET
from copy import deepcopy
from typing import Any

import pytest
from ansible_collections.topovirt.kvm.plugins.module_utils._errors import TopovirtError
from ansible_collections.topovirt.kvm.plugins.module_utils._topology.model import Topology
from ansible_collections.topovirt.kvm.plugins.plugin_utils._guest.layout import Layout
from ansible_collections.topovirt.kvm.plugins.plugin_utils._guest.nccl import nccl_xml
from ansible_collections.topovirt.kvm.plugins.plugin_utils._guest.pcie_tree import Controller
from ansible_collections.topovirt.kvm.plugins.plugin_utils._placement.plan import make_plan
from ansible_collections.topovirt.kvm.tests.unit.plugins.plugin_utils._guest.test_pcie_tree import KINDS, SCALE, leaf
from ansible_collections.topovirt.kvm.tests.unit.plugins.plugin_utils.guests import Guest
from ansible_collections.topovirt.kvm.tests.unit.plugins.plugin_utils.hosts import host, request
from ansible_collections.topovirt.kvm.tests.unit.plugins.plugin_utils.nccl_parser import Refused, parse


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
def test_nccls_own_parser_would_read_it(gpus: int) -> None:
    assert parse(text(gpus)[0]).name == "system"


GOOD = '<system version="1">\n  <cpu numaid="0" arch="x86_64">\n  </cpu>\n</system>\n'


@pytest.mark.parametrize(
    "broken",
    [
        GOOD.replace("  <cpu", "\t<cpu"),
        '<?xml version="1.0"?>\n' + GOOD,
        GOOD.replace(" arch", "\n    arch"),
        GOOD.replace('arch="', 'arch = "'),
        GOOD.replace(' version="1"', ""),
        GOOD.replace('version="1"', 'version="2"'),
        GOOD.replace("  </cpu>", '  <pci busid="0000:01:00.0"/>\n' * 255 + "  </cpu>"),
        GOOD.replace("</system>\n", ""),
    ],
    ids=["tab", "declaration", "newline", "spaces", "no version", "version", "257 elements", "not closed"],
)
def test_the_parser_of_these_tests_refuses_what_nccl_refuses(broken: str) -> None:
    with pytest.raises(Refused):
        parse(broken)


@pytest.mark.parametrize(
    "fine",
    [
        GOOD,
        "<!-- a comment -->\n" + GOOD,
        GOOD.replace("\n", "\r\n"),
        GOOD.replace('"', "'"),
        GOOD.replace("  </cpu>", "  <other/>\n  </cpu>"),
    ],
    ids=["plain", "comment", "crlf", "single quotes", "unknown element"],
)
def test_the_parser_of_these_tests_takes_what_nccl_takes(fine: str) -> None:
    assert parse(fine).name == "system"


@pytest.mark.parametrize("gpus", [1, 2, 4, 8])
def test_only_cpus_and_pci_and_nothing_that_overrides_what_nccl_detects(gpus: int) -> None:
    tags = parse(text(gpus)[0]).all()
    assert {tag.name for tag in tags} == {"system", "cpu", "pci"}
    known = {
        "system": {"version"},
        "cpu": {"numaid", "arch", "vendor", "familyid", "modelid"},
        "pci": {
            "busid",
            "class",
            "vendor",
            "device",
            "subsystem_vendor",
            "subsystem_device",
            "link_speed",
            "link_width",
        },
    }
    assert all(set(tag.attributes) <= known[tag.name] for tag in tags)


@pytest.mark.parametrize("gpus", [1, 2, 4, 8])
def test_bus_ids_are_lower_case_with_four_digit_domain_unique_and_of_the_guest(gpus: int) -> None:
    nccl, domain = text(gpus)
    ids = [tag.attributes["busid"] for tag in parse(nccl).all() if tag.name == "pci"]
    assert all(re.fullmatch(r"[0-9a-f]{4}:[0-9a-f]{2}:[0-9a-f]{2}\.[0-7]", bus_id) for bus_id in ids)
    assert len(set(ids)) == len(ids)
    guest = Guest(domain)
    assert set(ids) <= {*guest.ports, *(spot.bdf for spot in guest.hostdevs.values())}


@pytest.mark.parametrize(
    "gtps,written",
    [(2.5, "2.5"), (5.0, "5.0"), (8.0, "8.0"), (16.0, "16.0"), (32.0, "32.0"), (64.0, "64.0"), (None, "8.0")],
)
def test_speeds_are_written_as_nccl_knows_them(gtps: float | None, written: str) -> None:
    """Any other spelling reads as 8 GT/s, which is also what NCCL takes where the host's kernel does not know."""
    topology = host()
    for function in topology["pci"]:
        if function["kind"] in ("root_port", "upstream_port"):
            function["link"] = {"max_gtps": gtps, "max_width": None}
    (vm,) = make_plan([request("a", 1)], topology, [], "shared_nvswitch", "host")["vms"]
    (switch,) = [tag for tag in parse(vm["nccl_xml"]).all() if tag.name == "pci"]
    assert switch.attributes["link_speed"] == f"{written} GT/s PCIe"
    assert switch.attributes["link_width"] == "16"


def test_for_amds_gpus_the_version_is_rccls() -> None:
    """Each library fails on the other's version, and both read the same place."""
    topology = host()
    for function in topology["pci"]:
        if function["role"] == "gpu":
            function["vendor"] = "1002"
    (vm,) = make_plan([request("a", 1)], topology, [], "shared_nvswitch", "host")["vms"]
    assert vm["nccl_xml"].startswith('<system version="2">\n')
    assert text(1)[0].startswith('<system version="1">\n')


def test_every_switch_has_speed_width_and_class() -> None:
    for tag in parse(text(8, "full_passthrough")[0]).all():
        if tag.name == "pci":
            assert {"class", "link_speed", "link_width"} <= set(tag.attributes)


# Families as CPUID's fields joined: 0xf + 0x8 << 4 and so on, which dumps of NCCL show for these processors.
@pytest.mark.parametrize("family,written", [(6, "6"), (23, "143"), (25, "175"), (26, "191")])
def test_the_cpus_family_is_in_nccls_own_form(family: int, written: str) -> None:
    topology = host()
    topology["host"]["cpu_family"] = family
    (vm,) = make_plan([request("a", 1)], topology, [], "shared_nvswitch", "host")["vms"]
    (cpu,) = parse(vm["nccl_xml"]).children
    assert cpu.attributes["familyid"] == written


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


def test_a_device_on_a_downstream_port_is_told_only_where_nccl_would_misread_it() -> None:
    """QEMU's port says neither speed nor width, so NCCL takes the device's speed and 16 lanes."""
    topology = host()
    gpus = [function for function in topology["pci"] if function["role"] == "gpu"]
    narrow, slowed = gpus[0], gpus[1]
    narrow["link"] = {"max_gtps": 32.0, "max_width": 8}
    port = next(function for function in topology["pci"] if function["bdf"] == slowed["parent"])
    port["link"] = {"max_gtps": 16.0, "max_width": 16}
    (vm,) = make_plan([request("a", 8)], topology, [], "full_passthrough", "host")["vms"]
    place = {device["bdf"]: device["guest_bdf"] for device in vm["layout"]["devices"]}
    leaves = {
        tag.attributes["busid"]: (tag.attributes["link_speed"], tag.attributes["link_width"])
        for tag in parse(vm["nccl_xml"]).all()
        if tag.attributes.get("class", "").startswith("0x0302")
    }
    assert leaves == {
        place[narrow["bdf"]]: ("32.0 GT/s PCIe", "8"),
        place[slowed["bdf"]]: ("16.0 GT/s PCIe", "16"),
    }


def on_root_ports(topology: Topology, layout: Layout, expanders: bool) -> Layout:
    """The same VM with a root port for each device, on the expander bus of its node or on the root complex itself."""
    made = deepcopy(layout)
    made["pcie"], buses = [], iter(range(0x40, 0x100))
    nodes = {function["bdf"]: function["numa_node"] for function in topology["pci"]}

    def add(model: str, parent: int, slot: int, node: int | None, bdf: str, at: int) -> Controller:
        made["pcie"].append(
            Controller(
                index=len(made["pcie"]) + 1,
                model=model,
                parent=parent,
                slot=slot,
                function=0,
                bus=next(buses),
                node=node,
                host=bdf,
                guest_bdf=f"0000:{at:02x}:{slot:02x}.0",
                multifunction=False,
                link=None,
            )
        )
        return made["pcie"][-1]

    tops = {
        cell["host_node"]: add("pcie-expander-bus", 0, 8 + cell["id"], cell["id"], "", 0)
        for cell in layout["cells"]
        if expanders
    }
    for slot, device in enumerate(made["devices"]):
        top = tops.get(nodes[device["bdf"]] or 0)
        parent, at = (top["index"], top["bus"]) if top is not None else (0, 0)
        port = add("pcie-root-port", parent, slot, None, device["bdf"], at)
        device["controller"], device["slot"], device["function"] = port["index"], 0, 0
        device["guest_bdf"] = f"0000:{port['bus']:02x}:00.0"
    return made


@pytest.mark.parametrize("expanders", [True, False])
def test_without_switches_every_gpu_and_nic_is_a_leaf_below_the_cpu_of_its_node(expanders: bool) -> None:
    topology = host()
    (vm,) = make_plan([request("a", 8)], topology, [], "full_passthrough", "host")["vms"]
    layout = on_root_ports(topology, vm["layout"], expanders)
    functions = {function["bdf"]: function for function in topology["pci"]}
    wanted = {
        device["guest_bdf"]: str(functions[device["bdf"]]["numa_node"])
        for device in layout["devices"]
        if functions[device["bdf"]]["role"] in ("gpu", "nic")
    }
    system = parse(nccl_xml(topology, layout))
    assert [cpu.attributes["numaid"] for cpu in system.children] == ["0", "1"]
    found = {leaf_.attributes["busid"]: cpu.attributes["numaid"] for cpu in system.children for leaf_ in cpu.children}
    assert found == wanted
    for leaf_ in system.all():
        if leaf_.name == "pci":
            assert (leaf_.attributes["link_speed"], leaf_.attributes["link_width"]) == ("32.0 GT/s PCIe", "16")


def test_devices_of_no_cell_are_below_the_cpu_that_nccl_makes_for_them() -> None:
    """NCCL itself hangs what has no node below a CPU -1; only there it meets the switch that it finds in the guest."""
    topology = host()
    (vm,) = make_plan([request("a", 8)], topology, [], "full_passthrough", "host")["vms"]
    layout = deepcopy(vm["layout"])
    assert {cpu.attributes["numaid"] for cpu in parse(nccl_xml(topology, layout)).children} == {"0", "1"}
    next(item for item in layout["pcie"] if item["model"] == "pcie-expander-bus")["node"] = None
    cpus = {cpu.attributes["numaid"]: cpu.children for cpu in parse(nccl_xml(topology, layout)).children}
    assert sorted(cpus) == ["-1", "0", "1"]
    assert len(cpus["-1"]) == 1


def test_a_file_that_nccl_cannot_hold_is_refused_with_its_size() -> None:
    """NCCL's 256 places take the file and what each process finds: its GPU with 18 links, three for each NIC."""
    topology = host()
    (vm,) = make_plan([request("a", 1, nics=0)], topology, [], "shared_nvswitch", "host")["vms"]
    layout = deepcopy(vm["layout"])
    (switch,) = [item for item in layout["pcie"] if item["model"] == "pcie-switch-upstream-port"]
    # system, cpu and the switches
    room = 255 - 20 - 2
    layout["pcie"] += [{**switch, "index": 1000 + number} for number in range(room - 1)]
    assert len(parse(nccl_xml(topology, layout)).all()) == 255 - 20
    layout["pcie"].append({**switch, "index": 2000})
    with pytest.raises(TopovirtError, match=r"has 236 elements and NCCL adds 20 .* fewer than 256"):
        nccl_xml(topology, layout)
