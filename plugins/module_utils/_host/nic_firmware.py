# Copyright: the topovirt.kvm authors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Settings in the firmware of NICs: written for the next boot, in force after it.

They are no part of a conversion: the adapter keeps them itself, whatever the host boots.
"""

from __future__ import annotations

import difflib
from typing import Any, Dict, Iterator, List, Mapping, Optional, Sequence, Tuple

from ansible_collections.topovirt.kvm.plugins.module_utils._errors import TopovirtError
from ansible_collections.topovirt.kvm.plugins.module_utils._host import mlxconfig
from ansible_collections.topovirt.kvm.plugins.module_utils._host.drivers import VFIO
from ansible_collections.topovirt.kvm.plugins.module_utils._host.guard import vms_in_the_way
from ansible_collections.topovirt.kvm.plugins.module_utils._host.mlxconfig import Answer, Mlxconfig, Parameter
from ansible_collections.topovirt.kvm.plugins.module_utils._host.step import (
    AS_BEFORE,
    AS_WRITTEN,
    CHANGED,
    GONE,
    NOT_COMPARED,
    Change,
    Context,
    Step,
    Thing,
    Touched,
)
from ansible_collections.topovirt.kvm.plugins.module_utils._host.wanted import devices_of
from ansible_collections.topovirt.kvm.plugins.module_utils._topology.devices import MELLANOX
from ansible_collections.topovirt.kvm.plugins.module_utils._topology.model import PciFunction, Topology

# While it is off, the firmware hides some parameters (NVIDIA firmware tools, MAX_ACC_OUT_READ).
ADVANCED = "ADVANCED_PCI_SETTINGS"
_KIND = "firmware"
_NETWORK = "02"  # class of network controllers (PCI Code and ID Assignment Specification)
_NEAR_ONES = 3


class NicFirmware(Step):
    """What the firmware of each NIC shall hold."""

    name = "nic_firmware"
    disturbs_vms = True

    def __init__(self, context: Context, devices: Sequence[str] = (), values: Optional[Mapping[str, str]] = None):
        super().__init__(context)
        self._devices = list(devices)
        self._values = dict(values or {})
        self._tool: Optional[Mlxconfig] = mlxconfig.installed(context.run)
        self._answers: Dict[str, Answer] = {}
        self._listings: Dict[str, Dict[str, List[str]]] = {}

    def read(self) -> Dict[str, Any]:
        return {bdf: self._of(bdf) for bdf in self._devices}

    def obstacles(self) -> List[str]:
        return list(self._unreachable(self._devices)) or [
            reason for bdf in self._devices for name in self._values for reason in self._against(bdf, name)
        ]

    def obstacles_back(self) -> List[str]:
        there = {function["bdf"] for function in self.context.topology["pci"]}
        return list(self._unreachable([bdf for bdf in self._journaled() if bdf in there]))

    def plan(self) -> List[Change]:
        return [
            Change(
                self.name, _KIND, f"{bdf} {name}", found.next, value, reboot=not mlxconfig.same(found.current, value)
            )
            for bdf in self._devices
            for name, value in self._due(bdf).items()
            for found in [self._of(bdf)[name]]
            if not mlxconfig.same(found.next, value)
        ]

    def results(self, changes: Sequence[Change]) -> Dict[str, Any]:
        """``devices`` with their values, ``remaining`` that wait for a reboot, whether all is ``effective``, and
        ``running_vms`` that a reboot would end."""
        return {
            "tool": self._tool.tool if self._tool else None,
            "devices": [
                {
                    "device": bdf,
                    "values": {
                        name: {"current": found.current, "before": found.next, "after": self._becomes(found, value)}
                        for name, value in self._due(bdf).items()
                        for found in [self._of(bdf)[name]]
                    },
                }
                for bdf in self._devices
            ],
            "remaining": [{"device": bdf, "name": name} for bdf in self._devices for name in self._hidden(bdf)],
            "effective": not self.reboot_required(),
            "running_vms": vms_in_the_way(self.context.root),
        }

    def reboot_required(self) -> bool:
        """Whether something wanted is not in force; on the way back, whether something that was is not."""
        if self._devices:
            return any(
                not mlxconfig.same(self._of(bdf)[name].current, value)
                for bdf in self._devices
                for name, value in self._due(bdf).items()  # what shows the hidden ones is among them
            )
        journal = self.context.journal
        return any(
            self._fate(key[2], record["prior"], journal.afters()[key]) in (AS_BEFORE, AS_WRITTEN)
            and not mlxconfig.same(self._shown(key[2]).current, record["prior"])
            for key, record in journal.first_priors().items()
        )

    def find(self, thing: Thing) -> str:
        if thing.kind != _KIND:
            return super().find(thing)
        return self._fate(thing.what, thing.prior, thing.afters)

    def differences(self) -> List[str]:
        """Of what this run wrote: more of what is wanted may have come to be shown by that."""
        journal = self.context.journal
        written = [(key, journal.afters()[key][-1]) for key in journal.priors_since("applied")]
        return [
            f"{what}: wanted {value}, for the next boot it has {self._shown(what).next or 'nothing'}"
            for (_step, _kind, what), value in written
            if not mlxconfig.same(self._shown(what).next, value)
        ]

    def prior(self, change: Change) -> Any:
        return change.before

    def apply(self, changes: Sequence[Change]) -> None:
        self._write([(change.what, change.after) for change in changes])

    def undo(self, touched: Sequence[Touched]) -> None:
        self._write([(thing.what, thing.prior) for thing in touched])
        wrong = [
            thing.what
            for thing in touched
            for now in [self._shown(thing.what).next]
            if now is not None and not mlxconfig.same(now, thing.prior)  # one that is hidden now cannot be read back
        ]
        if wrong:
            raise TopovirtError(
                f"The firmware did not take back: {', '.join(wrong)}.", "Run again with state: restored."
            )

    # --- inside

    def _unreachable(self, devices: Sequence[str]) -> Iterator[str]:
        """Why the firmware of devices must not be spoken to, or does not answer."""
        by_bdf = {function["bdf"]: function for function in self.context.topology["pci"]}
        for bdf in devices:
            if by_bdf[bdf]["driver"] == VFIO:
                # There it may belong to a program that nobody knows of, and it may sleep.
                yield f"{bdf} is bound to {VFIO}: its firmware is set before that, or after it went back to its driver"
        if self._tool is None:
            yield (
                f"there is neither {' nor '.join(mlxconfig.TOOLS)}: install mstflint, or NVIDIA's firmware tools (MFT)"
            )
            return
        for bdf in devices:
            if by_bdf[bdf]["driver"] == VFIO:
                continue
            answer = self._answer(bdf)
            if not answer.parameters:
                yield f"{bdf} does not answer {self._tool.tool}: {answer.complaint or 'it has no parameters'}"
            elif all(found.current is None for found in answer.parameters.values()):
                yield f"{bdf} does not tell its current values: its firmware is too old, update it"

    def _against(self, bdf: str, name: str) -> Iterator[str]:
        """Why one parameter of one device cannot be set."""
        if name not in self._of(bdf):
            if name not in self._hidden(bdf):
                yield f"{bdf} has no parameter {name}{self._near(bdf, name)}"
            return
        found, value = self._of(bdf)[name], self._values[name]
        if mlxconfig.same(found.next, value):
            return
        reason = mlxconfig.not_taken(found, value, [])
        if not reason and mlxconfig.word(value) is not None:
            reason = mlxconfig.not_taken(found, value, self._takes(bdf).get(name, []))
        if reason:
            yield f"{bdf}: {name} {reason}; {value} was asked for"

    def _near(self, bdf: str, name: str) -> str:
        near = difflib.get_close_matches(name, [*self._of(bdf), *self._takes(bdf)], _NEAR_ONES)
        complaint = self._answer(bdf).complaint
        told = f", but {', '.join(dict.fromkeys(near))}" if near else ""
        return f"{told} ({self._tool_name()}: {complaint})" if complaint else told

    def _due(self, bdf: str) -> Dict[str, str]:
        """What is wanted of a device and can be set now; what shows the hidden ones comes first."""
        known = {name: value for name, value in self._values.items() if name in self._of(bdf)}
        return {ADVANCED: mlxconfig.boolean(True), **known} if self._hidden(bdf) else known

    def _hidden(self, bdf: str) -> List[str]:
        """Wanted names that a device is expected to show once its advanced settings are on, and a boot has passed."""
        found = self._of(bdf)
        unknown = [name for name in self._values if name not in found]
        switch = found.get(ADVANCED)
        off = mlxconfig.boolean(False)
        if not unknown or switch is None or not mlxconfig.same(switch.current, off) or switch.read_only:
            return []
        if mlxconfig.same(off, self._values.get(ADVANCED, mlxconfig.boolean(True))):
            return []
        listed = self._takes(bdf)
        return [name for name in unknown if not listed or name in listed]

    @staticmethod
    def _becomes(found: Parameter, value: str) -> Optional[str]:
        return found.next if mlxconfig.same(found.next, value) else value

    def _fate(self, what: str, prior: str, afters: Sequence[str]) -> str:
        """What became of a value that was written; a device that guests may have is not spoken to."""
        bdf, name = what.split()
        driver = {function["bdf"]: function["driver"] for function in self.context.topology["pci"]}
        if bdf not in driver:
            return GONE
        if driver[bdf] == VFIO or self._tool is None or not self._of(bdf):
            return NOT_COMPARED
        found = self._of(bdf).get(name)
        if found is None:
            return GONE
        if mlxconfig.same(found.next, prior):
            return AS_BEFORE
        return AS_WRITTEN if any(mlxconfig.same(found.next, after) for after in afters) else CHANGED

    def _shown(self, what: str) -> Parameter:
        """A parameter as its device shows it, without values where it does not."""
        bdf, name = what.split()
        return self._of(bdf).get(name, Parameter(name, None, None, None))

    def _of(self, bdf: str) -> Dict[str, Parameter]:
        return self._answer(bdf).parameters

    def _answer(self, bdf: str) -> Answer:
        if bdf not in self._answers:
            tool = self._demand_tool()
            names = [*self._values, *self._journaled().get(bdf, [])]
            self._answers[bdf] = tool.query(bdf, list(dict.fromkeys(names)))
        return self._answers[bdf]

    def _takes(self, bdf: str) -> Dict[str, List[str]]:
        if bdf not in self._listings:
            self._listings[bdf] = self._demand_tool().takes(bdf)
        return self._listings[bdf]

    def _journaled(self) -> Dict[str, List[str]]:
        """Names of each device that were touched."""
        found: Dict[str, List[str]] = {}
        for _step, _kind, what in self.context.journal.first_priors():
            bdf, name = what.split()
            found.setdefault(bdf, []).append(name)
        return found

    def _write(self, values: Sequence[Tuple[str, str]]) -> None:
        """In the given order, in one command where neighbours are of one device. What hides others is written alone."""
        groups: List[Tuple[str, Dict[str, str]]] = []
        for what, value in values:
            bdf, name = what.split()
            if not groups or groups[-1][0] != bdf or ADVANCED in (name, *groups[-1][1]):
                groups.append((bdf, {}))
            groups[-1][1][name] = value
        try:
            for bdf, together in groups:
                self._demand_tool().set(bdf, together)
        finally:
            self._answers.clear()

    def _demand_tool(self) -> Mlxconfig:
        if self._tool is None:
            raise TopovirtError(f"Neither {' nor '.join(mlxconfig.TOOLS)} is there any more.", "Install it again.")
        return self._tool

    def _tool_name(self) -> str:
        return self._demand_tool().tool


def wanted_firmware(options: Mapping[str, Any], topology: Topology) -> Tuple[List[str], Dict[str, str]]:
    """Devices and values that an operator asks for.

    :raises TopovirtError: naming everything that is wrong with them.
    """
    errors: List[str] = []
    values: Dict[str, str] = {}
    for name, given in (options.get("values") or {}).items():
        if not mlxconfig.NAME.match(str(name)):
            errors.append(f"values: {name!r} is no name of a parameter")
            continue
        try:
            values[str(name)] = mlxconfig.wanted_value(given)
        except TopovirtError as error:
            errors.append(f"values: {name}: {error.message.rstrip('.')}")
    if not values and not errors:
        errors.append("values names none, like {ATS_ENABLED: true}")
    named = [str(bdf).lower() for bdf in options.get("devices") or []]
    by_bdf = {function["bdf"]: function for function in topology["pci"]}
    chosen = list(devices_of({"devices": named}, topology, [] if named else ["nic"], errors))
    endpoints = [by_bdf[bdf] for bdf in named if bdf in by_bdf and by_bdf[bdf]["kind"] == "endpoint"]
    errors += [f"devices: {reason}" for function in endpoints for reason in _not_ours(function)]
    devices = [bdf for bdf in chosen if not list(_not_ours(by_bdf[bdf]))]
    if not devices and not errors:
        errors.append("no NIC of NVIDIA (Mellanox) shares a PCIe switch with a GPU: name some in devices")
    if errors:
        raise TopovirtError(f"What is wanted of the firmware is wrong: {'; '.join(errors)}.", "Nothing was changed.")
    return devices, values


def _not_ours(function: PciFunction) -> Iterator[str]:
    bdf = function["bdf"]
    if function["vendor"] != MELLANOX or not function["class"].startswith(_NETWORK):
        yield (
            f"{bdf} (vendor {function['vendor']}, class {function['class'][:4]}) is no NIC of NVIDIA (Mellanox), whose "
            f"vendor is {MELLANOX}"
        )
    elif function["physfn"] is not None:
        yield f"{bdf} is a virtual function: name the physical one, {function['physfn']}"
    elif function["role"] == "fabric_bridge":
        yield f"{bdf} is a bridge of the NVLink fabric, no NIC for data"
