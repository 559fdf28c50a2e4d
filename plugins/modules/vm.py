#!/usr/bin/python
# Copyright: the topovirt.kvm authors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

from __future__ import annotations

DOCUMENTATION = r"""
module: vm
short_description: Define, start, stop and remove one VM of a plan
version_added: 0.1.0
author:
  - the topovirt.kvm authors (@topovirt)
description:
  - Brings one VM on a KVM host to the wanted state and reports what that took.
  - The definition comes from the plan of M(topovirt.kvm.vm_plan). It is compared with the persistent definition
    that libvirt has by what both mean; what libvirt fills in by itself is no difference.
  - A running VM whose definition changes keeps running as it is. It is defined for its next start and
    RV(restart_required) says so; nothing is restarted silently.
  - A VM that this call defined and that cannot be started is undefined again, a changed definition and changed files
    are put back.
options:
  name:
    description:
      - Name of the VM.
    type: str
    required: true
  state:
    description:
      - With V(defined) the VM is known to libvirt as O(domain_xml) says; whether it runs is left alone.
      - With V(running) it is defined and runs. A paused VM is resumed.
      - With V(stopped) it does not run. It is shut down through the guest agent, then by the ACPI power button. With
        O(domain_xml) it is defined as well.
      - With V(absent) it is stopped like that, undefined with its NVRAM, and what O(files) and O(disks) of
        the call that defined it named is removed.
    type: str
    choices: [defined, running, stopped, absent]
    default: running
  domain_xml:
    description:
      - The definition from the plan. Required for a VM that libvirt does not know, but for V(absent).
      - Without it a known VM keeps its definition.
    type: str
  basis:
    description:
      - The C(basis) of the plan that O(domain_xml) is from.
      - It is made again from the host and from all domains before the VM is defined. When anything changed that the
        plan depends on, the plan is refused and the changes are named. The VM itself does not count, and neither do
        the other VMs of the same plan.
      - Without it a stale plan is not noticed.
    type: dict
  files:
    description:
      - Files that belong to the VM. They are written before it is defined and removed with it.
      - A file that the VM had and that is no longer listed is removed when the VM is defined again.
    type: list
    elements: dict
    default: []
    suboptions:
      path:
        description:
          - Absolute path below C(/var/lib/topovirt/vms) or C(/var/lib/libvirt/images/topovirt).
        type: str
        required: true
      content:
        description:
          - What the file contains.
        type: str
        required: true
      mode:
        description:
          - Its permissions, as an octal number in quotes.
        type: str
        default: '0644'
  disks:
    description:
      - Absolute paths of disk images that belong to this VM alone, below the same directories as O(files).
      - They must exist when the VM starts, and are removed with it.
    type: list
    elements: str
    default: []
  wait_for_agent:
    description:
      - Whether V(running) waits until the guest's QEMU agent is connected.
    type: bool
    default: false
  timeout:
    description:
      - Seconds that a shutdown, or waiting for the guest agent, may take.
    type: int
    default: 600
  force:
    description:
      - Whether a VM that did not stop in time loses its power. Its guest may lose data.
    type: bool
    default: false
attributes:
  check_mode:
    description: Can run in check mode and return changed status prediction without modifying target.
    support: full
    details:
      - The steps that check mode returns are those that the real run takes.
      - Whether libvirt accepts a definition, and whether the VM starts, only the real run can tell.
  diff_mode:
    description: Will return details on what has changed or would change.
    support: full
  platform:
    description: Where the module runs.
    support: full
    platforms: posix
requirements:
  - libvirt and its Python binding on the host
seealso:
  - module: topovirt.kvm.vm_info
  - module: topovirt.kvm.vm_plan
"""

EXAMPLES = r"""
- name: Start the first VM of a plan
  topovirt.kvm.vm:
    name: "{{ planned.plan.vms[0].name }}"
    state: running
    domain_xml: "{{ planned.plan.vms[0].domain_xml }}"
    basis: "{{ planned.plan.basis }}"
    wait_for_agent: true

- name: Stop a VM in good order
  topovirt.kvm.vm:
    name: train-0
    state: stopped
    timeout: 300

- name: Remove a VM, and cut its power when it does not stop in time
  topovirt.kvm.vm:
    name: train-0
    state: absent
    force: true
"""

RETURN = r"""
name:
  description: Name of the VM.
  returned: success
  type: str
  sample: train-0
state:
  description: State after the call, or after it would have run, one of V(running), V(paused), V(shut off), V(crashed)
    and V(absent).
  returned: success
  type: str
  sample: running
actions:
  description: What was done or would be done, in order.
  returned: success
  type: list
  elements: str
  sample: [define, start]
restart_required:
  description: Whether the VM runs with another definition than its next start will use.
  returned: success
  type: bool
  sample: false
stopped_by:
  description: How the VM stopped, one of V(guest agent), V(ACPI power button), V(itself) and V(force);
    null when nothing was stopped.
  returned: success
  type: str
  sample: guest agent
"""

from ansible.module_utils.basic import AnsibleModule
from ansible_collections.topovirt.kvm.plugins.module_utils._errors import TopovirtError
from ansible_collections.topovirt.kvm.plugins.module_utils._libvirt.face import run_vm
from ansible_collections.topovirt.kvm.plugins.module_utils._libvirt.lifecycle import STATES


def main() -> None:
    module = AnsibleModule(
        argument_spec={
            "name": {"type": "str", "required": True},
            "state": {"type": "str", "choices": list(STATES), "default": "running"},
            "domain_xml": {"type": "str"},
            "basis": {"type": "dict"},
            "files": {
                "type": "list",
                "elements": "dict",
                "default": [],
                "options": {
                    "path": {"type": "str", "required": True},
                    "content": {"type": "str", "required": True},
                    "mode": {"type": "str", "default": "0644"},
                },
            },
            "disks": {"type": "list", "elements": "str", "default": []},
            "wait_for_agent": {"type": "bool", "default": False},
            "timeout": {"type": "int", "default": 600},
            "force": {"type": "bool", "default": False},
        },
        supports_check_mode=True,
    )
    try:
        result = run_vm(module.params, module.check_mode, module.run_command)
    except TopovirtError as error:
        module.fail_json(msg=str(error))
    module.exit_json(**result)


if __name__ == "__main__":
    main()
