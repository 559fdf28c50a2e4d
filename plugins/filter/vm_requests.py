# Copyright: the topovirt.kvm authors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""What an operator writes about VMs and images, resolved."""

from __future__ import annotations

import json
from collections.abc import Callable
from typing import Any

from ansible.errors import AnsibleFilterError
from ansible_collections.topovirt.kvm.plugins.module_utils._errors import TopovirtError
from ansible_collections.topovirt.kvm.plugins.plugin_utils._vms import requests


def vm_requests(vms: Any, images: Any, base: str, names: list[str] | str = "") -> requests.Wanted:
    """See vm_requests.yml."""
    if not isinstance(vms, list) or not all(isinstance(item, dict) for item in vms):
        raise AnsibleFilterError("vm_requests: the VMs must be a list of mappings, one for each VM.")
    if not isinstance(images, dict):
        raise AnsibleFilterError("vm_requests: the images must be a mapping of names.")
    try:
        # Through JSON and back, values lose the tags that the controller gives them.
        return requests.resolve(json.loads(json.dumps(vms)), json.loads(json.dumps(images)), base, names)
    except TopovirtError as error:
        raise AnsibleFilterError(str(error)) from None


class FilterModule:
    def filters(self) -> dict[str, Callable[..., Any]]:
        return {"vm_requests": vm_requests}
