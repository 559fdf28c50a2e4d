# Copyright: the topovirt.kvm authors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""What the modules that read a topology have in common: their parameters and how they run commands."""

from __future__ import annotations

import tempfile
from pathlib import Path
from typing import Any, Dict, List, Tuple

from ansible_collections.topovirt.kvm.plugins.module_utils._errors import TopovirtError
from ansible_collections.topovirt.kvm.plugins.module_utils._topology.capture import unpack
from ansible_collections.topovirt.kvm.plugins.module_utils._topology.model import Topology
from ansible_collections.topovirt.kvm.plugins.module_utils._topology.module_ids import Run
from ansible_collections.topovirt.kvm.plugins.module_utils._topology.reader import read_topology

ARGUMENT_SPEC: Dict[str, Any] = {
    "root": {"type": "path", "default": "/"},
    "module_ids": {"type": "dict"},
    "roles": {"type": "dict"},
}


def runner(module: Any) -> Run:
    """How the reader runs commands through an AnsibleModule."""

    def run(words: List[str]) -> Tuple[int, str, str]:
        # A command that cannot be started must not end the module, as it does by default.
        status, output, errors = module.run_command(
            words, handle_exceptions=False, environ_update={"LC_ALL": "C", "LANGUAGE": "C"}
        )
        return status, output, errors

    return run


def read_for(module: Any) -> Topology:
    """The topology that the parameters of an AnsibleModule ask for; those that it does not have count as not given.

    Commands would answer for the running machine, so below another root none is run. A root that is a file is an
    archive of ``topology_capture`` and is unpacked for the while.

    :raises TopovirtError: the root is neither; else see :func:`read_topology`.
    """
    root = Path(module.params["root"])
    given = module.params.get("module_ids"), module.params.get("roles")
    if root.is_dir():
        return read_topology(root, runner(module) if root == Path("/") else None, *given)
    try:
        archive = root.read_bytes()
    except OSError as error:
        raise TopovirtError(
            f"root: {root} is no directory on the host and no file that can be read ({error.strerror}).",
            "Give the directory that holds sys and proc, or an archive that topology_capture made.",
        ) from None
    with tempfile.TemporaryDirectory(dir=module.tmpdir) as directory:
        unpack(archive, Path(directory))
        return read_topology(Path(directory), None, *given)
