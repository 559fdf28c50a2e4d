# Copyright: the topovirt.kvm authors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

from __future__ import annotations

import shutil
import subprocess
from dataclasses import replace
from pathlib import Path

import pytest
from ansible_collections.topovirt.kvm.plugins.module_utils._errors import TopovirtError
from ansible_collections.topovirt.kvm.plugins.module_utils._host.cmdline.grub import Grub
from ansible_collections.topovirt.kvm.plugins.module_utils._host.cmdline.initramfs_tools import InitramfsTools
from ansible_collections.topovirt.kvm.tests.unit.plugins.module_utils._host.fake_host import GRUB_CFG, FakeHost

CUSTOM = "boot/grub/custom.cfg"
IMAGE = "boot/topovirt-cafe0001-initrd.img-6.12.0-test"


@pytest.fixture
def host(tmp_path: Path) -> FakeHost:
    return FakeHost(tmp_path)


def with_default(host: FakeHost, default: str, saved: str = "") -> Grub:
    host.write("boot/grub/grub.cfg", GRUB_CFG.replace('set default="0"', f'set default="{default}"'))
    if saved:
        host.run(["grub-editenv", str(host.root / "boot/grub/grubenv"), "set", f"saved_entry={saved}"])
    return Grub(host.root, host.run)


@pytest.mark.parametrize(
    ("default", "saved", "title"),
    [
        ("0", "", "Debian GNU/Linux"),
        ("1>0", "", "Recovery"),
        ("gnulinux-simple-aa-bb", "", "Debian GNU/Linux"),
        ("gnulinux-advanced-aa-bb>gnulinux-recovery-aa-bb", "", "Recovery"),
        ("Advanced options>Recovery", "", "Recovery"),
        ("${saved_entry}", "gnulinux-advanced-aa-bb>gnulinux-recovery-aa-bb", "Recovery"),
        ("${saved_entry}", "", "Debian GNU/Linux"),
        ("9", "", "Debian GNU/Linux"),  # GRUB takes the first entry
        ("1", "", "Debian GNU/Linux"),  # a submenu is no entry
    ],
)
def test_the_default_entry(host: FakeHost, default: str, saved: str, title: str) -> None:
    entry = with_default(host, default, saved).default_entry("")
    assert entry.title == title
    assert entry.kernel == "/boot/vmlinuz-6.12.0-test"
    assert entry.kernel_version == "6.12.0-test"
    assert entry.arguments[:2] == ("root=UUID=aa-bb", "ro")
    assert ("single" in entry.arguments) == (title == "Recovery")


def test_what_belongs_to_an_entry(host: FakeHost) -> None:
    entry = Grub(host.root, host.run).default_entry("")
    assert entry.options == ("--class", "debian", "--class", "os")
    assert "savedefault" not in entry.body  # it would write our entry into the environment block
    assert "search --no-floppy --fs-uuid --set=root aa-bb" in entry.body
    assert not [line for line in entry.body if line.startswith("echo")]


def test_an_entry_without_linux(host: FakeHost) -> None:
    host.write("boot/grub/grub.cfg", "menuentry 'Setup' {\n\tfwsetup\n}\n")
    with pytest.raises(TopovirtError, match="'Setup' loads no Linux kernel"):
        Grub(host.root, host.run).default_entry("")


def test_rendering_twice_is_rendering_once(host: FakeHost) -> None:
    grub = Grub(host.root, host.run)
    entry = grub.default_entry("")
    host.write(CUSTOM, "# mine\n")
    once = grub.files([entry], entry)[CUSTOM]
    host.write(CUSTOM, once)
    assert grub.files([entry], entry) == {CUSTOM: once}
    assert grub.without_ours(once) == "# mine\n"
    assert once.startswith("# mine\n")


def test_a_separate_boot_partition(host: FakeHost) -> None:
    host.write("boot/grub/grub.cfg", GRUB_CFG.replace("/boot/vmlinuz", "/vmlinuz").replace("/boot/initrd", "/initrd"))
    grub = Grub(host.root, host.run)
    assert grub.initrd_path(grub.default_entry(""), "ours.img") == "/ours.img"


def test_a_quote_in_a_title(host: FakeHost) -> None:
    grub = Grub(host.root, host.run)
    entry = grub.default_entry("")
    text = grub.files([replace(entry, id="id", title="it's", options=())], None)[CUSTOM]
    assert "menuentry 'it'\\''s' --id 'id' {" in text


def test_the_early_script_is_shell_and_acts_under_the_token_only(host: FakeHost, tmp_path: Path) -> None:
    """Run for real, with the sysfs of the fake host and programs that only log."""
    devices = ["0000:23:00.0", "0000:93:00.0"]
    host.write("log", "")

    def mkinitramfs(words: list[str]) -> tuple[int, str, str]:
        shutil.copytree(words[words.index("-d") + 1], tmp_path / "tree")
        return host.run(words)

    InitramfsTools(host.root, mkinitramfs).build("cafe0001", devices, host.root / IMAGE)
    assert not list((host.root / "var/lib/topovirt").iterdir())  # what it was built from is not left behind
    script = (tmp_path / "tree/scripts/init-top/topovirt").read_text()
    script = script.replace("/proc/cmdline", f"{host.root}/proc/cmdline").replace("=/sys", f"={host.root}/sys")
    script = script.replace("modprobe ", f"echo modprobe >> {host.root}/log ")
    probe = host.root / "sys/bus/pci/drivers_probe"
    probe.touch()

    def start(arguments: str) -> str:
        host.write("proc/cmdline", f"{arguments}\n")
        subprocess.run(["sh", "-c", script, "topovirt"], check=True)
        return probe.read_text().strip()

    assert start("quiet topovirt=other") == ""
    assert start("quiet") == ""
    assert (host.root / "log").read_text() == ""
    assert start("quiet topovirt=cafe0001 ro") == devices[-1]
    overrides = [(host.root / "sys/bus/pci/devices" / bdf / "driver_override").read_text() for bdf in devices]
    assert overrides == ["vfio-pci\n"] * 2
    assert (host.root / "log").read_text().splitlines() == ["modprobe vfio-pci", "modprobe vfio_iommu_type1"]
    prereqs = subprocess.run(["sh", "-c", script, "topovirt", "prereqs"], check=True, capture_output=True, text=True)
    assert prereqs.stdout.strip() == ""


def test_a_failed_build_leaves_nothing(host: FakeHost, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(host, "run", lambda words: (1, "", "no space left"))
    with pytest.raises(TopovirtError, match=r"mkinitramfs failed for kernel 6\.12\.0-test: no space left"):
        InitramfsTools(host.root, host.run).build("cafe0001", [], host.root / IMAGE)
    assert not list((host.root / "boot").glob("topovirt*"))


def test_the_command_line_of_the_next_boot(host: FakeHost) -> None:
    grub = Grub(host.root, host.run)
    usual = grub.default_entry("").arguments
    assert grub.next_arguments() == usual
    ours = replace(grub.default_entry(""), id="ours", title="Ours", arguments=("root=x", "iommu=pt"))
    host.write(CUSTOM, grub.files([ours], None)[CUSTOM])
    assert grub.next_arguments() == usual
    grub.environment.set_next_entry("ours")
    assert grub.next_arguments() == ("root=x", "iommu=pt")
    grub.environment.set_next_entry("")
    host.write(CUSTOM, grub.files([ours], ours)[CUSTOM])
    assert grub.next_arguments() == ("root=x", "iommu=pt")
    assert grub.default_entry("").arguments == usual
