# Copyright: the topovirt.kvm authors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""What --diff shows of a change."""

from __future__ import annotations

from ansible_collections.topovirt.kvm.plugins.module_utils._host import face
from ansible_collections.topovirt.kvm.plugins.module_utils._host.step import Change


def test_equal_values_read_alike_whatever_the_order_of_their_keys() -> None:
    read = Change("services", "unit", "a.socket", {"enabled": "x", "active": False}, {"b": 1, "a": 2}, "apply")
    journaled = Change("services", "unit", "a.socket", {"active": False, "enabled": "x"}, {"a": 2, "b": 1}, "apply")
    assert face._diff(read) == face._diff(journaled)


def test_a_changed_value_shows() -> None:
    shown = face._diff(Change("binding", "device", "0000:23:00.0", "nvidia", "vfio-pci", "apply"))
    assert (shown["before"], shown["after"]) == ("nvidia\n", "vfio-pci\n")


def test_a_failed_verification_says_how_much_time_is_left() -> None:
    result = {"differences": ["no pages", "no driver"], "confirm_within": None}
    assert face.complaint(result) == "The host is not as wanted: no pages; no driver."
    assert " by itself in 712 s, unless " in face.complaint({**result, "confirm_within": 712})
