# Copyright: the topovirt.kvm authors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""VMs as a table of text."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from ansible.errors import AnsibleFilterError
from ansible_collections.topovirt.kvm.plugins.plugin_utils._vms import text


def vm_table(domains: Any) -> list[str]:
    """See vm_table.yml."""
    try:
        return text.vm_table(domains)
    except (KeyError, TypeError) as error:
        raise AnsibleFilterError(f"vm_table: the input has not the expected shape: {error!r}.") from None


class FilterModule:
    def filters(self) -> dict[str, Callable[..., Any]]:
        return {"vm_table": vm_table}
