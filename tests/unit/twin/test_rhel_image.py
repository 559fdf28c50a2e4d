# Copyright: the topovirt.kvm authors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Pure parts of the RHEL-shaped image: identity, boot entries, partitions, packages, and which Python runs what."""

from __future__ import annotations

import shlex
from pathlib import Path

import pytest

from tests.twin.images import disk, rhel, rhel_boot, rhel_packages, rpm_spec, shapes
from tests.twin.images.rpm_spec import Package

KERNEL = "6.12.1+deb13-amd64"
NINE = shapes.RHEL["rhel9"]


def test_identity_is_what_facts_are_made_of() -> None:
    fields = dict(word.split("=", 1) for word in shlex.split(rhel_boot.os_release(NINE)))
    assert (fields["ID"], fields["VERSION_ID"], fields["PLATFORM_ID"]) == ("rhel", "9.6", "platform:el9")
    assert rhel_boot.redhat_release(NINE) == "Red Hat Enterprise Linux release 9.6 (Plow)\n"
    assert "10.0 (Coughlan)" in rhel_boot.os_release(shapes.RHEL["rhel10"])


def test_interpreters() -> None:
    assert [shapes.interpreter(name) for name in shapes.NAMES] == [
        "/usr/bin/python3",
        "/usr/bin/python3.9",
        "/usr/bin/python3",
    ]


def test_entry_names_files_of_the_boot_partition_and_the_root_by_its_id() -> None:
    lines = rhel_boot.entry(NINE, KERNEL, "console=ttyS0 quiet", variables=False).splitlines()
    fields = dict(line.split(" ", 1) for line in lines)
    assert fields["linux"] == f"/vmlinuz-{KERNEL}"
    assert fields["initrd"] == f"/initramfs-{KERNEL}.img"
    assert fields["options"] == f"root=UUID={disk.ROOT_UUID} ro console=ttyS0 quiet"
    assert fields["title"] == f"Red Hat Enterprise Linux ({KERNEL}) 9.6 (Plow)"


def test_entry_of_a_host_with_tuned_has_its_variables_last() -> None:
    text = rhel_boot.entry(NINE, KERNEL, "quiet", variables=True)
    assert "quiet $tuned_params\n" in text
    assert f"initrd /initramfs-{KERNEL}.img $tuned_initrd\n" in text


def test_arguments_are_those_of_the_debian_image() -> None:
    words = rhel.arguments().split()
    assert {"console=ttyS0", "net.ifnames=0", "quiet", "mitigations=off"} <= set(words)
    assert f'GRUB_CMDLINE_LINUX="{rhel.arguments()}"\n' in rhel_boot.default_grub(rhel.arguments())


def test_file_systems_are_mounted_by_the_ids_that_they_are_made_with() -> None:
    rows = [line.split() for line in rhel_boot.fstab(disk.SEPARATE_BOOT).splitlines()]
    assert [row[1] for row in rows] == ["/", "/boot", "/boot/efi"]
    assert [row[0] for row in rows] == [f"UUID={disk.ROOT_UUID}", f"UUID={disk.BOOT_UUID}", "UUID=7076-6B6D"]
    assert "/boot " not in rhel_boot.fstab(disk.ONE_ROOT)


def test_partitions_with_a_separate_boot_lie_one_after_the_other() -> None:
    size = 5 << 30
    rows = [line for line in disk.partition_script(size, disk.SEPARATE_BOOT).splitlines() if line.startswith("start=")]
    assert len(rows) == 3
    end = 0
    for row in rows:
        fields = dict(word.strip().split("=") for word in row.split(","))
        start, length = int(fields["start"]), int(fields["size"])
        assert start >= end
        assert start % 8 == length % 8 == 0
        end = start + length
    assert end * 512 <= size - 34 * 512
    assert disk.device(disk.ROOT, disk.SEPARATE_BOOT) == "/dev/vda3"
    assert disk.device(disk.ROOT, disk.ONE_ROOT) == "/dev/vda2"


@pytest.mark.parametrize(
    ("debian", "rpm"),
    [("1:10.0.13+ds-0+deb13u1", "10.0.13"), ("2025.02-8", "2025.02"), ("1.21.1+git1+dfsg-1", "1.21.1")],
)
def test_versions_that_rpm_accepts(debian: str, rpm: str) -> None:
    assert rpm_spec.upstream(debian) == rpm


def test_spec_of_a_package_with_units() -> None:
    package = Package(
        "daemon", "source", epoch=17, requires=("library",), provides=("service",), files=("/usr/sbin/daemon",),
        units=("daemon.service", "daemon.socket"), pre="useradd -r daemon",
    )  # fmt: skip
    sections: dict[str, list[str]] = {}
    current: list[str] = []
    for line in rpm_spec.spec([package], {"source": "1.2"}, "1.el9").splitlines():
        if line.startswith("%") and line.endswith(" -n daemon"):
            current = sections.setdefault(line.split()[0], [])
        else:
            current.append(line)
    assert {"Epoch: 17", "Version: 1.2", "Release: 1.el9", "Requires: library", "Provides: service"} <= set(
        sections["%package"]
    )
    assert sections["%pre"][0] == "useradd -r daemon"
    assert "    systemctl --no-reload preset daemon.service daemon.socket || :" in sections["%post"]
    assert "    systemctl --no-reload disable --now daemon.service daemon.socket || :" in sections["%preun"]
    assert sections["%files"][0] == "/usr/sbin/daemon"


@pytest.mark.parametrize("own_python", [False, True])
def test_every_requirement_is_in_the_repository(own_python: bool) -> None:
    packages = rhel_packages.all_packages(KERNEL, 9, own_python)
    names = [package.name for package in packages]
    assert len(names) == len(set(names))
    known = {*names, *(provided.split(" ")[0] for package in packages for provided in package.provides)}
    assert {need for package in packages for need in package.requires} <= known


def test_what_the_installer_brings_is_in_the_repository() -> None:
    names = {package.name for package in rhel_packages.all_packages(KERNEL, 9, False)}
    for release in shapes.RHEL.values():
        assert {*rhel_packages.BASE_NAMES, *release.installed} <= names


def test_debians_programs_keep_their_python(tmp_path: Path) -> None:
    scripts = {
        "a": "#!/usr/bin/python3 -Es\nx = 1\n",
        "b": "#! /usr/bin/python3.13\n",
        "c": "#!/bin/sh\n",
        "d": "\x7fELF",
    }
    for name, text in scripts.items():
        (tmp_path / name).write_text(text)
        (tmp_path / name).chmod(0o755)
        rhel.use_platform_python(tmp_path / name)
    assert (tmp_path / "a").read_text() == "#!/usr/libexec/platform-python -Es\nx = 1\n"
    assert (tmp_path / "b").read_text() == "#!/usr/libexec/platform-python\n"
    assert (tmp_path / "c").read_text() == scripts["c"]
    assert (tmp_path / "d").read_text() == scripts["d"]
    assert (tmp_path / "a").stat().st_mode & 0o777 == 0o755
