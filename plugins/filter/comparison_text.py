# Copyright: the topovirt.kvm authors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""A comparison of guest and host as a matrix of text."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from ansible.errors import AnsibleFilterError
from ansible_collections.topovirt.kvm.plugins.plugin_utils._vms import text


def comparison_text(comparison: Any) -> list[str]:
    """See comparison_text.yml."""
    try:
        return text.comparison_text(comparison)
    except (KeyError, TypeError) as error:
        raise AnsibleFilterError(f"comparison_text: the input has not the expected shape: {error!r}.") from None


class FilterModule:
    def filters(self) -> dict[str, Callable[..., Any]]:
        return {"comparison_text": comparison_text}
