# Copyright: the topovirt.kvm authors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Boot entry files: text in, text out."""

from __future__ import annotations

import pytest
from ansible_collections.topovirt.kvm.plugins.module_utils._host.cmdline.bls_entry import BlsEntry, parse, render

RHEL = """\
title Red Hat Enterprise Linux (5.14.0-503.el9.x86_64) 9.6 (Plow)
version 5.14.0-503.el9.x86_64
linux /vmlinuz-5.14.0-503.el9.x86_64
initrd /initramfs-5.14.0-503.el9.x86_64.img $tuned_initrd
options root=UUID=aa ro console=ttyS0 $tuned_params
grub_users $grub_users
"""
COLUMNS = """\
# written by kernel-install

title      Debian GNU/Linux 13 (trixie)
linux      /m/6.12/linux
options    root=UUID=aa ro
options    quiet dyndbg="file x.c +p"
 architecture\tx64
"""


@pytest.mark.parametrize(
    "text", [RHEL, COLUMNS, "options\n", "options \n", "\n", "title\tx\n", "#options a\nlinux /v\n\n"]
)
def test_a_file_comes_back_byte_for_byte(text: str) -> None:
    assert render(parse("x", text)) == text


def test_values_are_read_whatever_the_columns() -> None:
    entry = parse("x", COLUMNS)
    assert entry.values("title") == ("Debian GNU/Linux 13 (trixie)",)
    assert entry.values("architecture") == ("x64",)
    assert entry.values("options") == ("root=UUID=aa ro", 'quiet dyndbg="file x.c +p"')
    assert entry.values("devicetree") == ()
    assert parse("x", RHEL).lines[2] == ("linux", "/vmlinuz-5.14.0-503.el9.x86_64")


def test_arguments_are_the_words_of_all_options() -> None:
    assert parse("x", RHEL).arguments == ("root=UUID=aa", "ro", "console=ttyS0", "$tuned_params")
    assert parse("x", COLUMNS).arguments == ("root=UUID=aa", "ro", "quiet", 'dyndbg="file x.c +p"')


def test_other_arguments_change_nothing_else() -> None:
    text = render(parse("x", RHEL).with_arguments(["root=UUID=aa", "iommu=pt", "$tuned_params"]))
    assert text == RHEL.replace("ro console=ttyS0", "iommu=pt")


def test_several_options_become_one_in_its_columns() -> None:
    text = render(parse("x", COLUMNS).with_arguments(["ro"]))
    assert text == COLUMNS.replace("root=UUID=aa ro", "ro").replace('options    quiet dyndbg="file x.c +p"\n', "")


def test_the_same_arguments_are_the_same_entry() -> None:
    entry = parse("x", COLUMNS)
    assert entry.with_arguments(entry.arguments) is entry


def test_an_entry_without_options_gets_them() -> None:
    assert render(parse("x", "title x\n").with_arguments(["ro"])) == "title x\noptions ro\n"
    assert BlsEntry("x", (("options", "a"),)).with_arguments([]).arguments == ()
