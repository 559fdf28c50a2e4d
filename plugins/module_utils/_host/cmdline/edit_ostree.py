# Copyright: the topovirt.kvm authors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Image-based hosts: ``rpm-ostree`` changes the next deployment's arguments; with bootc they belong into the image."""

from __future__ import annotations

import json
from pathlib import Path
from typing import List

from ansible_collections.topovirt.kvm.plugins.module_utils._host.cmdline.arguments import split
from ansible_collections.topovirt.kvm.plugins.module_utils._host.cmdline.edit import Edit, Editor, Entries, Words

_BOOTED = "run/ostree-booted"
_TOOL = "usr/bin/rpm-ostree"
_ENTRY = "next deployment"


class Ostree(Editor):
    name = "ostree"

    @staticmethod
    def found(root: Path) -> bool:
        return (root / _BOOTED).exists() and (root / _TOOL).exists()

    def entries(self) -> Entries:
        return {_ENTRY: split(self.command(["rpm-ostree", "kargs"]))}

    def has_tool(self, edit: Edit) -> bool:
        return True

    def make(self, edit: Edit, gone: Words) -> None:
        options = [f"--delete-if-present={word}" for word in gone]
        options += [f"--append-if-missing={word}" for word in edit.present]
        self.command(["rpm-ostree", "kargs", *options])


class Bootc(Editor):
    """Refused, and told how: what is changed in the running host is not in the next image."""

    name = "bootc"

    @staticmethod
    def found(root: Path) -> bool:
        return (root / _BOOTED).exists() and not (root / _TOOL).exists()

    def entries(self) -> Entries:
        return {}

    def obstacles(self, edit: Edit) -> List[str]:
        lines = json.dumps(list(edit.present))  # an array of strings of TOML
        text = (
            f"this host boots an image (bootc): put a file /usr/lib/bootc/kargs.d/50-topovirt.toml with kargs = {lines}"
        )
        if edit.absent:
            text += f" into the image, and take {' '.join(edit.absent)} out of its other files there"
        return [f"{text}, build it, and switch or upgrade to it"]
