# Copyright: the topovirt.kvm authors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""The converted host."""

from __future__ import annotations

from typing import Any

import looks


def test_passthrough_devices_are_on_vfio_pci(server: Any) -> None:
    for ids, count in ((looks.GPU, 8), (looks.NIC, 8), (looks.NVSWITCH, 4)):
        found = looks.drivers(server, ids)
        assert list(found.values()) == ["vfio-pci"] * count


def test_the_entry_of_the_conversion_is_what_runs(server: Any) -> None:
    assert " topovirt=" in server.check_output("cat /proc/cmdline")


def test_every_node_has_huge_pages(server: Any) -> None:
    counts = server.check_output(
        "cat /sys/devices/system/node/node*/hugepages/hugepages-1048576kB/nr_hugepages"
    ).split()
    assert len(counts) == 2 and all(int(count) > 0 for count in counts)
