# Copyright: the topovirt.kvm authors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Who else binds devices on this host, or is in the way of who gets them: found, named, and what to do about each."""

from __future__ import annotations

import re
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Collection, Dict, Iterator, List, Sequence, Set, Tuple

from ansible_collections.topovirt.kvm.plugins.module_utils._host.places import Run
from ansible_collections.topovirt.kvm.plugins.module_utils._host.services import NOT_FOUND, unit_state
from ansible_collections.topovirt.kvm.plugins.module_utils._topology.model import PciFunction, Topology

# It takes devices from guests, or keeps them from being taken; or it is only good to know of.
CONFLICT, HINT = "conflict", "hint"

_VFIO = "vfio-pci"
_NVIDIA = "10de"
_MODPROBE = ("etc/modprobe.d", "run/modprobe.d", "usr/lib/modprobe.d", "lib/modprobe.d")
_NATIVE = ("nvidia", "nouveau")
# Daemons of NVIDIA's that hold devices open, so that unbinding one would wait for them.
_DAEMONS = ("nvidia-persistenced", "nvidia-fabricmanager", "nvidia-dcgm")


@dataclass(frozen=True)
class Competitor:
    name: str
    severity: str  # CONFLICT or HINT
    text: str  # what was found, a sentence without its full stop
    remedy: str  # what to do, likewise
    now_only: bool = False  # nothing to an initramfs that binds devices before any driver is loaded

    def as_dict(self) -> Dict[str, Any]:
        return asdict(self)

    def reason(self, option: str) -> str:
        """Why a change is refused.

        :param option: in which it can be tolerated.
        """
        return f"{self.name}: {self.text}. {self.remedy}, or name it in {option}"


def competitors(root: Path, run: Run, topology: Topology, devices: Collection[str]) -> List[Competitor]:
    """Everybody who competes for the host's devices.

    :param devices: BDFs that are to go to guests.
    """
    chosen = [function for function in topology["pci"] if function["bdf"] in devices]
    return [
        *_driverctl(root, devices),
        *_by_id(root, topology, devices),
        *_native(root, topology, chosen),
        *_daemons(run, chosen),
        *_dkms(root, chosen),
        *_kubernetes(root, run),
        *_numad(run),
    ]


def _driverctl(root: Path, devices: Collection[str]) -> Iterator[Competitor]:
    for path in sorted((root / "etc/driverctl.d").glob("*")):
        # A file for each device, called <bus>-<device> (driverctl's udev rule).
        bdf, driver = path.name.rpartition("pci-")[2], _text(path).strip()
        if bdf in devices:
            yield Competitor(
                "driverctl",
                HINT if driver == _VFIO else CONFLICT,
                f"a rule of driverctl binds {bdf} to {driver or 'no driver'} at each boot",
                f"Run driverctl unset-override {bdf}",
            )


def _by_id(root: Path, topology: Topology, devices: Collection[str]) -> Iterator[Competitor]:
    """Rules by vendor and device take every device of that id, of whatever role."""
    for place, value in _rules_by_id(root, topology["host"]["cmdline"]):
        ids = {tuple(each.lower().split(":")[:2]) for each in value.split(",")}
        taken = [f for f in topology["pci"] if (f["vendor"], f["device"]) in ids and f["kind"] == "endpoint"]
        others = [f["bdf"] for f in taken if f["bdf"] not in devices]
        text = f"{place} takes every device of {value}"
        if others:
            yield Competitor(
                "binding by id",
                CONFLICT,
                f"{text}, so {', '.join(others)}, too, which not guests are to have",
                "Remove it and rebuild the initramfs",
            )
        else:
            yield Competitor("binding by id", HINT, text, "Remove it: devices that come later would be taken, too")


def _rules_by_id(root: Path, cmdline: str) -> Iterator[Tuple[str, str]]:
    for word in cmdline.split():
        name, _equals, value = word.partition("=")
        if name.replace("_", "-") in ("vfio-pci.ids", "pci-stub.ids") and value:
            yield f"the kernel argument {word}", value
    for path, line in _modprobe_lines(root):
        found = re.match(r"options\s+(?:vfio[-_]pci|pci[-_]stub)\s.*?\bids=(\S+)", line)
        if found:
            yield f"/{path} (options ... ids=)", found.group(1)


def _native(root: Path, topology: Topology, chosen: Sequence[PciFunction]) -> Iterator[Competitor]:
    if not any(function["vendor"] == _NVIDIA for function in chosen):
        return
    blocked = _blacklisted(root, topology["host"]["cmdline"])
    for module in _NATIVE:
        if (root / "sys/module" / module).is_dir() and module not in blocked:
            yield Competitor(
                module,
                HINT,
                f"the module {module} is loaded and not blacklisted: it takes every GPU that nothing else keeps",
                f"Where no GPU stays with the host, blacklist {module} in /etc/modprobe.d",
                now_only=True,
            )


def _blacklisted(root: Path, cmdline: str) -> Set[str]:
    found = set()
    for word in cmdline.split():
        name, _equals, value = word.partition("=")
        if name in ("modprobe.blacklist", "module_blacklist", "rd.driver.blacklist"):
            found.update(value.split(","))
    for _path, line in _modprobe_lines(root):
        words = line.split()
        if words[0] == "blacklist" or (words[0] == "install" and words[2:3] in (["/bin/false"], ["/bin/true"])):
            found.add(words[1])
    return found


def _daemons(run: Run, chosen: Sequence[PciFunction]) -> Iterator[Competitor]:
    if not any(function["vendor"] == _NVIDIA for function in chosen):
        return
    for name in _DAEMONS:
        unit = f"{name}.service"
        state = unit_state(run, unit)
        if state["enabled"] == NOT_FOUND:
            continue
        held = [function["bdf"] for function in chosen if function["driver"] == "nvidia"]
        if state["active"] and held:
            yield Competitor(
                name,
                CONFLICT,
                f"it runs and may hold {', '.join(held)} open",
                f"Run systemctl disable --now {unit}",
                now_only=True,
            )
        elif state["enabled"] == "enabled":
            yield Competitor(
                name,
                HINT,
                "it is started at each boot, and needs devices that are to go to guests",
                f"Run systemctl disable {unit} unless other devices stay with the host",
                now_only=True,
            )


def _dkms(root: Path, chosen: Sequence[PciFunction]) -> Iterator[Competitor]:
    if not any(function["vendor"] == _NVIDIA for function in chosen):
        return
    for path in sorted((root / "var/lib/dkms").glob("nvidia*")):
        if path.is_dir():
            yield Competitor(
                f"DKMS {path.name}",
                HINT,
                "its modules are built again for each new kernel and load by themselves",
                "Remove the driver's packages where no GPU stays with the host",
                now_only=True,
            )


def _kubernetes(root: Path, run: Run) -> Iterator[Competitor]:
    if (root / "run/nvidia/validations").is_dir() or (root / "run/nvidia/driver").exists():
        yield Competitor(
            "NVIDIA GPU Operator",
            CONFLICT,
            "it has run here (/run/nvidia), and binds GPUs anew with each start of its pods",
            "Label the node nvidia.com/gpu.deploy.operands=false",
        )
    plugins = sorted(path.name for path in (root / "var/lib/kubelet/device-plugins").glob("kubevirt*.sock"))
    if plugins:
        yield Competitor(
            "KubeVirt",
            CONFLICT,
            f"its device plugin hands devices to pods ({', '.join(plugins)})",
            "Take them out of permittedHostDevices",
        )
    elif unit_state(run, "kubelet.service")["active"]:
        yield Competitor(
            "kubelet",
            HINT,
            "this host is a node of Kubernetes, whose operators may bind devices",
            "Drain it and keep their pods away",
        )


def _numad(run: Run) -> Iterator[Competitor]:
    if unit_state(run, "numad.service")["active"]:
        yield Competitor(
            "numad", HINT, "it moves processes and memory that are pinned", "Run systemctl disable --now numad.service"
        )


def _modprobe_lines(root: Path) -> Iterator[Tuple[str, str]]:
    """Lines of modprobe's configuration with their files; a file hides one of its name in a later place."""
    seen: Set[str] = set()
    for place in _MODPROBE:
        for path in sorted((root / place).glob("*.conf")):
            if path.name in seen:
                continue
            seen.add(path.name)
            for line in _text(path).splitlines():
                if len(line.split()) > 1 and not line.lstrip().startswith("#"):
                    yield f"{place}/{path.name}", line.strip()


def _text(path: Path) -> str:
    try:
        return path.read_text(encoding="utf-8", errors="replace")
    except OSError:
        return ""
