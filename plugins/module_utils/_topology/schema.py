# Copyright: the topovirt.kvm authors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Whether data from outside (a file, a variable, an older release) are a topology that this release understands."""

from __future__ import annotations

from typing import Any, List, cast

from ansible_collections.topovirt.kvm.plugins.module_utils._errors import TopovirtError
from ansible_collections.topovirt.kvm.plugins.module_utils._topology.model import SCHEMA, PciFunction, Topology


def as_topology(value: Any, name: str) -> Topology:
    """The value, when it is a topology.

    :param name: what the user calls the value.
    :raises TopovirtError: when it is not, with every reason.
    """
    hint = "Give what topovirt.kvm.topology_info returns as topology."
    if not isinstance(value, dict):
        raise TopovirtError(f"{name} is a {type(value).__name__}, not a topology.", hint)
    if value.get("schema") != SCHEMA:
        raise TopovirtError(
            f"{name} has schema {value.get('schema')!r}; this release of topovirt.kvm reads schema {SCHEMA}.", hint
        )
    errors: List[str] = [f"{key} is missing" for key in Topology.__annotations__ if key not in value]
    functions = value.get("pci", [])
    if not isinstance(functions, list) or not all(isinstance(function, dict) for function in functions):
        errors.append("pci is not a list of functions")
    else:
        for function in functions:
            wanted = PciFunction.__required_keys__
            if function.get("kind") == "endpoint":
                wanted |= PciFunction.__optional_keys__
            lacking = sorted(wanted.difference(function))
            if lacking:
                errors.append(f"PCI function {function.get('bdf', '?')} lacks {', '.join(lacking)}")
    if errors:
        raise TopovirtError(f"{name} is no topology: {'; '.join(errors)}.", hint)
    return cast(Topology, value)
