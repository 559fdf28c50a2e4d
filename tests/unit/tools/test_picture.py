# Copyright: the topovirt.kvm authors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""The pictures in the docs are what is drawn today."""

from __future__ import annotations

import pytest

from tests.tools import picture, workspace


@pytest.mark.parametrize("path", picture.PICTURES)
def test_the_committed_picture_is_current(path: str) -> None:
    committed = (workspace.ROOT / path).read_text(encoding="utf-8")
    assert committed == picture.PICTURES[path](), "draw it again: python -m tests.tools.inside tests.tools.picture"


def test_both_tenants_own_half_of_the_board() -> None:
    topology, domains = picture.two_tenants("boot")
    modules = {function["bdf"]: function.get("module_id") for function in topology["pci"]}
    halves = [sorted(m for bdf in domain["hostdevs"] if (m := modules[bdf]) is not None) for domain in domains]
    assert sorted(halves) == [[1, 2, 3, 4], [5, 6, 7, 8]]
