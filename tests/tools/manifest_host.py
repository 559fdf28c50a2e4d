# Copyright: the topovirt.kvm authors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Everything about a host that a way back has to restore, as JSON on standard output.

Runs on the host itself, as root, fed to its Python through SSH: standard library only, and nothing of the collection,
so that the judge shares no code with what it judges. Argument: the root of the file tree, ``/`` by default.
"""

from __future__ import annotations

import base64
import hashlib
import json
import os
import shutil
import stat
import subprocess
import sys
from typing import Any

# Compared by entry: their order may change when users come and go.
BY_ENTRY = ("/etc/passwd", "/etc/group", "/etc/shadow", "/etc/gshadow", "/etc/subuid", "/etc/subgid")

# Where systemd gives a running service a temporary directory of its own, with the boot's id and random letters.
OF_A_BOOT = "/var/tmp/systemd-private-"


def file_system(root: str) -> dict[str, list[Any]]:
    """Path -> type, mode, owner, group, extended attributes, and hash of the content or target of the link."""
    found: dict[str, list[Any]] = {}
    devices = {
        os.stat(os.path.join(root, path)).st_dev for path in ("", "boot", "boot/efi") if os.path.isdir(f"{root}/{path}")
    }
    todo = [root]
    while todo:
        directory = todo.pop()
        for entry in sorted(os.scandir(directory), key=lambda item: item.name):
            info = entry.stat(follow_symlinks=False)
            path = "/" + os.path.relpath(entry.path, root)
            if path.startswith(OF_A_BOOT):
                continue
            if stat.S_ISDIR(info.st_mode) and info.st_dev not in devices:
                continue
            found[path] = [
                stat.S_IFMT(info.st_mode),
                oct(stat.S_IMODE(info.st_mode)),
                info.st_uid,
                info.st_gid,
                attributes(entry.path),
                content(entry.path, path, info.st_mode),
            ]
            if stat.S_ISDIR(info.st_mode):
                todo.append(entry.path)
    return found


def attributes(path: str) -> dict[str, str]:
    try:
        names = os.listxattr(path, follow_symlinks=False)
        return {n: base64.b64encode(os.getxattr(path, n, follow_symlinks=False)).decode() for n in sorted(names)}
    except OSError:
        return {}


def content(real: str, path: str, mode: int) -> Any:
    if stat.S_ISLNK(mode):
        return os.readlink(real)
    if not stat.S_ISREG(mode):
        return None
    if path in BY_ENTRY:
        with open(real, encoding="utf-8", errors="surrogateescape") as text:
            return sorted(hashlib.sha256(line.encode("utf-8", "surrogateescape")).hexdigest()[:16] for line in text)
    digest = hashlib.sha256()
    with open(real, "rb") as file:
        for block in iter(lambda: file.read(1 << 20), b""):
            digest.update(block)
    return digest.hexdigest()


def output(*words: str) -> list[str]:
    return sorted(subprocess.run(words, stdout=subprocess.PIPE, text=True, check=True).stdout.splitlines())


def drivers() -> dict[str, Any]:
    """Driver and override of each PCI function."""
    top, found = "/sys/bus/pci/devices", {}
    for bdf in sorted(os.listdir(top)):
        link = f"{top}/{bdf}/driver"
        with open(f"{top}/{bdf}/driver_override", encoding="ascii") as override:
            found[bdf] = [
                os.path.basename(os.readlink(link)) if os.path.islink(link) else None,
                override.read().strip(),
            ]
    return found


def pages() -> dict[str, str]:
    found = {}
    for directory, _names, files in os.walk("/sys/devices/system/node"):
        if "nr_hugepages" in files:
            with open(f"{directory}/nr_hugepages", encoding="ascii") as count:
                found[directory] = count.read().strip()
    return found


def packages() -> tuple[list[str], list[str]]:
    """Each installed package with its version, and the names of those that somebody asked for."""
    if shutil.which("dpkg-query"):
        form = "${db:Status-Abbrev} ${Package}:${Architecture} ${Version}\\n"
        return output("dpkg-query", "-W", "-f", form), output("apt-mark", "showmanual")
    asked = ("dnf", "--quiet", "--cacheonly", "repoquery", "--userinstalled", "--queryformat", "%{name}")
    return output("rpm", "--query", "--all", "--queryformat", "%{nevra}\\n"), output(*asked)


def main() -> None:
    root = sys.argv[1] if len(sys.argv) > 1 else "/"
    with open("/proc/cmdline", encoding="utf-8") as cmdline:
        line = cmdline.read().strip()
    installed, asked_for = packages()
    manifest = {
        "files": file_system(root),
        "units": output("systemctl", "list-unit-files", "--no-legend", "--no-pager", "--full"),
        "packages": installed,
        "manual_packages": asked_for,
        "cmdline": line,
        "drivers": drivers(),
        "hugepages": pages(),
    }
    json.dump(manifest, sys.stdout)


if __name__ == "__main__":
    main()
