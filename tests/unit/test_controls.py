# Copyright: the topovirt.kvm authors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""The negative controls break exactly one thing, and only the right objection counts as flagged."""

from __future__ import annotations

from xml.etree import ElementTree as ET

import pytest

from tests.demo import controls

GPUS = {"0000:11:00.0", "0000:12:00.0", "0000:21:00.0", "0000:22:00.0"}
NICS = {"0000:13:00.0", "0000:23:00.0"}


def right() -> str:
    """Two host bridges on nodes 0 and 1, each with a switch with two GPUs and one NIC."""
    parts = []
    index = 1
    for switch, node in ((1, 0), (2, 1)):
        bridge = index
        parts.append(
            f'<controller type="pci" index="{bridge}" model="pcie-expander-bus"><target busNr="{switch * 32}">'
            f'<node>{node}</node></target><address bus="0x00" slot="{3 + switch:#x}" function="0x0"/></controller>'
        )
        chain = [("pcie-root-port", bridge, 0), ("pcie-switch-upstream-port", bridge + 1, 0)]
        chain += [("pcie-switch-downstream-port", bridge + 2, slot) for slot in range(3)]
        for offset, (model, parent, slot) in enumerate(chain, start=1):
            parts.append(
                f'<controller type="pci" index="{bridge + offset}" model="{model}">'
                f'<address bus="{parent:#04x}" slot="{slot:#x}" function="0x0"/></controller>'
            )
        parts += [
            '<hostdev><source><address domain="0x0000" '
            f'bus="0x{switch}{device + 1}" slot="0x00" function="0x0"/></source>'
            f'<alias name="ua-{switch}-{device}"/><address bus="{bridge + 3 + device:#04x}" slot="0x00"/></hostdev>'
            for device in range(3)
        ]
        index = bridge + 6
    override = "".join(f'<q:device alias="ua-{s}-{d}"/>' for s in (1, 2) for d in range(3))
    return (
        f'<domain xmlns:q="{controls.QEMU.strip("{}")}"><name>right</name><uuid>u</uuid>'
        f"<devices>{''.join(parts)}</devices><q:override>{override}</q:override></domain>"
    )


def places(xml: str) -> dict[str, str]:
    """Host BDF -> index of the port in the guest."""
    found = {}
    for hostdev in ET.fromstring(xml).iterfind("devices/hostdev"):
        found[controls.source_bdf(hostdev)] = controls.address(hostdev).attrib["bus"]
    return found


def test_one_gpu_and_one_nic_of_every_switch_stay() -> None:
    tree = controls.reduced(right(), "new", GPUS, NICS)
    assert sorted(controls.source_bdf(device) for device in tree.hostdevs()) == [
        "0000:11:00.0", "0000:13:00.0", "0000:21:00.0", "0000:23:00.0",
    ]  # fmt: skip
    assert tree.root.findtext("name") == "new" and tree.root.find("uuid") is None
    override = tree.root.find(f"{controls.QEMU}override")
    assert override is not None and len(override) == 4


@pytest.mark.parametrize("control", controls.CONTROLS, ids=lambda control: control.name)
def test_each_control_moves_only_what_it_names(control: controls.Control) -> None:
    before = places(ET.tostring(controls.reduced(right(), "x", GPUS, NICS).root, encoding="unicode"))
    xml, broken = controls.definition(control, right(), GPUS, NICS)
    after = places(xml)
    assert set(after) == set(before)
    moved = sorted(bdf for bdf in before if before[bdf] != after[bdf])
    nodes = [node.text for node in ET.fromstring(xml).iterfind("devices/controller/target/node")]
    if control.nodes:
        assert not moved and nodes == ["1", "1"] and broken == ["0000:11:00.0", "0000:13:00.0"]
    else:
        assert moved == broken and nodes == ["0", "1"]


def result(pairs: list[tuple[str, str]], nodes: list[str]) -> dict[str, object]:
    return {
        "equal": not pairs and not nodes,
        "path_differences": [{"a": a, "b": b} for a, b in pairs],
        "node_differences": [{"bdf": bdf} for bdf in nodes],
    }


def test_only_the_right_objection_counts() -> None:
    swap, _port, node = controls.CONTROLS
    broken = ["a", "b"]
    assert controls.objection(swap, broken, result([("a", "c"), ("b", "d")], [])) == ""
    assert "equal" in controls.objection(swap, broken, result([], []))
    assert "stays unnamed" in controls.objection(swap, broken, result([("a", "c")], []))
    assert "without a misplaced device" in controls.objection(
        swap, broken, result([("a", "c"), ("b", "c"), ("c", "d")], [])
    )
    assert "NUMA" in controls.objection(swap, broken, result([("a", "c"), ("b", "d")], ["a"]))
    assert controls.objection(node, broken, result([("a", "c"), ("b", "d")], ["a", "b"])) == ""
    assert "NUMA" in controls.objection(node, broken, result([("a", "c"), ("b", "d")], []))
