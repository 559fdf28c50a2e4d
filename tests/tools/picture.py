# Copyright: the topovirt.kvm authors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""The picture in the README: an HGX H200 with two tenants, as the report draws it, from the recorded tree and a plan.

``python -m tests.tools.picture [FILE]`` writes it (default docs/host.svg); a test holds the committed one against it.
With a file that ends in .html it writes the whole report page.
"""

from __future__ import annotations

import sys
import tempfile
import xml.etree.ElementTree as ET
from pathlib import Path

from ansible_collections.topovirt.kvm.plugins.module_utils._libvirt.domains import Allocation, parse_domain
from ansible_collections.topovirt.kvm.plugins.module_utils._topology.model import Topology
from ansible_collections.topovirt.kvm.plugins.module_utils._topology.reader import read_topology
from ansible_collections.topovirt.kvm.plugins.plugin_utils._placement.plan import make_plan
from ansible_collections.topovirt.kvm.plugins.plugin_utils._report.html import report
from ansible_collections.topovirt.kvm.plugins.plugin_utils._report.svg import draw_host

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


def picture() -> str:
    svg = draw_host(*two_tenants("real"))
    return ET.tostring(svg, encoding="unicode") + "\n"


def main() -> int:
    target = Path(sys.argv[1]) if len(sys.argv) > 1 else workspace.ROOT / "docs/host.svg"
    if target.suffix == ".html":
        target.write_text(report(*two_tenants("boot"), [], "hgx-h200"), encoding="utf-8")
    else:
        target.write_text(picture(), encoding="utf-8")
    return 0


if __name__ == "__main__":
    sys.exit(main())
