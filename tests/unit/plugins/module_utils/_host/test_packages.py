# Copyright: the topovirt.kvm authors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

from __future__ import annotations

from pathlib import Path

import pytest
from ansible_collections.topovirt.kvm.plugins.module_utils._errors import TopovirtError
from ansible_collections.topovirt.kvm.plugins.module_utils._host import inventory
from ansible_collections.topovirt.kvm.plugins.module_utils._host.accounts import without
from ansible_collections.topovirt.kvm.plugins.module_utils._host.tuned import cpu_mask
from ansible_collections.topovirt.kvm.tests.unit.plugins.module_utils._host.fake_host import WANTED, FakeHost


@pytest.fixture
def host(tmp_path: Path) -> FakeHost:
    return FakeHost(tmp_path)


def test_packages_come_in_two_steps(host: FakeHost) -> None:
    """A package added to the list later has an inventory of its own."""
    before = host.snapshot()
    host.convert()
    assert host.convert({**WANTED, "packages": [*WANTED["packages"], "ovmf"]})
    assert "ovmf" in host.installed
    host.go_back()
    assert host.snapshot() == before


def test_a_package_that_was_there_stays(host: FakeHost) -> None:
    host.install("tuned", "ovmf")
    host.convert({**WANTED, "packages": [*WANTED["packages"], "ovmf"]})
    host.go_back()
    assert set(host.installed) == {"bash", "grub-efi-amd64", "tuned", "ovmf", "libvirt0"}


def test_a_directory_that_a_later_package_lives_in_stays(host: FakeHost) -> None:
    host.convert()
    host.installed["later"] = "1"
    host.write("var/lib/dpkg/info/later.list", "/.\n/etc/libvirt\n/etc/libvirt/later.conf\n")
    host.write("etc/libvirt/later.conf", "x")
    host.go_back()
    assert (host.root / "etc/libvirt/later.conf").is_file()


def test_packages_that_others_need_are_named_before_anything_is_done(
    host: FakeHost, monkeypatch: pytest.MonkeyPatch
) -> None:
    host.convert()
    run = host.run
    error = "dpkg: dependency problems prevent removal of libvirt0:\n virt-top depends on libvirt0."
    monkeypatch.setattr(host, "run", lambda words: (1, "", error) if "--no-act" in words else run(words))
    before = host.snapshot()
    with pytest.raises(TopovirtError, match="virt-top depends on libvirt0"):
        host.runner().undo(False, False)
    assert host.snapshot() == before


def test_apply_without_packages(host: FakeHost) -> None:
    host.convert(until="record")
    with pytest.raises(TopovirtError, match="package tuned is not installed"):
        host.runner().apply(WANTED, check=False)


def test_apply_without_a_record(host: FakeHost) -> None:
    with pytest.raises(TopovirtError, match="Nothing is recorded"):
        host.runner().apply(WANTED, check=False)


def test_another_family(host: FakeHost) -> None:
    (host.root / "var/lib/dpkg/status").unlink()
    with pytest.raises(TopovirtError, match="neither a dpkg nor an rpm database"):
        host.runner().plan(WANTED)


def test_data_on_other_file_systems_is_not_walked(host: FakeHost, monkeypatch: pytest.MonkeyPatch) -> None:
    host.write("var/lib/docker/overlay2/x/file", "huge")
    host.write("srv/data/file", "mine")
    paths = inventory.take(host.root, set())["paths"]
    assert "srv/data/file" in paths
    assert not [path for path in paths if "overlay2" in path]


def test_entries_and_members_go_others_stay() -> None:
    before = "kvm:x:104:admin\nempty:x:9:\n"
    after = "kvm:x:104:admin,libvirt-qemu\nempty:x:9:\nlibvirt:x:120:admin\n"
    current = "kvm:x:104:admin,libvirt-qemu,new\nempty:x:9:\nlibvirt:x:120:admin\nmine:x:1001:\n"
    assert without("etc/group", current, before, after, []) == "kvm:x:104:admin,new\nempty:x:9:\nmine:x:1001:\n"
    kept = without("etc/group", current, before, after, ["libvirt"])
    assert "libvirt:x:120:admin\n" in kept


@pytest.mark.parametrize(
    ("cpus", "mask"), [([], "00000000"), ([0, 2, 4, 6], "00000055"), ([0, 32], "00000001,00000001")]
)
def test_cpu_masks(cpus: list[int], mask: str) -> None:
    assert cpu_mask(cpus) == mask
