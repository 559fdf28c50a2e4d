# Copyright: the topovirt.kvm authors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""libvirt judges what is defined, for every machine, model, size and firmware; and it does see faults."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest
from lxml import etree

from tests.fidelity import cases, checked_copy, libvirt_judges, validate
from tests.fidelity.cases import Case
from tests.twin import description
from tests.twin.images import bake
from tests.twin.lifecycle import cache_directory

# What the planner refuses, and why; everything else is planned and valid.
REFUSED = {
    Case("dgx-2", model, 1, firmware): "share IOMMU group"  # the emulated switches have no ACS
    for model in ("full_passthrough", "none")
    for firmware in cases.BOOTS
}
SAMPLE = Case("hgx-h200", "full_passthrough", 8, "uefi")


@pytest.fixture(scope="module")
def libvirt() -> Path:
    return bake.ensure_libvirt(cache_directory(), print)


@pytest.fixture(scope="module")
def verdicts(libvirt: Path) -> list[validate.Verdict]:
    return validate.judge(libvirt, cases.cases())


def test_every_plan_is_valid_and_translates(verdicts: list[validate.Verdict]) -> None:
    assert {str(v.case): (v.schema, v.native) for v in verdicts if v.schema or v.native} == {}


def test_only_what_is_known_is_refused(verdicts: list[validate.Verdict]) -> None:
    refused = {verdict.case: verdict.refused for verdict in verdicts if verdict.refused}
    assert refused.keys() == REFUSED.keys()
    for case, why in REFUSED.items():
        assert why in refused[case]


def test_every_machine_is_judged_at_full_size(verdicts: list[validate.Verdict]) -> None:
    gpus = {
        name: sum(getattr(device, "name", "").startswith("gpu") for device in description.load(name).devices())
        for name in description.names()
    }
    largest: dict[str, int] = {}
    for verdict in verdicts:
        if verdict.good:
            largest[verdict.case.machine] = max(largest.get(verdict.case.machine, 0), verdict.case.gpus)
    assert largest == gpus


def test_the_table_names_each_size_and_each_fault(verdicts: list[validate.Verdict]) -> None:
    good = next(verdict for verdict in verdicts if verdict.case == SAMPLE)
    bad = validate.Verdict(good.case, "", 20, 176, ["line 1: no"], "it will not")
    assert "hgx-h200       full_passthrough     8      20   184  uefi ok/ok" in validate.table([good])
    assert "FAULT/FAULT" in validate.table([bad])
    assert f"{SAMPLE}: line 1: no; it will not" in validate.table([bad])


def sample() -> tuple[str, int]:
    vm = cases.plan(SAMPLE)
    return vm["domain_xml"], vm["layout"]["mmio"]["phys_bits"]


def broken(xml: str, break_it: Callable[[etree._Element], None]) -> str:
    domain = etree.fromstring(xml)
    break_it(domain)
    return etree.tostring(domain, encoding="unicode")


def misspell(domain: etree._Element) -> None:
    next(domain.iter("vcpu")).tag = "vcpus"


def test_the_schema_sees_a_wrong_element(libvirt: Path) -> None:
    schema = libvirt_judges.Schema(libvirt)
    xml, _bits = sample()
    assert schema.faults(xml) == []
    assert schema.faults(broken(xml, misspell)) != []


def two_in_one_slot(domain: etree._Element) -> None:
    first, second = domain.findall("devices/hostdev")[:2]
    source, target = first.find("address"), second.find("address")
    assert source is not None and target is not None
    target.attrib.update(source.attrib)


def switch_on_an_expander(domain: etree._Element) -> None:
    upstream = domain.find("devices/controller[@model='pcie-switch-upstream-port']/address")
    assert upstream is not None
    upstream.set("bus", "0x01")
    upstream.set("slot", "0x01")


def bus_number_too_high(domain: etree._Element) -> None:
    target = domain.find("devices/controller[@model='pcie-expander-bus']/target")
    assert target is not None
    target.set("busNr", "300")


def test_the_translation_sees_what_the_schema_does_not(libvirt: Path) -> None:
    xml, bits = sample()
    copy = checked_copy.without_host(xml, bits)
    changed = [broken(copy, break_it) for break_it in (two_in_one_slot, switch_on_an_expander, bus_number_too_high)]
    whole, *refused = libvirt_judges.translate(libvirt, [copy, *changed])
    assert whole.error == ""
    assert len([device for device in validate.devices(whole.argv) if device["driver"] == "vfio-pci"]) == 20
    assert [translation.argv for translation in refused] == [[], [], []]
    assert "double use" in refused[0].error
    assert "pcie-switch-upstream-port" in refused[1].error
    assert "busNr" in refused[2].error


def test_a_translation_that_loses_a_device_is_a_fault() -> None:
    layout = {"pcie": [{"model": "pcie-root-port"}], "devices": [{}, {}]}
    argv = ["-device", '{"driver":"pcie-root-port"}', "-device", '{"driver":"vfio-pci"}']
    fault = validate.native_fault(layout, libvirt_judges.Translation(argv, ""))
    assert fault == "translated to 1 vfio-pci of 2"
