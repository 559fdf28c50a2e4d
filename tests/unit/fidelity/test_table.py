# Copyright: the topovirt.kvm authors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""The table of fidelity, on machines whose figures are counted by hand."""

from __future__ import annotations

import pytest
from ansible_collections.topovirt.kvm.plugins.module_utils._topology.compare import Comparison
from ansible_collections.topovirt.kvm.plugins.module_utils._topology.model import Topology
from ansible_collections.topovirt.kvm.plugins.plugin_utils._guest.layout import Layout

from tests.fidelity import table
from tests.fidelity.oracle import HostPaths
from tests.twin import description


def of(machine: str, model: str) -> dict[int, table.Row]:
    return {row.gpus: row for row in table.rows(machine) if row.model == model}


def test_a_whole_h200_is_true_when_mirrored_and_hardly_when_flat() -> None:
    """20 devices. Of all pairs only the four NVSwitches and the four devices below the switch of their host bridge meet
    at a host bridge, 16; and the NVSwitches are functions of one slot, which stay together: 6. Of 190."""
    row = of("hgx-h200", "full_passthrough")[8]
    assert (row.devices, row.pairs, row.mirror, row.flat) == (20, 190, 190, 22)
    assert not row.problems and row.basis == "planned"


def test_what_cannot_be_placed_is_refused_with_its_reason() -> None:
    found = of("dgx-2", "full_passthrough")
    assert found[16].mirror == found[16].pairs == 36 * 35 // 2
    assert "share IOMMU group" in found[1].refused
    assert "refused on dgx-2, full_passthrough: 1 GPUs" in table.text(list(found.values()))


def test_the_description_objects_to_a_collection_that_is_wrong(monkeypatch: pytest.MonkeyPatch) -> None:
    """Were the plan taken for flat, both computations would have to notice."""
    plan, judged = table._plan, table._judged

    def flat(_layout: Layout, topology: Topology) -> Comparison:
        return judged(plan("hgx-h200", "full_passthrough", 8, topology, "flat")["layout"], topology)

    monkeypatch.setattr(table, "_judged", flat)
    row = of("hgx-h200", "full_passthrough")[8]
    assert [problem.split(":")[0] for problem in row.problems] == ["the planned guest is not true", "mirror"]


def test_path_classes_of_the_description() -> None:
    """A DGX-2 as its comment describes it: leaves below a switch below a root port, two host bridges on a socket."""
    paths = HostPaths(description.load("dgx-2"))
    names = {getattr(function.device, "name", None): bdf for bdf, function in paths.by_bdf.items()}
    found = {
        other: paths.path_class(names["gpu0"], names[other])
        for other in ("gpu1", "nic0", "gpu2", "gpu4", "nvsw0", "gpu8", "eth0")
    }
    assert found == {
        "gpu1": "PIX",
        "nic0": "PIX",
        "gpu2": "PXB",
        "gpu4": "NODE",
        "nvsw0": "NODE",
        "gpu8": "SYS",
        "eth0": "SYS",
    }
    assert paths.path_class(names["eth0"], names["eth1"]) == "PIX"
