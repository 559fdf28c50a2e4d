# Copyright: the topovirt.kvm authors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""What firmware, kernels and hardware faults do to servers, done to a recorded tree.

Each function of ``MUTATIONS`` changes the tree that it is given and needs nothing else, so they can be applied to any
machine and one after the other. That such machines exist is seen in hwloc's recordings and in reports of users.
"""

from __future__ import annotations

import os
import re
import shutil
from collections.abc import Callable, Iterable
from pathlib import Path

from tests.twin.recorded import cpulist, uevent

FIRST_WIDE_DOMAIN = "10000"  # what Linux gives to the first controller of Intel's VMD
UNCORE_FUNCTIONS = 100
HEADER_BYTES = 64  # as much of a configuration space as a process without rights can read

_CPU_LISTS = (
    *("online", "cpulist", "cpulistaffinity", "local_cpulist"),
    *("thread_siblings_list", "core_siblings_list", "die_cpus_list", "shared_cpu_list"),
)
_IDENTITY = ("class", "vendor", "device", "subsystem_vendor", "subsystem_device")
_NODE_LISTS = ("online", "has_cpu", "has_memory")
_CPUS = "sys/devices/system/cpu"
_NODES = "sys/devices/system/node"


def functions(tree: Path) -> dict[str, Path]:
    """BDF -> directory of every PCI function, ascending."""
    return {link.name: link.resolve() for link in sorted((tree / "sys/bus/pci/devices").iterdir())}


def gpus(tree: Path) -> list[Path]:
    """Directories of the GPUs, ascending."""
    return [path for path in functions(tree).values() if _text(path / "class")[:6] in ("0x0302", "0x1200")]


def no_function_knows_its_node(tree: Path) -> None:
    _forget_nodes(tree, functions(tree).values())


def only_root_ports_know_their_node(tree: Path) -> None:
    _forget_nodes(tree, (path for path in functions(tree).values() if not path.parent.name.startswith("pci")))


def _forget_nodes(tree: Path, paths: Iterable[Path]) -> None:
    """-1 is what Linux shows for none; the CPUs near nothing are all CPUs."""
    everything = _text(tree / _CPUS / "online")
    for path in paths:
        _write(path / "numa_node", "-1")
        _write(path / "local_cpulist", everything)
    for affinity in (tree / "sys/devices").glob("pci*/pci_bus/*/cpulistaffinity"):
        _write(affinity, everything)


def every_node_has_all_cpus(tree: Path) -> None:
    for node in (tree / _NODES).glob("node*"):
        _write(node / "cpulist", _text(tree / _CPUS / "online"))


def a_node_without_cpus(tree: Path) -> None:
    """Memory behind CXL: one more node."""
    ids = _numbers(_text(tree / _NODES / "online"))
    new = ids[-1] + 1
    path = tree / _NODES / f"node{new}"
    path.mkdir()
    for node in ids:
        distances = tree / _NODES / f"node{node}" / "distance"
        _write(distances, f"{_text(distances)} 40")
    _write(path / "distance", " ".join(["40"] * len(ids) + ["10"]))
    _write(path / "cpulist", "")
    _write(path / "meminfo", f"Node {new} MemTotal:       1048576 kB")
    for name in ("online", "has_memory"):
        _write(tree / _NODES / name, cpulist([*ids, new]))


def cpu_0_is_offline(tree: Path) -> None:
    for directory, _directories, files in os.walk(tree / "sys/devices"):
        for name in set(files).intersection(_CPU_LISTS):
            path = Path(directory) / name
            if path != tree / _NODES / "online":
                _write(path, cpulist([cpu for cpu in _numbers(_text(path)) if cpu != 0]))
    for name in ("topology", "cache"):
        shutil.rmtree(tree / _CPUS / "cpu0" / name, ignore_errors=True)
    paragraphs = (tree / "proc/cpuinfo").read_text().split("\n\n")
    others = (paragraph for paragraph in paragraphs if not re.match(r"processor\s*: 0$", paragraph, re.MULTILINE))
    (tree / "proc/cpuinfo").write_text("\n\n".join(others))


def node_ids_have_gaps(tree: Path) -> None:
    """Node n becomes node 3n + 2."""

    def renumbered(match: re.Match[str]) -> str:
        return f"{match[1]}{3 * int(match[2]) + 2}"

    _rename(tree / _NODES, r"^(node)(\d+)$", renumbered)
    _rename(tree / _CPUS, r"((?:^|/)node)(\d+)$", renumbered)
    for name in _NODE_LISTS:
        path = tree / _NODES / name
        _write(path, cpulist([3 * node + 2 for node in _numbers(_text(path))]))
    for path in functions(tree).values():
        node = int(_text(path / "numa_node"))
        if node >= 0:
            _write(path / "numa_node", str(3 * node + 2))


def a_pci_domain_wider_than_16_bits(tree: Path) -> None:
    """The host bridge of the first GPU, with all below, is in a domain of its own."""
    gpu = gpus(tree)[0]
    host_bridge = next(path for path in gpu.parents if path.name.startswith("pci"))
    inside = {path.name for path in functions(tree).values() if host_bridge in path.parents}
    buses = "|".join(sorted({bdf.split(":")[1] for bdf in inside} | {host_bridge.name.split(":")[1]}))
    pattern = rf"(?<![0-9a-f])0000(:(?:{buses}))(?=$|[:/])"
    _rename(tree, pattern, rf"{FIRST_WIDE_DOMAIN}\1")
    named = [*(tree / "sys/devices").glob("pci*/**/nvme*/address"), tree / "var/lib/topovirt/module-ids.json"]
    for path in [*named, *(path / "uevent" for path in functions(tree).values())]:
        if path.is_file():
            path.write_text(re.sub(rf"\b0000(:(?:{buses}):)", rf"{FIRST_WIDE_DOMAIN}\1", path.read_text()))


def one_gpu_is_gone(tree: Path) -> None:
    """The last one has fallen off the bus."""
    gpu = gpus(tree)[-1]
    shutil.rmtree(gpu)
    for directory, directories, files in os.walk(tree / "sys"):
        for name in (*directories, *files):
            if name == gpu.name and (Path(directory) / name).is_symlink():
                (Path(directory) / name).unlink()


def a_virtual_function(tree: Path) -> None:
    """Beside the last network adapter of a fabric; its configuration space has no ids (PCI Express, SR-IOV)."""
    adapters = [path for path in functions(tree).values() if _text(path / "vendor") == "0x15b3"]
    physical = adapters[-1]
    virtual = physical.with_name(f"{physical.name[:-1]}7")
    shutil.copytree(physical, virtual, symlinks=True)
    for name in ("max_link_speed", "max_link_width", "reset_method", "vpd", "iommu_group", "driver"):
        (virtual / name).unlink(missing_ok=True)
    _write(virtual / "device", "0x101e")
    class_code, *ids = (int(_text(virtual / name), 16) for name in _IDENTITY)
    _write(virtual / "uevent", uevent(virtual.name, class_code, ids))
    (virtual / "config").write_bytes(b"\xff\xff\xff\xff" + (physical / "config").read_bytes()[4:])
    (virtual / "physfn").symlink_to(f"../{physical.name}")
    (physical / "virtfn0").symlink_to(f"../{virtual.name}")
    _announce(tree, virtual)


def uncore_functions(tree: Path) -> None:
    """The performance counters that a Xeon shows as PCI functions, on a root bus of their own."""
    for number in range(UNCORE_FUNCTIONS):
        path = tree / f"sys/devices/pci0000:fe/0000:fe:{number // 8:02x}.{number % 8}"
        path.mkdir(parents=True)
        attributes = {
            "vendor": "0x8086",
            "device": f"0x{0x3440 + number:04x}",
            "class": ("0x088000", "0x110100")[number % 2],
            "numa_node": "-1",
            "resource": "0x0000000000000000 0x0000000000000000 0x0000000000000000",
        }
        for name, value in attributes.items():
            _write(path / name, value)
        class_code, device = int(attributes["class"], 16), int(attributes["device"], 16)
        _write(path / "uevent", uevent(path.name, class_code, (0x8086, device, 0, 0)))
        (path / "config").write_bytes(bytes.fromhex("8680") + bytes(HEADER_BYTES - 2))
        _announce(tree, path)


def only_headers_can_be_read(tree: Path) -> None:
    for path in functions(tree).values():
        (path / "config").write_bytes((path / "config").read_bytes()[:HEADER_BYTES])


def a_gpu_sleeps(tree: Path) -> None:
    """D3cold: every register reads as ones, and Linux, which asks them, shows a link without lanes."""
    gpu = gpus(tree)[0]
    (gpu / "config").write_bytes(b"\xff" * len((gpu / "config").read_bytes()))
    _write(gpu / "power_state", "D3cold")
    _write(gpu / "max_link_speed", "Unknown")
    _write(gpu / "max_link_width", "0")


MUTATIONS: tuple[Callable[[Path], None], ...] = (
    no_function_knows_its_node,
    only_root_ports_know_their_node,
    every_node_has_all_cpus,
    a_node_without_cpus,
    cpu_0_is_offline,
    node_ids_have_gaps,
    a_pci_domain_wider_than_16_bits,
    one_gpu_is_gone,
    a_virtual_function,
    uncore_functions,
    only_headers_can_be_read,
    a_gpu_sleeps,
)


def _text(path: Path) -> str:
    return path.read_text(encoding="utf-8").strip()


def _write(path: Path, value: str) -> None:
    path.write_text(f"{value}\n", encoding="utf-8")


def _numbers(text: str) -> list[int]:
    parts = [part.partition("-") for part in text.split(",") if part]
    return [number for first, _dash, last in parts for number in range(int(first), int(last or first) + 1)]


def _announce(tree: Path, path: Path) -> None:
    """Linux lists a function where all are."""
    (tree / "sys/bus/pci/devices" / path.name).symlink_to(f"../../../{path.relative_to(tree / 'sys')}")


def _rename(top: Path, pattern: str, replacement: str | Callable[[re.Match[str]], str]) -> None:
    """Change the names of files, directories and links below ``top``, and where links lead."""
    for directory, directories, files in os.walk(top, topdown=False):
        # Highest numbers first, for a new name may be the old one of a neighbour.
        for name in sorted((*directories, *files), key=lambda name: (len(name), name), reverse=True):
            path = Path(directory) / name
            if path.is_symlink():
                target = re.sub(pattern, replacement, os.readlink(path))
                path.unlink()
                path.symlink_to(target)
            path.rename(path.with_name(re.sub(pattern, replacement, name)))
