# Copyright: the topovirt.kvm authors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""What the stage step accepts as virtual functions for guests, and what not."""

from __future__ import annotations

from typing import Any

import pytest

from tests.demo import sriov
from tests.demo.stage import SETTINGS, STEPS
from tests.twin.addresses import functions
from tests.twin.description import Igb, load

HELD = ["vfio-pci", "vfio-pci"]
TWO: dict[str, Any] = {"number": 2, "autoprobe": False, "functions": [["0000:28:10.0", *HELD], ["0000:28:10.2", *HELD]]}
NONE: dict[str, Any] = {"number": 0, "autoprobe": True, "functions": []}


def test_what_is_right() -> None:
    assert not sriov.objections(TWO, 2)
    assert not sriov.objections(NONE, 0)


@pytest.mark.parametrize(
    ("found", "number", "words"),
    [
        (TWO, 3, "2 virtual functions instead of 3"),
        (TWO, 0, "2 virtual functions instead of 0"),
        (NONE, 2, "0 virtual functions instead of 2"),
        ({**TWO, "functions": TWO["functions"][:1]}, 2, "instead of 2"),
        ({**TWO, "autoprobe": True}, 2, "drivers take new"),
        ({**NONE, "autoprobe": False}, 0, "drivers do not take new"),
        ({**TWO, "functions": [["0000:28:10.0", "igbvf", "(null)"], TWO["functions"][1]]}, 2, "10.0 has driver igbvf"),
        ({**TWO, "functions": [["0000:28:10.0", None, "vfio-pci"], TWO["functions"][1]]}, 2, "10.0 has driver None"),
    ],
)
def test_what_is_wrong(found: dict[str, Any], number: int, words: str) -> None:
    assert words in "; ".join(sriov.objections(found, number))


def test_its_server_is_managed_by_a_card_with_virtual_functions() -> None:
    assert "sriov" in STEPS
    cards = [function.device for function in functions(load(SETTINGS["sriov"].machine))]
    assert [card.network for card in cards if isinstance(card, Igb)] == ["management"]
