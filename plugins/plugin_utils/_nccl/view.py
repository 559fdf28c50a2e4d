# Copyright: the topovirt.kvm authors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""What NCCL makes of a machine: class and bandwidth of every pair, GPUDirect, P2P, and the NIC that each GPU prefers.

Rules from NVIDIA/nccl, src/graph/paths.cc and topo.cc, main branch of 2026, with every setting at its default; the
function is named beside each. No search for channels and no tuning.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from typing import TypedDict

from ansible_collections.topovirt.kvm.plugins.module_utils._topology.model import Topology
from ansible_collections.topovirt.kvm.plugins.plugin_utils._nccl.detect import (
    KEEP,
    Detection,
    Element,
    empty,
    file_version,
    read_file,
)
from ansible_collections.topovirt.kvm.plugins.plugin_utils._nccl.graph import (
    CLASSES,
    DIS,
    NVL,
    P2C,
    PHB,
    PXB,
    PXN,
    SYS,
    UNLIMITED,
    Graph,
    Node,
    Way,
)


class Pair(TypedDict):
    """One direction between two devices. ``path`` is one of ``graph.CLASSES``."""

    source: str  # bus ids
    target: str
    path: str
    gbs: float | None  # GB/s; None: nothing that a topology tells limits it (NVLink)
    direct: bool  # GPUs: P2P. GPU and NIC: GPUDirect RDMA


class View(TypedDict):
    gpus: list[str]  # bus ids, as NVML counts
    nics: list[str]
    pairs: list[Pair]  # GPU to GPU, GPU to NIC, NIC to GPU, without a device to itself
    preferred: dict[str, str]  # GPU -> NIC of its first channel; a GPU without any NIC is not in it
    nodes: dict[str, int]  # device -> NUMA id of the CPU that NCCL hangs it below


def view(
    topology: Topology,
    gpus: Sequence[str],
    nics: Sequence[str],
    nccl_xml: str | None = None,
    *,
    nvlink: bool,
    gdr: bool = True,
    driver_p2p: bool = True,
) -> View:
    """NCCL's view of one machine, host or guest.

    :param gpus: bus ids of the GPUs that NCCL is to use, ascending as NVML counts them.
    :param nics: bus ids of the NICs that its network plug-in lists, in that order; of each one port. Ports of unlike
        speed would be told apart by it; a topology has no port speeds, so none limits.
    :param nccl_xml: text of the topology file, None without one.
    :param nvlink: whether the GPUs reach each other through NVSwitches, which no topology of a tenant tells.
    :param gdr: whether driver and NICs can do GPUDirect RDMA.
    :param driver_p2p: whether the GPU driver allows P2P over PCI.
    :raises TopovirtError: when NCCL would refuse the file.
    """
    system = empty() if nccl_xml is None else read_file(nccl_xml, file_version(topology, gpus))
    Detection(system, topology).run(gpus, nics)
    return _Model(Graph(system, nvlink), gdr, driver_p2p).view()


def view_of_dump(nccl_xml: str, *, nvlink: bool) -> View:
    """The view of a file that is a whole machine: one that NCCL wrote itself, with its GPUs and networks.

    :raises TopovirtError: when NCCL would refuse the file.
    """
    system = read_file(nccl_xml)
    for element in system.walk():
        if element.name == "gpu" or _is_net(element):
            element.attributes[KEEP] = "1"
    return _Model(Graph(system, nvlink), True, True).view()


def _is_net(element: Element) -> bool:
    return element.name == "net" and "dev" in element.attributes


class Counts(TypedDict):
    gpu_gpu: dict[str, int]  # class -> unordered pairs
    gpu_nic: dict[str, int]  # class -> pairs, as the GPU sends
    direct: int  # GPU and NIC with GPUDirect RDMA


def class_counts(shown: View) -> Counts:
    """How many pairs are of which class. Equal counts prove nothing: see ``compare``."""
    gpus, nics = set(shown["gpus"]), set(shown["nics"])
    among = [pair for pair in shown["pairs"] if pair["source"] in gpus and pair["target"] in gpus]
    out = [pair for pair in shown["pairs"] if pair["source"] in gpus and pair["target"] in nics]
    order = {gpu: place for place, gpu in enumerate(shown["gpus"])}
    return Counts(
        gpu_gpu=dict(Counter(pair["path"] for pair in among if order[pair["source"]] < order[pair["target"]])),
        gpu_nic=dict(Counter(pair["path"] for pair in out)),
        direct=sum(pair["direct"] for pair in out),
    )


# From, to -> way
_Ways = dict[tuple[Node, Node], Way]


class _Model:
    """ncclTopoComputePaths of paths.cc, in its order, which matters."""

    def __init__(self, graph: Graph, gdr: bool, driver_p2p: bool) -> None:
        self._gpus, self._nets, self._cpus = graph.of("GPU"), graph.of("NET"), graph.of("CPU")
        self._gdr, self._driver_p2p = gdr, driver_p2p
        self._ways: _Ways = {}
        for base in (*self._cpus, *self._gpus, *self._nets):
            for node, way in graph.ways_to(base).items():
                self._ways[node, base] = way
        self._local_cpu = {node: self._nearest_cpu(node) for node in (*self._gpus, *self._nets)}
        self._p2p = {(a, b): self._check_p2p(a, b) for a in self._gpus for b in self._gpus}
        for (a, b), direct in self._p2p.items():
            if not direct:
                self._divert(a, self._local_cpu[b], b)
        for net in self._nets:
            for gpu in self._gpus:
                self._relay(gpu, net)
                if self._way(gpu, net).kind < PHB and not self._check_gdr(gpu, net):
                    self._divert(net, self._local_cpu[gpu], gpu)
                    self._divert(gpu, self._local_cpu[gpu], net)

    def _way(self, source: Node, target: Node) -> Way:
        return self._ways.get((source, target), Way(DIS, 0.0, 0))

    def _nearest_cpu(self, node: Node) -> Node:
        """ncclGetLocalCpu of paths.cc"""
        return min(self._cpus, key=lambda cpu: self._way(node, cpu).hops or len(self._ways))

    def _divert(self, source: Node, middle: Node, target: Node) -> None:
        """addInterStep of paths.cc: the way leads over a CPU or, as a relay, over another GPU."""
        first, second = self._way(source, middle), self._way(middle, target)
        kind = PXN if middle.kind == "GPU" else max(first.kind, second.kind)
        self._ways[source, target] = Way(kind, min(first.gbs, second.gbs), first.hops + second.hops)

    def _check_p2p(self, a: Node, b: Node) -> bool:
        """ncclTopoCheckP2p of paths.cc: up to PXB; between two GPUs on AMD's CPUs always."""
        amd = self._cpus[0].cpu.get("vendor") == "AuthenticAMD" and self._cpus[0].cpu.get("arch") == "x86_64"
        level = SYS if amd and len(self._gpus) <= 2 else PXB
        kind = self._way(a, b).kind
        return kind <= level and (a is b or kind <= NVL or self._driver_p2p)

    def _check_gdr(self, gpu: Node, net: Node) -> bool:
        """ncclTopoCheckGdr of paths.cc: up to P2C, of the GPU that relays if one does."""
        kind = self._way(gpu, net).kind
        # A relay was only taken because it has GPUDirect itself.
        return self._gdr and net.gdr and (kind <= P2C or kind == PXN)

    def _locals(self, source: Node, targets: Sequence[Node]) -> list[Node]:
        """ncclTopoGetLocal of topo.cc: those with the most bandwidth, of them those of the nearest class."""
        best, chosen = (0.0, -DIS), list[Node]()
        for target in targets:
            way = self._way(source, target)
            rank = (way.gbs, -way.kind)
            if rank > best:
                best, chosen = rank, []
            if rank == best:
                chosen.append(target)
        return chosen

    def _local_net(self, gpu: Node, channel: int) -> Node | None:
        """The NIC of a GPU's channel (ncclTopoGetLocalNetType of topo.cc), every NIC being a rail of its own."""
        nets = self._locals(gpu, self._nets)
        if not nets:
            return None
        count = len(nets)
        per_gpu = -(-count // len(self._locals(nets[0], self._gpus)))
        first = _mirror(gpu.number, count) if count & (count - 1) == 0 else gpu.number * per_gpu % count
        return nets[(first + channel % per_gpu) % count]

    def _local_gpu(self, net: Node) -> Node | None:
        """The GPU whose own NIC this is (ncclTopoGetLocalGpu of topo.cc); channels beyond the number of NICs repeat."""
        near = self._locals(net, self._gpus)
        for channel in range(len(self._nets)):
            for gpu in near:
                if self._local_net(gpu, channel) is net:
                    return gpu
        return None

    def _relay(self, gpu: Node, net: Node) -> None:
        """Send through the GPU near the NIC if NVLink leads there (PXN, ncclTopoComputePaths of paths.cc)."""
        peer = self._local_gpu(net)
        if peer is None or peer is gpu:
            return
        way, others = self._way(gpu, net), self._way(peer, net)
        if others.kind > P2C or not self._check_gdr(peer, net) or self._way(peer, gpu).kind > NVL:
            return
        if others.gbs > way.gbs or way.kind > PXN:
            self._divert(gpu, peer, net)

    def _pair(self, source: Node, target: Node, direct: bool) -> Pair:
        way = self._way(source, target)
        gbs = way.gbs if way.gbs < UNLIMITED else None
        return Pair(source=source.name, target=target.name, path=CLASSES[way.kind], gbs=gbs, direct=direct)

    def view(self) -> View:
        gpus = sorted(self._gpus, key=lambda node: node.number)
        nets = sorted(self._nets, key=lambda node: node.number)
        pairs = [self._pair(a, b, self._p2p[a, b]) for a in gpus for b in gpus if a is not b]
        for gpu in gpus:
            for net in nets:
                direct = self._check_gdr(gpu, net)
                pairs += [self._pair(gpu, net, direct), self._pair(net, gpu, direct)]
        preferred = {gpu.name: self._local_net(gpu, 0) for gpu in gpus}
        return View(
            gpus=[node.name for node in gpus],
            nics=[node.name for node in nets],
            pairs=pairs,
            preferred={gpu: net.name for gpu, net in preferred.items() if net is not None},
            nodes={node.name: int(self._local_cpu[node].name) for node in (*gpus, *nets)},
        )


def _mirror(number: int, power_of_two: int) -> int:
    """The number's low bits in reverse order (mirrorBits of topo.h)."""
    bits = power_of_two.bit_length() - 1
    return sum((number >> bit & 1) << (bits - 1 - bit) for bit in range(bits))
