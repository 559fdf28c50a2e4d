# Copyright: the topovirt.kvm authors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""The reader and hwloc's lstopo say the same: of every machine here, and of what other projects recorded."""

from __future__ import annotations

import tarfile
import xml.etree.ElementTree as ET
from pathlib import Path

import pytest
from ansible_collections.topovirt.kvm.plugins.module_utils._topology.model import Topology
from ansible_collections.topovirt.kvm.plugins.module_utils._topology.reader import read_topology

from tests.bench import lstopo
from tests.bench.against_lstopo import CHECKS
from tests.twin import description, recorded

CAPTURES = Path(__file__).resolve().parents[4] / "shared" / "captures"
Both = tuple[Topology, ET.Element]


@pytest.fixture(
    scope="module",
    params=[(name, scale) for name in description.names() for scale in ("boot", "real")],
    ids="-".join,
)
def machine(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Both:
    name, scale = request.param
    tree = tmp_path_factory.mktemp("machine") / "tree"
    recorded.record(description.load(name), tree, scale)
    lstopo.complete(tree)
    return read_topology(tree), lstopo.objects(tree)


@pytest.mark.parametrize("check", CHECKS)
def test_every_machine(machine: Both, check: str) -> None:
    ours, theirs = CHECKS[check](*machine)
    assert ours == theirs


NO_ONLINE_FILE = "the recording lacks the list of CPUs that are online"
NO_CONFIG = "lstopo takes the tree from configuration space, which the recording lacks; ours is that of sysfs"
POWER = (
    "a POWER machine, which the collection does not serve: nodes are the GPUs' memory, caches are numbered otherwise"
)

# Archive -> folder of the tree -> checks that differ, and why; all others must agree.
RECORDED: dict[str, dict[str, dict[str, str]]] = {
    "hwloc/linux/32intel64-2p8co2t+8ve.tar.bz2": {"32intel64-2p8co2t+8ve": {}},
    "hwloc/linux/40intel64-2g2n4c+pcilocality.tar.bz2": {
        "40intel64-2g2n4c+pci": {
            "locality": "lstopo asks the host bridge, ours the one adapter that knows its own node"
        }
    },
    "hwloc/linux/48amd64-4pa2n6c-sparse.tar.bz2": {"48amd64-4d2n6c-sparse": {}},
    "hwloc/linux/fakepcilocalities.tar.bz2": {"fakepcilocalities": {}},
    "hwloc/linux/memorysidecaches.tar.bz2": {"memorysidecaches": {}},
    "hwloc/linux/offline-cpu0-node0.tar.bz2": {
        "offline-cpu0-node0": {"nodes": "the node's list holds CPUs that are not online; lstopo leaves those out"}
    },
    "hwloc/linux/nvidiagpunumanodes.tar.bz2": {
        "nvidiagpunumanodes": dict.fromkeys(("nodes", "distances", "caches", "bridges", "locality"), POWER)
    },
    "sysfs-other/ghw/linux-amd64-415ee03b8c4d1c4f07ae2e9d8b3d3d6d.tar.gz": {
        ".": {"cores": NO_ONLINE_FILE, "packages": NO_ONLINE_FILE, "caches": NO_ONLINE_FILE, "bridges": NO_CONFIG}
    },
    "sysfs-other/ghw/linux-amd64-accel.tar.gz": {
        ".": {"cores": NO_ONLINE_FILE, "packages": NO_ONLINE_FILE, "caches": NO_ONLINE_FILE, "bridges": NO_CONFIG}
    },
    "sysfs-other/ghw/linux-amd64-offlineCPUs.tar.gz": {".": {}},
    "sysfs-other/nri-plugins/cpuallocator-sysfs.tar.bz2": {"sysfs/2-socket-4-node-40-core": {}},
    "sysfs-other/nri-plugins/topology-aware-sysfs.tar.bz2": {
        "sysfs/4-socket-server-nosnc": {},
        "sysfs/desktop": {},
        "sysfs/server": {"nodes": "lstopo gives nodes without CPUs those of what they are nearest to"},
    },
}


@pytest.mark.parametrize("archive", RECORDED)
def test_what_others_recorded(archive: str, tmp_path: Path) -> None:
    if not (CAPTURES / archive).is_file():
        pytest.skip(f"the captures of other projects are not on this machine: {CAPTURES / archive}")
    with tarfile.open(CAPTURES / archive) as tar:
        tar.extraction_filter = getattr(tarfile, "tar_filter", None)  # older Pythons have none
        tar.extractall(tmp_path)
    for folder, reasons in RECORDED[archive].items():
        ours, theirs = read_topology(tmp_path / folder), lstopo.objects(tmp_path / folder)
        different = []
        for name, check in CHECKS.items():
            one, other = check(ours, theirs)
            different += [name] if one != other else []
        assert different == list(reasons), folder
