# Copyright: the topovirt.kvm authors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""A host that an older version of the collection converted is brought back, or converted further, by this one."""

from __future__ import annotations

import json
import shutil
import tarfile
from pathlib import Path

import pytest
from ansible_collections.topovirt.kvm.plugins.module_utils._host.journal import SCHEMA, Journal
from ansible_collections.topovirt.kvm.tests.unit.plugins.module_utils._host.fake_host import GPU0, FakeHost

from tests.tools.record_conversion import DIRECTORIES, archive

SCHEMAS = pytest.mark.parametrize("schema", range(1, SCHEMA + 1))


def converted(root: Path, schema: int) -> FakeHost:
    """The host as the recording version left it."""
    host = FakeHost(root)
    for name in DIRECTORIES:
        shutil.rmtree(root / name, ignore_errors=True)
    with tarfile.open(archive(schema)) as tar:
        tar.extraction_filter = lambda member, path: member  # exactly as recorded, whatever Python's default
        tar.extractall(root)
    programs = json.loads((root / "programs.json").read_text())
    (root / "programs.json").unlink()
    host.installed, host.units = programs["installed"], programs["units"]
    host.reboot()
    assert Journal(root).records[0]["schema"] == schema
    assert Journal(root).state == "committed" and host.driver(GPU0) == "vfio-pci"
    return host


@SCHEMAS
def test_the_way_back_from_every_released_journal(tmp_path: Path, schema: int) -> None:
    before = FakeHost(tmp_path / "bare").snapshot()
    host = converted(tmp_path / "converted", schema)
    host.go_back()
    assert host.snapshot() == before


@SCHEMAS
def test_a_conversion_on_top_of_every_released_journal(tmp_path: Path, schema: int) -> None:
    """What this version writes beside it goes, too."""
    before = FakeHost(tmp_path / "bare").snapshot()
    host = converted(tmp_path / "converted", schema)
    host.convert({**host.wanted, "fabric_model": "shared_nvswitch"})
    assert not host.convert({**host.wanted, "fabric_model": "shared_nvswitch"})
    host.go_back()
    assert host.snapshot() == before
