# Copyright: the topovirt.kvm authors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from ansible_collections.topovirt.kvm.plugins.module_utils._errors import TopovirtError
from ansible_collections.topovirt.kvm.plugins.module_utils._topology.model import PciFunction, Topology
from ansible_collections.topovirt.kvm.plugins.module_utils._topology.module_ids import parse_nvidia_smi
from ansible_collections.topovirt.kvm.plugins.module_utils._topology.reader import read_topology
from ansible_collections.topovirt.kvm.tests.unit.plugins.module_utils._topology.machine import (
    DOWNSTREAM,
    ENDPOINT,
    PCI_BRIDGE,
    ROOT_PORT,
    UPSTREAM,
    Machine,
    two_level_machine,
)


def function(topology: Topology, bdf: str) -> PciFunction:
    return next(item for item in topology["pci"] if item["bdf"] == bdf)


def one_gpu(root: Path) -> Machine:
    machine = Machine(root)
    machine.port("0000:20:00.0", "pci0000:20", ROOT_PORT)
    machine.gpu("0000:21:00.0", "0000:20:00.0")
    return machine


# --- the system --------------------------------------------------------------------------------------------------


def test_host(tmp_path: Path) -> None:
    topology = read_topology(two_level_machine(tmp_path).root)
    assert topology["schema"] == 1
    assert topology["host"] == {
        "kernel": "6.12.0-test",
        "arch": "x86_64",
        "cmdline": "BOOT_IMAGE=/vmlinuz root=/dev/sda1 quiet",
        "boot_id": "11111111-2222-3333-4444-555555555555",
        "firmware": "uefi",
        "os_id": "debian",
        "os_version": "13",
        "cpu_vendor": "GenuineIntel",
        "cpu_family": 6,
        "cpu_model": 143,
        "cpu_model_name": "Some Xeon",
        "virtualization": "vmx",
        "phys_bits": 46,
        "isolated_cpus": "2-3",
        "nohz_full_cpus": "",
        "secure_boot": True,
        "lockdown": "integrity",
    }


def test_iommu_kind_comes_from_acpi_and_not_from_the_cpu(tmp_path: Path) -> None:
    machine = one_gpu(tmp_path)
    machine.system(tables=("IVRS",), uefi=False)
    topology = read_topology(tmp_path)
    assert topology["host"]["cpu_vendor"] == "GenuineIntel"
    assert topology["host"]["firmware"] == "bios"
    assert topology["iommu"] == {"kind": "ivrs", "active": False, "default_domain": None, "groups": 0}


def test_iommu_groups_and_the_type_of_most_endpoints(tmp_path: Path) -> None:
    machine = two_level_machine(tmp_path)
    for group in (1, 2):
        machine.write(f"sys/kernel/iommu_groups/{group}/type", "identity\n")
    machine.write("sys/kernel/iommu_groups/4/type", "identity\n")
    # Group 3 has two endpoints, all others one: three against two.
    assert read_topology(tmp_path)["iommu"] == {
        "kind": "dmar",
        "active": True,
        "default_domain": "identity",
        "groups": 4,
    }


def test_nodes(tmp_path: Path) -> None:
    assert read_topology(two_level_machine(tmp_path).root)["numa_nodes"] == [
        {
            "id": 0,
            "cpus": "0-1,4-5",
            "memory_bytes": 1 << 30,
            "distances": {"0": 10, "1": 21},
            "hugepages": {"1048576": {"total": 4, "free": 3}},
        },
        {
            "id": 1,
            "cpus": "2-3,6-7",
            "memory_bytes": 1 << 30,
            "distances": {"0": 21, "1": 10},
            "hugepages": {"1048576": {"total": 4, "free": 3}},
        },
    ]


def test_sparse_nodes_without_cpus_keep_their_distances(tmp_path: Path) -> None:
    machine = Machine(tmp_path)
    machine.node(2, "", "10 40")
    machine.node(10, "0-3", "40 10")
    nodes = read_topology(tmp_path)["numa_nodes"]
    assert [(node["id"], node["cpus"], node["distances"]) for node in nodes] == [
        (2, "", {"2": 10, "10": 40}),
        (10, "0-3", {"2": 40, "10": 10}),
    ]


def test_cores(tmp_path: Path) -> None:
    assert read_topology(two_level_machine(tmp_path).root)["cores"] == [
        {"package": 0, "die": 0, "core": 0, "node": 0, "l3": 0, "threads": [0, 4]},
        {"package": 0, "die": 0, "core": 1, "node": 0, "l3": 0, "threads": [1, 5]},
        {"package": 1, "die": 0, "core": 0, "node": 1, "l3": 1, "threads": [2, 6]},
        {"package": 1, "die": 0, "core": 1, "node": 1, "l3": 1, "threads": [3, 7]},
    ]


SHARED = {"physical_package_id": "core_siblings_list", "die_id": "die_cpus_list"}


@pytest.fixture
def listed(tmp_path: Path) -> Machine:
    """Four cores in two packages of one die and one L3 cache each, which the kernel lists for each CPU."""
    machine = two_level_machine(tmp_path)
    for cpu in range(8):
        members = "0-1,4-5\n" if cpu in (0, 1, 4, 5) else "2-3,6-7\n"
        path = f"sys/devices/system/cpu/cpu{cpu}"
        for name in SHARED.values():
            machine.write(f"{path}/topology/{name}", members)
        machine.write(f"{path}/cache/index3/shared_cpu_list", members)
    return machine


def test_what_cpus_share_is_read_of_one_of_them(listed: Machine) -> None:
    cores = read_topology(listed.root)["cores"]
    assert [(core["package"], core["die"], core["l3"]) for core in cores] == [
        (0, 0, 0),
        (0, 0, 0),
        (1, 0, 2),
        (1, 0, 2),
    ]
    for cpu in (1, 3, 5, 7):
        for name in ("topology/physical_package_id", "topology/die_id", "cache/index3/shared_cpu_list"):
            (listed.root / f"sys/devices/system/cpu/cpu{cpu}" / name).unlink()
    topology = read_topology(listed.root)
    assert topology["cores"] == cores
    assert not [gap for gap in topology["unknown"] if gap["fact"] == "package"]


@pytest.mark.parametrize("members", ["", "nonsense", "3-1", "0"])
def test_cpus_that_are_not_listed_together_are_asked_one_by_one(listed: Machine, members: str) -> None:
    for cpu in range(8):
        for number, name in SHARED.items():
            listed.write(f"sys/devices/system/cpu/cpu{cpu}/topology/{name}", members)
            listed.write(f"sys/devices/system/cpu/cpu{cpu}/topology/{number}", f"{cpu}\n")
    cores = read_topology(listed.root)["cores"]
    assert [(core["package"], core["die"]) for core in cores] == [(0, 0), (1, 1), (2, 2), (3, 3)]


def test_a_package_that_one_cpu_does_not_know_is_asked_of_the_others(listed: Machine) -> None:
    listed.write("sys/devices/system/cpu/cpu0/topology/physical_package_id", "-1\n")
    topology = read_topology(listed.root)
    assert [core["package"] for core in topology["cores"]] == [None, 0, 1, 1]
    assert [gap["of"] for gap in topology["unknown"] if gap["fact"] == "package"] == [["cpu 0"]]


def test_offline_cpus_are_no_cores_and_a_cpu_in_two_nodes_is_in_none(tmp_path: Path) -> None:
    machine = Machine(tmp_path)
    machine.write("sys/devices/system/cpu/online", "1-2\n")
    machine.core(0, 1, [1], 0)
    machine.core(0, 2, [2], 0)
    (tmp_path / "sys/devices/system/cpu/cpu2/cache/index3/id").unlink()
    machine.write("sys/devices/system/cpu/cpu2/cache/index3/shared_cpu_list", "1-2\n")
    machine.node(0, "1-2", "10 20")
    machine.node(1, "2", "20 10")
    cores = read_topology(tmp_path)["cores"]
    assert [(core["threads"], core["node"], core["l3"]) for core in cores] == [([1], 0, 0), ([2], None, 1)]


def test_an_empty_root_is_no_error(tmp_path: Path) -> None:
    topology = read_topology(tmp_path)
    assert (topology["pci"], topology["numa_nodes"], topology["cores"]) == ([], [], [])
    assert topology["host"]["firmware"] is None
    assert topology["host"]["os_id"] is None


# --- PCI functions -----------------------------------------------------------------------------------------------


def test_function(tmp_path: Path) -> None:
    machine = Machine(tmp_path)
    machine.port("0000:20:00.0", "pci0000:20", ROOT_PORT)
    resource = (
        "0x00000000a0000000 0x00000000a0ffffff 0x0000000000040200\n"  # 16 MiB, 32 bit
        "0x0000000000003000 0x000000000000307f 0x0000000000040101\n"  # I/O ports
        "0x0000380000000000 0x0000383fffffffff 0x000000000014220c\n"  # 256 GiB, 64 bit, prefetchable
        "0x0000000000000000 0x0000000000000000 0x0000000000000000\n"
        "0x0000384000000000 0x0000384001ffffff 0x000000000014220c\n"
        "0x0000000000000000 0x0000000000000000 0x0000000000000000\n"
        "0x00000000a1000000 0x00000000a107ffff 0x0000000000046200\n"  # ROM
        "0x0000390000000000 0x0000391fffffffff 0x000000000014220c\n"  # of virtual functions: not this one's
    )
    machine.pci(
        "0000:21:00.0", "0000:20:00.0", "10de:2335", "0x030200", 1, ENDPOINT, 4096, 17, "nvidia", resource,
    )  # fmt: skip
    machine.write(f"{machine.paths['0000:21:00.0']}/driver_override", "vfio-pci\n")
    assert function(read_topology(tmp_path), "0000:21:00.0") == {
        "bdf": "0000:21:00.0",
        "kind": "endpoint",
        "role": "gpu",
        "class": "030200",
        "vendor": "10de",
        "device": "2335",
        "subsystem": "10de:18be",
        "parent": "0000:20:00.0",
        "host_bridge": "0000:20",
        "numa_node": 1,
        "numa_source": "own",
        "driver": "nvidia",
        "driver_override": "vfio-pci",
        "iommu_group": 17,
        "bars": [
            {"index": 0, "size_bytes": 16 << 20, "is_64bit": False, "prefetchable": False},
            {"index": 2, "size_bytes": 256 << 30, "is_64bit": True, "prefetchable": True},
            {"index": 4, "size_bytes": 32 << 20, "is_64bit": True, "prefetchable": True},
            {"index": 6, "size_bytes": 512 << 10, "is_64bit": False, "prefetchable": True},
        ],
        "link": {"max_gtps": 32.0, "max_width": 16},
        "reset_methods": ["flr", "bus"],
        "capabilities": {"max_read_request_bytes": 512},
        "power_state": "D0",
        "vm": None,
        "physfn": None,
        "names": [],
        "in_use": [],
        "module_id": None,
    }


NUMBERS = ("class", "vendor", "device", "subsystem_vendor", "subsystem_device")


def test_the_identity_is_told_at_once(tmp_path: Path) -> None:
    machine = two_level_machine(tmp_path)
    asked = read_topology(tmp_path)
    machine.uevents()
    assert read_topology(tmp_path) == asked
    for path in machine.paths.values():
        for name in NUMBERS:
            (tmp_path / path / name).unlink()
    assert read_topology(tmp_path) == asked
    assert {item["subsystem"] for item in asked["pci"]} == {None, "10de:18be"}
    assert {item["driver"] for item in asked["pci"]} == {None, "nvidia"}


UEVENT = "PCI_CLASS=20700\nPCI_ID=15B3:1021\nPCI_SUBSYS_ID=15B3:0016\nPCI_SLOT_NAME={}\n"


@pytest.mark.parametrize(
    "told",
    [
        UEVENT.format("0000:20:00.0"),  # a copy of another function's
        UEVENT.format("0000:21:00.00"),
        "PCI_ID=15B3:1021\nPCI_SUBSYS_ID=15B3:0016\nPCI_SLOT_NAME=0000:21:00.0\n",
        "PCI_CLASS=20700\nPCI_ID=15B3:1021\nPCI_SLOT_NAME=0000:21:00.0\n",
        "PCI_CLASS=20700\nPCI_ID=15B3:1021\nPCI_SUBSYS_ID=15B3:0016\n",
        UEVENT.format("0000:21:00.0").replace("20700", "1020700"),
        UEVENT.format("0000:21:00.0").replace("1021", "102G"),
        UEVENT.format("0000:21:00.0").replace("\n", " "),
        "",
        b"\xff" * 64,
        None,
    ],
    ids=range(11),
)
def test_a_word_that_cannot_be_trusted_does_not_count(tmp_path: Path, told: str | bytes | None) -> None:
    machine = one_gpu(tmp_path)
    asked = read_topology(tmp_path)
    path = machine.paths["0000:21:00.0"]
    if told is None:
        (tmp_path / path / "uevent").mkdir()
    else:
        machine.write(f"{path}/uevent", told)
    assert read_topology(tmp_path) == asked
    machine.write(f"{path}/class", "0x020700\n")  # so it is the single files that count
    assert function(read_topology(tmp_path), "0000:21:00.0")["role"] == "nic"


@pytest.mark.parametrize(
    ("told", "linked", "driver"),
    [
        ("nvidia", "nvidia", "nvidia"),
        ("nvidia", None, None),
        (None, "vfio-pci", "vfio-pci"),
        ("../../etc", "vfio-pci", "vfio-pci"),
        (None, None, None),
    ],
)
def test_a_driver_needs_its_link(tmp_path: Path, told: str | None, linked: str | None, driver: str | None) -> None:
    machine = Machine(tmp_path)
    machine.gpu("0000:20:00.0", "pci0000:20", driver=linked)
    first = "" if told is None else f"DRIVER={told}\n"
    machine.write(f"{machine.paths['0000:20:00.0']}/uevent", first + UEVENT.format("0000:20:00.0"))
    found = function(read_topology(tmp_path), "0000:20:00.0")
    assert (found["driver"], found["vendor"], found["class"]) == (driver, "15b3", "020700")


def test_this_kernel_tells_at_once_what_its_single_files_say() -> None:
    functions = {item["bdf"]: item for item in read_topology("/")["pci"]}
    for device in Path("/sys/bus/pci/devices").iterdir():
        code, *ids = ((device / name).read_text().strip()[2:] for name in NUMBERS)
        driver = (device / "driver").resolve().name if (device / "driver").is_symlink() else None
        subsystem = None if ids[2] == "0000" else f"{ids[2]}:{ids[3]}"
        found = functions[device.name]
        assert (found["class"], found["vendor"], found["device"]) == (code, *ids[:2])
        assert (found["subsystem"], found["driver"]) == (subsystem, driver)


@pytest.mark.parametrize("config_bytes", [4096, 256, 64, 0])
def test_kinds_of_a_two_level_switch(tmp_path: Path, config_bytes: int) -> None:
    """With the capability readable, with the header only (no root), and with nothing at all."""
    topology = read_topology(two_level_machine(tmp_path, config_bytes=config_bytes).root)
    assert {item["bdf"]: item["kind"] for item in topology["pci"]} == {
        "0000:20:00.0": "root_port",
        "0000:20:01.0": "root_port",
        "0000:21:00.0": "upstream_port",
        "0000:22:00.0": "downstream_port",
        "0000:22:01.0": "downstream_port",
        "0000:22:02.0": "downstream_port",
        "0000:23:00.0": "upstream_port",
        "0000:24:00.0": "downstream_port",
        "0000:24:01.0": "downstream_port",
        "0000:25:00.0": "endpoint",
        "0000:26:00.0": "endpoint",
        "0000:27:00.0": "upstream_port",
        "0000:28:00.0": "downstream_port",
        "0000:29:00.0": "endpoint",
        "0000:2a:00.0": "endpoint",
        "0000:2b:00.0": "endpoint",
        "0000:2b:00.1": "endpoint",
        "0000:50:00.0": "root_port",
        "0000:51:00.0": "endpoint",
        "0000:90:00.0": "root_port",
        "0000:91:00.0": "endpoint",
    }
    assert "bars" not in function(topology, "0000:21:00.0")
    assert function(topology, "0000:21:00.0")["subsystem"] is None


def test_the_capability_outweighs_the_place(tmp_path: Path) -> None:
    machine = Machine(tmp_path)
    machine.port("0000:00:01.0", "pci0000:00", PCI_BRIDGE)
    machine.port("0000:00:02.0", "pci0000:00", UPSTREAM)
    machine.pci("0000:00:03.0", "pci0000:00", class_code="0x060400", port_type=None, link=None)
    machine.pci("0000:01:00.0", "0000:00:03.0", class_code="0x000000", ids="0000:0000", link=None)
    machine.pci("0000:02:00.0", "0000:01:00.0")  # so 01:00.0 is a bridge, whatever its dead registers say
    (tmp_path / machine.paths["0000:01:00.0"] / "config").write_bytes(b"\xff" * 256)
    kinds = {item["bdf"]: item["kind"] for item in read_topology(tmp_path)["pci"]}
    assert kinds == {
        "0000:00:01.0": "bridge",
        "0000:00:02.0": "upstream_port",
        "0000:00:03.0": "bridge",
        "0000:01:00.0": "bridge",
        "0000:02:00.0": "endpoint",
    }


def test_a_circle_of_capabilities_ends(tmp_path: Path) -> None:
    machine = Machine(tmp_path)
    machine.port("0000:20:00.0", "pci0000:20", ROOT_PORT)
    config = bytearray((tmp_path / machine.paths["0000:20:00.0"] / "config").read_bytes())
    config[0x41] = 0x40
    (tmp_path / machine.paths["0000:20:00.0"] / "config").write_bytes(config)
    assert function(read_topology(tmp_path), "0000:20:00.0")["kind"] == "root_port"


def test_a_bridge_that_is_not_listed_is_nobodys_parent(tmp_path: Path) -> None:
    machine = two_level_machine(tmp_path)
    for bdf in ("0000:24:00.0", "0000:90:00.0"):
        (tmp_path / "sys/bus/pci/devices" / bdf).unlink()
    topology = read_topology(tmp_path)
    parents = {item["bdf"]: item["parent"] for item in topology["pci"]}
    assert (parents["0000:25:00.0"], parents["0000:91:00.0"]) == ("0000:23:00.0", None)
    assert set(parents.values()) <= {None, *parents}
    assert machine.paths["0000:25:00.0"].endswith("0000:24:00.0/0000:25:00.0")


def test_node_is_own_then_the_nearest_ancestors_then_the_root_buss_then_unknown(tmp_path: Path) -> None:
    machine = Machine(tmp_path)
    machine.node(0, "0-3", "10 21")
    machine.node(1, "4-7", "21 10")
    machine.port("0000:20:00.0", "pci0000:20", ROOT_PORT, node=0)
    machine.port("0000:21:00.0", "0000:20:00.0", UPSTREAM, node=1)
    machine.port("0000:22:00.0", "0000:21:00.0", DOWNSTREAM)
    machine.gpu("0000:23:00.0", "0000:22:00.0")
    machine.gpu("0000:50:00.0", "pci0000:50")
    machine.write("sys/devices/pci0000:50/pci_bus/0000:50/cpulistaffinity", "4-7\n")
    machine.gpu("0000:90:00.0", "pci0000:90")
    machine.write("sys/devices/pci0000:90/pci_bus/0000:90/cpulistaffinity", "0-7\n")
    machine.gpu("0000:c0:00.0", "pci0000:c0")
    found = {item["bdf"]: (item["numa_node"], item["numa_source"]) for item in read_topology(tmp_path)["pci"]}
    assert found == {
        "0000:20:00.0": (0, "own"),
        "0000:21:00.0": (1, "own"),
        "0000:22:00.0": (1, "0000:21:00.0"),
        "0000:23:00.0": (1, "0000:21:00.0"),
        "0000:50:00.0": (1, "0000:50"),
        "0000:90:00.0": (None, None),
        "0000:c0:00.0": (None, None),
    }


def test_a_bus_whose_cpus_are_those_of_two_nodes_tells_nothing(tmp_path: Path) -> None:
    machine = Machine(tmp_path)
    machine.node(0, "0-3", "10 21")
    machine.node(1, "0-3", "21 10")
    machine.gpu("0000:50:00.0", "pci0000:50")
    machine.write("sys/devices/pci0000:50/pci_bus/0000:50/cpulistaffinity", "0-3\n")
    assert function(read_topology(tmp_path), "0000:50:00.0")["numa_node"] is None


def test_a_domain_behind_a_function(tmp_path: Path) -> None:
    """VMD: the disk's host bridge is a function of another domain, which is no bridge but knows the node."""
    machine = Machine(tmp_path)
    machine.pci("0000:00:0e.0", "pci0000:00", "8086:28c0", "0x010400", node=1)
    machine.paths["vmd"] = f"{machine.paths['0000:00:0e.0']}/pci10000:00"
    machine.port("10000:00:04.0", "vmd", ROOT_PORT)
    machine.pci("10000:01:00.0", "10000:00:04.0", "144d:a80a", "0x010802", port_type=ENDPOINT)
    topology = read_topology(tmp_path)
    assert [item["bdf"] for item in topology["pci"]] == ["0000:00:0e.0", "10000:00:04.0", "10000:01:00.0"]
    disk, port = function(topology, "10000:01:00.0"), function(topology, "10000:00:04.0")
    assert (disk["host_bridge"], disk["parent"], disk["role"]) == ("10000:00", "10000:00:04.0", "nvme")
    assert (disk["numa_node"], disk["numa_source"]) == (1, "0000:00:0e.0")
    assert (port["parent"], port["kind"]) == (None, "root_port")
    assert function(topology, "0000:00:0e.0")["kind"] == "endpoint"


@pytest.mark.parametrize(
    ("speed", "width", "link"),
    [
        ("32.0 GT/s PCIe", "16", (32.0, 16)),
        ("2.5 GT/s", "1", (2.5, 1)),
        ("Unknown", "0", (None, None)),
        ("64.0 GT/s PCIe", "63", (64.0, None)),
        ("Unknown speed", "255", (None, None)),
    ],
)
def test_links(tmp_path: Path, speed: str, width: str, link: tuple[float | None, int | None]) -> None:
    machine = Machine(tmp_path)
    machine.pci("0000:00:01.0", "pci0000:00", link=(speed, width))
    found = function(read_topology(tmp_path), "0000:00:01.0")["link"]
    assert (found["max_gtps"], found["max_width"]) == link


def test_names_of_what_drivers_make_of_functions(tmp_path: Path) -> None:
    machine = Machine(tmp_path)
    machine.nic("0000:01:00.0", "pci0000:00")
    machine.pci("0000:02:00.0", "pci0000:00", "144d:a80a", "0x010802")
    machine.pci("0000:03:00.0", "pci0000:00", "1af4:1042", "0x010000")
    devices = "../../devices/pci0000:00"
    machine.link("sys/class/net/ib0", f"{devices}/0000:01:00.0/net/ib0")
    machine.link("sys/class/net/lo", "../../devices/virtual/net/lo")
    machine.link("sys/class/infiniband/mlx5_0", f"{devices}/0000:01:00.0/infiniband/mlx5_0")
    machine.link("sys/block/nvme0c1n2", f"{devices[3:]}/0000:02:00.0/nvme/nvme1/nvme0c1n2")
    machine.link("sys/block/vda", f"{devices[3:]}/0000:03:00.0/virtio1/block/vda")
    names = {item["bdf"]: item["names"] for item in read_topology(tmp_path)["pci"]}
    assert names == {"0000:01:00.0": ["ib0", "mlx5_0"], "0000:02:00.0": ["nvme0n2"], "0000:03:00.0": ["vda"]}


def test_a_recorded_tree_never_shows_the_live_machine(tmp_path: Path) -> None:
    root = tmp_path / "root"
    machine = one_gpu(root)
    (tmp_path / "secret").write_text("ID=outside\n")
    machine.link("etc/os-release", str(tmp_path / "secret"))
    machine.link("usr/lib", "/lib-of-root")
    machine.write("lib-of-root/os-release", "ID=inside\n")
    machine.link("proc", "../../../../proc-of-root")
    machine.write("proc-of-root/sys/kernel/osrelease", "6.1\n")
    topology = read_topology(root)
    assert topology["host"]["os_id"] == "inside"
    assert topology["host"]["kernel"] == "6.1"


def test_links_among_many_directories_stay_inside(tmp_path: Path) -> None:
    root = tmp_path / "root"
    machine = Machine(root)
    (tmp_path / "outside/topology").mkdir(parents=True)
    (tmp_path / "outside/topology/core_id").write_text("99\n")
    machine.write("sys/devices/system/cpu/online", "0-5\n")
    for cpu in (0, 1, 2, 5):
        machine.core(0, cpu, [cpu], 0)
    machine.link("sys/devices/system/cpu/cpu3", "cpu2")
    machine.link("sys/devices/system/cpu/cpu4", str(tmp_path / "outside"))
    assert [core["core"] for core in read_topology(root)["cores"]] == [0, 1, 2, 2, None, 5]


def test_links_in_a_circle_read_as_nothing(tmp_path: Path) -> None:
    machine = Machine(tmp_path)
    machine.link("etc/os-release", "os-release")
    machine.link("sys/block", "bus")
    machine.link("sys/bus", "block")
    assert read_topology(tmp_path)["host"]["os_id"] is None


# --- roles -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("ids", "class_code", "role"),
    [
        ("10de:2335", "0x030200", "gpu"),
        ("10de:26b9", "0x030000", "gpu"),
        ("1002:74a1", "0x120000", "gpu"),
        ("1002:7408", "0x038000", "gpu"),
        ("1a03:2000", "0x030000", None),  # a management controller's screen
        ("10de:22a3", "0x068000", "nvswitch"),
        ("8086:09a2", "0x068000", None),
        ("8086:2020", "0x060000", None),
        ("15b3:1021", "0x020700", "nic"),
        ("15b3:1021", "0x020000", "nic"),
        ("8086:10c9", "0x020000", None),
        ("144d:a80a", "0x010802", "nvme"),
        ("8086:2822", "0x010400", None),
        ("8086:3456", "0x110100", None),
    ],
)
def test_roles_by_rule(tmp_path: Path, ids: str, class_code: str, role: str | None) -> None:
    Machine(tmp_path).pci("0000:01:00.0", "pci0000:00", ids, class_code)
    assert function(read_topology(tmp_path), "0000:01:00.0")["role"] == role


def test_an_ethernet_adapter_is_a_data_nic_where_it_shares_a_switch_with_a_gpu(tmp_path: Path) -> None:
    machine = two_level_machine(tmp_path)
    for bdf, below in (
        ("0000:2c:00.0", "0000:22:02.0"),  # first level of the GPUs' switch
        ("0000:2d:00.0", "0000:20:01.0"),  # a root port of the same host bridge
    ):
        machine.pci(bdf, below, "8086:1592", "0x020000", port_type=ENDPOINT)
    machine.pci("0000:91:00.1", "0000:90:00.0", "8086:1592", "0x020000", port_type=ENDPOINT)  # a GPU's root port
    topology = read_topology(tmp_path)
    roles = [function(topology, bdf)["role"] for bdf in ("0000:2c:00.0", "0000:2d:00.0", "0000:91:00.1")]
    assert roles == ["nic", None, None]


def test_the_most_exact_override_of_a_role_wins(tmp_path: Path) -> None:
    machine = Machine(tmp_path)
    for device in range(4):
        machine.pci(f"0000:01:0{device}.0", "pci0000:00", "8086:1592" if device < 3 else "14e4:1750", "0x020000")
    machine.nic("0000:02:00.0", "pci0000:00")
    roles = {"0200": "nvme", "020000": "nic", "8086:1592": "gpu", "0000:01:01.0": "none", "15B3:1021": "none"}
    found = [item["role"] for item in read_topology(tmp_path, roles=roles)["pci"]]
    assert found == ["gpu", None, "gpu", "nic", None]


def test_wrong_roles_are_all_named(tmp_path: Path) -> None:
    with pytest.raises(TopovirtError) as caught:
        read_topology(tmp_path, roles={"135": "nic", "8086:1592": "ethernet"})
    assert "'135' is neither" in caught.value.message
    assert "'ethernet'" in caught.value.message


def vpd(*fields: tuple[bytes, bytes]) -> bytes:
    """A name, a read-only section with the fields, the end tag."""
    body = b"".join(keyword + bytes([len(value)]) + value for keyword, value in fields)
    name = b"Some adapter"
    return b"\x82" + len(name).to_bytes(2, "little") + name + b"\x90" + len(body).to_bytes(2, "little") + body + b"\x78"


def test_fabric_bridges_by_vital_product_data(tmp_path: Path) -> None:
    machine = Machine(tmp_path)
    for function_number in range(3):
        machine.nic(f"0000:01:00.{function_number}", "pci0000:00")
    machine.pci("0000:01:00.3", "pci0000:00", "15b3:101e", "0x020700", physfn="0000:01:00.0")
    machine.write(f"{machine.paths['0000:01:00.1']}/vpd", vpd((b"SN", b"1"), (b"VA", b"AB=1:SMDL=SW_MNG:CD=2")))
    decoys = (
        vpd((b"SN", b"SMDL=SW_MNG")),
        vpd((b"VA", b"XSMDL=SW_MNG:A")),
        vpd((b"VA", b"SMDL=SW_MNG2")),
        vpd((b"VA", b"A")) + b"VA\x0bSMDL=SW_MNG",  # behind the end
        b"\x90\xff\xffVA",
        b"",
    )
    for number, decoy in enumerate(decoys):
        machine.nic(f"0000:02:0{number}.0", "pci0000:00")
        machine.write(f"{machine.paths[f'0000:02:0{number}.0']}/vpd", decoy)
    found = {item["bdf"]: item["role"] for item in read_topology(tmp_path)["pci"]}
    assert [found[f"0000:01:00.{number}"] for number in range(4)] == ["fabric_bridge"] * 3 + ["nic"]
    assert {role for bdf, role in found.items() if bdf.startswith("0000:02")} == {"nic"}


def test_virtual_functions_name_their_physical_one(tmp_path: Path) -> None:
    machine = Machine(tmp_path)
    machine.nic("0000:01:00.0", "pci0000:00")
    machine.pci("0000:01:00.2", "pci0000:00", "15b3:101e", "0x020000", physfn="0000:01:00.0", link=None)
    virtual = function(read_topology(tmp_path), "0000:01:00.2")
    assert (virtual["physfn"], virtual["role"], virtual["parent"]) == ("0000:01:00.0", "nic", None)


# --- module ids --------------------------------------------------------------------------------------------------

SMI = """
==============NVSMI LOG==============
Timestamp                                 : Fri Nov 20 11:00:00 2026
Attached GPUs                             : 2
GPU 00000000:21:00.0
    Product Name                          : NVIDIA H200
    GPU Module Id                         : {0}
    PCI
        Bus Id                            : 00000000:21:00.0
GPU 00000000:51:00.0
    Product Name                          : NVIDIA H200
    GPU Module Id                         : {1}
"""


def two_gpus(root: Path, driver: str | None = "nvidia") -> None:
    machine = Machine(root)
    for bus in ("20", "50"):
        machine.gpu(f"0000:{int(bus, 16) + 1:02x}:00.0", f"pci0000:{bus}", driver=driver)


def ids(topology: Topology) -> list[int | None]:
    return [item["module_id"] for item in topology["pci"]]


class Smi:
    """A command runner that knows nvidia-smi only; the reader may ask other things for other reasons."""

    def __init__(self, output: str, status: int = 0) -> None:
        self.output, self.status, self.calls = output, status, 0

    def __call__(self, words: list[str]) -> tuple[int, str, str]:
        if words != ["nvidia-smi", "-q"]:
            raise FileNotFoundError(words[0])
        self.calls += 1
        return self.status, self.output, ""


def test_module_ids_from_the_driver(tmp_path: Path) -> None:
    two_gpus(tmp_path)
    assert ids(read_topology(tmp_path, Smi(SMI.format(7, 5)))) == [7, 5]


def test_domains_of_nvidia_smi() -> None:
    text = "GPU 00010000:1B:00.0\n    GPU Module Id   : 3\nGPU 00000001:05:00.0\n    GPU Module ID   : N/A\n"
    assert parse_nvidia_smi(text) == {"10000:1b:00.0": 3}


@pytest.mark.parametrize(
    "smi",
    [
        Smi(SMI.format(7, 7)),
        Smi(SMI.format(7, "N/A")),
        Smi("", 9),
        Smi(SMI.format(7, 5), 1),
    ],
)
def test_incomplete_and_double_ids_are_no_knowledge(tmp_path: Path, smi: Smi) -> None:
    two_gpus(tmp_path)
    assert ids(read_topology(tmp_path, smi)) == [None, None]


def test_no_command_without_a_gpu_of_the_driver(tmp_path: Path) -> None:
    two_gpus(tmp_path, "vfio-pci")
    smi = Smi(SMI.format(7, 5))
    assert ids(read_topology(tmp_path, smi)) == [None, None]
    assert smi.calls == 0


def test_a_missing_nvidia_smi_is_no_error(tmp_path: Path) -> None:
    def run(words: list[str]) -> tuple[int, str, str]:
        raise FileNotFoundError(words[0])

    two_gpus(tmp_path)
    assert ids(read_topology(tmp_path, run)) == [None, None]


def save(root: Path, value: Any) -> None:
    path = root / "var/lib/topovirt/module-ids.json"
    path.parent.mkdir(parents=True)
    path.write_text(value if isinstance(value, str) else json.dumps(value))


def test_saved_ids_while_other_drivers_hold_gpus(tmp_path: Path) -> None:
    two_gpus(tmp_path, "vfio-pci")
    save(tmp_path, {"0000:21:00.0": 2, "0000:51:00.0": 4})
    assert ids(read_topology(tmp_path)) == [2, 4]


def test_the_driver_contradicts_and_confirms_saved_ids(tmp_path: Path) -> None:
    two_gpus(tmp_path)
    save(tmp_path, {"0000:21:00.0": 2, "0000:51:00.0": 4})
    assert ids(read_topology(tmp_path, Smi(SMI.format(2, "N/A")))) == [2, 4]
    assert ids(read_topology(tmp_path, Smi(SMI.format(3, "N/A")))) == [None, None]
    assert ids(read_topology(tmp_path, Smi(SMI.format(4, 2)))) == [4, 2]


@pytest.mark.parametrize(
    "saved",
    [
        {"0000:21:00.0": 2},
        {"0000:21:00.0": 2, "0000:51:00.0": 2},
        {"0000:21:00.0": "2", "0000:51:00.0": "4"},
        {"0000:21:00.0": True, "0000:51:00.0": 4},
        [2, 4],
        "{broken",
    ],
)
def test_unusable_saved_ids(tmp_path: Path, saved: Any) -> None:
    two_gpus(tmp_path, None)
    save(tmp_path, saved)
    assert ids(read_topology(tmp_path)) == [None, None]


def test_given_ids_come_first(tmp_path: Path) -> None:
    two_gpus(tmp_path)
    smi = Smi(SMI.format(7, 5))
    assert ids(read_topology(tmp_path, smi, {"0000:21:00.0": 1, "0000:51:00.0": "3"})) == [1, 3]
    assert smi.calls == 0


def test_wrong_given_ids_are_all_named(tmp_path: Path) -> None:
    two_gpus(tmp_path)
    with pytest.raises(TopovirtError) as caught:
        read_topology(tmp_path, module_ids={"0000:21:00.0": 1, "0000:99:00.0": 1, "0000:9a:00.0": "first"})
    for part in (
        "0000:99:00.0 is not an NVIDIA GPU",
        "0000:99:00.0 and 0000:21:00.0 both have id 1",
        "'first', which is not a number",
        "0000:51:00.0 has no id",
    ):
        assert part in caught.value.message


def test_what_the_host_uses_is_in_the_topology(tmp_path: Path) -> None:
    machine = Machine(tmp_path)
    machine.pci("0000:03:00.0", "pci0000:00", "144d:a80a", "0x010802")
    disk = "sys/devices/pci0000:00/0000:03:00.0/nvme/nvme0/nvme0n1"
    machine.write(f"{disk}/dev", "259:0\n")
    machine.link("sys/block/nvme0n1", f"../{disk[len('sys/') :]}")
    machine.link("sys/class/block/nvme0n1", f"../../{disk[len('sys/') :]}")
    machine.link("sys/dev/block/259:0", f"../../{disk[len('sys/') :]}")
    machine.write("proc/self/mountinfo", "36 1 259:0 / / rw,relatime shared:1 - ext4 /dev/nvme0n1 rw\n")
    machine.write("proc/1/mountinfo", "36 1 259:0 / / rw,relatime shared:1 - ext4 /dev/nvme0n1 rw\n")
    found = function(read_topology(tmp_path), "0000:03:00.0")
    assert found["names"] == ["nvme0n1"]
    assert any("mounted on /" in reason for reason in found["in_use"])
