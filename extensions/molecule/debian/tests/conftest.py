# Copyright: the topovirt.kvm authors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""The emulated server of the scenario that runs, over Ansible's own connection, as root through sudo."""

from __future__ import annotations

import os
import sys
from dataclasses import dataclass
from pathlib import Path

import pytest
import testinfra

PROJECT = Path(os.environ["MOLECULE_PROJECT_DIRECTORY"])
SCENARIO = os.environ["MOLECULE_SCENARIO_NAME"]
sys.path.insert(0, str(Path(__file__).parents[2] / "hgx-h200/tests"))  # looks.py


@dataclass(frozen=True)
class Shape:
    """What a host of this shape must be, so that no scenario passes on another one."""

    family: str
    version: str
    package_manager: str
    python: str
    emulator: str
    daemon: str
    passthrough: dict[tuple[str, str], int]  # devices by their ids


HGX = {("0x10de", "0x2335"): 8, ("0x15b3", "0x1021"): 8, ("0x10de", "0x22a3"): 4}
CARDS = {("0x10de", "0x26b9"): 8, ("0x15b3", "0x1021"): 2}
SHAPES = {
    "debian": Shape("Debian", "13", "apt", "3.13", "/usr/bin/qemu-system-x86_64", "libvirtd", CARDS),
    "rhel9": Shape("RedHat", "9", "dnf", "3.9", "/usr/libexec/qemu-kvm", "virtqemud", HGX),
    "rhel10": Shape("RedHat", "10", "dnf", "3.13", "/usr/libexec/qemu-kvm", "virtqemud", HGX),
}


@pytest.fixture(scope="session")
def shape() -> Shape:
    return SHAPES[SCENARIO]


@pytest.fixture(scope="session")
def server() -> testinfra.host.Host:
    inventory = PROJECT / f".work/scenario/{SCENARIO}/inventory"
    return testinfra.get_host(f"ansible://gpu_hosts?ansible_inventory={inventory}&force_ansible=True", sudo=True)
