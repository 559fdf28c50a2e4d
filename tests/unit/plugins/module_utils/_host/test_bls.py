# Copyright: the topovirt.kvm authors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""GRUB with a file for each boot entry, dracut and rpm; whole conversions of such a host are in test_runner.py."""

from __future__ import annotations

import os
import shutil
import subprocess
from pathlib import Path
from typing import Any

import pytest
from ansible_collections.topovirt.kvm.plugins.module_utils._errors import TopovirtError
from ansible_collections.topovirt.kvm.plugins.module_utils._host.cmdline.bls import Bls
from ansible_collections.topovirt.kvm.plugins.module_utils._host.cmdline.choice import boot_loader
from ansible_collections.topovirt.kvm.plugins.module_utils._host.cmdline.dracut import Dracut
from ansible_collections.topovirt.kvm.plugins.module_utils._host.package_manager import Dpkg, Rpm, package_manager
from ansible_collections.topovirt.kvm.tests.unit.plugins.module_utils._host.fake_host import KERNEL, block, variables
from ansible_collections.topovirt.kvm.tests.unit.plugins.module_utils._host.fake_red_hat import (
    ENTRY,
    ENTRY_FILE,
    OLD_ENTRY,
    FakeRedHat,
)

GRUBENV = "boot/grub2/grubenv"


@pytest.fixture
def host(tmp_path: Path) -> FakeRedHat:
    return FakeRedHat(tmp_path)


def environment(host: FakeRedHat) -> dict[str, str]:
    return variables((host.root / GRUBENV).read_bytes())


def ours(host: FakeRedHat) -> dict[str, str]:
    """The entry file of ours: key -> value."""
    (path,) = (host.root / "boot/loader/entries").glob("topovirt-*.conf")
    return dict(line.split(" ", 1) for line in path.read_text().splitlines())


def test_our_entry_is_the_hosts_one_with_our_arguments(host: FakeRedHat) -> None:
    host.convert(until="apply")
    entry = ours(host)
    assert entry["linux"] == f"/vmlinuz-{KERNEL}"
    assert entry["initrd"] == f"/topovirt-{host.runner().plan(host.wanted).id}-initramfs-{KERNEL}.img"
    assert entry["grub_arg"] == "--unrestricted" and entry["version"] == KERNEL
    assert entry["options"].startswith("root=UUID=aa-bb ro console=ttyS0 intel_iommu=on iommu=pt hugepagesz=1G ")
    assert (host.root / ENTRY_FILE).read_text() == ENTRY


def test_the_default_is_ours_only_after_the_commit(host: FakeRedHat) -> None:
    host.convert(until="reboot")
    assert environment(host)["saved_entry"] == OLD_ENTRY
    host.convert()
    assert environment(host)["saved_entry"].startswith("topovirt-")
    assert environment(host)["kernelopts"] == "root=UUID=aa-bb"
    host.go_back()
    assert environment(host)["saved_entry"] == OLD_ENTRY


def test_arguments_of_tuned_stay_where_tuned_is_not_ours(host: FakeRedHat) -> None:
    """A host that keeps its own profile keeps that profile's arguments, and needs no further reboot for them."""
    host.write(GRUBENV, block({"saved_entry": OLD_ENTRY, "tuned_params": "skew_tick=1 nohz=on"}).decode())
    host.reboot()
    wanted = {**host.wanted, "tuned": False}
    host.convert(wanted)
    assert "$tuned_params" in ours(host)["options"].split()
    assert "skew_tick=1" in (host.root / "proc/cmdline").read_text().split()
    assert not host.convert(wanted)


def test_another_default_that_an_administrator_chose_stays(host: FakeRedHat) -> None:
    host.convert()
    host.write("boot/loader/entries/mine.conf", ENTRY.replace("ro console", "mine console"))
    host.write(GRUBENV, block({"saved_entry": "mine", "kernelopts": "root=UUID=aa-bb"}).decode())
    assert host.runner().verify(host.wanted).differences == [
        f"boot loader: the default entry is 'mine', wanted 'topovirt-{host.runner().plan(host.wanted).id}'"
    ]
    runner = host.runner()
    runner.undo(False, False)
    host.reboot()
    kept = runner.finish(False, False).kept
    assert environment(host)["saved_entry"] == "mine"
    assert kept == []  # it was said by the first half
    assert not list((host.root / "boot/loader/entries").glob("topovirt-*"))


def test_what_the_first_half_kept_is_said(host: FakeRedHat) -> None:
    host.convert()
    host.write("boot/loader/entries/mine.conf", ENTRY)
    host.write(GRUBENV, block({"saved_entry": "mine"}).decode())
    assert host.runner().undo(False, False).kept == [
        f"boot loader: the default entry is 'mine', it was '{OLD_ENTRY}' before the conversion"
    ]


def test_a_kernel_that_came_meanwhile_is_tried_with_our_arguments(host: FakeRedHat) -> None:
    """As when an update made a new kernel the default: the next conversion follows it, in one trial."""
    host.convert()
    text = ENTRY.replace(KERNEL, "6.13.0-new")
    host.write("boot/loader/entries/new.conf", text)
    host.write("boot/vmlinuz-6.13.0-new", "kernel")
    host.write(GRUBENV, block({"saved_entry": "new"}).decode())
    plan = host.runner().plan(host.wanted).plan
    (image,) = (change.what for change in plan if change.kind == "initramfs")
    assert image.endswith("-initramfs-6.13.0-new.img")
    removals = [change.what for change in plan if change.kind == "removal"]
    assert len(removals) == 1 and removals[0].startswith("boot/loader/entries/topovirt-")


@pytest.mark.parametrize("link", [False, True], ids=["beside-grub", "beside-the-firmware"])
def test_the_environment_block_may_be_a_link(host: FakeRedHat, link: bool) -> None:
    if link:
        host.write("boot/efi/EFI/redhat/grubenv", (host.root / GRUBENV).read_text())
        (host.root / GRUBENV).unlink()
        os.symlink("../efi/EFI/redhat/grubenv", host.root / GRUBENV)
    before = host.snapshot()
    host.convert()
    assert (host.root / GRUBENV).is_symlink() == link
    host.go_back()
    assert host.snapshot() == before


@pytest.mark.parametrize(
    ("make", "words"),
    [
        (lambda h: h.write(GRUBENV, block({}).decode()), ("saved_entry", "''", "grub2-set-default", OLD_ENTRY)),
        (lambda h: h.write(GRUBENV, block({"saved_entry": "0"}).decode()), ("saved_entry", "'0'", "id of no entry")),
        (lambda h: h.write("boot/grub2/grub.cfg", "blscfg\n"), ("does not know next_entry", "grub2-mkconfig")),
        (lambda h: h.mount("9:1", "/boot", "xfs", "/dev/md1"), ("/boot/grub2 lies on xfs on /dev/md1",)),
        (lambda h: h.mount("9:1", "/boot", "ext4", "/dev/mapper/rhel-boot"), ("/dev/mapper/rhel-boot",)),
        (lambda h: h.write(ENTRY_FILE, "title x\nefi /shell.efi\n"), ("loads no Linux kernel",)),
        (lambda h: (h.root / "usr/bin/dracut").unlink(), ("neither mkinitramfs nor dracut",)),
        (lambda h: h.write("run/ostree-booted", ""), ("ostree or bootc",)),
    ],
    ids=["no-default", "an-index", "no-once", "md", "lvm", "no-linux", "no-dracut", "ostree"],
)
def test_a_host_that_cannot_try_an_entry_once(host: FakeRedHat, make: Any, words: tuple[str, ...]) -> None:
    make(host)
    before = host.snapshot()
    with pytest.raises(TopovirtError) as refusal:
        host.runner().record(host.wanted, check=False)
    assert [word for word in words if word not in str(refusal.value)] == []
    assert host.snapshot() == before


def test_systemd_boot_is_named(host: FakeRedHat) -> None:
    host.write("boot/loader/loader.conf", "timeout 3\n")
    (host.root / "boot/grub2/grub.cfg").unlink()
    with pytest.raises(TopovirtError, match="found systemd-boot"):
        boot_loader(host.root, host.run)


def test_the_command_line_of_the_next_boot(host: FakeRedHat) -> None:
    loader = Bls(host.root, host.run)
    host.write(GRUBENV, block({"saved_entry": OLD_ENTRY, "tuned_params": "nohz=on"}).decode())
    assert loader.next_arguments() == ("root=UUID=aa-bb", "ro", "console=ttyS0", "intel_iommu=off", "nohz=on")
    host.write("boot/loader/entries/other.conf", ENTRY.replace("ro console", "once console"))
    loader.environment.set_next_entry("other")
    assert "once" in loader.next_arguments()


def test_an_initramfs_that_cannot_be_built_leaves_nothing(host: FakeRedHat, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(host, "run", lambda words: (1, "", "dracut: no space left"))
    image = host.root / f"boot/topovirt-cafe0001-initramfs-{KERNEL}.img"
    with pytest.raises(TopovirtError, match=rf"dracut failed for kernel {KERNEL}: dracut: no space left"):
        Dracut(host.root, host.run).build("cafe0001", [], image)
    assert not list((host.root / "boot").glob("topovirt*"))


def test_the_unit_in_the_initramfs_runs_the_script_before_drivers_are_loaded(host: FakeRedHat, tmp_path: Path) -> None:
    """What systemd needs for it: the unit, something that wants it, and a script that is shell."""
    image = host.root / f"boot/topovirt-cafe0001-initramfs-{KERNEL}.img"
    tree = tmp_path / "tree"

    def dracut(words: list[str]) -> tuple[int, str, str]:
        shutil.copytree(words[words.index("--include") + 1], tree)
        return host.run(words)

    Dracut(host.root, dracut).build("cafe0001", ["0000:23:00.0"], image)
    assert not list((host.root / "var/lib/topovirt").iterdir())  # what it was built from is not left behind
    unit = (tree / "etc/systemd/system/topovirt-bind.service").read_text()
    assert "Before=systemd-udevd.service" in unit and "DefaultDependencies=no" in unit
    started = next(line for line in unit.splitlines() if line.startswith("ExecStart=")).split()[-1]
    subprocess.run(["sh", "-n", str(tree / started.lstrip("/"))], check=True)
    (drop_in,) = tree.rglob("systemd-udevd.service.d/*.conf")
    assert "Wants=topovirt-bind.service" in drop_in.read_text()


@pytest.mark.parametrize(
    ("like", "kind"), [('ID="rhel"', Rpm), ("ID=rocky\nID_LIKE='rhel fedora'", Rpm), ("ID=ubuntu", Dpkg)]
)
def test_the_distribution_decides_where_both_databases_are(host: FakeRedHat, like: str, kind: type) -> None:
    host.write("var/lib/dpkg/status", "")
    host.write("etc/os-release", f"{like}\n")
    assert type(package_manager(host.root, host.run)) is kind


def test_packages_of_rpm(host: FakeRedHat, monkeypatch: pytest.MonkeyPatch) -> None:
    said = (
        "kernel x86_64 0:5.14.0-1.el9\nkernel x86_64 0:5.14.0-2.el9\nglibc i686 0:2.34-1.el9\ngpg-pubkey (none) 0:1-2\n"
    )
    asked: list[list[str]] = []

    def run(words: list[str]) -> tuple[int, str, str]:
        asked.append(words)
        if "-qa" in words:
            return 0, said, ""
        return 1, "", "error: Failed dependencies:\n\tglibc is needed by (installed) vim\n"

    manager = Rpm(host.root, run)
    assert manager.installed() == {
        "kernel": "0:5.14.0-1.el9 0:5.14.0-2.el9",
        "glibc:i686": "0:2.34-1.el9",
        "gpg-pubkey": "0:1-2",
    }
    assert manager.obstacles(["glibc:i686"]) == ["error: Failed dependencies:", "glibc is needed by (installed) vim"]
    assert asked[-1] == ["rpm", "--erase", "--test", "glibc.i686"]
    with pytest.raises(TopovirtError, match="rpm could not remove glibc:i686: error: Failed dependencies"):
        manager.purge(["glibc:i686"])


def test_files_of_packages_are_where_the_links_lead(host: FakeRedHat) -> None:
    assert {"usr/bin/bash"} <= package_manager(host.root, host.run).owned()
