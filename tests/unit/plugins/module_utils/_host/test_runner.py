# Copyright: the topovirt.kvm authors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""The whole conversion and its way back, on a server made of files."""

from __future__ import annotations

import json
import os
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from ansible_collections.topovirt.kvm.plugins.module_utils._errors import TopovirtError
from ansible_collections.topovirt.kvm.plugins.module_utils._host.journal import Journal
from ansible_collections.topovirt.kvm.plugins.module_utils._host.runner import identity
from ansible_collections.topovirt.kvm.plugins.module_utils._host.step import Change
from ansible_collections.topovirt.kvm.tests.unit.plugins.module_utils._host.cut import Cut
from ansible_collections.topovirt.kvm.tests.unit.plugins.module_utils._host.fake_host import (
    GPU0,
    GPU1,
    IGB,
    NATIVE,
    NIC0,
    NIC1,
    NVME0,
    SWITCH0,
    SWITCH1,
    Crash,
    FakeHost,
)
from ansible_collections.topovirt.kvm.tests.unit.plugins.module_utils._host.fake_red_hat import FakeRedHat


class WithFunctions(FakeHost):
    """With virtual functions for guests."""

    wanted = {**FakeHost.wanted, "sriov": {IGB: 2}}


PASSED = {GPU0, GPU1, NIC0, NIC1, SWITCH0, SWITCH1}


KINDS = pytest.mark.parametrize(
    "kind", [FakeHost, FakeRedHat, WithFunctions], ids=["debian", "red-hat", "virtual functions"]
)


@pytest.fixture(params=[FakeHost, FakeRedHat], ids=["debian", "red-hat"])
def host(request: pytest.FixtureRequest, tmp_path: Path) -> FakeHost:
    kind: type[FakeHost] = request.param
    return kind(tmp_path)


@pytest.fixture
def debian(tmp_path: Path) -> FakeHost:
    return FakeHost(tmp_path)


def test_a_converted_host_is_what_was_wanted(host: FakeHost) -> None:
    host.convert()
    assert {bdf for bdf, driver in host.drivers().items() if driver == "vfio-pci"} == PASSED
    assert host.driver(IGB) == "igb"
    assert host.driver(NVME0) == "nvme"
    assert host.page_counts() == [5, 5]  # 8 GiB less 3
    assert host.tuned_active == "topovirt"
    words = (host.root / "proc/cmdline").read_text().split()
    assert {
        "intel_iommu=on",
        "iommu=pt",
        "mitigations=auto",
        "hugepagesz=1G",
        "hugepages=0:5,1:5",
        f"topovirt={identity(host.root)}",
        "console=ttyS0",
    } <= set(words)
    assert "intel_iommu=off" not in words
    assert words.index("hugepages=0:5,1:5") == words.index("hugepagesz=1G") + 1  # the count is of the size before it
    committed = json.loads((host.root / "var/lib/topovirt/host.json").read_text())
    assert committed["passthrough"] == {bdf: role for bdf, role in committed["passthrough"].items() if bdf in PASSED}
    assert committed["hugepages"] == {"page_size_bytes": 1 << 30, "per_node": {"0": 5, "1": 5}}
    assert committed["housekeeping_cpus"] == {"0": "0,4", "1": "2,6"}
    assert committed["id"] == identity(host.root)


def test_the_old_boot_files_are_never_touched(host: FakeHost) -> None:
    host.install(*host.wanted["packages"])
    before = host.snapshot()
    host.convert()
    after = host.snapshot()
    for path in before:
        if path.startswith("boot/") and path != "boot/grub" and "grubenv" not in path:
            assert after[path] == before[path]
    assert not (host.root / "etc/initramfs-tools/hooks").exists()


def test_the_new_entry_is_tried_once_only(host: FakeHost) -> None:
    host.convert(until="reboot")
    assert "topovirt=" in (host.root / "proc/cmdline").read_text()
    host.reboot()  # not committed
    assert "topovirt=" not in (host.root / "proc/cmdline").read_text()
    assert host.drivers() == NATIVE


def test_a_committed_entry_stays(host: FakeHost) -> None:
    host.convert()
    host.reboot()
    assert f"topovirt={identity(host.root)}" in (host.root / "proc/cmdline").read_text()
    assert host.driver(GPU0) == "vfio-pci"


def test_a_second_run_changes_nothing(host: FakeHost) -> None:
    assert host.convert()
    before = host.snapshot()
    host.log.clear()
    assert not host.convert()
    assert host.snapshot() == before
    assert not [
        words
        for words in host.log
        if words[0] in ("mkinitramfs", "dracut", "grub-editenv", "grub2-editenv", "modprobe")
    ]
    assert not host.runner().plan(host.wanted).changed


def test_a_second_run_is_possible_while_vms_run(host: FakeHost) -> None:
    host.convert()
    host.write("run/libvirt/qemu/train-0.xml", "<domstatus/>")
    assert not host.convert()


def test_the_way_back_restores_every_byte(host: FakeHost) -> None:
    os.setxattr(host.root / "etc/group", "user.mark", b"kept")
    before = host.snapshot()
    host.convert()
    host.write("root/.cache/libvirt/qemu/capabilities.xml", "made by a daemon")
    host.go_back()
    after = host.snapshot()
    after = {path: value for path, value in after.items() if path not in ("root/.cache",)}
    assert after == before
    assert os.getxattr(host.root / "etc/group", "user.mark") == b"kept"
    assert host.installed == host.initial
    assert host.page_counts() == [0, 0]


def test_an_administrators_custom_entries_survive(debian: FakeHost) -> None:
    host = debian
    mine = "menuentry 'Mine' --id 'mine' {\n\tlinux\t/boot/vmlinuz-6.12.0-test mine\n\tinitrd\t/boot/initrd.img\n}"
    host.write("boot/grub/custom.cfg", mine)  # without a newline at its end
    (host.root / "boot/grub/custom.cfg").chmod(0o600)
    before = host.snapshot()
    host.convert()
    assert mine in (host.root / "boot/grub/custom.cfg").read_text()
    host.go_back()
    assert host.snapshot() == before


def test_what_an_administrator_changed_meanwhile_is_kept(debian: FakeHost) -> None:
    host = debian
    host.convert()
    custom = host.root / "boot/grub/custom.cfg"
    custom.write_text("# new comment\n" + custom.read_text())
    (host.root / "etc/passwd").write_text((host.root / "etc/passwd").read_text() + "new:x:1001:1001::/:/bin/sh\n")
    host.installed["later"] = "2.0"
    host._write_database()
    host.write("boot/initrd.img-6.12.0-test", "mine")
    host.go_back()
    assert custom.read_text() == "# new comment\n"
    assert (host.root / "boot/initrd.img-6.12.0-test").read_text() == "mine"
    passwd = (host.root / "etc/passwd").read_text()
    assert "libvirt-qemu" not in passwd
    assert passwd.endswith("new:x:1001:1001::/:/bin/sh\n")
    assert "later" in (host.root / "var/lib/dpkg/status").read_text()
    assert (host.root / "etc/group").read_text() == "root:x:0:\nkvm:x:104:admin\nadmin:x:1000:\n"


def test_a_user_that_owns_something_stays(host: FakeHost) -> None:
    host.convert()
    host.write("srv/guest.img", "data")
    os.chown(host.root / "srv/guest.img", 64055, 104)
    runner = host.runner()
    runner.undo(False, False)
    host.reboot()
    kept = runner.finish(False, False).kept
    assert kept == [f"user {host.user}: owns /srv/guest.img"]
    assert f"{host.user}:" in (host.root / "etc/passwd").read_text()
    assert "libvirt:x:" not in (host.root / "etc/group").read_text()


def test_a_tuned_that_was_there_gets_its_profile_back(host: FakeHost) -> None:
    host.install("tuned")
    host.write("etc/tuned/active_profile", "my-own\n")
    before = host.snapshot()
    host.convert(until="reboot")
    assert (host.root / "etc/tuned/active_profile").read_text() == "my-own\n"  # until the new boot is verified
    host.convert()
    assert host.tuned_active == "topovirt"
    assert not (host.root / "etc/systemd/system/tuned.service.d").exists()
    runner = host.runner()
    runner.undo(False, False)
    host.reboot()
    assert host.tuned_active == "my-own"
    runner.finish(False, False)
    assert host.snapshot() == before


def test_a_profile_with_kernel_arguments_of_its_own_is_not_switched(host: FakeHost) -> None:
    host.install("tuned")
    host.write("etc/tuned/active_profile", "cpu-partitioning\n")
    host.write("etc/tuned/bootcmdline", 'TUNED_BOOT_CMDLINE="nohz=on isolcpus=2-3"\nTUNED_BOOT_INITRD_ADD=""\n')
    host.reboot()
    with pytest.raises(TopovirtError, match=r"profile cpu-partitioning sets kernel arguments \(nohz=on isolcpus=2-3\)"):
        host.runner().plan(host.wanted)
    assert host.convert({**host.wanted, "tuned": False})
    assert host.tuned_active == "cpu-partitioning"


def test_a_service_that_was_off_is_off_again(host: FakeHost) -> None:
    host.install(*host.wanted["packages"])
    host.units[host.daemon] = {"enabled": "disabled", "active": False}
    host.convert()
    assert host.units[host.daemon] == {"enabled": "enabled", "active": True}
    host.go_back()
    assert host.units[host.daemon] == {"enabled": "disabled", "active": False}


# --- prediction ---------------------------------------------------------------------------------------------------


def test_check_mode_predicts_the_real_run_and_changes_nothing(host: FakeHost) -> None:
    before = host.snapshot()
    runner = host.runner()
    phases = (runner.record, runner.apply, runner.commit)
    predicted = [phase(host.wanted, check=True).plan for phase in phases]
    assert [change for plan in predicted for change in plan] == runner.plan(host.wanted).plan
    assert host.snapshot() == before

    made = [runner.record(host.wanted, check=False).plan]
    host.install(*host.wanted["packages"])
    made.append(runner.apply(host.wanted, check=False).plan)
    host.reboot()
    made.append(runner.commit(host.wanted, check=False).plan)

    def shape(plan: list[Change]) -> list[Change]:
        """Some directories come with packages, so that they need not be made then."""
        return [replace(change, reboot=False) for change in plan if change.kind != "directory"]

    assert [shape(plan) for plan in made] == [shape(plan) for plan in predicted]


def test_the_id_is_the_same_at_each_try_and_differs_between_hosts(host: FakeHost, tmp_path: Path) -> None:
    assert host.runner().plan(host.wanted).id == host.runner().plan(host.wanted).id
    other = FakeHost(tmp_path / "other")
    other.write("etc/machine-id", "b" * 32 + "\n")
    assert other.runner().plan(host.wanted).id != host.runner().plan(host.wanted).id


# --- change of the set on a converted host ------------------------------------------------------------------------


def test_nvswitches_go_back_to_the_host_without_a_reboot(host: FakeHost) -> None:
    before = host.snapshot()
    host.convert()
    host.reboot()  # without the words of the trial
    cmdline = (host.root / "proc/cmdline").read_text()
    host.log.clear()
    shared = {**host.wanted, "fabric_model": "shared_nvswitch"}
    report = host.runner().apply(shared, check=False)
    assert not report.reboot_required
    assert host.driver(SWITCH0) == host.driver(SWITCH1) == "nvidia"
    assert host.driver(GPU0) == "vfio-pci"
    assert len([words for words in host.log if words[0] in ("mkinitramfs", "dracut")]) == 1
    host.runner().commit(shared, check=False)
    assert SWITCH0 not in json.loads((host.root / "var/lib/topovirt/host.json").read_text())["passthrough"]
    host.reboot()
    assert (host.root / "proc/cmdline").read_text() == cmdline
    assert host.driver(SWITCH0) == "nvidia"
    assert not host.convert(shared)

    host.convert()  # and back to the guests
    assert host.driver(SWITCH0) == "vfio-pci"
    host.go_back()
    assert host.snapshot() == before


def test_the_set_does_not_change_while_vms_run(host: FakeHost) -> None:
    host.convert()
    host.write("run/libvirt/qemu/train-0.xml", "<domstatus/>")
    with pytest.raises(TopovirtError, match="VM train-0 is running"):
        host.runner().apply({**host.wanted, "fabric_model": "shared_nvswitch"}, check=False)
    assert host.driver(SWITCH0) == "vfio-pci"


def test_new_arguments_are_tried_before_they_replace_the_committed_ones(host: FakeHost) -> None:
    before = host.snapshot()
    host.convert()
    other = {**host.wanted, "cmdline": ["mitigations=off"]}
    host.convert(other, until="reboot")
    assert "mitigations=off" in (host.root / "proc/cmdline").read_text()
    host.reboot()
    assert "mitigations=auto" in (host.root / "proc/cmdline").read_text()
    host.convert(other)
    host.reboot()
    assert "mitigations=off" in (host.root / "proc/cmdline").read_text()
    assert host.entries_of_ours() == 1
    host.go_back()
    assert host.snapshot() == before


def test_the_pool_of_huge_pages_is_resized_without_a_reboot(host: FakeHost) -> None:
    before = host.snapshot()
    host.convert()
    smaller = {**host.wanted, "hugepages": {"per_node": {"0": 4, "1": 3}}}
    report = host.runner().apply(smaller, check=False)
    assert report.changed and not report.reboot_required
    assert host.page_counts() == [4, 3]
    assert not host.runner().verify(smaller).differences
    host.runner().commit(smaller, check=False)
    assert not host.convert(smaller)
    host.reboot()
    assert host.page_counts() == [4, 3]
    assert "hugepages=0:4,1:3" in (host.root / "proc/cmdline").read_text()
    assert not host.convert(smaller)
    host.go_back()
    assert host.snapshot() == before


def test_a_pool_that_the_kernel_cannot_resize_is_said(host: FakeHost) -> None:
    host.convert()
    host.fewer_pages = 1
    larger = {**host.wanted, "hugepages": {"per_node": {"0": 5, "1": 4}}}
    with pytest.raises(TopovirtError, match="did not give the wanted huge pages"):
        host.runner().apply(larger, check=False)


# --- verification -------------------------------------------------------------------------------------------------


def test_verification_lists_everything_that_differs(host: FakeHost) -> None:
    host.fewer_pages = 1
    host.convert(until="reboot")
    device = host.root / "sys/bus/pci/devices" / GPU0 / "driver"
    device.unlink()
    host.units[host.daemon]["active"] = False
    differences = host.runner().verify(host.wanted).differences
    assert differences == [
        f"unit {host.daemon}: wanted enabled and active, found enabled and inactive",
        "node 0: wanted 5 huge pages of 1048576 KiB, the kernel has 4",
        "node 1: wanted 5 huge pages of 1048576 KiB, the kernel has 4",
        f"{GPU0}: wanted driver vfio-pci, found none",
    ]
    with pytest.raises(TopovirtError, match="nothing is made permanent"):
        host.runner().commit(host.wanted, check=False)
    host.reboot()
    assert host.drivers() == NATIVE


def test_verification_without_the_new_boot_says_so(host: FakeHost) -> None:
    host.convert(until="apply")
    differences = host.runner().verify(host.wanted).differences
    assert f"kernel command line: topovirt={identity(host.root)} is missing" in differences
    assert f"{GPU0}: wanted driver vfio-pci, found nvidia" in differences


# --- the way back refuses -----------------------------------------------------------------------------------------


def test_the_way_back_names_vms_that_run_or_are_defined(host: FakeHost) -> None:
    host.write("etc/libvirt/qemu/before.xml", "<domain/>")
    host.convert()
    host.write("etc/libvirt/qemu/later.xml", "<domain/>")
    host.write("run/libvirt/qemu/runs.xml", "<domstatus/>")
    before = host.snapshot()
    with pytest.raises(TopovirtError) as refusal:
        host.runner().undo(False, False)
    assert "VM runs is running" in refusal.value.message
    assert "VM later is defined" in refusal.value.message
    assert "before" not in refusal.value.message
    assert host.snapshot() == before


def test_the_way_back_never_loses_images_unasked(host: FakeHost) -> None:
    host.convert()
    host.write("var/lib/libvirt/images/mine.qcow2", "data")
    host.write("var/lib/libvirt/images/topovirt/copy.qcow2", "a copy of the collection")
    with pytest.raises(TopovirtError, match=r"/var/lib/libvirt/images/mine\.qcow2 would be lost") as refusal:
        host.runner().plan_back()
    assert "copy.qcow2" not in refusal.value.message
    assert host.runner().plan_back(discard=True).changed


def test_finish_refuses_under_the_converted_entry(host: FakeHost) -> None:
    host.convert()
    host.runner().undo(False, False)
    with pytest.raises(TopovirtError, match="still runs the boot entry"):
        host.runner().finish(False, False)


def test_a_host_that_was_never_converted_needs_no_way_back(host: FakeHost) -> None:
    before = host.snapshot()
    assert not host.runner().plan_back().changed
    assert not host.runner().undo(False, False).changed
    assert not host.runner().finish(False, False).changed
    assert host.snapshot() == before


# --- interruption -------------------------------------------------------------------------------------------------


def cut_points(host: FakeHost) -> int:
    return len(Journal(host.root).records)


@KINDS
@pytest.mark.parametrize("after", [False, True], ids=["before", "after"])
def test_a_conversion_cut_anywhere_is_finished_or_undone(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, after: bool, kind: type[FakeHost]
) -> None:
    whole = kind(tmp_path / "whole")
    pristine = whole.snapshot()
    whole.convert()
    converted = whole.snapshot()
    points = cut_points(whole)
    assert points > 40
    for point in range(1, points + 1):
        host = kind(tmp_path / str(point))
        with monkeypatch.context() as patch:
            cut = Cut(patch, after)
            cut.left = point
            with pytest.raises(Crash):
                host.convert()
        if point % 3 == 0:
            host.reboot()  # whatever entry that starts
        if point % 2 == after:  # so that each record is finished once and undone once
            host.convert()
            assert without_journal(host.snapshot()) == without_journal(converted), point
        else:
            host.go_back()
            assert host.snapshot() == pristine, point


def without_journal(snapshot: dict[str, Any]) -> dict[str, Any]:
    return {path: value for path, value in snapshot.items() if not path.startswith("var/lib/topovirt/")}


@KINDS
@pytest.mark.parametrize("after", [False, True], ids=["before", "after"])
def test_a_way_back_cut_anywhere_is_finished(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, after: bool, kind: type[FakeHost]
) -> None:
    whole = kind(tmp_path / "whole")
    pristine = whole.snapshot()
    whole.convert()
    touched = len(Journal(whole.root).first_priors())
    for point in range(1, touched + 2):
        host = kind(tmp_path / str(point))
        host.convert()
        with monkeypatch.context() as patch:
            cut = Cut(patch, after)
            cut.left = point
            with pytest.raises(Crash):
                host.go_back()
        if point % 3 == 0:
            host.reboot()
        host.go_back()
        assert host.snapshot() == pristine, point


def test_a_conversion_during_a_way_back_is_refused(host: FakeHost) -> None:
    host.convert()
    host.runner().undo(False, False)
    with pytest.raises(TopovirtError, match="way back to bare metal is under way"):
        host.runner().plan(host.wanted)
