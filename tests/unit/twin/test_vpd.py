# Copyright: the topovirt.kvm authors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Vital product data: bytes worked out by hand from the specification, and what the reader makes of them."""

from __future__ import annotations

import dataclasses
from pathlib import Path

from ansible_collections.topovirt.kvm.plugins.module_utils._topology.reader import read_topology

from tests.twin import vpd
from tests.twin.description import Endpoint, HostBridge, Slot, Vpd, load
from tests.twin.recorded import record


def test_bytes() -> None:
    encoded = vpd.encode(Vpd("AB", {"PN": "x", "VA": "y:z"}))
    assert encoded[:-2] == b"\x82\x02\x00AB" + b"\x90\x0e\x00" + b"PN\x01x" + b"VA\x03y:z" + b"RV\x01"
    assert encoded[-1:] == b"\x78"
    assert sum(encoded[:-1]) % 256 == 0, "the checksum"


def test_the_reader_finds_a_bridge_by_the_mark_of_one_of_its_functions(tmp_path: Path) -> None:
    machine = load("hgx-h200")
    nics = [endpoint for endpoint in machine.endpoints() if endpoint.kind.name == "cx7"]

    def with_vpd(nic: Endpoint, value: str) -> Endpoint:
        kind = dataclasses.replace(nic.kind, vpd=Vpd("An adapter", {"SN": "SMDL=SW_MNG", "VA": value}))
        return dataclasses.replace(nic, kind=kind)

    bridge = (with_vpd(nics[0], "MLX:SMDL=X"), with_vpd(nics[1], "MLX:SMDL=SW_MNG"))
    changed = dataclasses.replace(
        machine, host_bridges=(HostBridge(0x20, 0, (Slot(bridge), Slot((with_vpd(nics[2], "MLX"),)))),)
    )
    record(changed, tmp_path / "tree")
    roles = {f["bdf"]: f["role"] for f in read_topology(tmp_path / "tree")["pci"] if f["vendor"] == "15b3"}
    assert roles == {"0000:21:00.0": "fabric_bridge", "0000:21:00.1": "fabric_bridge", "0000:22:00.0": "nic"}
