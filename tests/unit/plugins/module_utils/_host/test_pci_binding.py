# Copyright: the topovirt.kvm authors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Devices bound without a conversion, with both builders of initramfs images."""

from __future__ import annotations

import subprocess
from pathlib import Path
from typing import Any

import pytest
from ansible_collections.topovirt.kvm.plugins.module_utils._errors import TopovirtError
from ansible_collections.topovirt.kvm.plugins.module_utils._host import pci_binding
from ansible_collections.topovirt.kvm.plugins.module_utils._host.journal import Journal
from ansible_collections.topovirt.kvm.plugins.module_utils._host.places import FACES
from ansible_collections.topovirt.kvm.plugins.module_utils._host.runner import describe
from ansible_collections.topovirt.kvm.tests.unit.plugins.module_utils._host.cut import Cut
from ansible_collections.topovirt.kvm.tests.unit.plugins.module_utils._host.fake_host import (
    DISK,
    GPU0,
    GPU1,
    IGB,
    KERNEL,
    NATIVE,
    NIC0,
    SWITCH0,
    SWITCH1,
    Crash,
    FakeHost,
)
from ansible_collections.topovirt.kvm.tests.unit.plugins.module_utils._host.fake_red_hat import FakeRedHat

SET = {"devices": [GPU0, NIC0]}


class Debian(FakeHost):
    image = f"boot/initrd.img-{KERNEL}"

    def __init__(self, root: Path) -> None:
        super().__init__(root)
        self.write(f"usr/lib/modules/{KERNEL}/modules.dep", "")
        self.kernels = [KERNEL]
        self.wrong = False

    def run(self, words: list[str]) -> tuple[int, str, str]:
        if words == ["update-initramfs", "-u", "-k", "all"]:
            self.log.append(words)
            for kernel in self.kernels:
                self._build(self.root / f"boot/initrd.img-{kernel}")
                if self.wrong:
                    return 1, "", "gzip: stdout: No space left on device"
            return 0, "", ""
        return super().run(words)

    def _build(self, image: Path) -> None:
        places = sorted((self.root / "etc/initramfs-tools").rglob("*"))
        image.write_text(f"# image of {image.name}\n" + "".join(p.read_text() for p in places if p.is_file()))


class RedHat(FakeRedHat):
    image = f"boot/initramfs-{KERNEL}.img"

    def __init__(self, root: Path) -> None:
        super().__init__(root)
        self.write(f"usr/lib/modules/{KERNEL}/modules.dep", "")
        self.wrong = False

    def run(self, words: list[str]) -> tuple[int, str, str]:
        if words == ["dracut", "--regenerate-all", "--force"]:
            self.log.append(words)
            (self.root / self.image).write_text("# image\n" + "".join(self.contents().values()))
            return (1, "", "dracut: no space") if self.wrong else (0, "", "")
        return super().run(words)

    def contents(self) -> dict[str, str]:
        """What modules put into the image: a real shell runs them, with dracut's functions as it documents them."""
        found = {}
        for setup in sorted((self.root / "usr/lib/dracut/modules.d").glob("*/module-setup.sh")):
            script = (
                f'set -e; moddir={setup.parent}; inst_simple() {{ echo "$1 $2"; }}; instmods() {{ echo "+ $*"; }}; '
                f". {setup}; check; installkernel; install"
            )
            made = subprocess.run(["bash", "-c", script], capture_output=True, text=True, check=True)
            for line in made.stdout.splitlines():
                source, target = line.split(" ", 1)
                found[target] = "" if source == "+" else Path(source).read_text()
        return found


Host = Debian | RedHat


@pytest.fixture(params=[Debian, RedHat], ids=["debian", "red-hat"])
def host(tmp_path: Path, request: pytest.FixtureRequest) -> Host:
    made: Host = request.param(tmp_path)
    return made


def bound(host: FakeHost) -> set[str]:
    return {bdf for bdf, driver in host.drivers().items() if driver == "vfio-pci"}


def test_named_devices_are_bound_now_and_at_every_boot(host: Host) -> None:
    done = host.face("pci_binding", **SET).present(check=False)
    assert bound(host) == {GPU0, NIC0}
    assert host.driver(GPU1) == "nvidia"  # the same ids, another role
    assert not host.face("pci_binding", **SET).present(check=False).changed
    assert done.changed
    host.reboot()
    assert bound(host) == {GPU0, NIC0}


def test_unbind_all_then_bind_all(host: Host) -> None:
    written: list[tuple[str, str]] = []
    original = host.write_attribute

    def write(path: Path, text: str) -> None:
        written.append((path.name, text))
        original(path, text)

    host.write_attribute = write  # type: ignore[method-assign]
    host.face("pci_binding", **SET, persistent=False).present(check=False)
    names = [name for name, _text in written]
    assert names == ["unbind", "unbind", "driver_override", "driver_override", "drivers_probe", "drivers_probe"]


def test_check_mode_predicts_and_every_byte_comes_back(host: Host) -> None:
    before = host.snapshot()
    predicted = host.face("pci_binding", **SET).present(check=True)
    assert host.snapshot() == before
    done = host.face("pci_binding", **SET).present(check=False)
    assert [describe(c) for c in done.plan] == [describe(c) for c in predicted.plan]
    after = host.snapshot()
    touched = {path for path in after if after[path] != before.get(path) and not path.startswith("var/lib/topovirt")}
    assert touched - {"drivers"} == {c.what for c in done.plan if c.kind != "device"}
    host.reboot()
    back = host.face("pci_binding").restored(check=False)
    assert back.kept == []
    assert host.snapshot() == before


def test_only_until_the_next_boot(host: Host) -> None:
    before = host.snapshot()
    done = host.face("pci_binding", **SET, persistent=False).present(check=False)
    assert {c.kind for c in done.plan} == {"device"}
    assert bound(host) == {GPU0, NIC0}
    host.reboot()
    assert bound(host) == set()
    host.face("pci_binding").restored(check=False)
    assert host.snapshot() == before


def test_only_with_the_next_boot(host: Host) -> None:
    before = host.snapshot()
    for changed in (True, False):
        done = host.face("pci_binding", **SET, at_once=False).present(check=False)
        assert (done.changed, done.reboot_required) == (changed, True)
    assert bound(host) == set()
    host.reboot()
    assert bound(host) == {GPU0, NIC0}
    assert not host.face("pci_binding", **SET, at_once=False).present(check=False).reboot_required
    host.face("pci_binding").restored(check=False)
    assert host.snapshot() == before


def test_a_device_that_leaves_the_set_goes_back(host: Host) -> None:
    before = host.snapshot()
    host.face("pci_binding", **SET).present(check=False)
    host.face("pci_binding", devices=[GPU0]).present(check=False)
    assert host.drivers() == {**NATIVE, GPU0: "vfio-pci"}
    host.reboot()
    assert bound(host) == {GPU0}
    host.face("pci_binding").restored(check=False)
    assert host.snapshot() == before


def test_a_device_that_somebody_took_meanwhile_stays_with_him(host: Host) -> None:
    host.face("pci_binding", **SET).present(check=False)
    device = host.root / "sys/bus/pci/devices" / NIC0
    host.write_attribute(device / "driver/unbind", NIC0)
    host.write_attribute(device / "driver_override", "igb")
    host.write_attribute(host.root / "sys/bus/pci/drivers_probe", NIC0)
    done = host.face("pci_binding").restored(check=False)
    assert done.kept == [f"device {NIC0}: changed by somebody meanwhile, so that stays"]
    assert (host.driver(GPU0), host.driver(NIC0)) == ("nvidia", "igb")


def test_images_of_kernels_that_came_meanwhile_are_built_without_it(tmp_path: Path) -> None:
    host = Debian(tmp_path)
    host.face("pci_binding", **SET).present(check=False)
    old = (host.root / host.image).read_text()
    host.kernels.append("7.0")
    host.write("usr/lib/modules/7.0/modules.dep", "")
    host._build(host.root / "boot/initrd.img-7.0")
    assert GPU0 in (host.root / "boot/initrd.img-7.0").read_text()
    host.face("pci_binding").restored(check=False)
    assert GPU0 not in (host.root / "boot/initrd.img-7.0").read_text()
    assert (host.root / host.image).read_text() == "initrd" * 4000 != old


def test_an_image_that_cannot_be_built_changes_nothing(host: Host) -> None:
    before, host.wrong = host.snapshot(), True
    with pytest.raises(TopovirtError, match=r"no space.*Everything is as it was before|No space.*as it was before"):
        host.face("pci_binding", **SET).present(check=False)
    assert host.snapshot() == before


def test_a_device_that_the_kernel_does_not_bind_changes_nothing(host: Host) -> None:
    before = host.snapshot()

    def modprobe(rest: list[str]) -> tuple[int, str, str]:
        host.modules.update(name for name in rest if name != "vfio-pci")
        return 0, "", ""

    host.programs["modprobe"] = modprobe
    with pytest.raises(TopovirtError, match=f"{GPU0} is held by no driver, wanted vfio-pci.*Everything is as it was"):
        host.face("pci_binding", **SET).present(check=False)
    assert host.snapshot() == before


def test_images_that_do_not_fit_into_the_journal_are_refused(host: Host, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(pci_binding, "free_bytes", lambda _path: 1000)
    with pytest.raises(TopovirtError, match="has 0 MiB free; the initramfs images to keep take"):
        host.face("pci_binding", **SET).present(check=True)
    assert host.face("pci_binding", **SET, persistent=False).present(check=True).changed


@pytest.mark.parametrize("after", [False, True], ids=["before", "after"])
def test_a_run_cut_anywhere_is_finished_or_undone(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, after: bool) -> None:
    full = RedHat(tmp_path / "full")
    pristine = full.snapshot()
    full.face("pci_binding", **SET).present(check=False)
    points = len(Journal(full.root, FACES / "pci_binding").records)
    assert points > 10
    for point in range(1, points + 1):
        for finish in (True, False):
            host = RedHat(tmp_path / f"{point}-{finish}")
            with monkeypatch.context() as patch:
                Cut(patch, after).left = point
                with pytest.raises(Crash):
                    host.face("pci_binding", **SET).present(check=False)
            if finish:
                host.face("pci_binding", **SET).present(check=False)
                assert bound(host) == {GPU0, NIC0}
                host.reboot()
                assert bound(host) == {GPU0, NIC0}, point
            host.face("pci_binding").restored(check=False)
            assert host.snapshot() == pristine, (point, finish)


def test_dracut_puts_every_file_where_it_acts(tmp_path: Path) -> None:
    host = RedHat(tmp_path)
    host.face("pci_binding", **SET).present(check=False)
    found = host.contents()
    assert set(found) == {
        "vfio_pci vfio_iommu_type1",
        "/usr/lib/topovirt/bind",
        "/etc/systemd/system/topovirt-bind.service",
        "/etc/systemd/system/systemd-udevd.service.d/topovirt.conf",
    }
    assert "ExecStart=/bin/sh /usr/lib/topovirt/bind" in found["/etc/systemd/system/topovirt-bind.service"]
    assert f'devices="{GPU0} {NIC0}"' in found["/usr/lib/topovirt/bind"]
    assert "topovirt=" not in found["/usr/lib/topovirt/bind"]


def test_vms_that_run_keep_their_devices(host: Host) -> None:
    host.face("pci_binding", **SET).present(check=False)
    host.write("run/libvirt/qemu/train-0.xml", "<domstatus/>")
    assert not host.face("pci_binding", **SET).present(check=False).changed
    with pytest.raises(TopovirtError, match="VM train-0 is running: stop it first"):
        host.face("pci_binding", devices=[GPU0]).present(check=False)
    with pytest.raises(TopovirtError, match="VM train-0 is running: stop it first"):
        host.face("pci_binding").restored(check=False)
    assert bound(host) == {GPU0, NIC0}


# --- refusals -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("options", "complaint"),
    [
        ({"devices": []}, "devices names none"),
        ({"devices": ["0000:fe:00.0"]}, "there is no PCI function 0000:fe:00.0"),
        ({"devices": ["0000:22:00.0"]}, "0000:22:00.0 is a downstream port, not an endpoint"),
        ({"devices": [IGB]}, f"{IGB} is in use by the host"),
        ({"devices": [DISK]}, f"{DISK} is in use by the host"),
        ({"devices": [SWITCH0]}, f"{SWITCH1} shares IOMMU group 41 with {SWITCH0}"),
        ({**SET, "persistent": False, "at_once": False}, "nothing would be bound"),
    ],
)
def test_bad_input_is_refused_before_any_change(host: Host, options: dict[str, Any], complaint: str) -> None:
    before = host.snapshot()
    with pytest.raises(TopovirtError) as refusal:
        host.face("pci_binding", **options).present(check=False)
    assert complaint in str(refusal.value)
    assert host.snapshot() == before


def test_without_an_iommu_nothing_is_bound(host: Host) -> None:
    for link in (host.root / "sys/bus/pci/devices").glob("*/iommu_group"):
        link.unlink()
    with pytest.raises(TopovirtError, match=r"no IOMMU groups: switch the IOMMU on \(topovirt\.kvm\.kernel_cmdline\)"):
        host.face("pci_binding", **SET).present(check=True)


def test_a_host_that_boots_images_keeps_them(host: Host) -> None:
    host.write("run/ostree-booted", "")
    with pytest.raises(TopovirtError, match="boots images of ostree or bootc"):
        host.face("pci_binding", **SET).present(check=True)
    assert host.face("pci_binding", **SET, persistent=False).present(check=True).changed


def test_who_competes_is_named_and_may_be_tolerated(host: Host) -> None:
    host.write(f"etc/driverctl.d/pci-{GPU0}", "nvidia\n")
    with pytest.raises(TopovirtError) as refusal:
        host.face("pci_binding", **SET).present(check=True)
    assert f"driverctl: a rule of driverctl binds {GPU0} to nvidia at each boot" in refusal.value.message
    assert f"Run driverctl unset-override {GPU0}, or name it in tolerate" in refusal.value.message
    done = host.face("pci_binding", **SET, tolerate=["driverctl"]).present(check=True)
    assert [found["name"] for found in done.results["competitors"]] == ["driverctl", "nvidia"]
