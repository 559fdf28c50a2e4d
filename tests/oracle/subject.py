# Copyright: the topovirt.kvm authors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""The solver under test behind one function: all that the oracle's tests know of its interface."""

from __future__ import annotations

from collections.abc import Callable, Sequence

from ansible_collections.topovirt.kvm.plugins.plugin_utils._placement.fabric import read_fabric
from ansible_collections.topovirt.kvm.plugins.plugin_utils._placement.inventory import take_stock
from ansible_collections.topovirt.kvm.plugins.plugin_utils._placement.policy import Policy
from ansible_collections.topovirt.kvm.plugins.plugin_utils._placement.request import parse_requests
from ansible_collections.topovirt.kvm.plugins.plugin_utils._placement.solve import Solver

from tests.oracle.hosts import Host
from tests.oracle.truth import Wanted

Answer = list[frozenset[str]] | None  # devices of each VM in the order of the batch; None: refused
Place = Callable[[Sequence[Wanted]], Answer]


def ours(host: Host) -> Place:
    """The product's placement on a host."""
    inventory = take_stock(host.topology, host.domains, fabric_model=host.model)
    fabric = read_fabric(host.topology, host.model)

    def place(batch: Sequence[Wanted]) -> Answer:
        requests = [
            {
                "name": f"vm{index}",
                "gpus": wanted.gpus,
                "nics": wanted.nics,
                "nvme": wanted.nvme,
                "vcpus": wanted.gpus * host.cores_per_gpu * host.threads_per_core,
                "memory": f"{wanted.gpus * host.pages_per_gpu}GiB",
                "boot": {"kernel": "/vmlinuz"},
            }
            for index, wanted in enumerate(batch)
        ]
        placed = Solver(inventory, fabric, Policy()).solve(parse_requests(requests))
        return None if placed is None else [frozenset(item.devices) for item in placed]

    return place
