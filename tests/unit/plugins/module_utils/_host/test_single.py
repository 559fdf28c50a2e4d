# Copyright: the topovirt.kvm authors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""One step alone: what every such module does, shown on huge pages, and huge pages themselves."""

from __future__ import annotations

import contextlib
from pathlib import Path
from typing import Any

import pytest
from ansible_collections.topovirt.kvm.plugins.module_utils._errors import TopovirtError
from ansible_collections.topovirt.kvm.plugins.module_utils._host.journal import Journal
from ansible_collections.topovirt.kvm.plugins.module_utils._host.places import FACES
from ansible_collections.topovirt.kvm.plugins.module_utils._host.runner import describe
from ansible_collections.topovirt.kvm.tests.unit.plugins.module_utils._host.cut import Cut
from ansible_collections.topovirt.kvm.tests.unit.plugins.module_utils._host.fake_host import WANTED, Crash, FakeHost

PAGES = {"pages": {"1GiB": {"0": 3, "1": 2}}}
UNIT = "etc/systemd/system/topovirt-hugepages.service"
SCRIPT = "var/lib/topovirt/faces/hugepages/hugepages.sh"
COUNT = "sys/devices/system/node/node{}/hugepages/hugepages-{}kB/nr_hugepages"


@pytest.fixture
def host(tmp_path: Path) -> FakeHost:
    return FakeHost(tmp_path)


def whole(host: FakeHost) -> dict[str, Any]:
    return {**host.snapshot(), "pages": host.page_counts()}


def test_check_mode_says_what_the_real_run_does_and_changes_nothing(host: FakeHost) -> None:
    before = whole(host)
    predicted = host.face("hugepages", **PAGES).present(check=True)
    assert whole(host) == before
    assert predicted.changed
    done = host.face("hugepages", **PAGES).present(check=False)
    assert [describe(change) for change in done.plan] == [describe(change) for change in predicted.plan]
    touched = {path for path, value in whole(host).items() if before.get(path) != value}
    ours = {path for path in touched if not path.startswith("var/lib/topovirt")} - {"pages"}
    on_disk = {change.what for change in predicted.plan if change.kind not in ("pages", "start")}
    assert ours == {what for what in on_disk if "var/lib" not in what}
    assert host.page_counts() == [3, 2]


def test_a_second_run_changes_nothing(host: FakeHost) -> None:
    host.face("hugepages", **PAGES).present(check=False)
    before = whole(host)
    done = host.face("hugepages", **PAGES).present(check=False)
    assert (done.changed, done.plan, done.journal) == (False, [], "applied")
    assert whole(host) == before


def test_what_was_is_put_back(host: FakeHost) -> None:
    host.pages(1, 0)
    before = whole(host)
    host.face("hugepages", **PAGES).present(check=False)
    host.face("hugepages", pages={"1GiB": {"0": 4}}).present(check=False)
    assert host.page_counts() == [4, 2]
    predicted = host.face("hugepages").restored(check=True)
    assert predicted.changed
    assert not predicted.kept
    done = host.face("hugepages").restored(check=False)
    assert whole(host) == before
    assert (done.journal, done.kept) == ("none", [])
    assert [c.what for c in done.plan] == [c.what for c in predicted.plan]
    assert not host.face("hugepages").restored(check=False).changed


def test_what_somebody_else_changed_meanwhile_stays(host: FakeHost) -> None:
    host.face("hugepages", **PAGES).present(check=False)
    host.write(UNIT, "[Unit]\n# mine now\n")
    host.pages(3, 5)
    expected = [
        f"pages {COUNT.format(1, 1048576)}: changed by somebody meanwhile, so that stays",
        f"file /{UNIT}: changed by somebody meanwhile, so that stays",
    ]
    assert host.face("hugepages").restored(check=True).kept == expected
    assert host.face("hugepages").restored(check=False).kept == expected
    assert (host.root / UNIT).read_text() == "[Unit]\n# mine now\n"
    assert host.page_counts() == [0, 5]
    assert not (host.root / "var/lib/topovirt").exists()


def test_a_file_that_somebody_removed_stays_away(host: FakeHost) -> None:
    host.write(UNIT, "[Unit]\n# from before\n")
    host.face("hugepages", **PAGES).present(check=False)
    (host.root / UNIT).unlink()
    assert host.face("hugepages").restored(check=False).kept == [f"file /{UNIT}: gone meanwhile, so that stays"]
    assert not (host.root / UNIT).exists()


@pytest.mark.parametrize("after", [False, True], ids=["before", "after"])
def test_a_run_cut_anywhere_is_finished_or_undone(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, after: bool) -> None:
    full = FakeHost(tmp_path / "full")
    pristine = whole(full)
    full.face("hugepages", **PAGES).present(check=False)
    wanted, points = whole(full), len(Journal(full.root, FACES / "hugepages").records)
    assert points > 10
    for point in range(1, points + 1):
        for finish in (True, False):
            host = FakeHost(tmp_path / f"{point}-{finish}")
            with monkeypatch.context() as patch:
                cut = Cut(patch, after)
                cut.left = point
                with pytest.raises(Crash):
                    host.face("hugepages", **PAGES).present(check=False)
            if finish:
                host.face("hugepages", **PAGES).present(check=False)
                assert without_journal(whole(host)) == without_journal(wanted), point
            else:
                assert host.face("hugepages").restored(check=False).kept == []
                assert whole(host) == pristine, point


def without_journal(found: dict[str, Any]) -> dict[str, Any]:
    return {path: value for path, value in found.items() if "/faces/hugepages/journal" not in path}


def test_a_restoration_cut_short_is_finished_and_nothing_else(host: FakeHost, monkeypatch: pytest.MonkeyPatch) -> None:
    before = whole(host)
    host.face("hugepages", **PAGES).present(check=False)
    with monkeypatch.context() as patch:
        Cut(patch, after=True).left = 1
        with pytest.raises(Crash):
            host.face("hugepages").restored(check=False)
    with pytest.raises(TopovirtError, match=r"cut off .* topovirt\.kvm\.hugepages with state: restored"):
        host.face("hugepages", **PAGES).present(check=False)
    host.face("hugepages").restored(check=False)
    assert whole(host) == before


def test_a_second_failure_leaves_what_the_first_run_made(host: FakeHost) -> None:
    host.face("hugepages", **PAGES).present(check=False)
    before = without_journal(whole(host))
    host.most_pages = 3
    with pytest.raises(TopovirtError, match=r"gave 3 of 5 huge pages .* Everything is as it was before"):
        host.face("hugepages", pages={"1GiB": {"0": 5, "1": 0}}).present(check=False)
    assert without_journal(whole(host)) == before
    assert Journal(host.root, FACES / "hugepages").state == "applied"


# --- beside a conversion ------------------------------------------------------------------------------------------


def test_a_conversion_and_a_module_of_one_step_exclude_each_other(host: FakeHost) -> None:
    pristine = whole(host)
    host.face("hugepages", **PAGES).present(check=False)
    with pytest.raises(TopovirtError) as refusal:
        host.runner().plan(WANTED)
    assert "Restore it first: topovirt.kvm.hugepages with state: restored" in refusal.value.message
    before = whole(host)
    report = host.runner().finish(discard=False, check=False)  # a way back of what never was
    assert not report.changed
    assert whole(host) == before
    host.face("hugepages").restored(check=False)
    host.convert()
    with pytest.raises(TopovirtError, match="This host is converted"):
        host.face("hugepages", **PAGES).present(check=True)
    host.go_back()
    assert whole(host) == pristine


def test_the_end_of_a_conversion_leaves_journals_of_others(host: FakeHost) -> None:
    host.convert()
    other = Journal(host.root, FACES / "tuned_profile")
    other.begin("tuned_profile")
    host.go_back()
    assert Journal(host.root, FACES / "tuned_profile").exists
    other.remove()
    assert not (host.root / "var/lib/topovirt").exists()


# --- huge pages ---------------------------------------------------------------------------------------------------


def test_units_act_at_every_boot(host: FakeHost) -> None:
    done = host.face("hugepages", **PAGES).present(check=False)
    assert not done.reboot_required
    for unit in (UNIT, "etc/systemd/system/dev-hugepages1G.mount"):
        assert "ConditionKernelCommandLine" not in (host.root / unit).read_text()
    assert f"ExecStart=/bin/sh /{SCRIPT}" in (host.root / UNIT).read_text()
    host.reboot()
    assert host.page_counts() == [3, 2]


def test_only_with_the_next_boot_on_request(host: FakeHost) -> None:
    before = whole(host)
    for changed in (True, False):
        done = host.face("hugepages", **PAGES, at_once=False).present(check=False)
        assert (done.changed, done.reboot_required) == (changed, True)
    assert host.page_counts() == [0, 0]
    host.reboot()
    assert host.page_counts() == [3, 2]
    assert not host.face("hugepages", **PAGES, at_once=False).present(check=False).reboot_required
    host.face("hugepages").restored(check=False)
    assert whole(host) == before


def test_large_pages_are_mounted_at_once(host: FakeHost) -> None:
    host.face("hugepages", **PAGES).present(check=False)
    assert host.units["dev-hugepages1G.mount"]["active"]
    host.reboot()
    assert not host.face("hugepages", **PAGES).present(check=False).changed
    host.face("hugepages").restored(check=False)
    assert not host.units["dev-hugepages1G.mount"]["active"]


def test_fewer_pages_than_wanted_are_given_back(host: FakeHost) -> None:
    before, host.most_pages = whole(host), 2
    with pytest.raises(TopovirtError, match=r"gave 2 of 3 huge pages .* Everything is as it was before"):
        host.face("hugepages", **PAGES).present(check=False)
    assert whole(host) == before
    assert ["compact_memory"] in host.log


def test_both_sizes_at_the_same_time(host: FakeHost) -> None:
    for node in (0, 1):
        host.write(COUNT.format(node, 2048), "0\n")
        host.write(COUNT.format(node, 2048).replace("nr_", "free_"), "0\n")
    pages = {"2MiB": {"1": 512}, "1GiB": {"1": 2}}
    done = host.face("hugepages", pages=pages).present(check=False)
    assert (host.root / COUNT.format(1, 2048)).read_text() == "512\n"
    assert host.page_counts() == [0, 2]
    assert done.results == {
        "pages_before": {"1048576": {"0": 0, "1": 0}, "2048": {"0": 0, "1": 0}},
        "pages": {"1048576": {"0": 0, "1": 2}, "2048": {"0": 0, "1": 512}},
    }
    script = (host.root / SCRIPT).read_text()
    assert (
        script.index("1048576kB") < script.index("want 1 2\n") < script.index("2048kB") < script.index("want 1 512\n")
    )
    with pytest.raises(TopovirtError, match=r"beside 2\.0 GiB in pages of other sizes are 5\.5 GiB, and at most 5\.0"):
        host.face("hugepages", pages={"2MiB": {"1": 1792}}).present(check=True)


@pytest.mark.parametrize(
    ("pages", "complaint"),
    [
        ({}, "no huge pages are asked for"),
        ({"4KiB": {"0": 1}}, "huge page size '4KiB' is none of 2MiB, 1GiB"),
        ({"1GiB": 5}, "1GiB: 5 is not a dictionary"),
        ({"1GiB": {"7": 1}}, "there is no NUMA node 7"),
        ({"1GiB": {"0": "many"}}, "node 0 has count 'many', which is not a number"),
        ({"1GiB": {"0": -1}}, "node 0 has count -1, which is not a number"),
        ({"1GiB": {"0": 6}}, "node 0 has 8.0 GiB of memory: 6 pages of 1GiB are 6.0 GiB, and at most 5.0 GiB"),
        ({"2MiB": {"0": 1}}, "node 0 has no huge pages of 2MiB"),
    ],
)
def test_bad_input_is_refused_before_any_change(host: FakeHost, pages: dict[str, Any], complaint: str) -> None:
    before = whole(host)
    for check in (True, False):
        with pytest.raises(TopovirtError) as refusal, contextlib.nullcontext():
            host.face("hugepages", pages=pages).present(check)
        assert complaint in str(refusal.value)
        assert "Nothing was changed." in str(refusal.value)
    assert whole(host) == before
