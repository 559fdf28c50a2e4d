#!/usr/bin/python
# Copyright: the topovirt.kvm authors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

from __future__ import annotations

DOCUMENTATION = r"""
module: kernel_cmdline
short_description: Kernel arguments of every boot entry
version_added: 0.1.0
author:
  - the topovirt.kvm authors (@topovirt)
description:
  - Puts words on the kernel command line of every boot entry of a host, takes others away, and lets kernels that are
    installed later inherit that. Every entry is compared word by word, before and after; words that are not named stay.
  - Names are no patterns. As for the kernel, C(-) and C(_) in a name are the same.
  - The running kernel is reported apart from the entries. The module never reboots.
options:
  present:
    description:
      - Arguments that are wanted, such as V(intel_iommu=on). One replaces every other value of its name, so of an
        argument that may be given several times, such as V(console), all values are listed.
      - A value with spaces stands between double quotes. Characters that boot loaders would expand are refused.
    type: list
    elements: str
    default: []
  absent:
    description:
      - Arguments that are not wanted. A name goes with whatever value it has, V(name=value) with exactly that.
    type: list
    elements: str
    default: []
  backend:
    description:
      - How the host boots. V(auto) finds it out.
      - With V(bls) (GRUB with entry files, RHEL and its kin) entries are changed by C(grubby) where the host has it,
        and read back.
      - With V(grub_defaults) (Debian and its children) a drop-in F(/etc/default/grub.d/topovirt-cmdline.cfg) adds words
        and takes words away, and C(update-grub) makes F(/boot/grub/grub.cfg) anew. No other file is edited.
      - With V(ostree) C(rpm-ostree kargs) changes the next deployment. With V(bootc) the module refuses, and says which
        file belongs into the image. With V(systemd_boot) entry files are edited; unified kernel images are refused.
        These three were tested on recorded hosts only.
    type: str
    choices: [auto, bls, grub_defaults, ostree, bootc, systemd_boot]
    default: auto
extends_documentation_fragment:
  - topovirt.kvm.single_step
"""

EXAMPLES = r"""
- name: Switch the IOMMU on in every boot entry
  topovirt.kvm.kernel_cmdline:
    present: [intel_iommu=on, iommu=pt]
    absent: [quiet]
  become: true
  register: kernel_cmdline

- name: Reboot when the running kernel has other arguments
  ansible.builtin.reboot:
  become: true
  when: kernel_cmdline.running_differs

- name: Put back what was
  topovirt.kvm.kernel_cmdline:
    state: restored
  become: true
"""

RETURN = r"""
backend:
  description: How the host boots.
  returned: when O(state=present)
  type: str
  sample: bls
entries:
  description: Every boot entry with its words. GRUB may put those of V(grub_defaults) into another order.
  returned: when O(state=present)
  type: list
  elements: dict
  contains:
    id:
      description: Path of the entry file, or id of the menu entry.
      type: str
    before:
      description: Words before.
      type: list
      elements: str
      sample: [ro, quiet]
    after:
      description: Words after.
      type: list
      elements: str
      sample: [ro, iommu=pt]
running_differs:
  description: Whether the running kernel was not started as wanted.
  returned: when O(state=present)
  type: bool
  sample: true
running_missing:
  description: Wanted arguments that the running kernel does not have.
  returned: when O(state=present)
  type: list
  elements: str
  sample: [iommu=pt]
running_extra:
  description: Unwanted arguments that the running kernel has.
  returned: when O(state=present)
  type: list
  elements: str
  sample: [quiet]
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
            "present": {"type": "list", "elements": "str", "default": []},
            "absent": {"type": "list", "elements": "str", "default": []},
            "backend": {
                "type": "str",
                "choices": ["auto", "bls", "grub_defaults", "ostree", "bootc", "systemd_boot"],
                "default": "auto",
            },
        },
        supports_check_mode=True,
    )
    try:
        result = run_face("kernel_cmdline", module.params, module.check_mode, module.run_command)
    except TopovirtError as error:
        module.fail_json(msg=str(error))
    module.exit_json(**result)


if __name__ == "__main__":
    main()
