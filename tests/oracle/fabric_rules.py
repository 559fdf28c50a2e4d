# Copyright: the topovirt.kvm authors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Partitions of boards with NVSwitches, written down a second time so that an error in the product's table is found.

Source: NVIDIA Fabric Manager User Guide, https://docs.nvidia.com/hgx-platforms/fabric-manager-user-guide/ (default
partitions of each generation). A member is a module id, written as one digit or letter: 1 to 9, then a (10) to g (16).
"""

from __future__ import annotations

_NAMES = "123456789abcdefg"

# PCI device id of the NVSwitch -> members of the partitions, in order of their numbers from 0 on.
_BOARDS = {
    # HGX-2
    "1ac2": (
        "123456789abcdefg 12345678 9abcdefg 14679cef 2358abdg 1467 2358 9cef abdg"
        " 14 23 58 67 9c ab dg ef 1 2 3 4 5 6 7 8 9 a b c d e f g"
    ),
    # A100
    "1af1": (
        "123456789abcdefg 12345678 9abcdefg 12349abc 5678defg 1234defg 56789abc 1234 5678 9abc defg"
        " 12 34 56 78 9a bc de fg 1 2 3 4 5 6 7 8 9 a b c d e f g"
    ),
    # H100, H200, H800, H20
    "22a3": "12345678 1234 5678 13 24 57 68 1 2 3 4 5 6 7 8",
}


def partitions(nvswitch_device: str) -> dict[int, frozenset[int]]:
    """Partition number -> module ids of its members.

    :param nvswitch_device: PCI device id of the board's NVSwitches, four hex digits.
    :raises KeyError: for a board without NVSwitches of these generations.
    """
    members = _BOARDS[nvswitch_device].split()
    return {number: frozenset(_NAMES.index(name) + 1 for name in names) for number, names in enumerate(members)}
