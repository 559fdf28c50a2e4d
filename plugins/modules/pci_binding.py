#!/usr/bin/python
# Copyright: the topovirt.kvm authors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

from __future__ import annotations

DOCUMENTATION = r"""
module: pci_binding
short_description: Bind PCI devices to vfio-pci by address
version_added: 0.1.0
author:
  - the topovirt.kvm authors (@topovirt)
description:
  - Binds exactly the devices that are named to C(vfio-pci), at once and at every boot before any other driver is
    loaded. Never by vendor and device id, which would take NICs of the same kind that the host needs.
  - Refuses devices that the host uses, bridges, and IOMMU groups that are not taken as a whole.
  - Looks for whoever else binds devices here, and refuses where that would take them from guests.
options:
  devices:
    description:
      - Addresses of the devices. Of a GPU all functions of its slot come with it. A device that is not named any more
        goes back to its driver.
      - Required for O(state=present).
    type: list
    elements: str
  persistent:
    description:
      - Whether the devices are bound at every boot, by a script in the host's own initramfs images. These are kept in
        the journal and built anew, by C(update-initramfs) or C(dracut).
    type: bool
    default: true
  at_once:
    description:
      - Whether the devices are bound in the running system, too. All of them are unbound, then all are bound.
    type: bool
    default: true
  tolerate:
    description:
      - Names of competitors, as in RV(competitors), that are no reason to refuse.
    type: list
    elements: str
    default: []
extends_documentation_fragment:
  - topovirt.kvm.single_step
"""

EXAMPLES = r"""
- name: Keep two GPUs and a NIC for guests
  topovirt.kvm.pci_binding:
    devices: ['0000:23:00.0', '0000:26:00.0', '0000:24:00.0']
  become: true

- name: Give them back to the drivers that held them before
  topovirt.kvm.pci_binding:
    state: restored
  become: true
"""

RETURN = r"""
competitors:
  description: Who else binds devices on this host, or is in the way of who gets them.
  returned: when O(state=present)
  type: list
  elements: dict
  contains:
    name:
      description: Who it is.
      type: str
      sample: driverctl
    severity:
      description: V(conflict) when it takes devices from guests or holds them, V(hint) when it is only good to know of.
      type: str
      sample: conflict
    text:
      description: What was found.
      type: str
      sample: a rule of driverctl binds 0000:23:00.0 to nvidia at each boot
    remedy:
      description: What to do about it.
      type: str
      sample: Run driverctl unset-override 0000:23:00.0
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
            "devices": {"type": "list", "elements": "str"},
            "persistent": {"type": "bool", "default": True},
            "at_once": {"type": "bool", "default": True},
            "tolerate": {"type": "list", "elements": "str", "default": []},
        },
        required_if=[("state", "present", ["devices"])],
        supports_check_mode=True,
    )
    try:
        result = run_face("pci_binding", module.params, module.check_mode, module.run_command)
    except TopovirtError as error:
        module.fail_json(msg=str(error))
    module.exit_json(**result)


if __name__ == "__main__":
    main()
