# Copyright: the topovirt.kvm authors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Which kind of boot configuration a host has."""

from __future__ import annotations

from pathlib import Path
from typing import Dict, Type

from ansible_collections.topovirt.kvm.plugins.module_utils._errors import TopovirtError
from ansible_collections.topovirt.kvm.plugins.module_utils._host.cmdline.edit import Editor
from ansible_collections.topovirt.kvm.plugins.module_utils._host.cmdline.edit_bls import Bls
from ansible_collections.topovirt.kvm.plugins.module_utils._host.cmdline.edit_grub_defaults import GrubDefaults
from ansible_collections.topovirt.kvm.plugins.module_utils._host.cmdline.edit_ostree import Bootc, Ostree
from ansible_collections.topovirt.kvm.plugins.module_utils._host.cmdline.edit_systemd_boot import SystemdBoot
from ansible_collections.topovirt.kvm.plugins.module_utils._host.places import Run

# In the order of asking: an image-based host has entry files, too, which are not its own.
EDITORS: Dict[str, Type[Editor]] = {kind.name: kind for kind in (Ostree, Bootc, Bls, GrubDefaults, SystemdBoot)}


def editor_of(root: Path, run: Run, name: str = "auto") -> Editor:
    """The host's boot configuration.

    :raises TopovirtError: when it is none of those that are known, or not the one that was asked for.
    """
    if name not in (*EDITORS, "auto"):
        raise TopovirtError(f"Backend {name!r} is none of auto, {', '.join(EDITORS)}.", "Nothing was changed.")
    there = [found for found, kind in EDITORS.items() if kind.found(root)]
    if name == "auto" and there:
        return EDITORS[there[0]](root, run)
    if name in there:
        return EDITORS[name](root, run)
    wanted = "a boot configuration that this version can change" if name == "auto" else f"a boot configuration {name}"
    raise TopovirtError(
        f"The host does not have {wanted}; found: {', '.join(there) or 'none'}.",
        f"Known are {', '.join(EDITORS)}. Nothing was changed.",
    )
