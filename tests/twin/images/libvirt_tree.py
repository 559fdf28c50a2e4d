# Copyright: the topovirt.kvm authors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""libvirt and the QEMU that goes with it, as a host of the baked release has them: they judge what we define.

Extracted packages, entered by chroot: libvirt and its driver know each other and QEMU by absolute paths.
Written into ``work``: ``tree``, ``packages.json``, ``log``.
"""

from __future__ import annotations

import json
import shutil
from pathlib import Path

from tests.twin.images import mirror as debian
from tests.twin.images import process
from tests.twin.images.process import BakeError

#: The driver takes QEMU's abilities from QEMU itself, so that is there too; dash runs many translations in one go.
PACKAGES = ("libvirt-clients", "libvirt-common", "libvirt-daemon-driver-qemu", "qemu-system-x86", "ovmf", "dash")
SCHEMA = "usr/share/libvirt/schemas/domain.rng"
#: Where files that come and go appear inside the tree.
SHARED = "/mnt"
#: libvirt asks for its own users by name; no maintainer script made them in a tree that is only extracted.
ACCOUNTS = {
    "passwd": "root:x:0:0:root:/root:/bin/sh\nlibvirt-qemu:x:64055:64055::/nonexistent:/bin/false\n",
    "group": "root:x:0:\nkvm:x:994:\nlibvirt-qemu:x:64055:\n",
}


def build(work: Path, mirror: debian.Mirror) -> None:
    """Extract the packages and prove that libvirt starts.

    :raises BakeError: a step failed.
    """
    tree, log = work / "tree", work / "log"
    mirror.bootstrap(tree, "extract", PACKAGES, log)
    for name, content in ACCOUNTS.items():
        (tree / "etc" / name).write_text(content)
    (tree / SHARED[1:]).mkdir(exist_ok=True)
    share = work / "share"
    share.mkdir()
    process.chroot(tree, ["dash", "-c", f"virsh --version >{SHARED}/version"], log, share=share)
    version = (share / "version").read_text().strip()
    if not (tree / SCHEMA).is_file():
        raise BakeError(f"libvirt {version} of the archive has no {SCHEMA}; teach tests/twin/images/libvirt_tree.py.")
    shutil.rmtree(share)
    (work / "packages.json").write_text(json.dumps({"libvirt": version}))
