# Copyright: the topovirt.kvm authors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Read the whole topology of the machine below a root directory."""

from __future__ import annotations

from pathlib import Path
from typing import Any, Mapping, Optional

from ansible_collections.topovirt.kvm.plugins.module_utils._topology.devices import assign_roles
from ansible_collections.topovirt.kvm.plugins.module_utils._topology.host import (
    read_cores,
    read_host,
    read_iommu,
    read_nodes,
)
from ansible_collections.topovirt.kvm.plugins.module_utils._topology.model import SCHEMA, Topology
from ansible_collections.topovirt.kvm.plugins.module_utils._topology.module_ids import Run, assign_module_ids
from ansible_collections.topovirt.kvm.plugins.module_utils._topology.pci import read_functions
from ansible_collections.topovirt.kvm.plugins.module_utils._topology.sysfs import Tree
from ansible_collections.topovirt.kvm.plugins.module_utils._topology.usage import host_usage


def read_topology(
    root: Path,
    run: Optional[Run] = None,
    module_ids: Optional[Mapping[str, Any]] = None,
    roles: Optional[Mapping[str, str]] = None,
) -> Topology:
    """The topology of the machine whose ``/sys``, ``/proc``, ``/etc`` and ``/var`` lie below ``root``.

    :param run: starts commands on the machine that ``root`` belongs to; None for a recorded tree.
    :param module_ids: BDF -> module id, instead of what the driver or the saved file says.
    :param roles: BDF, ``vendor:device`` or class -> role or ``none``, instead of the rules.
    :raises TopovirtError: when ``module_ids`` or ``roles`` do not fit the machine.
    """
    tree = Tree(root)
    nodes = read_nodes(tree)
    functions, paths = read_functions(tree, nodes)
    assign_roles(tree, functions, paths, roles)
    assign_module_ids(tree, functions, run, module_ids)
    reasons = host_usage(root, run, functions)
    for function in functions:
        function["in_use"] = reasons.get(function["bdf"], [])
    return Topology(
        schema=SCHEMA,
        host=read_host(tree),
        iommu=read_iommu(tree, functions),
        nodes=nodes,
        cores=read_cores(tree, nodes),
        pci=functions,
    )
