# Copyright: the topovirt.kvm authors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Which GPUs of a VM may be told that they can reach each other over PCIe.

NVIDIA's driver trusts switches of vendors that it knows, not emulated ones; QEMU's x-nv-gpudirect-clique (a capability
in the GPU's configuration space) says in their place which GPUs are peers. Said of GPUs that cannot talk, it hangs the
board or corrupts data, so it is said only where the host's switches let their requests pass.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from itertools import combinations

from ansible_collections.topovirt.kvm.plugins.module_utils._errors import TopovirtError
from ansible_collections.topovirt.kvm.plugins.module_utils._topology.model import PciFunction

PROPERTY = "x-nv-gpudirect-clique"
_NVIDIA = "10de"
# Bits of the ACS control register (PCI Express Base Specification, Access Control Services).
_REQUEST_REDIRECT, _COMPLETION_REDIRECT, _EGRESS_CONTROL, _DIRECT_TRANSLATED = 1 << 2, 1 << 3, 1 << 5, 1 << 6


def _ports_above(bdf: str, functions: Mapping[str, PciFunction]) -> list[str]:
    """The ports above a function, nearest first."""
    ports: list[str] = []
    parent = functions[bdf]["parent"]
    while parent is not None:
        ports.append(parent)
        parent = functions[parent]["parent"]
    return ports


def _has_ats(function: PciFunction) -> bool:
    capabilities = function["capabilities"] or {}
    return "ats" in capabilities and capabilities["ats"]["enabled"]


def _why_blocked(port: PciFunction, ats: bool) -> str:
    """Why requests that enter a downstream port from below do not reach its sisters; empty when they do."""
    capabilities = port["capabilities"]
    if capabilities is None:
        return "its ACS is unknown"
    acs = capabilities["acs"]["enabled"] if "acs" in capabilities else 0
    if acs & _EGRESS_CONTROL:
        return "its ACS controls egress"
    if acs & (_REQUEST_REDIRECT | _COMPLETION_REDIRECT) and not (ats and acs & _DIRECT_TRANSLATED):
        return "its ACS redirects peers' requests"
    return ""


def _problems(a: str, b: str, functions: Mapping[str, PciFunction]) -> list[str] | None:
    """What keeps two GPUs below one switch apart; None when they share no switch."""
    above_a, above_b = _ports_above(a, functions), _ports_above(b, functions)
    meeting = next((p for p in above_a if p in above_b and functions[p]["kind"] == "upstream_port"), None)
    if meeting is None:
        return None
    ats = _has_ats(functions[a]) and _has_ats(functions[b])
    between = [port for above in (above_a, above_b) for port in above[: above.index(meeting)]]
    found = [
        (port, _why_blocked(functions[port], ats))
        for port in dict.fromkeys(between)
        if functions[port]["kind"] == "downstream_port"
    ]
    return [f"{port}: {reason}" for port, reason in found if reason]


def cliques(name: str, devices: Sequence[str], functions: Mapping[str, PciFunction]) -> dict[str, int]:
    """GPU -> number of the clique in which all can reach each other. GPUs without a peer below their switch have none.

    :param name: of the VM, for messages.
    :param devices: BDFs of the VM, in host order.
    :raises TopovirtError: when GPUs below one switch cannot talk, when it is unknown whether they can, or when no two
        GPUs share a switch.
    """
    gpus = [bdf for bdf in devices if functions[bdf]["role"] == "gpu" and functions[bdf]["vendor"] == _NVIDIA]
    peers: list[set[str]] = []
    problems: list[str] = []
    for a, b in combinations(gpus, 2):
        found = _problems(a, b, functions)
        if found is None:
            continue
        problems += found
        joined = [group for group in peers if a in group or b in group]
        peers = [group for group in peers if group not in joined] + [{a, b}.union(*joined)]
    if problems:
        raise TopovirtError(
            f"VM {name}: gpu_p2p is asked for, but GPUs below one switch cannot reach each other at "
            f"{'; '.join(dict.fromkeys(problems))}.",
            "Let the switches pass peers' requests (ACS redirection off, or direct translation with ATS), or do not "
            "ask for gpu_p2p.",
        )
    if not peers:
        raise TopovirtError(
            f"VM {name}: gpu_p2p is asked for, but no two of its NVIDIA GPUs lie below one switch.",
            "Do not ask for gpu_p2p.",
        )
    return {gpu: number for number, group in enumerate(sorted(peers, key=min)) for gpu in sorted(group)}
