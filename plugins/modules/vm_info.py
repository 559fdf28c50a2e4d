#!/usr/bin/python
# Copyright: the topovirt.kvm authors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

from __future__ import annotations

DOCUMENTATION = r"""
module: vm_info
short_description: What the VMs of a host own
version_added: 0.1.0
author:
  - the topovirt.kvm authors (@topovirt)
description:
  - Returns, for every domain that libvirt knows on the host, the PCI devices, CPUs and memory that it owns.
  - Domains that were not made by this collection are listed too, because they own devices all the same.
  - A running domain whose definition was changed owns what it uses now and what its next start needs.
options:
  names:
    description:
      - Returns only these VMs, in this order. Each of them must be there and made by this collection.
      - An empty list, or V(all) alone, stands for all VMs that this collection made.
      - Without it every domain is returned.
    type: list
    elements: str
  missing_ok:
    description:
      - Whether a host without libvirt, or with libvirt not answering, is no error.
      - Such a host returns no domains and O(missing_ok) is told by RV(available).
    type: bool
    default: false
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
seealso:
  - module: topovirt.kvm.vm
"""

EXAMPLES = r"""
- name: Read what the VMs own
  topovirt.kvm.vm_info:
  register: host_vms

- name: Read two of them, and fail if one is not there
  topovirt.kvm.vm_info:
    names: [train-0, infer-0]

- name: Show the running VMs
  ansible.builtin.debug:
    msg: "{{ host_vms.domains | selectattr('state', 'eq', 'running') | map(attribute='name') }}"
"""

RETURN = r"""
available:
  description: Whether libvirt answered. Only with O(missing_ok) this can be V(false).
  returned: success
  type: bool
  sample: true
reason:
  description: Why libvirt did not answer, empty when it did.
  returned: success
  type: str
  sample: ''
domains:
  description: One entry for each domain, by name, or as O(names) says.
  returned: success
  type: list
  elements: dict
  contains:
    name:
      description: Name of the VM.
      type: str
      sample: train-0
    uuid:
      description: Its UUID.
      type: str
    state:
      description: One of V(running), V(paused), V(shut off), V(crashed).
      type: str
      sample: running
    persistent:
      description: Whether it stays defined when it is shut off.
      type: bool
    autostart:
      description: Whether it starts with the host.
      type: bool
    ours:
      description: Whether this collection made it.
      type: bool
    hostdevs:
      description: Addresses of the PCI functions that it owns.
      type: list
      elements: str
      sample: ['0000:23:00.0']
    cpus:
      description: Host CPUs that its vCPUs are pinned to, empty when they are not pinned.
      type: str
      sample: 2-3
    emulator_cpus:
      description: Host CPUs of its emulator and I/O threads, empty when they are not pinned.
      type: str
      sample: 0-1
    memory_bytes:
      description: Memory of the VM.
      type: int
    memory_by_node:
      description: Host NUMA node to bytes, as far as the definition binds memory to one node.
      type: dict
      sample: {'0': 2147483648}
    page_size_bytes:
      description: Size of its huge pages, null for normal ones.
      type: int
    metadata:
      description: What this collection noted in the definition, null for other VMs.
      type: dict
"""

from ansible.module_utils.basic import AnsibleModule
from ansible_collections.topovirt.kvm.plugins.module_utils._errors import TopovirtError
from ansible_collections.topovirt.kvm.plugins.module_utils._libvirt.connection import (
    LibvirtMissing,
    open_libvirt,
    read_domains,
)
from ansible_collections.topovirt.kvm.plugins.module_utils._libvirt.domains import select


def main() -> None:
    module = AnsibleModule(
        argument_spec={
            "names": {"type": "list", "elements": "str"},
            "missing_ok": {"type": "bool", "default": False},
        },
        supports_check_mode=True,
    )
    try:
        with open_libvirt() as connection:
            domains = read_domains(connection)
        if module.params["names"] is not None:
            domains = select(domains, module.params["names"])
    except LibvirtMissing as error:
        if module.params["missing_ok"]:
            module.exit_json(changed=False, available=False, reason=error.message, domains=[])
        module.fail_json(msg=str(error))
    except TopovirtError as error:
        module.fail_json(msg=str(error))
    module.exit_json(changed=False, available=True, reason="", domains=domains)


if __name__ == "__main__":
    main()
