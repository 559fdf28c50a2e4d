# Copyright: the topovirt.kvm authors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Devices of the passthrough set are bound to vfio-pci, by address; devices that left the set go back.

At boot an early script in our own initramfs does it, before any other driver is loaded (``cmdline/``). Here is the part
for a host that already runs under our token, and the check of the effect.
"""

from __future__ import annotations

from typing import Any, Dict, List, Optional, Sequence

from ansible_collections.topovirt.kvm.plugins.module_utils._errors import TopovirtError
from ansible_collections.topovirt.kvm.plugins.module_utils._host.drivers import VFIO, DriverStep
from ansible_collections.topovirt.kvm.plugins.module_utils._host.places import DEVICES
from ansible_collections.topovirt.kvm.plugins.module_utils._host.step import (
    AS_BEFORE,
    AS_WRITTEN,
    CHANGED,
    GONE,
    Change,
    Thing,
    Touched,
)


class Binding(DriverStep):
    """Which driver holds each device that guests may own."""

    name = "binding"

    def read(self) -> Dict[str, Any]:
        """``{bdf: {"driver", "module", "override"}}`` for the set and for everything that was in it before."""
        return {bdf: self._state(bdf) for bdf in sorted({*self.context.wanted.devices, *self._journaled()})}

    def plan(self) -> List[Change]:
        text = "".join(f"{bdf}\n" for bdf in sorted(self.context.wanted.devices))
        return [*self.plan_devices(), *self.plan_file(str(DEVICES), text, 0o600)]

    def plan_devices(self) -> List[Change]:
        """Changes of the drivers that hold devices."""
        context, journaled, changes = self.context, self._journaled(), []
        for bdf, state in self.read().items():
            if bdf in context.wanted.devices:
                pending = bdf in journaled and not context.acts_now  # recorded, the reboot is still to come
                if state is not None and state["driver"] != VFIO and not pending:
                    changes.append(self._change(bdf, state["driver"], VFIO))
            elif state is not None and state["driver"] == VFIO and journaled[bdf]["driver"] != VFIO:
                changes.append(self._change(bdf, VFIO, journaled[bdf]["driver"]))
        return changes

    def differences(self) -> List[str]:
        found = []
        for bdf in sorted(self.context.wanted.devices):
            state = self._state(bdf)
            if state is None:
                found.append(f"{bdf}: the device is gone")
            elif state["driver"] != VFIO:
                found.append(f"{bdf}: wanted driver {VFIO}, found {state['driver'] or 'none'}")
        groups = {f["bdf"]: f["iommu_group"] for f in self.context.topology["pci"]}
        wanted_groups = {groups.get(bdf) for bdf in self.context.wanted.devices}
        if None in wanted_groups:
            found.append("devices of the passthrough set have no IOMMU group: the IOMMU is not active")
        for function in self.context.topology["pci"]:
            group = function["iommu_group"]
            if group is None or group not in wanted_groups or function["bdf"] in self.context.wanted.devices:
                continue
            if function["driver"] not in (None, VFIO) and not function["class"].startswith("0604"):
                found.append(
                    f"{function['bdf']} shares IOMMU group {group} with a passthrough device and is held by the "
                    f"host driver {function['driver']}"
                )
        return found

    def find(self, thing: Thing) -> str:
        if thing.kind != "device":
            return super().find(thing)
        now = self._state(thing.what)
        if now is None:
            return GONE
        return AS_BEFORE if now == thing.prior else AS_WRITTEN if now["driver"] in thing.afters else CHANGED

    def prior(self, change: Change) -> Any:
        return self._state(change.what) if change.kind == "device" else super().prior(change)

    def apply(self, changes: Sequence[Change]) -> None:
        super().apply([change for change in changes if change.kind != "device"])
        if not self.context.acts_now:
            return  # the boot does it
        devices = [change for change in changes if change.kind == "device"]
        back = {change.what: self._journaled()[change.what] for change in devices if change.after != VFIO}
        self._release(back)
        self._bind([change.what for change in devices if change.after == VFIO])

    def undo(self, touched: Sequence[Touched]) -> None:
        super().undo([thing for thing in touched if thing.kind != "device"])
        self._release({thing.what: thing.prior for thing in touched if thing.kind == "device" and thing.prior})

    def _bind(self, bdfs: Sequence[str]) -> None:
        """Unbind all, then bind all: a group with one member left on a host driver would not be viable."""
        if not bdfs:
            return
        self._load(VFIO)
        for bdf in bdfs:
            self._unbind(bdf)
        for bdf in bdfs:
            self._write(f"devices/{bdf}/driver_override", VFIO)
        for bdf in bdfs:
            self._write("drivers_probe", bdf)
        self._check(dict.fromkeys(bdfs, VFIO))

    def _release(self, wanted: Dict[str, Dict[str, Any]]) -> None:
        """Give devices back to the drivers that held them before."""
        todo = {}
        for bdf, prior in wanted.items():
            now = self._state(bdf)
            if now is not None and (now["driver"], now["override"]) != (prior["driver"], prior["override"]):
                todo[bdf] = prior
        for bdf, prior in todo.items():
            if self._state(bdf) != prior:
                self._unbind(bdf)
        for bdf, prior in todo.items():
            self._write(f"devices/{bdf}/driver_override", prior["override"] or "\n")
        for module in sorted({prior["module"] for prior in todo.values() if prior["module"]}):
            self._load(module)
        for bdf, prior in todo.items():
            if prior["driver"]:
                self._write("drivers_probe", bdf)
        self._check({bdf: prior["driver"] for bdf, prior in todo.items()})

    def _check(self, wanted: Dict[str, Optional[str]]) -> None:
        wrong = []
        for bdf, driver in wanted.items():
            found = (self._state(bdf) or {}).get("driver")
            if found != driver:
                wrong.append(f"{bdf} is held by {found or 'no driver'}, wanted {driver or 'none'}")
        if wrong:
            raise TopovirtError(f"Binding failed: {'; '.join(wrong)}.", "The kernel log (dmesg) says why.")

    def _journaled(self) -> Dict[str, Dict[str, Any]]:
        """State before the conversion of every device that was ever in the set."""
        priors = self.context.journal.first_priors()
        return {
            what: entry["prior"]
            for (step, kind, what), entry in priors.items()
            if (step, kind) == (self.name, "device")
        }

    def _change(self, bdf: str, before: Optional[str], after: Optional[str]) -> Change:
        return Change(self.name, "device", bdf, before, after, reboot=not self.context.acts_now)
