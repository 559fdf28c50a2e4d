# Copyright: the topovirt.kvm authors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""The host after the way back; the manifest was compared before, this looks at what matters by itself."""

from __future__ import annotations

from typing import Any

import looks


def test_no_device_is_kept_from_its_driver(server: Any, shape: Any) -> None:
    for ids, count in shape.passthrough.items():
        found = list(looks.drivers(server, ids).values())
        assert len(found) == count and "vfio-pci" not in found


def test_the_command_line_has_no_token(server: Any) -> None:
    assert "topovirt" not in server.check_output("cat /proc/cmdline")


def test_nothing_of_ours_is_left(server: Any) -> None:
    assert server.check_output("find /boot /etc /var/lib /run /usr/lib/systemd -name '*topovirt*'") == ""
    assert not server.exists("virsh")


def test_no_huge_page_is_left(server: Any) -> None:
    counts = server.check_output(
        "cat /sys/devices/system/node/node*/hugepages/hugepages-1048576kB/nr_hugepages"
    ).split()
    assert [int(count) for count in counts] == [0, 0]
