#!/usr/bin/python
# Copyright: the topovirt.kvm authors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

from __future__ import annotations

DOCUMENTATION = r"""
module: host_journal
short_description: What was changed on a host, and putting it back
version_added: 0.1.0
author:
  - the topovirt.kvm authors (@topovirt)
description:
  - Reads the journal of M(topovirt.kvm.host_state) and returns how far a conversion or its way back is, what was
    touched, and what is committed. The same of the modules that do one step alone, such as M(topovirt.kvm.hugepages).
  - Looks whether everything is there that a way back needs, and puts back what can be put back without a reboot.
options:
  action:
    description:
      - V(show) returns what is in the journals.
      - V(verify) also reads every saved original, fails when one is damaged, and compares everything that was touched
        with what is there now.
      - V(restore) puts back what modules of one step have changed, as their O(ignore:state=restored) does, and takes
        back a conversion whose boot entry does not run. For one whose boot entry runs it refuses, because its way back
        needs a reboot, see P(topovirt.kvm.bare_metal#role).
    type: str
    choices: [show, verify, restore]
    default: show
  root:
    description:
      - Root of the file tree.
    type: path
    default: /
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
seealso:
  - module: topovirt.kvm.host_state
"""

EXAMPLES = r"""
- name: Read the journal
  topovirt.kvm.host_journal:
  become: true
  register: host_journal

- name: Name what a way back would restore
  ansible.builtin.debug:
    msg: "{{ host_journal.touched | rejectattr('undone') | map(attribute='what') }}"

- name: Look whether a way back would be exact
  topovirt.kvm.host_journal:
    action: verify
  become: true

- name: Put back what modules of one step have changed
  topovirt.kvm.host_journal:
    action: restore
  become: true
"""

RETURN = r"""
state:
  description: V(none) on bare metal, otherwise V(begun), V(recorded), V(applied), V(committed) or V(undoing).
  returned: success
  type: str
  sample: committed
id:
  description: Id of the conversion, empty on bare metal.
  returned: success
  type: str
  sample: 5f0c2a9e
committed:
  description:
    - What is committed, empty on bare metal. Keys are V(schema), V(id), V(fabric_model), V(passthrough) (address to
      role), V(hugepages) (V(page_size_bytes), V(per_node)) and V(housekeeping_cpus) (node to CPU list).
  returned: success
  type: dict
  sample: {}
touched:
  description: Everything that was changed, in the order of the first change.
  returned: success
  type: list
  elements: dict
  contains:
    step:
      description: The step that changed it.
      type: str
      sample: tuned
    kind:
      description: What it is.
      type: str
      sample: file
    what:
      description: Path, unit, address or package.
      type: str
      sample: etc/tuned/active_profile
    done:
      description: Whether the first change was completed.
      type: bool
    undone:
      description: Whether the way back has restored it.
      type: bool
    time:
      description: When it was first changed, in seconds since 1970.
      type: int
      sample: 1795000000
faces:
  description: Journals of modules that do one step alone.
  returned: success
  type: list
  elements: dict
  contains:
    name:
      description: The module.
      type: str
      sample: hugepages
    state:
      description: V(begun), V(changing), V(applied) or V(undoing).
      type: str
      sample: applied
    touched:
      description: As RV(touched).
      type: list
      elements: dict
damaged:
  description: Saved originals that are gone or not what was saved, a sentence each.
  returned: with O(action=verify)
  type: list
  elements: str
  sample: []
things:
  description: What became of everything that was touched and not yet put back.
  returned: with O(action=verify)
  type: list
  elements: dict
  contains:
    module:
      description: The module that touched it.
      type: str
      sample: hugepages
    step:
      description: The step that touched it.
      type: str
    kind:
      description: What it is.
      type: str
    what:
      description: Path, unit, address or package.
      type: str
    found:
      description:
        - V(as before), V(as written), V(changed by somebody) or V(gone); V(not compared) for packages, the boot
          loader's variables, and the firmware of a NIC that is bound to vfio-pci or does not answer.
      type: str
      sample: as written
plan:
  description: What is put back, as M(topovirt.kvm.host_state) returns it.
  returned: with O(action=restore)
  type: list
  elements: dict
kept:
  description: What was left in place because somebody changed it meanwhile, a sentence each.
  returned: with O(action=restore)
  type: list
  elements: str
reboot_required:
  description: Whether something of it takes effect with the next boot only.
  returned: with O(action=restore)
  type: bool
"""

from ansible.module_utils.basic import AnsibleModule
from ansible_collections.topovirt.kvm.plugins.module_utils._errors import TopovirtError
from ansible_collections.topovirt.kvm.plugins.module_utils._host.faces import run_journal


def main() -> None:
    module = AnsibleModule(
        argument_spec={
            "action": {"type": "str", "choices": ["show", "verify", "restore"], "default": "show"},
            "root": {"type": "path", "default": "/"},
        },
        supports_check_mode=True,
    )
    try:
        result = run_journal(module.params, module.check_mode, module.run_command)
    except TopovirtError as error:
        module.fail_json(msg=str(error))
    if result.get("damaged"):
        module.fail_json(msg=f"A way back would not be exact: {' '.join(result['damaged'])}", **result)
    module.exit_json(**result)


if __name__ == "__main__":
    main()
