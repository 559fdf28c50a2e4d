# Copyright: the topovirt.kvm authors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""The model against what NCCL 2.30.7's own topology code said of the same machines, run without GPUs.

The machine: eight Hopper GPUs and eight 400G NICs, two of each below each of four switches, Emerald Rapids. Figures are
GPU to NIC classes and GB/s, how many pairs have GPUDirect RDMA, and which NIC each GPU prefers.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Callable, Iterable
from copy import deepcopy
from functools import cache
from typing import Any

import pytest
from ansible_collections.topovirt.kvm.plugins.module_utils._errors import TopovirtError
from ansible_collections.topovirt.kvm.plugins.module_utils._topology.model import Link, PciFunction, Topology
from ansible_collections.topovirt.kvm.plugins.plugin_utils._nccl.view import View, class_counts, view
from ansible_collections.topovirt.kvm.plugins.plugin_utils._placement.plan import make_plan
from ansible_collections.topovirt.kvm.tests.unit.plugins.plugin_utils.guest_kernel import (
    at,
    guest_topology,
    port,
    topology_of,
)
from ansible_collections.topovirt.kvm.tests.unit.plugins.plugin_utils.hosts import host, request

EMERALD_RAPIDS = 207
TRUE_LINK = Link(max_gtps=32.0, max_width=16)
Seen = tuple[Topology, list[str], list[str]]  # topology, GPUs, NICs


@cache
def _described() -> Topology:
    topology = host()
    topology["host"]["cpu_model"] = EMERALD_RAPIDS
    return topology


def bare_metal() -> Topology:
    return deepcopy(_described())


def devices(topology: Topology) -> tuple[list[str], list[str]]:
    gpus, nics = ([f["bdf"] for f in topology["pci"] if f["role"] == role] for role in ("gpu", "nic"))
    return gpus, nics


@cache
def _planned() -> dict[str, Any]:
    (vm,) = make_plan([request("a", 8)], bare_metal(), [], "full_passthrough", "host")["vms"]
    planned: dict[str, Any] = vm
    return planned


def mirrored() -> Topology:
    """A guest with the host's tree, whose switches tell stub speeds."""
    return guest_topology(_planned()["domain_xml"], bare_metal(), 2)


def nccl_file() -> str:
    text: str = _planned()["nccl_xml"]
    return text


def endpoints() -> Iterable[PciFunction]:
    return (function for function in _described()["pci"] if function["role"] in ("gpu", "nic"))


def flat(nodes: bool = True, root_port: Link = TRUE_LINK) -> Topology:
    """A guest with a root port for each device."""
    made: list[PciFunction] = []
    for number, function in enumerate(endpoints()):
        bus = f"0000:{2 * number + 1:02x}"
        node = function["numa_node"] if nodes else None
        above = port("pcie-root-port", f"{bus}:00.0", None, bus, node)
        above["link"] = root_port
        made += [above, at(function, f"0000:{2 * number + 2:02x}:00.0", above["bdf"], bus, node)]
    return topology_of(bare_metal(), made, 2)


def switches(chain: Callable[[PciFunction], tuple[object, ...]], link: Link | None = None) -> Topology:
    """A guest with other switches.

    :param chain: names the switches above a device, the upper ones first.
    :param link: of their upstream ports, None for what the emulated ones tell.
    """
    made: list[PciFunction] = []
    buses = iter(f"0000:{number:02x}" for number in range(1, 256))
    known: dict[tuple[object, ...], tuple[str, str]] = {}

    def add(model: str, bdf: str, parent: str | None, root_bus: str, node: int | None) -> str:
        item = port(model, bdf, parent, root_bus, node)
        if item["kind"] == "upstream_port" and link is not None:
            item["link"] = link
        made.append(item)
        return bdf

    for function in endpoints():
        node, names = function["numa_node"], chain(function)
        for depth in range(1, len(names) + 1):
            if names[:depth] in known:
                continue
            if depth == 1:
                root_bus = next(buses)
                above = add("pcie-root-port", f"{root_bus}:00.0", None, root_bus, node)
            else:
                upper, root_bus = known[names[: depth - 1]]
                above = add("pcie-switch-downstream-port", f"{next(buses)}:00.0", upper, root_bus, node)
            known[names[:depth]] = (
                add("pcie-switch-upstream-port", f"{next(buses)}:00.0", above, root_bus, node),
                root_bus,
            )
        upper, root_bus = known[names]
        above = add("pcie-switch-downstream-port", f"{next(buses)}:00.0", upper, root_bus, node)
        made.append(at(function, f"{next(buses)}:00.0", above, root_bus, node))
    return topology_of(bare_metal(), made, 2)


def lonely(link: Link | None = None) -> Topology:
    """Two levels: an upper switch for two GPUs and two NICs as on the host, and below it one for each of them."""
    return switches(lambda function: (function["host_bridge"], function["bdf"]), link)


def look(
    topology: Topology, text: str | None = None, nvlink: bool = True, gdr: bool = True, driver_p2p: bool = True
) -> View:
    return view(topology, *devices(topology), text, nvlink=nvlink, gdr=gdr, driver_p2p=driver_p2p)


def gpu_to_nic(shown: View) -> dict[tuple[str, float | None], int]:
    """Class and GB/s -> pairs."""
    gpus, nics = set(shown["gpus"]), set(shown["nics"])
    return dict(
        Counter(
            (pair["path"], pair["gbs"]) for pair in shown["pairs"] if pair["source"] in gpus and pair["target"] in nics
        )
    )


def speeds(shown: View, *paths: str) -> set[float | None]:
    """GB/s of all NIC to GPU pairs of some classes."""
    return {pair["gbs"] for pair in shown["pairs"] if pair["source"] in shown["nics"] and pair["path"] in paths}


def picks(shown: View) -> str:
    return " ".join(str(shown["nics"].index(shown["preferred"][gpu])) for gpu in shown["gpus"])


BY_SWITCH = "0 1 2 3 4 5 6 7"
BY_NODE = "0 2 1 3 4 6 5 7"
BY_NOTHING = "0 4 2 6 1 5 3 7"


def _number(function: PciFunction) -> int:
    """Of a GPU among GPUs, of a NIC among NICs."""
    same = [f["bdf"] for f in endpoints() if f["role"] == function["role"]]
    return same.index(function["bdf"])


def test_bare_metal() -> None:
    shown = look(bare_metal())
    assert gpu_to_nic(shown) == {("PIX", 48.0): 16, ("PXN", 48.0): 48}
    assert class_counts(shown) == {"gpu_gpu": {"NVL": 28}, "gpu_nic": {"PIX": 16, "PXN": 48}, "direct": 64}
    assert picks(shown) == BY_SWITCH


def test_stub_uplinks_change_only_what_comes_from_far_nics() -> None:
    true, stub = look(bare_metal()), look(mirrored())
    assert gpu_to_nic(stub) == gpu_to_nic(true)
    assert class_counts(stub) == class_counts(true)
    assert picks(stub) == BY_SWITCH
    assert speeds(true, "PIX") == speeds(stub, "PIX") == {48.0}
    assert speeds(true, "PHB", "SYS") == {48.0, 40.0}
    assert speeds(stub, "PHB", "SYS") == {0.1875}


def test_flat_with_right_nodes() -> None:
    shown = look(flat())
    assert gpu_to_nic(shown) == {("PHB", 48.0): 32, ("SYS", 40.0): 32}
    assert class_counts(shown)["direct"] == 0
    assert picks(shown) == BY_NODE


def test_flat_with_qemus_default_root_ports() -> None:
    shown = look(flat(root_port=Link(max_gtps=16.0, max_width=32)))
    assert gpu_to_nic(shown) == {("PHB", 24.0): 32, ("SYS", 24.0): 32}
    assert class_counts(shown)["direct"] == 0


def test_flat_without_nodes() -> None:
    shown = look(flat(nodes=False))
    assert gpu_to_nic(shown) == {("PHB", 48.0): 64}
    assert class_counts(shown)["direct"] == 0
    assert picks(shown) == BY_NOTHING
    assert set(shown["nodes"].values()) == {-1}


def test_the_file_makes_the_mirrored_guest_equal_in_everything() -> None:
    true, told = look(bare_metal()), look(mirrored(), nccl_file())
    names = dict(zip((*true["gpus"], *true["nics"]), (*told["gpus"], *told["nics"]), strict=True))
    assert [{**pair, "source": names[pair["source"]], "target": names[pair["target"]]} for pair in true["pairs"]] == (
        told["pairs"]
    )
    assert {names[gpu]: names[nic] for gpu, nic in true["preferred"].items()} == told["preferred"]
    assert {names[bdf]: node for bdf, node in true["nodes"].items()} == told["nodes"]


def test_without_gpudirect_everything_leads_over_the_cpu() -> None:
    true, stub = look(bare_metal(), gdr=False), look(mirrored(), gdr=False)
    assert gpu_to_nic(true) == {("PHB", 48.0): 32, ("SYS", 40.0): 32}
    assert gpu_to_nic(stub) == {("PHB", 0.1875): 32, ("SYS", 0.1875): 32}
    assert class_counts(true)["direct"] == 0


def test_one_switch_for_each_gpu_and_nic() -> None:
    shown = look(switches(lambda function: (_number(function),)))
    assert gpu_to_nic(shown) == {("PIX", 48.0): 8, ("PXN", 48.0): 56}
    assert class_counts(shown)["direct"] == 64
    assert picks(shown) == BY_SWITCH


def test_one_switch_for_each_node() -> None:
    shown = look(switches(lambda function: (function["numa_node"],)))
    assert gpu_to_nic(shown) == {("PIX", 48.0): 32, ("PXN", 48.0): 32}
    assert class_counts(shown)["direct"] == 64
    assert picks(shown) == BY_NODE


def test_two_levels_of_stubs() -> None:
    """All near pairs cross two lower uplinks.

    An uplink at a downstream port has the width of neither, which reads as 16: 3 GB/s. Where both ends told one lane it
    would be 0.19.
    """
    shown = look(lonely())
    assert gpu_to_nic(shown) == {("PXB", 3.0): 16, ("PXN", 3.0): 48}
    assert class_counts(shown)["direct"] == 64


# Ids of an upper and a lower switch -> class of near pairs.
BROADCOM = {
    "gen 4": (("1000", "c010", "1000:a096"), ("1000", "c010", "1000:a096"), "PIX"),
    "gen 5": (("1000", "c030", "1000:0072"), ("1000", "c030", "1000:1003"), "PIX"),
    "gen 5, lower one with ids of an upper": (("1000", "c030", "1000:0072"), ("1000", "c030", "1000:0072"), "PXB"),
    "gen 4 with another subsystem": (("1000", "c010", "1000:0096"), ("1000", "c010", "1000:0096"), "PXB"),
    "emulated": (("104c", "8232", None), ("104c", "8232", None), "PXB"),
}


def named(topology: Topology, upper: tuple[str, str, str | None], lower: tuple[str, str, str | None]) -> Topology:
    """The topology with the ids of its switches set."""
    made = deepcopy(topology)
    functions = {function["bdf"]: function for function in made["pci"]}
    for function in made["pci"]:
        if function["kind"] == "upstream_port":
            above = functions[function["parent"] or ""]
            ids = upper if above["kind"] == "root_port" else lower
            function["vendor"], function["device"], function["subsystem"] = ids
    return made


@pytest.mark.parametrize("kind", BROADCOM)
def test_two_levels_of_a_broadcom_switch_are_one(kind: str) -> None:
    upper, lower, path = BROADCOM[kind]
    shown = look(named(lonely(TRUE_LINK), upper, lower))
    assert gpu_to_nic(shown) == {(path, 48.0): 16, ("PXN", 48.0): 48}
    assert picks(shown) == BY_SWITCH


def test_p2p_without_nvlink() -> None:
    def pairs(shown: View) -> int:
        gpus = shown["gpus"]
        return sum(
            pair["direct"]
            for pair in shown["pairs"]
            if pair["source"] in gpus and pair["target"] in gpus and pair["source"] < pair["target"]
        )

    assert pairs(look(bare_metal(), nvlink=False)) == 4
    assert pairs(look(mirrored(), nvlink=False)) == 4
    assert pairs(look(mirrored(), nccl_file(), nvlink=False)) == 4
    assert pairs(look(flat(), nvlink=False)) == 0
    assert pairs(look(bare_metal(), nvlink=False, driver_p2p=False)) == 0
    assert class_counts(look(bare_metal(), nvlink=False))["gpu_gpu"] == {"PIX": 4, "PHB": 8, "SYS": 16}
    assert class_counts(look(bare_metal(), nvlink=False, driver_p2p=False))["gpu_gpu"] == {"PHB": 12, "SYS": 16}


def test_two_gpus_on_amds_cpus_have_p2p_over_sockets() -> None:
    topology = bare_metal()
    topology["host"]["cpu_vendor"], topology["host"]["cpu_family"] = "AuthenticAMD", 25
    gpus, nics = devices(topology)
    assert all(pair["direct"] for pair in view(topology, [gpus[0], gpus[7]], [], nvlink=False)["pairs"])
    three = view(topology, [gpus[0], gpus[6], gpus[7]], nics, nvlink=False)["pairs"]
    assert sum(pair["direct"] for pair in three if pair["target"] in gpus and pair["source"] in gpus) == 2


@pytest.mark.parametrize(
    "vendor,family,model,gbs",
    [
        ("GenuineIntel", 6, 207, 40.0),  # Emerald Rapids
        ("GenuineIntel", 6, 173, 40.0),  # Granite Rapids
        ("GenuineIntel", 6, 143, 22.0),  # Sapphire Rapids
        ("GenuineIntel", 6, 85, 10.0),  # Skylake
        ("GenuineIntel", 6, 79, 6.0),  # Broadwell
        ("AuthenticAMD", 23, 49, 16.0),  # Rome
        ("AuthenticAMD", 25, 17, 24.0),  # Genoa
        ("AuthenticAMD", 26, 2, 32.0),  # Turin
    ],
)
def test_the_way_between_sockets_is_as_wide_as_the_cpu_says(vendor: str, family: int, model: int, gbs: float) -> None:
    topology = bare_metal()
    it = topology["host"]
    it["cpu_vendor"], it["cpu_family"], it["cpu_model"] = vendor, family, model
    assert speeds(look(topology), "SYS") == {gbs}
    # The file carries the same, whatever CPU the guest shows.
    (vm,) = make_plan([request("a", 8)], topology, [], "full_passthrough", "host")["vms"]
    assert speeds(look(mirrored(), vm["nccl_xml"]), "SYS") == {gbs}


# Defects of a file that NCCL takes without a word.


@pytest.mark.parametrize(
    "written,far",
    [
        ("32.0 GT/s PCIe", {48.0, 40.0}),
        ("32 GT/s", {48.0, 40.0}),
        ("32.0 GT/s", {12.0}),
        ("32GT/s", {12.0}),
        ("64 GT/s", {12.0}),
        ("Gen5", {12.0}),
        (None, {0.1875}),
    ],
)
def test_a_speed_in_other_words_reads_as_8_gts_and_none_as_the_stubs(written: str | None, far: set[float]) -> None:
    attribute = "" if written is None else f'link_speed="{written}"'
    text = nccl_file().replace('link_speed="32.0 GT/s PCIe"', attribute)
    if written is None:
        text = re.sub(r' link_width="\d+"', "", text)
    assert speeds(look(mirrored(), text), "PHB", "SYS") == far


def rewritten(change: Callable[[str], str]) -> str:
    """The file with other bus ids."""
    return re.sub(r'busid="([^"]*)"', lambda found: f'busid="{change(found.group(1))}"', nccl_file())


@pytest.mark.parametrize(
    "change",
    [lambda bus_id: f"0000{bus_id}", lambda bus_id: bus_id.replace(":00.0", ":1f.0")],
    ids=["eight digits", "stale"],
)
def test_bus_ids_of_no_function_do_nothing(change: Callable[[str], str]) -> None:
    assert look(mirrored(), rewritten(change)) == look(mirrored())


def test_an_upper_case_bus_id_does_nothing() -> None:
    """Of the four switches the last has a letter in its address."""
    assert re.findall(r"0000:.[a-f]|0000:[a-f].", nccl_file()) == ["0000:c7"]
    shown, (gpus, nics) = look(mirrored(), rewritten(str.upper)), devices(mirrored())
    wide = {(p["source"], p["target"]) for p in shown["pairs"] if p["source"] in nics and (p["gbs"] or 0) >= 40.0}
    last = {*gpus[6:], *nics[6:]}
    assert wide == {(nic, gpu) for nic in nics for gpu in gpus if (nic in last) == (gpu in last)}


def test_a_stale_entry_is_dropped() -> None:
    extra = '    <pci busid="0000:fe:00.0" class="0x060400" link_speed="32.0 GT/s PCIe" link_width="16"/>\n  </cpu>'
    assert look(mirrored(), nccl_file().replace("  </cpu>", extra)) == look(mirrored(), nccl_file())


def leaves(topology: Topology, attributes: str = 'link_speed="32.0 GT/s PCIe" link_width="16"') -> str:
    """A file for a flat guest."""
    lines = ['<system version="1">']
    nodes = {function["bdf"]: function["numa_node"] for function in bare_metal()["pci"]}
    order = [function["bdf"] for function in endpoints()]
    places = [function for function in topology["pci"] if function["role"] in ("gpu", "nic")]
    for node in (0, 1):
        lines.append(f'<cpu numaid="{node}">')
        for bdf, function in zip(order, places, strict=True):
            if nodes[bdf] == node:
                lines.append(f'<pci busid="{function["bdf"]}" class="0x{function["class"]}" {attributes}/>')
        lines.append("</cpu>")
    return "\n".join([*lines, "</system>"])


QEMU_DEFAULT = Link(max_gtps=16.0, max_width=32)


@pytest.mark.parametrize(
    "attributes,near",
    [
        ('link_speed="32.0 GT/s PCIe" link_width="16"', 48.0),
        ('link_speed="32.0 GT/s PCIe" link_width="0"', 48.0),
        ('link_speed="32.0 GT/s PCIe" link_width="1"', 3.0),
        ('link_width="16"', 24.0),
    ],
)
def test_leaves_of_a_flat_guest(attributes: str, near: float) -> None:
    """They put devices on the nodes that the guest's own tree does not tell, and set their links."""
    topology = flat(nodes=False, root_port=QEMU_DEFAULT)
    shown = look(topology, leaves(topology, attributes))
    assert gpu_to_nic(shown) == {("PHB", near): 32, ("SYS", min(near, 40.0)): 32}
    assert picks(shown) == BY_NODE


def test_a_nic_missing_in_the_file_of_a_flat_guest_is_far_from_all() -> None:
    topology = flat(nodes=False)
    _gpus, nics = devices(topology)
    text = "\n".join(line for line in leaves(topology).splitlines() if nics[0] not in line)
    shown = look(topology, text)
    assert shown["nodes"][nics[0]] == -1
    assert {pair["path"] for pair in shown["pairs"] if pair["target"] == nics[0]} == {"SYS"}


def test_numbers_of_gpus_in_the_file_scramble_the_picks() -> None:
    topology = flat()
    gpus, nics = devices(topology)
    text = leaves(topology)
    for number, gpu in enumerate(reversed(gpus)):
        text = re.sub(f'(<pci busid="{gpu}".*)/>', rf'\1><gpu dev="{number}"/></pci>', text)
    true, told = look(topology)["preferred"], look(topology, text)["preferred"]
    assert [nics.index(true[gpu]) for gpu in gpus] == [0, 2, 1, 3, 4, 6, 5, 7]
    assert [nics.index(told[gpu]) for gpu in gpus] == [3, 1, 2, 0, 7, 5, 6, 4]


def test_a_network_without_gpudirect_in_the_file_loses_it() -> None:
    topology = mirrored()
    _gpus, nics = devices(topology)
    net = f'<pci busid="{nics[0]}"><nic><net name="n" gdr="0"/></nic></pci>'
    text = re.sub(r"(<pci [^>]*)/>", rf"\1>{net}</pci>", nccl_file(), count=1)
    shown = look(topology, text)
    assert class_counts(shown)["direct"] == 56
    assert not any(pair["direct"] for pair in shown["pairs"] if pair["target"] == nics[0])


def test_an_invented_switch_without_class_is_refused() -> None:
    topology = mirrored()
    (first, *_rest), _nics = devices(topology)
    text = f'<system version="1"><cpu numaid="0"><pci busid="ffff:ff:01.0"><pci busid="{first}"/></pci></cpu></system>'
    with pytest.raises(TopovirtError, match=r"ffff:ff:01\.0 no class"):
        look(topology, text)


@pytest.mark.parametrize("text", ["<system>", '<system version="2"/>', "<system/>", '<cpu version="1"/>'])
def test_what_is_no_topology_file_is_refused(text: str) -> None:
    with pytest.raises(TopovirtError, match="The NCCL file"):
        look(mirrored(), text)
