# Copyright: the topovirt.kvm authors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""From the parameters of the module ``vm`` to the one call behind it."""

from __future__ import annotations

from pathlib import Path
from typing import Any, Dict, List, Mapping, Optional

from ansible_collections.topovirt.kvm.plugins.module_utils._errors import TopovirtError
from ansible_collections.topovirt.kvm.plugins.module_utils._host.lock import host_lock
from ansible_collections.topovirt.kvm.plugins.module_utils._host.places import Run
from ansible_collections.topovirt.kvm.plugins.module_utils._libvirt.basis import changes, make_basis
from ansible_collections.topovirt.kvm.plugins.module_utils._libvirt.connection import (
    load_libvirt,
    open_libvirt,
    read_domains,
)
from ansible_collections.topovirt.kvm.plugins.module_utils._libvirt.files import WantedFile
from ansible_collections.topovirt.kvm.plugins.module_utils._libvirt.lifecycle import Seams, Wanted, ensure
from ansible_collections.topovirt.kvm.plugins.module_utils._topology.reader import read_topology


def _file(name: str, given: Mapping[str, str]) -> WantedFile:
    try:
        mode = int(given["mode"], 8)
    except ValueError:
        raise TopovirtError(
            f"VM '{name}': file {given['path']} has the mode '{given['mode']}', expected octal such as '0644'."
        ) from None
    return WantedFile(given["path"], given["content"], mode)


def run_vm(
    params: Mapping[str, Any], check_mode: bool, run: Run, root: Path = Path("/"), binding: Optional[Any] = None
) -> Dict[str, Any]:
    """Do what the module's parameters ask; returns what the module returns.

    :raises TopovirtError: when the state cannot be reached.
    """
    name, basis = params["name"], params["basis"]
    libvirt = binding if binding is not None else load_libvirt()
    wanted = Wanted(
        name=name,
        state=params["state"],
        domain_xml=params["domain_xml"],
        files=[_file(name, given) for given in params["files"]],
        disks=params["disks"],
        timeout=params["timeout"],
        force=params["force"],
        wait_for_agent=params["wait_for_agent"],
    )
    with open_libvirt(binding=libvirt) as connection:

        def stale() -> List[str]:
            if basis is None:
                return []
            now = make_basis(read_topology(root, run), read_domains(connection, libvirt))
            return changes(basis, now, without=[name])

        seams = Seams(connection, libvirt, root, lambda: host_lock(root, f"VM {name} ({params['state']})"), stale)
        return ensure(wanted, seams, check_mode)
