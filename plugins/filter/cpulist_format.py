# Copyright: the topovirt.kvm authors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""The CPU list that names some CPUs."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Any

from ansible.errors import AnsibleFilterError
from ansible_collections.topovirt.kvm.plugins.module_utils._topology.cpulist import format_cpulist


def cpulist_format(cpus: Iterable[Any]) -> str:
    """See cpulist_format.yml."""
    try:
        return format_cpulist(int(cpu) for cpu in cpus)
    except (TypeError, ValueError):
        raise AnsibleFilterError(f"cpulist_format: {cpus!r} is not a list of CPU numbers.") from None


class FilterModule:
    def filters(self) -> dict[str, Callable[..., Any]]:
        return {"cpulist_format": cpulist_format}
