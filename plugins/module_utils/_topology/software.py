# Copyright: the topovirt.kvm authors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Versions of what runs VMs, what follows from them, and the command line of the next boot."""

from __future__ import annotations

import re
from typing import TYPE_CHECKING, Dict, Optional, Tuple, Union

from ansible_collections.topovirt.kvm.plugins.module_utils._errors import TopovirtError
from ansible_collections.topovirt.kvm.plugins.module_utils._topology.gaps import Gaps
from ansible_collections.topovirt.kvm.plugins.module_utils._topology.model import Software, Topology
from ansible_collections.topovirt.kvm.plugins.module_utils._topology.module_ids import Run
from ansible_collections.topovirt.kvm.plugins.module_utils._topology.sysfs import Tree

if TYPE_CHECKING:
    from pathlib import Path

# What the answers of commands were where a tree was captured; a running machine has no such file.
CAPTURED = "var/lib/topovirt/captured-software.json"
_CAPTURED_BYTES = 1 << 16

# Programs that print the version, the first that is there counts: modular and monolithic daemon, then the client.
_PROGRAMS: Dict[str, Tuple[str, ...]] = {
    "libvirt": ("usr/sbin/virtqemud", "usr/sbin/libvirtd", "usr/bin/virsh"),
    "qemu": ("usr/libexec/qemu-kvm", "usr/bin/qemu-system-x86_64"),
}

_ANSWERS = (*_PROGRAMS, "next_cmdline")
_UNKNOWN = "why no "

_Version = Tuple[int, ...]

# Feature -> program -> version from which it is there, and version before which it surely is not. From libvirt's and
# QEMU's release notes; Linux 6.12 is the first that maps large BARs by huge pages, and QEMU 9.2 aligns them for it;
# libvirt 11.10 is the oldest release in which iommufd was seen, 11.3 the newest without.
_SINCE: Dict[str, Dict[str, Tuple[_Version, _Version]]] = {
    "qemu_override": {"libvirt": ((8, 2), (8, 2))},
    "maxphysaddr": {"libvirt": ((8, 7), (8, 7))},
    "large_bar_fast_mapping": {"kernel": ((6, 12), (6, 12)), "qemu": ((9, 2), (9, 2))},
    "iommufd": {"kernel": ((6, 2), (6, 2)), "qemu": ((9, 0), (9, 0)), "libvirt": ((11, 10), (11, 4))},
}
# Kernels of RHEL and its rebuilds carry later features under old numbers.
_BACKPORTING = re.compile(r"\.el\d+")


def read_software(tree: Tree, root: Union[str, Path], run: Optional[Run], kernel: str, gaps: Gaps) -> Software:
    """What runs VMs on the machine below ``root``.

    :param run: starts commands on that machine; None for a recorded tree, which has the answers in a file, if at all.
    :param kernel: release of the kernel.
    """
    captured = _captured(tree) if run is None else None
    if captured is not None:
        answers = {name: captured.get(name) for name in _ANSWERS}
        for fact, reason in captured.items():
            if fact not in _ANSWERS and reason is not None:
                gaps.add(fact.partition(_UNKNOWN)[2], reason)
    else:
        answers = {name: _version(tree, run, name, gaps) for name in _PROGRAMS}
        answers["next_cmdline"] = _next_cmdline(root, run, gaps)
    features = {}
    for feature, needs in _SINCE.items():
        features[feature] = _has({**answers, "kernel": kernel}, needs)
        if features[feature] is None:
            absent = [name for name in sorted(needs) if name in answers and answers[name] is None]
            why = f"without {' and '.join(absent)} nobody can tell" if absent else "the versions do not tell"
            gaps.add(feature, why)
    return Software(
        next_cmdline=answers["next_cmdline"], libvirt=answers["libvirt"], qemu=answers["qemu"], features=features
    )


def to_capture(topology: Topology) -> Dict[str, Optional[str]]:
    """What a capture keeps in the file ``CAPTURED``: the answers, and why one is missing."""
    software = topology["software"]
    reasons = {gap["fact"]: gap["reason"] for gap in topology["unknown"] if gap["fact"] in _ANSWERS}
    return {
        "libvirt": software["libvirt"],
        "qemu": software["qemu"],
        "next_cmdline": software["next_cmdline"],
        **{f"{_UNKNOWN}{fact}": reason for fact, reason in reasons.items()},
    }


def _captured(tree: Tree) -> Optional[Dict[str, Optional[str]]]:
    content = tree.raw(CAPTURED, _CAPTURED_BYTES)
    if not content:
        return None
    import json  # most machines have no such file

    try:
        data = json.loads(content)
    except ValueError:
        return None
    if not isinstance(data, dict):
        return None
    return {key: value for key, value in data.items() if value is None or isinstance(value, str)}


def _installed(tree: Tree, name: str) -> Optional[str]:
    return next((program for program in _PROGRAMS[name] if tree.exists(program)), None)


def _version(tree: Tree, run: Optional[Run], name: str, gaps: Gaps) -> Optional[str]:
    """None without a gap: there is no such program."""
    program = _installed(tree, name)
    if run is None:
        gaps.add(name, "no command is run for a machine that is not this one")
        return None
    if program is None:
        return None
    try:
        status, output, _errors = run([f"/{program}", "--version"])
    except OSError:
        status, output = 1, ""
    found = re.search(r"\d+(\.\d+)+", output)
    if status != 0 or found is None:
        gaps.add(name, f"/{program} --version prints no version")
        return None
    return found.group(0)


def _next_cmdline(root: Union[str, Path], run: Optional[Run], gaps: Gaps) -> Optional[str]:
    if run is None:
        gaps.add("next_cmdline", "the boot loader's menu is read on the machine itself only")
        return None
    # Only here is the boot loader's side needed; it takes longer to import than all else together.
    from pathlib import Path

    from ansible_collections.topovirt.kvm.plugins.module_utils._host.cmdline.choice import boot_loader

    try:
        words = " ".join(boot_loader(Path(root), run).next_arguments())
        return words.encode("utf-8", "surrogateescape").decode("utf-8", "replace")
    except (TopovirtError, OSError) as error:
        gaps.add("next_cmdline", str(error))
        return None


def _has(versions: Dict[str, Optional[str]], needs: Dict[str, Tuple[_Version, _Version]]) -> Optional[bool]:
    """Whether all programs are new enough: False when one surely is not, None when one does not tell."""
    result: Optional[bool] = True
    for name, (since, before) in needs.items():
        text = versions[name] or ""
        found = re.match(r"\d+(\.\d+)*", text)
        version = tuple(map(int, found.group(0).split("."))) if found else ()
        if version and version >= since:
            continue
        if version and version < before and not (name == "kernel" and _BACKPORTING.search(text)):
            return False
        result = None
    return result
