# Copyright: the topovirt.kvm authors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Collect the attributes that a recorded tree must share with the booted kernel, as they are.

Self-contained: ``agreement.py`` imports it for a recorded tree and sends the file to the server, where
``python3 - ROOT < collector.py`` prints the same dictionary as JSON.
"""

from __future__ import annotations

import base64
import glob
import json
import os
import sys

# (pattern of directories, names of files and links in them). A link's value is its target, "-> ../../x"; a file's is
# its text, "base64:..." when it is none. "." stands for the directory's existence. Unreadable files have the value "".
ATTRIBUTES: tuple[tuple[str, tuple[str, ...]], ...] = (
    ("sys/bus/pci/devices", ("*",)),
    (
        "sys/bus/pci/devices/*",
        (
            *(
                "uevent",
                "class",
                "vendor",
                "device",
                "subsystem_vendor",
                "subsystem_device",
                "revision",
                "numa_node",
                "local_cpulist",
            ),
            *(
                "resource",
                "config",
                "max_link_speed",
                "max_link_width",
                "driver",
                "driver_override",
                "iommu_group",
                "physfn",
            ),
            *("reset_method", "power_state", "sriov_totalvfs", "sriov_numvfs", "subsystem"),
        ),
    ),
    ("sys/bus/pci/devices/*/net", ("*",)),
    ("sys/bus/pci/devices/*/nvme", ("*",)),
    ("sys/bus/pci/drivers/*", ("0000:*",)),
    ("sys/devices/pci*/pci_bus/*", ("cpulistaffinity",)),
    ("sys/kernel/iommu_groups/*", ("type",)),
    ("sys/kernel/iommu_groups/*/devices", ("*",)),
    ("sys/devices/system/cpu", ("online", "possible", "present", "isolated", "nohz_full")),
    ("sys/kernel/security", (".", "lockdown")),
    ("sys/firmware/efi/efivars", ("SecureBoot-*", "BootOrder-*")),
    (
        "sys/devices/system/cpu/cpu[0-9]*/topology",
        (
            *("physical_package_id", "die_id", "core_id"),
            *("thread_siblings_list", "core_siblings_list", "die_cpus_list"),
        ),
    ),
    ("sys/devices/system/cpu/cpu[0-9]*/cache/index3", ("id", "level", "type", "shared_cpu_list")),
    ("sys/devices/system/cpu/cpu[0-9]*", ("node[0-9]*",)),
    ("sys/devices/system/node", ("online", "has_cpu", "has_memory")),
    ("sys/devices/system/node/node[0-9]*", ("cpulist", "distance", "meminfo")),
    ("sys/devices/system/node/node[0-9]*/hugepages/*", ("nr_hugepages", "free_hugepages", "surplus_hugepages")),
    ("sys/kernel/mm/hugepages/*", ("nr_hugepages",)),
    ("sys/firmware", (".",)),
    ("sys/firmware/efi", (".",)),
    ("sys/firmware/acpi/tables", ("DMAR", "IVRS")),
    ("sys/class/net", ("*",)),
    ("sys/class/net/*", ("address", "device", "flags")),
    ("sys/class/nvme", ("*",)),
    ("sys/class/nvme/*", ("address", "serial", "transport", "device")),
    ("sys/class/infiniband", ("*",)),
    ("sys/block", ("*",)),
    ("sys/class/block", ("*",)),
    ("sys/class/block/*", ("dev", "size", "partition", "device")),
    ("proc", ("cmdline", "cpuinfo", "meminfo", "swaps")),
    ("proc/self", ("mountinfo",)),
    ("proc/sys/kernel", ("arch", "osrelease")),
    ("proc/sys/kernel/random", ("boot_id",)),
    ("proc/net", ("route",)),
    ("etc", ("os-release", "fstab")),
    ("usr/lib", ("os-release",)),
)


def read(path: str) -> str:
    """The value of one attribute."""
    if os.path.islink(path):
        return f"-> {os.readlink(path)}"
    try:
        with open(path, "rb") as file:
            data = file.read()
    except OSError:
        return ""
    try:
        return data.decode()
    except UnicodeDecodeError:
        return f"base64:{base64.b64encode(data).decode()}"


def collect(root: str) -> dict[str, str]:
    """Every attribute below ``root`` by its path relative to it."""
    result: dict[str, str] = {}
    base = root.rstrip("/")
    for directories, names in ATTRIBUTES:
        for directory in glob.glob(f"{base}/{directories}"):
            for name in names:
                for path in [directory] if name == "." else glob.glob(f"{glob.escape(directory)}/{name}"):
                    relative = path[len(base) + 1 :]
                    if name == ".":
                        result[f"{relative}/."] = ""
                    elif os.path.islink(path) or os.path.isfile(path):
                        result[relative] = read(path)
                    else:
                        result[f"{relative}/."] = ""
    return result


if __name__ == "__main__":
    json.dump(collect(sys.argv[1]), sys.stdout)
