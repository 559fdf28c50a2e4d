# Copyright: the topovirt.kvm authors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""The reader on the recorded tree of every described machine, against tables written from published facts.

Devices of a role are in the order of their addresses. In tables of path classes ``.`` is the device itself, ``I`` PIX,
``X`` PXB, ``B`` PHB, ``N`` NODE, ``S`` SYS. Where others' recordings of such machines are at hand, those are held
against the reader too.
"""

from __future__ import annotations

import json
import re
import xml.etree.ElementTree as ET
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest
from ansible_collections.topovirt.kvm.plugins.module_utils._topology.cpulist import parse_cpulist
from ansible_collections.topovirt.kvm.plugins.module_utils._topology.facts import MAX_BYTES, summarize
from ansible_collections.topovirt.kvm.plugins.module_utils._topology.model import PciFunction, Topology
from ansible_collections.topovirt.kvm.plugins.module_utils._topology.paths import Paths
from ansible_collections.topovirt.kvm.plugins.module_utils._topology.reader import read_topology

from tests.bench.published import violations
from tests.twin import description
from tests.twin.recorded import record

CAPTURES = Path(__file__).resolve().parents[4] / "shared" / "captures"
LETTERS = {"LOC": ".", "PIX": "I", "PXB": "X", "PHB": "B", "NODE": "N", "SYS": "S"}
GIB = 1 << 30
KIB = 1 << 10


@dataclass(frozen=True)
class Facts:
    gpu: str  # vendor:device, class
    large_bar_gib: int
    roles: dict[str, int]
    switches: int  # upstream ports
    depth: int  # most switches above one device
    iommu: str
    cores: int  # as sold
    l3: int
    gpu_nodes: list[int]
    gpus: str  # rows of path classes from each GPU to the GPUs ...
    nics: str  # ... to the NICs ...
    nvswitches: str = ""  # ... and to the NVSwitches
    module_ids: tuple[int, ...] = ()
    nodes: int = 2
    gpus_per_group: int = 1  # all below one of QEMU's downstream ports share an IOMMU group, as it has no ACS
    json_bytes: int = 64 * KIB  # goal for HGX servers


# Two GPUs below each of four switches, and two adapters below each of them.
PAIRS = """
    .INNSSSS
    I.NNSSSS
    NN.ISSSS
    NNI.SSSS
    SSSS.INN
    SSSSI.NN
    SSSSNN.I
    SSSSNNI."""
PAIRS_NICS = """
    IINNSSSS
    IINNSSSS
    NNIISSSS
    NNIISSSS
    SSSSIINN
    SSSSIINN
    SSSSNNII
    SSSSNNII"""

# Each GPU on a host bridge of its own.
ALONE = """
    .NNNSSSS
    N.NNSSSS
    NN.NSSSS
    NNN.SSSS
    SSSS.NNN
    SSSSN.NN
    SSSSNN.N
    SSSSNNN."""

FACTS = {
    "hgx-h200": Facts(
        gpu="10de:2335 030200",
        large_bar_gib=256,
        roles={"gpu": 8, "nic": 8, "nvswitch": 4, "nvme": 4},
        switches=4,
        depth=1,
        iommu="dmar",
        cores=96,
        l3=2,
        gpu_nodes=[0] * 4 + [1] * 4,
        gpus=PAIRS,
        nics=PAIRS_NICS,
        nvswitches="BBBB BBBB NNNN NNNN SSSS SSSS SSSS SSSS",
        module_ids=(2, 4, 1, 3, 7, 5, 6, 8),
    ),
    "hgx-h200-snc4": Facts(
        gpu="10de:2335 030200",
        large_bar_gib=256,
        roles={"gpu": 8, "nic": 8, "nvswitch": 4, "nvme": 4},
        switches=4,
        depth=1,
        iommu="dmar",
        cores=96,
        l3=2,
        gpu_nodes=[0, 0, 2, 2, 4, 4, 6, 6],
        gpus="""
            .ISSSSSS
            I.SSSSSS
            SS.ISSSS
            SSI.SSSS
            SSSS.ISS
            SSSSI.SS
            SSSSSS.I
            SSSSSSI.""",
        nics="""
            IISSSSSS
            IISSSSSS
            SSIISSSS
            SSIISSSS
            SSSSIISS
            SSSSIISS
            SSSSSSII
            SSSSSSII""",
        nvswitches="BBBB BBBB SSSS SSSS SSSS SSSS SSSS SSSS",
        module_ids=(2, 4, 1, 3, 7, 5, 6, 8),
        nodes=8,
    ),
    "hgx-h200-snc": Facts(
        gpu="10de:2335 030200",
        large_bar_gib=256,
        roles={"gpu": 8, "nic": 9, "nvswitch": 4},
        switches=8,
        depth=1,
        iommu="dmar",
        cores=96,
        l3=2,
        gpu_nodes=[0, 0, 0, 1, 2, 2, 2, 3],
        gpus="""
            .NNSSSSS
            N.NSSSSS
            NN.SSSSS
            SSS.SSSS
            SSSS.NNS
            SSSSN.NS
            SSSSNN.S
            SSSSSSS.""",
        nics="""
            INNSSSSSS
            NINSSSSSS
            NNISSSSSS
            SSSNISSSS
            SSSSSINNS
            SSSSSNINS
            SSSSSNNIS
            SSSSSSSSI""",
        nvswitches="BBBB NNNN NNNN SSSS SSSS SSSS SSSS SSSS",
        nodes=4,
    ),
    "hgx-h100": Facts(
        gpu="10de:2330 030200",
        large_bar_gib=128,
        roles={"gpu": 8, "nic": 10, "nvswitch": 4, "nvme": 2},
        switches=10,
        depth=2,
        iommu="dmar",
        cores=112,
        l3=2,
        gpu_nodes=[0] * 4 + [1] * 4,
        gpus=ALONE,
        nics="""
            INNNNNSSSS
            NINNNNSSSS
            NNINNNSSSS
            NNNNNISSSS
            SSSSSSINNN
            SSSSSSNINN
            SSSSSSNNIN
            SSSSSSNNNI""",
        nvswitches="NNNN NNNN NNNN NNNN SSSS SSSS SSSS SSSS",
        module_ids=(5, 7, 6, 8, 1, 3, 2, 4),
    ),
    "hgx-a100": Facts(
        gpu="10de:20b2 030200",
        large_bar_gib=128,
        roles={"gpu": 8, "nic": 12, "nvswitch": 6},
        switches=21,
        depth=2,
        iommu="ivrs",
        cores=128,
        l3=32,
        gpu_nodes=[3, 3, 1, 1, 7, 7, 5, 5],
        gpus="""
            .XSSSSSS
            X.SSSSSS
            SS.XSSSS
            SSX.SSSS
            SSSS.XSS
            SSSSX.SS
            SSSSSS.X
            SSSSSSX.""",
        nics="""
            XXSSSSSSSSSS
            XXSSSSSSSSSS
            SSXXSSSSSSSS
            SSXXSSSSSSSS
            SSSSSSXXSSSS
            SSSSSSXXSSSS
            SSSSSSSSXXSS
            SSSSSSSSXXSS""",
        nvswitches="SSSSSS " * 8,
        nodes=8,
    ),
    "dgx-2": Facts(
        gpu="10de:1db8 030200",
        large_bar_gib=32,
        roles={"gpu": 16, "nic": 10, "nvswitch": 12},
        switches=14,
        depth=2,
        iommu="dmar",
        cores=48,
        l3=2,
        gpu_nodes=[0] * 8 + [1] * 8,
        gpus="""
            .IXXNNNNSSSSSSSS
            I.XXNNNNSSSSSSSS
            XX.INNNNSSSSSSSS
            XXI.NNNNSSSSSSSS
            NNNN.IXXSSSSSSSS
            NNNNI.XXSSSSSSSS
            NNNNXX.ISSSSSSSS
            NNNNXXI.SSSSSSSS
            SSSSSSSS.IXXNNNN
            SSSSSSSSI.XXNNNN
            SSSSSSSSXX.INNNN
            SSSSSSSSXXI.NNNN
            SSSSSSSSNNNN.IXX
            SSSSSSSSNNNNI.XX
            SSSSSSSSNNNNXX.I
            SSSSSSSSNNNNXXI.""",
        # The fifth and the sixth are the ports of the Ethernet card.
        nics="""
            IXNNSSSSSS
            IXNNSSSSSS
            XINNSSSSSS
            XINNSSSSSS
            NNIXSSSSSS
            NNIXSSSSSS
            NNXISSSSSS
            NNXISSSSSS
            SSSSNNIXNN
            SSSSNNIXNN
            SSSSNNXINN
            SSSSNNXINN
            SSSSNNNNIX
            SSSSNNNNIX
            SSSSNNNNXI
            SSSSNNNNXI""",
        nvswitches="NNNNNNSSSSSS " * 4 + "XXXXXXSSSSSS " * 4 + "SSSSSSXXXXXX " * 4 + "SSSSSSNNNNNN " * 4,
        gpus_per_group=2,
        json_bytes=160 * KIB,
    ),
    "hgx-b200": Facts(
        gpu="10de:2901 030200",
        large_bar_gib=256,
        roles={"gpu": 8, "nic": 8, "fabric_bridge": 4, "nvme": 4},
        switches=4,
        depth=1,
        iommu="dmar",
        cores=96,
        l3=2,
        gpu_nodes=[0] * 4 + [1] * 4,
        gpus=PAIRS,
        nics=PAIRS_NICS,
    ),
    "mi300x": Facts(
        gpu="1002:74a1 120000",
        large_bar_gib=256,
        roles={"gpu": 8, "nic": 8, "nvme": 1},
        switches=24,
        depth=3,
        iommu="dmar",
        cores=112,
        l3=2,
        gpu_nodes=[0] * 4 + [1] * 4,
        gpus=ALONE,
        nics=ALONE.replace(".", "X"),
    ),
    "pcie-l40s": Facts(
        gpu="10de:26b9 030200",
        large_bar_gib=64,
        roles={"gpu": 8, "nic": 2, "nvme": 2},
        switches=0,
        depth=0,
        iommu="ivrs",
        cores=64,
        l3=16,
        gpu_nodes=[0] * 4 + [1] * 4,
        gpus=PAIRS.replace("I", "B"),
        nics="BS BS NS NS SB SB SN SN",
    ),
}


@dataclass(frozen=True)
class Seen:
    """A machine as the reader sees it at one scale."""

    name: str
    scale: str
    facts: Facts
    topology: Topology
    entries: int  # of sys/bus/pci/devices

    def role(self, role: str) -> list[PciFunction]:
        return [function for function in self.topology["pci"] if function["role"] == role]

    def classes(self, to: str) -> list[str]:
        """Rows of letters from each GPU to the devices of a role."""
        paths = Paths(self.topology)
        columns = [function["bdf"] for function in self.role(to)]
        return ["".join(LETTERS[paths.path_class(gpu["bdf"], bdf)] for bdf in columns) for gpu in self.role("gpu")]


def test_every_machine_has_its_table() -> None:
    assert sorted(FACTS) == description.names()


@pytest.fixture(scope="module")
def machines(tmp_path_factory: pytest.TempPathFactory) -> dict[tuple[str, str], Seen]:
    found = {}
    for name, facts in FACTS.items():
        for scale in ("boot", "real"):
            tree = tmp_path_factory.mktemp(f"{name}-{scale}") / "tree"
            # With their own drivers at boot scale, given away at real scale.
            record(description.load(name), tree, scale, "native" if scale == "boot" else "vfio")
            entries = len(list((tree / "sys/bus/pci/devices").iterdir()))
            found[name, scale] = Seen(name, scale, facts, read_topology(tree), entries)
    return found


@pytest.fixture(params=[(name, scale) for name in FACTS for scale in ("boot", "real")], ids="-".join)
def seen(request: pytest.FixtureRequest, machines: dict[tuple[str, str], Seen]) -> Seen:
    return machines[request.param]


def test_published_schema(seen: Seen) -> None:
    assert violations(seen.topology) == []


def test_roles(seen: Seen) -> None:
    assert Counter(function["role"] for function in seen.topology["pci"] if function["role"]) == seen.facts.roles


def test_gpus(seen: Seen) -> None:
    gpus = seen.role("gpu")
    assert {f"{gpu['vendor']}:{gpu['device']} {gpu['class']}" for gpu in gpus} == {seen.facts.gpu}
    assert {max(bar["size_bytes"] for bar in gpu["bars"]) for gpu in gpus} == {seen.facts.large_bar_gib * GIB}
    assert [(gpu["numa_node"], gpu["numa_source"]) for gpu in gpus] == [(node, "own") for node in seen.facts.gpu_nodes]


def test_module_ids_where_they_are_known(seen: Seen) -> None:
    """While the native driver holds the GPUs nobody asks it here; without the driver the saved file tells."""
    nothing: list[int | None] = [None] * len(seen.role("gpu"))
    known = list(seen.facts.module_ids) or nothing
    assert [gpu["module_id"] for gpu in seen.role("gpu")] == (known if seen.scale == "real" else nothing)


def test_paths_between_gpus(seen: Seen) -> None:
    assert seen.classes("gpu") == seen.facts.gpus.split()


def test_paths_from_gpus_to_nics(seen: Seen) -> None:
    assert seen.classes("nic") == seen.facts.nics.split()


def test_paths_from_gpus_to_nvswitches(seen: Seen) -> None:
    assert seen.classes("nvswitch") == (seen.facts.nvswitches.split() or [""] * len(seen.role("gpu")))


def test_switches(seen: Seen) -> None:
    paths = Paths(seen.topology)
    assert sum(function["kind"] == "upstream_port" for function in seen.topology["pci"]) == seen.facts.switches
    assert max(len(paths.switches(function["bdf"])) for function in seen.topology["pci"] if function["role"]) == (
        seen.facts.depth
    )


def test_nothing_is_unread_or_unknown(seen: Seen) -> None:
    functions = seen.topology["pci"]
    assert len(functions) == seen.entries
    groupless = [f["class"] for f in functions if f["kind"] == "bridge" or f["iommu_group"] is None]
    assert groupless in ([], ["080600"])  # AMD's IOMMU is a function, and in no group
    for function in functions:
        if function["role"] or function["kind"] != "endpoint":
            assert (function["numa_source"], function["link"]["max_gtps"] is None) == ("own", False), function["bdf"]


def test_cpus_and_nodes(seen: Seen) -> None:
    nodes, cores = seen.topology["numa_nodes"], seen.topology["cores"]
    assert [node["id"] for node in nodes] == list(range(seen.facts.nodes))
    assert sorted(cpu for node in nodes for cpu in parse_cpulist(node["cpus"])) == list(range(2 * len(cores)))
    assert Counter(core["node"] for core in cores) == {node["id"]: len(cores) // len(nodes) for node in nodes}
    if seen.scale == "real":
        assert (len(cores), len({core["l3"] for core in cores})) == (seen.facts.cores, seen.facts.l3)
    else:
        assert 2 * len(cores) <= 16
        assert sum(node["memory_bytes"] or 0 for node in nodes) <= 12 * GIB


def test_iommu(seen: Seen) -> None:
    iommu = seen.topology["iommu"]
    assert (iommu["kind"], iommu["active"]) == (seen.facts.iommu, True)
    groups = Counter(gpu["iommu_group"] for gpu in seen.role("gpu"))
    assert set(groups.values()) == {seen.facts.gpus_per_group}


def test_facts_are_compact(seen: Seen) -> None:
    assert len(json.dumps(seen.topology)) <= seen.facts.json_bytes
    assert len(json.dumps(summarize(seen.topology, "x" * 36))) <= MAX_BYTES


def test_scales_have_the_same_devices(machines: dict[tuple[str, str], Seen]) -> None:
    def identity(seen: Seen) -> list[tuple[object, ...]]:
        return [(f["bdf"], f["device"], f["numa_node"], f["iommu_group"]) for f in seen.topology["pci"]]

    for name in FACTS:
        assert identity(machines[name, "boot"]) == identity(machines[name, "real"])


@pytest.mark.parametrize(
    ("name", "role", "groups"),
    [
        ("hgx-h200", "nvswitch", 1),  # functions of one slot
        ("hgx-h100", "nvswitch", 1),  # below one port of the first switch
        ("dgx-2", "nvswitch", 2),  # the same, on each socket
        ("hgx-a100", "nvswitch", 6),
        ("hgx-b200", "fabric_bridge", 1),
    ],
)
def test_what_the_fabric_is_made_of_shares_groups(
    machines: dict[tuple[str, str], Seen], name: str, role: str, groups: int
) -> None:
    assert len({function["iommu_group"] for function in machines[name, "boot"].role(role)}) == groups


def test_the_bridge_and_data_adapters_differ_by_vital_product_data_alone(machines: dict[tuple[str, str], Seen]) -> None:
    seen = machines["hgx-b200", "real"]
    assert [bridge["bdf"].partition(".")[2] for bridge in seen.role("fabric_bridge")] == ["0", "1", "2", "3"]
    ids = {
        (f["vendor"], f["device"], f["class"], f["subsystem"]) for f in [*seen.role("fabric_bridge"), *seen.role("nic")]
    }
    assert len(ids) == 1


# --- recordings of others


def capture(name: str) -> str:
    path = CAPTURES / name
    if not path.is_file():
        pytest.skip(f"the captures of other projects are not on this machine: {path}")
    return path.read_text(encoding="utf-8")


def published_rows(text: str) -> Iterator[tuple[str, list[str], list[str]]]:
    """Rows of ``topo -m`` that are whole up to the NICs: name, classes to NICs as letters, the rest."""
    header = next(line.split() for line in text.splitlines() if line.split()[:2] == ["GPU0", "GPU1"])
    gpus, nics = (sum(bool(re.fullmatch(rf"{name}\d+", word)) for word in header) for name in ("GPU", "NIC"))
    for line in text.splitlines():
        words = line.split()
        if re.fullmatch(r"GPU\d+", words[0]) and words != header and len(words) > gpus + nics:
            yield words[0], [LETTERS[word] for word in words[gpus + 1 : gpus + nics + 1]], words[gpus + nics + 1 :]


@pytest.mark.parametrize(
    ("machine", "name", "rows_with_nics", "rows_with_nodes"),
    [
        ("hgx-a100", "topo-m/02_dgx_a100_partial.txt", 5, 4),
        ("hgx-h200-snc", "topo-m/05_h100_or_h200_nps4_uneven_partial.txt", 6, 6),
    ],
)
def test_several_nodes_on_each_socket_as_published(
    machines: dict[tuple[str, str], Seen], machine: str, name: str, rows_with_nics: int, rows_with_nodes: int
) -> None:
    rows = list(published_rows(capture(name)))
    seen = machines[machine, "real"]
    assert ["".join(letters) for _name, letters, _rest in rows] == seen.classes("nic")[: len(rows)]
    whole = [rest for _name, _letters, rest in rows if len(rest) == 3]
    nodes = {node["id"]: node["cpus"] for node in seen.topology["numa_nodes"]}
    assert [[nodes[node], str(node)] for node in seen.facts.gpu_nodes[: len(whole)]] == [rest[:2] for rest in whole]
    assert (len(rows), len(whole)) == (rows_with_nics, rows_with_nodes)


def test_hgx_h100_as_published(machines: dict[tuple[str, str], Seen]) -> None:
    """The driver on that machine printed SYS where two host bridges of one socket are NODE for us."""
    rows = list(published_rows(capture("topo-m/03_hgx_h100.txt")))
    seen = machines["hgx-h100", "real"]
    ours = [row.replace("N", "S") for row in seen.classes("nic")]
    assert ["".join(letters) for _name, letters, _rest in rows] == ours
    nodes = {node["id"]: node["cpus"] for node in seen.topology["numa_nodes"]}
    assert [rest[:2] for _name, _letters, rest in rows] == [[nodes[n], str(n)] for n in seen.facts.gpu_nodes]


def chains(text: str) -> list[tuple[str, ...]]:
    """Node, then the addresses from the first switch down, of each device in an NCCL topology file."""

    def below(element: ET.Element, above: tuple[str, ...]) -> Iterator[tuple[str, ...]]:
        for child in element.findall("pci"):
            here = (*above, child.get("busid", ""))
            if not child.get("class", "").startswith("0x0604"):
                yield here
            yield from below(child, here)

    return sorted(chain for cpu in ET.fromstring(text).iter("cpu") for chain in below(cpu, (cpu.get("numaid", ""),)))


def test_mi300x_as_published(machines: dict[tuple[str, str], Seen]) -> None:
    seen = machines["mi300x", "real"]
    paths = Paths(seen.topology)
    ours = [
        (str(function["numa_node"]), *reversed(paths.switches(function["bdf"])), function["bdf"])
        for function in [*seen.role("gpu"), *seen.role("nic")]
    ]
    assert chains(capture("nccl/rccl_topo_8p_940.xml")) == sorted(ours)


def test_b200_as_published(machines: dict[tuple[str, str], Seen]) -> None:
    """Switches, with the number of GPUs below: that machine's GPUs have bus numbers further on."""
    published = Counter(chain[:2] for chain in chains(capture("nccl/simllm_vastai_hgx_b200_8x_nccl_topo.xml")))
    seen = machines["hgx-b200", "real"]
    paths = Paths(seen.topology)
    assert published == Counter((str(gpu["numa_node"]), paths.switches(gpu["bdf"])[0]) for gpu in seen.role("gpu"))
