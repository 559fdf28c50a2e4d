# Copyright: the topovirt.kvm authors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""A boot that is only tried: it ends by itself unless it is confirmed, and everybody is told."""

from __future__ import annotations

import re
import subprocess
from pathlib import Path
from typing import Any

import pytest
from ansible_collections.topovirt.kvm.plugins.module_utils._errors import TopovirtError
from ansible_collections.topovirt.kvm.plugins.module_utils._host.runner import identity
from ansible_collections.topovirt.kvm.plugins.module_utils._host.trial import last_words, tried_arguments
from ansible_collections.topovirt.kvm.tests.unit.plugins.module_utils._host.fake_host import (
    NATIVE,
    WANTED,
    FakeHost,
)
from ansible_collections.topovirt.kvm.tests.unit.plugins.module_utils._host.fake_red_hat import FakeRedHat

UNIT = "etc/systemd/system/topovirt-trial.service"
OTHER = {**WANTED, "cmdline": ["mitigations=off"]}


@pytest.fixture
def host(tmp_path: Path) -> FakeHost:
    return FakeHost(tmp_path)


def cmdline(host: FakeHost) -> list[str]:
    return (host.root / "proc/cmdline").read_text().split()


def fail_trial(host: FakeHost, wanted: dict[str, Any] = WANTED) -> None:
    """The trial boot starts, and something resets the host before anybody gets to it."""
    host.convert(wanted, until="reboot")
    host.reboot()


# --- the command line ---------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("own", "added"),
    [
        ([], ["panic=30"]),
        (["panic=5"], []),
        (["panic=0"], ["panic=30"]),  # for ever
        (["panic=-1"], ["panic=30"]),  # at once, which initramfs scripts take for nothing
        (["panic=5", "panic=0"], ["panic=30"]),  # the last one counts
        (["panic=0", "panic=5"], []),
        (["panic=-1", "panic=5"], []),
        (["panic_on_warn=1"], ["panic=30"]),
    ],
)
def test_a_tried_entry_reboots_after_a_panic(own: list[str], added: list[str]) -> None:
    arguments = tried_arguments(["root=x", *own, "quiet"], ["rd.shell=0"])
    assert list(arguments) == ["root=x", *own, "quiet", *added, "rd.shell=0", "topovirt.trial"]


@pytest.mark.parametrize(
    ("kind", "words"),
    [(FakeHost, ["panic=30"]), (FakeRedHat, ["panic=30", "rd.shell=0", "rd.emergency=reboot"])],
    ids=["debian", "red-hat"],
)
def test_only_the_tried_entry_has_the_words_of_a_trial(tmp_path: Path, kind: type[FakeHost], words: list[str]) -> None:
    host = kind(tmp_path)
    host.convert(until="reboot")
    assert cmdline(host)[-len(words) - 1 :] == [*words, "topovirt.trial"]
    host.convert()
    host.reboot()
    assert cmdline(host)[-1] == f"topovirt={identity(host.root)}"
    assert not host.convert()


def custom(host: FakeHost) -> str:
    return (host.root / "boot/grub/custom.cfg").read_text()


def test_beside_a_committed_entry_only_the_new_one_is_on_trial(host: FakeHost) -> None:
    host.convert()
    host.convert(OTHER, until="apply")
    lines = [line for line in custom(host).splitlines() if line.startswith("\tlinux\t")]
    assert [line.endswith(" panic=30 topovirt.trial") for line in lines] == [False, True]
    assert "mitigations=off" in lines[1]


def test_the_words_of_a_trial_call_for_no_other_reboot(host: FakeHost) -> None:
    host.convert(until="reboot")
    for _time in range(2):
        assert not host.runner().apply(WANTED, check=False).reboot_required
        host.runner().commit(WANTED, check=False)
    assert "topovirt.trial" in cmdline(host)
    assert not host.convert()


# --- the guard ----------------------------------------------------------------------------------------------------


def test_nobody_comes_and_the_host_goes_back(host: FakeHost) -> None:
    host.convert(until="reboot")
    host.nobody_comes()
    assert not [word for word in cmdline(host) if word.startswith("topovirt")]
    assert host.drivers() == NATIVE
    assert host.page_counts() == [0, 0]
    assert not host.guard_active


def test_a_confirmed_boot_stays_and_so_do_all_later_ones(host: FakeHost) -> None:
    host.convert()
    for _boot in range(2):
        host.nobody_comes()
        assert f"topovirt={identity(host.root)}" in cmdline(host)
        host.reboot()
        assert not host.guard_active


def test_a_later_trial_is_guarded_as_well_and_ends_in_the_committed_entry(host: FakeHost) -> None:
    host.convert()
    host.convert(OTHER, until="reboot")
    assert host.guard_active
    assert "mitigations=off" in cmdline(host)
    host.nobody_comes()
    assert "mitigations=auto" in cmdline(host)
    assert not host.guard_active
    host.convert(OTHER)
    host.nobody_comes()
    assert "mitigations=off" in cmdline(host)


def test_a_wrong_boot_is_not_confirmed(host: FakeHost) -> None:
    host.fewer_pages = 1
    host.convert(until="reboot")
    with pytest.raises(TopovirtError, match="nothing is made permanent"):
        host.runner().commit(WANTED, check=False)
    assert host.guard_active


def test_a_prediction_does_not_confirm(host: FakeHost) -> None:
    host.convert(until="reboot")
    host.runner().commit(WANTED, check=True)
    assert host.guard_active


def test_a_guard_that_cannot_be_stopped_keeps_the_old_default(host: FakeHost) -> None:
    host.convert(until="reboot")
    host.guard_stops = False
    with pytest.raises(TopovirtError, match="will reboot by itself: Job canceled"):
        host.runner().commit(WANTED, check=False)
    host.nobody_comes()
    assert host.drivers() == NATIVE


def test_the_guard_counts_the_wanted_seconds(host: FakeHost) -> None:
    host.convert(until="reboot")
    assert "sleep 900;" in (host.root / UNIT).read_text()
    other = {**WANTED, "confirm_timeout": 120}
    host.log.clear()
    host.runner().apply(other, check=False)
    assert "sleep 120;" in (host.root / UNIT).read_text()
    assert [words[1] for words in host.log if words[0] == "systemctl" and "show" not in words][-2:] == [
        "try-restart",
        "daemon-reload",
    ]
    host.runner().commit(other, check=False)
    assert not host.convert(other)


def test_the_guards_command_is_shell_that_asks_systemd_then_the_kernel(host: FakeHost, tmp_path: Path) -> None:
    """Run for real, with programs that only log: each one fails, so that all are tried."""
    host.convert(until="apply")
    (command,) = re.findall(r"^ExecStart=/bin/sh -c '(.*)'$", (host.root / UNIT).read_text(), re.M)
    log = tmp_path / "log"
    (tmp_path / "bin").mkdir()
    for program in ("sleep", "systemctl"):
        (tmp_path / "bin" / program).write_text(f'#!/bin/sh\necho {program} "$@" >> {log}\nexit 1\n')
        (tmp_path / "bin" / program).chmod(0o755)
    assert "/proc/sysrq-trigger" in command
    command = command.replace("/proc/sysrq-trigger", str(tmp_path / "sysrq"))
    done = subprocess.run(
        ["sh", "-c", command], env={"PATH": f"{tmp_path}/bin:/usr/bin:/bin"}, capture_output=True, text=True, check=True
    )
    assert log.read_text().splitlines() == [
        "sleep 900",
        "systemctl reboot --force",
        "sleep 60",
        "systemctl reboot --force --force",
    ]
    assert (tmp_path / "sysrq").read_text() == "b\n"
    assert "not confirmed within 900 s" in done.stdout
    assert "%" not in command and "$" not in command  # systemd would replace them


def test_neither_a_missing_disk_nor_an_emergency_shell_holds_the_guard_up(host: FakeHost) -> None:
    host.convert(until="apply")
    lines = (host.root / UNIT).read_text().splitlines()
    assert {"DefaultDependencies=no", "IgnoreOnIsolate=yes"} <= set(lines)  # systemd.unit(5)
    assert not [line for line in lines if line.startswith(("After=", "Requires=", "BindsTo=", "Type="))]


def test_every_unit_of_ours_acts_under_the_token_only(host: FakeHost) -> None:
    before = set(host.snapshot())
    host.convert()
    units = [
        path
        for path in set(host.snapshot()) - before
        if path.startswith("etc/systemd/system/") and (host.root / path).is_file()
    ]
    assert len({Path(path).name for path in units}) >= 4
    for path in units:
        text = (host.root / path).read_text()
        assert f"ConditionKernelCommandLine=topovirt={identity(host.root)}\n" in text, path


def test_the_way_back_takes_the_guard_with_it(host: FakeHost) -> None:
    before = host.snapshot()
    host.convert(until="reboot")
    host.go_back()
    assert host.snapshot() == before


@pytest.mark.parametrize("seconds", [0, -1, 59])
def test_too_little_time_is_refused(host: FakeHost, seconds: int) -> None:
    with pytest.raises(TopovirtError, match=f"confirm_timeout is {seconds}: .* at least 60 seconds"):
        host.runner().plan({**WANTED, "confirm_timeout": seconds})
    assert host.runner().plan({**WANTED, "confirm_timeout": 60}).changed


# --- what is said -------------------------------------------------------------------------------------------------


def test_a_failed_trial_is_named_and_can_be_repeated(host: FakeHost) -> None:
    fail_trial(host)
    with pytest.raises(TopovirtError) as failure:
        host.runner().verify(WANTED)
    assert f"trial boot of entry topovirt-{identity(host.root)} failed" in failure.value.message
    assert "recovered by itself" in failure.value.message
    assert "vfio-pci" not in failure.value.message  # not what follows from it
    report = host.runner().apply(WANTED, check=False)
    assert report.reboot_required
    assert [text for text in report.warnings if "failed" in text and "armed for another try" in text]
    host.reboot()
    host.runner().commit(WANTED, check=False)
    assert not host.convert()


def test_a_later_trial_that_failed_is_named(host: FakeHost) -> None:
    host.convert()
    host.convert(OTHER, until="reboot")
    host.nobody_comes()
    with pytest.raises(TopovirtError, match=f"entry topovirt-{identity(host.root)}-2 failed"):
        host.runner().verify(OTHER)
    host.convert(OTHER)
    assert not host.runner().apply(OTHER, check=False).warnings


@pytest.mark.parametrize("until", ["apply", "reboot", "commit"])
def test_a_trial_that_did_not_fail_is_not_blamed(host: FakeHost, until: str) -> None:
    assert not host.runner().plan(WANTED).warnings
    host.convert(until=until)
    assert not host.runner().apply(WANTED, check=False).warnings
    assert not [text for text in host.runner().verify(WANTED).differences if "trial" in text]


@pytest.mark.parametrize("committed", [False, True])
def test_a_trial_that_could_not_be_armed_is_not_blamed(
    host: FakeHost, monkeypatch: pytest.MonkeyPatch, committed: bool
) -> None:
    if committed:
        host.convert()
        host.reboot()
    run = host.run
    with monkeypatch.context() as patch:
        patch.setattr(host, "run", lambda words: (1, "", "full") if words[0] == "grub-editenv" else run(words))
        with pytest.raises(TopovirtError, match="could not change next_entry"):
            host.convert(OTHER)
    assert not host.runner().apply(OTHER, check=False).warnings


def test_how_much_time_is_left(host: FakeHost) -> None:
    host.convert(until="reboot")
    # The guard started 20.5 s after the kernel, which has been up for 80.25 s.
    assert host.runner().verify(WANTED).confirm_within == 840
    assert host.runner().verify({**WANTED, "confirm_timeout": 60}).confirm_within == 0
    host.runner().commit(WANTED, check=False)
    assert host.runner().verify(WANTED).confirm_within is None


def test_verification_leaves_half_of_the_time(host: FakeHost) -> None:
    host.convert(until="reboot")
    host.log.clear()
    host.runner().verify({**WANTED, "confirm_timeout": 120})
    assert host.log[0] == ["timeout", "60", "systemctl", "is-system-running", "--wait"]


def test_last_words_are_those_of_the_trial(host: FakeHost) -> None:
    assert last_words(host.run) == []
    host.previous_journal = "Kernel command line: root=x\nsome error\n"
    assert last_words(host.run) == []  # the boot before: the trial wrote nothing
    host.previous_journal = "Kernel command line: root=x topovirt.trial\nvfio-pci: no\n\n"
    assert last_words(host.run)[-1] == "vfio-pci: no"
    fail_trial(host)
    with pytest.raises(TopovirtError, match=r"last errors: .*vfio-pci: no"):
        host.runner().verify(WANTED)
