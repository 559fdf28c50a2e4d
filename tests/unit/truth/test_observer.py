# Copyright: the topovirt.kvm authors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""The part of the observer that says what is in effect."""

from __future__ import annotations

import ast
import json
import subprocess
import sys
from pathlib import Path

import pytest
from ansible_collections.topovirt.kvm.tests.unit.plugins.module_utils._host.fake_host import GPU0, FakeHost
from ansible_collections.topovirt.kvm.tests.unit.plugins.module_utils._host.fake_red_hat import OLD_ENTRY, FakeRedHat
from ansible_collections.topovirt.kvm.tests.unit.plugins.module_utils._host.test_pcie_acs import AcsHost

from tests.truth import effective_host
from tests.truth.things import Driver, Thing, Unit, observed, things
from tests.unit.truth.looking import observe

SCRIPT = Path(effective_host.__file__)

# As systemctl of systemd 257 prints it.
SHOWN = """\
Type=notify
RemainAfterExit=no
TriggeredBy=libvirtd.socket libvirtd-ro.socket
Id=libvirtd.service
ActiveState=active

Id=libvirtd.socket
ActiveState=active

Type=oneshot
RemainAfterExit=yes
Id=topovirt-hugepages.service
ActiveState=active

Type=oneshot
RemainAfterExit=no
Id=fstrim.service
ActiveState=inactive

Id=session-3.scope
ActiveState=active

Type=simple
Id=getty@tty1.service
ActiveState=active

Type=dbus
RemainAfterExit=no
Id=tuned.service
ActiveState=failed
"""


def test_it_runs_alone_on_the_oldest_python_of_hosts(tmp_path: Path) -> None:
    """Fed to an interpreter without the project, as through SSH."""
    tree = ast.parse(SCRIPT.read_text(encoding="utf-8"), feature_version=(3, 9))
    imported = {alias.name for node in ast.walk(tree) if isinstance(node, ast.Import) for alias in node.names}
    imported |= {str(node.module) for node in ast.walk(tree) if isinstance(node, ast.ImportFrom)}
    assert {name.partition(".")[0] for name in imported} <= sys.stdlib_module_names
    host = FakeHost(tmp_path)
    command = [sys.executable, "-I", "-", str(host.root)]
    done = subprocess.run(command, input=SCRIPT.read_bytes(), capture_output=True, check=True, env={"PATH": ""})
    found = json.loads(done.stdout)
    assert found["boot"]["default"] == "0" and found["active"] == {} and found["tuned"] == ""
    assert found["registers"][f"{GPU0} device_control"] == 0x2000


def test_units_whose_activity_lasts() -> None:
    assert effective_host.active(lambda *words: SHOWN) == {
        "libvirtd.service": None,
        "libvirtd.socket": True,
        "fstrim.service": None,
        "topovirt-hugepages.service": True,
        "tuned.service": False,
    }


def test_what_grub_would_boot_by_its_menu(tmp_path: Path) -> None:
    host = FakeHost(tmp_path)
    before = effective_host.boot(str(host.root))
    assert set(before["entries"]) == {"gnulinux-simple-aa-bb", "gnulinux-recovery-aa-bb"}
    host.convert(until="apply")
    tried = effective_host.boot(str(host.root))
    (ours,) = set(tried["entries"]) - set(before["entries"])
    assert tried["default"] == "0" and tried["variables"] == {"next_entry": ours}
    host.convert()
    assert effective_host.boot(str(host.root))["default"] == ours
    assert "vfio" not in tried["entries"][ours] and "topovirt=" in tried["entries"][ours]


def test_what_grub_would_boot_by_entry_files(tmp_path: Path) -> None:
    host = FakeRedHat(tmp_path)
    before = things(observe(host))
    assert before[Thing("default entry", "")] == OLD_ENTRY
    assert "ro" in before[Thing("boot entry", OLD_ENTRY)]
    host.convert()
    after = things(observe(host))
    assert after[Thing("default entry", "")].startswith("topovirt-")
    assert after[Thing("next entry", "")] == ""


def test_registers_are_read_by_their_capabilities(tmp_path: Path) -> None:
    host = AcsHost(tmp_path)
    found = effective_host.registers(str(host.root))
    assert {what.split()[0] for what in found if what.endswith("acs_control")} == set(host.ports)
    assert set(host.acs().values()) == {0} == {found[f"{bdf} acs_control"] for bdf in host.ports}


@pytest.mark.parametrize(
    "space", [b"", b"\xff" * 256, b"\xff" * 4096, bytes(64), b"\0" * 6 + b"\x10" + b"\0" * 45 + b"\x40" + b"\0" * 12]
)
def test_a_function_that_does_not_answer_has_no_registers(space: bytes) -> None:
    assert effective_host.register_offsets(space) == {}


def test_virtual_functions_are_in_the_order_of_their_numbers(tmp_path: Path) -> None:
    device = tmp_path / "sys/bus/pci/devices/0000:27:00.0"
    device.mkdir(parents=True)
    (device / "sriov_numvfs").write_text("11\n")
    (device / "sriov_drivers_autoprobe").write_text("0\n")
    for number in range(11):
        function = tmp_path / f"sys/bus/pci/devices/0000:28:00.{number}"
        function.mkdir()
        (function / "driver_override").write_text("(null)\n")
        (device / f"virtfn{number}").symlink_to(f"../{function.name}")
    (tmp_path / "sys/bus/pci/devices/0000:28:00.10/driver").symlink_to("../../../bus/pci/drivers/igbvf")
    found = effective_host.virtual_functions(str(tmp_path))
    assert list(found) == ["0000:27:00.0"]
    assert (found["0000:27:00.0"]["number"], found["0000:27:00.0"]["autoprobe"]) == (11, False)
    assert found["0000:27:00.0"]["functions"] == [
        *[[f"0000:28:00.{number}", None, "(null)"] for number in range(10)],
        ["0000:28:00.10", "igbvf", "(null)"],
    ]


def test_a_unit_that_a_socket_starts_may_come_and_go(tmp_path: Path) -> None:
    host = FakeHost(tmp_path)
    looks = [
        {**observe(host), "units": ["libvirtd.service enabled enabled"], "active": active}
        for active in ({"libvirtd.service": None}, {}, {"libvirtd.service": True})
    ]
    assert not observed(looks[0], looks[1]).changes
    assert list(observed(looks[0], looks[2]).changes) == [Thing("unit", "libvirtd.service")]


def test_packages_of_both_families(tmp_path: Path) -> None:
    host = FakeHost(tmp_path)
    observation = observe(host)
    observation["packages"] = ["ii  tuned:amd64 2.23", "rc  old:amd64 1.0", "grub2-efi-x64-1:2.06-80.el9.x86_64"]
    found = things(observation)
    assert {thing.name: found[thing] for thing in found if thing.kind == "package"} == {
        "tuned": "ii 2.23",
        "old": "rc 1.0",
        "grub2-efi-x64": "1:2.06-80.el9.x86_64",
    }


def test_what_differs_between_two_looks(tmp_path: Path) -> None:
    host = FakeHost(tmp_path)
    host.install(*host.wanted["packages"])
    before = observe(host)
    host.units[host.daemon]["active"] = False
    (host.root / "sys/bus/pci/devices" / GPU0 / "driver_override").write_text("vfio-pci\n")
    assert observed(before, observe(host)).changes == {
        Thing("unit", host.daemon): (Unit("enabled", True), Unit("enabled", False)),
        Thing("driver", GPU0): (Driver("nvidia", "(null)"), Driver("nvidia", "vfio-pci")),
    }
