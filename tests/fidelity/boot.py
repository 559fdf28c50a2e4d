# Copyright: the topovirt.kvm authors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Boot a planned guest in plain QEMU, without KVM and without a server, and judge what its kernel sees."""

from __future__ import annotations

import os
import shutil
import sys
import tempfile
import time
import xml.etree.ElementTree as ET
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ansible_collections.topovirt.kvm.plugins.module_utils._errors import TopovirtError
from ansible_collections.topovirt.kvm.plugins.module_utils._topology.capture import IN_GUESTS, unpack
from ansible_collections.topovirt.kvm.plugins.module_utils._topology.compare import compare, describe
from ansible_collections.topovirt.kvm.plugins.module_utils._topology.guest import capture_guest, wait_for_agent
from ansible_collections.topovirt.kvm.plugins.module_utils._topology.reader import read_topology

from tests.bench import lstopo
from tests.bench.on_server import archive_differences
from tests.fidelity import cases, guest_tree, stand_ins
from tests.fidelity.cases import Case
from tests.fidelity.checked_copy import Boot, for_boot, without_host
from tests.fidelity.libvirt_judges import translate
from tests.fidelity.talk import Agent, ask_monitor
from tests.tools import workspace
from tests.twin.description import load
from tests.twin.images.bake import GuestImages
from tests.twin.images.qemu_tree import qemu_command, qemu_environment
from tests.twin.lifecycle import CHECKOUT, Lock, Server, start_supervised, tail
from tests.twin.qemu import DEVICE_SOCKETS
from tests.twin.supervisor import Launch, Program

#: A busy machine doubles every figure; beyond this a boot hangs.
BOOT_TIMEOUT_S = 300.0
CMDLINE = "console=ttyS0 quiet no_timer_check mitigations=off"
AGENT_SOCKET = "agent.sock"
FIRMWARE_VARIABLES = "firmware-variables.fd"
DISK = "disk.raw"
CAPTURE = "guest.tar.gz"


@dataclass(frozen=True)
class Booted:
    """A guest after its boot."""

    case: Case
    phys_bits: int  # address width of the guest's CPU
    ready_seconds: float  # from power-on until the agent answered
    seconds: float  # until it was off again
    findings: guest_tree.Findings | None  # None: it never answered
    addresses: list[str]  # where firmware put something elsewhere than the layout says
    reader: str  # what our own comparison says against it; empty: nothing
    failure: str  # why there is nothing to judge; empty when there is

    @property
    def faults(self) -> list[str]:
        found = [self.failure] if self.failure else []
        if self.findings is not None:
            found += self.findings.faults
        return [*found, *self.addresses, *([self.reader] if self.reader else [])]


def boot(images: GuestImages, case: Case, vm: dict[str, Any], cache: Path) -> Booted:
    """Boot the VM of a plan (see :func:`cases.plan`), capture its /sys and judge it.

    One runs at a time on a machine, emulated servers included. Logs stay in .work/fidelity/<machine>.

    :param cache: where the lock lies.
    :raises TwinError: something else runs, or QEMU does not start.
    :raises ValueError: libvirt refuses the definition, or nothing can stand in for one of its devices.
    """
    directory = workspace.WORK / "fidelity" / case.machine
    shutil.rmtree(directory, ignore_errors=True)
    directory.mkdir(parents=True)
    bits = vm["layout"]["mmio"]["phys_bits"]
    argv = _translated(images, vm, bits, directory)
    launch = _launch(images, case, argv, directory)
    lock = Lock(cache).take({"machine": f"guest of {case}", "directory": str(directory), "pid": os.getpid()})
    begin = time.monotonic()
    try:
        control = start_supervised(directory, launch, lock, os.getpid())
    finally:
        os.close(lock)
    try:
        agent = Agent(directory / AGENT_SOCKET)
        try:
            wait_for_agent(agent, begin + BOOT_TIMEOUT_S)
            ready = time.monotonic() - begin
            archive = capture_guest(agent, begin + BOOT_TIMEOUT_S, directories=(*IN_GUESTS, *lstopo.FILES))
            listing = ask_monitor(directory / stand_ins.QMP_SOCKET, "query-pci")
        except (TopovirtError, OSError) as error:
            words = tail(directory / stand_ins.SERIAL_LOG, 5) or tail(directory / "qemu.log", 5)
            failure = f"the guest did not come up: {error} Its last words: {words}"
            return Booted(case, bits, 0.0, time.monotonic() - begin, None, [], "", failure)
    finally:
        os.close(control)
        Server(case.machine, directory=directory, cache=cache).down()
    seconds = time.monotonic() - begin
    (directory / CAPTURE).write_bytes(archive)
    return _judge(case, vm, argv, archive, listing, ready, seconds)


def _translated(images: GuestImages, vm: dict[str, Any], phys_bits: int, directory: Path) -> list[str]:
    """libvirt's command line for the VM, with files that are here."""
    files = Boot(
        kernel=images.guest_kernel,
        initrd=images.guest_initrd,
        cmdline=CMDLINE,
        disk=directory / DISK,
        agent=Path(AGENT_SOCKET),
        ovmf_code=images.ovmf_code,
        ovmf_vars=directory / FIRMWARE_VARIABLES,
    )
    copy = for_boot(without_host(vm["domain_xml"], phys_bits), files)
    (directory / "domain.xml").write_text(copy, encoding="utf-8")
    (translation,) = translate(images.libvirt_root, [copy])
    if not translation.argv:
        raise ValueError(f"libvirt does not translate the VM: {translation.error}")
    return translation.argv


def _launch(images: GuestImages, case: Case, argv: Sequence[str], directory: Path) -> Launch:
    with (directory / DISK).open("wb") as disk:
        disk.truncate(1 << 20)
    shutil.copyfile(images.ovmf_vars, directory / FIRMWARE_VARIABLES)
    (directory / DEVICE_SOCKETS).mkdir()
    server = [sys.executable, "-m", "tests.twin.device_server", case.machine, DEVICE_SOCKETS]
    emulator = qemu_command(images) + stand_ins.arguments(argv, stand_ins.endpoints(load(case.machine)))
    return Launch(
        programs=[
            Program("devices", server, {"PYTHONPATH": str(CHECKOUT)}, ready_line="ready"),
            Program("qemu", emulator, qemu_environment(images)),
        ],
        disposable=[DISK, FIRMWARE_VARIABLES, DEVICE_SOCKETS, AGENT_SOCKET, stand_ins.QMP_SOCKET],
    )


def placed(listing: Any) -> dict[str, str]:
    """QEMU's id of each device -> guest BDF, from ``query-pci``."""
    found: dict[str, str] = {}
    for bus in listing:
        for device in bus.get("devices", []):
            found[device["qdev_id"]] = f"0000:{device['bus']:02x}:{device['slot']:02x}.{device['function']:x}"
            found |= placed([device["pci_bridge"]]) if "pci_bridge" in device else {}
    return found


def node_map(domain_xml: str) -> dict[int, int]:
    """Guest cell -> host node, from the definition's memory binding."""
    bound = ET.fromstring(domain_xml).findall("numatune/memnode")
    return {int(node.get("cellid", "")): int(node.get("nodeset", "")) for node in bound}


def misplaced(layout: dict[str, Any], where: dict[str, str], identity: dict[str, str | None]) -> list[str]:
    """Functions that are elsewhere than the layout says: the NCCL file names them by that address."""
    expected = [(f"device {item['bdf']}", item["guest_bdf"], identity[item["bdf"]]) for item in layout["devices"]]
    expected += [
        (f"controller {item['index']} ({item['model']})", item["guest_bdf"], where.get(f"pci.{item['index']}"))
        for item in layout["pcie"]
    ]
    return [f"{what} is at {found}, the layout says {said}" for what, said, found in expected if found != said]


def _judge(
    case: Case, vm: dict[str, Any], argv: Sequence[str], archive: bytes, listing: Any, ready: float, seconds: float
) -> Booted:
    where = placed(listing)
    identity = {bdf: where.get(name) for name, bdf in stand_ins.hosts(argv).items()}
    cells = node_map(vm["domain_xml"])
    with tempfile.TemporaryDirectory() as folder:
        unpack(archive, Path(folder))
        findings = guest_tree.judge(
            guest_tree.Kernel(Path(cases.tree(case.machine).name)),
            guest_tree.Kernel(Path(folder)),
            identity,
            {node: cell for cell, node in cells.items()},
        )
        known = {bdf: name for bdf, name in identity.items() if name is not None}
        host, guest = cases.converted(case.machine), read_topology(Path(folder))
        ours = compare(host, guest, known, {str(cell): node for cell, node in cells.items()})
    said = [] if ours["equal"] else [f"our own comparison: {describe(ours)}"]
    if differing := archive_differences(archive):
        said.append(f"lstopo says otherwise of the guest: {', '.join(differing)}")
    moved = misplaced(vm["layout"], where, identity)
    return Booted(case, vm["layout"]["mmio"]["phys_bits"], ready, seconds, findings, moved, "; ".join(said), "")


def table(booted: Sequence[Booted]) -> str:
    """One line for each guest; below it the faults."""
    head = f"{'machine':<14} {'model':<17} {'gpus':>4} {'firmware':<8} {'devices':>7} {'pairs equal':>11} {'nodes':>7}"
    lines = [f"{head} {'BARs':>9} {'bits':>8} {'addresses':>9} {'seconds':>7}  verdict"]
    for item in booted:
        case, findings = item.case, item.findings
        line = f"{case.machine:<14} {case.model:<17} {case.gpus:>4} {case.firmware:<8} "
        if findings is None:
            lines.append(f"{line}{item.seconds:>63.0f}  FAULT")
            continue
        there = findings.devices - len(findings.lost)
        pairs = there * (there - 1) // 2 - len(findings.paths)
        lines.append(
            f"{line}{f'{there}/{findings.devices}':>7} {f'{pairs}/{findings.pairs}':>11} "
            f"{f'{there - len(findings.nodes)}/{findings.devices}':>7} "
            f"{f'{findings.bars - len(findings.wrong_bars)}/{findings.bars}':>9} "
            f"{f'{findings.address_bits} of {item.phys_bits}':>8} "
            f"{'moved' if item.addresses else 'as said':>9} {item.seconds:>7.0f}  {'FAULT' if item.faults else 'ok'}"
        )
    for item in booted:
        lines += [f"{item.case}: {fault}" for fault in item.faults[:8]]
        if len(item.faults) > 8:
            lines.append(f"{item.case}: {len(item.faults) - 8} more")
    return "\n".join(lines)
