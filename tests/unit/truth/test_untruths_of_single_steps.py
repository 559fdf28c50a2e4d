# Copyright: the topovirt.kvm authors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Untruths planted in what modules of one step predict: the judge finds every one of them.

A new module needs runs in single_steps.FACES and a line in CLAIMS.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from ansible_collections.topovirt.kvm.plugins.module_utils._errors import TopovirtError
from ansible_collections.topovirt.kvm.plugins.module_utils._host.faces import BUILDERS
from ansible_collections.topovirt.kvm.plugins.module_utils._host.single import Single
from ansible_collections.topovirt.kvm.plugins.module_utils._host.step import Change, Context, Step
from ansible_collections.topovirt.kvm.tests.unit.plugins.module_utils._host.fake_host import IGB, NIC0, NVME0, FakeHost

from tests.truth.evidence import Evidence
from tests.unit.truth.single_steps import FACES, Course, Run, course, server
from tests.unit.truth.test_untruths import OTHERWISE, claim, claiming, file_claim, starting, without
from tests.unit.truth.watched import watch

# For each module a change that no run here makes.
CLAIMS = {
    "hugepages": claim("pages", "sys/devices/system/node/node0/hugepages/hugepages-2048kB/nr_hugepages", 0, 9),
    "kernel_cmdline": file_claim("boot/loader/entries/never.conf"),
    "nic_firmware": claim("firmware", f"{NIC0} SRIOV_EN", "True(1)", "False(0)"),
    "pci_binding": claim("device", IGB, "igb", "vfio-pci"),
    "pcie_acs": claim("register", f"{NVME0} device_control", 0x2000, 0x5000),
    "tuned_profile": claim("profile", "active", "balanced", "never"),
}
# Beyond those of steps of a conversion; what programs made before shows in the file only.
BEFORE: dict[str, Callable[[Any], Any]] = {
    **OTHERWISE,
    "firmware": lambda before: f"{before}-never",
    "pages": lambda before: before + 1,
    "profile": lambda before: f"{before}-never",
}
WHERE = [(name, family) for name in sorted(BUILDERS) for family in (FACES[name].servers if name in FACES else ["no"])]
OF_EACH_FACE = pytest.mark.parametrize(("name", "family"), WHERE)

Courses = Callable[[str, str], Course]


@functools.cache
def _course(name: str, family: str, root: Path) -> Course:
    return course(name, family, root / f"{name}-{family}")


@pytest.fixture(scope="session")
def courses(tmp_path_factory: pytest.TempPathFactory) -> Courses:
    root = tmp_path_factory.mktemp("courses")
    return lambda name, family: _course(name, family, root)


def test_each_module_of_one_step_is_tried_and_lied_about() -> None:
    assert set(FACES) == set(BUILDERS), "say in single_steps.FACES with what the module is tried"
    assert set(CLAIMS) == set(BUILDERS), "say in CLAIMS what the module could claim"


def _same_profile(change: dict[str, Any]) -> bool:
    """A switch to what is in force already: of it only the files differ."""
    return change["kind"] == "profile" and change["before"] == change["after"]


@OF_EACH_FACE
def test_a_change_that_its_plan_omits(courses: Courses, name: str, family: str) -> None:
    for one in courses(name, family).there:
        assert not one.verdict().untruths
        for change in one.predicted:
            found = [text for text in without(one, change).verdict().untruths if "path /var/lib" not in text]
            script = change["what"].startswith("var/lib/topovirt/")
            assert found or script or _same_profile(change), f"{change['kind']} {change['what']} can be left out"
            if script:
                assert starting(without(one, change), f"observed, but not predicted: path /{change['what']} ")


@OF_EACH_FACE
def test_a_change_that_its_plan_claims(courses: Courses, name: str, family: str) -> None:
    """Report and journal claim it, too."""
    for one in courses(name, family).there:
        claimed = claiming(one, {"step": name, "stage": "apply", **CLAIMS[name]})
        assert starting(claimed, f"predicted by {name}")


@OF_EACH_FACE
def test_lists_that_differ(courses: Courses, name: str, family: str) -> None:
    """One of prediction, report and journal omits or claims what the others do not."""
    for one in courses(name, family).there:
        for change in one.predicted:
            key = (change["step"], change["kind"], change["what"])
            predicted, reported = ([c for c in changes if c != change] for changes in (one.predicted, one.reported))
            assert starting(replace(one, predicted=predicted), "reported, but not predicted: ")
            assert starting(replace(one, reported=reported), "predicted, but not reported: ")
            journal = replace(one.journal, after=one.journal.after - {key})
            assert starting(replace(one, journal=journal), "reported, but not journalled: ")
        journal = replace(one.journal, after=one.journal.after | {(name, "file", "etc/never")})
        assert starting(replace(one, journal=journal), "journalled, but not reported: ")


def _told(one: Evidence, change: dict[str, Any], other: dict[str, Any]) -> Evidence:
    """As if plan and report said something else of a change."""
    predicted, reported = (
        [other if item == change else item for item in changes] for changes in (one.predicted, one.reported)
    )
    return replace(one, predicted=predicted, reported=reported)


@OF_EACH_FACE
def test_a_change_that_its_plan_tells_otherwise(courses: Courses, name: str, family: str) -> None:
    """Another text, another state before, other boot entries."""
    told = 0
    for one in courses(name, family).there:
        for change in one.predicted:
            lies = []
            if change["kind"] == "file":
                lies.append({**change, "diff": [change["diff"][0], f"{change['diff'][1]}#"]})
            if change["kind"] in BEFORE:
                lies.append({**change, "before": BEFORE[change["kind"]](change["before"])})
            if "entries" in change:
                first, line = next(iter(change["entries"].items()))
                lies.append({**change, "entries": {**change["entries"], first: f"{line} never"}})
            for lie in lies:
                assert _told(one, change, lie).verdict().untruths, f"{change['kind']} {change['what']}"
                told += 1
    assert told


# --- the way back -------------------------------------------------------------------------------------------------


@OF_EACH_FACE
def test_what_the_plan_of_the_way_back_omits(courses: Courses, name: str, family: str) -> None:
    one = courses(name, family).back
    assert not one.verdict().untruths
    for change in one.predicted:
        if change["kind"] != "start":  # what was started goes with its file
            assert starting(without(one, change), "observed, but not predicted: "), f"{change['kind']} {change['what']}"
        less = replace(one, predicted=[item for item in one.predicted if item != change])
        assert starting(less, "reported, but not predicted: ")
        assert starting(less, "journalled, but not predicted to be taken back: ")


@OF_EACH_FACE
def test_what_the_plan_of_the_way_back_claims(courses: Courses, name: str, family: str) -> None:
    claimed = {**file_claim("etc/never"), "step": name, "stage": "undo", "after": "absent"}
    one = claiming(courses(name, family).back, claimed)
    assert starting(one, f"predicted by {name}, but not observed: ")
    other = replace(one, journal=courses(name, family).back.journal)
    assert starting(other, "predicted to be taken back, but not journalled: ")


@OF_EACH_FACE
def test_a_way_back_that_leaves_its_journal(courses: Courses, name: str, family: str) -> None:
    one = courses(name, family).back
    assert one.journal.before and not one.journal.after
    left = replace(one, journal=replace(one.journal, after=one.journal.before))
    assert starting(left, "still journalled after the way back: ")


# --- steps that do otherwise than they say ------------------------------------------------------------------------


def _lying(made: Single, apply: Callable[[Step, Callable[..., None], Sequence[Change]], None]) -> Single:
    """The module with a step that applies its changes in another way."""

    def build(context: Context) -> Step:
        step = made.build(context)
        honest = step.apply
        step.apply = lambda changes: apply(step, honest, changes)  # type: ignore[method-assign]
        return step

    return replace(made, build=build)


def _first(name: str, family: str, tmp_path: Path) -> tuple[FakeHost, Run]:
    return server(name, family, tmp_path), FACES[name].runs[0]


@OF_EACH_FACE
def test_a_step_that_does_more_than_it_says(tmp_path: Path, name: str, family: str) -> None:
    host, run = _first(name, family, tmp_path)

    def more(step: Step, honest: Callable[..., None], changes: Sequence[Change]) -> None:
        honest(changes)
        (step.context.root / "etc/surprise").write_text("surprise\n")

    lying = _lying(host.face(name, **run.options), more)
    found = watch(host, lying.present, reboot=run.reboot).verdict().untruths
    assert [text.partition(" became")[0] for text in found] == [
        "observed, but not predicted: path /etc/surprise absent"
    ]


@OF_EACH_FACE
def test_a_step_that_does_less_than_it_says(tmp_path: Path, name: str, family: str) -> None:
    """The judge finds it where the module's own verification does not refuse it before."""
    host, run = _first(name, family, tmp_path)

    def less(_step: Step, honest: Callable[..., None], changes: Sequence[Change]) -> None:
        # What a program or the boot makes comes anyway.
        left_out = next((change for change in reversed(changes) if change.kind in ("file", "link")), changes[-1])
        honest([change for change in changes if change != left_out])

    lying = _lying(host.face(name, **run.options), less)
    try:
        found = watch(host, lying.present, reboot=run.reboot).verdict().untruths
    except TopovirtError as error:
        found = [error.message]
        assert "Everything is as it was before." in error.message
    assert found
