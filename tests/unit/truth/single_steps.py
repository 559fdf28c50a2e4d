# Copyright: the topovirt.kvm authors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Modules that do one step alone, there and back, as cases of test_every_module.py: on servers made of files."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

from ansible_collections.topovirt.kvm.plugins.module_utils._host.journals import Journals
from ansible_collections.topovirt.kvm.tests.unit.plugins.module_utils._host import test_kernel_cmdline as cmdline_tests
from ansible_collections.topovirt.kvm.tests.unit.plugins.module_utils._host import test_pci_binding as binding_tests
from ansible_collections.topovirt.kvm.tests.unit.plugins.module_utils._host import test_pcie_acs as acs_tests
from ansible_collections.topovirt.kvm.tests.unit.plugins.module_utils._host import test_tuned_profile as tuned_tests
from ansible_collections.topovirt.kvm.tests.unit.plugins.module_utils._host.fake_host import GPU0, NIC0, NIC1, FakeHost
from ansible_collections.topovirt.kvm.tests.unit.plugins.module_utils._host.fake_red_hat import FakeRedHat
from ansible_collections.topovirt.kvm.tests.unit.plugins.module_utils._host.firmware_host import (
    FirmwareHost,
    FirmwareRedHat,
)

from tests.truth.evidence import Evidence
from tests.truth.things import Thing, Things, things
from tests.unit.truth.looking import observe
from tests.unit.truth.watched import alone, alone_back, watch


class AcsRedHat(acs_tests.AcsHost, FakeRedHat):
    """Switches with ACS below the other distribution."""


class TunedRedHat(tuned_tests.Host, FakeRedHat):
    """TuneD below the other distribution, whose tool for GRUB's block has another name; its profile was chosen."""

    def __init__(self, root: Path) -> None:
        super().__init__(root)
        self.write("etc/tuned/profile_mode", "manual\n")

    def run(self, words: list[str]) -> tuple[int, str, str]:
        return FakeHost.run(self, words) if words[0] == "grub-editenv" else super().run(words)


def _grubby_alone(root: Path) -> FakeHost:
    """It makes a file by itself that this host does not have."""
    host = cmdline_tests.Rhel(root, grubby=True)
    (root / "etc/kernel/cmdline").unlink()
    return host


@dataclass(frozen=True)
class Run:
    """One call of a module.

    :param reboot: whether the host boots again before it is looked at.
    :param boots_before: whether it booted since the run before.
    """

    options: dict[str, Any]
    reboot: bool = False
    boots_before: bool = False


@dataclass(frozen=True)
class Face:
    """What a module is tried with: servers by family, and calls one after the other, before its way back."""

    servers: dict[str, Callable[[Path], FakeHost]]
    runs: tuple[Run, ...]


FACES: dict[str, Face] = {
    "hugepages": Face(
        {"debian": FakeHost, "red-hat": FakeRedHat},
        (
            Run({"pages": {"1GiB": {"0": 3, "1": 2}}}),
            Run({"pages": {"1GiB": {"0": 1}}}),
            Run({"pages": {"1GiB": {"0": 2, "1": 4}}, "at_once": False}, reboot=True, boots_before=True),
        ),
    ),
    "kernel_cmdline": Face(
        {
            "debian": cmdline_tests.Debian,
            "red-hat": partial(cmdline_tests.Rhel, grubby=False),
            "grubby": partial(cmdline_tests.Rhel, grubby=True),
            "grubby-alone": _grubby_alone,
        },
        (
            Run(cmdline_tests.WISH),
            Run({"present": ["mitigations=off"]}),
            Run({"present": ["mitigations=auto"], "absent": ["iommu=pt"]}),
        ),
    ),
    "nic_firmware": Face(
        {"debian": FirmwareHost, "red-hat": FirmwareRedHat},
        (
            Run({"values": {"ATS_ENABLED": True}}),
            Run({"values": {"ATS_ENABLED": True, "MAX_ACC_OUT_READ": 44}}),
            Run({"values": {"MAX_ACC_OUT_READ": 44, "P2P_ORDERING_MODE": "SECURE_NONE"}}, boots_before=True),
            Run({"values": {"ATS_ENABLED": False}, "devices": [NIC1]}),
        ),
    ),
    "pci_binding": Face(
        {"debian": binding_tests.Debian, "red-hat": binding_tests.RedHat},
        (
            Run({"devices": [GPU0], "persistent": False}),
            Run({"devices": [GPU0, NIC0]}),
            Run({"devices": [GPU0]}),
            Run({"devices": [GPU0, NIC1], "at_once": False}, reboot=True),
        ),
    ),
    "pcie_acs": Face(
        {"debian": acs_tests.AcsHost, "red-hat": AcsRedHat},
        (
            Run({"bits": 0x5D, "max_read_request": 0, "at_once": False}, reboot=True),
            Run({"max_read_request": 1024}),
            Run({"bits": 0x1D, "exclude": [NIC1]}),
        ),
    ),
    "tuned_profile": Face(
        {"debian": tuned_tests.Host, "red-hat": TunedRedHat},
        (
            Run({"profile": "virtual-host"}),
            Run(tuned_tests.OWN),
            Run({"own": {"include": "cpu-partitioning", "isolated_cores": "7"}}),
        ),
    ),
}


@dataclass(frozen=True)
class Course:
    """A module's runs on one server, and its way back."""

    host: FakeHost
    original: Things
    there: list[Evidence]
    back: Evidence


def server(name: str, family: str, folder: Path) -> FakeHost:
    """A server that nobody changed, as it is after a boot where one of the runs needs one."""
    face = FACES[name]
    host = face.servers[family](folder)
    if any(run.reboot for run in face.runs):
        host.reboot()
    return host


def course(name: str, family: str, folder: Path) -> Course:
    """Each run once more for nothing, in between."""
    host = server(name, family, folder)
    original = things(observe(host))
    there = []
    for run in FACES[name].runs:
        if run.boots_before:
            host.reboot()
        there.append(alone(host, name, run.options, run.reboot))
        assert there[-1].predicted, f"{run.options} has nothing to do here"
        _nothing(alone(host, name, run.options))
    back = alone_back(host, name, original)
    _nothing(alone_back(host, name, original))
    return Course(host, original, there, back)


def _nothing(again: Evidence) -> None:
    assert not again.predicted and not again.reported and not again.seen.changes and not again.journal.new


def demand(evidence: Evidence) -> int:
    """Nothing may be untrue; returns how many things were compared."""
    found = evidence.verdict()
    assert not found.untruths, "\n".join([found.summary, *found.untruths])
    return found.compared


def _there_and_back(name: str, folder: Path) -> int:
    count = 0
    for family in FACES[name].servers:
        done = course(name, family, folder / family)
        count += sum(demand(evidence) for evidence in (*done.there, done.back))
        assert done.back.seen.after == done.original
    return count


def _with_entries_of_others(folder: Path) -> int:
    """Somebody changes an entry that has our words, takes one away, and installs a kernel that inherits them."""
    count = 0
    for family in ("red-hat", "grubby"):
        host = server("kernel_cmdline", family, folder / family)
        original = things(observe(host))
        alone(host, "kernel_cmdline", cmdline_tests.WISH)
        changed = host.root / cmdline_tests.NEW
        changed.write_text(changed.read_text().replace("console=ttyS0", "console=ttyS1"))
        options = "options root=UUID=aa ro iommu=pt"
        host.write("boot/loader/entries/abc-6.0.conf", cmdline_tests.ENTRY.format(name="6.0", options=options))
        (host.root / cmdline_tests.OLD).unlink()
        back = alone_back(host, "kernel_cmdline", original)
        count += demand(back)
        entry = Thing("boot entry", Path(cmdline_tests.NEW).stem)
        assert set(back.seen.after[entry]) == {"root=UUID=aa", "ro", "quiet", "console=tty1", "console=ttyS1"}
    return count


def host_journal(folder: Path) -> int:
    """What modules of one step made, and a conversion that did not boot yet."""
    count = 0
    for family, kind in FACES["pci_binding"].servers.items():
        host = kind(folder / family)
        original = things(observe(host))
        for name in ("hugepages", "pci_binding"):
            host.face(name, **FACES[name].runs[0].options).present(check=False)
        count += _restored(host, original)
        host.install(*host.wanted["packages"])
        original = things(observe(host))
        host.convert(until="apply")
        count += _restored(host, original)
    return count


def _restored(host: FakeHost, original: Things) -> int:
    restore = Journals(host.root, host.face, host.runner).restore
    back = watch(host, restore, original)
    assert back.predicted
    assert back.seen.after == original
    _nothing(watch(host, restore, original))
    return demand(back)


CASES: dict[str, Callable[[Path], int]] = {
    **{name: partial(_there_and_back, name) for name in FACES},
    "kernel_cmdline": lambda folder: _there_and_back("kernel_cmdline", folder) + _with_entries_of_others(folder / "x"),
    "host_journal": host_journal,
}
