# Copyright: the topovirt.kvm authors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""The guest's service: the command it runs, run here on files that stand for the firmware's interface and for /run."""

from __future__ import annotations

import base64
import configparser
import shlex
import subprocess
from pathlib import Path

import pytest

from tests.tools import workspace

UNIT = workspace.ROOT / "roles/gpu_guest/files/topovirt-nccl-topology.service"
# Where NCCL looks when NCCL_TOPO_FILE is not set (NVIDIA/nccl, src/graph/topo.cc); /var/run is /run.
NCCLS_PLACE = "/run/nvidia-topologyd/virtualTopology.xml"
TEXT = '<system version="1">\n  <cpu numaid="0"/>\n</system>\n'


def unit() -> configparser.ConfigParser:
    parser = configparser.ConfigParser(strict=False, interpolation=None)
    parser.optionxform = str  # type: ignore[method-assign, assignment]
    parser.read(UNIT)
    return parser


def command(source: Path, target: Path) -> list[str]:
    words = shlex.split(unit()["Service"]["ExecStart"])
    assert words[-1] == NCCLS_PLACE
    assert words[-2] == unit()["Unit"]["ConditionPathExists"]
    return [*words[:-2], str(source), str(target)]


def test_the_file_is_decoded_to_the_place_where_nccl_looks(tmp_path: Path) -> None:
    source, target = tmp_path / "raw", tmp_path / "virtualTopology.xml"
    source.write_bytes(base64.b64encode(TEXT.encode()))
    subprocess.run(command(source, target), check=True)
    assert target.read_text(encoding="utf-8") == TEXT
    assert [path.name for path in sorted(tmp_path.iterdir())] == ["raw", "virtualTopology.xml"]


def test_what_is_no_such_file_leaves_nothing_that_nccl_would_read(tmp_path: Path) -> None:
    source, target = tmp_path / "raw", tmp_path / "virtualTopology.xml"
    source.write_bytes(b"<system version='1'>")
    with pytest.raises(subprocess.CalledProcessError):
        subprocess.run(command(source, target), check=True, stderr=subprocess.DEVNULL)
    assert not target.exists()


def test_the_directory_is_the_services_own() -> None:
    assert NCCLS_PLACE.split("/")[2] == unit()["Service"]["RuntimeDirectory"]
