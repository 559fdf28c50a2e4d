# Copyright: the topovirt.kvm authors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""VMs designed for a recorded machine."""

from __future__ import annotations

import json
from collections.abc import Callable
from typing import Any

from ansible.errors import AnsibleFilterError
from ansible_collections.topovirt.kvm.plugins.module_utils._errors import TopovirtError
from ansible_collections.topovirt.kvm.plugins.module_utils._topology.schema import as_topology
from ansible_collections.topovirt.kvm.plugins.plugin_utils._guest.domain import LXML_MISSING
from ansible_collections.topovirt.kvm.plugins.plugin_utils._report import design


def vm_design(
    topology: Any,
    vms: Any,
    fabric_model: str = "none",
    policy: Any = None,
    images: Any = None,
    name: str = "host",
) -> design.Design:
    """See vm_design.yml."""
    if LXML_MISSING:
        raise AnsibleFilterError(f"vm_design needs the Python library lxml on the controller: {LXML_MISSING}")
    if not isinstance(vms, list) or not all(isinstance(item, dict) for item in vms):
        raise AnsibleFilterError("vm_design: the VMs must be a list of mappings, one for each VM.")
    try:
        # Through JSON and back, values lose the tags that the controller gives them.
        plain = json.loads(json.dumps([topology, vms, str(fabric_model), policy, images or {}, str(name)]))
        return design.design(as_topology(plain[0], "The input of vm_design"), *plain[1:])
    except TopovirtError as error:
        raise AnsibleFilterError(str(error)) from None


class FilterModule:
    def filters(self) -> dict[str, Callable[..., Any]]:
        return {"vm_design": vm_design}
