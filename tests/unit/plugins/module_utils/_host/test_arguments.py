# Copyright: the topovirt.kvm authors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Words of kernel command lines."""

from __future__ import annotations

import pytest
from ansible_collections.topovirt.kvm.plugins.module_utils._host.cmdline.arguments import (
    complaints,
    edited,
    name_of,
    same,
    split,
)


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("", ()),
        ("  ro\tquiet ", ("ro", "quiet")),
        ('a dyndbg="file x.c +p" b', ("a", 'dyndbg="file x.c +p"', "b")),
        ('"x=1 2" y', ('"x=1 2"', "y")),
        ('a x="open to the end', ("a", 'x="open to the end')),
        ("root=/dev/x $tuned_params", ("root=/dev/x", "$tuned_params")),
    ],
)
def test_words_are_those_of_the_kernel(text: str, words: tuple[str, ...]) -> None:
    assert split(text) == words


def test_dashes_and_quotes_do_not_make_another_argument() -> None:
    assert name_of("vfio-pci.ids=10de:2335") == name_of("vfio_pci.ids=x")
    assert same('"x=1 2"', 'x="1 2"')
    assert not same("x=a-b", "x=a_b")
    assert not same("x", "x=")


def test_names_are_no_patterns() -> None:
    assert edited(["vfio-pciXids=1"], [], ["vfio-pci.ids"]) == ("vfio-pciXids=1",)
    assert edited(["console=ttyS0"], [], ["cons", "console=tty"]) == ("console=ttyS0",)
    assert edited(["a.b=1"], ["a.b=2"], []) == ("a.b=2",)


def test_a_value_replaces_the_others_of_its_name() -> None:
    assert edited(["iommu=on", "ro", "iommu=off"], ["iommu=pt"], []) == ("ro", "iommu=pt")


def test_what_is_there_stays_where_it_is() -> None:
    words = ("iommu=pt", "ro", "quiet")
    assert edited(words, ["quiet"], ["splash"]) == words
    assert edited(words, ["iommu=pt", "quiet"], []) == words


def test_arguments_that_go_together_keep_their_order() -> None:
    pages = ["hugepagesz=1G", "hugepages=4", "hugepagesz=2M", "hugepages=512"]
    assert edited(pages, pages, []) == tuple(pages)
    other = [*pages[2:], *pages[:2]]
    assert edited(["ro", *other], pages, []) == ("ro", *pages)


def test_a_name_goes_with_every_value_and_a_word_alone() -> None:
    words = ["console=tty0", "console=ttyS0", "quiet"]
    assert edited(words, [], ["console"]) == ("quiet",)
    assert edited(words, [], ["console=tty0"]) == ("console=ttyS0", "quiet")


def test_what_goes_to_the_first_process_is_not_touched() -> None:
    assert edited(["ro", "--", "quiet"], ["iommu=pt"], ["quiet"]) == ("ro", "iommu=pt", "--", "quiet")


@pytest.mark.parametrize(
    ("present", "absent", "complaint"),
    [
        (["a b"], [], "'a b' is not one argument"),
        (['x="1'], [], "is not one argument"),
        ([""], [], "is not one argument"),
        (["=1"], [], "has no name"),
        (["--"], [], "has no name"),
        (["memmap=1M$4G"], [], "a character that boot loaders do not pass on"),
        (["x=1;reboot"], [], "a character that boot loaders do not pass on"),
        ([], ["x=`y`"], "absent: 'x=`y`' has a character"),
        (["quiet"], ["quiet"], "quiet is wanted present and, by quiet, absent"),
        (["vfio-pci.ids=1"], ["vfio_pci.ids"], "wanted present and, by vfio_pci.ids, absent"),
    ],
)
def test_bad_words_are_named(present: list[str], absent: list[str], complaint: str) -> None:
    found = complaints(present, absent)
    assert len(found) == 1
    assert complaint in found[0]


def test_good_words_are_not_complained_about() -> None:
    assert not complaints(['dyndbg="file x.c +p; file y.c +p"', "pci=realloc,a@0:1", "x=2"], ["x=1", "quiet"])
