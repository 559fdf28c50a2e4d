# Copyright: the topovirt.kvm authors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Which running VM has a device."""

from __future__ import annotations

from typing import TYPE_CHECKING, Dict

from ansible_collections.topovirt.kvm.plugins.module_utils._topology.gaps import Gaps
from ansible_collections.topovirt.kvm.plugins.module_utils._topology.sysfs import Tree

if TYPE_CHECKING:
    import xml.etree.ElementTree as ET

# libvirt keeps the state of each running VM here, definition included, for its own restart.
RUNNING = "run/libvirt/qemu"
_STATE_BYTES = 16 << 20
_ADDRESS = ".//devices/hostdev[@type='pci']/source/address"


def read_vms(tree: Tree, gaps: Gaps) -> Dict[str, str]:
    """BDF -> name of the running VM that has the function."""
    owners: Dict[str, str] = {}
    files = [file for file in tree.names(RUNNING) if file.endswith(".xml")]
    if files:  # XML takes time to import, and most hosts have no VM
        import xml.etree.ElementTree as ET
    for file in files:
        name = file[: -len(".xml")]
        data = tree.raw(f"{RUNNING}/{file}", _STATE_BYTES)
        if data is None:
            gaps.add("vm", f"the state of the running VM {name} is for root to read")
            continue
        try:
            for address in ET.fromstring(data).iterfind(_ADDRESS):
                owners[_bdf(address)] = name
        except (ET.ParseError, ValueError) as error:
            gaps.add("vm", f"the state of the running VM {name} cannot be read: {error}")
    return owners


def _bdf(address: ET.Element) -> str:
    domain, bus, slot, function = (int(address.get(key, "0"), 0) for key in ("domain", "bus", "slot", "function"))
    return f"{domain:04x}:{bus:02x}:{slot:02x}.{function:x}"
