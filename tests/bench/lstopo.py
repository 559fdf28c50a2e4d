# Copyright: the topovirt.kvm authors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""hwloc's lstopo on the same recorded trees: how long it takes, and what it says."""

from __future__ import annotations

import re
import shutil
import subprocess
import xml.etree.ElementTree as ET
from pathlib import Path

NAMES = ("lstopo-no-graphics", "lstopo")  # of Debian's hwloc-nox and hwloc

# Everything, also what it usually leaves out or folds together.
OPTIONS = ("--of", "xml", "--whole-io", "--whole-system", "--no-collapse", "-")

# What lstopo reads of a kernel beside what the reader does, for :func:`capture.script`.
FILES = (
    (
        "sys/devices/system/cpu/cpu[0-9]*/topology",
        ("core_cpus", "thread_siblings", "package_cpus", "core_siblings", "die_cpus"),
    ),
    ("sys/devices/system/cpu/cpu[0-9]*/cache/index[0-9]*", ("level", "type", "size", "shared_cpu_map")),
    ("sys/devices/system/node/node[0-9]*", ("cpumap",)),
    (
        "sys/bus/pci/devices/*",
        ("local_cpus", "class", "vendor", "device", "subsystem_vendor", "subsystem_device", "config"),
    ),
)

_MASKS = {"core_cpus": "thread_siblings_list", "package_cpus": "core_siblings_list"}
_BITS_PER_WORD = 32


def program() -> str:
    """The lstopo of this machine.

    :raises FileNotFoundError: there is none; names the package.
    """
    found = next(filter(None, map(shutil.which, NAMES)), None)
    if found is None:
        raise FileNotFoundError("lstopo is missing: apt-get install -y --no-install-recommends hwloc-nox")
    return found


def complete(tree: Path) -> None:
    """Add the masks of CPUs, without which lstopo does not look at CPUs and nodes; the kernel has them beside the lists
    that a recorded tree holds."""
    cpus = tree / "sys/devices/system/cpu"
    for cpu in cpus.glob("cpu[0-9]*"):
        for mask, listed in _MASKS.items():
            text = mask_of((cpu / "topology" / listed).read_text(encoding="utf-8"))
            (cpu / "topology" / mask).write_text(f"{text}\n", encoding="utf-8")
        for cache in (cpu / "cache").glob("index*"):
            text = mask_of((cache / "shared_cpu_list").read_text(encoding="utf-8"))
            (cache / "shared_cpu_map").write_text(f"{text}\n", encoding="utf-8")
    for node in (tree / "sys/devices/system/node").glob("node[0-9]*"):
        text = mask_of((node / "cpulist").read_text(encoding="utf-8"))
        (node / "cpumap").write_text(f"{text}\n", encoding="utf-8")
    for function in (tree / "sys/bus/pci/devices").iterdir():
        if (function / "local_cpulist").exists():
            text = mask_of((function / "local_cpulist").read_text(encoding="utf-8"))
            (function / "local_cpus").write_text(f"{text}\n", encoding="utf-8")


def mask_of(cpulist: str) -> str:
    """``0-3,32`` as the kernel prints masks: ``00000001,0000000f``."""
    bits = 0
    for first, last in re.findall(r"(\d+)(?:-(\d+))?", cpulist):
        for cpu in range(int(first), int(last or first) + 1):
            bits |= 1 << cpu
    words: list[str] = []
    while bits or not words:
        words.append(f"{bits & 0xFFFFFFFF:08x}")
        bits >>= _BITS_PER_WORD
    return ",".join(reversed(words))


def command(tree: Path) -> tuple[list[str], dict[str, str]]:
    """Words and environment with which lstopo reads ``tree`` whole, also what it usually leaves out."""
    return [program(), *OPTIONS], {"HWLOC_FSROOT": str(tree), "HWLOC_COMPONENTS": "-x86", "PATH": "/usr/bin:/bin"}


def objects(tree: Path) -> ET.Element:
    """What lstopo says of the tree.

    :raises subprocess.CalledProcessError: it fails.
    """
    words, environment = command(tree)
    done = subprocess.run(words, env=environment, capture_output=True, check=True)
    return ET.fromstring(done.stdout)
