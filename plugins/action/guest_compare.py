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
from ansible_collections.topovirt.kvm.plugins.plugin_utils._nccl.compare import NcclComparison, compare_nccl

ARGUMENT_SPEC: dict[str, Any] = {
    "topology": {"type": "dict", "required": True},
    "guest_topology": {"type": "dict", "required": True},
    "identity": {"type": "dict", "required": True},
    "node_map": {"type": "dict", "required": True},
    "cpu_map": {"type": "dict"},
    "nccl_xml": {"type": "str"},
    "nvlink": {"type": "bool"},
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
        nccl = None
        try:
            if arguments["nvlink"] is not None:
                nccl = compare_nccl(
                    arguments["topology"],
                    arguments["guest_topology"],
                    arguments["identity"],
                    _numbers(arguments["node_map"], "node_map", "guest cells to host nodes"),
                    arguments["nccl_xml"],
                    nvlink=arguments["nvlink"],
                )
            comparison = compare(
                as_topology(arguments["topology"], "topology"),
                as_topology(arguments["guest_topology"], "guest_topology"),
                arguments["identity"],
                _numbers(arguments["node_map"], "node_map", "guest cells to host nodes"),
                None
                if arguments["cpu_map"] is None
                else _numbers(arguments["cpu_map"], "cpu_map", "vCPUs to host CPUs"),
            )
        except TopovirtError as error:
            raise AnsibleActionFail(str(error)) from None
        result.update(
            changed=False,
            comparison=comparison,
            nccl=nccl,
            msg=" ".join(filter(None, [describe(comparison), _describe_nccl(nccl, arguments["nccl_xml"])])),
            failed=arguments["fail"]
            and not (comparison["equal"] and comparison["cpus_equal"] is not False and _as_told(nccl, arguments)),
        )
        return result


def _as_told(nccl: NcclComparison | None, arguments: dict[str, Any]) -> bool:
    """Whether NCCL sees the host, where a file tells it; without one it cannot, and that is no fault of the VM's."""
    return nccl is None or arguments["nccl_xml"] is None or nccl["equal"]


def _describe_nccl(nccl: NcclComparison | None, file: str | None) -> str:
    if nccl is None:
        return ""
    if nccl["equal"]:
        return f"NCCL sees the host in all {nccl['pairs']} pairs."
    why = "with the file that it has" if file is not None else "without a file (role gpu_guest puts it there)"
    return f"NCCL does not see the host {why}: {' '.join(nccl['differences'])}"


def _numbers(value: dict[str, Any], name: str, what: str) -> dict[int | str, int]:
    """
    :raises TopovirtError: when a key or a value is not a number, with all of them.
    """
    wrong = [f"{key}: {number}" for key, number in value.items() if not (key.isdecimal() and str(number).isdecimal())]
    if wrong:
        raise TopovirtError(
            f"{name} is not a map of {what}: {', '.join(wrong)}.",
            f"Give what topovirt.kvm.guest_capture returns as {name}.",
        )
    return {int(key): int(number) for key, number in value.items()}
