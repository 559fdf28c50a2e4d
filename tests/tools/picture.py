# Copyright: the topovirt.kvm authors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""The pictures in the docs, from recorded trees: an HGX H200 with two tenants as planned, a guest of four GPUs beside
its part of that host, and an empty DGX-2.

``python -m tests.tools.picture`` writes them (docs/host.svg, docs/guest.svg, docs/dgx-2.svg); a test holds the
committed ones against it. With a file that ends in .html it writes the whole report page of the two tenants there.
"""

from __future__ import annotations

import sys
import tempfile
from collections.abc import Callable
from pathlib import Path

from ansible_collections.topovirt.kvm.plugins.filter.topology_svg import topology_svg
from ansible_collections.topovirt.kvm.plugins.module_utils._libvirt.domains import Allocation, parse_domain
from ansible_collections.topovirt.kvm.plugins.module_utils._topology.model import Topology
from ansible_collections.topovirt.kvm.plugins.module_utils._topology.reader import read_topology
from ansible_collections.topovirt.kvm.plugins.plugin_utils._placement.plan import make_plan
from ansible_collections.topovirt.kvm.plugins.plugin_utils._report.design import design
from ansible_collections.topovirt.kvm.plugins.plugin_utils._report.html import report

from tests.tools import workspace
from tests.twin import description, recorded

TENANTS = ("tenant-a", "tenant-b")


def two_tenants(scale: str) -> tuple[Topology, list[Allocation]]:
    """An HGX H200 and two running VMs with four GPUs each, as planned.

    :param scale: ``real`` or ``boot``.
    """
    with tempfile.TemporaryDirectory() as folder:
        recorded.record(description.load("hgx-h200"), Path(folder), scale, "vfio")
        topology = read_topology(Path(folder))
    boot = {"kernel": "/srv/kernel", "initrd": "/srv/initrd", "cmdline": ""}
    requests = [{"name": name, "gpus": 4, "boot": boot} for name in TENANTS]
    plan = make_plan(requests, topology, [], "shared_nvswitch", "hgx-h200", state="unconverted")
    domains = [parse_domain(vm["domain_xml"]) for vm in plan["vms"]]
    for domain in domains:
        domain["state"] = "running"
    for function in topology["pci"]:
        if function["role"] == "nvswitch":
            function["driver"] = "nvidia"  # under shared_nvswitch the host keeps and drives them
    return topology, domains


def dgx_2() -> str:
    with tempfile.TemporaryDirectory() as folder:
        recorded.record(description.load("dgx-2"), Path(folder), "real")
        return topology_svg(read_topology(Path(folder)))


def two_tenants_of_hgx_h200() -> str:
    topology, domains = two_tenants("real")
    return topology_svg(topology, domains)


def guest_of_hgx_h200() -> str:
    topology, _domains = two_tenants("real")
    return design(topology, [{"name": TENANTS[0], "gpus": 4}], "shared_nvswitch")["files"][f"{TENANTS[0]}.svg"]


PICTURES: dict[str, Callable[[], str]] = {
    "docs/host.svg": two_tenants_of_hgx_h200,
    "docs/guest.svg": guest_of_hgx_h200,
    "docs/dgx-2.svg": dgx_2,
}


def main() -> int:
    if len(sys.argv) > 1:
        Path(sys.argv[1]).write_text(report(*two_tenants("boot"), [], "hgx-h200"), encoding="utf-8")
        return 0
    for path, draw in PICTURES.items():
        (workspace.ROOT / path).write_text(draw(), encoding="utf-8")
    return 0


if __name__ == "__main__":
    sys.exit(main())
