# Copyright: the topovirt.kvm authors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""The one VM with everything."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import looks


def test_the_vm_runs_with_all_devices(server: Any) -> None:
    assert looks.running(server) == ["train-8"]
    wanted = {bdf for ids in (looks.GPU, looks.NIC, looks.NVSWITCH) for bdf in looks.drivers(server, ids)}
    assert len(wanted) == 20
    assert looks.hostdevs(looks.domain(server, "train-8")) == wanted


def test_vcpus_are_pinned_one_to_one(server: Any) -> None:
    xml = looks.domain(server, "train-8")
    pins = [pin.attrib["cpuset"] for pin in xml.iterfind("cputune/vcpupin")]
    assert len(pins) == int(xml.findtext("vcpu") or 0) > 0
    assert len(set(pins)) == len(pins) and all(pin.isdigit() for pin in pins)


def test_the_guests_kernel_sees_what_the_host_has(reports: Path) -> None:
    result = json.loads((reports / "train-8.json").read_text(encoding="utf-8"))
    assert result["equal"] and result["devices"] == 20 and result["pairs"] == 190
    assert result["matrix"]["host"] == result["matrix"]["guest"]


def test_nccl_would_see_the_host(reports: Path) -> None:
    """Which it would not without its file: the emulated switches show a hundredth of the host's speed."""
    result = json.loads((reports / "train-8.json").read_text(encoding="utf-8"))
    assert result["nccl"]["equal"] and result["nccl"]["host"]["gpu_nic"] == {"PIX": 16, "PXN": 48}


def test_the_report_is_written(reports: Path) -> None:
    page = (reports / "report.html").read_text(encoding="utf-8")
    assert "<svg" in page and "train-8" in page and "Emulated" in page
