# Copyright: the topovirt.kvm authors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""ACS and read requests set by the module that does nothing else, on a recorded server."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest
from ansible_collections.topovirt.kvm.plugins.module_utils._errors import TopovirtError
from ansible_collections.topovirt.kvm.plugins.module_utils._host.faces import single
from ansible_collections.topovirt.kvm.plugins.module_utils._host.single import Single
from ansible_collections.topovirt.kvm.tests.unit.plugins.module_utils._host.test_pcie_acs import (
    PORTS,
    Bench,
    Make,
    make,
    trees,
)

__all__ = ["make", "trees"]  # fixtures

ACS = {"bits": 0x5D, "max_read_request": 0}
SCRIPT = "var/lib/topovirt/faces/pcie_acs/pcie-acs.sh"
UNIT = "etc/systemd/system/topovirt-pcie-acs.service"
PORT = sorted(PORTS["hgx-h200"])[0]


@pytest.fixture
def h200(make: Make) -> Bench:
    bench = make("hgx-h200")
    bench.journal.remove()  # of a conversion
    return bench


def face(bench: Bench, **options: Any) -> Single:
    def run(words: list[str]) -> tuple[int, str, str]:
        if words == ["systemctl", "daemon-reload"]:
            return 0, "", ""
        raise FileNotFoundError(words[0])

    made = single("pcie_acs", options, bench.root, run)
    return replace(made, write=bench.write_attribute, write_config=bench.model.write)


def test_registers_are_set_at_once_and_at_every_boot_and_come_back(h200: Bench) -> None:
    before = h200.everything()
    predicted = face(h200, **ACS).present(check=True)
    assert h200.everything() == before
    done = face(h200, **ACS).present(check=False)
    assert [(c.kind, c.what, c.before, c.after) for c in done.plan] == [
        (c.kind, c.what, c.before, c.after) for c in predicted.plan
    ]
    assert {c.what for c in done.plan if c.kind == "register"} == {f"{port} acs_control" for port in PORTS["hgx-h200"]}
    assert done.results == {"registers": {f"{port} acs_control": 0x1D for port in sorted(PORTS["hgx-h200"])}}
    assert {value for _bdf, _offset, value in h200.model.written} == {0x5D}
    assert "ConditionKernelCommandLine" not in (h200.root / UNIT).read_text()
    assert f"ExecStart=/bin/sh /{SCRIPT}" in (h200.root / UNIT).read_text()
    assert (h200.root / SCRIPT).read_text().count("\nwant 0000:") == len(PORTS["hgx-h200"])
    again = face(h200, **ACS).present(check=False)
    assert (again.changed, again.reboot_required) == (False, False)
    back = face(h200).restored(check=False)
    assert back.kept == []
    assert h200.everything() == before


def test_with_the_next_boot_only_on_request(h200: Bench) -> None:
    before = h200.everything()
    for changed in (True, False):
        done = face(h200, **ACS, at_once=False).present(check=False)
        assert (done.changed, done.reboot_required) == (changed, True)
    assert h200.model.written == []
    face(h200).restored(check=False)
    assert h200.everything() == before


def test_a_register_that_somebody_set_meanwhile_stays(h200: Bench) -> None:
    face(h200, **ACS).present(check=False)
    config = next(path for path in (h200.root / "sys/bus/pci/devices").glob(PORT)) / "config"
    offset = h200.model.written[0][1]
    data = bytearray(config.read_bytes())
    data[offset] = 0x7F
    config.write_bytes(data)
    kept = face(h200).restored(check=True).kept
    assert kept == [f"register {PORT} acs_control: changed by somebody meanwhile, so that stays"]
    assert face(h200).restored(check=False).kept == kept
    assert h200.word(PORT, offset) == 0x7F
    assert h200.word(sorted(PORTS["hgx-h200"])[1], offset) == 0x1D
    assert not (h200.root / "run/topovirt-registers").exists()
    assert not (h200.root / "var/lib/topovirt").exists()


def test_vms_that_run_are_not_disturbed(h200: Bench) -> None:
    status = h200.root / "run/libvirt/qemu/train-0.xml"
    status.parent.mkdir(parents=True)
    status.write_text("<domstatus/>")
    with pytest.raises(TopovirtError, match="VM train-0 is running: stop it first"):
        face(h200, **ACS).present(check=True)
    status.unlink()
    face(h200, **ACS).present(check=False)
    status.write_text("<domstatus/>")
    assert not face(h200, **ACS).present(check=False).changed
    with pytest.raises(TopovirtError, match="VM train-0 is running"):
        face(h200).restored(check=False)


@pytest.mark.parametrize(
    ("options", "complaint"),
    [
        ({"bits": 0}, "bits 0x00 must contain 0x1d"),
        ({"bits": 0xFF}, "nothing beyond 0x5f"),
        ({"devices": ["0000:fe:00.0"]}, "devices: there is no PCI function 0000:fe:00.0"),
        ({"devices": [PORT]}, f"devices: {PORT} is a downstream port, not an endpoint"),
    ],
)
def test_bad_input_is_refused_before_any_change(h200: Bench, options: dict[str, Any], complaint: str) -> None:
    before = h200.everything()
    with pytest.raises(TopovirtError) as refusal:
        face(h200, **options).present(check=False)
    assert complaint in str(refusal.value)
    assert h200.everything() == before


def test_a_host_without_such_paths_is_told(make: Make) -> None:
    bench = make("pcie-l40s")
    bench.journal.remove()
    with pytest.raises(TopovirtError, match="no GPU and NIC of this host have a path below one host bridge"):
        face(bench, **ACS).present(check=True)
