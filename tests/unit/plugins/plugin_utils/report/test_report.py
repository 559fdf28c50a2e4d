# Copyright: the topovirt.kvm authors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""The picture shows every device once, in the colour of its owner; the page tells equal from different."""

from __future__ import annotations

import re
import xml.etree.ElementTree as ET

import pytest
from ansible.errors import AnsibleFilterError
from ansible_collections.topovirt.kvm.plugins.filter.host_report import host_report
from ansible_collections.topovirt.kvm.plugins.plugin_utils._report.html import report
from ansible_collections.topovirt.kvm.plugins.plugin_utils._report.owners import Owners, gib
from ansible_collections.topovirt.kvm.plugins.plugin_utils._report.svg import draw_host

from . import hosts

LEFT, RIGHT = ["0000:23:00.0", "0000:24:00.0", "0000:25:00.0"], ["0000:93:00.0", "0000:94:00.0", "0000:95:00.0"]
TENANTS = [hosts.vm("a", LEFT, 0, 1), hosts.vm("b", RIGHT, 1, 2)]


def titled(svg: ET.Element, start: str) -> list[ET.Element]:
    """The drawn groups whose title starts so."""
    return [group for group in svg.iter("g") if (group.findtext("title") or "").startswith(start)]


def rectangle(group: ET.Element) -> tuple[float, float, float, float]:
    rect = group.find("rect")
    assert rect is not None
    return (float(rect.attrib["x"]), float(rect.attrib["y"]), float(rect.attrib["width"]), float(rect.attrib["height"]))


def test_every_device_is_drawn_once_and_no_two_overlap() -> None:
    topology = hosts.host()
    svg = draw_host(topology, TENANTS)
    cards = titled(svg, "GPU ") + titled(svg, "NIC ") + titled(svg, "NVSwitch ")
    assert len(cards) == len([f for f in topology["pci"] if f["role"]]) == 9
    places = [rectangle(card) for card in cards]
    for number, (x, y, width, height) in enumerate(places):
        for other_x, other_y, other_width, other_height in places[number + 1 :]:
            apart = (
                x + width <= other_x
                or other_x + other_width <= x
                or y + height <= other_y
                or other_y + other_height <= y
            )
            assert apart


def test_the_drawing_stays_within_its_view() -> None:
    svg = draw_host(hosts.host(), TENANTS)
    _left, _top, width, height = map(float, svg.attrib["viewBox"].split())
    for rect in svg.iter("rect"):
        assert float(rect.attrib.get("x", 0)) + float(rect.attrib["width"]) <= width
        assert float(rect.attrib.get("y", 0)) + float(rect.attrib["height"]) <= height


def test_a_device_has_the_colour_of_the_vm_that_owns_it() -> None:
    svg, owners = draw_host(hosts.host(), TENANTS), Owners(TENANTS)
    for name, bdfs in (("a", LEFT), ("b", RIGHT)):
        for bdf in bdfs:
            (card,) = [group for role in ("GPU", "NIC") for group in titled(svg, f"{role} {bdf} ")]
            rect = card.find("rect")
            assert rect is not None and rect.attrib["fill"] == owners.vms[name].fill
    assert owners.vms["a"].fill != owners.vms["b"].fill


def test_cpus_are_coloured_by_the_vm_that_they_are_pinned_to() -> None:
    svg = draw_host(hosts.host(), TENANTS)
    told = {title.text for title in svg.iter("title") if (title.text or "").startswith("CPU ")}
    assert {"CPU 2: a", "CPU 3: a", "CPU 6: b", "CPU 7: b", "CPU 0: in no VM"} <= told
    assert len(told) == 8


def test_what_the_host_uses_is_never_called_free() -> None:
    (card,) = titled(draw_host(hosts.host(), []), "NIC 0000:00:03.0")
    assert "carries the default route" in (card.findtext("title") or "")
    assert "owner: used by the host" in (card.findtext("title") or "")


def test_nvswitches_are_the_hosts_while_vms_use_partitions() -> None:
    switches = [f for f in hosts.host()["pci"] if f["role"] == "nvswitch"]
    assert {Owners(TENANTS).of_device(f).kind for f in switches} == {"host"}
    assert {Owners([hosts.vm("a", LEFT, 0, None)]).of_device(f).kind for f in switches} == {"free"}


def test_devices_that_one_iommu_group_holds_together_say_so() -> None:
    labels = [text.text for text in draw_host(hosts.host(), []).iter("text")]
    assert labels.count("IOMMU group 7: one unit") == 1


def test_a_vm_with_a_partition_is_named_below_its_modules() -> None:
    labels = [text.text for text in draw_host(hosts.host(), TENANTS).iter("text")]
    assert "a: NVLink partition 1" in labels and "b: NVLink partition 2" in labels


def test_partitions_that_interleave_have_their_own_lines() -> None:
    """Modules of both VMs alternate on the baseboard."""
    topology = hosts.host()
    gpus = [function for function in topology["pci"] if function["role"] == "gpu"]
    for function, module in zip(gpus, (1, 3, 2, 4), strict=True):
        function["module_id"] = module
    by_node = [[gpu["bdf"] for gpu in gpus if gpu["numa_node"] == node] for node in (0, 1)]
    svg = draw_host(topology, [hosts.vm("a", by_node[0], 0, 1), hosts.vm("b", by_node[1], 1, 2)])
    heights = {text.text: text.attrib["y"] for text in svg.iter("text") if "NVLink partition" in (text.text or "")}
    assert len(set(heights.values())) == len(heights) == 2


def test_equal_cells_show_the_class_and_different_ones_both() -> None:
    same = [["LOC", "PIX"], ["PIX", "LOC"]]
    other = [["LOC", "PHB"], ["PHB", "LOC"]]
    good = {"vm": "a", "comparison": hosts.comparison(LEFT[:2], same, same)}
    bad = {"vm": "b", "comparison": hosts.comparison(RIGHT[:2], same, other)}
    page = report(hosts.host(), TENANTS, [good, bad], "h")  # type: ignore[list-item]
    assert page.count("PIX → PHB") == 2
    assert page.count('class="same"') == 2 and page.count('class="other"') == 2
    assert "as on the host" in page and "differs" in page


def test_figures_and_causes_are_told() -> None:
    bad = hosts.comparison(LEFT[:2], [["LOC", "PIX"], ["PIX", "LOC"]], [["LOC", "PHB"], ["PHB", "LOC"]])
    bad["fidelity"]["paths"]["equal"] = 0
    bad["causes"] = [{"cause": "there is no switch", "pairs": 1, "devices": LEFT[:2]}]
    page = report(hosts.host(), TENANTS, [{"vm": "a", "comparison": bad}], "h")
    assert "paths: 0 of 1 pairs equal (0 %)" in page and "there is no switch" in page


def test_a_vm_that_was_not_compared_is_not_called_equal() -> None:
    page = report(hosts.host(), TENANTS, [], "h")
    assert page.count("not compared") == 2 and "as on the host" not in page


def test_text_of_the_host_cannot_become_markup() -> None:
    page = report(hosts.host(), [], [], "<b>h</b>", ["1 < 2"])
    assert "<quiet>" not in page and "ro &lt;quiet&gt;" in page
    assert "<b>h</b>" not in page and "1 &lt; 2" in page


def test_the_page_needs_nothing_else() -> None:
    page = report(hosts.host(), TENANTS, [], "h").replace("http://www.w3.org/2000/svg", "")
    assert not re.search(r"https?://|<script|<link|src=|@import", page)


@pytest.mark.parametrize(
    ("count", "text"), [(4 << 30, "4 GiB"), (3 << 29, "1.5 GiB"), (1 << 40, "1 TiB"), (300 << 20, "300 MiB")]
)
def test_sizes_are_readable(count: int, text: str) -> None:
    assert gib(count) == text


def test_input_of_another_shape_is_refused_in_words() -> None:
    with pytest.raises(AnsibleFilterError, match="shape of a topology"):
        host_report({"pci": []})


def test_what_the_host_uses_is_drawn_even_without_a_role() -> None:
    topology = hosts.host()
    topology["pci"][0]["role"], topology["pci"][0]["class"] = None, "020000"
    assert len(titled(draw_host(topology, []), "Network 0000:00:03.0")) == 1
    assert "Network 00:03.0" in report(topology, [], [], "h")


def test_the_comparison_of_a_vm_that_is_gone_is_left_out() -> None:
    same = [["LOC"]]
    old = {"vm": "gone", "comparison": hosts.comparison(LEFT[:1], same, same)}
    assert "gone" not in report(hosts.host(), TENANTS, [old], "h")  # type: ignore[list-item]
