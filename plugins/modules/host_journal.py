#!/usr/bin/python
# Copyright: the topovirt.kvm authors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

from __future__ import annotations

DOCUMENTATION = r"""
module: host_journal
short_description: What a conversion changed on a host
version_added: 0.1.0
author:
  - the topovirt.kvm authors (@topovirt)
description:
  - Reads the journal of M(topovirt.kvm.host_state) and returns how far a conversion or its way back is, what was
    touched, and what is committed.
options:
  root:
    description:
      - Root of the file tree.
    type: path
    default: /
attributes:
  check_mode:
    description: Can run in check mode and return the same, because it changes nothing.
    support: full
  diff_mode:
    description: Will return details on what has changed or would change.
    support: none
    details:
      - Nothing is changed.
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
"""

from pathlib import Path

from ansible.module_utils.basic import AnsibleModule
from ansible_collections.topovirt.kvm.plugins.module_utils._errors import TopovirtError
from ansible_collections.topovirt.kvm.plugins.module_utils._host.face import journal_summary


def main() -> None:
    module = AnsibleModule(argument_spec={"root": {"type": "path", "default": "/"}}, supports_check_mode=True)
    try:
        result = journal_summary(Path(module.params["root"]))
    except TopovirtError as error:
        module.fail_json(msg=str(error))
    module.exit_json(changed=False, **result)


if __name__ == "__main__":
    main()
