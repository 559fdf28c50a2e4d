# Copyright: the topovirt.kvm authors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Designing VMs without a host: what is placed, what is refused, and that the files tell it."""

from __future__ import annotations

import json
import xml.etree.ElementTree as ET
from typing import Any

import pytest
from ansible.errors import AnsibleFilterError
from ansible_collections.topovirt.kvm.plugins.filter.vm_design import vm_design
from ansible_collections.topovirt.kvm.plugins.module_utils._errors import TopovirtError
from ansible_collections.topovirt.kvm.plugins.plugin_utils._guest.expected import expected_guest
from ansible_collections.topovirt.kvm.plugins.plugin_utils._placement.plan import make_plan
from ansible_collections.topovirt.kvm.plugins.plugin_utils._report.design import design
from ansible_collections.topovirt.kvm.plugins.plugin_utils._report.guest_svg import draw_guest
from ansible_collections.topovirt.kvm.tests.unit.plugins.plugin_utils.hosts import host, request

HOST = host()


def vms(*sizes: int, **more: Any) -> list[dict[str, Any]]:
    return [{"name": f"vm{number}", "gpus": gpus, **more} for number, gpus in enumerate(sizes)]


def test_a_vm_has_four_files_and_the_plan_names_them() -> None:
    made = design(HOST, vms(4, image="rhel-9", state="running"), "shared_nvswitch", name="gpu-01")
    (placed,) = made["plan"]["placed"]
    assert sorted([*placed["files"], made["plan"]["picture"], "plan.json"]) == sorted(made["files"])
    assert "VM vm0" in made["files"]["_host.svg"]
    assert json.loads(made["files"]["plan.json"]) == made["plan"]
    assert (placed["devices"], placed["nodes"], placed["partition"]) == ({"gpu": 4, "nic": 4}, [0], 1)
    assert placed["fidelity"]["paths"] == {"equal": 28, "pairs": 28}
    assert made["plan"]["basis"] == "planned"


def test_the_files_are_those_that_the_real_plan_would_make() -> None:
    boot = {"kernel": "/images/vmlinuz"}
    made = design(HOST, vms(4, boot=boot), "shared_nvswitch", name="gpu-01")
    wanted = [{"name": "vm0", "gpus": 4, "boot": boot}]
    (vm,) = make_plan(wanted, HOST, [], "shared_nvswitch", "gpu-01", None, "unconverted")["vms"]
    spec = json.loads(made["files"]["vm0.spec.json"])
    assert made["files"]["vm0.domain.xml"] == vm["domain_xml"]
    assert made["files"]["vm0.nccl.xml"] == vm["nccl_xml"]
    assert (spec["placement"], spec["layout"]) == (json.loads(json.dumps(vm["placement"])), vm["layout"])
    assert not spec["boot_assumed"]


def test_an_image_that_is_not_known_is_assumed_to_be_a_disk() -> None:
    images = {"known": {"kernel": "vmlinuz"}}
    wanted = [
        {"name": "a", "gpus": 1, "image": "known"},
        {"name": "b", "gpus": 1, "image": "rhel-9"},
        {"name": "c", "gpus": 1},
    ]
    made = design(HOST, wanted, "none", images=images)
    assert [vm["boot_assumed"] for vm in made["plan"]["placed"]] == [False, True, True]
    paths = [ET.fromstring(made["files"][f"{name}.domain.xml"]).find("os/kernel") is not None for name in "abc"]
    assert paths == [True, False, False]


def test_what_does_not_fit_is_refused_and_the_rest_is_placed() -> None:
    plan = design(HOST, vms(4, 8, 2), "shared_nvswitch")["plan"]
    assert [vm["name"] for vm in plan["placed"]] == ["vm0", "vm2"]
    (refused,) = plan["refused"]
    assert refused["name"] == "vm1"
    assert "asks for 8 GPUs, 4 are free" in refused["reasons"][0]
    assert plan["still_fits"] == {"gpus": [2, 1]}


def test_a_full_machine_takes_nothing_more() -> None:
    plan = design(HOST, vms(8), "full_passthrough")["plan"]
    assert plan["still_fits"] == {"gpus": []}


@pytest.mark.parametrize(
    "wanted,model,message",
    [
        ([], "none", "gpu_vms is empty"),
        ([{"name": "a", "gpus": 0}], "none", "whole number of at least 1"),
        ([{"name": "a", "gpus": 1, "state": "on"}], "none", "state is 'on'"),
        ([{"name": "a", "gpus": 1}], "some", "'some' is not valid"),
        ([{"name": "a", "gpus": 1}, {"name": "a", "gpus": 1}], "none", "given 2 times"),
    ],
)
def test_a_wrong_list_is_one_error(wanted: list[dict[str, Any]], model: str, message: str) -> None:
    with pytest.raises(TopovirtError) as caught:
        design(HOST, wanted, model)
    assert message in str(caught.value)


def test_the_filter_says_what_it_wants() -> None:
    with pytest.raises(AnsibleFilterError, match="list of mappings"):
        vm_design(HOST, {"a": 1})
    with pytest.raises(AnsibleFilterError, match="schema 7"):
        vm_design({"schema": 7}, [{"name": "a", "gpus": 1}])
    assert set(vm_design(HOST, vms(1))) == {"plan", "files"}


def test_the_picture_has_every_device_once_on_each_side() -> None:
    made = design(HOST, vms(8), "full_passthrough")
    spec = json.loads(made["files"]["vm0.spec.json"])
    notes = [text.text for text in ET.fromstring(made["files"]["vm0.svg"]).iter("{http://www.w3.org/2000/svg}text")]
    for device in spec["layout"]["devices"]:
        on_host, in_guest = device["bdf"].removeprefix("0000:"), device["guest_bdf"].removeprefix("0000:")
        assert notes.count(f"guest {in_guest}") == notes.count(f"host {on_host}") == 1
    assert "pairs equal: paths 190 of 190 · siblings 16836 of 16836 · L3 16836 of 16836" in notes


def test_the_picture_stays_within_its_view() -> None:
    svg = ET.fromstring(design(HOST, vms(8), "full_passthrough")["files"]["vm0.svg"])
    _left, _top, width, height = map(float, svg.attrib["viewBox"].split())
    for rect in svg.iter("{http://www.w3.org/2000/svg}rect"):
        assert float(rect.attrib.get("x", 0)) + float(rect.attrib["width"]) <= width
        assert float(rect.attrib.get("y", 0)) + float(rect.attrib["height"]) <= height


def test_a_device_that_the_guest_loses_is_drawn_as_lost() -> None:
    layout = make_plan([request("a", 8)], HOST, [], "full_passthrough", "h")["vms"][0]["layout"]
    expanders = [controller for controller in layout["pcie"] if controller["model"] == "pcie-expander-bus"]
    expanders[1]["bus"] = expanders[0]["bus"] + 6
    guest = expected_guest(layout, HOST)
    there = {function["bdf"] for function in guest["guest_topology"]["pci"]}
    lost = [bdf for bdf, guest_bdf in guest["identity"].items() if guest_bdf not in there]
    texts = [text.text for text in draw_guest("a", HOST, layout, guest, "").iter("text")]
    assert texts.count("lost") == len(lost) > 0
