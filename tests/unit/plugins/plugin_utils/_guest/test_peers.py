# Copyright: the topovirt.kvm authors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Who may be told to be a PCIe peer of whom: the host's switches decide."""

from __future__ import annotations

import xml.etree.ElementTree as ET
from typing import Any

import pytest
from ansible_collections.topovirt.kvm.plugins.module_utils._errors import TopovirtError
from ansible_collections.topovirt.kvm.plugins.module_utils._topology.model import PciFunction, Topology
from ansible_collections.topovirt.kvm.plugins.plugin_utils._guest.peers import cliques
from ansible_collections.topovirt.kvm.plugins.plugin_utils._placement.plan import make_plan
from ansible_collections.topovirt.kvm.tests.unit.plugins.plugin_utils._guest.test_pcie_tree import leaf, machine
from ansible_collections.topovirt.kvm.tests.unit.plugins.plugin_utils.hosts import host, request

QEMU = "{http://libvirt.org/schemas/domain/qemu/1.0}"
# Bits of the ACS control register as lspci names them.
SRC_VALID, REQ_REDIR, CMPLT_REDIR, UPSTREAM_FWD, EGRESS_CTRL, DIRECT_TRANS = 0x01, 0x04, 0x08, 0x10, 0x20, 0x40


def with_acs(topology: Topology, enabled: int, ats: bool = False) -> Topology:
    for function in topology["pci"]:
        if function["kind"] == "downstream_port":
            function["capabilities"] = {"acs": {"supported": 0x7F, "enabled": enabled}}
        elif function["role"] == "gpu":
            function["capabilities"] = {"ats": {"enabled": ats}}
    return topology


def of(topology: Topology) -> tuple[list[str], dict[str, PciFunction]]:
    return [f["bdf"] for f in topology["pci"] if f["role"] == "gpu"], {f["bdf"]: f for f in topology["pci"]}


def two_levels() -> Topology:
    bridges: list[dict[str, Any]] = [
        {"bus": 0x20, "node": 0, "ports": [{"switch": [leaf(2, 1), leaf(1, 1)]}, leaf(1, 1)]},
        {"bus": 0x90, "node": 1, "ports": [{"switch": [leaf(2, 0), {"endpoint": "nic"}]}]},
    ]
    return machine(bridges)


@pytest.mark.parametrize("enabled", [0, SRC_VALID | UPSTREAM_FWD])
def test_gpus_below_one_switch_are_a_clique(enabled: int) -> None:
    gpus, functions = of(with_acs(host(), enabled))
    found = cliques("vm", gpus, functions)
    assert found == {gpu: number // 2 for number, gpu in enumerate(gpus)}


def test_ports_without_acs_pass_everything() -> None:
    gpus, functions = of(host())
    assert all(functions[bdf]["capabilities"] == {} for bdf in functions)
    assert len(set(cliques("vm", gpus, functions).values())) == 4


def test_a_clique_reaches_over_two_levels_and_leaves_lone_gpus_out() -> None:
    gpus, functions = of(with_acs(two_levels(), 0))
    assert len(gpus) == 6
    assert cliques("vm", gpus, functions) == {gpus[0]: 0, gpus[1]: 0, gpus[2]: 0, gpus[4]: 1, gpus[5]: 1}


@pytest.mark.parametrize(
    "enabled,ats,reason",
    [
        (REQ_REDIR | CMPLT_REDIR | UPSTREAM_FWD, False, "redirects"),
        (REQ_REDIR, False, "redirects"),
        (CMPLT_REDIR, False, "redirects"),
        (REQ_REDIR | DIRECT_TRANS, False, "redirects"),
        (REQ_REDIR, True, "redirects"),
        (REQ_REDIR | DIRECT_TRANS, True, None),
        (EGRESS_CTRL, False, "controls egress"),
    ],
)
def test_acs_decides(enabled: int, ats: bool, reason: str | None) -> None:
    gpus, functions = of(with_acs(host(), enabled, ats))
    if reason is None:
        assert len(cliques("vm", gpus[:2], functions)) == 2
        return
    with pytest.raises(TopovirtError, match=reason) as refusal:
        cliques("train-0", gpus[:2], functions)
    ports = [functions[gpu]["parent"] or "" for gpu in gpus[:2]]
    assert "VM train-0" in refusal.value.message
    assert all(port in refusal.value.message for port in ports)


def test_every_port_between_counts() -> None:
    gpus, functions = of(with_acs(two_levels(), 0))
    leaf_port = functions[gpus[0]]["parent"] or ""
    above_leaf = functions[functions[leaf_port]["parent"] or ""]["parent"] or ""
    functions[above_leaf]["capabilities"] = {"acs": {"supported": 0x7F, "enabled": REQ_REDIR}}
    assert len(cliques("vm", gpus[:2], functions)) == 2  # they meet below it
    with pytest.raises(TopovirtError, match=above_leaf):
        cliques("vm", [gpus[0], gpus[2]], functions)


def test_what_is_unknown_is_refused() -> None:
    gpus, functions = of(host())
    functions[functions[gpus[0]]["parent"] or ""]["capabilities"] = None
    with pytest.raises(TopovirtError, match="ACS is unknown"):
        cliques("vm", gpus[:2], functions)


def test_without_peers_the_wish_is_refused() -> None:
    gpus, functions = of(host())
    for chosen in (gpus[:1], [gpus[0], gpus[2]]):
        with pytest.raises(TopovirtError, match="no two of its NVIDIA GPUs lie below one switch"):
            cliques("vm", chosen, functions)


def test_only_gpus_carry_the_clique_and_only_when_asked() -> None:
    def overridden(**more: Any) -> dict[str, list[tuple[str | None, ...]]]:
        (vm,) = make_plan([request("a", 8, **more)], host(), [], "full_passthrough", "host")["vms"]
        return {
            device.get("alias", ""): [
                (item.get("name"), item.get("type"), item.get("value")) for item in device.iter(f"{QEMU}property")
            ]
            for device in ET.fromstring(vm["domain_xml"]).iter(f"{QEMU}device")
        }

    gpus, _functions = of(host())
    aliases = ["ua-" + gpu.replace(":", "-").replace(".", "-") for gpu in gpus]
    assert overridden() == {}
    assert overridden(gpu_p2p=False) == {}
    assert overridden(gpu_p2p=True) == {
        alias: [("x-nv-gpudirect-clique", "unsigned", str(number // 2))] for number, alias in enumerate(aliases)
    }
