#!/usr/bin/python
# Copyright: the topovirt.kvm authors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

from __future__ import annotations

DOCUMENTATION = r"""
module: topology_facts
short_description: Summarize the hardware topology of a host as a fact
version_added: 0.1.0
author:
  - the topovirt.kvm authors (@topovirt)
description:
  - Reads the topology like M(topovirt.kvm.topology_info) and sets one small fact, C(ansible_facts.topovirt), of at most
    2 KiB.
options:
  root:
    description:
      - Directory below which V(/sys), V(/proc), V(/etc) and V(/var) are read.
      - Another directory than V(/) makes a recorded tree or a chroot the machine; no command is run then.
      - An archive that M(topovirt.kvm.topology_capture) made is read like the machine that it was made on.
    type: path
    default: /
  module_ids:
    description:
      - GPU address to module id, the GPU's number on the baseboard.
      - Needed only where neither the NVIDIA driver nor the file saved by the conversion knows them.
      - Every NVIDIA GPU needs its own id, or none is accepted.
    type: dict
  roles:
    description:
      - Device roles that differ from the rules.
      - Keys are an address (V(0000:23:00.0)), vendor and device (V(8086:1592)) or a class (V(0200) or V(020000)); the
        most exact key wins.
      - Values are V(gpu), V(nvswitch), V(fabric_bridge), V(nic), V(nvme) or V(none).
      - By rule an Ethernet function is a V(nic) if its vendor is NVIDIA (Mellanox) or it shares a PCIe switch with a
        GPU, because other adapters usually carry the operator's own login; an InfiniBand function always is.
    type: dict
attributes:
  check_mode:
    description: Can run in check mode and return the same, because it changes nothing.
    support: full
  facts:
    description: Returns facts.
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
  - module: topovirt.kvm.topology_info
"""

EXAMPLES = r"""
- name: Summarize the host
  topovirt.kvm.topology_facts:
  become: true

- name: Refuse hosts whose module ids are unknown
  ansible.builtin.assert:
    that: ansible_facts['topovirt']['health']['module_ids']
"""

RETURN = r"""
ansible_facts:
  description: The fact.
  returned: success
  type: dict
  contains:
    topovirt:
      description: Summary of the host.
      type: dict
      contains:
        schema:
          description: Version of the topology that it summarizes.
          type: int
          sample: 1
        digest:
          description: Changes when hardware, firmware settings, kernel or its command line change, not with use.
          type: str
          sample: 0f2d9a4c51b8e673
        converted:
          description: Id of the conversion that is committed, null on bare metal.
          type: str
        counts:
          description: Number of devices of each role.
          type: dict
          sample: {gpu: 8, nvswitch: 4, nic: 8, nvme: 4}
        health:
          description:
            - V(module_ids), whether every GPU's is known (null without GPUs), V(iommu) (V(dmar), V(ivrs) or null),
              V(iommu_active), and the number of devices V(in_use) by the host.
          type: dict
          sample: {module_ids: true, iommu: dmar, iommu_active: true, in_use: 0}
        grouped_by:
          description:
            - V(switch) for one entry of RV(ansible_facts.topovirt.groups) per PCIe group, V(node) for one per NUMA node
              where the groups are too many.
          type: str
          sample: switch
        groups:
          description:
            - Free and all devices of each role, the NUMA node, and where the group is (V(at), the address of the switch
              or port above).
          type: list
          elements: dict
          sample: [{at: '0000:22:00.0', node: 0, gpu: 2/2, nic: 2/2, nvme: 0/1}]
"""

from pathlib import Path

from ansible.module_utils.basic import AnsibleModule
from ansible_collections.topovirt.kvm.plugins.module_utils._errors import TopovirtError
from ansible_collections.topovirt.kvm.plugins.module_utils._topology.face import ARGUMENT_SPEC, read_for
from ansible_collections.topovirt.kvm.plugins.module_utils._topology.facts import read_converted_id, summarize


def main() -> None:
    module = AnsibleModule(argument_spec=ARGUMENT_SPEC, supports_check_mode=True)
    try:
        facts = summarize(read_for(module), read_converted_id(Path(module.params["root"])))
    except TopovirtError as error:
        module.fail_json(msg=str(error))
    module.exit_json(changed=False, ansible_facts={"topovirt": facts})


if __name__ == "__main__":
    main()
