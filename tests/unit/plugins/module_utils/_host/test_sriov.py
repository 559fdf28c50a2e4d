# Copyright: the topovirt.kvm authors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Virtual functions for guests: made by the boot or at once, verified, refused and taken back."""

from __future__ import annotations

import os
import re
import subprocess
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import yaml
from ansible_collections.topovirt.kvm.plugins.module_utils._errors import TopovirtError
from ansible_collections.topovirt.kvm.plugins.module_utils._host.journal import Journal
from ansible_collections.topovirt.kvm.tests.unit.plugins.module_utils._host.fake_host import (
    GPU0,
    IGB,
    NIC0,
    VFS,
    Crash,
    FakeHost,
)
from ansible_collections.topovirt.kvm.tests.unit.plugins.module_utils._host.fake_red_hat import FakeRedHat

NONE = (True,)  # as a kernel boots: drivers may take virtual functions, and there are none
TWO = (False, "vfio-pci", "vfio-pci")
DEVICE = f"sys/bus/pci/devices/{IGB}"
SCRIPT = "var/lib/topovirt/sriov.sh"


@pytest.fixture(params=[FakeHost, FakeRedHat], ids=["debian", "red-hat"])
def host(request: pytest.FixtureRequest, tmp_path: Path) -> FakeHost:
    kind: type[FakeHost] = request.param
    return kind(tmp_path)


@pytest.fixture
def debian(tmp_path: Path) -> FakeHost:
    return FakeHost(tmp_path)


def asking(host: FakeHost, number: Any = 2, **more: Any) -> dict[str, Any]:
    return {**host.wanted, "sriov": {IGB: number}, **more}


def others_make(host: FakeHost, number: int, driver: str | None = None) -> None:
    """Somebody makes virtual functions; their driver is loaded or not."""
    if driver:
        host.modules.add(driver)
    host.write_attribute(host.root / DEVICE / "sriov_numvfs", str(number))


# --- there and back -----------------------------------------------------------------------------------------------


def test_the_boot_makes_them_and_the_way_back_takes_them(host: FakeHost) -> None:
    before = host.snapshot()
    wanted = asking(host)
    host.convert(wanted, until="apply")
    assert host.virtual() == NONE  # under the old entry
    host.reboot()
    assert host.virtual() == TWO
    assert not host.runner().verify(wanted).differences
    host.convert(wanted)
    assert host.driver(IGB) == "igb"
    host.reboot()
    assert host.virtual() == TWO
    assert not host.convert(wanted)
    assert not host.runner().plan(wanted).changed
    host.runner().undo(False, False)
    assert host.virtual() == NONE  # before the reboot already
    host.go_back()
    assert host.snapshot() == before


def test_the_old_entry_has_none(host: FakeHost) -> None:
    host.convert(asking(host), until="reboot")
    assert host.virtual() == TWO
    host.reboot()  # not committed
    assert host.virtual() == NONE


def test_the_plan_says_it_and_check_mode_does_nothing(host: FakeHost) -> None:
    before = host.snapshot()
    changes = [change for change in host.runner().plan(asking(host)).plan if change.step == "sriov"]
    (made,) = [change for change in changes if change.kind == "virtual_functions"]
    held = {"driver": "vfio-pci", "override": "vfio-pci"}
    assert (made.what, made.reboot) == (IGB, True)
    assert made.before == {"number": 0, "autoprobe": True, "functions": []}
    assert made.after == {"number": 2, "autoprobe": False, "functions": [held, held]}
    assert host.snapshot() == before


def test_a_host_that_wants_none_has_nothing_of_it(host: FakeHost) -> None:
    host.convert()
    assert not (host.root / SCRIPT).exists()
    assert not [record for record in Journal(host.root).records if record.get("step") == "sriov"]


def test_at_once_on_a_converted_host(host: FakeHost) -> None:
    before = host.snapshot()
    host.convert()
    for number in (2, 3):
        report = host.runner().apply(asking(host, number), check=False)
        assert report.changed and not report.reboot_required
        assert host.virtual() == (False, *["vfio-pci"] * number)
        host.runner().commit(asking(host, number), check=False)
        assert not host.convert(asking(host, number))
    host.reboot()
    assert host.virtual() == (False, *["vfio-pci"] * 3)
    host.convert()  # none any more
    assert host.virtual() == NONE
    assert not host.convert()
    host.reboot()
    assert host.virtual() == NONE
    host.convert(asking(host))
    assert host.virtual() == TWO
    host.go_back()
    assert host.snapshot() == before


def test_an_address_in_capitals_is_the_same(debian: FakeHost) -> None:
    wanted = {**debian.wanted, "sriov": {"0000:27:00.0".upper(): 1}}
    debian.convert(wanted)
    assert debian.virtual() == (False, "vfio-pci")


# --- those of others ----------------------------------------------------------------------------------------------


def test_as_many_that_nobody_uses_are_adopted_and_given_back(host: FakeHost) -> None:
    host.convert()
    others_make(host, 2)
    assert host.virtual() == (True, None, None)
    host.convert(asking(host))
    assert host.virtual() == TWO
    host.runner().undo(False, False)
    assert host.virtual() == (True, None, None)
    overrides = {(host.root / "sys/bus/pci/devices" / bdf / "driver_override").read_text() for bdf in VFS[:2]}
    assert overrides == {"(null)\n"}


def test_another_number_that_nobody_uses_is_given_back(host: FakeHost) -> None:
    host.convert()
    others_make(host, 3)
    host.convert(asking(host))
    assert host.virtual() == TWO
    host.runner().undo(False, False)
    assert host.virtual() == (True, None, None, None)


def test_those_that_came_with_a_driver_stay_on_it(host: FakeHost) -> None:
    """Bound to vfio-pci by somebody's rule that names no device."""
    host.convert()
    others_make(host, 1)
    override = host.root / "sys/bus/pci/devices" / VFS[0] / "driver_override"
    host.write_attribute(override, "vfio-pci")
    host.write_attribute(host.root / "sys/bus/pci/drivers_probe", VFS[0])
    host.write_attribute(override, "\n")
    host.convert(asking(host, 1))
    assert override.read_text() == "vfio-pci\n"
    host.runner().undo(False, False)
    assert (host.virtual(), override.read_text()) == ((True, "vfio-pci"), "(null)\n")


@pytest.mark.parametrize("number", [1, 2, 3])
def test_those_with_a_driver_of_the_host_are_refused(host: FakeHost, number: int) -> None:
    others_make(host, number, "igbvf")
    said = refusal(host, asking(host))
    for bdf in VFS[:number]:
        of = f"sriov: virtual function {bdf} of {IGB}"
        assert f"{of}, which would have to go or change, is in use: driver igbvf" in said


def test_those_that_the_host_uses_are_refused_with_their_use(host: FakeHost) -> None:
    others_make(host, 1)
    host.interface("eth1", VFS[0], up=True)
    host.address("eth1", "10.0.3.15", 24)
    assert re.search(rf"virtual function {VFS[0]} of {IGB}, .* is in use: .*eth1", refusal(host, asking(host)))


def test_what_somebody_made_meanwhile_stays(host: FakeHost) -> None:
    host.convert(asking(host))
    others_make(host, 0)
    others_make(host, 5)
    kept = host.runner().undo(False, False).kept
    assert kept == [f"virtual functions of {IGB}: there are 5, which nobody of us made"]
    assert host.virtual() == (False, *[None] * 5)


@pytest.mark.parametrize("driver", [None, "igbvf"])
def test_what_somebody_makes_later_of_an_adapter_that_is_no_longer_wanted_is_theirs(
    host: FakeHost, driver: str | None
) -> None:
    host.convert(asking(host))
    host.convert()
    others_make(host, 5, driver)
    assert not host.convert()
    assert host.virtual() == (True, *[driver] * 5)


def test_under_the_old_entry_they_are_not_ours_to_change(host: FakeHost) -> None:
    """As many as were to come."""
    host.convert(asking(host), until="apply")
    others_make(host, 2)
    host.go_back()
    assert host.virtual() == (True, None, None)


def test_those_that_are_just_as_wanted_are_not_made_again_once_they_are_unwanted(host: FakeHost) -> None:
    host.convert()
    host.write_attribute(host.root / DEVICE / "sriov_drivers_autoprobe", "0")
    others_make(host, 2)
    for bdf in VFS[:2]:
        host.write_attribute(host.root / "sys/bus/pci/devices" / bdf / "driver_override", "vfio-pci")
        host.write_attribute(host.root / "sys/bus/pci/drivers_probe", bdf)
    assert host.virtual() == TWO
    host.convert(asking(host))
    assert not [key for key, _found in host.runner().find() if key[1] == "virtual_functions"]
    host.convert()
    assert host.virtual() == TWO
    assert "\nwant 0000:" not in (host.root / SCRIPT).read_text()


# --- refused ------------------------------------------------------------------------------------------------------


def refusal(host: FakeHost, wanted: dict[str, Any]) -> str:
    """The refusal of a conversion, which must have changed nothing."""
    before = host.snapshot()
    with pytest.raises(TopovirtError) as error:
        host.runner().record(wanted, check=False)
    assert host.snapshot() == before
    return str(error.value)


def without_driver(host: FakeHost) -> None:
    (host.root / DEVICE / "driver").unlink()


def on_vfio(host: FakeHost) -> None:
    host.modules.add("vfio-pci")
    without_driver(host)
    host.write_attribute(host.root / DEVICE / "driver_override", "vfio-pci")
    host.write_attribute(host.root / "sys/bus/pci/drivers_probe", IGB)


def without_iommu(host: FakeHost) -> None:
    (host.root / "sys/firmware/acpi/tables/DMAR").unlink()


def nothing(_host: FakeHost) -> None:
    pass


@pytest.mark.parametrize(
    ("change", "more", "words"),
    [
        (nothing, {"sriov": {"0000:99:00.0": 1}}, "there is no PCI function 0000:99:00.0 on this host"),
        (nothing, {"sriov": {NIC0: 1}}, f"{NIC0} is no device with SR-IOV"),
        (nothing, {"sriov": {IGB: 8}}, f"{IGB} has at most 7 virtual functions, 8 are wanted"),
        (nothing, {"devices": [IGB]}, f"{IGB} is in the passthrough set"),
        (without_driver, {}, f"{IGB} is held by no driver; only its own driver makes"),
        (on_vfio, {}, f"{IGB} is held by vfio-pci; only its own driver makes"),
        (lambda host: others_make(host, 1), {"sriov": {VFS[0]: 1}}, f"{VFS[0]} is a virtual function of {IGB}"),
        (without_iommu, {}, "there is no IOMMU"),
        (nothing, {"sriov": {IGB: 0}}, f"sriov: {IGB} has 0 virtual functions, which is no number from 1 on"),
        (nothing, {"sriov": {IGB: True}}, f"sriov: {IGB} has True virtual functions"),
        (nothing, {"sriov": {IGB: "many"}}, f"sriov: {IGB} has 'many' virtual functions"),
        (
            nothing,
            {"sriov": yaml.safe_load("{0000:41:00.0: 1}")},
            "sriov: 2460.0 is no address of a PCI function; in YAML",
        ),
        (nothing, {"sriov": {"0000:AB:00.0": 1, "0000:ab:00.0": 1}}, "0000:ab:00.0 is there twice"),
    ],
)
def test_what_cannot_be_is_refused(
    debian: FakeHost, change: Callable[[FakeHost], None], more: dict[str, Any], words: str
) -> None:
    change(debian)
    assert words in refusal(debian, asking(debian, **more))


def test_all_reasons_are_told_at_once(debian: FakeHost) -> None:
    debian.interface("eth1", GPU0, up=True)
    debian.address("eth1", "10.0.9.9", 24)
    said = refusal(debian, asking(debian, 9, sriov={IGB: 9, NIC0: 1, "0000:99:00.0": 1}))
    for words in ("at most 7", "no device with SR-IOV", "no PCI function 0000:99:00.0", f"{GPU0} is in use"):
        assert words in said


def test_the_adapter_that_the_host_is_managed_by_may_have_them(debian: FakeHost) -> None:
    debian.address("eth0", "10.0.2.15", 24, default=True)
    debian.convert(asking(debian))
    assert (debian.driver(IGB), debian.virtual()) == ("igb", TWO)


# --- the effect ---------------------------------------------------------------------------------------------------


def test_what_is_not_as_wanted_is_told(host: FakeHost) -> None:
    wanted = asking(host)
    host.convert(wanted)
    (host.root / "sys/bus/pci/devices" / VFS[1] / "driver").unlink()
    (host.root / DEVICE / "sriov_drivers_autoprobe").write_text("1\n")
    group = host.root / host.paths[VFS[0]] / "iommu_group"
    shared = os.path.basename(os.readlink(host.root / host.paths[IGB] / "iommu_group"))
    group.unlink()
    group.symlink_to(f"/sys/kernel/iommu_groups/{shared}")
    assert host.runner().verify(wanted).differences == [
        f"{IGB}: wanted 0 in sriov_drivers_autoprobe, found 1: a driver of the host may take new virtual functions",
        f"{VFS[0]}, virtual function of {IGB}: it shares IOMMU group {shared} with {IGB}, which is held by the host "
        "driver igb",
        f"{VFS[1]}, virtual function of {IGB}: wanted driver vfio-pci, found none",
    ]
    group.unlink()
    assert f"{VFS[0]}, virtual function of {IGB}: it has no IOMMU group, so no VM can own it" in (
        host.runner().verify(wanted).differences
    )


@pytest.mark.parametrize("number", [0, 3])
def test_another_number_than_wanted_is_told_and_corrected(host: FakeHost, number: int) -> None:
    wanted = asking(host)
    host.convert(wanted)
    for meanwhile in (0, number):
        others_make(host, meanwhile)
    said = f"{IGB}: wanted 2 virtual functions, the kernel has {number}"
    assert host.runner().verify(wanted).differences == [said]
    assert host.convert(wanted)
    assert host.virtual() == TWO


def test_what_became_of_them_is_known(host: FakeHost) -> None:
    def found() -> str:
        (state,) = [state for key, state in host.runner().find() if key == ("sriov", "virtual_functions", IGB)]
        return state

    host.convert(asking(host), until="apply")
    assert found() == "as before"
    assert not host.convert(asking(host), until="apply")  # recorded, the reboot is still to come
    host.reboot()
    assert found() == "as written"
    others_make(host, 0)
    others_make(host, 5)
    assert found() == "changed by somebody"
    for file in ("sriov_numvfs", "sriov_totalvfs"):
        (host.root / DEVICE / file).unlink()
    assert found() == "gone"
    with pytest.raises(TopovirtError, match=f"{IGB} is no device with SR-IOV"):
        host.runner().verify(asking(host))


def test_a_driver_that_does_not_take_them_is_told(host: FakeHost, monkeypatch: pytest.MonkeyPatch) -> None:
    host.convert()
    monkeypatch.setattr(host, "_probe", lambda bdf: None)
    with pytest.raises(TopovirtError, match=f"{IGB}: wanted virtual functions .* found .*'driver': None"):
        host.runner().apply(asking(host), check=False)


def test_a_way_back_does_not_end_at_a_kernel_that_refuses(host: FakeHost, monkeypatch: pytest.MonkeyPatch) -> None:
    before = host.snapshot()
    host.convert(asking(host))
    write = host.write_attribute

    def refuse(path: Path, text: str) -> None:
        if path.name == "sriov_numvfs":
            raise OSError(5, "Input/output error")
        write(path, text)

    with monkeypatch.context() as patch:
        patch.setattr(host, "write_attribute", refuse)
        (kept,) = host.runner().undo(False, False).kept
    assert re.match(f"virtual functions of {IGB}, until the reboot: .*refused '0': Input/output error", kept)
    host.go_back()
    assert host.snapshot() == before


def test_a_kernel_that_refuses_is_told_in_its_words(host: FakeHost, monkeypatch: pytest.MonkeyPatch) -> None:
    host.convert()
    write = host.write_attribute

    def refuse(path: Path, text: str) -> None:
        if path.name == "sriov_numvfs":
            raise OSError(12, "Cannot allocate memory")
        write(path, text)

    monkeypatch.setattr(host, "write_attribute", refuse)
    with pytest.raises(TopovirtError, match=rf"{IGB}/sriov_numvfs: the kernel refused '2': Cannot allocate memory"):
        host.runner().apply(asking(host), check=False)


@pytest.mark.parametrize("before", [0, 3], ids=["none", "three of others"])
def test_a_power_cut_between_the_writes(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, before: int) -> None:
    """At once on a converted host: the next run finishes it, or the way back undoes it."""

    def converted(name: str) -> FakeHost:
        host = FakeHost(tmp_path / name)
        host.convert()
        others_make(host, before)
        return host

    def cut(host: FakeHost, phase: Callable[[], object], left: int) -> bool:
        """Whether there were more writes than that."""
        write = host.write_attribute

        def failing(path: Path, text: str) -> None:
            nonlocal left
            left -= 1
            if left < 0:
                raise Crash
            write(path, text)

        with monkeypatch.context() as patch:
            patch.setattr(host, "write_attribute", failing)
            try:
                phase()
            except Crash:
                return True
        return False

    def there(point: int) -> bool:
        host = converted(f"there-{point}")
        was, wanted = host.virtual(), asking(host)
        broken = cut(host, lambda: host.runner().apply(wanted, check=False), point)
        if point % 2:
            host.convert(wanted)
            assert host.virtual() == TWO, point
        else:
            assert not host.runner().undo(False, False).kept
            assert host.virtual() == was, point
        return broken

    def back(point: int) -> bool:
        host = converted(f"back-{point}")
        was = host.virtual()
        host.convert(asking(host))
        broken = cut(host, lambda: host.runner().undo(False, False), point)
        assert not host.runner().undo(False, False).kept
        assert host.virtual() == was, point
        return broken

    for way in (there, back):
        points = next(point for point in range(20) if not way(point))
        assert points >= 3


# --- the unit at boot ---------------------------------------------------------------------------------------------

# The kernel's part, in place of the script's own way to write: what FakeHost does.
KERNEL = r"""put() {
    case $2 in
        */sriov_numvfs)
            echo "$1" > "$2"
            [ -e "$ROOT/fewer" ] && echo 1 > "$2"
            mkdir -p "$ROOT/vfs"
            for index in 0 1; do
                bdf=0000:28:10.$((index * 2))
                mkdir -p "$ROOT/vfs/$bdf"
                ln -s "$ROOT/vfs/$bdf" "${2%/*}/virtfn$index"
            done ;;
        */drivers_probe)
            [ -e "$ROOT/busy" ] || ln -s "$ROOT/vfio-pci" "$ROOT/vfs/$1/driver" ;;
        *) echo "$1" > "$2" ;;
    esac
    echo "$1 ${2#"$ROOT"}" >> "$ROOT/written"
}
modprobe() { echo "modprobe $1" >> "$ROOT/written"; }
sleep() { echo "$1" >> "$ROOT/slept"; [ -e "$ROOT/never" ] || ln -s "$ROOT/igb" "$ROOT/@DEVICE@/driver"; }
# address, vendor, device, number
""".replace("@DEVICE@", DEVICE)


@pytest.fixture
def booting(debian: FakeHost, tmp_path: Path) -> Path:
    """The device as the unit finds it, and the unit's script."""
    debian.convert(asking(debian), until="apply")
    root = tmp_path / "booting"
    device = root / DEVICE
    device.mkdir(parents=True)
    for name, text in (("vendor", "0x8086"), ("device", "0x10c9"), ("sriov_numvfs", "0"), ("sriov_totalvfs", "7")):
        (device / name).write_text(f"{text}\n")
    for name in ("igb", "vfio-pci"):
        (root / name).mkdir()
    (device / "driver").symlink_to(root / "igb")
    (root / "script").write_text((debian.root / SCRIPT).read_text())
    return root


def run_script(root: Path) -> subprocess.CompletedProcess[str]:
    text = (root / "script").read_text().replace("pci=/sys/", f"ROOT={root}\npci={root}/sys/")
    text = text.replace("# address, vendor, device, number\n", KERNEL)
    return subprocess.run(["/bin/sh", "-s"], input=text, capture_output=True, text=True, check=False)


def test_the_unit_makes_and_binds_them(booting: Path) -> None:
    done = run_script(booting)
    assert (done.returncode, done.stderr) == (0, "")
    assert (booting / "written").read_text().splitlines() == [
        "modprobe vfio-pci",
        f"0 /{DEVICE}/sriov_drivers_autoprobe",
        f"2 /{DEVICE}/sriov_numvfs",
        "vfio-pci /vfs/0000:28:10.0/driver_override",
        "0000:28:10.0 /sys/bus/pci/drivers_probe",
        "vfio-pci /vfs/0000:28:10.2/driver_override",
        "0000:28:10.2 /sys/bus/pci/drivers_probe",
    ]
    (booting / "written").unlink()
    assert run_script(booting).returncode == 0  # those that are there are left as they are
    assert not re.search("numvfs|probe$", (booting / "written").read_text())


def test_the_unit_waits_for_the_adapters_driver(booting: Path) -> None:
    (booting / DEVICE / "driver").unlink()
    assert run_script(booting).returncode == 0
    assert (booting / "slept").read_text() == "1\n"
    assert (booting / "vfs/0000:28:10.2/driver").is_symlink()


def test_the_unit_does_not_wait_for_ever(booting: Path) -> None:
    (booting / DEVICE / "driver").unlink()
    (booting / "never").touch()
    done = run_script(booting)
    assert (done.returncode, done.stderr) == (1, f"{IGB}: no driver holds it, so it has no virtual functions\n")
    assert (booting / "slept").read_text() == "1\n" * 60
    assert not (booting / "vfs").exists()


def another(root: Path) -> None:
    (root / DEVICE / "device").write_text("0x1572\n")


def fewer(root: Path) -> None:
    (root / "fewer").touch()


def busy(root: Path) -> None:
    (root / "busy").touch()


@pytest.mark.parametrize(
    ("change", "words"),
    [
        (another, f"{IGB}: is not the device that virtual functions are wanted of\n"),
        (fewer, f"{IGB}: wanted 2 virtual functions, the kernel has 1\n"),
        (
            busy,
            f"{IGB}: its virtual function 0000:28:10.0 is not held by vfio-pci\n"
            f"{IGB}: its virtual function 0000:28:10.2 is not held by vfio-pci\n",
        ),
    ],
)
def test_the_unit_fails_and_says_why(booting: Path, change: Callable[[Path], None], words: str) -> None:
    change(booting)
    done = run_script(booting)
    assert (done.returncode, done.stderr) == (1, words)


def test_the_unit_comes_before_guests_and_under_the_token_only(debian: FakeHost) -> None:
    debian.convert(asking(debian), until="apply")
    text = (debian.root / "etc/systemd/system/topovirt-sriov.service").read_text()
    (before,) = re.findall(r"^Before=(.*)$", text, re.M)
    assert {"libvirtd.service", "virtqemud.service"} <= set(before.split())
    assert f"\nConditionKernelCommandLine=topovirt={Journal(debian.root).id}\n" in text
