#!/usr/bin/python
# Copyright: the topovirt.kvm authors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

from __future__ import annotations

DOCUMENTATION = r"""
module: hugepages
short_description: Huge pages per NUMA node
version_added: 0.1.0
author:
  - the topovirt.kvm authors (@topovirt)
description:
  - Gives each NUMA node the number of huge pages that is wanted, in both sizes if need be, at every boot and in the
    running system, and reads back what the kernel gave.
  - Refuses to take memory that the host needs for itself, 5 percent of a node and at least 3 GiB.
  - On a server that becomes a KVM host as a whole, M(topovirt.kvm.host_state) does this and more.
options:
  pages:
    description:
      - Size of a page, V(1GiB) or V(2MiB), to a dictionary of NUMA nodes and numbers of pages. Nodes that are not named
        are left alone.
      - Required for O(state=present).
    type: dict
  at_once:
    description:
      - Whether the running kernel is asked for the pages, too, and F(/dev/hugepages1G) is mounted. The kernel gives
        what it has in one piece. If that is less than wanted the module fails, and says how much it was. With V(false)
        they come with the next boot.
    type: bool
    default: true
notes:
  - A unit early in boot asks for the pages. Of very many pages of 1 GiB a kernel argument gets more, see
    M(topovirt.kvm.kernel_cmdline).
extends_documentation_fragment:
  - topovirt.kvm.single_step
"""

EXAMPLES = r"""
- name: Give VMs 200 GiB of each node
  topovirt.kvm.hugepages:
    pages:
      1GiB: {0: 200, 1: 200}
  become: true

- name: Give them back
  topovirt.kvm.hugepages:
    state: restored
  become: true
"""

RETURN = r"""
pages:
  description: What the kernel has, by size in KiB and by node; read back where it was set.
  returned: when O(state=present)
  type: dict
  sample: {'1048576': {'0': 200, '1': 200}}
pages_before:
  description: What it had before.
  returned: when O(state=present)
  type: dict
  sample: {'1048576': {'0': 0, '1': 0}}
plan:
  description: What is changed; with O(state=restored) what is put back.
  returned: success
  type: list
  elements: dict
  contains:
    step:
      description: The step that makes the change.
      type: str
    kind:
      description: What is changed, such as V(file).
      type: str
      sample: file
    what:
      description: Path, unit, address, or address and register.
      type: str
    before:
      description: What it is.
      type: raw
    after:
      description: What it becomes.
      type: raw
    stage:
      description: V(apply), or V(undo) on the way back.
      type: str
      sample: apply
    reboot:
      description: Whether it takes effect with the next boot only.
      type: bool
      sample: false
reboot_required:
  description: Whether something takes effect with the next boot only.
  returned: success
  type: bool
  sample: false
journal_state:
  description: V(none), V(changing) after a run that was cut off, V(applied), or V(undoing).
  returned: success
  type: str
  sample: applied
kept:
  description: What O(state=restored) left in place, a sentence each.
  returned: success
  type: list
  elements: str
  sample: []
"""

from ansible.module_utils.basic import AnsibleModule
from ansible_collections.topovirt.kvm.plugins.module_utils._errors import TopovirtError
from ansible_collections.topovirt.kvm.plugins.module_utils._host.faces import COMMON_SPEC, run_face


def main() -> None:
    module = AnsibleModule(
        argument_spec={
            **COMMON_SPEC,
            "pages": {"type": "dict"},
            "at_once": {"type": "bool", "default": True},
        },
        required_if=[("state", "present", ["pages"])],
        supports_check_mode=True,
    )
    try:
        result = run_face("hugepages", module.params, module.check_mode, module.run_command)
    except TopovirtError as error:
        module.fail_json(msg=str(error))
    module.exit_json(**result)


if __name__ == "__main__":
    main()
