# Copyright: the topovirt.kvm authors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

from __future__ import annotations

import os

import pytest


@pytest.fixture(autouse=True)
def no_waiting_for_disks(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """Nothing here survives a test; the list counts what would have been waited for."""
    synced: list[int] = []
    monkeypatch.setattr(os, "fsync", synced.append)
    return synced
