# Copyright: the topovirt.kvm authors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""A real H200, as a Linux guest saw it: the reader reads it right, and the emulated one agrees with it."""

from __future__ import annotations

import base64
import json
import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from ansible_collections.topovirt.kvm.plugins.module_utils._topology.reader import read_topology

from tests.twin.config_space import ConfigSpace
from tests.twin.description import Endpoint, load

RECORDED = json.loads((Path(__file__).parents[3] / "recorded/h200-in-a-vm.json").read_text(encoding="utf-8"))
GPU = "0000:00:06.0"
# PCI Express base specification: where the device capabilities register lies, and its bit for function level reset.
POWER_MANAGEMENT, EXPRESS = 0x01, 0x10
DEVICE_CAPABILITIES, LINK_CAPABILITIES, FUNCTION_LEVEL_RESET = 0x04, 0x0C, 1 << 28


@pytest.fixture
def machine(tmp_path: Path) -> Path:
    for name, text in RECORDED["files"].items():
        path = tmp_path / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text, encoding="utf-8")
    for name, target in RECORDED["links"].items():
        path = tmp_path / name
        path.parent.mkdir(parents=True, exist_ok=True)
        os.symlink(target, path)
    return tmp_path


def nvidia_smi(words: list[str]) -> tuple[int, str, str]:
    if words != ["nvidia-smi", "-q"]:
        raise FileNotFoundError(words[0])
    return 0, "\n".join(RECORDED["nvidia_smi_q"]) + "\n", ""


def real(machine: Path) -> dict[str, Any]:
    (gpu,) = [item for item in read_topology(machine, nvidia_smi)["pci"] if item["bdf"] == GPU]
    return dict(gpu)


def test_the_reader_knows_the_gpu(machine: Path) -> None:
    gpu = real(machine)
    assert (gpu["role"], gpu["class"], gpu["driver"], gpu["kind"]) == ("gpu", "030200", "nvidia", "endpoint")
    assert [(bar["index"], bar["size_bytes"] >> 20) for bar in gpu["bars"]] == [(0, 16), (2, 262144), (4, 32)]
    assert gpu["link"] == {"max_gtps": 32.0, "max_width": 16}
    assert gpu["reset_methods"] == ["flr"]
    assert gpu["numa_node"] is None  # the guest's firmware says nothing: not known is not node 0


def test_the_module_id_that_driver_580_prints(machine: Path) -> None:
    assert real(machine)["module_id"] == 5


def capabilities(config: bytes) -> Iterator[tuple[int, int]]:
    """Id and offset of each capability."""
    offset = config[0x34]
    while offset:
        yield config[offset], offset
        offset = config[offset + 1]


def word(config: bytes, offset: int) -> int:
    return int.from_bytes(config[offset : offset + 4], "little")


def test_the_emulated_h200_is_like_it(machine: Path) -> None:
    gpu = real(machine)
    emulated = next(
        device
        for device in load("hgx-h200").devices()
        if isinstance(device, Endpoint) and f"{device.kind.device:04x}" == gpu["device"]
    )
    kind = emulated.kind
    assert (f"{kind.vendor:04x}", f"{kind.class_code:06x}") == (gpu["vendor"], gpu["class"])
    assert dict(kind.bars) == {bar["index"]: bar["size_bytes"] for bar in gpu["bars"]}
    assert (kind.link.gtps, kind.link.width) == (gpu["link"]["max_gtps"], gpu["link"]["max_width"])
    spaces = [base64.b64decode(RECORDED["gpu_config_space_base64"]), ConfigSpace(emulated).read(0, 4096)]
    revisions, resets, links, places = [], [], [], []
    for config in spaces:
        found = dict(capabilities(config))
        revisions.append(config[0x08])
        resets.append(bool(word(config, found[EXPRESS] + DEVICE_CAPABILITIES) & FUNCTION_LEVEL_RESET))
        links.append(word(config, found[EXPRESS] + LINK_CAPABILITIES) & 0x3FF)  # maximum speed and width
        places.append((found[POWER_MANAGEMENT], found[EXPRESS]))
    for both in (revisions, resets, links, places):
        assert both[0] == both[1]
