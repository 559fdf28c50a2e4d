# Copyright: the topovirt.kvm authors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Compare what a guest sees with its host, on the controller."""

from __future__ import annotations

import json
from typing import Any

from ansible.errors import AnsibleActionFail
from ansible.plugins.action import ActionBase
from ansible_collections.topovirt.kvm.plugins.module_utils._errors import TopovirtError
from ansible_collections.topovirt.kvm.plugins.module_utils._topology.compare import compare, describe
from ansible_collections.topovirt.kvm.plugins.module_utils._topology.schema import as_topology

ARGUMENT_SPEC: dict[str, Any] = {
    "topology": {"type": "dict", "required": True},
    "guest_topology": {"type": "dict", "required": True},
    "identity": {"type": "dict", "required": True},
    "node_map": {"type": "dict", "required": True},
    "fail": {"type": "bool", "default": True},
}


class ActionModule(ActionBase):
    _requires_connection = False
    _supports_check_mode = True
    _supports_async = False

    def run(self, tmp: str | None = None, task_vars: dict[str, Any] | None = None) -> dict[str, Any]:
        result: dict[str, Any] = super().run(tmp, task_vars)
        _validation, given = self.validate_argument_spec(ARGUMENT_SPEC)
        # Through JSON and back, values lose the tags that the controller gives them.
        arguments = json.loads(json.dumps(given))
        try:
            comparison = compare(
                as_topology(arguments["topology"], "topology"),
                as_topology(arguments["guest_topology"], "guest_topology"),
                arguments["identity"],
                _node_map(arguments["node_map"]),
            )
        except TopovirtError as error:
            raise AnsibleActionFail(str(error)) from None
        result.update(
            changed=False,
            comparison=comparison,
            msg=describe(comparison),
            failed=arguments["fail"] and not comparison["equal"],
        )
        return result


def _node_map(value: dict[str, Any]) -> dict[int | str, int]:
    """
    :raises TopovirtError: when a cell or node is not a number, with all of them.
    """
    wrong = [f"{cell}: {node}" for cell, node in value.items() if not (cell.isdecimal() and str(node).isdecimal())]
    if wrong:
        raise TopovirtError(
            f"node_map is not a map of guest cells to host nodes: {', '.join(wrong)}.",
            "Give what topovirt.kvm.guest_capture returns as node_map.",
        )
    return {int(cell): int(node) for cell, node in value.items()}
