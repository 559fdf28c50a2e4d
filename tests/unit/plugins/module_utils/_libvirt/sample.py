# Copyright: the topovirt.kvm authors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Definitions for tests: small, but with every element that an allocation is read from."""

from __future__ import annotations

import json
from typing import Any


def domain_xml(
    name: str = "train-0",
    devices: tuple[str, ...] = ("0000:23:00.0",),
    cpus: tuple[str, ...] = ("2", "3"),
    memory_gib: int = 2,
    node: int = 0,
    metadata: dict[str, Any] | None = None,
    extra: str = "",
) -> str:
    """A VM with one cell on one host node and an agent channel; ``metadata`` None means a domain that is not ours."""
    hostdevs = "".join(
        "<hostdev mode='subsystem' type='pci' managed='no'><source>"
        f"<address domain='0' bus='0x{bdf[5:7]}' slot='0x{bdf[8:10]}' function='{bdf[11]}'/></source>"
        f"<address type='pci' domain='0' bus='{index + 4}' slot='0' function='0'/></hostdev>"
        for index, bdf in enumerate(devices)
    )
    pins = "".join(f"<vcpupin vcpu='{index}' cpuset='{cpu}'/>" for index, cpu in enumerate(cpus))
    ours = (
        ""
        if metadata is None
        else "<metadata><topovirt:vm xmlns:topovirt='urn:topovirt:kvm:1'>"
        + json.dumps(metadata)
        + "</topovirt:vm></metadata>"
    )
    return f"""<domain type='kvm'>
  <name>{name}</name>
  {ours}
  <memory unit='GiB'>{memory_gib}</memory>
  <memoryBacking><hugepages><page size='1048576' unit='KiB'/></hugepages></memoryBacking>
  <vcpu placement='static'>{len(cpus)}</vcpu>
  <cputune>{pins}<emulatorpin cpuset='0-1'/></cputune>
  <numatune><memory mode='strict' nodeset='{node}'/><memnode cellid='0' mode='strict' nodeset='{node}'/></numatune>
  <os><type arch='x86_64' machine='q35'>hvm</type><kernel>/images/vmlinuz</kernel></os>
  <cpu mode='host-passthrough'>
    <topology sockets='1' dies='1' cores='1' threads='{len(cpus)}'/>
    <numa><cell id='0' cpus='0-{len(cpus) - 1}' memory='{memory_gib}' unit='GiB'/></numa>
  </cpu>
  <devices>
    <emulator>/usr/bin/qemu-system-x86_64</emulator>
    {hostdevs}
    <channel type='unix'><target type='virtio' name='org.qemu.guest_agent.0'/></channel>
    {extra}
  </devices>
</domain>"""


OURS = {"schema": 1, "request": {"name": "train-0", "gpus": 1}, "fabric_model": "none", "partition": None}
