# Copyright: the topovirt.kvm authors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""The model on topology files that others publish, where at hand, against what NCCL's own code made of them."""

from __future__ import annotations

import re
from pathlib import Path

import pytest
from ansible_collections.topovirt.kvm.plugins.module_utils._topology.model import PciFunction, Topology
from ansible_collections.topovirt.kvm.plugins.plugin_utils._nccl.view import View, class_counts, view, view_of_dump
from ansible_collections.topovirt.kvm.tests.unit.plugins.plugin_utils.guest_kernel import at, topology_of
from ansible_collections.topovirt.kvm.tests.unit.plugins.plugin_utils.hosts import host
from ansible_collections.topovirt.kvm.tests.unit.plugins.plugin_utils.nccl_parser import parse

CAPTURES = Path(__file__).resolve().parents[6] / "shared" / "captures" / "nccl"
# Of systems of version 1; RCCL's say 2.
FILES = (
    "aws_g5.48xl-topo",
    "aws_p4d-24xl-topo",
    "azhpc_ncv4-topo",
    "azhpc_ndv2-topo",
    "azhpc_ndv5-topo",
    "oci_H100-topology",
    "oci_topo-flattened",
    "simllm_vastai_hgx_b200_8x_nccl_topo",
    "vela_a100_vm_sample-nccl-topology",
)


def published(name: str) -> str:
    path = CAPTURES / f"{name}.xml"
    if not path.is_file():
        pytest.skip(f"the captures of other projects are not on this machine: {path}")
    return path.read_text(encoding="utf-8")


def leaves(text: str, class_code: str) -> list[str]:
    """Bus ids of a file's GPUs or NICs as the kernel writes them."""
    found = [tag for tag in parse(text).all() if tag.name == "pci"]
    return sorted(
        tag.attributes["busid"].lower() for tag in found if tag.attributes["class"].startswith(f"0x{class_code}")
    )


def flat_guest(text: str) -> tuple[Topology, list[str], list[str]]:
    """A cloud's VM without any switch or node, with the devices that the file is about."""
    topology = host()
    devices: list[PciFunction] = []
    found: dict[str, list[str]] = {}
    for role, class_code in (("gpu", "03"), ("nic", "02")):
        model = next(function for function in topology["pci"] if function["role"] == role)
        found[role] = leaves(text, class_code)
        devices += [at(model, bus_id, None, bus_id[:7], None) for bus_id in found[role]]
    return topology_of(topology, devices, 2), found["gpu"], found["nic"]


def seen(text: str) -> View:
    topology, gpus, nics = flat_guest(text)
    return view(topology, gpus, nics, text, nvlink=True)


def picks(shown: View) -> list[int]:
    return [shown["nics"].index(shown["preferred"][gpu]) for gpu in shown["gpus"]]


@pytest.mark.parametrize("name", FILES)
def test_the_parser_of_these_tests_takes_what_is_in_use(name: str) -> None:
    assert parse(published(name)).name == "system"


def test_one_invented_switch_for_each_gpu_and_nic() -> None:
    shown = seen(published("azhpc_ndv5-topo"))
    assert class_counts(shown) == {"gpu_gpu": {"NVL": 28}, "gpu_nic": {"PIX": 8, "PXN": 56}, "direct": 64}
    assert picks(shown) == [0, 1, 2, 3, 4, 5, 6, 7]
    assert list(shown["nodes"].values()) == [0, 0, 0, 0, 1, 1, 1, 1] * 2


OCI_H100 = "oci_H100-topology"
BROADCOM = 'vendor="0x1000" device="0xc030"'


def test_bare_metal_with_two_levels_is_flattened() -> None:
    """Eight GPUs with a NIC of two ports each."""
    counts = class_counts(view_of_dump(published(OCI_H100), nvlink=True))
    assert counts == {"gpu_gpu": {"NVL": 28}, "gpu_nic": {"PIX": 16, "PXN": 112}, "direct": 128}


def test_the_same_with_the_ids_of_emulated_switches_keeps_two_levels() -> None:
    text = published(OCI_H100).replace(BROADCOM, 'vendor="0x104c" device="0x8232"')
    assert class_counts(view_of_dump(text, nvlink=True))["gpu_nic"] == {"PXB": 16, "PXN": 112}


def test_stub_speeds_below_two_levels_throttle_even_near_nics() -> None:
    text = published(OCI_H100).replace(BROADCOM, 'vendor="0x104c" device="0x8232"')
    text = re.sub(
        r'(<pci [^>]*device="0x8232"[^>]*) link_speed="[^"]*" link_width="\d+"',
        r'\1 link_speed="2.5 GT/s PCIe" link_width="1"',
        text,
    )
    shown = view_of_dump(text, nvlink=True)
    near = {pair["gbs"] for pair in shown["pairs"] if pair["path"] == "PXB"}
    assert near == {0.1875}


def test_bare_metal_flattened_by_hand() -> None:
    """Two GPUs and two NICs below each of four switches of AMD's second generation."""
    shown = seen(published("oci_topo-flattened"))
    assert class_counts(shown) == {"gpu_gpu": {"NVL": 28}, "gpu_nic": {"PIX": 16, "PXN": 48}, "direct": 64}
    assert {pair["gbs"] for pair in shown["pairs"] if pair["path"] == "SYS"} == {16.0}


def test_upper_case_ids_of_a_published_file_are_not_matched() -> None:
    text = published("vela_a100_vm_sample-nccl-topology")
    lost = [tag.attributes["busid"].lower() for tag in parse(text).all() if "A1" in tag.attributes.get("busid", "")]
    shown = seen(text)
    assert len(lost) == 2
    assert {bus_id for bus_id, node in shown["nodes"].items() if node == -1} == set(lost)
