# Copyright: the topovirt.kvm authors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Plan VMs for a host, on the controller."""

from __future__ import annotations

import json
from typing import Any

from ansible.errors import AnsibleActionFail
from ansible.plugins.action import ActionBase
from ansible_collections.topovirt.kvm.plugins.module_utils._errors import TopovirtError
from ansible_collections.topovirt.kvm.plugins.module_utils._topology.schema import as_topology
from ansible_collections.topovirt.kvm.plugins.plugin_utils._guest.domain import LXML_MISSING
from ansible_collections.topovirt.kvm.plugins.plugin_utils._placement.fabric import MODELS
from ansible_collections.topovirt.kvm.plugins.plugin_utils._placement.inventory import STATES
from ansible_collections.topovirt.kvm.plugins.plugin_utils._placement.plan import make_plan
from ansible_collections.topovirt.kvm.plugins.plugin_utils._placement.policy import DEFAULT_SIZING, load_tables

ARGUMENT_SPEC: dict[str, Any] = {
    "requests": {"type": "list", "elements": "dict", "required": True},
    "topology": {"type": "dict"},
    "domains": {"type": "list", "elements": "dict"},
    "fabric_model": {"type": "str", "required": True, "choices": list(MODELS)},
    "policy": {
        "type": "dict",
        "options": {
            "sizing": {"type": "str", "choices": sorted(load_tables()), "default": DEFAULT_SIZING},
            "vcpus_per_gpu": {"type": "int"},
            "memory_per_gpu": {"type": "str"},
            "nics_per_gpu": {"type": "int"},
            "reserve_cores_per_node": {"type": "int"},
            "reserve_memory_per_node": {"type": "str"},
        },
    },
    "state": {"type": "str", "choices": list(STATES), "default": "converted"},
    "exclude": {"type": "list", "elements": "str", "default": []},
    "explain": {"type": "bool", "default": False},
    "partial": {"type": "bool", "default": False},
}


class ActionModule(ActionBase):
    _supports_check_mode = True
    _supports_async = False

    def run(self, tmp: str | None = None, task_vars: dict[str, Any] | None = None) -> dict[str, Any]:
        result: dict[str, Any] = super().run(tmp, task_vars)
        if LXML_MISSING:
            raise AnsibleActionFail(f"vm_plan needs the Python library lxml on the controller: {LXML_MISSING}")
        variables = task_vars or {}
        _validation, given = self.validate_argument_spec(ARGUMENT_SPEC)
        arguments = _plain(given)
        topology = arguments["topology"]
        if topology is None:
            topology = self._ask_host("topology_info", {}, "topology", variables)
        domains = arguments["domains"]
        if domains is None:
            # Before its conversion a host may have no libvirt, and so no VMs.
            missing_ok = arguments["state"] == "unconverted"
            domains = self._ask_host("vm_info", {"missing_ok": missing_ok}, "domains", variables)
        try:
            plan = make_plan(
                arguments["requests"],
                as_topology(topology, "topology"),
                domains,
                arguments["fabric_model"],
                str(variables.get("inventory_hostname", "localhost")),
                arguments["policy"],
                arguments["state"],
                arguments["exclude"],
                arguments["explain"],
                arguments["partial"],
            )
        except TopovirtError as error:
            raise AnsibleActionFail(str(error)) from None
        result.update(changed=False, plan=plan)
        return result

    def _ask_host(self, module: str, arguments: dict[str, Any], key: str, variables: dict[str, Any]) -> Any:
        """Run one of our modules on the host and take one value of what it returns."""
        answer = self._execute_module(f"topovirt.kvm.{module}", module_args=arguments, task_vars=variables)
        if answer.get("failed") or key not in answer:
            reasons = [str(answer[name]).strip() for name in ("msg", "module_stderr") if answer.get(name)]
            raise AnsibleActionFail(f"topovirt.kvm.{module} failed on the host: {' '.join(reasons)}")
        return _plain(answer[key])


def _plain(value: Any) -> Any:
    """The same without the tags that the controller gives to values: through JSON and back."""
    return json.loads(json.dumps(value))
