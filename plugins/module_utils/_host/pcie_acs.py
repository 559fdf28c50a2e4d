# Copyright: the topovirt.kvm authors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Registers that decide how GPUs and NICs of guests reach each other: ACS of the ports on their paths, address
translation (ATS) of the devices, size of the NICs' read requests.

A write here lasts until the next reset, so a unit of ours does it at each boot, before guests start by themselves. What
a register held before its first write is kept where a reboot clears it, for a reboot puts the register back too.
"""

from __future__ import annotations

import os
from dataclasses import dataclass
from itertools import product
from typing import Any, Dict, Iterator, List, Optional, Sequence, Set, Tuple

from ansible_collections.topovirt.kvm.plugins.module_utils._errors import TopovirtError
from ansible_collections.topovirt.kvm.plugins.module_utils._host.early_unit import plan_early_script
from ansible_collections.topovirt.kvm.plugins.module_utils._host.files import write_file
from ansible_collections.topovirt.kvm.plugins.module_utils._host.places import REGISTERS_FOUND
from ansible_collections.topovirt.kvm.plugins.module_utils._host.registers import (
    ACS_BITS,
    ACS_DIRECT_TRANSLATED,
    REGISTERS,
    Registers,
)
from ansible_collections.topovirt.kvm.plugins.module_utils._host.step import (
    AS_BEFORE,
    AS_WRITTEN,
    CHANGED,
    GONE,
    Change,
    Context,
    Step,
    Thing,
    Touched,
)
from ansible_collections.topovirt.kvm.plugins.module_utils._topology.config_space import ATS_ENABLE, READ_REQUESTS
from ansible_collections.topovirt.kvm.plugins.module_utils._topology.model import Capabilities
from ansible_collections.topovirt.kvm.plugins.module_utils._topology.paths import Paths
from ansible_collections.topovirt.kvm.plugins.module_utils._topology.pci import DEVICES, bdf_key

UNIT = "topovirt-pcie-acs.service"
_DESCRIPTION = "PCIe access control between GPUs and NICs of virtual machines"
_SCRIPT_NAME = "pcie-acs.sh"

# Words of the kernel argument pci= that speak against a part of the step, and why (kernel-parameters.txt). With
# pcie_bus_perf devices that take larger packets than others rely on small read requests.
_SET_BY_KERNEL = ("config_acs=", "disable_acs_redir=")
_NO_ATS = "noats"
_SMALL_REQUESTS = "pcie_bus_perf"

# Each register is one access of two bytes at an even offset, as the device wants it. Another device at the address, or
# another capability at its place, is left alone. A function is kept awake meanwhile (see registers.py).
_SCRIPT_TEXT = """\
#!/bin/sh
# Written by the Ansible collection topovirt.kvm; removed by its way back.
found=/{found}
failed=0
word() {{
    dd if="$device/config" bs=2 skip=$(($1 / 2)) count=1 2>/dev/null | od -An -tu2 | tr -d ' '
}}
put() {{
    printf "\\\\$(printf %03o $(($2 & 255)))\\\\$(printf %03o $(($2 >> 8)))" |
        dd of="$device/config" bs=2 seek=$(($1 / 2)) count=1 iflag=fullblock conv=notrunc 2>/dev/null
}}
# address, vendor, device, offset and first word of the capability, register, its offset, bits, their value
want() {{
    device=/sys/bus/pci/devices/$1
    vendor= model=
    read -r vendor < "$device/vendor"
    read -r model < "$device/device"
    if [ "$vendor $model" != "$2 $3" ] || [ "$(word "$4")" != "$(($5))" ]; then
        echo "$1: is not the device that $6 was recorded of" >&2
        failed=1
        return
    fi
    control=$device/power/control
    power=
    [ -e "$control" ] && read -r power < "$control"
    [ "$power" = auto ] && echo on > "$control"
    old=$(word "$7")
    new=$((old & ~$8 | $9))
    grep -qs "^$1 $6 " "$found" || echo "$1 $6 $old" >> "$found"
    [ "$old" = "$new" ] || put "$7" "$new"
    got=$(word "$7")
    [ "$power" = auto ] && echo auto > "$control"
    [ "$got" = "$new" ] && return
    printf '%s: %s at %s: wanted 0x%04x, reads back as 0x%04x\\n' "$1" "$6" "$7" "$new" "$got" >&2
    failed=1
}}
{lines}exit $failed
"""


@dataclass(frozen=True)
class Setting:
    """What bits of one register shall be."""

    bdf: str
    name: str  # of registers.REGISTERS
    mask: int
    value: int

    @property
    def what(self) -> str:
        return f"{self.bdf} {self.name}"


class PcieAccess(Step):
    """ACS, ATS and read requests between the GPUs and NICs that guests may own."""

    name = "pcie_acs"
    disturbs_vms = True

    def __init__(self, context: Context) -> None:
        super().__init__(context)
        self._registers = Registers(context.root, context.write_config, context.write)
        self._paths = Paths(context.topology)
        self._script = context.journal.place / _SCRIPT_NAME

    def obstacles(self) -> List[str]:
        """Why the registers cannot, or must not, be written: a sentence each."""
        wanted = self.context.wanted.pcie_acs
        if wanted is None:
            return []
        ports, devices = self._ports_and_devices()
        reasons = [*self._lockdown(), *self._arguments(wanted.ats, wanted.max_read_request)]
        reasons += [
            f"pcie_acs: the registers of {bdf} are unknown: {self._why_unknown(bdf)}"
            for bdf in (*ports, *devices)
            if self._paths.function(bdf)["capabilities"] is None
        ]
        if self.context.alone and not ports:
            reasons.append("pcie_acs: no GPU and NIC of this host have a path below one host bridge")
        found = self._found()
        for bdf in ports:
            acs = self._capabilities(bdf).get("acs")
            if acs is None:
                continue
            extra = found.get((bdf, "acs_control"), acs["enabled"]) & ACS_BITS & ~ACS_DIRECT_TRANSLATED & ~wanted.bits
            if extra:
                reasons.append(
                    f"pcie_acs: port {bdf} has ACS bits {extra:#04x} on, which {wanted.bits:#04x} does not contain: "
                    "what firmware or kernel keep apart is not put together"
                )
        return reasons

    def read(self) -> Dict[str, Any]:
        """``{"<bdf> <register>": what it holds}`` for every register that is to be set."""
        return {setting.what: self._registers.read(setting.bdf, setting.name) for setting in self._settings()}

    def plan(self) -> List[Change]:
        settings, touched = self._settings(), self.context.journal.first_priors()
        if not settings and (self.name, "file", str(self._script)) not in touched:
            return []
        changes = []
        for setting in settings:
            # Recorded before the reboot that is still to come, as the change of a device's driver is.
            if (self.name, "register", setting.what) in touched and not self.context.acts_now:
                continue
            before = self._registers.read(setting.bdf, setting.name)
            changes += self._change(setting.what, before, before & ~setting.mask | setting.value)
        for bdf, name in self._found().keys() - {(setting.bdf, setting.name) for setting in settings}:
            before = self._registers.read(bdf, name)
            changes += self._change(f"{bdf} {name}", before, self._as_found(bdf, name, before))
        lines = "".join(self._line(setting) for setting in settings)
        script = _SCRIPT_TEXT.format(found=REGISTERS_FOUND, lines=lines)
        return [
            *sorted(changes, key=lambda change: change.what),
            *plan_early_script(self, UNIT, _DESCRIPTION, self._script, script),
        ]

    def early(self) -> bool:
        # A reboot that does not reset the devices (kexec) must find the registers as they were.
        return True

    def differences(self) -> List[str]:
        wrong = []
        for setting in self._settings():
            value = self._registers.read(setting.bdf, setting.name)
            wanted = value & ~setting.mask | setting.value
            if value != wanted:
                wrong.append(f"{setting.bdf}: wanted {wanted:#06x} in {setting.name}, found {value:#06x}")
        return wrong

    def prior(self, change: Change) -> Any:
        return change.before if change.kind == "register" else super().prior(change)

    def apply(self, changes: Sequence[Change]) -> None:
        super().apply([change for change in changes if change.kind != "register"])
        if not self.context.acts_now:
            return  # the boot does it
        settings = {setting.what: setting for setting in self._settings()}
        self._write(
            [(*_parts(change.what), settings.get(change.what)) for change in changes if change.kind == "register"]
        )

    def find(self, thing: Thing) -> str:
        if thing.kind != "register":
            return super().find(thing)
        bdf, name = _parts(thing.what)
        if not (self.context.root / DEVICES / bdf).exists():
            return GONE
        return CHANGED if self._foreign(bdf, name) else AS_WRITTEN if (bdf, name) in self._found() else AS_BEFORE

    def results(self, changes: Sequence[Change]) -> Dict[str, Any]:
        return {"registers": self.read()}

    def reboot_required(self) -> bool:
        return bool(self.context.alone and self.differences())

    def undo(self, touched: Sequence[Touched]) -> None:
        # All that was written in this boot, by the unit or by a run; what another boot wrote, its end has undone. A
        # device that died must not stop the way back: the reboot that comes next resets it.
        for bdf, name in sorted(self._found()):
            if self.context.alone and self._foreign(bdf, name):
                self._forget(bdf, name)
                continue
            wrong = self._restore(bdf, name)
            left = f"{bdf} {name}, until the reboot: {wrong}"
            if wrong and left not in self.context.kept:
                self.context.kept.append(left)
        super().undo([thing for thing in touched if thing.kind != "register"])

    # --- what is wanted

    def _ports_and_devices(self) -> Tuple[List[str], List[str]]:
        """Ports on the paths between GPUs and NICs of the passthrough set, and those devices, in the order of BDFs.

        A pair counts when its path stays below one host bridge: only there do ports decide where requests go.
        """
        members = self.context.wanted.devices
        ports: Set[str] = set()
        devices: Set[str] = set()
        gpus, nics = ([bdf for bdf, role in members.items() if role == wanted] for wanted in ("gpu", "nic"))
        for pair in product(gpus, nics):
            between = self._paths.ports_between(*pair)
            ports.update(between)
            devices.update(pair if between else ())
        return sorted(ports, key=bdf_key), sorted(devices, key=bdf_key)

    def _settings(self) -> List[Setting]:
        return list(self._make_settings())

    def _make_settings(self) -> Iterator[Setting]:
        wanted = self.context.wanted.pcie_acs
        if wanted is None:
            return
        ports, devices = self._ports_and_devices()
        for bdf in ports:
            acs = self._capabilities(bdf).get("acs")
            if acs is not None:
                bits = wanted.bits & acs["supported"]
                # Isolation is never switched off, only the way around it.
                yield Setting(bdf, "acs_control", bits | ACS_DIRECT_TRANSLATED, bits)
        for bdf in devices:
            function, capabilities = self._paths.function(bdf), self._capabilities(bdf)
            if wanted.ats and "ats" in capabilities:
                yield Setting(bdf, "ats_control", ATS_ENABLE, ATS_ENABLE)
            # A virtual function's size is that of its physical one.
            own = function["role"] == "nic" and function["physfn"] is None
            if wanted.max_read_request and own and "max_read_request_bytes" in capabilities:
                field = REGISTERS["device_control"].field
                yield Setting(bdf, "device_control", field, READ_REQUESTS[wanted.max_read_request])

    def _capabilities(self, bdf: str) -> Capabilities:
        return self._paths.function(bdf)["capabilities"] or Capabilities()

    def _line(self, setting: Setting) -> str:
        function = self._paths.function(setting.bdf)
        capability = self._registers.capability(setting.bdf, setting.name)
        words = (
            f"{capability:#05x}",
            f"{self._registers.word(setting.bdf, capability):#06x}",
            setting.name,
            f"{self._registers.offset(setting.bdf, setting.name):#05x}",
            f"{setting.mask:#06x}",
            f"{setting.value:#06x}",
        )
        return f"want {setting.bdf} 0x{function['vendor']} 0x{function['device']} {' '.join(words)}\n"

    def _change(self, what: str, before: int, after: int) -> List[Change]:
        if before == after:
            return []
        return [Change(self.name, "register", what, before, after, reboot=not self.context.acts_now)]

    # --- what speaks against it

    def _lockdown(self) -> Iterator[str]:
        """Kernel lockdown refuses writes to configuration spaces in both of its modes (kernel_lockdown(7))."""
        state = self.context.topology["host"]["lockdown"]
        if state not in (None, "none"):
            yield f"pcie_acs: the kernel is locked down ({state}) and refuses writes to PCI configuration spaces"
        reasons = [unknown["reason"] for unknown in self.context.topology["unknown"] if unknown["fact"] == "lockdown"]
        yield from (f"pcie_acs: whether the kernel is locked down is unknown: {reason}" for reason in reasons)

    def _arguments(self, ats: bool, max_read_request: int) -> Iterator[str]:
        for argument in self.context.topology["host"]["cmdline"].split() + self.context.wanted.arguments:
            if not argument.startswith("pci="):
                continue
            for word in argument[len("pci=") :].split(","):
                if (
                    word.startswith(_SET_BY_KERNEL)
                    or (word == _NO_ATS and ats)
                    or (word == _SMALL_REQUESTS and max_read_request)
                ):
                    yield f"pcie_acs: the kernel argument {argument} wants something else: take one of both"

    def _why_unknown(self, bdf: str) -> str:
        reasons = [
            unknown["reason"]
            for unknown in self.context.topology["unknown"]
            if unknown["fact"] == "capabilities" and bdf in unknown["of"]
        ]
        return "; ".join(reasons) or "nobody says why"

    # --- writing

    def _write(self, todo: Sequence[Tuple[str, str, Optional[Setting]]]) -> None:
        """Write registers: a setting, or without one what was found in this boot. All of them or none."""
        if not todo:
            return
        groups, done = self._groups(), []
        try:
            for bdf, name, setting in todo:
                old = self._registers.read(bdf, name)
                if setting is None:
                    new = self._as_found(bdf, name, old)
                else:
                    self._remember(bdf, name, old)
                    new = old & ~setting.mask | setting.value
                done.append((bdf, name, old))
                if new != old:
                    self._registers.write(bdf, name, new)
            if self._groups() != groups:
                raise TopovirtError("IOMMU groups changed with the registers.", "The kernel log (dmesg) may say why.")
        except TopovirtError as error:
            left = [text for text in (self._put_back(*item) for item in reversed(done)) if text]
            state = f"These were not put back: {'; '.join(left)}." if left else "All registers are as before."
            raise TopovirtError(f"{error.message} {state}", error.hint) from None
        for bdf, name, setting in todo:
            if setting is None:
                self._forget(bdf, name)

    def _restore(self, bdf: str, name: str) -> str:
        """Write what was found in this boot; returns what went wrong, if anything."""
        try:
            value = self._as_found(bdf, name, self._registers.read(bdf, name))
        except TopovirtError as error:
            return error.message
        wrong = self._put_back(bdf, name, value)
        if not wrong:
            self._forget(bdf, name)
        return wrong

    def _foreign(self, bdf: str, name: str) -> bool:
        """Whether a register holds neither what it did before nor what any run of ours wrote."""
        try:
            now, field = self._registers.read(bdf, name), REGISTERS[name].field
        except TopovirtError:
            return False  # dead; who restores it says so
        ours = self.context.journal.afters().get((self.name, "register", f"{bdf} {name}"), [])
        known = {value & field for value in (*ours, self._found().get((bdf, name), now))}
        return bool(ours) and (bdf, name) in self._found() and now & field not in known

    def _put_back(self, bdf: str, name: str, value: int) -> str:
        """Write a former value; returns what went wrong, if anything."""
        try:
            if self._registers.read(bdf, name) != value:
                self._registers.write(bdf, name, value)
        except TopovirtError as error:
            return error.message
        return ""

    def _as_found(self, bdf: str, name: str, now: int) -> int:
        """The register's value with the bits that are ever changed as this boot began with them."""
        found = self._found().get((bdf, name), now)
        return now & ~REGISTERS[name].field | found & REGISTERS[name].field

    def _groups(self) -> Dict[str, str]:
        """IOMMU group of every function that has one, by what sysfs says now."""
        found = {}
        for device in (self.context.root / DEVICES).iterdir():
            link = device / "iommu_group"
            if link.is_symlink():
                found[device.name] = os.path.basename(os.readlink(link))
        return found

    def _found(self) -> Dict[Tuple[str, str], int]:
        """What registers held before their first write in this boot; those of a device that is gone went with it."""
        path = self.context.root / REGISTERS_FOUND
        if not path.is_file():
            return {}
        found: Dict[Tuple[str, str], int] = {}
        for line in path.read_text(encoding="ascii").splitlines():
            bdf, name, value = line.split()
            if (self.context.root / DEVICES / bdf).exists():
                found.setdefault((bdf, name), int(value))
        return found

    def _remember(self, bdf: str, name: str, value: int) -> None:
        self._keep({(bdf, name): value, **self._found()})

    def _forget(self, bdf: str, name: str) -> None:
        found = self._found()
        found.pop((bdf, name), None)
        self._keep(found)

    def _keep(self, found: Dict[Tuple[str, str], int]) -> None:
        path = self.context.root / REGISTERS_FOUND
        if found:
            text = "".join(f"{bdf} {name} {value}\n" for (bdf, name), value in found.items())
            write_file(path, text.encode("ascii"), 0o600)
        else:
            path.unlink(missing_ok=True)


def _parts(what: str) -> Tuple[str, str]:
    bdf, _space, name = what.partition(" ")
    return bdf, name
