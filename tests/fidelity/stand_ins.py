# Copyright: the topovirt.kvm authors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""libvirt's translation of a guest, made to run here: no KVM, no libvirt, inert stand-ins for the devices.

A stand-in has the ids, links and BARs of the device whose place it takes; tests/twin/device_server.py answers for it.
Everything else of the command line, the guest's whole PCI tree above all, is as libvirt made it.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from itertools import pairwise
from pathlib import Path

from tests.twin.addresses import functions
from tests.twin.description import Endpoint, Machine
from tests.twin.qemu import ANSWER_TIMEOUT_MS, DEVICE_SOCKETS

QMP_SOCKET = "qmp.sock"
SERIAL_LOG = "serial.log"


def endpoints(machine: Machine) -> dict[str, str]:
    """Host BDF -> name of the inert endpoint there."""
    return {item.bdf: item.device.name for item in functions(machine) if isinstance(item.device, Endpoint)}


def hosts(argv: Sequence[str]) -> dict[str, str]:
    """QEMU's id of each passed-through device -> host BDF, from libvirt's translation."""
    found = {}
    for option, value in pairwise(argv):
        if option == "-device" and (device := json.loads(value))["driver"] == "vfio-pci":
            found[device["id"]] = device["host"]
    return found


def arguments(argv: Sequence[str], names: Mapping[str, str]) -> list[str]:
    """What follows QEMU's name on the command line, from libvirt's translation.

    :param names: from :func:`endpoints`.
    :raises ValueError: a device is passed through that no stand-in exists for.
    """
    # what is set for the process, and the emulator
    start = next(number for number, word in enumerate(argv) if word.startswith("/")) + 1
    result: list[str] = []
    for option, *value in _options(argv[start:]):
        if not _is_libvirts(option, *value):
            result += [option, _device(json.loads(*value), names)] if option == "-device" else [option, *value]
    return [*result, "-serial", f"file:{SERIAL_LOG}", "-qmp", f"unix:{QMP_SOCKET},server=on,wait=off", "-no-reboot"]


def _options(words: Sequence[str]) -> list[list[str]]:
    """Each option with its argument, if it has one; no argument that libvirt writes begins with a dash."""
    found: list[list[str]] = []
    for word in words:
        if word.startswith("-"):
            found.append([word])
        else:
            found[-1].append(word)
    return found


def _is_libvirts(option: str, value: str = "") -> bool:
    """Whether only a libvirt that runs the guest has a use for it: monitor, secret, sandbox, waiting to be started."""
    return (
        option in ("-S", "-no-shutdown", "-sandbox", "-mon")
        or (option == "-chardev" and "id=charmonitor," in value)
        or (option == "-object" and json.loads(value)["qom-type"] == "secret")
    )


def _device(device: dict[str, object], names: Mapping[str, str]) -> str:
    if device["driver"] == "vfio-pci":
        bdf = str(device.pop("host"))
        if bdf not in names:
            raise ValueError(f"{bdf} is passed through and is no inert endpoint, so nothing can stand in for it")
        path = Path(DEVICE_SOCKETS, names[bdf])
        device |= {"driver": "vfio-user-pci", "x-msg-timeout": ANSWER_TIMEOUT_MS}
        device["socket"] = {"type": "unix", "path": str(path)}
    return json.dumps(device)
