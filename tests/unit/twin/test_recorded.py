# Copyright: the topovirt.kvm authors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""The recorded tree and its comparison with a booted kernel (here: with itself, changed)."""

from __future__ import annotations

import base64
import dataclasses
import fnmatch
import glob
import os
import re
from pathlib import Path

import pytest
from ansible_collections.topovirt.kvm.plugins.module_utils._topology import capture

from tests.twin import addresses, agreement, collector, recorded
from tests.twin.config_space import ConfigSpace
from tests.twin.description import load

MACHINE = load("hgx-h200")


@pytest.fixture(scope="module")
def tree(tmp_path_factory: pytest.TempPathFactory) -> Path:
    directory = tmp_path_factory.mktemp("tree")
    recorded.record(MACHINE, directory)
    return directory


def test_links_look_as_sysfs_makes_them(tree: Path) -> None:
    gpu = tree / "sys/bus/pci/devices/0000:23:00.0"
    above = "0000:20:00.0/0000:21:00.0/0000:22:00.0"
    assert os.readlink(gpu) == f"../../../devices/pci0000:20/{above}/0000:23:00.0"
    assert os.readlink(gpu / "driver") == "../../../../../../bus/pci/drivers/nvidia"
    assert os.readlink(tree / "sys/class/net/eth1/device") == "../../../0000:29:00.0"


def test_attributes_of_a_gpu(tree: Path) -> None:
    gpu = tree / "sys/bus/pci/devices/0000:93:00.0"
    values = {name: (gpu / name).read_text().strip() for name in ("class", "vendor", "device", "numa_node")}
    assert values == {"class": "0x030200", "vendor": "0x10de", "device": "0x2335", "numa_node": "1"}
    assert (gpu / "uevent").read_text() == (
        "DRIVER=nvidia\nPCI_CLASS=30200\nPCI_ID=10DE:2335\nPCI_SUBSYS_ID=10DE:18BE\nPCI_SLOT_NAME=0000:93:00.0\n"
        "MODALIAS=pci:v000010DEd00002335sv000010DEsd000018BEbc03sc02i00\n"
    )
    assert (gpu / "max_link_speed").read_text() == "32.0 GT/s PCIe\n"
    start, end, _flags = (int(word, 16) for word in (gpu / "resource").read_text().splitlines()[2].split())
    assert end - start + 1 == 256 << 30 and start % (256 << 30) == 0


def test_everything_that_the_reader_reads_is_collected_and_there(tree: Path) -> None:
    """A new attribute in the reader must be recorded and compared too. Not every machine has every attribute."""
    absent = {"IVRS", "physfn", "SecureBoot-*"}
    collected = {path.rpartition("/")[2] for path in collector.collect(str(tree))}
    for pattern, names in capture.DIRECTORIES:
        assert pattern == "sys/class/infiniband" or glob.glob(f"{tree}/{pattern}"), pattern
        for name in set(names) - absent - {"*"}:
            assert glob.glob(f"{tree}/{pattern}/{name}"), f"{pattern}/{name}"
            assert fnmatch.filter(collected, name), f"{pattern}/{name} is not collected"


def test_real_scale(tmp_path: Path) -> None:
    recorded.record(MACHINE, tmp_path / "tree", "real")
    assert (tmp_path / "tree/sys/devices/system/node/node1/cpulist").read_text() == "48-95,144-191\n"
    siblings = tmp_path / "tree/sys/devices/system/cpu/cpu47/topology/thread_siblings_list"
    assert siblings.read_text() == "47,143\n"


def test_an_amd_server(tmp_path: Path) -> None:
    """Its IOMMU is a function of the root bus and has another ACPI table; its sockets have several L3 caches."""
    cpu = dataclasses.replace(MACHINE.cpu, vendor="AuthenticAMD")
    scale = dataclasses.replace(MACHINE.scales["real"], cores_per_l3=8)
    machine = dataclasses.replace(MACHINE, iommu="ivrs", cpu=cpu, scales={**MACHINE.scales, "real": scale})
    root = tmp_path / "tree"
    recorded.record(machine, root, "real")
    assert [path.name for path in (root / "sys/firmware/acpi/tables").iterdir()] == ["IVRS"]
    iommu = root / "sys/bus/pci/devices/0000:00:1e.0"
    assert [(iommu / name).read_text() for name in ("vendor", "class")] == ["0x1022\n", "0x080600\n"]
    assert not (iommu / "iommu_group").exists()
    assert addresses.iommu_groups(machine).keys() == addresses.iommu_groups(MACHINE).keys()
    cpu63 = root / "sys/devices/system/cpu/cpu63"
    assert (cpu63 / "cache/index3/id").read_text() == "7\n", "the eighth of twelve"
    assert (cpu63 / "cache/index3/shared_cpu_list").read_text() == "56-63,152-159\n"
    assert (cpu63 / "topology/die_id").read_text() == "1\n"
    assert "svm" in (root / "proc/cpuinfo").read_text()


def test_devices_with_vfio(tmp_path: Path) -> None:
    recorded.record(MACHINE, tmp_path / "tree", drivers="vfio")
    drivers = {path.name for path in (tmp_path / "tree/sys/bus/pci/drivers").iterdir()}
    assert drivers == {"vfio-pci", "igb", "nvme", "pcieport", "virtio-pci"}
    assert len(list((tmp_path / "tree/sys/bus/pci/drivers/vfio-pci").iterdir())) == 20


def test_without_iommu_there_are_no_groups(tmp_path: Path) -> None:
    recorded.record(load("hgx-h200", "no-iommu"), tmp_path / "tree")
    assert not (tmp_path / "tree/sys/kernel/iommu_groups").exists()
    assert not (tmp_path / "tree/sys/firmware/acpi").exists()
    assert not (tmp_path / "tree/sys/bus/pci/devices/0000:23:00.0/iommu_group").exists()


def test_a_directory_in_use_is_refused(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    with pytest.raises(FileExistsError):
        recorded.record(MACHINE, tmp_path)


def test_cpulist() -> None:
    assert recorded.cpulist([0, 1, 2, 8, 10, 11]) == "0-2,8,10-11"
    assert recorded.cpulist([]) == ""


def test_a_tree_agrees_with_itself(tree: Path) -> None:
    attributes = collector.collect(str(tree))
    assert len(attributes) > 1000
    assert agreement.differences(attributes, attributes) == []


@pytest.mark.parametrize(
    ("path", "value"),
    [
        ("sys/bus/pci/devices/0000:23:00.0/numa_node", "1\n"),
        ("sys/bus/pci/devices/0000:23:00.0/driver", "-> ../../../../../../bus/pci/drivers/nouveau"),
        ("sys/bus/pci/devices/0000:22:00.0/max_link_speed", "2.5 GT/s PCIe\n"),
        ("sys/bus/pci/devices/0000:23:00.0/resource", "0x0 0xffff 0x14220c\n"),
        ("sys/devices/system/cpu/cpu1/topology/thread_siblings_list", "1\n"),
        ("sys/devices/system/node/node0/distance", "10 11\n"),
        ("proc/cmdline", "quiet iommu=off\n"),
        ("proc/cpuinfo", "vendor_id\t: GenuineIntel\nflags\t\t: lm vmx\n"),
        ("sys/devices/system/node/node0/meminfo", "Node 0 MemTotal: 3145728 kB\n"),
        ("sys/bus/pci/devices/0000:99:00.0/class", "0x020000\n"),
    ],
)
def test_a_difference_is_found_and_named(tree: Path, path: str, value: str) -> None:
    booted = collector.collect(str(tree))
    booted[path] = value
    lines = agreement.differences(collector.collect(str(tree)), booted)
    assert len(lines) == 1 and lines[0].startswith(f"{path}: recorded ")


def test_a_missing_attribute_is_found(tree: Path) -> None:
    booted = collector.collect(str(tree))
    del booted["sys/bus/pci/devices/0000:23:00.0/iommu_group"]
    [line] = agreement.differences(collector.collect(str(tree)), booted)
    assert line.endswith("booted 'absent'")


def test_addresses_of_bars_and_the_order_of_controllers_do_not_matter(tree: Path) -> None:
    ours = collector.collect(str(tree))

    def renamed(text: str) -> str:
        text = re.sub("nvme([01])", lambda match: f"nvme{1 - int(match[1])}", text)
        return text.replace("0x000038", "0x000039")

    theirs = {renamed(path): renamed(value) for path, value in ours.items()}
    assert theirs != ours
    assert agreement.differences(ours, theirs) == []


def test_configuration_space_is_compared_by_identity_and_capabilities() -> None:
    gpu = next(MACHINE.endpoints())
    encoded = f"base64:{base64.b64encode(ConfigSpace(gpu).read(0, 4096)).decode()}"
    assert agreement.reduce_config(encoded) == (
        "10de:2335, class 030200, revision a1, header 00, subsystem 10de:18be, "
        "port type 0 speed 5 width 16, read request 2, serial 10de233500000001"
    )
