# Copyright: the topovirt.kvm authors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""lspci decodes the same capabilities from the same configuration spaces."""

from __future__ import annotations

import re
import subprocess
from pathlib import Path
from typing import Any

import pytest
from ansible_collections.topovirt.kvm.plugins.module_utils._topology.reader import read_topology

from tests.twin import description, recorded

# lspci's names of the bits of access control, in the order of the registers.
ACS_BITS = ("SrcValid", "TransBlk", "ReqRedir", "CmpltRedir", "UpstreamFwd", "EgressCtrl", "DirectTrans")
BYTES_PER_LINE = 16


def dump(tree: Path) -> str:
    """All configuration spaces in the form that ``lspci -xxxx`` prints and ``lspci -F`` reads."""
    blocks = []
    for function in sorted((tree / "sys/bus/pci/devices").iterdir()):
        data = (function / "config").read_bytes()
        offsets = range(0, len(data), BYTES_PER_LINE)
        lines = [f"{offset:02x}: {data[offset : offset + BYTES_PER_LINE].hex(' ')}" for offset in offsets]
        blocks.append("\n".join([f"{function.name} recorded", *lines]))
    return "\n\n".join(blocks) + "\n"


def bits(text: str) -> int:
    return sum(1 << number for number, name in enumerate(ACS_BITS) if f"{name}+" in text)


def decoded(text: str) -> dict[str, dict[str, Any]]:
    """What lspci says of each function, in the reader's form."""
    result: dict[str, dict[str, Any]] = {}
    for block in text.strip().split("\n\n"):
        found: dict[str, Any] = {}
        acs = re.search(r"ACSCap:\s(.*)\n\s*ACSCtl:\s(.*)", block)
        if acs:
            found["acs"] = {"supported": bits(acs[1]), "enabled": bits(acs[2])}
        ats = re.search(r"ATSCtl:\s*Enable([+-])", block)
        if ats:
            found["ats"] = {"enabled": ats[1] == "+"}
        request = re.search(r"MaxReadReq (\d+) bytes", block)
        if request:
            found["max_read_request_bytes"] = int(request[1])
        result[block.split(maxsplit=1)[0]] = found
    return result


@pytest.mark.parametrize("machine", description.names())
def test_capabilities(machine: str, tmp_path: Path) -> None:
    tree = tmp_path / "tree"
    recorded.record(description.load(machine), tree)
    (tmp_path / "dump").write_text(dump(tree), encoding="utf-8")
    command = ["lspci", "-F", str(tmp_path / "dump"), "-D", "-vvv"]
    theirs = decoded(subprocess.run(command, capture_output=True, text=True, check=True).stdout)
    compared = ("acs", "ats", "max_read_request_bytes")
    ours = {}
    for function in read_topology(tree)["pci"]:
        assert function["capabilities"] is not None
        ours[function["bdf"]] = {key: value for key, value in function["capabilities"].items() if key in compared}
        if function["kind"] != "endpoint":  # of bridges the reader does not tell the size of read requests
            theirs[function["bdf"]].pop("max_read_request_bytes", None)
    assert ours == theirs
    assert any("acs" in found for found in theirs.values())
