#!/usr/bin/python
# Copyright: the topovirt.kvm authors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

from __future__ import annotations

DOCUMENTATION = r"""
module: guest_compare
short_description: Compare what a guest sees with its host
version_added: 0.1.0
author:
  - the topovirt.kvm authors (@topovirt)
description:
  - For every pair of devices that a VM owns, the path class in the guest (LOC, PIX, PXB, PHB, NODE, SYS) must be the
    one on the host, and for every device its link and the NUMA node, under the map of guest cells to host nodes. So
    must the distances of nodes. With O(cpu_map), vCPUs must share a core, an L3 cache or a node where their CPUs do.
  - Says how true the guest is as a figure, pairs that are equal of all pairs, and why it is not, as far as both
    topologies tell.
  - Fails with the list of differences when anything differs.
  - Runs on the controller and needs no connection.
options:
  topology:
    description: The host, as M(topovirt.kvm.topology_info) returns it.
    type: dict
    required: true
  guest_topology:
    description: The guest, as M(topovirt.kvm.guest_capture) returns it.
    type: dict
    required: true
  identity:
    description: Address on the host to address in the guest, of every device to compare.
    type: dict
    required: true
  node_map:
    description: Guest cell to host node. Two cells on one node are a difference, as are guest nodes without an entry.
    type: dict
    required: true
  cpu_map:
    description: vCPU to the host CPU that it is pinned to. Without it CPUs are not compared.
    type: dict
  nccl_xml:
    description: NCCL's topology file in the guest, as M(topovirt.kvm.guest_capture) returns it.
    type: str
  nvlink:
    description:
      - Whether the VM's GPUs are connected among themselves, as M(topovirt.kvm.guest_capture) returns it. With it, what
        NCCL makes of the guest is compared with what it makes of the host, by a model of NCCL.
    type: bool
  fail:
    description: Whether a difference fails the task.
    type: bool
    default: true
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
    description: What it needs of the target.
    support: full
    platforms: all
    details:
      - Nothing is run on the target.
seealso:
  - module: topovirt.kvm.guest_capture
  - module: topovirt.kvm.topology_info
"""

EXAMPLES = r"""
- name: Fail where the guest does not see the host's topology
  topovirt.kvm.guest_compare:
    topology: "{{ host.topology }}"
    guest_topology: "{{ captured.guest_topology }}"
    identity: "{{ captured.identity }}"
    node_map: "{{ captured.node_map }}"
    cpu_map: "{{ captured.cpu_map }}"
    nccl_xml: "{{ captured.nccl_xml }}"
    nvlink: "{{ captured.nvlink }}"
"""

RETURN = r"""
nccl:
  description:
    - With O(nvlink), path classes, bandwidths, GPUDirect and the preferred NIC of each GPU as NCCL sees them, host
      against guest by device identity; null without it. A difference fails the task only where the guest has a file.
  returned: success
  type: dict
  contains:
    equal:
      description: Whether NCCL sees the same.
      type: bool
    pairs:
      description: Number of pairs compared, in both directions.
      type: int
    differences:
      description: What differs, a sentence each.
      type: list
      elements: str
    host:
      description: Number of pairs of each class on the host.
      type: dict
    guest:
      description: The same in the guest. Equal counts alone prove nothing.
      type: dict
msg:
  description: What differs, with counts and examples.
  returned: always
  type: str
comparison:
  description: The whole comparison.
  returned: when both topologies can be read
  type: dict
  contains:
    equal:
      description: Whether nothing of devices and nodes differs.
      type: bool
    cpus_equal:
      description: Whether nothing of CPUs differs; null without O(cpu_map).
      type: bool
    fidelity:
      description:
        - How many pairs are equal, of how many. V(paths) counts pairs of passed-through devices, those that the guest
          lost included; V(siblings) and V(l3) pairs of vCPUs, null where that was not compared.
      type: dict
      sample: {paths: {equal: 190, pairs: 190}, siblings: {equal: 15400, pairs: 15400}, l3: null}
    devices:
      description: Number of devices that are on both sides.
      type: int
      sample: 20
    pairs:
      description: Number of pairs of them.
      type: int
      sample: 190
    path_differences:
      description: Pairs whose path class differs.
      type: list
      elements: dict
      sample: [{a: '0000:23:00.0', b: '0000:26:00.0', host: PIX, guest: PHB}]
    node_differences:
      description: Devices on another NUMA node than expected; null is an unknown node.
      type: list
      elements: dict
      sample: [{bdf: '0000:23:00.0', host_node: 0, guest_node: 1, expected_guest_node: 0}]
    link_differences:
      description: Devices whose own link has another maximum in the guest.
      type: list
      elements: dict
      sample: [{bdf: '0000:23:00.0', host: {max_gtps: 32.0, max_width: 16}, guest: {max_gtps: 32.0, max_width: 8}}]
    distance_differences:
      description: Guest nodes that are not as far from each other as their host nodes.
      type: list
      elements: dict
      sample: [{a: 0, b: 1, host: 21, guest: 20}]
    cpu_differences:
      description:
        - vCPUs that share something on one side only. V(relation) is V(siblings), V(l3) or V(node), V(guest) and
          V(host) are how each side groups them, for V(node) the numbers of the nodes.
      type: list
      elements: dict
      sample: [{relation: l3, vcpus: 0-7, guest: [0-7], host: [0-3, 4-7]}]
    missing:
      description: Devices that the topology of the side V(host) or V(guest) does not have.
      type: list
      elements: dict
      sample: [{bdf: '0000:23:00.0', guest_bdf: '0000:43:00.0', side: guest}]
    identity_errors:
      description: Why O(identity) cannot be right.
      type: list
      elements: str
    node_map_errors:
      description: Why O(node_map) cannot be right.
      type: list
      elements: str
    cpu_map_errors:
      description: Why O(cpu_map) cannot be right.
      type: list
      elements: str
    causes:
      description:
        - Why devices differ, as far as both topologies tell it, with the number of V(pairs) that differ for it and the
          addresses of the V(devices) on the host.
      type: list
      elements: dict
      sample:
        - cause: 0000:24:00.0 and 0000:94:00.0 have changed places
          pairs: 4
          devices: ['0000:24:00.0', '0000:94:00.0']
    matrix:
      description: Path classes on both sides, rows and columns in the V(order) of host addresses.
      type: dict
      sample: {order: ['0000:23:00.0'], host: [[LOC]], guest: [[LOC]]}
"""
