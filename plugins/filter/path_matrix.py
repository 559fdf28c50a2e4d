# Copyright: the topovirt.kvm authors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Path classes of every pair of devices."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from ansible.errors import AnsibleFilterError
from ansible_collections.topovirt.kvm.plugins.module_utils._errors import TopovirtError
from ansible_collections.topovirt.kvm.plugins.module_utils._topology import paths
from ansible_collections.topovirt.kvm.plugins.module_utils._topology.schema import as_topology


def path_matrix(topology: Any, bdfs: list[str] | None = None) -> paths.Matrix:
    """See path_matrix.yml."""
    try:
        return paths.path_matrix(as_topology(topology, "The input of path_matrix"), bdfs)
    except TopovirtError as error:
        raise AnsibleFilterError(str(error)) from None


class FilterModule:
    def filters(self) -> dict[str, Callable[..., Any]]:
        return {"path_matrix": path_matrix}
