# Copyright: the topovirt.kvm authors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""The test double of grubby, on a tree like the image's: what it prints and what it changes, and nothing else."""

from __future__ import annotations

import runpy
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest

GRUBBY = Path(__file__).parents[2] / "twin/standins/grubby"
MACHINE = "c0ffee00000040008000746f706f7669"
KERNEL = "6.12.1-amd64"
ID = f"{MACHINE}-{KERNEL}"
ENTRY = f"""title Red Hat Enterprise Linux ({KERNEL}) 9.6 (Plow)
version {KERNEL}
linux /vmlinuz-{KERNEL}
initrd /initramfs-{KERNEL}.img $tuned_initrd
options root=UUID=1-2 ro console=ttyS0 quiet $tuned_params
grub_users $grub_users
"""


class Host:
    """A tree, and grubenv as a table."""

    def __init__(self, root: Path) -> None:
        self.root = root
        self.variables = {"saved_entry": ID}
        self.said: list[str] = []
        files = {
            f"boot/loader/entries/{ID}.conf": ENTRY,
            "etc/machine-id": f"{MACHINE}\n",
            "etc/kernel/cmdline": "root=UUID=1-2 ro console=ttyS0 quiet\n",
            "etc/default/grub": 'GRUB_TIMEOUT=0\nGRUB_CMDLINE_LINUX="console=ttyS0 quiet"\n',
            f"boot/vmlinuz-{KERNEL}": "",
            f"boot/initramfs-{KERNEL}.img": "",
        }
        for name, text in files.items():
            (root / name).parent.mkdir(parents=True, exist_ok=True)
            (root / name).write_text(text)
        self.names = runpy.run_path(str(GRUBBY))
        self.refusal = self.names["Refusal"]

    def editenv(self, words: Sequence[str]) -> str:
        assert list(words[:2]) == ["grub2-editenv", "-"]
        if words[2] == "set":
            name, _, value = words[3].partition("=")
            self.variables[name] = value
        return "".join(f"{name}={value}\n" for name, value in self.variables.items())

    def do(self, *words: str) -> list[str]:
        self.said = []
        program: Any = self.names["Grubby"](self.root, self.editenv, self.said.append)
        program.do(words)
        return self.said

    def read(self, name: str) -> str:
        return (self.root / name).read_text()

    def entry(self, identity: str = ID) -> str:
        return self.read(f"boot/loader/entries/{identity}.conf")


@pytest.fixture
def host(tmp_path: Path) -> Host:
    return Host(tmp_path)


def test_says_that_it_is_a_double() -> None:
    done = subprocess.run([sys.executable, GRUBBY, "--version"], check=True, capture_output=True, text=True)
    assert "test double" in done.stdout


def test_info_of_an_entry(host: Host) -> None:
    assert host.do("--info=ALL") == [
        "index=0",
        f'kernel="/boot/vmlinuz-{KERNEL}"',
        'args="ro console=ttyS0 quiet $tuned_params"',
        'root="UUID=1-2"',
        f'initrd="/boot/initramfs-{KERNEL}.img $tuned_initrd"',
        f'title="Red Hat Enterprise Linux ({KERNEL}) 9.6 (Plow)"',
        f'id="{ID}"',
    ]
    assert host.do("--info", "DEFAULT")[-1] == f'id="{ID}"'


@pytest.mark.parametrize("words", [("--args=foo=1 bar",), ("--args", "foo=1 bar")])
def test_added_arguments_are_in_the_entry_and_both_files_before_the_variable(
    host: Host, words: tuple[str, ...]
) -> None:
    host.do("--update-kernel=ALL", *words)
    assert "options root=UUID=1-2 ro console=ttyS0 quiet foo=1 bar $tuned_params\n" in host.entry()
    assert host.read("etc/kernel/cmdline") == "root=UUID=1-2 ro console=ttyS0 quiet foo=1 bar\n"
    assert 'GRUB_CMDLINE_LINUX="console=ttyS0 quiet foo=1 bar"\n' in host.read("etc/default/grub")
    host.do("--update-kernel", "ALL", "--remove-args=foo bar")
    assert host.entry() == ENTRY
    assert host.read("etc/kernel/cmdline") == "root=UUID=1-2 ro console=ttyS0 quiet\n"


def test_a_new_value_takes_the_place_of_the_old_and_a_removed_value_must_fit(host: Host) -> None:
    host.do("--update-kernel=ALL", "--args=console=tty0")
    assert "options root=UUID=1-2 ro quiet console=tty0 $tuned_params\n" in host.entry()
    host.do("--update-kernel=ALL", "--remove-args=console=ttyS0 qui")
    assert "options root=UUID=1-2 ro quiet console=tty0 $tuned_params\n" in host.entry()


def test_one_entry_alone_leaves_the_files_for_new_kernels(host: Host) -> None:
    host.do("--update-kernel=0", "--args=one")
    host.do(f"--update-kernel=/boot/vmlinuz-{KERNEL}", "--args=two")
    assert "quiet one two $tuned_params" in host.entry()
    assert host.read("etc/kernel/cmdline") == "root=UUID=1-2 ro console=ttyS0 quiet\n"
    assert "one" not in host.read("etc/default/grub")


def test_the_command_line_of_new_kernels_is_made_on_first_use_without_variables(host: Host) -> None:
    (host.root / "etc/kernel/cmdline").unlink()
    host.do("--update-kernel=ALL", "--args=x")
    assert host.read("etc/kernel/cmdline") == "root=UUID=1-2 ro console=ttyS0 quiet x\n"


def test_an_added_entry_comes_first_and_the_default_stays(host: Host) -> None:
    words = ("--copy-default", "--title=trial", "--args=shot=1", f"--initrd=/boot/other-{KERNEL}.img")
    host.do(f"--add-kernel=/boot/vmlinuz-{KERNEL}", *words)
    new = f"{ID}.0~custom"
    assert host.do("--info=0")[-1] == f'id="{new}"'
    assert host.do("--info=1")[-1] == f'id="{ID}"'
    assert host.do("--default-index") == ["1"]
    assert host.do("--default-kernel") == [f"/boot/vmlinuz-{KERNEL}"]
    assert host.do("--default-title") == [f"Red Hat Enterprise Linux ({KERNEL}) 9.6 (Plow)"]
    text = host.entry(new)
    assert f"initrd /other-{KERNEL}.img $tuned_initrd\n" in text
    assert "options root=UUID=1-2 ro console=ttyS0 quiet shot=1 $tuned_params\n" in text
    host.do(f"--add-kernel=/boot/vmlinuz-{KERNEL}", "--title=second")
    assert f"initrd /initramfs-{KERNEL}.img\n" in host.entry(f"{ID}.1~custom")
    assert "options \n" in host.entry(f"{ID}.1~custom")
    host.do("--remove-kernel=0")
    host.do("--remove-kernel=0")
    assert [path.stem for path in (host.root / "boot/loader/entries").iterdir()] == [ID]
    assert host.entry() == ENTRY


def test_the_default_is_an_id_in_grubenv(host: Host) -> None:
    host.do(f"--add-kernel=/boot/vmlinuz-{KERNEL}", "--title=trial", "--copy-default")
    said = host.do("--set-default-index=0")
    assert host.variables == {"saved_entry": f"{ID}.0~custom"}
    assert said[0].endswith(f"with index 0 and kernel /boot/vmlinuz-{KERNEL}")
    host.do("--set-default-index=1")
    assert host.variables == {"saved_entry": ID}
    host.do(f"--add-kernel=/boot/vmlinuz-{KERNEL}", "--title=more", "--copy-default", "--make-default")
    assert host.variables == {"saved_entry": f"{ID}.1~custom"}


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (("--info=/boot/vmlinuz-none",), "The param /boot/vmlinuz-none is incorrect"),
        (("--update-kernel=7", "--args=x"), "The param 7 is incorrect"),
        (("--set-default=/boot/none",), "The param /boot/none is incorrect"),
        (("--add-kernel=/boot/vmlinuz-none", "--title=x"), "does not exist"),
        ((f"--add-kernel=/boot/vmlinuz-{KERNEL}",), "title"),
        (("--zipl",), "--zipl"),
        ((), "usage"),
    ],
)
def test_refusals_change_nothing(host: Host, words: tuple[str, ...], message: str) -> None:
    before = {path: path.read_bytes() for path in host.root.rglob("*") if path.is_file()}
    with pytest.raises(host.refusal, match=message):
        host.do(*words)
    assert {path: path.read_bytes() for path in host.root.rglob("*") if path.is_file()} == before
    assert host.variables == {"saved_entry": ID}


@pytest.mark.parametrize(
    ("one", "other", "order"),
    [
        ("1.10", "1.9", 1),
        ("1.0~rc1", "1.0", -1),
        ("1.0", "1.0.1", -1),
        ("a", "1", -1),
        ("1.0^a", "1.0", 1),
        ("1", "1", 0),
    ],
)
def test_versions_are_ordered_as_rpm_does(host: Host, one: str, other: str, order: int) -> None:
    compare = host.names["compare_versions"]
    assert (compare(one, other) > 0) - (compare(one, other) < 0) == order
    assert (compare(other, one) > 0) - (compare(other, one) < 0) == -order
