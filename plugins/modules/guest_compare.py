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
    one on the host, and for every device the NUMA node, under the map of guest cells to host nodes.
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
"""

RETURN = r"""
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
      description: Whether nothing differs.
      type: bool
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
    matrix:
      description: Path classes on both sides, rows and columns in the V(order) of host addresses.
      type: dict
      sample: {order: ['0000:23:00.0'], host: [[LOC]], guest: [[LOC]]}
"""
