# Copyright: the topovirt.kvm authors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""What the demo and the emulated-server scenario do, in which order and with which variables. One place for both."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from tests.demo.operator import FOR_EMULATION, NOTES

IMAGE = "test-guest"

# group_vars/gpu_hosts.yml of the operator: what the server is to become.
CONVERSION: dict[str, Any] = {
    "kvm_host_passthrough": ["gpu", "nic"],
    "kvm_host_fabric_model": "full_passthrough",
    "kvm_host_reboot_ok": True,
}

# For a machine without NVLink whose GPUs hang on root ports, which have access control also where they are emulated.
# Its NICs share no switch with a GPU, so they are named.
REGISTERS = {
    "kvm_host_fabric_model": "none",
    "kvm_host_devices": ["0000:23:00.0", "0000:a3:00.0"],
    "kvm_host_pcie_acs": {"enabled": True},
}

SHARED_FABRIC = {"kvm_host_fabric_model": "shared_nvswitch"}


def request(name: str, gpus: int) -> dict[str, Any]:
    return {"name": name, "gpus": gpus, "image": IMAGE, "state": "running", **FOR_EMULATION}


ONE_VM = {"gpu_vms": [request("train-8", 8)]}
FIRST_TENANT = {"gpu_vms": [request("tenant-a", 4)]}
TWO_TENANTS = {"gpu_vms": [*FIRST_TENANT["gpu_vms"], request("tenant-b", 4)]}
ONE_GPU = {"gpu_vms": [request("infer-1", 1)]}
SIXTEEN = {"gpu_vms": [request("train-16", 16)]}
TOO_SMALL = {"gpu_vms": [request("train-4", 4)]}


def variables(images: dict[str, Any], report_dir: str) -> dict[str, Any]:
    """The operator's group variables."""
    return {
        **CONVERSION,
        "gpu_vm_images": images,
        "topovirt_report_dir": report_dir,
        "topovirt_report_notes": NOTES,
    }


# Tasks of convert-to-kvm that change something only in a real run: they carry out what an earlier task announced.
FOLLOW_UPS = frozenset({"Install packages", "Make the verified entry the default"})


def prediction_errors(predicted: Mapping[str, str], real: Mapping[str, str]) -> list[str]:
    """What check mode said wrongly, for two results of ``operator.changes``; empty when it told the truth."""
    errors = [f"'{task}' would change something, but did not" for task in predicted if task not in real]
    errors += [
        f"'{task}' announced another change than it made"
        for task, diff in predicted.items()
        if task in real and real[task] != diff
    ]
    errors += [
        f"'{task}' changed something that was not announced"
        for task in real
        if task not in predicted and task.rpartition(" : ")[2] not in FOLLOW_UPS
    ]
    return errors if predicted else ["check mode announced no change at all"]
