#!/usr/bin/python
# Copyright: the topovirt.kvm authors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

from __future__ import annotations

DOCUMENTATION = r"""
module: tuned_profile
short_description: TuneD profile of a host, with isolated cores
version_added: 0.1.0
author:
  - the topovirt.kvm authors (@topovirt)
description:
  - Switches TuneD to a profile of its own, such as V(virtual-host), or to one of the collection that includes it. TuneD
    has to be installed and running.
  - Everything that TuneD writes then is recorded, its part of the boot configuration included, and comes back with
    O(state=restored).
options:
  profile:
    description:
      - Name of a profile that is installed.
      - Exactly one of O(profile) and O(own) is needed for O(state=present).
    type: str
  own:
    description:
      - A profile C(topovirt) that includes another one and suits a host of pinned VMs. Memory is not moved by automatic
        NUMA balancing, and the host does not poll for idle vCPUs.
    type: dict
    suboptions:
      include:
        description:
          - The profile below it. V(cpu-partitioning) isolates the cores with kernel arguments, too, which take effect
            with the next boot.
        type: str
        choices: [virtual-host, cpu-partitioning]
        default: virtual-host
      isolated_cores:
        description:
          - CPUs that the kernel's own work keeps away from, a list like V(2-31,34-63). At least one CPU of each NUMA
            node has to stay.
          - Required with V(cpu-partitioning), whose variables file gets it.
        type: str
notes:
  - TuneD itself writes F(/etc/tuned/active_profile), F(/etc/tuned/profile_mode), F(/etc/tuned/bootcmdline) and its part
    of the boot configuration. They are no changes of RV(plan), but are restored.
extends_documentation_fragment:
  - topovirt.kvm.single_step
"""

EXAMPLES = r"""
- name: Isolate all but four CPUs of each node
  topovirt.kvm.tuned_profile:
    own:
      include: cpu-partitioning
      isolated_cores: 4-47,52-95
  become: true

- name: Put back the profile that was active before
  topovirt.kvm.tuned_profile:
    state: restored
  become: true
"""

RETURN = r"""
active:
  description: The profile that was active before.
  returned: when O(state=present)
  type: str
  sample: throughput-performance
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
            "profile": {"type": "str"},
            "own": {
                "type": "dict",
                "options": {
                    "include": {
                        "type": "str",
                        "choices": ["virtual-host", "cpu-partitioning"],
                        "default": "virtual-host",
                    },
                    "isolated_cores": {"type": "str"},
                },
            },
        },
        mutually_exclusive=[("profile", "own")],
        required_if=[("state", "present", ("profile", "own"), True)],
        supports_check_mode=True,
    )
    try:
        result = run_face("tuned_profile", module.params, module.check_mode, module.run_command)
    except TopovirtError as error:
        module.fail_json(msg=str(error))
    module.exit_json(**result)


if __name__ == "__main__":
    main()
