#!/usr/bin/python
# Copyright: the topovirt.kvm authors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

from __future__ import annotations

DOCUMENTATION = r"""
module: fabric_partition
short_description: Activate or deactivate an NVLink partition
version_added: 0.1.0
author:
  - the topovirt.kvm authors (@topovirt)
description:
  - On a host that keeps the NVSwitches (fabric model C(shared_nvswitch)) the GPUs of a VM talk over NVLink only while
    their partition is active. This module activates it before the VM starts and deactivates it after the VM stopped.
  - Partitions are listed and changed through C(fmpm), the command-line client of Fabric Manager's SDK.
  - While Fabric Manager is still initialising, it is asked again.
options:
  id:
    description:
      - Id of the partition, from the machine's partition table.
    type: int
    required: true
  state:
    description:
      - Whether the partition is to be active.
    type: str
    choices: [active, inactive]
    default: active
  client:
    description:
      - The client, a name on the search path or an absolute path.
    type: str
    default: fmpm
  timeout:
    description:
      - Seconds to wait while Fabric Manager is still initialising.
    type: int
    default: 120
attributes:
  check_mode:
    description: Can run in check mode and return changed status prediction without modifying target.
    support: full
  diff_mode:
    description: Will return details on what has changed or would change.
    support: full
  platform:
    description: Where the module runs.
    support: full
    platforms: posix
requirements:
  - Fabric Manager and C(fmpm) on the host
"""

EXAMPLES = r"""
- name: Connect the GPUs of modules 1 to 4
  topovirt.kvm.fabric_partition:
    id: 1

- name: Free them again
  topovirt.kvm.fabric_partition:
    id: 1
    state: inactive
"""

RETURN = r"""
id:
  description: Id of the partition.
  returned: success
  type: int
  sample: 1
state:
  description: V(active) or V(inactive), as it is or would be after the call.
  returned: success
  type: str
  sample: active
modules:
  description: Module ids of its GPUs, as the client lists them.
  returned: success
  type: list
  elements: int
  sample: [1, 2, 3, 4]
client_version:
  description: What the client says of its version. What takes the place of the real client can be told by it.
  returned: success
  type: str
"""

from ansible.module_utils.basic import AnsibleModule
from ansible_collections.topovirt.kvm.plugins.module_utils._errors import TopovirtError
from ansible_collections.topovirt.kvm.plugins.module_utils._fabric.client import Client, ensure_partition


def main() -> None:
    module = AnsibleModule(
        argument_spec={
            "id": {"type": "int", "required": True},
            "state": {"type": "str", "choices": ["active", "inactive"], "default": "active"},
            "client": {"type": "str", "default": "fmpm"},
            "timeout": {"type": "int", "default": 120},
        },
        supports_check_mode=True,
    )
    given = module.params
    command = module.get_bin_path(given["client"])
    if command is None:
        module.fail_json(
            msg=f"The Fabric Manager client '{given['client']}' is not on this host. Install it or name it in client."
        )
    try:
        client = Client(module.run_command, command, given["timeout"])
        result = ensure_partition(client, given["id"], given["state"] == "active", module.check_mode)
    except TopovirtError as error:
        module.fail_json(msg=str(error))
    before = ("inactive" if result["state"] == "active" else "active") if result["changed"] else result["state"]
    header = f"partition {result['id']}"
    module.exit_json(
        **result,
        diff={
            "before_header": header,
            "after_header": header,
            "before": f"{before}\n",
            "after": f"{result['state']}\n",
        },
    )


if __name__ == "__main__":
    main()
