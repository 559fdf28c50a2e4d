# Copyright: the topovirt.kvm authors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""The reader survives rubbish; ``make bench`` shows it for many more trees."""

from __future__ import annotations

from tests.bench.fuzz import fuzz

MUTATIONS = 2000


def test_rubbish_is_facts_or_one_error() -> None:
    assert fuzz(600, derandomize=True).mutations >= MUTATIONS
