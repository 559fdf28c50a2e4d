# Copyright: the topovirt.kvm authors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""What a running VM is made of, asked of the hypervisor and of the guest itself, never of a plan.

Identity of devices: the live domain says which host function each device is and under which alias it runs, QEMU's own
PCI listing says where the guest's firmware put that alias. Topology: the guest's own /sys, through its agent.
"""

from __future__ import annotations

import base64
import binascii
import importlib
import json
import tempfile
import time
import xml.etree.ElementTree as ET
from pathlib import Path
from typing import Any, Callable, Dict, Iterator, Mapping, Optional, Tuple, TypedDict

from ansible_collections.topovirt.kvm.plugins.module_utils._errors import TopovirtError
from ansible_collections.topovirt.kvm.plugins.module_utils._libvirt.connection import (
    LibvirtMissing,
    libvirt_error,
    load_libvirt,
    open_libvirt,
)
from ansible_collections.topovirt.kvm.plugins.module_utils._libvirt.domains import METADATA_TAG
from ansible_collections.topovirt.kvm.plugins.module_utils._topology.capture import (
    IN_GUESTS,
    Directories,
    script,
    unpack,
)
from ansible_collections.topovirt.kvm.plugins.module_utils._topology.cpulist import parse_cpulist
from ansible_collections.topovirt.kvm.plugins.module_utils._topology.model import Topology
from ansible_collections.topovirt.kvm.plugins.module_utils._topology.reader import read_topology
from ansible_collections.topovirt.kvm.plugins.module_utils._topology.sysfs import Tree

# Executes one command of the guest agent and returns its result.
Agent = Callable[[Dict[str, Any]], Any]

_POLL_SECONDS = 0.5
_AGENT_CALL_SECONDS = 30  # how long one command may wait for the agent's answer before it is asked again


# Where NCCL looks without being told (https://docs.nvidia.com/deeplearning/nccl/user-guide/docs/env.html).
NCCL_FILE = "run/nvidia-topologyd/virtualTopology.xml"
_NCCL_FILE_BYTES = 1 << 20  # NCCL holds 256 elements, some 50 KiB


class GuestCapture(TypedDict):
    guest_topology: Topology
    identity: Dict[str, str]  # host BDF -> guest BDF
    node_map: Dict[str, int]  # guest cell -> host node
    cpu_map: Dict[str, int]  # vCPU -> host CPU
    nccl_xml: Optional[str]  # the topology file that NCCL finds in the guest by itself
    nvlink: bool  # whether the VM was given GPUs that are connected among themselves


class AgentSilent(Exception):
    """The agent does not answer (yet)."""


def read_identity(domain_xml: str, query_pci: Any) -> Dict[str, str]:
    """Host BDF -> guest BDF of every function that is passed through.

    :param domain_xml: the live domain: aliases are known only while it runs.
    :param query_pci: result of QEMU's ``query-pci``, a list of buses.
    :raises TopovirtError: naming every passed-through function that QEMU does not list.
    """
    guest_bdfs = dict(_listed(query_pci))
    identity: Dict[str, str] = {}
    lost = []
    for device in ET.fromstring(domain_xml).iterfind("devices/*"):
        address, alias = device.find("source/address[@slot]"), device.find("alias")
        if device.tag not in ("hostdev", "interface") or address is None or alias is None:
            continue
        bdf = "{:04x}:{:02x}:{:02x}.{:x}".format(
            *(int(address.get(name, "0"), 0) for name in ("domain", "bus", "slot", "function"))
        )
        name = alias.get("name", "")
        if name in guest_bdfs:
            identity[bdf] = guest_bdfs[name]
        else:
            lost.append(f"{bdf} ({name})")
    if lost:
        raise TopovirtError(f"QEMU's PCI listing has none of these passed-through functions: {', '.join(lost)}.")
    return identity


def _listed(buses: Any) -> Iterator[Tuple[str, str]]:
    """Alias and guest BDF of every device of ``query-pci``, at any depth; all of QEMU's buses share domain 0."""
    for bus in buses:
        for device in bus.get("devices", []):
            bdf = f"0000:{device['bus']:02x}:{device['slot']:02x}.{device['function']:x}"
            yield device.get("qdev_id", ""), bdf
            bridge = device.get("pci_bridge")
            if bridge:
                yield from _listed([bridge])


def read_node_map(domain_xml: str) -> Dict[str, int]:
    """Guest cell -> host node from the live domain's memory binding.

    A cell bound to several nodes, or to none, has no host node and is left out.
    """
    root = ET.fromstring(domain_xml)
    whole = root.find("numatune/memory")
    default = _only_one(None if whole is None else whole.get("nodeset"))
    bound = {node.get("cellid"): _only_one(node.get("nodeset")) for node in root.iterfind("numatune/memnode")}
    cells = [cell.get("id") for cell in root.iterfind("cpu/numa/cell")] or ["0"]
    found = {cell: bound.get(cell, default) for cell in cells if cell is not None}
    return {cell: node for cell, node in found.items() if node is not None}


def read_cpu_map(domain_xml: str) -> Dict[str, int]:
    """vCPU -> host CPU from the live domain's pins. A vCPU that may run on several CPUs, or on any, is left out."""
    pins = ET.fromstring(domain_xml).iterfind("cputune/vcpupin")
    found = {pin.get("vcpu", ""): _only_one(pin.get("cpuset")) for pin in pins}
    return {vcpu: cpu for vcpu, cpu in found.items() if cpu is not None}


def _only_one(numbers: Optional[str]) -> Optional[int]:
    """The number of a list of one."""
    listed = parse_cpulist(numbers or "")
    return listed[0] if len(listed) == 1 else None


def wait_for_agent(
    agent: Agent,
    deadline: float,
    clock: Callable[[], float] = time.monotonic,
    sleep: Callable[[float], None] = time.sleep,
) -> None:
    """Return when the guest's agent answers.

    :param deadline: by ``clock``.
    :raises TopovirtError: when it does not.
    """
    while True:
        try:
            agent({"execute": "guest-ping"})
            return
        except AgentSilent as error:
            if clock() >= deadline:
                raise TopovirtError(
                    f"The guest agent does not answer: {str(error).rstrip('.')}.",
                    "Is qemu-guest-agent installed and running in the guest, and has the guest booted? "
                    "Raise timeout for a slow one.",
                ) from None
        sleep(_POLL_SECONDS)


def capture_guest(
    agent: Agent,
    deadline: float,
    clock: Callable[[], float] = time.monotonic,
    sleep: Callable[[float], None] = time.sleep,
    directories: Directories = IN_GUESTS,
) -> bytes:
    """Run the capture script in the guest and return the archive.

    The agent carries up to 16 MiB of output, libvirt up to 4 MiB of text; the archive of a guest with 20 devices has
    some ten KiB.

    :raises TopovirtError: when the script fails or does not end in time.
    """
    command = {"path": "/bin/sh", "arg": ["-c", script(directories=directories)], "capture-output": True}
    pid = agent({"execute": "guest-exec", "arguments": command})["pid"]
    while True:
        status = agent({"execute": "guest-exec-status", "arguments": {"pid": pid}})
        if status.get("exited"):
            break
        if clock() >= deadline:
            raise TopovirtError("The capture script still runs in the guest.", "Raise timeout.")
        sleep(_POLL_SECONDS)
    try:
        output = base64.b64decode(status.get("out-data", ""), validate=True)
        errors = base64.b64decode(status.get("err-data", ""), validate=True).decode("utf-8", "replace").strip()
    except binascii.Error as error:
        raise TopovirtError(f"The guest agent's answer is damaged: {error}.", "Capture again.") from None
    if status.get("exitcode") != 0 or status.get("out-truncated") or not output:
        outcome = f"signal {status['signal']}" if "signal" in status else f"exit status {status.get('exitcode')}"
        raise TopovirtError(
            f"The capture script failed in the guest: {outcome}, {len(output)} bytes of archive"
            f"{' (cut off)' if status.get('out-truncated') else ''}{', ' + errors if errors else ''}."
        )
    return output


def read_guest(
    name: str, uri: str, timeout: float, workspace: Path, bindings: Optional[Tuple[Any, Any]] = None
) -> GuestCapture:
    """Capture a running VM.

    :param timeout: seconds for the guest to boot, its agent to answer and the script to end.
    :param workspace: directory for temporary files.
    :param bindings: the modules libvirt and libvirt_qemu, or what behaves like them; imported when None.
    :raises TopovirtError: when the VM does not exist or run, or its agent does not do its work.
    """
    deadline = time.monotonic() + timeout
    libvirt, libvirt_qemu = bindings or (load_libvirt(), _load_libvirt_qemu())
    with open_libvirt(uri, libvirt) as connection:
        domain = _running(libvirt, connection, name)
        agent = _agent(libvirt, libvirt_qemu, domain, name)
        wait_for_agent(agent, deadline)
        try:
            archive = capture_guest(agent, deadline)
        except AgentSilent as error:
            raise TopovirtError(f"The guest agent of {name} stopped answering: {error}.") from None
        try:
            domain_xml = domain.XMLDesc(0)
            answer = json.loads(libvirt_qemu.qemuMonitorCommand(domain, json.dumps({"execute": "query-pci"}), 0))
        except libvirt.libvirtError as error:
            raise libvirt_error(f"The PCI listing of {name} cannot be read", error) from None
    with tempfile.TemporaryDirectory(dir=workspace) as directory:
        unpack(archive, Path(directory))
        topology = read_topology(Path(directory))
        nccl_file = Tree(Path(directory)).raw(NCCL_FILE, _NCCL_FILE_BYTES)
    return GuestCapture(
        guest_topology=topology,
        identity=read_identity(domain_xml, answer.get("return", [])),
        node_map=read_node_map(domain_xml),
        cpu_map=read_cpu_map(domain_xml),
        nccl_xml=None if nccl_file is None else nccl_file.decode("utf-8", "replace"),
        nvlink=_linked(domain_xml, topology),
    )


def _linked(domain_xml: str, topology: Topology) -> bool:
    """The VM has the fabric's switches, or a partition of it."""
    text = ET.fromstring(domain_xml).findtext(f"metadata/{METADATA_TAG}")
    partition = json.loads(text).get("partition") if text else None
    return partition is not None or any(f["role"] in ("nvswitch", "fabric_bridge") for f in topology["pci"])


def _load_libvirt_qemu() -> Any:
    try:
        return importlib.import_module("libvirt_qemu")
    except ImportError as error:
        raise LibvirtMissing(
            f"The Python binding of libvirt's QEMU part cannot be imported: {error}.",
            "Install python3-libvirt for the interpreter that Ansible uses on the host.",
        ) from None


def _running(libvirt: Any, connection: Any, name: str) -> Any:
    try:
        domain = connection.lookupByName(name)
        active = domain.isActive()
    except libvirt.libvirtError as error:
        raise libvirt_error(f"VM {name} cannot be found", error, "See what exists with list-vms.") from None
    if not active:
        raise TopovirtError(f"VM {name} is not running, so its guest has no topology to show.", "Start it first.")
    return domain


def _agent(libvirt: Any, libvirt_qemu: Any, domain: Any, name: str) -> Agent:
    """The guest agent of a domain. Errors that waiting cannot cure are final."""
    # An older binding (7.0, for one) has one error for an agent that is silent and one that is slow.
    late = getattr(libvirt, "VIR_ERR_AGENT_COMMAND_TIMEOUT", libvirt.VIR_ERR_AGENT_UNRESPONSIVE)
    silent = (libvirt.VIR_ERR_AGENT_UNRESPONSIVE, late)
    not_there = (libvirt.VIR_ERR_ARGUMENT_UNSUPPORTED, libvirt.VIR_ERR_OPERATION_INVALID)

    def execute(command: Mapping[str, Any]) -> Any:
        try:
            answer = json.loads(libvirt_qemu.qemuAgentCommand(domain, json.dumps(command), _AGENT_CALL_SECONDS, 0))
        except libvirt.libvirtError as error:
            if error.get_error_code() in silent:
                raise AgentSilent(str(error)) from None
            hint = (
                "Give the VM a channel for the guest agent, and start it."
                if error.get_error_code() in not_there
                else "The agent may forbid this command (allow-rpcs, block-rpcs in /etc/qemu-ga or /etc/sysconfig)."
            )
            raise libvirt_error(f"The guest agent of {name} refused {command['execute']}", error, hint) from None
        return answer.get("return", {})

    return execute
