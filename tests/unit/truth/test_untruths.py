# Copyright: the topovirt.kvm authors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Untruths planted in the plan of each step: the judge finds every one of them. A new step needs a line in CLAIMS."""

from __future__ import annotations

import functools
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from ansible_collections.topovirt.kvm.plugins.module_utils._errors import TopovirtError
from ansible_collections.topovirt.kvm.plugins.module_utils._host.hugepages import Hugepages
from ansible_collections.topovirt.kvm.plugins.module_utils._host.runner import STEPS, Runner
from ansible_collections.topovirt.kvm.plugins.module_utils._host.step import Change, Step
from ansible_collections.topovirt.kvm.plugins.module_utils._topology.reader import read_topology
from ansible_collections.topovirt.kvm.tests.unit.plugins.module_utils._host.fake_host import (
    GPU0,
    GPU1,
    IGB,
    NIC0,
    NVME0,
    FakeHost,
)
from ansible_collections.topovirt.kvm.tests.unit.plugins.module_utils._host.fake_red_hat import FakeRedHat
from ansible_collections.topovirt.kvm.tests.unit.plugins.module_utils._host.test_pcie_acs import ON, AcsHost

from tests.truth.effects import Change as Said
from tests.truth.evidence import Evidence
from tests.truth.things import Observed, Thing, things
from tests.unit.truth.looking import observe
from tests.unit.truth.watched import conversion, plain_installation, way_back


class NumberedGpus:
    """The driver tells the numbers of GPUs on their board."""

    def runner(self) -> Runner:
        made: Runner = super().runner()  # type: ignore[misc]
        return replace(made, topology=lambda: read_topology(made.root, module_ids={GPU0: 1, GPU1: 2}))


WITH_FUNCTIONS = {"sriov": {IGB: 2}}


class Debian(NumberedGpus, AcsHost):
    wanted = {**FakeHost.wanted, **ON, **WITH_FUNCTIONS}


class RedHat(NumberedGpus, FakeRedHat):
    wanted = {**FakeRedHat.wanted, **WITH_FUNCTIONS}  # the fake's switches have no ACS


KINDS: dict[str, type[FakeHost]] = {"debian": Debian, "red-hat": RedHat}
STEP_NAMES = [kind.name for kind in STEPS]
WHERE = [(family, name) for family in KINDS for name in STEP_NAMES if (family, name) != ("red-hat", "pcie_acs")]
OF_EACH_STEP = pytest.mark.parametrize(("family", "step"), WHERE)


def claim(kind: str, what: str, before: Any, after: Any, *diff: str) -> dict[str, Any]:
    shown = list(diff) or [f"{before}\n", f"{after}\n"]
    return {"kind": kind, "what": what, "before": before, "after": after, "reboot": False, "diff": shown}


def file_claim(what: str) -> dict[str, Any]:
    return claim("file", what, None, "present", "", "never written\n")


# For each step a change that no conversion here makes.
CLAIMS = {
    "packages": claim("package", "never-installed", None, "installed"),
    "module_ids": file_claim("var/lib/topovirt/never.json"),
    "services": claim(
        "unit",
        "never.socket",
        {"enabled": "not-found", "active": False},
        {"enabled": True, "active": True},
    ),
    "tuned": file_claim("etc/tuned/never/tuned.conf"),
    "hugepages": claim("link", "etc/systemd/system/sysinit.target.wants/never.mount", None, {"target": "/never"}),
    "binding": claim("device", IGB, "igb", "vfio-pci"),
    "sriov": claim(
        "virtual_functions",
        NIC0,
        {"number": 0, "autoprobe": True, "functions": []},
        {"number": 1, "autoprobe": False, "functions": [{"driver": "vfio-pci", "override": "vfio-pci"}]},
    ),
    "pcie_acs": claim("register", f"{NVME0} device_control", 0x2000, 0x5000),
    "trial": file_claim("etc/systemd/system/never.service"),
    "boot": claim("initramfs", "boot/topovirt-never.img", None, "0123456789abcdef"),
    "host_file": file_claim("var/lib/topovirt/never-host.json"),
}


@functools.cache
def evidence(family: str, prepared: bool, root: Path) -> Evidence:
    """A conversion in which each step changes something: of an untouched host, or of one that was given the packages
    and has a service that is off."""
    kind = KINDS[family]
    host = kind(root / f"{family}-{prepared}")
    if not prepared:
        return conversion(host, plain=plain_installation(kind, root / f"{family}-plain"))
    host.install(*host.wanted["packages"])
    host.units[host.daemon] = {"enabled": "disabled", "active": False}
    return conversion(host)


def without(one: Evidence, change: Said) -> Evidence:
    """As if neither plan nor report nor journal knew of a change that was made: only the observer does."""
    key = (change["step"], change["kind"], change["what"])
    predicted, reported = (
        [item for item in changes if (item["step"], item["kind"], item["what"]) != key]
        for changes in (one.predicted, one.reported)
    )
    journal = replace(one.journal, before=one.journal.before - {key}, after=one.journal.after - {key})
    return replace(one, predicted=predicted, reported=reported, journal=journal)


def claiming(one: Evidence, change: dict[str, Any]) -> Evidence:
    """As if plan, report and journal all held a change that was never made."""
    key = (change["step"], change["kind"], change["what"])
    back = change["stage"] == "undo"
    journal = (
        replace(one.journal, before=one.journal.before | {key})
        if back
        else replace(one.journal, after=one.journal.after | {key})
    )
    return replace(one, predicted=[*one.predicted, change], reported=[*one.reported, change], journal=journal)


Evidences = Callable[[str], list[Evidence]]


@pytest.fixture(scope="session")
def evidences(tmp_path_factory: pytest.TempPathFactory) -> Evidences:
    root = tmp_path_factory.mktemp("evidence")
    return lambda family: [evidence(family, prepared, root) for prepared in (True, False)]


@pytest.mark.parametrize("family", KINDS)
def test_the_evidence_itself_is_true(evidences: Evidences, family: str) -> None:
    for one in evidences(family):
        assert not one.verdict().untruths, one.verdict().untruths


@OF_EACH_STEP
def test_a_change_that_its_plan_omits(evidences: Evidences, family: str, step: str) -> None:
    """Nor do report and journal hold it: only the observer sees it."""
    planted = 0
    for one in evidences(family):
        for change in (change for change in one.predicted if change["step"] == step):
            if one.plain and change["kind"] == "unit":
                continue  # is what the package alone makes of it, so nobody could see who it was
            planted += 1
            assert without(one, change).verdict().untruths, f"{change['kind']} {change['what']} can be left out"
    assert planted, f"step {step} changes nothing here: give it something to do"


@OF_EACH_STEP
def test_a_change_that_its_plan_claims(evidences: Evidences, family: str, step: str) -> None:
    """Report and journal claim it, too."""
    assert step in CLAIMS, f"step {step} is new: say in CLAIMS what it could claim"
    stage = "packages" if step == "packages" else "apply"
    for one in evidences(family):
        found = claiming(one, {"step": step, "stage": stage, **CLAIMS[step]}).verdict().untruths
        assert [text for text in found if text.startswith(f"predicted by {step}")], found


@OF_EACH_STEP
def test_a_text_that_its_plan_shows_otherwise(evidences: Evidences, family: str, step: str) -> None:
    for one in evidences(family):
        for number, change in enumerate(one.predicted):
            last = all(other["what"] != change["what"] for other in one.predicted[number + 1 :])
            if change["step"] != step or change["kind"] != "file" or not last:
                continue
            other = {**change, "diff": [change["diff"][0], f"{change['diff'][1]}#"]}
            predicted, reported = (
                [other if item == change else item for item in changes] for changes in (one.predicted, one.reported)
            )
            assert replace(one, predicted=predicted, reported=reported).verdict().untruths, change["what"]


# Another state before, by kind of change; of an initramfs and of what is booted once nobody can see what was before.
OTHERWISE: dict[str, Callable[[Any], Any]] = {
    "file": lambda before: None if before else "present",
    "link": lambda before: "/never",
    "unit": lambda before: {"enabled": "masked", "active": before["active"]},
    "device": lambda before: "never",
    "register": lambda before: before ^ 0x7FFF,
    "virtual_functions": lambda before: {**before, "number": 7},
    "default_entry": lambda before: "never",
}


@OF_EACH_STEP
def test_a_state_before_that_its_plan_gets_wrong(evidences: Evidences, family: str, step: str) -> None:
    for one in evidences(family):
        for number, change in enumerate(one.predicted):
            first = all(other["what"] != change["what"] for other in one.predicted[:number])
            if change["step"] != step or change["kind"] not in OTHERWISE or not first:
                continue
            other = {**change, "before": OTHERWISE[change["kind"]](change["before"])}
            predicted, reported = (
                [other if item == change else item for item in changes] for changes in (one.predicted, one.reported)
            )
            assert replace(one, predicted=predicted, reported=reported).verdict().untruths, change["what"]


@pytest.mark.parametrize("family", KINDS)
def test_packages_without_an_interval_in_the_journal(evidences: Evidences, family: str) -> None:
    one = evidences(family)[1]
    journal = replace(one.journal, after=one.journal.after - {("packages", "interval", "1")})
    assert starting(replace(one, journal=journal), "packages were reported, but no interval")


@pytest.mark.parametrize("family", KINDS)
def test_a_unit_that_came_with_a_package_and_was_changed(evidences: Evidences, family: str) -> None:
    one, thing = evidences(family)[1], Thing("unit", "tuned.service")
    seen = Observed(one.seen.before, {**one.seen.after, thing: one.seen.after[thing]._replace(enabled="disabled")})
    assert starting(replace(one, seen=seen), "observed, but not predicted: unit tuned.service")


def test_what_was_begun_and_not_done(evidences: Evidences) -> None:
    one = evidences("debian")[0]
    journal = replace(one.journal, unfinished=("tuned: file etc/x",))
    assert starting(replace(one, journal=journal), "journalled as begun, but not as done: tuned: file etc/x")


@OF_EACH_STEP
def test_lists_that_differ(evidences: Evidences, family: str, step: str) -> None:
    """One of prediction, report and journal omits or claims what the others do not."""
    one = evidences(family)[step == "packages"]
    change = next(change for change in one.predicted if change["step"] == step)
    key = (change["step"], change["kind"], change["what"])
    less = {name: [c for c in getattr(one, name) if c != change] for name in ("predicted", "reported")}
    assert starting(replace(one, predicted=less["predicted"]), "reported, but not predicted: ")
    assert starting(replace(one, reported=less["reported"]), "predicted, but not reported: ")
    if step != "packages":
        journal = replace(one.journal, after=one.journal.after - {key})
        assert starting(replace(one, journal=journal), "reported, but not journalled: ")
    journal = replace(one.journal, after=one.journal.after | {(step, "file", "etc/never")})
    assert starting(replace(one, journal=journal), "journalled, but not reported: ")


def starting(one: Evidence, words: str) -> bool:
    return any(text.startswith(words) for text in one.verdict().untruths)


# --- the way back -------------------------------------------------------------------------------------------------


@functools.cache
def evidence_back(family: str, root: Path) -> Evidence:
    """The way back of a host that was given the packages and had a service that was off."""
    host = KINDS[family](root / f"{family}-back")
    host.install(*host.wanted["packages"])
    host.units[host.daemon] = {"enabled": "disabled", "active": False}
    host.reboot()
    original = things(observe(host))
    conversion(host)
    return way_back(host, original)


@pytest.fixture(scope="session")
def back(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], Evidence]:
    root = tmp_path_factory.mktemp("back")
    return lambda family: evidence_back(family, root)


@OF_EACH_STEP
def test_what_the_plan_of_the_way_back_omits(back: Callable[[str], Evidence], family: str, step: str) -> None:
    one = back(family)
    assert not one.verdict().untruths, one.verdict().untruths
    own = [change for change in one.predicted if change["step"] == step]
    assert own
    for change in own:
        if change["kind"] != "interval":  # which takes nothing away here, as no package came
            assert without(one, change).verdict().untruths, f"{change['kind']} {change['what']} can be left out"
        less = replace(one, predicted=[item for item in one.predicted if item != change])
        assert starting(less, "reported, but not predicted: ")
        assert starting(less, "journalled, but not predicted to be taken back: ")


@OF_EACH_STEP
def test_what_the_plan_of_the_way_back_claims(back: Callable[[str], Evidence], family: str, step: str) -> None:
    claimed = {**CLAIMS[step], "step": step, "stage": "undo", "before": None, "after": "absent"}
    if step == "packages":
        claimed |= {"kind": "file", "what": "etc/never"}
    one = claiming(back(family), claimed)
    assert starting(one, f"predicted by {step}, but not observed: ")
    other = replace(one, journal=back(family).journal)
    assert starting(other, "predicted to be taken back, but not journalled: ")


@pytest.mark.parametrize("family", KINDS)
def test_a_state_that_the_plan_of_the_way_back_gets_wrong(back: Callable[[str], Evidence], family: str) -> None:
    one = back(family)
    for change in one.predicted:
        if change["after"] in ("absent", "the saved file") and change["kind"] != "next_entry":
            other = {**change, "after": "the saved file" if change["after"] == "absent" else "absent"}
            lied = [other if item == change else item for item in one.predicted]
            assert replace(one, predicted=lied, reported=lied).verdict().untruths, change["what"]


@pytest.mark.parametrize("family", KINDS)
def test_a_way_back_that_restores_something_else(back: Callable[[str], Evidence], family: str) -> None:
    one = back(family)
    for thing in (Thing("path", "/etc/tuned/active_profile"), Thing("command line", "")):
        value = one.seen.after[thing]
        other = value._replace(content="0" * 64) if thing.kind == "path" else (*value, "surprise")
        seen = Observed(one.seen.before, {**one.seen.after, thing: other})
        assert replace(one, seen=seen).verdict().untruths, thing


def test_a_way_back_that_leaves_its_journal(back: Callable[[str], Evidence]) -> None:
    one = back("debian")
    journal = replace(one.journal, after=frozenset({("boot", "file", "boot/grub/custom.cfg")}))
    assert starting(replace(one, journal=journal), "still journalled after the way back: ")


# --- steps that do otherwise than they say ------------------------------------------------------------------------


@OF_EACH_STEP
def test_a_step_that_does_more_than_it_says(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, family: str, step: str
) -> None:
    host = KINDS[family](tmp_path)
    if step == "packages":
        install = host.install
        monkeypatch.setattr(host, "install", lambda *names: install(*names, *(["surprise"] if names else [])))
        plain = plain_installation(KINDS[family], tmp_path / "plain")
        assert "observed, but not predicted: asked-for package surprise" in str(conversion(host, plain=plain).verdict())
        return
    host.install(*host.wanted["packages"])
    host.units[host.daemon] = {"enabled": "disabled", "active": False}
    kind = next(kind for kind in STEPS if kind.name == step)
    apply = kind.apply

    def more(self: Step, changes: Sequence[Change]) -> None:
        apply(self, changes)
        (self.context.root / f"etc/{step}-surprise").write_text("surprise\n")

    monkeypatch.setattr(kind, "apply", more)
    found = conversion(host).verdict().untruths
    assert [text.partition(" became")[0] for text in found] == [
        f"observed, but not predicted: path /etc/{step}-surprise absent"
    ]


@pytest.mark.parametrize(
    ("directory", "text"),
    [
        ("etc/surprise", "path /etc/surprise absent became a directory"),
        ("etc/systemd", "path /etc/systemd a directory"),
    ],
)
def test_directories_are_not_made_or_changed_by_the_way(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, directory: str, text: str
) -> None:
    host = Debian(tmp_path)
    host.install(*host.wanted["packages"])
    apply = Hugepages.apply

    def more(self: Step, changes: Sequence[Change]) -> None:
        apply(self, changes)  # type: ignore[arg-type]
        path = self.context.root / directory
        path.mkdir(exist_ok=True)
        path.chmod(0o700)

    monkeypatch.setattr(Hugepages, "apply", more)
    (found,) = conversion(host).verdict().untruths
    assert found.startswith(f"observed, but not predicted: {text}")


@OF_EACH_STEP
def test_a_step_that_does_less_than_it_says(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, family: str, step: str
) -> None:
    """The judge finds it where the collection's own verification does not refuse it before."""
    host = KINDS[family](tmp_path)
    if step == "packages":
        monkeypatch.setattr(host, "install", lambda *names: None)
        with pytest.raises(TopovirtError, match="Packages are missing"):
            conversion(host)
        return
    host.install(*host.wanted["packages"])
    host.units[host.daemon] = {"enabled": "disabled", "active": False}
    kind = next(kind for kind in STEPS if kind.name == step)
    apply = kind.apply
    monkeypatch.setattr(kind, "apply", lambda self, changes: apply(self, changes[:-1]))
    try:
        found = conversion(host).verdict().untruths
    except TopovirtError as error:
        found = [error.message]
    assert found
