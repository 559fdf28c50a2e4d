# Copyright: the topovirt.kvm authors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""The emulated server as testinfra sees it: over Ansible's own connection, as root through sudo."""

from __future__ import annotations

import os
import sys
from pathlib import Path

import pytest
import testinfra

PROJECT = Path(os.environ["MOLECULE_PROJECT_DIRECTORY"])
sys.path.insert(0, str(Path(__file__).parent))  # looks.py


@pytest.fixture(scope="session")
def server() -> testinfra.host.Host:
    inventory = PROJECT / ".work/scenario/hgx-h200/inventory"
    return testinfra.get_host(f"ansible://hgx-h200?ansible_inventory={inventory}&force_ansible=True", sudo=True)


@pytest.fixture(scope="session")
def reports() -> Path:
    """Where verify-vms and report-host of the operator wrote."""
    return PROJECT / ".work/scenario/hgx-h200/report/hgx-h200"
