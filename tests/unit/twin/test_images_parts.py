# Copyright: the topovirt.kvm authors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Pure parts of the bakes: mirror, packages, modules, disk, QEMU's command line, stand-ins."""

from __future__ import annotations

import json
import lzma
import runpy
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from tests.twin.images import bake, disk, mirror, modules, process, qemu_tree, repository, rhel_packages

TWIN = Path(bake.__file__).parents[1]


def test_archive_address_comes_from_apt_and_not_from_security() -> None:
    lines = (
        "http://m/debian-security/\tDebian-Security\tmain\nhttp://third/\tThird\tmain\nhttp://never/debian/\t\tmain\n"
        "http://m/debian/\tDebian\tcontrib\nhttp://m/debian/\tDebian\tmain\nhttp://m/debian/\tDebian\tmain\n"
    )
    assert mirror.candidate_uris(lines) == ["http://m/debian/", "http://never/debian/"]


def test_versions_of_named_packages() -> None:
    index = "Package: a\nVersion: 1:2-3\nDescription: x\n y: z\n\nPackage: b\nVersion: 4\n"
    assert mirror.parse_versions(index, ["a", "c"]) == {"a": "1:2-3"}


def test_how_the_mirror_is_reached_is_taken_from_apt() -> None:
    keep = ['Acquire::http::Proxy "http://p:1";', 'Acquire::https::CaInfo "x";', 'Acquire::Retries "3";']
    drop = ['Acquire "";', 'APT::Install-Recommends "true";', 'Acquire::cdrom::mount "/x";']
    assert [line for line in keep + drop if mirror.ACCESS_OPTIONS.match(line)] == keep


def test_package_without_compression_is_read_by_dpkg(tmp_path: Path) -> None:
    root = tmp_path / "p"
    (root / "DEBIAN").mkdir(parents=True)
    control = "Package: p\nVersion: 1:1\nArchitecture: all\nMaintainer: m <m@x>\nDescription: d\n"
    (root / "DEBIAN/control").write_text(control)
    (root / "file").write_text("content")
    subprocess.run(
        ["dpkg-deb", "-Zxz", "-b", root, tmp_path / "p_1%3a1_all.deb"], check=True, stdout=subprocess.DEVNULL
    )
    versions = repository.make(tmp_path, tmp_path / "repo")
    assert versions == {"p": "1:1"}
    (deb,) = (tmp_path / "repo").glob("*.deb")
    assert deb.name == "p_1_all.deb"
    assert [name for name, _ in repository.members(deb.read_bytes())] == ["debian-binary", "control.tar", "data.tar"]
    listing = subprocess.run(["dpkg-deb", "-c", deb], check=True, capture_output=True, text=True).stdout
    assert "./file" in listing
    index = (tmp_path / "repo/Packages").read_text()
    assert f"Filename: ./p_1_all.deb\nSize: {deb.stat().st_size}\n" in index


def test_empty_repository_and_broken_package_are_refused(tmp_path: Path) -> None:
    with pytest.raises(process.BakeError, match="No packages"):
        repository.make(tmp_path, tmp_path / "repo")
    with pytest.raises(process.BakeError, match="no ar archive"):
        list(repository.members(b"PK\3\4"))


DEPENDENCIES = """\
kernel/drivers/gpu/drm/nouveau/nouveau.ko.xz: kernel/drivers/gpu/drm/ttm/ttm.ko.xz kernel/drivers/gpu/drm/drm.ko.xz
kernel/drivers/gpu/drm/ttm/ttm.ko.xz: kernel/drivers/gpu/drm/drm.ko.xz
kernel/drivers/gpu/drm/drm.ko.xz:
kernel/drivers/gpu/drm/radeon/radeon.ko.xz: kernel/drivers/gpu/drm/drm.ko.xz
kernel/drivers/net/ethernet/mellanox/mlx5/core/mlx5_core.ko.xz:
kernel/drivers/vdpa/other.ko.xz: kernel/drivers/net/ethernet/mellanox/mlx5/core/mlx5_core.ko.xz
kernel/drivers/vfio/pci/vfio-pci.ko.xz: kernel/drivers/vfio/vfio.ko.xz
kernel/drivers/vfio/vfio.ko.xz:
"""


def test_kept_modules() -> None:
    kept = {modules.bare(path) for path in modules.to_keep(modules.parse_dependencies(DEPENDENCIES))}
    assert kept == {
        "drivers/gpu/drm/nouveau/nouveau",
        "drivers/gpu/drm/ttm/ttm",
        "drivers/gpu/drm/drm",
        "drivers/vfio/pci/vfio-pci",
        "drivers/vfio/vfio",
    }


def test_load_order_puts_needs_first_and_skips_what_is_built_in() -> None:
    table = modules.parse_dependencies(DEPENDENCIES)
    paths = modules.load_order(table, ["nouveau", "virtio", "vfio_pci"])
    order = [modules.bare(path).rsplit("/", 1)[-1] for path in paths]
    assert order == ["drm", "ttm", "nouveau", "vfio", "vfio-pci"]


def test_trim_unpacks_and_drops(tmp_path: Path) -> None:
    folder = tmp_path / "usr/lib/modules/6.1"
    for path in modules.parse_dependencies(DEPENDENCIES):
        (folder / path).parent.mkdir(parents=True, exist_ok=True)
        (folder / path).write_bytes(lzma.compress(b"code"))
    (folder / "modules.dep").write_text(DEPENDENCIES)
    modules.trim(tmp_path, modules.release_of(tmp_path))
    left = {str(path.relative_to(folder)) for path in folder.rglob("*.ko*")}
    assert "kernel/drivers/vfio/vfio.ko" in left
    assert not any("mlx5" in path or "radeon" in path or path.endswith(".xz") for path in left)
    assert (folder / "kernel/drivers/vfio/vfio.ko").read_bytes() == b"code"


def test_partitions_touch_neither_each_other_nor_the_second_table() -> None:
    size = 5 << 30
    rows = [line for line in disk.partition_script(size).splitlines() if line.startswith("start=")]
    spans = []
    for row in rows:
        fields = dict(word.strip().split("=") for word in row.split(","))
        spans.append((int(fields["start"]), int(fields["start"]) + int(fields["size"])))
    (esp, root) = spans
    assert esp[0] * 512 == 1 << 20
    assert esp[1] <= root[0]
    assert root[1] * 512 <= size - 34 * 512
    # offset and length of the file system are whole blocks
    assert root[0] % 8 == 0
    assert (root[1] - root[0]) % 8 == 0


@dataclass
class _Tree:
    qemu_root: Path


def test_qemu_runs_through_the_loader_of_its_tree() -> None:
    words = qemu_tree.qemu_command(_Tree(Path("/c/tree")))
    assert words[0].startswith("/c/tree/")
    assert words[3] == "/c/tree/usr/bin/qemu-system-x86_64"
    assert words.count("-L") == 3
    assert qemu_tree.qemu_environment(_Tree(Path("/c/tree")))["QEMU_MODULE_DIR"].startswith("/c/tree/")


def test_qemu_of_the_system_is_plain() -> None:
    assert qemu_tree.qemu_command(_Tree(Path("/"))) == ["qemu-system-x86_64"]
    assert qemu_tree.img_command(_Tree(Path("/"))) == ["qemu-img"]
    assert qemu_tree.qemu_environment(_Tree(Path("/"))) == {}


@pytest.mark.parametrize(
    ("text", "version"),
    [("QEMU emulator version 11.1.3 (Debian)", (11, 1)), ("qemu-img version 7.2.1", (7, 2)), ("", None)],
)
def test_version_of_qemu(text: str, version: tuple[int, int] | None) -> None:
    assert qemu_tree.parse_version(text) == version


def test_missing_tools_are_named_with_their_packages(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr(process, "environment", lambda: {"PATH": str(tmp_path)})
    monkeypatch.setattr("os.geteuid", lambda: 0)
    with pytest.raises(process.BakeError) as caught:
        process.require_tools()
    for tool, package in process.TOOLS.items():
        assert f"{tool} (package {package})" in str(caught.value)


def test_failing_command_shows_its_last_lines(tmp_path: Path) -> None:
    with pytest.raises(process.BakeError, match=r"status 3(.|\n)*the reason"):
        process.run(["sh", "-c", "echo the reason; exit 3"], tmp_path / "log")


def _standin(name: str) -> dict[str, Any]:
    return runpy.run_path(str(TWIN / "standins" / name), run_name="standin")


def _function(base: Path, bdf: str, vendor: str, device: str, cls: str, driver: str | None) -> None:
    folder = base / "devices" / bdf
    folder.mkdir(parents=True)
    for key, value in (("vendor", vendor), ("device", device), ("class", cls)):
        (folder / key).write_text(f"{value}\n")
    if driver:
        (base / "drivers" / driver).mkdir(parents=True, exist_ok=True)
        (folder / "driver").symlink_to(base / "drivers" / driver)
        (base / "drivers" / driver / bdf).symlink_to(folder)


def test_nvidia_smi_lists_bound_gpus_only(tmp_path: Path) -> None:
    _function(tmp_path, "0000:23:00.0", "0x10de", "0x2335", "0x030200", "nvidia")
    _function(tmp_path, "0000:24:00.0", "0x10de", "0x2335", "0x030200", "vfio-pci")
    _function(tmp_path, "0000:2a:00.0", "0x10de", "0x22a3", "0x068000", "nvidia")
    smi = _standin("nvidia-smi")
    found = smi["gpus"](tmp_path / "drivers/nvidia")
    assert [path.name for path in found] == ["0000:23:00.0"]
    text = smi["block"](0, found[0], {"0000:23:00.0": 7})
    assert text.startswith("GPU 00000000:23:00.0\n")
    assert "GPU Module Id                         : 7\n" in text
    assert "stand-in" in text


def _fmpm(tmp_path: Path, *arguments: str) -> subprocess.CompletedProcess[str]:
    source = (TWIN / "standins/fmpm").read_text()
    source = source.replace('"/sys/bus/pci/devices"', repr(str(tmp_path / "devices")))
    source = source.replace('"/run/fmpm-standin"', repr(str(tmp_path / "state")))
    return subprocess.run([sys.executable, "-c", source, *arguments], capture_output=True, text=True, check=False)


def _active(tmp_path: Path) -> list[int]:
    answer = json.loads(_fmpm(tmp_path, "-l").stdout)
    return [entry["partitionId"] for entry in answer["partitionInfo"] if entry["isActive"]]


def test_fmpm_needs_every_switch_on_the_driver(tmp_path: Path) -> None:
    _function(tmp_path, "0000:2a:00.0", "0x10de", "0x22a3", "0x068000", "nvidia")
    _function(tmp_path, "0000:2a:00.1", "0x10de", "0x22a3", "0x068000", "vfio-pci")
    done = _fmpm(tmp_path, "-l")
    assert done.returncode != 0
    assert "not configured" in done.stderr
    assert "1 of 2" in done.stderr


def test_fmpm_partitions(tmp_path: Path) -> None:
    _function(tmp_path, "0000:2a:00.0", "0x10de", "0x22a3", "0x068000", "nvidia")
    entries = json.loads(_fmpm(tmp_path, "-l").stdout)["partitionInfo"]
    assert [entry["numGpus"] for entry in entries] == [8, 4, 4, 2, 2, 2, 2, 1, 1, 1, 1, 1, 1, 1, 1]
    assert [gpu["physicalId"] for gpu in entries[3]["gpuInfo"]] == [1, 3]
    assert {(gpu["uuid"], gpu["pciBusId"]) for entry in entries for gpu in entry["gpuInfo"]} == {("", "")}

    assert _fmpm(tmp_path, "-a", "1").returncode == 0
    assert _fmpm(tmp_path, "-a", "2").returncode == 0
    assert _active(tmp_path) == [1, 2]
    overlap = _fmpm(tmp_path, "-a", "3")
    assert overlap.returncode != 0
    assert "[1, 3]" in overlap.stderr
    assert _fmpm(tmp_path, "-a", "1").returncode == 239
    assert _fmpm(tmp_path, "-d", "1").returncode == 0
    assert _fmpm(tmp_path, "-d", "1").returncode == 238
    assert _fmpm(tmp_path, "-a", "15").returncode not in (0, 238, 239)
    assert _active(tmp_path) == [2]


def test_every_version_says_stand_in(tmp_path: Path) -> None:
    assert "stand-in" in _fmpm(tmp_path, "-v").stdout
    done = subprocess.run(
        [sys.executable, TWIN / "standins/nvidia-smi", "--version"], capture_output=True, text=True, check=True
    )
    assert "stand-in" in done.stdout
    assert 'MODULE_VERSION("stand-in")' in (TWIN / "standins/driver/standin.c").read_text()


def names(file: str) -> set[str]:
    return set((TWIN / "images" / file).read_text().split())


def test_repository_and_image_share_no_package_name() -> None:
    shared = names("server/packages.txt")
    assert not (shared | names("host/packages.txt")) & names("host/repository.txt")
    assert not (shared | names("rhel/packages.txt")) & {*rhel_packages.SOURCES, *rhel_packages.PARTS}
