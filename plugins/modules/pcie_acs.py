#!/usr/bin/python
# Copyright: the topovirt.kvm authors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

from __future__ import annotations

DOCUMENTATION = r"""
module: pcie_acs
short_description: PCIe access control between GPUs and NICs
version_added: 0.1.0
author:
  - the topovirt.kvm authors (@topovirt)
description:
  - Sets the bits of PCIe Access Control Services that let GPUs and NICs of VMs reach each other directly, on the root
    and downstream ports of their paths only, and the NICs' read requests. At once and at every boot, before VMs start
    by themselves.
  - What is set is read back as a number. A value that did not come to be, or IOMMU groups that change with it, put all
    registers back.
  - Refused under kernel lockdown, while VMs run, and where a configuration space on the paths cannot be read in full.
options:
  devices:
    description:
      - Addresses of further GPUs and NICs whose paths count. GPUs, and NICs that share a PCIe switch with one, always
        do.
    type: list
    elements: str
    default: []
  exclude:
    description:
      - Addresses of devices whose paths do not count.
    type: list
    elements: str
    default: []
  bits:
    description:
      - ACS bits of the ports, as far as each supports them. V(0x1d), which Linux sets and on which IOMMU groups rest,
        has to be among them. The default is V(0x5d).
    type: int
    default: 0x5d
  ats:
    description:
      - Whether to switch on address translation (ATS) in the devices on the paths that have it. Leave it to the kernel
        unless you know better.
    type: bool
    default: false
  max_read_request:
    description:
      - Largest read request of the NICs on the paths in bytes, V(0) for as it is.
    type: int
    choices: [0, 128, 256, 512, 1024, 2048, 4096]
    default: 4096
  at_once:
    description:
      - Whether the registers are also set in the running system. With V(false) the next boot does it.
    type: bool
    default: true
extends_documentation_fragment:
  - topovirt.kvm.single_step
"""

EXAMPLES = r"""
- name: Let GPUs and NICs of VMs reach each other directly
  topovirt.kvm.pcie_acs:
  become: true

- name: Put back what the registers held
  topovirt.kvm.pcie_acs:
    state: restored
  become: true
"""

RETURN = r"""
registers:
  description: What the registers held before, by address and name.
  returned: when O(state=present)
  type: dict
  sample: {'0000:22:00.0 acs_control': 29}
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
            "devices": {"type": "list", "elements": "str", "default": []},
            "exclude": {"type": "list", "elements": "str", "default": []},
            "bits": {"type": "int", "default": 0x5D},
            "ats": {"type": "bool", "default": False},
            "max_read_request": {
                "type": "int",
                "choices": [0, 128, 256, 512, 1024, 2048, 4096],
                "default": 4096,
            },
            "at_once": {"type": "bool", "default": True},
        },
        supports_check_mode=True,
    )
    try:
        result = run_face("pcie_acs", module.params, module.check_mode, module.run_command)
    except TopovirtError as error:
        module.fail_json(msg=str(error))
    module.exit_json(**result)


if __name__ == "__main__":
    main()
