# Copyright: the topovirt.kvm authors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""What could not be known, and why: collected while the machine is read, listed at the end of the topology."""

from __future__ import annotations

from typing import Dict, List, Tuple

from ansible_collections.topovirt.kvm.plugins.module_utils._topology.model import Unknown


class Gaps:
    """Facts that are ``None`` although there is something to know."""

    def __init__(self) -> None:
        self._found: Dict[Tuple[str, str], List[str]] = {}

    def add(self, fact: str, reason: str, of: str = "") -> None:
        """Note that ``fact`` is unknown.

        :param of: the BDF, "node 0" or "cpu 3" that it is missing of; empty for a fact of the machine.
        """
        self._found.setdefault((fact, reason), []).extend([of] if of else [])

    def listed(self) -> List[Unknown]:
        """In the order of facts and reasons, so that equal machines have equal lists."""
        return [Unknown(fact=fact, reason=reason, of=of) for (fact, reason), of in sorted(self._found.items())]
