# Copyright: the topovirt.kvm authors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""All journals of a host: shown, verified, restored."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from ansible_collections.topovirt.kvm.plugins.module_utils._errors import TopovirtError
from ansible_collections.topovirt.kvm.plugins.module_utils._host.journals import Journals
from ansible_collections.topovirt.kvm.tests.unit.plugins.module_utils._host.fake_host import GPU0, NIC0, FakeHost

PAGES: dict[str, Any] = {"pages": {"1GiB": {"0": 3}}}
BINDING: dict[str, Any] = {"devices": [GPU0, NIC0], "persistent": False}
UNIT = "etc/systemd/system/topovirt-hugepages.service"


@pytest.fixture
def host(tmp_path: Path) -> FakeHost:
    return FakeHost(tmp_path)


def journals(host: FakeHost) -> Journals:
    return Journals(host.root, host.face, host.runner)


def found(host: FakeHost) -> dict[str, str]:
    return {thing["what"]: thing["found"] for thing in journals(host).verify()["things"]}


def test_a_host_that_nobody_changed_has_none(host: FakeHost) -> None:
    shown = journals(host).show()
    assert shown == {"state": "none", "id": "", "committed": {}, "touched": [], "faces": []}
    assert journals(host).verify() == {"damaged": [], "things": []}
    assert not journals(host).restore(check=False).changed


def test_modules_of_one_step_are_shown_beside_a_conversion(host: FakeHost) -> None:
    host.face("hugepages", **PAGES).present(check=False)
    shown = journals(host).show()
    assert shown["state"] == "none"
    assert [(face["name"], face["state"]) for face in shown["faces"]] == [("hugepages", "applied")]
    assert {thing["what"] for thing in shown["faces"][0]["touched"]} >= {UNIT}
    assert all(thing["done"] and not thing["undone"] for thing in shown["faces"][0]["touched"])


def test_everything_touched_is_compared_with_what_is_there(host: FakeHost) -> None:
    host.face("hugepages", **PAGES).present(check=False)
    host.face("pci_binding", **BINDING).present(check=False)
    assert set(found(host).values()) == {"as written"}
    host.write(UNIT, "other\n")
    (host.root / "etc/systemd/system/dev-hugepages1G.mount").unlink()
    host.pages(0, 0)
    (host.root / "sys/bus/pci/devices" / NIC0 / "driver").unlink()
    states = found(host)
    assert states[UNIT] == "changed by somebody"
    assert states["etc/systemd/system/dev-hugepages1G.mount"] == "as before"
    assert states["sys/devices/system/node/node0/hugepages/hugepages-1048576kB/nr_hugepages"] == "as before"
    assert (states[GPU0], states[NIC0]) == ("as written", "changed by somebody")


def test_a_conversion_is_compared_too(host: FakeHost) -> None:
    host.convert()
    states = found(host)
    assert states[GPU0] == states[UNIT] == states["libvirtd.socket"] == "as written"
    assert not {"changed by somebody", "gone"} & set(states.values())
    host.units["libvirtd.socket"]["active"] = False
    host.write(UNIT, "other\n")
    states = found(host)
    assert states[UNIT] == states["libvirtd.socket"] == "changed by somebody"


@pytest.mark.parametrize("damage", ["changed", "gone"])
def test_originals_that_are_damaged_are_named(host: FakeHost, damage: str) -> None:
    host.convert()
    host_state = journals(host).verify()
    assert host_state["damaged"] == []
    saved = sorted((host.root / "var/lib/topovirt/saved").iterdir())[0]
    if damage == "gone":
        saved.unlink()
    else:
        saved.write_bytes(b"?")
    damaged = journals(host).verify()["damaged"]
    assert len(damaged) == 1
    assert damaged[0].startswith(f"host_state: Saved original {saved.name}")


def test_a_journal_that_cannot_be_read_is_one_error(host: FakeHost) -> None:
    host.face("hugepages", **PAGES).present(check=False)
    path = host.root / "var/lib/topovirt/faces/hugepages/journal/records.jsonl"
    lines = path.read_bytes().splitlines(keepends=True)
    path.write_bytes(lines[0] + b"garbage\n" + b"".join(lines[2:]))
    with pytest.raises(TopovirtError, match=r"Line 2 of the journal .*faces/hugepages.* is damaged"):
        journals(host).show()


def test_all_modules_of_one_step_are_restored(host: FakeHost) -> None:
    before = host.snapshot()
    host.face("hugepages", **PAGES).present(check=False)
    host.face("pci_binding", **BINDING).present(check=False)
    changed = host.snapshot()
    predicted = journals(host).restore(check=True)
    assert host.snapshot() == changed
    done = journals(host).restore(check=False)
    assert [c.what for c in done.plan] == [c.what for c in predicted.plan]
    assert (done.changed, done.kept) == (True, [])
    assert host.snapshot() == before
    assert host.page_counts() == [0, 0]


def test_a_conversion_that_runs_needs_its_own_way_back(host: FakeHost) -> None:
    host.convert()
    before = host.snapshot()
    with pytest.raises(TopovirtError, match=r"runs the boot entry of its conversion .* convert-to-bare-metal"):
        journals(host).restore(check=False)
    assert host.snapshot() == before


def test_a_conversion_that_does_not_run_yet_is_taken_back(host: FakeHost) -> None:
    before = host.snapshot()
    host.convert(until="apply")
    changed = host.snapshot()
    planned = {(change.kind, change.what) for change in journals(host).restore(check=True).plan}
    assert ("file", UNIT) in planned
    assert ("device", GPU0) not in planned  # the boot would have bound it
    assert host.snapshot() == changed
    assert journals(host).restore(check=False).changed
    assert host.snapshot() == before
