# Copyright: the topovirt.kvm authors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""The guest that the demo's VMs boot: the stock kernel and an initramfs with busybox and the guest agent.

It has no driver for passed-through devices: what counts is what its kernel enumerates.
Written into ``work``: ``vmlinuz``, ``initrd``, ``packages.json``, ``log``.
"""

from __future__ import annotations

import json
import os
import re
import shutil
from pathlib import Path

from tests.twin.images import mirror as debian
from tests.twin.images import modules, process

HERE = Path(__file__).parent / "guest"
PACKAGES = ("linux-image-amd64", "busybox-static", "qemu-guest-agent", "kmod")
#: The agent's channel and the power button; what is built into the kernel is skipped.
MODULES = ("virtio_pci", "virtio_console", "button", "evdev", "qemu_fw_cfg")
AGENT = "usr/sbin/qemu-ga"
LIBRARIES = "usr/lib/x86_64-linux-gnu"


def libraries(listing: str) -> list[str]:
    """Absolute paths from the dynamic loader's ``--list``."""
    return sorted(set(re.findall(r"(/\S+) \(0x", listing)))


def build(work: Path, mirror: debian.Mirror) -> None:
    """Make kernel and initramfs.

    :raises BakeError: a step failed.
    """
    tree, root, log = work / "tree", work / "root", work / "log"
    mirror.bootstrap(tree, "extract", PACKAGES, log)
    release = modules.release_of(tree)
    folder = tree / "usr/lib/modules" / release
    shutil.copy(tree / f"boot/vmlinuz-{release}", work / "vmlinuz")
    for name in (
        "bin",
        "sbin",
        "dev",
        "proc",
        "sys",
        "run",
        "tmp",
        "etc",
        "usr/sbin",
        "usr/bin",
        "var/log",
        "lib64",
        "modules",
    ):
        (root / name).mkdir(parents=True, exist_ok=True)
    shutil.copy(tree / "usr/bin/busybox", root / "bin/busybox")
    shutil.copytree(HERE, root, dirs_exist_ok=True)
    # depmod did not run in the extracted tree
    loader = tree / LIBRARIES / "ld-linux-x86-64.so.2"
    run_in_place: list[str | Path] = [loader, "--library-path", tree / LIBRARIES]
    process.run([*run_in_place, "--argv0", "depmod", tree / "usr/bin/kmod", "-b", tree / "usr", release], log)
    order = modules.load_order(modules.parse_dependencies((folder / "modules.dep").read_text()), MODULES)
    for index, path in enumerate(order):
        modules.unpack(folder / path, root / "modules" / f"{index:02}-{Path(modules.bare(path)).name}.ko")
    listing = process.output([*run_in_place, "--list", tree / AGENT])
    agent = process.output([*run_in_place, tree / AGENT, "--version"]).removeprefix("QEMU Guest Agent ").strip()
    shutil.copy(tree / AGENT, root / AGENT)
    shutil.copy(loader, root / "lib64" / loader.name)
    for library in libraries(listing):
        target = root / LIBRARIES / Path(library).name
        target.parent.mkdir(parents=True, exist_ok=True)
        shutil.copy(library, target)
    for entry in root.rglob("*"):
        if not entry.is_symlink():
            executable = entry.is_dir() or entry.stat().st_mode & 0o111
            entry.chmod(0o755 if executable else 0o644)
        os.lchown(entry, 0, 0)
    command = 'cd "$1" && find . | sort | cpio --quiet --create --format=newc --reproducible > "$2"'
    process.run(["sh", "-c", command, "sh", root, work / "initrd"], log)
    (work / "packages.json").write_text(json.dumps({"guest": {"kernel": release, "qemu-guest-agent": agent}}))
    shutil.rmtree(tree)
    shutil.rmtree(root)
