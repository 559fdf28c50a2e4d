# Copyright: the topovirt.kvm authors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Two tenants on one board, NVSwitches with the host."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import looks


def test_both_tenants_run_at_the_same_time(server: Any) -> None:
    assert looks.running(server) == ["tenant-a", "tenant-b"]


def test_each_has_four_gpus_and_four_nics_and_nothing_is_shared(server: Any) -> None:
    gpus, nics = set(looks.drivers(server, looks.GPU)), set(looks.drivers(server, looks.NIC))
    first, second = (looks.hostdevs(looks.domain(server, name)) for name in ("tenant-a", "tenant-b"))
    for devices in (first, second):
        assert len(devices & gpus) == 4 and len(devices & nics) == 4 and len(devices) == 8
    assert not first & second


def test_nvswitches_stay_with_the_host(server: Any) -> None:
    switches = looks.drivers(server, looks.NVSWITCH)
    assert list(switches.values()) == ["nvidia"] * 4
    for name in ("tenant-a", "tenant-b"):
        assert not looks.hostdevs(looks.domain(server, name)) & set(switches)


def test_tenants_do_not_share_a_cpu(server: Any) -> None:
    pins = [
        pin.attrib["cpuset"]
        for name in ("tenant-a", "tenant-b")
        for pin in looks.domain(server, name).iterfind("cputune/vcpupin")
    ]
    assert pins and len(pins) == len(set(pins))


def test_each_guests_kernel_sees_what_the_host_has(reports: Path) -> None:
    for name in ("tenant-a", "tenant-b"):
        result = json.loads((reports / f"{name}.json").read_text(encoding="utf-8"))
        assert result["equal"] and result["devices"] == 8 and result["pairs"] == 28
        assert result["nccl"]["equal"]
