#!/usr/bin/python
# Copyright: the topovirt.kvm authors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

from __future__ import annotations

DOCUMENTATION = r"""
module: nic_firmware
short_description: Settings in the firmware of NICs
version_added: 0.1.0
author:
  - the topovirt.kvm authors (@topovirt)
description:
  - Writes settings such as V(ATS_ENABLED) into the firmware of NVIDIA's (Mellanox') NICs, for the next boot, by
    C(mlxconfig) of NVIDIA's firmware tools (MFT) or C(mstconfig) of the package mstflint, and reads them back. What
    each held before is kept.
  - The running firmware has them after a reboot only. RV(effective) says whether it has. The module never reboots; the
    role P(topovirt.kvm.nic_firmware#role) does.
  - The firmware hides some parameters, such as V(MAX_ACC_OUT_READ), while V(ADVANCED_PCI_SETTINGS) is off. When one of
    these is wanted, that is switched on first, and RV(remaining) names what a further run has to set after the reboot.
options:
  devices:
    description:
      - Addresses of the NICs, such as V(0000:24:00.0). By default all of NVIDIA that share a PCIe switch with a GPU.
    type: list
    elements: str
  values:
    description:
      - Names of parameters, as the tool prints them, to values. A value is V(true), V(false), a number, or a word that
        the tool prints, such as V(SECURE_NONE), with or without its number.
      - Elements of arrays are not set.
      - Required for O(state=present). Parameters that are not named are left alone, also those that were named in
        an earlier run.
    type: dict
notes:
  - This module is no part of a conversion, and neither excludes the other. The journal of this module outlasts the way
    back of a conversion.
  - Refuses a device that is bound to vfio-pci, and to change anything while VMs run.
  - No real adapter has been set by this module yet. It was tested with a double that speaks the tool's documented
    format.
extends_documentation_fragment:
  - topovirt.kvm.single_step
"""

EXAMPLES = r"""
- name: Let the NICs beside the GPUs translate addresses
  topovirt.kvm.nic_firmware:
    values:
      ATS_ENABLED: true
  become: true
  register: nic_firmware

- name: Reboot when the firmware runs with other values
  ansible.builtin.reboot:
  become: true
  when: nic_firmware.reboot_required

- name: Put back what was
  topovirt.kvm.nic_firmware:
    state: restored
  become: true
"""

RETURN = r"""
tool:
  description: The program that speaks to the firmware.
  returned: when O(state=present)
  type: str
  sample: mstconfig
devices:
  description: Each NIC with what is wanted of it, as far as its firmware shows that now.
  returned: when O(state=present)
  type: list
  elements: dict
  contains:
    device:
      description: Address.
      type: str
      sample: '0000:24:00.0'
    values:
      description:
        - Name of a parameter to V(current) (what the firmware runs with), V(before) (what it had for the next boot) and
          V(after) (what it has for the next boot).
      type: dict
      sample: {ATS_ENABLED: {current: False(0), before: False(0), after: True(1)}}
remaining:
  description: Parameters that the firmware does not show before a reboot. Run the module again after it.
  returned: when O(state=present)
  type: list
  elements: dict
  contains:
    device:
      description: Address.
      type: str
    name:
      description: The parameter.
      type: str
      sample: MAX_ACC_OUT_READ
effective:
  description: Whether the firmware of every NIC ran with all that is wanted when the module began.
  returned: when O(state=present)
  type: bool
  sample: false
running_vms:
  description: VMs that run, a sentence each, and that a reboot would end.
  returned: when O(state=present)
  type: list
  elements: str
  sample: []
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
      description: What is changed, here V(firmware).
      type: str
      sample: firmware
    what:
      description: Address and parameter.
      type: str
      sample: 0000:24:00.0 ATS_ENABLED
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
      sample: true
reboot_required:
  description: Whether the firmware runs with something else than it has for the next boot, or something remains.
  returned: success
  type: bool
  sample: true
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
            "devices": {"type": "list", "elements": "str"},
            "values": {"type": "dict"},
        },
        supports_check_mode=True,
    )
    try:
        result = run_face("nic_firmware", module.params, module.check_mode, module.run_command)
    except TopovirtError as error:
        module.fail_json(msg=str(error))
    module.exit_json(**result)


if __name__ == "__main__":
    main()
