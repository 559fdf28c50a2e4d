# Copyright: the topovirt.kvm authors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""The observer on a server made of files: the two scripts that run on hosts, with answers of the fake's programs."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

from ansible_collections.topovirt.kvm.tests.unit.plugins.module_utils._host.fake_host import FakeHost

from tests.tools import manifest_host
from tests.truth import effective_host

# What the observer on a host sees of one file system; there /proc, /sys and /run are others.
_DEPENDENCIES = ("libvirt0", "libvirt-libs")  # that the fakes' package managers add
_ON_DISK = ("boot", "etc", "opt", "root", "srv", "usr", "var")


def observe(host: FakeHost) -> dict[str, Any]:
    """An observation of the server as it is."""
    files = manifest_host.file_system(str(host.root))
    unit_files = units(host)
    return {
        "files": {path: state for path, state in files.items() if path.split("/")[1] in _ON_DISK},
        "units": [f"{name} {state} enabled" for name, (state, _active) in unit_files.items()],
        "packages": [f"ii  {name}:amd64 {version}" for name, version in host.installed.items()],
        "manual_packages": [name for name in host.installed if name not in _DEPENDENCIES],
        "cmdline": (host.root / "proc/cmdline").read_text(),
        "drivers": {path.name: driver(path) for path in sorted((host.root / "sys/bus/pci/devices").iterdir())},
        "hugepages": {
            str(path.parent): path.read_text().strip()
            for path in sorted((host.root / "sys/devices/system/node").glob("node*/hugepages/*/nr_hugepages"))
        },
        "firmware": host.firmware(),
        **effective_host.observe(str(host.root), lambda *words: answer(host, unit_files, *words)),
    }


def units(host: FakeHost) -> dict[str, tuple[str, bool]]:
    """Name -> enabled and active: those that packages brought, and those whose files lie in /etc, or did when they were
    started."""
    found = {
        name: ("not-found" if unit.get("of_file") else str(unit["enabled"]), bool(unit["active"]))
        for name, unit in host.units.items()
        if unit["active"] or not unit.get("of_file")
    }
    for path in sorted((host.root / "etc/systemd/system").iterdir()):
        if path.is_file():
            enabled = any((path.parent / folder / path.name).is_symlink() for folder in ("sysinit.target.wants",))
            known = host.units.get(path.name)
            active = bool(known["active"]) if known else path.name in host.begun
            found[path.name] = ("enabled" if enabled else "disabled", active)
    return found


def driver(device: Path) -> list[str | None]:
    link, override = device / "driver", device / "driver_override"
    return [
        os.path.basename(os.readlink(link)) if link.is_symlink() else None,
        override.read_text().strip() if override.exists() else "(null)",
    ]


def answer(host: FakeHost, unit_files: dict[str, tuple[str, bool]], *words: str) -> str:
    """systemctl and tuned-adm, as they print it."""
    if words[0] == "systemctl":
        return "\n".join(
            f"Id={name}\nActiveState={'active' if active else 'inactive'}\nType=simple\n"
            for name, (_enabled, active) in unit_files.items()
        )
    assert words == ("tuned-adm", "active")
    return f"Current active profile: {host.tuned_active}\n" if host.tuned_active else "No current active profile.\n"
