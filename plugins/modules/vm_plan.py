#!/usr/bin/python
# Copyright: the topovirt.kvm authors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

from __future__ import annotations

DOCUMENTATION = r"""
module: vm_plan
short_description: Plan VMs with GPUs for a host
version_added: 0.1.0
author:
  - the topovirt.kvm authors (@topovirt)
description:
  - Decides for a batch of VMs which GPUs, NICs, NVSwitches, NVMe devices, cores and memory each of them gets, lays out
    each guest so that it sees the host's true topology, and returns libvirt domain XML and an NCCL topology file.
  - The same input always gives the same plan. It is the best one for the whole batch, in this order, least distance
    between GPUs and their NICs and NVMe devices, fewest NUMA nodes, largest VMs that still fit later, host order.
  - VMs that exist keep their place as long as their request still fits them. Running VMs are never moved.
  - Changes nothing. A batch that does not fit is refused with every shortage of every VM.
options:
  requests:
    description:
      - The VMs. All are planned together.
      - C(name) is the VM's name.
      - C(gpus) is the number of GPUs, at least 1, or a list of certain GPUs, each as an address or as a mapping with
        either C(module_id) or C(index), its place among the host's GPUs.
      - C(nics) is V(auto), a number of NICs or a list of addresses. V(auto), the default, is what O(policy) says, or
        the GPUs' share of the NICs near GPUs. NICs are never shared. Virtual functions, see C(wanted.sriov) of
        M(topovirt.kvm.host_state), are given by their addresses only.
      - C(nvme) is the number of NVMe devices, by default 0, V(auto) for the GPUs' share, or a list of addresses.
      - C(vcpus) is V(auto), a number of vCPUs, which must fill whole cores, or a list of the host's CPUs such as
        V(4-7,52-55). V(auto), the default, is what O(policy) says, or the GPUs' share of the cores of their NUMA nodes,
        less those that the host keeps.
      - C(memory) is V(auto) or a size such as V(120GiB), a multiple of the huge pages' size. V(auto), the default, is
        what O(policy) says, or the GPUs' share of their nodes' huge pages.
      - C(smt) is V(share), the default, which makes every thread of a core a vCPU, or V(isolate), which makes one vCPU
        of each core and leaves its other threads idle.
      - C(numa) is V(strict), the default, for cores and memory of the GPUs' NUMA nodes alone, or V(prefer), which takes
        from other nodes, nearest first, what those do not have.
      - C(nvlink) is V(required), V(preferred) or V(none). Without it NVLink is as O(fabric_model) has it. V(none) gives
        any number of GPUs without NVLink between them, V(preferred) does so only where the fabric cannot connect as
        many.
      - C(anti_affinity) is a list of names of VMs that this one shares no NUMA node with.
      - C(priority) is a number from -1000 to 1000, by default 0. VMs of higher priority are placed before the others.
      - C(boot) is either C(kernel), C(initrd) and C(cmdline), or C(disk) with C(path) and C(format) (V(qcow2) or
        V(raw)). Paths are on the host.
      - C(hostdev_properties) sets QEMU properties on every passed-through device. For debugging only; libvirt marks
        such a VM as tainted.
      - C(pv_eoi) says whether the guest may end an interrupt without leaving its CPU (KVM's paravirtual end of
        interrupt). By default it is as libvirt has it.
      - C(pcie) is the guest's PCIe tree. V(mirror), the default, has the host's host bridges, root ports and switches,
        so that every path is as on the host. V(root_port) has a root port for each device, with the speed and width of
        its link, below the host's host bridges; devices of one switch then are PHB, and libvirt marks such a VM as
        tainted. V(flat) has a root port for each device and no NUMA nodes of devices.
      - C(gpu_p2p) says to NVIDIA's driver which GPUs reach each other over PCIe, which it does not believe of emulated
        switches. By default V(false). Refused where the host's switches do not pass requests between the GPUs, or where
        it is unknown whether they do.
    type: list
    elements: dict
    required: true
  topology:
    description:
      - The host, as M(topovirt.kvm.topology_info) returns it.
      - Without it the host is read, and the topology never becomes a variable.
    type: dict
  domains:
    description:
      - What VMs own already, as M(topovirt.kvm.vm_info) returns it.
      - Without it the host is asked.
    type: list
    elements: dict
  fabric_model:
    description:
      - How VMs use NVLink. One model holds for the whole host.
      - With V(full_passthrough) a VM has all GPUs and all NVSwitches, or one GPU without NVLink.
      - With V(shared_nvswitch) a VM has the GPUs of one partition of Fabric Manager, and NVSwitches stay with the host.
        Needs the module ids of all GPUs.
      - With V(none) GPUs are combined freely. For machines without NVSwitches.
    type: str
    required: true
    choices: [full_passthrough, shared_nvswitch, none]
  policy:
    description: Rules for what requests leave to V(auto), instead of the proportional share.
    type: dict
    suboptions:
      sizing:
        description:
          - Name of a table of sizes by number of GPUs. What it does not say is the proportional share.
          - V(dgx-2) has the sizes of the DGX-2's own tool, and what its host keeps. Its figures are not verified
            against the vendor's text.
        type: str
        choices: [dgx-2, proportional]
        default: proportional
      vcpus_per_gpu:
        description: Number of vCPUs for each GPU.
        type: int
      memory_per_gpu:
        description: Memory for each GPU, such as V(120GiB).
        type: str
      nics_per_gpu:
        description: Number of NICs for each GPU.
        type: int
      reserve_cores_per_node:
        description:
          - Cores of each NUMA node that the host keeps. By default one in eight, at least 1, at most 2, or at most 4
            with O(fabric_model=shared_nvswitch), as Fabric Manager then runs on the host.
          - Give what the host was converted with.
        type: int
      reserve_memory_per_node:
        description:
          - Memory of each NUMA node that the host keeps, such as V(30GiB), with O(state=unconverted). By default 5
            percent, at least 3 GiB. On a converted host the huge pages that exist decide.
        type: str
  state:
    description:
      - With V(converted) only devices bound to vfio-pci and huge pages that exist are given out.
      - With V(unconverted) the plan is for a host before its conversion. Drivers do not matter, and huge pages are
        those that the conversion would make. Devices that the host uses are still kept out.
    type: str
    choices: [converted, unconverted]
    default: converted
  exclude:
    description:
      - Addresses of devices that are not given out, such as degraded GPUs. A GPU that does not answer is left out
        anyway.
    type: list
    elements: str
    default: []
  explain:
    description:
      - Whether to add to every new VM why it got its devices, and what the next best placement was.
    type: bool
    default: false
  partial:
    description:
      - Whether to plan the VMs that fit, higher priority first, and to list the others with their reasons, instead of
        refusing the whole batch.
    type: bool
    default: false
attributes:
  action:
    description: Has a corresponding action plugin, so that parts of the options can be executed on the controller.
    support: full
  async:
    description: Supports being used with the C(async) keyword.
    support: none
  check_mode:
    description: Can run in check mode and return the same, because it changes nothing.
    support: full
  diff_mode:
    description: Will return details on what has changed or would change.
    support: none
    details:
      - Nothing is changed.
  platform:
    description: Where the host's part runs.
    support: full
    platforms: posix
requirements:
  - lxml and PyYAML on the controller
seealso:
  - module: topovirt.kvm.topology_info
  - module: topovirt.kvm.vm
  - module: topovirt.kvm.vm_info
"""

EXAMPLES = r"""
- name: Plan two tenants with four GPUs each
  topovirt.kvm.vm_plan:
    fabric_model: shared_nvswitch
    requests:
      - name: train-0
        gpus: 4
        boot: {disk: {path: /var/lib/libvirt/images/train-0.qcow2}}
      - name: train-1
        gpus: 4
        memory: 512GiB
        boot: {disk: {path: /var/lib/libvirt/images/train-1.qcow2}}
  register: planned

- name: See whether a host would take one large VM, before it is converted
  topovirt.kvm.vm_plan:
    fabric_model: full_passthrough
    state: unconverted
    requests:
      - name: train-0
        gpus: 8
        boot: {disk: {path: /var/lib/libvirt/images/train-0.qcow2}}
"""

RETURN = r"""
plan:
  description: The plan, for M(topovirt.kvm.vm).
  returned: success
  type: dict
  contains:
    schema:
      description: Version of this structure.
      type: int
      sample: 1
    basis:
      description: What the plan depends on. M(topovirt.kvm.vm) refuses the plan when it has changed.
      type: dict
    fabric_model:
      description: As given.
      type: str
    vms:
      description: One entry for each request, in the same order.
      type: list
      elements: dict
      contains:
        name:
          description: Name of the VM.
          type: str
        uuid:
          description: UUID of the VM, always the same for one host and name.
          type: str
        placement:
          description: Devices, CPUs and memory of the host that the VM gets, and its NVLink partition.
          type: dict
        layout:
          description: The guest; NUMA cells, pins, CPU topology, PCIe tree with guest addresses, address space.
          type: dict
        domain_xml:
          description: Definition for libvirt.
          type: str
        nccl_xml:
          description: NCCL topology file for the guest.
          type: str
        warnings:
          description: What is allowed but worth knowing.
          type: list
          elements: str
        explanation:
          description:
            - Pairs of GPU and device with their path class, their sum of costs, the NUMA nodes, and the next best
              placement with the reason why it was not taken.
          returned: with O(explain) and for VMs that are placed anew
          type: dict
    refused:
      description: VMs that cannot be placed beside the others, each with its reasons.
      returned: with O(partial)
      type: list
      elements: dict
    still_fits:
      description: Numbers of GPUs of one further VM that would fit, largest first.
      returned: with O(partial)
      type: list
      elements: int
"""
