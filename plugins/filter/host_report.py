# Copyright: the topovirt.kvm authors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
from __future__ import annotations

DOCUMENTATION = r"""
name: host_report
short_description: Picture and tables of a host as one HTML page
version_added: 0.1.0
author:
  - the topovirt.kvm authors (@topovirt)
description:
  - Turns a host's topology, its VMs and the comparisons of what their kernels see into one self-contained HTML page
    with an SVG picture of sockets, host bridges, switches and devices, coloured by the VM that owns them.
positional: _input
options:
  _input:
    description: The topology, as M(topovirt.kvm.topology_info) returns it.
    type: dict
    required: true
  domains:
    description: The VMs, as M(topovirt.kvm.vm_info) returns them.
    type: list
    elements: dict
    default: []
  verifications:
    description:
      - One entry per compared VM with the keys C(vm), its name, and C(comparison), as the playbook
        C(topovirt.kvm.verify_vms) stores it.
    type: list
    elements: dict
    default: []
  title:
    description: Title of the page.
    type: str
    default: GPU host
  notes:
    description: Sentences that a reader must know first; they stand on top of the page.
    type: list
    elements: str
    default: []
"""

EXAMPLES = r"""
- name: Read the host
  topovirt.kvm.topology_info:
  register: host

- name: Write a page about it
  ansible.builtin.copy:
    content: "{{ host.topology | topovirt.kvm.host_report(title=inventory_hostname) }}"
    dest: report.html
    mode: "0644"
  delegate_to: localhost
"""

RETURN = r"""
_value:
  description: The HTML page.
  type: str
"""

import json
from typing import Any

from ansible.errors import AnsibleFilterError
from ansible_collections.topovirt.kvm.plugins.plugin_utils._report.html import report


def host_report(
    topology: Any, domains: Any = (), verifications: Any = (), title: str = "GPU host", notes: Any = ()
) -> str:
    """See DOCUMENTATION."""
    try:
        # Through JSON and back, values lose the tags that the controller gives them.
        plain = json.loads(json.dumps([topology, list(domains), list(verifications), str(title), list(notes)]))
        return report(*plain)
    except (KeyError, TypeError, AttributeError) as error:
        raise AnsibleFilterError(
            f"host_report: the input does not have the shape of a topology with domains and verifications: {error!r}. "
            "Pass what topology_info, vm_info and verify-vms returned."
        ) from error


class FilterModule:
    """The filter of this file."""

    def filters(self) -> dict[str, Any]:
        return {"host_report": host_report}
