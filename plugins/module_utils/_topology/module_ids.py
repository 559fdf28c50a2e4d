# Copyright: the topovirt.kvm authors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Module ids: the numbers that a baseboard gives to its GPUs, which fabric partitions are made of.

They follow no order of addresses, and only the nvidia driver can read them; so they are known or null, never counted.
"""

from __future__ import annotations

import re
from typing import Any, Callable, Dict, List, Mapping, Optional, Tuple

from ansible_collections.topovirt.kvm.plugins.module_utils._errors import TopovirtError
from ansible_collections.topovirt.kvm.plugins.module_utils._topology.devices import NVIDIA
from ansible_collections.topovirt.kvm.plugins.module_utils._topology.model import PciFunction
from ansible_collections.topovirt.kvm.plugins.module_utils._topology.sysfs import Tree

# Takes the words of a command; returns exit status, stdout and stderr, or raises OSError when it cannot be started.
Run = Callable[[List[str]], Tuple[int, str, str]]

SAVED = "var/lib/topovirt/module-ids.json"
_SAVED_BYTES = 1 << 20

NO_MODULE_ID = "neither the driver nor a file saved by a conversion tells a complete and unique set of ids"

_GPU_LINE = re.compile(r"GPU ([0-9A-Fa-f]{8}):([0-9A-Fa-f]{2}:[0-9A-Fa-f]{2}\.[0-7])\s*\Z")
# "GPU Module Id" in older drivers; 580.159 prints "Module Id" below "Platform Info" (seen on an H200).
_ID_LINE = re.compile(r"\s+(?:GPU )?Module Id\s*:\s*(\d+)\s*\Z", re.IGNORECASE)


def assign_module_ids(
    tree: Tree, functions: List[PciFunction], run: Optional[Run] = None, given: Optional[Mapping[str, Any]] = None
) -> None:
    """Set ``module_id`` of every NVIDIA GPU, or of none: ids that are not complete and unique are no knowledge.

    :param given: BDF -> id, from the operator; takes precedence over the driver's and the saved ones.
    :raises TopovirtError: when ``given`` is not complete and unique, with all reasons.
    """
    gpus = {
        function["bdf"]: function
        for function in functions
        if function["role"] == "gpu" and function["vendor"] == NVIDIA and function["physfn"] is None
    }
    if given:
        ids = _given(given, set(gpus))
    else:
        seen: Dict[str, int] = {}
        if run is not None and any(gpu["driver"] == "nvidia" for gpu in gpus.values()):
            seen = _from_driver(run)
        ids = next((found for found in (seen, _saved(tree)) if _sound(found, gpus, seen)), {})
    for bdf, function in gpus.items():
        function["module_id"] = ids.get(bdf)


def _sound(ids: Mapping[str, int], gpus: Mapping[str, PciFunction], seen: Mapping[str, int]) -> bool:
    """Whether ids cover every GPU, each with its own id, without contradicting what the driver says."""
    used = [ids[bdf] for bdf in gpus if bdf in ids]
    return (
        len(used) == len(gpus)
        and len(set(used)) == len(used)
        and all(ids[bdf] == number for bdf, number in seen.items() if bdf in gpus)
    )


def _given(given: Mapping[str, Any], gpus: set[str]) -> Dict[str, int]:
    errors = []
    ids: Dict[str, int] = {}
    owners: Dict[int, str] = {}
    for key, value in given.items():
        bdf = str(key).lower()
        if bdf not in gpus:
            errors.append(f"{key} is not an NVIDIA GPU of this machine")
        if isinstance(value, bool) or not re.match(r"\d+\Z", str(value)):
            errors.append(f"{key} has id {value!r}, which is not a number")
            continue
        number = int(value)
        if number in owners:
            errors.append(f"{key} and {owners[number]} both have id {number}")
        owners[number] = str(key)
        ids[bdf] = number
    errors.extend(f"{bdf} has no id" for bdf in sorted(gpus.difference(str(key).lower() for key in given)))
    if errors:
        raise TopovirtError(f"Module ids: {'; '.join(errors)}.", "Give every GPU its own id, or none at all.")
    return ids


def _from_driver(run: Run) -> Dict[str, int]:
    try:
        status, output, _errors = run(["nvidia-smi", "-q"])
    except OSError:
        return {}
    return parse_nvidia_smi(output) if status == 0 else {}


def parse_nvidia_smi(text: str) -> Dict[str, int]:
    """Module ids by BDF from ``nvidia-smi -q``; GPUs without a number are left out."""
    ids: Dict[str, int] = {}
    bdf: Optional[str] = None
    for line in text.splitlines():
        gpu = _GPU_LINE.match(line)
        if gpu:
            bdf = f"{int(gpu.group(1), 16):04x}:{gpu.group(2).lower()}"
        number = _ID_LINE.match(line)
        if number and bdf is not None:
            ids[bdf] = int(number.group(1))
    return ids


def _saved(tree: Tree) -> Dict[str, int]:
    content = tree.raw(SAVED, _SAVED_BYTES)
    if not content:
        return {}
    import json  # most machines have no such file

    try:
        data = json.loads(content)
    except ValueError:
        return {}
    if not isinstance(data, dict):
        return {}
    if any(isinstance(value, bool) or not isinstance(value, int) for value in data.values()):
        return {}
    return data
