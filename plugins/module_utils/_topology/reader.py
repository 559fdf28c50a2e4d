# Copyright: the topovirt.kvm authors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Read the whole topology of the machine below a root directory."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Mapping, Optional, Union

from ansible_collections.topovirt.kvm.plugins.module_utils._topology.devices import NVIDIA, assign_roles
from ansible_collections.topovirt.kvm.plugins.module_utils._topology.gaps import Gaps
from ansible_collections.topovirt.kvm.plugins.module_utils._topology.host import (
    read_cores,
    read_host,
    read_iommu,
    read_nodes,
)
from ansible_collections.topovirt.kvm.plugins.module_utils._topology.model import SCHEMA, Topology
from ansible_collections.topovirt.kvm.plugins.module_utils._topology.module_ids import (
    NO_MODULE_ID,
    Run,
    assign_module_ids,
)
from ansible_collections.topovirt.kvm.plugins.module_utils._topology.pci import read_functions
from ansible_collections.topovirt.kvm.plugins.module_utils._topology.software import read_software
from ansible_collections.topovirt.kvm.plugins.module_utils._topology.sysfs import Tree
from ansible_collections.topovirt.kvm.plugins.module_utils._topology.usage import host_usage
from ansible_collections.topovirt.kvm.plugins.module_utils._topology.vms import read_vms

if TYPE_CHECKING:
    from pathlib import Path


def read_topology(
    root: Union[str, Path],
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
    gaps = Gaps()
    nodes = read_nodes(tree, gaps)
    functions, paths = read_functions(tree, nodes, gaps)
    assign_roles(tree, functions, paths, gaps, roles)
    assign_module_ids(tree, functions, run, module_ids)
    reasons = host_usage(tree, run, functions)
    owners = read_vms(tree, gaps)
    for function in functions:
        function["in_use"] = reasons.get(function["bdf"], [])
        if function["bdf"] in owners:
            function["vm"] = owners[function["bdf"]]
        if function["role"] == "gpu" and function["vendor"] == NVIDIA and function["module_id"] is None:
            gaps.add("module_id", NO_MODULE_ID, function["bdf"])
    host = read_host(tree, gaps)
    return Topology(
        schema=SCHEMA,
        host=host,
        iommu=read_iommu(tree, functions),
        software=read_software(tree, root, run, host["kernel"], gaps),
        numa_nodes=nodes,
        cores=read_cores(tree, nodes, gaps),
        pci=functions,
        unknown=gaps.listed(),
    )
