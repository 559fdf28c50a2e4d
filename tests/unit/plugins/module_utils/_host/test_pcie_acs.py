# Copyright: the topovirt.kvm authors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""ACS, ATS and read requests, on recorded servers with a register model behind the writes."""

from __future__ import annotations

import functools
import os
import re
import stat
import struct
import subprocess
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from ansible_collections.topovirt.kvm.plugins.module_utils._errors import TopovirtError
from ansible_collections.topovirt.kvm.plugins.module_utils._host.journal import Journal
from ansible_collections.topovirt.kvm.plugins.module_utils._host.pcie_acs import PcieAccess
from ansible_collections.topovirt.kvm.plugins.module_utils._host.registers import Registers
from ansible_collections.topovirt.kvm.plugins.module_utils._host.runner import Runner
from ansible_collections.topovirt.kvm.plugins.module_utils._host.single import Single
from ansible_collections.topovirt.kvm.plugins.module_utils._host.step import Change, Context, Touched, write_attribute
from ansible_collections.topovirt.kvm.plugins.module_utils._host.wanted import resolve
from ansible_collections.topovirt.kvm.plugins.module_utils._topology.reader import read_topology
from ansible_collections.topovirt.kvm.tests.unit.plugins.module_utils._host.fake_host import (
    GPU0,
    NIC0,
    WANTED,
    FakeHost,
)

from tests.twin.description import load
from tests.twin.mutations import functions, only_headers_can_be_read
from tests.twin.recorded import record
from tests.twin.registers import KERNEL_ACS, SWITCH_ACS, OutOfPlace, RegisterModel, give_switches_acs, writable

ID = "0123abcd"
ON = {"pcie_acs": {"enabled": True}}
ONLY_ACS = {"pcie_acs": {"enabled": True, "max_read_request": 0}}
L40S_NICS = {"devices": ["0000:23:00.0", "0000:a3:00.0"]}

# Read off the descriptions by hand; firmware numbers the buses in their order.
PORTS = {
    # Two GPUs and two NICs below each switch, the NVMe device behind the fifth port; root ports lie above the turn.
    "hgx-h200": {f"0000:{bus}:0{port}.0" for bus in ("22", "52", "92", "c2") for port in range(4)},
    # Two leaf switches with two GPUs and a NIC below one switch: their ports, and those that lead to them. The third
    # leaf on two of the host bridges has NVSwitches only.
    "dgx-2": {
        f"0000:{bus}.0"
        for top, first, second in (("2d", "2f", "34"), ("50", "52", "57"), ("b0", "b2", "b7"), ("d9", "db", "e0"))
        for bus in (f"{top}:00", f"{top}:01", *(f"{leaf}:0{port}" for leaf in (first, second) for port in range(3)))
    },
    # A NIC on two of four host bridges, each device on a root port.
    "pcie-l40s": {f"0000:{bus}:0{port}.0" for bus in ("20", "a0") for port in range(3)},
}
GIVEN: dict[str, dict[str, Any]] = {"hgx-h200": {}, "dgx-2": {}, "pcie-l40s": L40S_NICS}


class Tree:
    """A recorded server, under the token of a conversion, that can be put back: making one takes seconds."""

    def __init__(self, root: Path, machine: str) -> None:
        self.root = root
        record(load(machine), root, drivers="vfio")
        for directory in ("var/lib", "run"):
            (root / directory).mkdir(parents=True, exist_ok=True)
        command_line = root / "proc/cmdline"
        command_line.write_text(f"{command_line.read_text().strip()} topovirt={ID}\n")
        self._content = {path: self._read(path) for path in root.rglob("*")}
        self._marks = self._mark()

    @staticmethod
    def _read(path: Path) -> str | bytes | None:
        """Where a link leads, what a file holds; None of a directory."""
        if path.is_symlink():
            return os.readlink(path)
        return path.read_bytes() if path.is_file() else None

    def _mark(self) -> dict[Path, tuple[int, ...]]:
        """What differs when something was written, without reading it."""
        found: dict[Path, tuple[int, ...]] = {}
        for path in self.root.rglob("*"):
            info = path.lstat()
            directory = stat.S_ISDIR(info.st_mode)
            found[path] = () if directory else (info.st_ino, info.st_size, info.st_mtime_ns)
        return found

    def put_back(self) -> None:
        now = self._mark()
        wrong = {path for path, mark in now.items() if mark != self._marks.get(path)}
        for path in sorted(wrong, reverse=True):
            if path.is_dir() and not path.is_symlink():
                path.rmdir()
            else:
                path.unlink()
        for path in sorted(self._content.keys() - (now.keys() - wrong)):
            content = self._content[path]
            if content is None:
                path.mkdir()
            elif isinstance(content, str):
                path.symlink_to(content)
            else:
                path.write_bytes(content)
        self._marks = self._mark()


class Bench:
    """A recorded server, its registers, and the step."""

    def __init__(
        self, tree: Path, machine: str, supported: int = SWITCH_ACS, enabled: int = KERNEL_ACS, **model: Any
    ) -> None:
        self.root = root = tree
        give_switches_acs(root, supported, enabled)
        self.given = GIVEN[machine]
        self.model = RegisterModel(**model)
        self.attributes: list[tuple[str, str]] = []
        self.journal = Journal(root)
        self.journal.begin(ID)

    def write_attribute(self, path: Path, text: str) -> None:
        self.attributes.append((str(path.relative_to(self.root / "sys/bus/pci/devices")), text))
        write_attribute(path, text)

    def step(self, given: dict[str, Any]) -> PcieAccess:
        topology = read_topology(self.root)
        wanted = resolve({**self.given, **given}, topology, None, True)
        write = self.model.write
        return PcieAccess(Context(self.root, self.run, self.journal, topology, wanted, ID, self.write_attribute, write))

    @staticmethod
    def run(words: list[str]) -> tuple[int, str, str]:
        raise FileNotFoundError(words[0])

    def apply(self, given: dict[str, Any]) -> list[Touched]:
        """Plan and apply as the runner does; returns what to undo."""
        step = self.step(given)
        assert not step.obstacles()
        changes = step.plan()
        touched = [Touched(change.kind, change.what, step.prior(change)) for change in changes]
        for change in changes:
            self.journal.intent(change.key, step.prior(change), change.after)
        step.apply(changes)
        return touched[::-1]

    def registers(self) -> dict[str, bytes]:
        return {bdf: (path / "config").read_bytes() for bdf, path in functions(self.root).items()}

    def everything(self) -> dict[str, bytes]:
        files = (path for path in self.root.rglob("*") if path.is_file() and not path.is_symlink())
        return {str(path): path.read_bytes() for path in files if "var/lib/topovirt/journal" not in str(path)}

    def word(self, bdf: str, offset: int) -> int:
        return int(struct.unpack_from("<H", self.registers()[bdf], offset)[0])


def of_kind(changes: list[Change], kind: str) -> list[Change]:
    return [change for change in changes if change.kind == kind]


Make = Callable[..., Bench]


@pytest.fixture(scope="module")
def trees(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], Tree]:
    @functools.cache
    def tree(machine: str) -> Tree:
        return Tree(tmp_path_factory.mktemp("trees") / machine, machine)

    return tree


@pytest.fixture
def make(trees: Callable[[str], Tree]) -> Iterator[Make]:
    used: list[Tree] = []

    def bench(machine: str, **model: Any) -> Bench:
        used.append(trees(machine))
        return Bench(used[-1].root, machine, **model)

    yield bench
    for tree in used:
        tree.put_back()


@pytest.fixture
def h200(make: Make) -> Bench:
    return make("hgx-h200")


# --- what is planned and written ----------------------------------------------------------------------------------


def test_nothing_is_planned_unless_asked_for(h200: Bench) -> None:
    step = h200.step({})
    assert (step.plan(), step.differences(), step.obstacles()) == ([], [], [])


@pytest.mark.parametrize("machine", PORTS)
def test_only_ports_on_paths_between_gpus_and_nics_are_written(make: Make, machine: str) -> None:
    bench = make(machine)
    before = bench.registers()
    bench.apply(ONLY_ACS)
    after = bench.registers()
    changed = {bdf for bdf in before if after[bdf] != before[bdf]}
    assert changed == {bdf for bdf, _offset, _value in bench.model.written} == PORTS[machine]
    assert {value for _bdf, _offset, value in bench.model.written} == {0x5D}
    for bdf in changed:  # one bit of one byte
        places = [place for place in range(4096) if after[bdf][place] != before[bdf][place]]
        assert [(before[bdf][place], after[bdf][place]) for place in places] == [(0x1D, 0x5D)]


@pytest.mark.parametrize("machine", PORTS)
def test_the_plan_is_numbers_and_the_second_one_is_empty(make: Make, machine: str) -> None:
    bench = make(machine)
    planned = of_kind(bench.step(ONLY_ACS).plan(), "register")
    assert {(change.what, change.before, change.after, change.reboot) for change in planned} == {
        (f"{bdf} acs_control", 0x1D, 0x5D, False) for bdf in PORTS[machine]
    }
    assert bench.model.written == []
    assert len(bench.step(ONLY_ACS).differences()) == len(PORTS[machine])
    bench.apply(ONLY_ACS)
    step = bench.step(ONLY_ACS)
    assert (step.plan(), step.differences()) == ([], [])
    assert set(step.read().values()) == {0x5D}


@pytest.mark.parametrize("machine", PORTS)
def test_undo_restores_every_byte(make: Make, machine: str) -> None:
    bench = make(machine)
    before = bench.everything()
    touched = bench.apply({"pcie_acs": {"enabled": True, "ats": True, "max_read_request": 4096}})
    assert bench.everything() != before
    step = bench.step({})
    for thing in touched:  # one by one, as the runner does
        step.undo([thing])
    assert bench.everything() == before
    step.undo(touched)  # again, after an interruption
    assert bench.everything() == before


def test_bits_that_a_port_does_not_support_are_never_written(make: Make) -> None:
    bench = make("hgx-h200", supported=0x204D)
    bench.apply(ONLY_ACS)
    assert {value for _bdf, _offset, value in bench.model.written} == {0x4D}


def test_ports_without_direct_translation_stay_as_they_are(make: Make) -> None:
    bench = make("hgx-h200", supported=0x1F)
    assert of_kind(bench.step(ONLY_ACS).plan(), "register") == []


def test_bits_above_the_seventh_are_the_kernels(h200: Bench) -> None:
    port = functions(h200.root)["0000:22:00.0"] / "config"
    data = bytearray(port.read_bytes())
    data[0x14F] = 0x10  # unclaimed request redirection
    port.write_bytes(data)
    h200.apply(ONLY_ACS)
    assert h200.word("0000:22:00.0", 0x14E) == 0x105D


def test_read_requests_of_nics_only_and_nothing_else_of_their_register(h200: Bench) -> None:
    before = h200.registers()
    h200.apply(ON)
    nics = {f"0000:{bus}:00.0" for bus in ("25", "26", "55", "56", "95", "96", "c5", "c6")}
    written = {bdf: value for bdf, _offset, value in h200.model.written if bdf not in PORTS["hgx-h200"]}
    assert written == dict.fromkeys(nics, 0x5810)
    for bdf in nics:
        topology = read_topology(h200.root)
        capabilities = next(f for f in topology["pci"] if f["bdf"] == bdf)["capabilities"]
        assert capabilities is not None
        assert capabilities["max_read_request_bytes"] == 4096
        assert h200.registers()[bdf][:0x69] == before[bdf][:0x69]


def test_address_translation_is_left_to_the_kernel_unless_asked_for(make: Make) -> None:
    bench = make("pcie-l40s")
    assert "ats_control" not in str(bench.step(ON).plan())
    changes = of_kind(bench.step({"pcie_acs": {"enabled": True, "ats": True}}).plan(), "register")
    translated = {change.what: (change.before, change.after) for change in changes if "ats_control" in change.what}
    assert translated == {f"{bdf} ats_control": (0, 0x8000) for bdf in L40S_NICS["devices"]}  # GPUs have no ATS


# --- what goes wrong ----------------------------------------------------------------------------------------------


def test_a_bit_that_does_not_stick_is_caught_and_all_is_put_back(make: Make) -> None:
    bench = make("hgx-h200", stuck={"0000:92:01.0": 0x40})
    before = bench.registers()
    with pytest.raises(TopovirtError) as error:
        bench.apply(ON)
    assert "0000:92:01.0: acs_control at 0x14e was written as 0x005d and reads back as 0x001d" in str(error.value)
    assert "All registers are as before." in str(error.value)
    assert len(bench.model.written) > 2
    assert bench.registers() == before


def test_a_refused_write_is_told_and_all_is_put_back(make: Make) -> None:
    bench = make("hgx-h200", forbidden=["0000:c2:03.0"])
    before = bench.registers()
    with pytest.raises(TopovirtError, match=r"0000:c2:03\.0: the kernel refused 0x005d for acs_control.*lockdown"):
        bench.apply(ON)
    assert bench.registers() == before


def test_changed_iommu_groups_are_not_left_so(h200: Bench) -> None:
    before = h200.registers()
    write = h200.model.write

    def merging(path: Path, offset: int, data: bytes) -> None:
        write(path, offset, data)
        group = functions(h200.root)[GPU0] / "iommu_group"
        target = os.readlink(group)
        group.unlink()
        group.symlink_to(f"{target}9")

    h200.model.write = merging  # type: ignore[method-assign]
    with pytest.raises(TopovirtError, match="IOMMU groups changed"):
        h200.apply(ON)
    assert h200.registers() == before


def test_what_cannot_be_put_back_is_said(make: Make) -> None:
    bench = make("hgx-h200", stuck={"0000:92:01.0": 0x40})
    write = bench.model.write

    def once(path: Path, offset: int, data: bytes) -> None:
        if path.parent.name == "0000:22:00.0" and bench.model.written:
            raise PermissionError(1, "Operation not permitted")
        write(path, offset, data)

    bench.model.write = once  # type: ignore[method-assign]
    with pytest.raises(TopovirtError, match=r"not put back: 0000:22:00\.0: the kernel refused 0x001d"):
        bench.apply(ONLY_ACS)


def test_a_device_that_died_does_not_stop_the_way_back(h200: Bench) -> None:
    before = h200.registers()
    touched = h200.apply(ONLY_ACS)
    (functions(h200.root)["0000:22:00.0"] / "config").write_bytes(b"\xff" * 4096)
    (h200.root / "sys/bus/pci/devices/0000:22:01.0").unlink()
    step = h200.step({})
    for thing in touched:
        step.undo([thing])
    assert [text for text in step.context.kept if "0000:22" in text] == [
        "0000:22:00.0 acs_control, until the reboot: 0000:22:00.0: its registers are unknown: the device does not "
        "answer to reads of its configuration space."
    ]
    after = h200.registers()
    assert all(after[bdf] == before[bdf] for bdf in after if bdf != "0000:22:00.0")


# --- refused before any change ------------------------------------------------------------------------------------


def obstacles(bench: Bench, given: dict[str, Any]) -> str:
    found = bench.step(given).obstacles()
    assert bench.model.written == []
    return "\n".join(found)


@pytest.mark.parametrize("mode", ["integrity", "confidentiality"])
def test_a_locked_down_kernel(h200: Bench, mode: str) -> None:
    (h200.root / "sys/kernel/security/lockdown").write_text(
        "none integrity confidentiality\n".replace(mode, f"[{mode}]")
    )
    assert f"locked down ({mode})" in obstacles(h200, ON)
    assert obstacles(h200, {}) == ""


def test_unknown_lockdown_is_no_permission(h200: Bench) -> None:
    (h200.root / "sys/kernel/security/lockdown").unlink()
    assert obstacles(h200, ON) == ""  # securityfs is there: a kernel without lockdown
    (h200.root / "sys/kernel/security").rmdir()
    assert "unknown: securityfs is not mounted" in obstacles(h200, ON)


def test_unreadable_registers_are_named_and_not_guessed(h200: Bench) -> None:
    only_headers_can_be_read(h200.root)
    said = obstacles(h200, ON)
    for bdf in (*PORTS["hgx-h200"], GPU0):
        assert f"the registers of {bdf} are unknown: only the header" in said
    assert "0000:20:00.0" not in said  # above the turn: its registers do not matter


def test_isolation_that_is_on_is_not_switched_off(make: Make) -> None:
    bench = make("hgx-h200", enabled=0x1F)
    assert "port 0000:22:00.0 has ACS bits 0x02 on, which 0x5d does not contain" in obstacles(bench, ON)
    assert obstacles(bench, {"pcie_acs": {"enabled": True, "bits": 0x5F}}) == ""


@pytest.mark.parametrize(
    ("word", "given", "refused"),
    [
        ("pci=config_acs=10111x1@0000:22:00.0", {}, True),
        ("pci=nommconf,disable_acs_redir=0000:22:00.0", {}, True),
        ("pci=noats", {}, False),
        ("pci=noats", {"ats": True}, True),
        ("pci=pcie_bus_perf", {}, True),
        ("pci=pcie_bus_perf", {"max_read_request": 0}, False),
        ("pci=realloc", {"ats": True}, False),
    ],
)
def test_kernel_arguments_that_want_something_else(
    h200: Bench, word: str, given: dict[str, Any], refused: bool
) -> None:
    said = obstacles(h200, {"cmdline": [word], "pcie_acs": {"enabled": True, **given}})
    assert (f"{word} wants something else" in said) == refused
    running = h200.root / "proc/cmdline"
    running.write_text(f"{running.read_text().strip()} {word}\n")
    assert bool(obstacles(h200, {"pcie_acs": {"enabled": True, **given}})) == refused


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ({"enabled": True, "bits": 0}, "0x00 must contain 0x1d"),
        ({"enabled": True, "bits": 0x7D}, "nothing beyond 0x5f"),
        ({"enabled": True, "max_read_request": 1000}, "1000 is none of 0, 128, 256"),
        ({"bits": 0x5D}, "bits is given, but not enabled: true"),
    ],
)
def test_wishes_that_are_refused(h200: Bench, given: dict[str, Any], message: str) -> None:
    with pytest.raises(TopovirtError, match=re.escape(message)):
        h200.step({"pcie_acs": given})


# --- change of mind -----------------------------------------------------------------------------------------------


def test_switched_off_on_a_converted_host_the_registers_go_back(h200: Bench) -> None:
    before = h200.registers()
    h200.apply(ON)
    h200.apply({})
    assert h200.registers() == before
    assert not (h200.root / "run/topovirt-registers").exists()
    assert (
        "\nwant 0000:" not in (h200.root / "var/lib/topovirt/pcie-acs.sh").read_text()
    )  # nor are they set at the next boot
    assert h200.step({}).plan() == []


def test_other_bits_on_a_converted_host(h200: Bench) -> None:
    before = h200.registers()
    touched = h200.apply(ONLY_ACS)
    touched = [*h200.apply({"pcie_acs": {"enabled": True, "bits": 0x1D, "max_read_request": 0}}), *touched]
    assert h200.registers() == before
    h200.step({}).undo(touched)
    assert h200.registers() == before


def test_sleeping_functions_are_awake_while_they_are_written(h200: Bench) -> None:
    power = functions(h200.root)["0000:22:00.0"] / "power"
    power.mkdir()
    (power / "control").write_text("auto\n")
    h200.apply(ONLY_ACS)
    name = "0000:22:00.0/power/control"
    assert h200.attributes == [(name, "on"), (name, "auto")]


def test_a_function_that_cannot_be_woken_is_not_written(h200: Bench, monkeypatch: pytest.MonkeyPatch) -> None:
    power = functions(h200.root)["0000:22:03.0"] / "power"
    power.mkdir()
    (power / "control").write_text("auto\n")
    before = h200.registers()

    def refuse(_path: Path, _text: str) -> None:
        raise OSError(5, "Input/output error")

    monkeypatch.setattr(h200, "write_attribute", refuse)
    with pytest.raises(TopovirtError, match=r"0000:22:03\.0: the kernel cannot wake it: Input/output error"):
        h200.apply(ONLY_ACS)
    assert h200.registers() == before


def test_the_model_takes_registers_only(h200: Bench) -> None:
    path = functions(h200.root)["0000:22:00.0"] / "config"
    for offset, data in ((0x04, b"\x07\x00"), (0x14C, b"\x7f\x00"), (0x14E, b"\x5d"), (0x14E, b"\x5d\0\0\0")):
        with pytest.raises(OutOfPlace):
            h200.model.write(path, offset, data)


def test_writes_reach_a_file_as_one_access(h200: Bench, monkeypatch: pytest.MonkeyPatch) -> None:
    from ansible_collections.topovirt.kvm.plugins.module_utils._host import registers

    accesses: list[tuple[int, int]] = []

    def pwrite(descriptor: int, data: bytes, offset: int) -> int:
        accesses.append((len(data), offset))
        os.lseek(descriptor, offset, os.SEEK_SET)
        return os.write(descriptor, data)

    monkeypatch.setattr(os, "pwrite", pwrite)
    Registers(h200.root, registers.write_config, write_attribute).write("0000:22:00.0", "acs_control", 0x5D)
    assert accesses == [(2, 0x14E)]
    assert h200.word("0000:22:00.0", 0x14E) == 0x5D


# --- the unit at boot ---------------------------------------------------------------------------------------------


def run_script(root: Path, script: str = "var/lib/topovirt/pcie-acs.sh") -> subprocess.CompletedProcess[str]:
    """What the unit runs, with this tree in place of the machine."""
    text = (root / script).read_text()
    text = text.replace("=/sys/", f"={root}/sys/").replace("=/run/", f"={root}/run/")
    return subprocess.run(["/bin/sh", "-s"], input=text, capture_output=True, text=True, check=False)


@pytest.fixture
def rebooted(make: Make) -> tuple[Bench, dict[str, bytes], dict[str, bytes]]:
    """A converted server after a reboot: its registers then, and as they were set before."""
    bench = make("hgx-h200")
    fresh = bench.registers()
    bench.apply(ON)
    wanted = bench.registers()
    for bdf, path in functions(bench.root).items():
        if fresh[bdf] != wanted[bdf]:
            (path / "config").write_bytes(fresh[bdf])
    (bench.root / "run/topovirt-registers").unlink()
    return bench, fresh, wanted


def test_the_unit_does_what_a_run_does(rebooted: tuple[Bench, dict[str, bytes], dict[str, bytes]]) -> None:
    bench, fresh, wanted = rebooted
    done = run_script(bench.root)
    assert (done.returncode, done.stderr) == (0, "")
    assert bench.registers() == wanted != fresh
    assert bench.step(ON).plan() == []
    assert run_script(bench.root).returncode == 0  # a second start takes nothing for found that it wrote itself
    bench.step({}).undo([Touched("register", "0000:52:00.0 acs_control", 0)])
    assert bench.registers() == fresh


def change_device(config: bytearray) -> None:
    config[0x148] = 0x0E  # another capability at the place


def no_answer(config: bytearray) -> None:
    config[:] = b"\xff" * len(config)


@pytest.mark.parametrize("mutation", [change_device, no_answer])
def test_the_unit_leaves_another_device_alone(
    rebooted: tuple[Bench, dict[str, bytes], dict[str, bytes]], mutation: Callable[[bytearray], None]
) -> None:
    bench, _fresh, wanted = rebooted
    path = functions(bench.root)["0000:52:00.0"] / "config"
    other = bytearray(path.read_bytes())
    mutation(other)
    path.write_bytes(other)
    done = run_script(bench.root)
    assert done.returncode == 1
    assert done.stderr == "0000:52:00.0: is not the device that acs_control was recorded of\n"
    assert bench.registers() == {**wanted, "0000:52:00.0": bytes(other)}


def test_the_unit_knows_the_device_by_its_ids(rebooted: tuple[Bench, dict[str, bytes], dict[str, bytes]]) -> None:
    bench, fresh, _wanted = rebooted
    (functions(bench.root)["0000:52:00.0"] / "device").write_text("0x9999\n")
    assert run_script(bench.root).returncode == 1
    assert bench.registers()["0000:52:00.0"] == fresh["0000:52:00.0"]


def test_the_unit_comes_before_guests_and_under_the_token_only(h200: Bench) -> None:
    h200.apply(ON)
    units = h200.root / "etc/systemd/system"
    text = (units / "topovirt-pcie-acs.service").read_text()
    before = re.search(r"^Before=(.*)$", text, re.M)
    assert before is not None
    assert {"libvirtd.service", "virtqemud.service"} <= set(before[1].split())
    assert f"\nConditionKernelCommandLine=topovirt={ID}\n" in text
    assert (units / "sysinit.target.wants/topovirt-pcie-acs.service").is_symlink()


# --- the whole conversion -----------------------------------------------------------------------------------------


class AcsHost(FakeHost):
    """Its switches have ACS. Linux switches ACS on where the IOMMU is on, so only in the conversion's entry; a reset
    clears what else was set."""

    def __init__(self, root: Path) -> None:
        super().__init__(root)
        self.write("sys/kernel/security/lockdown", "[none] integrity confidentiality\n")
        self.ports = give_switches_acs(root, enabled=0)
        self.model = RegisterModel()

    def runner(self) -> Runner:
        return Runner(self.root, self.run, lambda: read_topology(self.root), self.write_attribute, self.model.write)

    def face(self, name: str, **options: Any) -> Single:
        return replace(super().face(name, **options), write_config=self.model.write)

    def reboot(self) -> None:
        super().reboot()
        (self.root / "run/topovirt-registers").unlink(missing_ok=True)
        arguments = (self.root / "proc/cmdline").read_text()
        for bdf in (*self.ports, GPU0, NIC0):
            path = functions(self.root)[bdf]
            data = bytearray((path / "config").read_bytes())
            if bdf in self.ports:
                struct.pack_into("<H", data, 0x14E, KERNEL_ACS if "intel_iommu=on" in arguments else 0)
            else:
                struct.pack_into("<H", data, 0x68, 0x2000)
            (path / "config").write_bytes(data)
        if self._runs("topovirt-pcie-acs.service", arguments):
            unit = (self.root / "etc/systemd/system/topovirt-pcie-acs.service").read_text()
            script = re.findall(r"^ExecStart=/bin/sh /(\S+)$", unit, re.M)[0]
            assert run_script(self.root, script).returncode == 0

    def acs(self) -> dict[str, int]:
        words = {bdf: (functions(self.root)[bdf] / "config").read_bytes()[0x14E:0x150] for bdf in self.ports}
        return {bdf: int.from_bytes(word, "little") for bdf, word in words.items()}


WANTED_ON = {**WANTED, **ON}


@pytest.fixture
def host(tmp_path: Path) -> AcsHost:
    return AcsHost(tmp_path)


def test_a_conversion_sets_registers_with_its_boot_only(host: AcsHost) -> None:
    on_paths = {"0000:22:00.0", "0000:22:01.0", "0000:92:00.0", "0000:92:01.0"}
    before = host.snapshot()
    planned = [change for change in host.runner().plan(WANTED_ON).plan if change.kind == "register"]
    assert {change.what: (change.before, change.after, change.reboot) for change in planned} == {
        **{f"{bdf} acs_control": (0, 0x5D, True) for bdf in on_paths},
        **{f"{bdf} device_control": (0x2000, 0x5000, True) for bdf in (NIC0, "0000:94:00.0")},
    }
    host.convert(WANTED_ON)
    assert host.model.written == []  # the unit did it
    assert host.acs() == {bdf: 0x5D if bdf in on_paths else 0x1D for bdf in host.ports}
    assert not host.convert(WANTED_ON)

    runner = host.runner()
    assert runner.undo(discard=False, check=False).reboot_required
    assert set(host.acs().values()) == {0x1D}  # as this boot's kernel had set them
    host.reboot()
    runner.finish(discard=False, check=False)
    assert set(host.acs().values()) == {0}
    assert host.snapshot() == before


def test_on_a_converted_host_registers_are_set_and_reset_without_a_reboot(host: AcsHost) -> None:
    before = host.snapshot()
    host.convert(WANTED)
    assert host.model.written == []
    report = host.runner().apply(WANTED_ON, check=False)
    assert report.changed
    assert not report.reboot_required
    assert host.acs()["0000:22:00.0"] == 0x5D
    assert not host.runner().verify(WANTED_ON).differences
    assert not host.convert(WANTED_ON)
    host.convert(WANTED)
    assert set(host.acs().values()) == {0x1D}
    host.reboot()
    assert set(host.acs().values()) == {0x1D}
    host.go_back()
    assert host.snapshot() == before


def test_registers_that_were_reset_meanwhile_are_a_difference(host: AcsHost) -> None:
    host.convert(WANTED_ON)
    path = functions(host.root)["0000:22:01.0"] / "config"
    data = bytearray(path.read_bytes())
    struct.pack_into("<H", data, 0x14E, KERNEL_ACS)
    path.write_bytes(data)
    assert host.runner().verify(WANTED_ON).differences == ["0000:22:01.0: wanted 0x005d in acs_control, found 0x001d"]
    host.convert(WANTED_ON)
    assert host.acs()["0000:22:01.0"] == 0x5D


def test_a_locked_down_host_is_refused_whole(host: AcsHost) -> None:
    host.write("sys/kernel/security/lockdown", "none [integrity] confidentiality\n")
    before = host.snapshot()
    with pytest.raises(TopovirtError, match="locked down") as error:
        host.runner().record(WANTED_ON, check=False)
    assert "Nothing was changed." in str(error.value)
    assert host.snapshot() == before
    assert host.model.written == []
    host.runner().record(WANTED, check=False)


def test_a_power_cut_between_registers(host: AcsHost) -> None:
    """Half of the registers are written: the next run writes the others, the way back restores all."""
    host.convert(WANTED)
    write, done = host.model.write, host.model.written

    def failing(path: Path, offset: int, data: bytes) -> None:
        if len(done) == 2:
            raise KeyboardInterrupt
        write(path, offset, data)

    host.model.write = failing  # type: ignore[method-assign]
    with pytest.raises(KeyboardInterrupt):
        host.runner().apply(WANTED_ON, check=False)
    host.model.write = write  # type: ignore[method-assign]
    assert sorted(host.acs().values()).count(0x5D) == 2
    assert host.convert(WANTED_ON)
    assert sorted(host.acs().values()).count(0x5D) == 4
    host.runner().undo(discard=False, check=False)
    assert set(host.acs().values()) == {0x1D}


def test_the_capability_itself_is_read_only(h200: Bench) -> None:
    space = h200.registers()["0000:22:00.0"]
    assert writable(space) == {0x48: 0x7FFF, 0x14E: 0x7F}
