# Copyright: the topovirt.kvm authors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Cut the power at a record of a journal."""

from __future__ import annotations

from typing import Any

import pytest
from ansible_collections.topovirt.kvm.plugins.module_utils._host.journal import Journal
from ansible_collections.topovirt.kvm.tests.unit.plugins.module_utils._host.fake_host import Crash


class Cut:
    """Cuts the power at the n-th journal record, before or after it reaches the disk."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch, after: bool) -> None:
        self.left: int | None = None
        original = Journal._append

        def append(journal: Journal, record: dict[str, Any]) -> int:
            if self.left is not None:
                self.left -= 1
                if self.left == 0 and not after:
                    raise Crash
            number = original(journal, record)
            if self.left == 0:
                raise Crash
            return number

        monkeypatch.setattr(Journal, "_append", append)
