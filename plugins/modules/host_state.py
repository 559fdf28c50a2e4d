#!/usr/bin/python
# Copyright: the topovirt.kvm authors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

from __future__ import annotations

DOCUMENTATION = r"""
module: host_state
short_description: Convert a GPU server to a KVM host, and back
version_added: 0.1.0
author:
  - the topovirt.kvm authors (@topovirt)
description:
  - Takes the whole wanted state of a host, refuses with all reasons at once what would harm it, and makes the changes
    as one transaction with a journal, from which the way back restores everything exactly.
  - A conversion never rewrites an existing boot entry or initramfs. It adds an entry of its own, which is booted once,
    verified, and only then made the default. Units and scripts of the conversion act under that entry only.
  - A host that does not come back recovers by itself. While the entry is tried, the host reboots into its old entry
    when the kernel panics, when the root file system is not found, and when nobody confirms the boot by O(phase=commit)
    within O(wanted.confirm_timeout).
  - The roles P(topovirt.kvm.kvm_host#role) and P(topovirt.kvm.bare_metal#role) call the phases in order, and reboot
    between them. Every phase may be repeated and continues where an earlier run was cut off.
options:
  state:
    description:
      - V(present) for a KVM host, V(restored) for the way back.
    type: str
    choices: [present, restored]
    default: present
  phase:
    description:
      - V(plan) changes nothing and returns what would change.
      - For O(state=present), V(record) takes the inventory before packages are installed (by Ansible's own module),
        V(apply) makes the changes and arms one boot of the new entry, V(verify) waits until the new boot is complete
        and fails with a list of what is not as wanted, V(commit) ends the trial and makes the new entry the default.
      - V(verify) also fails when the trial boot failed and the host has recovered. V(apply) then arms another try, and
        warns.
      - For O(state=restored), V(undo) makes the old boot entry the default again, and V(finish) restores everything
        else once it runs, the journal included.
    type: str
    choices: [plan, record, apply, verify, commit, undo, finish]
    required: true
  wanted:
    description:
      - The wanted state, for O(state=present).
    type: dict
    default: {}
    suboptions:
      passthrough:
        description:
          - Roles of devices that VMs may own.
          - GPUs are taken by role. NICs and NVMe devices are taken by role only when they share a PCIe switch with a
            GPU, so an on-board adapter or a boot disk is never meant.
          - Parts of the fabric follow O(wanted.fabric_model) and need not be named.
          - All functions of a GPU's slot come with it.
        type: list
        elements: str
        choices: [gpu, nvswitch, fabric_bridge, nic, nvme]
        default: [gpu, nic]
      devices:
        description:
          - Addresses of further devices that VMs may own.
        type: list
        elements: str
        default: []
      exclude:
        description:
          - Addresses of devices that stay with the host although their role says otherwise.
        type: list
        elements: str
        default: []
      fabric_model:
        description:
          - With V(full_passthrough) NVSwitches go to the VM that owns all GPUs. With V(shared_nvswitch) and V(none)
            they stay with the host.
        type: str
        choices: [full_passthrough, shared_nvswitch, none]
        default: full_passthrough
      packages:
        description:
          - Packages that the host needs. They are recorded here, and installed by Ansible's own module.
        type: list
        elements: str
        default: []
      services:
        description:
          - Units that have to be enabled and active.
        type: list
        elements: str
        default: []
      cmdline:
        description:
          - Further kernel arguments. Those for the IOMMU and for huge pages follow from the other options.
        type: list
        elements: str
        default: []
      hugepages:
        description:
          - The pool of huge pages for VMs.
        type: dict
        suboptions:
          page_size:
            description:
              - Size of a page. The default is V(1GiB) where the CPU can, otherwise V(2MiB).
            type: str
            choices: [2MiB, 1GiB]
          per_node:
            description:
              - NUMA node to number of pages. By default all memory but the host's reserve (5 percent, at least 3 GiB)
                of each node.
            type: dict
      reserve_cores_per_node:
        description:
          - Cores of each NUMA node that the host keeps. The default is one in eight, at least 1, at most 2, or at most
            4 with V(fabric_model=shared_nvswitch), as Fabric Manager then runs on the host.
        type: int
      tuned:
        description:
          - Whether the host runs the TuneD profile C(topovirt), which builds on C(virtual-host).
        type: bool
        default: true
      pcie_acs:
        description:
          - Registers that decide how GPUs and NICs of VMs reach each other. Only those of the passthrough set count,
            and only pairs whose path stays below one host bridge.
          - They are set at each boot of the conversion's entry before VMs start by themselves, and at once on a host
            that runs it; what is set is read back. The way back restores the values before it reboots.
          - Refused under kernel lockdown, and where the configuration space of a port or device on the paths cannot be
            read in full.
        type: dict
        suboptions:
          enabled:
            description:
              - Whether anything is set. With V(false) the registers are as firmware and kernel made them.
              - The default is V(false).
            type: bool
          bits:
            description:
              - ACS bits of the root and downstream ports on the paths, as far as each port supports them. No other
                port is touched, and nothing above the switch or host bridge where a path turns.
              - V(0x1d) is what Linux sets, on which IOMMU groups rest; it has to be among them. V(0x40) lets requests
                that a device had translated go straight to the other one, without the detour through the IOMMU. So a
                device that does so is trusted to keep to what it was given.
              - The default is V(0x5d).
            type: int
          ats:
            description:
              - Whether to switch on address translation (ATS) in the GPUs and NICs on the paths that have it.
              - Leave it to the kernel, which does it for a VM's devices where the IOMMU can. A reset, as at the start
                of a VM, takes away what the kernel did not set itself, and a device that asks an IOMMU which was not
                told of it gets errors. The firmware of a NIC may have to be told to offer it.
              - The default is V(false).
            type: bool
          max_read_request:
            description:
              - Largest read request of the NICs on the paths in bytes, V(0) for as it is.
              - The default is V(4096).
            type: int
            choices: [0, 128, 256, 512, 1024, 2048, 4096]
      sriov:
        description:
          - Address of a physical function with SR-IOV to the number of its virtual functions for VMs. The physical
            function stays with the host, and may be the adapter that the host is managed by. In YAML the address needs
            quotes, as it may be a number to the base of 60.
          - They are made and bound to C(vfio-pci) at each boot of the conversion's entry before VMs start by
            themselves, and at once on a host that runs it; drivers may interrupt the adapter's link for that. Drivers
            of the host take none of them (C(sriov_drivers_autoprobe)). The way back restores what was before.
          - An adapter that has as many of them already keeps them, if nobody uses them.
          - Refused for an adapter that is not there, has no SR-IOV, fewer virtual functions, or not its own driver; for
            one of the passthrough set; and where other virtual functions of it are in use.
        type: dict
        default: {}
      confirm_timeout:
        description:
          - Seconds from the start of a trial boot until the host reboots by itself into its old entry, unless
            O(phase=commit) was reached. At least V(60).
          - O(phase=verify) waits for the last services for half of it.
        type: int
        default: 900
      tolerate:
        description:
          - Names of programs that also bind devices and are no reason to refuse, as the refusal names them.
        type: list
        elements: str
        default: []
      erase_ok:
        description:
          - Serial numbers of NVMe devices in the passthrough set whose content may be lost. The module itself never
            erases anything.
        type: list
        elements: str
        default: []
  discard_images:
    description:
      - For O(state=restored), whether files of yours below C(/var/lib/libvirt/images) may be lost with that directory
        when it came with the conversion.
    type: bool
    default: false
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
notes:
  - Needs root. Supported are hosts of Debian's and Red Hat's families that boot by GRUB, with a generated menu or a
    file for each entry, and whose initramfs is built by initramfs-tools or dracut.
  - Refuses a host that a module of one step, such as M(topovirt.kvm.hugepages), has changed, until that is restored.
    M(topovirt.kvm.nic_firmware) is no step of a conversion, and not in its way.
  - Holds C(/run/topovirt.lock) while it changes the host, and fails at once when another run holds it.
seealso:
  - module: topovirt.kvm.host_journal
  - module: topovirt.kvm.topology_info
"""

EXAMPLES = r"""
- name: Show what a conversion would change
  topovirt.kvm.host_state:
    phase: plan
    wanted:
      passthrough: [gpu, nic]
      fabric_model: shared_nvswitch
  become: true
  register: conversion

- name: Verify the effective state after the reboot
  topovirt.kvm.host_state:
    phase: verify
    wanted:
      passthrough: [gpu, nic]
      fabric_model: shared_nvswitch
  become: true
"""

RETURN = r"""
id:
  description: Id of the conversion, the value of C(topovirt=) on the kernel command line.
  returned: success
  type: str
  sample: 5f0c2a9e
journal_state:
  description: V(none), V(begun), V(recorded), V(applied), V(committed) or V(undoing).
  returned: success
  type: str
  sample: committed
pending:
  description: Whether this phase has, or had, something to do.
  returned: success
  type: bool
  sample: false
plan:
  description: The changes of this phase, all of them with O(phase=plan).
  returned: success
  type: list
  elements: dict
  contains:
    step:
      description: The step that makes the change.
      type: str
      sample: binding
    kind:
      description: What is changed, such as V(file), V(unit), V(device), V(register) or
        V(virtual_functions).
      type: str
      sample: device
    what:
      description: Path, unit, address, address and register, or package.
      type: str
      sample: '0000:23:00.0'
    before:
      description: What it is.
      type: raw
      sample: nvidia
    after:
      description: What it becomes.
      type: raw
      sample: vfio-pci
    stage:
      description: The phase that makes it, V(packages) for Ansible's own module.
      type: str
      sample: apply
    reboot:
      description: Whether it takes effect with the next boot only.
      type: bool
      sample: true
reboot_required:
  description: Whether the host does not run the wanted boot entry.
  returned: success
  type: bool
  sample: true
differences:
  description: With O(phase=verify), what is not as wanted, a sentence each.
  returned: always
  type: list
  elements: str
  sample: ['0000:23:00.0: wanted driver vfio-pci, found nvidia']
confirm_within:
  description:
    - With O(phase=verify), the seconds that are left to reach O(phase=commit) before the host reboots into its old
      entry by itself. V(none) when it does not.
  returned: success, or when something is not as wanted
  type: int
  sample: 712
kept:
  description: What the way back left in place because somebody changed it meanwhile or it is still needed.
  returned: success
  type: list
  elements: str
  sample: []
"""

from ansible.module_utils.basic import AnsibleModule
from ansible_collections.topovirt.kvm.plugins.module_utils._errors import TopovirtError
from ansible_collections.topovirt.kvm.plugins.module_utils._host.face import complaint, run_phase


def main() -> None:
    words = {"type": "list", "elements": "str", "default": []}
    module = AnsibleModule(
        argument_spec={
            "state": {"type": "str", "choices": ["present", "restored"], "default": "present"},
            "phase": {
                "type": "str",
                "choices": ["plan", "record", "apply", "verify", "commit", "undo", "finish"],
                "required": True,
            },
            "wanted": {
                "type": "dict",
                "default": {},
                "options": {
                    "passthrough": {
                        "type": "list",
                        "elements": "str",
                        "choices": ["gpu", "nvswitch", "fabric_bridge", "nic", "nvme"],
                        "default": ["gpu", "nic"],
                    },
                    "devices": words,
                    "exclude": words,
                    "fabric_model": {
                        "type": "str",
                        "choices": ["full_passthrough", "shared_nvswitch", "none"],
                        "default": "full_passthrough",
                    },
                    "packages": words,
                    "services": words,
                    "cmdline": words,
                    "hugepages": {
                        "type": "dict",
                        "options": {
                            "page_size": {"type": "str", "choices": ["2MiB", "1GiB"]},
                            "per_node": {"type": "dict"},
                        },
                    },
                    "reserve_cores_per_node": {"type": "int"},
                    "tuned": {"type": "bool", "default": True},
                    "pcie_acs": {
                        "type": "dict",
                        "options": {
                            "enabled": {"type": "bool"},
                            "bits": {"type": "int"},
                            "ats": {"type": "bool"},
                            "max_read_request": {"type": "int", "choices": [0, 128, 256, 512, 1024, 2048, 4096]},
                        },
                    },
                    "sriov": {"type": "dict", "default": {}},
                    "confirm_timeout": {"type": "int", "default": 900},
                    "tolerate": words,
                    "erase_ok": words,
                },
            },
            "discard_images": {"type": "bool", "default": False},
            "root": {"type": "path", "default": "/"},
        },
        supports_check_mode=True,
    )
    try:
        result = run_phase(module.params, module.check_mode, module.run_command)
    except TopovirtError as error:
        module.fail_json(msg=str(error))
    for text in result.pop("warnings"):
        module.warn(text)
    if result["differences"]:
        module.fail_json(msg=complaint(result), **result)
    module.exit_json(**result)


if __name__ == "__main__":
    main()
