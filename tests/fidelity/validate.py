# Copyright: the topovirt.kvm authors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Every definition before libvirt's schema and libvirt's own translation."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path
from typing import Any

from ansible_collections.topovirt.kvm.plugins.module_utils._errors import TopovirtError

from tests.fidelity import cases
from tests.fidelity.cases import Case
from tests.fidelity.checked_copy import without_host
from tests.fidelity.libvirt_judges import Schema, Translation, translate

#: libvirt's model of a controller -> QEMU's device (formatdomain.html, elements of controllers).
DRIVERS = {
    "pcie-expander-bus": "pxb-pcie",
    "pcie-root-port": "pcie-root-port",
    "pcie-switch-upstream-port": "x3130-upstream",
    "pcie-switch-downstream-port": "xio3130-downstream",
}


@dataclass(frozen=True)
class Verdict:
    """What the judges say of one case."""

    case: Case
    refused: str  # why there is no plan; empty when there is one, which is then judged
    devices: int
    vcpus: int
    schema: list[str]  # faults
    native: str  # fault

    @property
    def good(self) -> bool:
        return not (self.refused or self.schema or self.native)


def devices(argv: Sequence[str]) -> list[dict[str, Any]]:
    """The properties of every ``-device`` of a command line."""
    return [json.loads(value) for option, value in pairwise(argv) if option == "-device"]


def native_fault(layout: dict[str, Any], translation: Translation) -> str:
    """Why a translation is not what the layout asks for; empty when it is."""
    if not translation.argv:
        return translation.error
    wanted = Counter(DRIVERS[controller["model"]] for controller in layout["pcie"])
    wanted["vfio-pci"] = len(layout["devices"])
    found = Counter(device["driver"] for device in devices(translation.argv))
    lost = [f"{found[driver]} {driver} of {count}" for driver, count in wanted.items() if found[driver] != count]
    return f"translated to {', '.join(lost)}" if lost else ""


def judge(libvirt: Path, chosen: Iterable[Case]) -> list[Verdict]:
    """Plan each case and have it judged.

    :param libvirt: tree as baked by libvirt_tree.py.
    :raises BakeError: libvirt cannot be started.
    """
    schema = Schema(libvirt)
    refused: dict[Case, str] = {}
    planned: dict[Case, dict[str, Any]] = {}
    order = list(chosen)
    for case in order:
        try:
            planned[case] = cases.plan(case)
        except TopovirtError as error:
            refused[case] = error.message
    copies = [without_host(vm["domain_xml"], vm["layout"]["mmio"]["phys_bits"]) for vm in planned.values()]
    translations = dict(zip(planned, translate(libvirt, copies), strict=True))
    verdicts = []
    for case in order:
        if case in refused:
            verdicts.append(Verdict(case, refused[case], 0, 0, [], ""))
            continue
        vm, layout = planned[case], planned[case]["layout"]
        faults, fault = schema.faults(vm["domain_xml"]), native_fault(layout, translations[case])
        verdicts.append(Verdict(case, "", len(layout["devices"]), len(layout["vcpu_pins"]), faults, fault))
    return verdicts


def table(verdicts: Sequence[Verdict]) -> str:
    """Machine x model x size; for each firmware what schema and translation say. Faults and refusals below it."""
    rows: dict[tuple[str, str, int], dict[str, Verdict]] = {}
    for verdict in verdicts:
        case = verdict.case
        rows.setdefault((case.machine, case.model, case.gpus), {})[case.firmware] = verdict
    lines = [f"{'machine':<14} {'model':<17} {'gpus':>4} {'devices':>7} {'vcpus':>5}  schema/native"]
    for (machine, model, gpus), found in rows.items():
        counts = max((verdict.devices, verdict.vcpus) for verdict in found.values())
        said = "  ".join(f"{kind} {_word(verdict):<9}" for kind, verdict in found.items())
        lines.append(f"{machine:<14} {model:<17} {gpus:>4} {counts[0]:>7} {counts[1]:>5}  {said}".rstrip())
    reasons = [
        f"{verdict.case}: {verdict.refused or '; '.join(filter(None, [*verdict.schema[:3], verdict.native]))}"
        for verdict in verdicts
        if not verdict.good
    ]
    good, bad = sum(v.good for v in verdicts), sum(not (v.good or v.refused) for v in verdicts)
    count = f"{good} valid, {bad} faulty, {len(verdicts) - good - bad} refused by the planner"
    return "\n".join([*lines, *reasons, count])


def _word(verdict: Verdict) -> str:
    if verdict.refused:
        return "refused"
    return f"{'FAULT' if verdict.schema else 'ok'}/{'FAULT' if verdict.native else 'ok'}"
