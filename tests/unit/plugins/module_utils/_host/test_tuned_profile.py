# Copyright: the topovirt.kvm authors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""The TuneD profile alone, with a double of tuned-adm that writes what the real one does."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from ansible_collections.topovirt.kvm.plugins.module_utils._errors import TopovirtError
from ansible_collections.topovirt.kvm.plugins.module_utils._host.journal import Journal
from ansible_collections.topovirt.kvm.plugins.module_utils._host.places import FACES
from ansible_collections.topovirt.kvm.plugins.module_utils._host.runner import describe
from ansible_collections.topovirt.kvm.tests.unit.plugins.module_utils._host.cut import Cut
from ansible_collections.topovirt.kvm.tests.unit.plugins.module_utils._host.fake_host import Crash, FakeHost
from ansible_collections.topovirt.kvm.tests.unit.plugins.module_utils._host.fake_host import block as block_of

VARIABLES = "etc/tuned/cpu-partitioning-variables.conf"
SHIPPED = "# Examples:\n# isolated_cores=2,4-7\nisolated_cores=${f:calc_isolated_cores:1}\n# no_balance_cores=5-10\n"
OWN: dict[str, Any] = {"own": {"include": "cpu-partitioning", "isolated_cores": "1,5,3,7"}}
ENTRY = "boot/loader/entries/abc-1.conf"


class Host(FakeHost):
    """TuneD as on RHEL: it runs ``balanced``, and its boot loader plugin keeps variables in GRUB's block."""

    def __init__(self, root: Path) -> None:
        super().__init__(root)
        for name in ("balanced", "virtual-host", "cpu-partitioning"):
            self.write(f"usr/lib/tuned/profiles/{name}/tuned.conf", "[main]\n")
        self.write("etc/tuned/active_profile", "balanced\n")
        self.write("etc/tuned/profile_mode", "auto\n")
        self.write("etc/tuned/bootcmdline", 'TUNED_BOOT_CMDLINE=""\nTUNED_BOOT_INITRD_ADD=""\n')
        self.write(VARIABLES, SHIPPED)
        self.write(ENTRY, "title x\noptions ro\n")
        self.write("boot/grub2/grub.cfg", "blscfg\n")
        (self.root / "boot/grub2/grubenv").write_bytes(block_of({"saved_entry": "abc-1", "tuned_params": ""}))
        self.units["tuned.service"] = {"enabled": "enabled", "active": True}
        self.tuned_active = "balanced"
        self.wrong = False
        self.deaf = False
        self.programs["tuned-adm"] = self.tuned_adm
        self.programs["grub2-editenv"] = lambda rest: self.run(["grub-editenv", *rest])

    def tuned_adm(self, words: list[str]) -> tuple[int, str, str]:
        if words == ["active"]:
            active = self.tuned_active
            return (0, f"Current active profile: {active}\n", "") if active else (0, "No current active profile.\n", "")
        name: str | None = {"off": None, "auto_profile": "balanced"}.get(words[0], words[-1])
        arguments = ""
        if name == "topovirt":
            text = (self.root / "etc/tuned/profiles/topovirt/tuned.conf").read_text()
            if "include=cpu-partitioning" in text:
                lines = (self.root / VARIABLES).read_text().splitlines()
                cpus = next(line for line in lines if line.startswith("isolated_cores=")).partition("=")[2]
                arguments = f"nohz_full={cpus} rcu_nocbs={cpus}"
        if self.deaf and name == "topovirt":
            return 0, "", ""
        self.tuned_active = name
        self.write("etc/tuned/active_profile", f"{name or ''}\n")
        self.write("etc/tuned/profile_mode", "auto\n" if words[0] == "auto_profile" else "manual\n")
        self.write("etc/tuned/bootcmdline", f'# by TuneD\nTUNED_BOOT_CMDLINE="{arguments}"\nTUNED_BOOT_INITRD_ADD=""\n')
        env = str(self.root / "boot/grub2/grubenv")
        self.run(["grub-editenv", env, "set", f"tuned_params={arguments}", "tuned_initrd=/tuned-initrd.img"])
        self.write(ENTRY, "title x\noptions ro $tuned_params\n")
        return (1, "", "Error: something with the daemon") if self.wrong and name == "topovirt" else (0, "", "")


@pytest.fixture
def host(tmp_path: Path) -> Host:
    return Host(tmp_path)


def whole(host: Host) -> dict[str, Any]:
    return {**host.snapshot(), "active": host.tuned_active}


def block(host: Host) -> dict[str, str]:
    raw = (host.root / "boot/grub2/grubenv").read_text()
    return dict(line.split("=", 1) for line in raw.splitlines() if "=" in line)


def test_a_stock_profile_is_switched_to_and_back(host: Host) -> None:
    before = whole(host)
    predicted = host.face("tuned_profile", profile="virtual-host").present(check=True)
    assert whole(host) == before
    done = host.face("tuned_profile", profile="virtual-host").present(check=False)
    assert [describe(c) for c in done.plan] == [describe(c) for c in predicted.plan]
    assert [(c.kind, c.before, c.after) for c in done.plan] == [("profile", "balanced", "virtual-host")]
    assert (host.tuned_active, done.reboot_required, done.results) == ("virtual-host", False, {"active": "balanced"})
    assert not host.face("tuned_profile", profile="virtual-host").present(check=False).changed
    done = host.face("tuned_profile").restored(check=False)
    assert whole(host) == before
    assert not done.kept


def test_an_own_profile_isolates_cores(host: Host) -> None:
    before = whole(host)
    done = host.face("tuned_profile", **OWN).present(check=False)
    text = (host.root / "etc/tuned/profiles/topovirt/tuned.conf").read_text()
    assert "include=cpu-partitioning\n" in text
    assert "cpumask=00000055\n" in text  # CPUs 0, 2, 4 and 6 stay
    assert "kernel.numa_balancing=0" in text
    variables = (host.root / VARIABLES).read_text()
    assert variables == SHIPPED.replace("isolated_cores=${f:calc_isolated_cores:1}", "isolated_cores=1,3,5,7")
    assert done.reboot_required
    assert host.face("tuned_profile", **OWN).present(check=False).reboot_required
    command_line = host.root / "proc/cmdline"
    command_line.write_text(f"{command_line.read_text().strip()} nohz_full=1,3,5,7 rcu_nocbs=1,3,5,7\n")
    again = host.face("tuned_profile", **OWN).present(check=False)
    assert (again.changed, again.reboot_required) == (False, False)
    assert host.face("tuned_profile").restored(check=True).reboot_required
    host.face("tuned_profile").restored(check=False)
    assert whole(host) == before


def test_other_cores_take_effect(host: Host) -> None:
    host.face("tuned_profile", **OWN).present(check=False)
    other = {"own": {"include": "cpu-partitioning", "isolated_cores": "7"}}
    done = host.face("tuned_profile", **other).present(check=False)
    assert [c.kind for c in done.plan] == ["file", "file", "file", "profile"]
    assert block(host)["tuned_params"] == "nohz_full=7 rcu_nocbs=7"


def test_without_a_profile_before_there_is_none_after(host: Host) -> None:
    host.tuned_active = None
    before = whole(host)
    host.face("tuned_profile", profile="virtual-host").present(check=False)
    host.face("tuned_profile").restored(check=False)
    assert whole(host) == before


def test_what_others_wrote_meanwhile_stays(host: Host) -> None:
    host.face("tuned_profile", **OWN).present(check=False)
    host.run(["grub-editenv", str(host.root / "boot/grub2/grubenv"), "set", "saved_entry=other"])
    host.write(ENTRY, "title mine\noptions ro $tuned_params\n")
    done = host.face("tuned_profile").restored(check=False)
    assert block(host) == {"saved_entry": "other", "tuned_params": ""}
    assert done.kept == [f"file /{ENTRY}: changed by somebody meanwhile, so that stays, as TuneD left it"]


def test_a_profile_that_somebody_chose_meanwhile_stays(host: Host) -> None:
    host.face("tuned_profile", profile="virtual-host").present(check=False)
    host.tuned_adm(["profile", "balanced"])
    done = host.face("tuned_profile").restored(check=False)
    assert host.tuned_active == "balanced"
    assert not (host.root / "var/lib/topovirt").exists()
    host.face("tuned_profile", profile="virtual-host").present(check=False)
    host.tuned_adm(["profile", "cpu-partitioning"])
    done = host.face("tuned_profile").restored(check=False)
    assert host.tuned_active == "cpu-partitioning"
    assert done.kept == ["profile active: changed by somebody meanwhile, so that stays"]


def test_a_failing_tuned_changes_nothing(host: Host) -> None:
    before, host.wrong = whole(host), True
    with pytest.raises(TopovirtError, match=r"something with the daemon\. Everything is as it was before"):
        host.face("tuned_profile", **OWN).present(check=False)
    assert whole(host) == before


def test_a_tuned_that_does_not_do_what_it_says_changes_nothing(host: Host) -> None:
    before, host.deaf = whole(host), True
    with pytest.raises(TopovirtError, match="wanted profile topovirt, active is balanced\nEverything is as it was"):
        host.face("tuned_profile", **OWN).present(check=False)
    assert whole(host) == before


@pytest.mark.parametrize("after", [False, True], ids=["before", "after"])
def test_a_run_cut_anywhere_is_undone(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, after: bool) -> None:
    full = Host(tmp_path / "full")
    pristine = whole(full)
    full.face("tuned_profile", **OWN).present(check=False)
    for point in range(1, len(Journal(full.root, FACES / "tuned_profile").records) + 1):
        host = Host(tmp_path / str(point))
        with monkeypatch.context() as patch:
            Cut(patch, after).left = point
            with pytest.raises(Crash):
                host.face("tuned_profile", **OWN).present(check=False)
        host.face("tuned_profile").restored(check=False)
        assert whole(host) == pristine, point


@pytest.mark.parametrize(
    ("options", "complaint"),
    [
        ({"profile": "nothing"}, "there is no TuneD profile nothing"),
        ({"profile": "a", "own": {"include": "virtual-host"}}, "Exactly one of profile and own"),
        ({"profile": None}, "Exactly one of profile and own"),
        ({"own": {"include": "cpu-partitioning"}}, "needs own.isolated_cores"),
        ({"own": {"include": "virtual-host", "isolated_cores": ""}}, "own.isolated_cores names no CPU"),
        ({"own": {"include": "virtual-host", "isolated_cores": "2-x"}}, "'2-x' is neither a number nor a range"),
        ({"own": {"include": "virtual-host", "isolated_cores": "7-9"}}, "CPUs 8-9, which this host does not have"),
        (
            {"own": {"include": "virtual-host", "isolated_cores": "0-1,4-5"}},
            "leaves node 0 no CPU of 0-1,4-5: the host needs at least one",
        ),
    ],
)
def test_bad_input_is_refused_before_any_change(host: Host, options: dict[str, Any], complaint: str) -> None:
    before = whole(host)
    with pytest.raises(TopovirtError) as refusal:
        host.face("tuned_profile", **options).present(check=False)
    assert complaint in str(refusal.value)
    assert whole(host) == before


def test_a_tuned_that_does_not_run_is_named(host: Host) -> None:
    host.units["tuned.service"]["active"] = False
    with pytest.raises(TopovirtError, match=r"tuned\.service is enabled and inactive: install TuneD and run systemctl"):
        host.face("tuned_profile", profile="virtual-host").present(check=True)
