#!/usr/bin/python
# Copyright: the topovirt.kvm authors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

from __future__ import annotations

DOCUMENTATION = r"""
module: guest_capture
short_description: Capture the topology that a running VM's guest sees
version_added: 0.1.0
author:
  - the topovirt.kvm authors (@topovirt)
description:
  - Runs on the VM's host. Waits for the guest agent of a running VM, copies what the reader of topologies reads out of
    the guest's own V(/sys) and V(/proc), and reads it like any other machine.
  - Tells which device of the host is which in the guest, and which guest cell lies on which host node, from the
    running hypervisor. No plan is consulted, so that M(topovirt.kvm.guest_compare) can judge the plan.
  - libvirt marks a domain whose QEMU was asked for its PCI listing as tainted (C(custom-monitor)); that is a note in
    its log and changes nothing.
options:
  name:
    description: Name of the VM.
    type: str
    required: true
  uri:
    description: Address of libvirt.
    type: str
    default: qemu:///system
  timeout:
    description: Seconds that the guest may need to boot, to answer and to copy.
    type: float
    default: 300
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
requirements:
  - libvirt and its Python binding on the host
  - a guest agent (qemu-guest-agent) in the guest that allows C(guest-exec), and C(sh), C(cp), C(dd), C(mkdir),
    C(mktemp), C(rm), C(tar) and C(gzip)
seealso:
  - module: topovirt.kvm.guest_compare
  - module: topovirt.kvm.topology_info
"""

EXAMPLES = r"""
- name: Look at the guest
  topovirt.kvm.guest_capture:
    name: train-0
  register: captured
  become: true

- name: Look at its host
  topovirt.kvm.topology_info:
  register: host
  become: true

- name: Fail where the guest sees anything else
  topovirt.kvm.guest_compare:
    topology: "{{ host.topology }}"
    guest_topology: "{{ captured.guest_topology }}"
    identity: "{{ captured.identity }}"
    node_map: "{{ captured.node_map }}"
    cpu_map: "{{ captured.cpu_map }}"
"""

RETURN = r"""
guest_topology:
  description: What the guest's kernel shows, in the form of RV(topovirt.kvm.topology_info#module:topology).
  returned: success
  type: dict
identity:
  description: Address on the host to address in the guest, of every function that is passed through.
  returned: success
  type: dict
  sample: {'0000:23:00.0': '0000:43:00.0'}
node_map:
  description: Guest cell to host node. A cell that is not bound to exactly one node is not in it.
  returned: success
  type: dict
  sample: {'0': 0, '1': 1}
cpu_map:
  description: vCPU to host CPU. A vCPU that is not pinned to exactly one CPU is not in it.
  returned: success
  type: dict
  sample: {'0': 2, '1': 98}
nccl_xml:
  description:
    - The topology file that NCCL finds in the guest by itself, V(/run/nvidia-topologyd/virtualTopology.xml). The role
      P(topovirt.kvm.gpu_guest#role) puts it there. Null when there is none.
  returned: success
  type: str
nvlink:
  description: Whether the VM has NVSwitches, or a partition of NVLink.
  returned: success
  type: bool
  sample: true
"""

from pathlib import Path

from ansible.module_utils.basic import AnsibleModule
from ansible_collections.topovirt.kvm.plugins.module_utils._errors import TopovirtError
from ansible_collections.topovirt.kvm.plugins.module_utils._libvirt.connection import URI
from ansible_collections.topovirt.kvm.plugins.module_utils._topology.guest import read_guest


def main() -> None:
    module = AnsibleModule(
        argument_spec={
            "name": {"type": "str", "required": True},
            "uri": {"type": "str", "default": URI},
            "timeout": {"type": "float", "default": 300},
        },
        supports_check_mode=True,
    )
    try:
        captured = read_guest(
            module.params["name"], module.params["uri"], module.params["timeout"], Path(module.tmpdir)
        )
    except TopovirtError as error:
        module.fail_json(msg=str(error))
    module.exit_json(changed=False, **captured)


if __name__ == "__main__":
    main()
