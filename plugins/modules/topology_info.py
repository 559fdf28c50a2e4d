#!/usr/bin/python
# Copyright: the topovirt.kvm authors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

from __future__ import annotations

DOCUMENTATION = r"""
module: topology_info
short_description: Read the hardware topology of a host
version_added: 0.1.0
author:
  - the topovirt.kvm authors (@topovirt)
description:
  - Reads NUMA nodes, cores, PCI functions with their place in the PCIe tree, their IOMMU groups, drivers and device
    roles, and which devices the host itself uses, and returns them as one structure.
  - The structure is too large for a host fact. Register it where it is needed, and see
    M(topovirt.kvm.topology_facts) for a summary.
  - Some attributes are readable by root only. Without root the kinds of PCIe ports are told by their place in the tree.
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
  - module: topovirt.kvm.topology_facts
  - module: topovirt.kvm.guest_capture
"""

EXAMPLES = r"""
- name: Read the topology
  topovirt.kvm.topology_info:
  register: host
  become: true

- name: Show which GPUs the host could give away
  ansible.builtin.debug:
    msg: "{{ host.topology.pci | selectattr('role', 'eq', 'gpu') | rejectattr('in_use') | map(attribute='bdf') }}"

- name: Show how the devices reach each other
  ansible.builtin.debug:
    msg: "{{ (host.topology | topovirt.kvm.topology_text).splitlines() }}"

- name: Read a recorded machine, with an Ethernet adapter that carries data
  topovirt.kvm.topology_info:
    root: /srv/captures/node17
    roles:
      '8086:1592': nic
"""

RETURN = r"""
topology:
  description:
    - The machine. Sizes are bytes, link speeds giga-transfers per second and lane; what is not known is null.
    - C(docs/reference/topology.schema.json) is the same as JSON Schema.
  returned: success
  type: dict
  contains:
    schema:
      description: Version of this structure.
      type: int
      sample: 1
    host:
      description:
        - The running system with the keys V(kernel), V(arch), V(cmdline), V(boot_id), V(firmware) (V(uefi) or V(bios)),
          V(os_id), V(os_version), V(cpu_vendor), V(cpu_family), V(cpu_model), V(cpu_model_name),
          V(virtualization) (V(vmx) or V(svm)), V(phys_bits), V(isolated_cpus), V(nohz_full_cpus), V(secure_boot) and
          V(lockdown) (V(none), V(integrity), V(confidentiality), or null where the kernel has no lockdown).
      type: dict
    iommu:
      description:
        - V(kind) (V(dmar) or V(ivrs), the ACPI table that is there), V(active), V(default_domain) (type of most
          endpoints' groups) and the number of V(groups).
      type: dict
      sample: {kind: dmar, active: true, default_domain: DMA-FQ, groups: 40}
    software:
      description:
        - V(next_cmdline), the kernel command line of the next boot; the versions V(libvirt) and V(qemu), null where
          they are not installed; V(features) that follow from versions, V(qemu_override), V(maxphysaddr),
          V(large_bar_fast_mapping) and V(iommufd), each true, false or null.
      type: dict
      sample:
        next_cmdline: root=UUID=0a1b ro quiet
        libvirt: 11.3.0
        qemu: 10.0.8
        features: {qemu_override: true, maxphysaddr: true, large_bar_fast_mapping: true, iommufd: false}
    numa_nodes:
      description: NUMA nodes with V(id), V(cpus), V(memory_bytes), V(distances) and V(hugepages).
      type: list
      elements: dict
      sample:
        - id: 0
          cpus: 0-3
          memory_bytes: 6442450944
          distances: {'0': 10, '1': 21}
          hugepages: {'1048576': {total: 2, free: 2}}
    cores:
      description: Cores with V(package), V(die), V(core), V(node), V(l3) (first CPU of the cache) and their V(threads).
      type: list
      elements: dict
      sample: [{package: 0, die: 0, core: 0, node: 0, l3: 0, threads: [0, 1]}]
    pci:
      description:
        - PCI functions, ascending by address. Bridges lack V(driver_override), V(bars), V(reset_methods),
          V(power_state), V(physfn), V(names), V(vm) and V(module_id).
      type: list
      elements: dict
      contains:
        bdf:
          description: Address.
          type: str
          sample: '0000:23:00.0'
        kind:
          description: One of V(endpoint), V(root_port), V(upstream_port), V(downstream_port), V(bridge).
          type: str
          sample: endpoint
        role:
          description: One of V(gpu), V(nvswitch), V(fabric_bridge), V(nic), V(nvme), null for all others.
          type: str
          sample: gpu
        class:
          description: Class, six hex digits.
          type: str
          sample: '030200'
        vendor:
          description: Vendor id, four hex digits, as V(device) is; V(subsystem) has both, with a colon, or is null.
          type: str
          sample: 10de
        parent:
          description: Address of the bridge above, null below a host bridge.
          type: str
          sample: '0000:22:00.0'
        host_bridge:
          description: Domain and number of the root bus.
          type: str
          sample: '0000:20'
        numa_node:
          description:
            - NUMA node, its own, the nearest ancestor's or the root bus's; V(numa_source) is V(own) or names who knew.
          type: int
          sample: 0
        driver:
          description: Driver that is bound now; V(driver_override) is the one that may be.
          type: str
          sample: nvidia
        iommu_group:
          description: Number of the IOMMU group.
          type: int
          sample: 17
        bars:
          description: Memory BARs with V(index) (6 is the ROM), V(size_bytes), V(is_64bit) and V(prefetchable).
          type: list
          elements: dict
        link:
          description: Maximum speed V(max_gtps) and V(max_width).
          type: dict
          sample: {max_gtps: 32.0, max_width: 16}
        reset_methods:
          description: Ways to reset it that the kernel knows.
          type: list
          elements: str
          sample: [flr, bus]
        capabilities:
          description:
            - What the function can do, and what of it is on. A key is absent where the function lacks the capability;
              all is null where the configuration space cannot be read whole.
            - Of bridges V(acs) with the bits V(supported) and V(enabled). Of endpoints V(ats) with V(enabled), V(sriov)
              with V(total) and V(enabled) functions, V(max_read_request_bytes), and V(resizable_bars), BAR index to
              sizes, where bit n stands for two to the power of n plus 20 bytes.
            - Of adapters that may be the bridge to a board's fabric V(fabric_marker), whether they carry its mark.
          type: dict
          sample: {ats: {enabled: false}, sriov: {total: 16, enabled: 0}, max_read_request_bytes: 512}
        power_state:
          description: One of V(D0), V(D1), V(D2), V(D3hot), V(D3cold).
          type: str
          sample: D0
        physfn:
          description: Address of the physical function of a virtual one.
          type: str
        names:
          description: Network interfaces, RDMA devices and disks that it carries.
          type: list
          elements: str
          sample: [eth0]
        in_use:
          description: Why the host needs it, one sentence each; empty when it is free.
          type: list
          elements: str
        vm:
          description: The running VM that has it.
          type: str
          sample: train-0
        module_id:
          description: The GPU's number on the baseboard. Known for all GPUs or for none.
          type: int
          sample: 2
    unknown:
      description:
        - Facts that could not be known, V(fact), why, V(reason), and of what, V(of) (addresses, V(node 0), V(cpu 3);
          empty for a fact of the machine). A null that is not listed means that there is no such thing.
      type: list
      elements: dict
      sample: [{fact: lockdown, reason: securityfs is not mounted, of: []}]
"""

from ansible.module_utils.basic import AnsibleModule
from ansible_collections.topovirt.kvm.plugins.module_utils._errors import TopovirtError
from ansible_collections.topovirt.kvm.plugins.module_utils._topology.face import ARGUMENT_SPEC, read_for


def main() -> None:
    module = AnsibleModule(argument_spec=ARGUMENT_SPEC, supports_check_mode=True)
    try:
        topology = read_for(module)
    except TopovirtError as error:
        module.fail_json(msg=str(error))
    module.exit_json(changed=False, topology=topology)


if __name__ == "__main__":
    main()
