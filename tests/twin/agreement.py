# Copyright: the topovirt.kvm authors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Do the recorded tree and the booted kernel agree? Attribute by attribute, for everything that ``collector.py`` lists.

Values are compared as they are, but for the ones that cannot be known before a boot: those are reduced to what matters
of them (``_REDUCE``) or, as a last resort, named in ``RECORDED_ONLY`` with the reason. A report prints that list each
time.
"""

from __future__ import annotations

import base64
import json
import re
import struct
import subprocess
import tempfile
from collections.abc import Callable
from pathlib import Path

from tests.twin import collector, recorded
from tests.twin.description import load
from tests.twin.lifecycle import Server, TwinError

# Patterns of paths that may differ, and why.
RECORDED_ONLY: tuple[tuple[str, str], ...] = (
    (r"proc/sys/kernel/osrelease", "the kernel's version follows the mirror"),
    (r"proc/sys/kernel/random/boot_id", "new with each boot"),
    (
        r"sys/class/block/[^/]*/(dev|size)",
        "sizes and numbers of the image's disk; NVMe numbers follow the order of probing",
    ),
)

EXPRESS_CAPABILITY = 0x10
SERIAL_CAPABILITY = 3
ATS_CAPABILITY = 15
ACS_CAPABILITY = 13
RESIZABLE_BAR_CAPABILITY = 21
KIB_PER_GIB = 1 << 20
CPU_KEYS = ("vendor_id", "cpu family", "model", "model name", "address sizes", "cpu cores", "siblings")
CPU_FLAGS = ("lm", "ht", "svm", "vmx")


def _data(value: str) -> bytes:
    return base64.b64decode(value[7:]) if value.startswith("base64:") else value.encode()


def reduce_config(value: str) -> str:
    """Identity and PCI Express capability of a configuration space; addresses and control bits are the kernel's."""
    data = _data(value)
    vendor, device = struct.unpack_from("<HH", data, 0)
    words = [
        f"{vendor:04x}:{device:04x}",
        f"class {data[0x0B:0x08:-1].hex()}",
        f"revision {data[0x08]:02x}",
        f"header {data[0x0E]:02x}",
    ]
    if data[0x0E] & 0x7F == 0:
        words.append("subsystem {:04x}:{:04x}".format(*struct.unpack_from("<HH", data, 0x2C)))
    at = data[0x34] if data[0x06] & 0x10 else 0
    while at and data[at] != EXPRESS_CAPABILITY:
        at = data[at + 1]
    if at:
        link = struct.unpack_from("<I", data, at + 0x0C)[0]
        words.append(f"port type {data[at + 2] >> 4} speed {link & 0xF} width {link >> 4 & 0x3F}")
        if data[0x0E] & 0x7F == 0:
            words.append(f"read request {struct.unpack_from('<H', data, at + 8)[0] >> 12 & 7}")
    at = 0x100 if len(data) > 0x100 else 0
    while at:
        head = struct.unpack_from("<I", data, at)[0]
        if head & 0xFFFF == SERIAL_CAPABILITY:
            words.append(f"serial {struct.unpack_from('<Q', data, at + 4)[0]:016x}")
        elif head & 0xFFFF == ATS_CAPABILITY:
            words.append(f"ATS {'on' if data[at + 7] & 0x80 else 'off'}")
        elif head & 0xFFFF == ACS_CAPABILITY:
            words.append("ACS {:#x} {:#x}".format(*struct.unpack_from("<HH", data, at + 4)))
        elif head & 0xFFFF == RESIZABLE_BAR_CAPABILITY:
            words.append("resizable BAR {:#x} {:#x}".format(*struct.unpack_from("<II", data, at + 4)))
        at = head >> 20
    return ", ".join(words)


def reduce_resource(value: str) -> str:
    """Size and flags of each BAR; where the firmware put it does not matter, nor do the windows of bridges."""
    words = []
    for index, line in enumerate(value.splitlines()[:7]):
        start, end, flags = (int(word, 16) for word in line.split())
        if end:
            words.append(f"{index}: {end - start + 1:#x} {flags:#x}")
    return ", ".join(words)


def reduce_meminfo(value: str) -> str:
    """Total memory in GiB, rounded: firmware and kernel keep some."""
    match = re.search(r"MemTotal:\s+(\d+) kB", value)
    return f"{round(int(match[1]) / KIB_PER_GIB)} GiB" if match else value


def reduce_cpuinfo(value: str) -> str:
    """What the first CPU is."""
    pairs = dict(re.findall(r"^(.*?)\s*: (.*)$", value.split("\n\n")[0], re.MULTILINE))
    flags = [flag for flag in CPU_FLAGS if flag in pairs.get("flags", "").split()]
    return str([pairs.get(key) for key in CPU_KEYS] + flags)


def reduce_cmdline(value: str) -> str:
    """Without the kernel's version and the root file system's id."""
    return " ".join(word for word in value.split() if not word.startswith(("BOOT_IMAGE=", "root=")))


def reduce_mountinfo(value: str) -> str:
    """Where the file systems of disks are mounted."""
    lines = [line.split() for line in value.splitlines()]
    return str(sorted((words[2], words[4]) for words in lines if words and words[-2].startswith("/dev/")))


def reduce_route(value: str) -> str:
    """Interface, destination, gateway and mask."""
    return str(
        sorted((words[0], words[1], words[2], words[7]) for words in map(str.split, value.splitlines()[1:]) if words)
    )


def reduce_release(value: str) -> str:
    """Which system it is."""
    return str(sorted(line for line in value.splitlines() if line.startswith(("ID=", "VERSION_ID="))))


def reduce_presence(_value: str) -> str:
    return "present"


_REDUCE: tuple[tuple[str, Callable[[str], str]], ...] = (
    (r".*/config", reduce_config),
    (r".*/resource", reduce_resource),
    (r".*meminfo", reduce_meminfo),
    (r"proc/cpuinfo", reduce_cpuinfo),
    (r"proc/cmdline", reduce_cmdline),
    (r"proc/self/mountinfo", reduce_mountinfo),
    (r"proc/net/route", reduce_route),
    (r"usr/lib/os-release", reduce_release),
    (r"sys/firmware/(acpi/tables|efi/efivars)/.*", reduce_presence),
)


def canonical(attributes: dict[str, str]) -> dict[str, str]:
    """Each attribute reduced to what can be known; NVMe controllers, probed in any order, are named by address."""
    names = {
        path.rpartition("/")[2]: value.split("/nvme/")[0].rpartition("/")[2]
        for path, value in attributes.items()
        if re.fullmatch(r"sys/class/nvme/nvme\d+", path)
    }

    def renamed(text: str) -> str:
        return re.sub(r"\b(nvme\d+)(?=n\d+\b|\b)", lambda match: f"nvme@{names.get(match[1], match[1])}", text)

    result = {}
    for path, value in attributes.items():
        reducer = next((function for pattern, function in _REDUCE if re.fullmatch(pattern, path)), str.strip)
        result[renamed(path)] = renamed(reducer(value))
    return result


def differences(recorded_tree: dict[str, str], booted: dict[str, str]) -> list[str]:
    """One line for each attribute that differs."""
    ours, theirs = canonical(recorded_tree), canonical(booted)
    lines = []
    for path in sorted(ours.keys() | theirs.keys()):
        if any(re.fullmatch(pattern, path) for pattern, _reason in RECORDED_ONLY):
            continue
        if ours.get(path) != theirs.get(path):
            lines.append(f"{path}: recorded {ours.get(path, 'absent')!r}, booted {theirs.get(path, 'absent')!r}")
    return lines


def collect_from(server: Server) -> dict[str, str]:
    """The attributes of the running server.

    :raises TwinError: they cannot be read.
    """
    script = Path(collector.__file__).read_bytes()
    command = [*server.ssh_command(), "python3 - /"]
    done = subprocess.run(command, input=script, capture_output=True, check=False)
    if done.returncode != 0:
        raise TwinError(f"The attributes cannot be read: {done.stderr.decode(errors='replace').strip()}")
    result: dict[str, str] = json.loads(done.stdout)
    return result


def report(server: Server) -> int:
    """Compare, print, and return 0 when nothing differs, else 1."""
    machine = load(server.machine_name, server.variant)
    booted = collect_from(server)
    with tempfile.TemporaryDirectory() as directory:
        tree = Path(directory) / "tree"
        recorded.record(machine, tree)
        lines = differences(collector.collect(str(tree)), booted)
    for line in lines:
        print(line)
    for pattern, reason in RECORDED_ONLY:
        print(f"not compared: {pattern} ({reason})")
    print(f"{machine.name}: {len(booted)} attributes of the booted kernel, {len(lines)} differ from the recorded tree")
    return 1 if lines else 0
