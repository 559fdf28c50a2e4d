# Copyright: the topovirt.kvm authors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""What check mode predicts of a conversion and of its way back is what the run reports, the journal holds and an
observer sees: on servers made of files, of both families."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest
from ansible_collections.topovirt.kvm.tests.unit.plugins.module_utils._host.fake_host import IGB, SWITCH0, FakeHost
from ansible_collections.topovirt.kvm.tests.unit.plugins.module_utils._host.fake_red_hat import FakeRedHat
from ansible_collections.topovirt.kvm.tests.unit.plugins.module_utils._host.test_pcie_acs import WANTED_ON, AcsHost

from tests.truth.evidence import Evidence
from tests.truth.things import Driver, Observed, Thing, VirtualFunctions, things
from tests.unit.truth.looking import observe
from tests.unit.truth.watched import conversion, plain_installation, way_back

KINDS = (FakeHost, FakeRedHat)


@pytest.fixture(params=KINDS, ids=["debian", "red-hat"])
def host(request: pytest.FixtureRequest, tmp_path: Path) -> FakeHost:
    kind: type[FakeHost] = request.param
    return kind(tmp_path / "host")


@pytest.fixture
def plain(host: FakeHost, tmp_path: Path) -> Observed:
    return plain_installation(type(host), tmp_path / "plain")


@pytest.fixture
def true(record_property: Callable[[str, object], None]) -> Callable[[Evidence, int], None]:
    """Demands that nothing is untrue, of at least so many changes, and says how many there were."""

    def demand(evidence: Evidence, least: int) -> None:
        found = evidence.verdict()
        print(found.summary)
        record_property("changes", found.changes)
        assert not found.untruths, "\n".join([found.summary, *found.untruths])
        assert found.changes >= least, found.summary

    return demand


Demand = Callable[[Evidence, int], None]


def test_a_conversion_of_an_untouched_host(host: FakeHost, plain: Observed, true: Demand) -> None:
    """Packages, their units and their directories do not exist yet when check mode is asked."""
    evidence = conversion(host, plain=plain)
    true(evidence, 25)
    packages = {change["what"] for change in evidence.predicted if change["kind"] == "package"}
    assert packages == set(host.wanted["packages"])
    assert evidence.verdict().attributed["brought by packages"] >= 10


def test_a_conversion_with_packages_that_are_there(host: FakeHost, true: Demand) -> None:
    """Nothing comes from elsewhere, so nothing may be attributed to packages."""
    host.install(*host.wanted["packages"])
    evidence = conversion(host)
    true(evidence, 20)
    assert set(evidence.verdict().attributed) == {"records of the journal", "directories of predicted files"}


def test_a_conversion_of_a_host_with_a_tuned_of_its_own(host: FakeHost, plain: Observed, true: Demand) -> None:
    host.install("tuned")
    host.write("etc/tuned/active_profile", "my-own\n")
    host.reboot()
    evidence = conversion(host, plain=plain)
    true(evidence, 20)
    assert {c["stage"] for c in evidence.predicted if c["what"] == "etc/tuned/active_profile"} == {"commit"}


def test_a_service_that_was_off(host: FakeHost, true: Demand) -> None:
    host.install(*host.wanted["packages"])
    host.units[host.daemon] = {"enabled": "disabled", "active": False}
    evidence = conversion(host)
    true(evidence, 20)
    assert host.daemon in {change["what"] for change in evidence.predicted}


def test_a_second_run(host: FakeHost, plain: Observed, true: Demand) -> None:
    conversion(host, plain=plain)
    evidence = conversion(host)
    true(evidence, 0)
    assert not evidence.predicted and not evidence.seen.changes and not evidence.journal.new


def test_nvswitches_to_the_host_and_back(host: FakeHost, plain: Observed, true: Demand) -> None:
    conversion(host, plain=plain)
    shared = {**host.wanted, "fabric_model": "shared_nvswitch"}
    for wanted in (shared, host.wanted):
        evidence = conversion(host, wanted)
        true(evidence, 5)
        assert Thing("driver", SWITCH0) in evidence.seen.changes


def test_new_arguments(host: FakeHost, plain: Observed, true: Demand) -> None:
    conversion(host, plain=plain)
    evidence = conversion(host, {**host.wanted, "cmdline": ["mitigations=off"]})
    true(evidence, 4)
    assert "mitigations=off" in evidence.seen.after[Thing("command line", "")]


def test_fewer_pages(host: FakeHost, plain: Observed, true: Demand) -> None:
    conversion(host, plain=plain)
    fewer = {"page_size": "1GiB", "per_node": {"0": 3, "1": 5}}
    evidence = conversion(host, {**host.wanted, "hugepages": fewer})
    true(evidence, 3)
    assert evidence.seen.changes[Thing("huge pages", "of 1048576 KiB on node 0")] == (5, 3)


def test_the_way_back(host: FakeHost, plain: Observed, true: Demand) -> None:
    original = things(observe(host))
    conversion(host, plain=plain)
    conversion(host, {**host.wanted, "fabric_model": "shared_nvswitch"})
    conversion(host, {**host.wanted, "cmdline": ["mitigations=off"]})
    evidence = way_back(host, original, plain)
    true(evidence, 20)
    assert evidence.seen.after == original


def test_the_way_back_with_packages_that_stay(host: FakeHost, true: Demand) -> None:
    host.install(*host.wanted["packages"])
    host.reboot()
    original = things(observe(host))
    conversion(host)
    evidence = way_back(host, original)
    true(evidence, 20)
    assert evidence.seen.after == original
    assert "brought by packages" not in evidence.verdict().attributed


@pytest.fixture
def switched(tmp_path: Path) -> AcsHost:
    return AcsHost(tmp_path / "host")


def test_registers_with_the_boot(switched: AcsHost, tmp_path: Path, true: Demand) -> None:
    plain = plain_installation(AcsHost, tmp_path / "plain")
    original = things(observe(switched))
    evidence = conversion(switched, WANTED_ON, plain)
    true(evidence, 30)
    assert evidence.verdict().attributed["registers that the kernel sets with the IOMMU"] > 0
    back = way_back(switched, original, plain)
    true(back, 25)
    assert back.seen.after == original


def test_registers_at_once(switched: AcsHost, true: Demand) -> None:
    switched.install(*switched.wanted["packages"])
    conversion(switched)
    for wanted in (WANTED_ON, switched.wanted):
        evidence = conversion(switched, wanted)
        true(evidence, 7)
        assert len([thing for thing in evidence.seen.changes if thing.kind == "register"]) == 6
        assert "registers that the kernel sets with the IOMMU" not in evidence.verdict().attributed


def test_virtual_functions_with_the_boot(host: FakeHost, plain: Observed, true: Demand) -> None:
    original = things(observe(host))
    wanted = {**host.wanted, "sriov": {IGB: 2}}
    evidence = conversion(host, wanted, plain)
    true(evidence, 28)
    held = (Driver("vfio-pci", "vfio-pci"),) * 2
    assert evidence.seen.after[Thing("virtual functions", IGB)] == VirtualFunctions(2, False, held)
    back = way_back(host, original, plain)
    true(back, 20)
    assert back.seen.after == original


def test_virtual_functions_at_once(host: FakeHost, true: Demand) -> None:
    host.install(*host.wanted["packages"])
    conversion(host)
    for number in (2, 3, 0):
        evidence = conversion(host, {**host.wanted, "sriov": {IGB: number} if number else {}})
        true(evidence, 2)
        assert evidence.seen.after[Thing("virtual functions", IGB)].number == number


def test_a_file_below_what_packages_brought_in_an_earlier_run(host: FakeHost, plain: Observed, true: Demand) -> None:
    """TuneD came with the first run, so that then no file of its was there; now ours is."""
    conversion(host, plain=plain)
    evidence = conversion(host, {**host.wanted, "reserve_cores_per_node": 2})
    true(evidence, 2)
    assert {c["before"] for c in evidence.predicted if c["step"] == "tuned"} == {"present"}
