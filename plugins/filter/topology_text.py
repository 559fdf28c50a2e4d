# Copyright: the topovirt.kvm authors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""A topology as a table of text."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from ansible.errors import AnsibleFilterError
from ansible_collections.topovirt.kvm.plugins.module_utils._errors import TopovirtError
from ansible_collections.topovirt.kvm.plugins.module_utils._topology import text
from ansible_collections.topovirt.kvm.plugins.module_utils._topology.schema import as_topology


def topology_text(topology: Any, bdfs: list[str] | None = None) -> str:
    """See topology_text.yml."""
    try:
        return text.topology_text(as_topology(topology, "The input of topology_text"), bdfs)
    except TopovirtError as error:
        raise AnsibleFilterError(str(error)) from None


class FilterModule:
    def filters(self) -> dict[str, Callable[..., Any]]:
        return {"topology_text": topology_text}
