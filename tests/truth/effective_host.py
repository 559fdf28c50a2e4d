# Copyright: the topovirt.kvm authors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""What is in effect on a host besides its files (see tests/tools/manifest_host.py), as JSON on standard output: what
GRUB would boot, which units run, TuneD's profile, registers of PCI functions, and virtual functions (SR-IOV).

Runs on the host itself, as root, fed to its Python through SSH: standard library only, and nothing of the collection,
so that the judge shares no code with what it judges. Argument: the root of the file tree, ``/`` by default.
"""

from __future__ import annotations

import glob
import json
import os
import re
import struct
import subprocess
import sys
from collections.abc import Callable
from typing import Any

Ask = Callable[..., str]  # a command -> its standard output, empty when it fails or is not there

# Units whose activity is a state that lasts; scopes, devices and slices come and go with whatever runs.
LASTING = (".service", ".socket", ".mount", ".timer", ".path")

# Bits that are anybody's to decide (PCI Express Base Specification): of ACS control those that have a capability bit,
# the enable bit of ATS control, the size of read requests in device control.
FIELDS = {"acs_control": 0x7F, "ats_control": 0x8000, "device_control": 0x7000}
_EXPRESS, _ACS, _ATS = 0x10, 0x000D, 0x000F


def menu_entries(text: str) -> dict[str, str]:
    """Id -> command line of each Linux entry of a GRUB configuration."""
    found: dict[str, str] = {}
    identity = ""
    for line in text.splitlines():
        words = line.split()
        if words[:1] == ["menuentry"]:
            named = re.search(r"(?:--id|\$\{?menuentry_id_option\}?)\s+'([^']*)'", line)
            title = re.search(r"menuentry\s+'([^']*)'", line)
            identity = (named or title).group(1) if named or title else ""  # type: ignore[union-attr]
        elif words[:1] and words[0] in ("linux", "linuxefi", "linux16") and identity:
            found[identity] = " ".join(words[2:])
    return found


def loader_entry(text: str) -> str:
    """The command line of an entry by the Boot Loader Specification."""
    options = (line.partition(" ")[2] for line in text.splitlines() if line.split()[:1] == ["options"])
    return " ".join(" ".join(options).split())


def default_in(text: str) -> str:
    """What a GRUB configuration sets as default by itself, empty when nothing."""
    values = re.findall(r"^\s*set default=[\"']?([^\"'\n]*?)[\"']?\s*$", text, re.MULTILINE)
    return next((value for value in reversed(values) if "next_entry" not in value), "")


def variables(raw: bytes) -> dict[str, str]:
    """An environment block's variables that have a value."""
    lines = raw.decode("utf-8", "replace").splitlines()
    pairs = (line.partition("=") for line in lines if "=" in line and not line.startswith("#"))
    return {name: value for name, _equals, value in pairs if value}


def boot(root: str) -> dict[str, Any]:
    """``{"entries": {id: command line}, "default": id, "variables": of the environment block}``."""
    entries: dict[str, str] = {}
    default, there = "", {}
    for folder in ("grub", "grub2"):
        for name in ("grub.cfg", "custom.cfg"):
            text = read(f"{root}/boot/{folder}/{name}").decode("utf-8", "replace")
            entries.update(menu_entries(text))
            default = default_in(text) or default
        there.update(variables(read(f"{root}/boot/{folder}/grubenv")))
    for path in sorted(glob.glob(f"{root}/boot/loader/entries/*.conf")):
        entries[os.path.basename(path)[: -len(".conf")]] = loader_entry(read(path).decode("utf-8", "replace"))
    if "saved_entry" in default:
        default = there.get("saved_entry", "")
    return {"entries": entries, "default": default, "variables": there}


def active(ask: Ask) -> dict[str, bool | None]:
    """Whether each unit that systemd has loaded is active; None of those whose activity passes: what a socket or timer
    starts, and jobs."""
    words = ("systemctl", "show", "--property=Id,ActiveState,Type,RemainAfterExit,TriggeredBy", "*")
    found: dict[str, bool | None] = {}
    for block in ask(*words).split("\n\n"):
        unit = dict(line.split("=", 1) for line in block.splitlines() if "=" in line)
        name = unit.get("Id", "")
        passing = unit.get("TriggeredBy") or (unit.get("Type") == "oneshot" and unit.get("RemainAfterExit") != "yes")
        if name.endswith(LASTING) and "@" not in name:
            found[name] = None if passing else unit.get("ActiveState") == "active"
    return found


def registers(root: str) -> dict[str, int]:
    """``"<bdf> <register>"`` -> its bits of FIELDS, of every function that has the register."""
    found = {}
    for path in sorted(glob.glob(f"{root}/sys/bus/pci/devices/*/config")):
        bdf, space = os.path.basename(os.path.dirname(path)), read(path)
        for name, offset in register_offsets(space).items():
            if offset + 2 <= len(space):
                found[f"{bdf} {name}"] = struct.unpack_from("<H", space, offset)[0] & FIELDS[name]
    return found


def register_offsets(space: bytes) -> dict[str, int]:
    """Where a configuration space has the registers of FIELDS: by its two lists of capabilities."""
    found: dict[str, int] = {}
    if len(space) < 64:
        return found
    seen: set[int] = set()
    at = space[0x34] & 0xFC if space[6] & 0x10 else 0
    while at >= 64 and at + 2 <= len(space) and at not in seen:
        seen.add(at)
        if space[at] == _EXPRESS:
            found["device_control"] = at + 8
        at = space[at + 1] & 0xFC
    at = 256
    while at >= 256 and at + 4 <= len(space) and at not in seen:
        seen.add(at)
        header = struct.unpack_from("<I", space, at)[0]
        name = {_ACS: "acs_control", _ATS: "ats_control"}.get(header & 0xFFFF)
        if name:
            found[name] = at + 6
        at = header >> 20 & 0xFFC
    return found


def virtual_functions(root: str) -> dict[str, dict[str, Any]]:
    """Of every physical function the number of its virtual ones, whether drivers take new ones, and in their order
    ``[bdf, driver, override]`` of each."""
    found = {}
    for path in sorted(glob.glob(f"{root}/sys/bus/pci/devices/*/sriov_numvfs")):
        device = os.path.dirname(path)
        links = sorted(glob.glob(f"{device}/virtfn*"), key=lambda link: int(link.rpartition("virtfn")[2]))
        found[os.path.basename(device)] = {
            "number": int(read(path)),
            "autoprobe": read(f"{device}/sriov_drivers_autoprobe").strip() == b"1",
            "functions": [[os.path.basename(os.readlink(link)), *driver(link)] for link in links],
        }
    return found


def driver(device: str) -> list[str | None]:
    """A device's driver and its override."""
    link = f"{device}/driver"
    held = os.path.basename(os.readlink(link)) if os.path.islink(link) else None
    return [held, read(f"{device}/driver_override").decode().strip()]


def profile(ask: Ask) -> str:
    """TuneD's active profile, empty when there is none."""
    head, _colon, name = ask("tuned-adm", "active").strip().partition(": ")
    return name if head == "Current active profile" else ""


def read(path: str) -> bytes:
    try:
        with open(path, "rb") as file:
            return file.read()
    except OSError:
        return b""


def observe(root: str, ask: Ask) -> dict[str, Any]:
    return {
        "boot": boot(root),
        "active": active(ask),
        "tuned": profile(ask),
        "registers": registers(root),
        "virtual_functions": virtual_functions(root),
    }


def ask_host(*words: str) -> str:
    try:
        return subprocess.run(words, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True, check=False).stdout
    except OSError:
        return ""


if __name__ == "__main__":
    json.dump(observe(sys.argv[1] if len(sys.argv) > 1 else "/", ask_host), sys.stdout)
