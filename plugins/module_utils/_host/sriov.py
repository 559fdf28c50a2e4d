# Copyright: the topovirt.kvm authors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Virtual functions (VFs) of SR-IOV devices for guests, while the physical function (PF) stays with the host.

The kernel forgets them at each boot, so a unit of ours has them made before guests start by themselves. The initramfs,
which binds all other devices, is too early for that: VFs exist when the PF's own driver has made them. None of the
host's drivers is let near them.
"""

from __future__ import annotations

from typing import Any, Dict, Iterator, List, Optional, Sequence

from ansible_collections.topovirt.kvm.plugins.module_utils._errors import TopovirtError
from ansible_collections.topovirt.kvm.plugins.module_utils._host.drivers import VFIO, DriverStep
from ansible_collections.topovirt.kvm.plugins.module_utils._host.early_unit import plan_early_script
from ansible_collections.topovirt.kvm.plugins.module_utils._host.step import (
    AS_BEFORE,
    AS_WRITTEN,
    CHANGED,
    GONE,
    Change,
    Context,
    Thing,
    Touched,
)
from ansible_collections.topovirt.kvm.plugins.module_utils._topology.model import PciFunction
from ansible_collections.topovirt.kvm.plugins.module_utils._topology.pci import DEVICES

UNIT = "topovirt-sriov.service"
KIND = "virtual_functions"
_DESCRIPTION = "Virtual functions of network adapters for virtual machines"
_SCRIPT_NAME = "sriov.sh"
_NUMBER, _TOTAL, _AUTOPROBE = "sriov_numvfs", "sriov_totalvfs", "sriov_drivers_autoprobe"

# For all PFs together. udev loads their drivers at the same time; that all events are handled (udev's "settle") says
# nothing about one driver, and whoever waits for it waits for all devices.
_PATIENCE_SECONDS = 60

# A driver holds its device from before it is ready, but the kernel lets the write of the number wait for that
# (device lock). Between two numbers that are not 0 the kernel wants a 0, which would take VFs away from somebody: that
# is left to the verification. The file is read back because drivers may make fewer.
_SCRIPT_TEXT = """\
#!/bin/sh
# Written by the Ansible collection topovirt.kvm; removed by its way back.
pci=/sys/bus/pci
left={patience}
failed=0
fail() {{
    echo "$1" >&2
    failed=1
}}
put() {{
    echo "$1" > "$2"
}}
# address, vendor, device, number
want() {{
    device=$pci/devices/$1
    until [ -e "$device/driver" ] || [ "$left" -le 0 ]; do
        left=$((left - 1))
        sleep 1
    done
    vendor= model= number=
    read -r vendor < "$device/vendor"
    read -r model < "$device/device"
    if [ "$vendor $model" != "$2 $3" ]; then
        fail "$1: is not the device that virtual functions are wanted of"
        return
    fi
    if [ ! -e "$device/driver" ]; then
        fail "$1: no driver holds it, so it has no virtual functions"
        return
    fi
    put 0 "$device/{autoprobe}"
    read -r number < "$device/{number}"
    [ "$number" = "$4" ] || put "$4" "$device/{number}"
    read -r number < "$device/{number}"
    if [ "$number" != "$4" ]; then
        fail "$1: wanted $4 virtual functions, the kernel has $number"
        return
    fi
    index=0
    while [ "$index" -lt "$4" ]; do
        function=$(readlink -f "$device/virtfn$index")
        put {vfio} "$function/driver_override"
        [ -e "$function/driver" ] || put "${{function##*/}}" "$pci/drivers_probe"
        case "$(readlink "$function/driver")" in
            */{vfio}) ;;
            *) fail "$1: its virtual function ${{function##*/}} is not held by {vfio}" ;;
        esac
        index=$((index + 1))
    done
}}
modprobe {vfio}
{lines}exit $failed
"""


class Sriov(DriverStep):
    """How many VFs each PF has, and which driver holds them."""

    name = "sriov"

    def __init__(self, context: Context) -> None:
        super().__init__(context)
        self._script = context.journal.place / _SCRIPT_NAME
        self._by_bdf: Dict[str, PciFunction] = {function["bdf"]: function for function in context.topology["pci"]}

    def obstacles(self) -> List[str]:
        """Why VFs cannot, or must not, be made: a sentence each."""
        found = [text for pf, number in sorted(self.context.wanted.sriov.items()) for text in self._against(pf, number)]
        found += [text for pf in sorted(self._priors().keys() - self.context.wanted.sriov) for text in self._taken(pf)]
        return [f"sriov: {text}" for text in found]

    def read(self) -> Dict[str, Any]:
        """``{PF: {"number", "autoprobe", "functions": [{"driver", "override"}]}}``; ``None`` of a PF that is gone.

        For all PFs that are wanted or were before; autoprobe is whether the host's drivers take new VFs.
        """
        return {pf: self._virtual(pf) for pf in sorted({*self.context.wanted.sriov, *self._priors()})}

    def plan(self) -> List[Change]:
        wanted, priors = self.context.wanted.sriov, self._priors()
        if not wanted and (self.name, "file", str(self._script)) not in self.context.journal.first_priors():
            return []
        changes = []
        for pf, before in self.read().items():
            pending = pf in priors and not self.context.acts_now  # recorded, the reboot is still to come
            if before is None or pending:
                continue
            after = self._target(pf, before)
            if before != after:
                changes.append(Change(self.name, KIND, pf, before, after, reboot=not self.context.acts_now))
        lines = "".join(self._line(pf, number) for pf, number in sorted(wanted.items()))
        text = _SCRIPT_TEXT.format(
            patience=_PATIENCE_SECONDS, number=_NUMBER, autoprobe=_AUTOPROBE, vfio=VFIO, lines=lines
        )
        return [*changes, *plan_early_script(self, UNIT, _DESCRIPTION, self._script, text)]

    def early(self) -> bool:
        # While the host runs our entry all is put back; under the old one nothing of ours was made.
        return True

    def differences(self) -> List[str]:
        return [text for pf, number in sorted(self.context.wanted.sriov.items()) for text in self._wrong(pf, number)]

    def prior(self, change: Change) -> Any:
        return change.before if change.kind == KIND else super().prior(change)

    def find(self, thing: Thing) -> str:
        if thing.kind != KIND:
            return super().find(thing)
        now = self._virtual(thing.what)
        if now is None:
            return GONE
        return AS_BEFORE if now == thing.prior else AS_WRITTEN if now in thing.afters else CHANGED

    def apply(self, changes: Sequence[Change]) -> None:
        super().apply([change for change in changes if change.kind != KIND])
        if not self.context.acts_now:
            return  # the boot does it
        for change in changes:
            if change.kind == KIND:
                self._make(change.what, change.after)

    def undo(self, touched: Sequence[Touched]) -> None:
        for thing in touched:
            # Under any other entry they are as that one's boot, and nobody of us, made them.
            if thing.kind == KIND and self.context.acts_now:
                self._restore(thing.what, thing.prior)
        super().undo([thing for thing in touched if thing.kind != KIND])

    # --- what is there

    def _virtual(self, pf: str) -> Optional[Dict[str, Any]]:
        """Its VFs in the order of their numbers, see ``read``."""
        number = self._count(pf, _NUMBER)
        if number is None:
            return None
        states = (self._state(bdf) for bdf in self._addresses(pf, number))
        return {
            "number": number,
            "autoprobe": self._count(pf, _AUTOPROBE) != 0,
            "functions": [{key: state[key] for key in ("driver", "override")} for state in states if state is not None],
        }

    def _addresses(self, pf: str, number: int) -> List[str]:
        device = self._path(f"{DEVICES}/{pf}")
        return [(device / f"virtfn{index}").resolve().name for index in range(number)]

    def _count(self, pf: str, file: str) -> Optional[int]:
        try:
            return int(self._path(f"{DEVICES}/{pf}/{file}").read_text(encoding="ascii"))
        except FileNotFoundError:
            return None

    def _priors(self) -> Dict[str, Dict[str, Any]]:
        """State before the conversion of every PF that VFs were ever wanted of."""
        first = self.context.journal.first_priors()
        return {key[2]: entry["prior"] for key, entry in first.items() if key[:2] == (self.name, KIND)}

    def _target(self, pf: str, now: Dict[str, Any]) -> Dict[str, Any]:
        """What a PF's VFs are to become; those that others made of one that is no longer wanted are theirs."""
        if pf in self.context.wanted.sriov:
            held = {"driver": VFIO, "override": VFIO}
            number = self.context.wanted.sriov[pf]
            return {"number": number, "autoprobe": False, "functions": [dict(held) for _index in range(number)]}
        return self._priors()[pf] if self._is_ours(pf, now) else now

    def _is_ours(self, pf: str, now: Dict[str, Any]) -> bool:
        """Whether there are as many VFs as before or as some run of ours made, or the none in between."""
        afters = self.context.journal.afters().get((self.name, KIND, pf), [])
        return now["number"] in {0, *(state["number"] for state in (self._priors()[pf], *afters))}

    # --- what speaks against it

    def _against(self, pf: str, number: int) -> Iterator[str]:
        function = self._by_bdf.get(pf)
        if function is None:
            yield f"there is no PCI function {pf} on this host"
            return
        total = self._count(pf, _TOTAL)
        if total is None:
            above = function.get("physfn")
            what = f"a virtual function of {above}: name that one" if above else "no device with SR-IOV"
            yield f"{pf} is {what}"
            return
        if number > total:
            yield f"{pf} has at most {total} virtual functions, {number} are wanted; its firmware may limit them"
        if pf in self.context.wanted.devices:
            yield f"{pf} is in the passthrough set, but only its driver on the host makes virtual functions: exclude it"
        elif function["driver"] in (None, VFIO):
            yield f"{pf} is held by {function['driver'] or 'no driver'}; only its own driver makes virtual functions"
        yield from self._taken(pf)

    def _taken(self, pf: str) -> Iterator[str]:
        """VFs that somebody uses, where they would have to be changed."""
        now = self._virtual(pf)
        if now is None or self._target(pf, now) == now:
            return
        for bdf, state in zip(self._addresses(pf, now["number"]), now["functions"]):
            uses = list(self._by_bdf[bdf]["in_use"]) if bdf in self._by_bdf else []
            if state["driver"] not in (None, VFIO):
                uses.insert(0, f"driver {state['driver']}")
            if uses:
                yield f"virtual function {bdf} of {pf}, which would have to go or change, is in use: {'; '.join(uses)}"

    # --- the effect

    def _wrong(self, pf: str, number: int) -> Iterator[str]:
        now = self._virtual(pf)
        if now is None:
            return  # an obstacle, which is told before
        if now["number"] != number:
            yield f"{pf}: wanted {number} virtual functions, the kernel has {now['number']}"
            return
        if now["autoprobe"]:
            yield f"{pf}: wanted 0 in {_AUTOPROBE}, found 1: a driver of the host may take new virtual functions"
        for bdf, state in zip(self._addresses(pf, number), now["functions"]):
            if state["driver"] != VFIO:
                yield f"{bdf}, virtual function of {pf}: wanted driver {VFIO}, found {state['driver'] or 'none'}"
            yield from self._company(bdf, pf)

    def _company(self, bdf: str, pf: str) -> Iterator[str]:
        """Whether a VM can have it: whatever shares its IOMMU group must not be the host's."""
        group = self._by_bdf[bdf]["iommu_group"] if bdf in self._by_bdf else None
        if group is None:
            yield f"{bdf}, virtual function of {pf}: it has no IOMMU group, so no VM can own it"
            return
        for other in self.context.topology["pci"]:
            held = other["driver"] not in (None, VFIO) and not other["class"].startswith("0604")
            if other["iommu_group"] == group and held:
                yield (
                    f"{bdf}, virtual function of {pf}: it shares IOMMU group {group} with {other['bdf']}, which is "
                    f"held by the host driver {other['driver']}"
                )

    # --- making

    def _line(self, pf: str, number: int) -> str:
        function = self._by_bdf[pf]
        return f"want {pf} 0x{function['vendor']} 0x{function['device']} {number}\n"

    def _make(self, pf: str, state: Dict[str, Any]) -> None:
        """Bring a PF's VFs into a state that is wanted, or that was."""
        now = self._virtual(pf)
        if now is None:
            raise TopovirtError(f"{pf} has no virtual functions to change: the device is gone.", "dmesg may say why.")
        if any(function["driver"] == VFIO for function in state["functions"]):
            self._load(VFIO)
        self._set(pf, _AUTOPROBE, 0)
        if now["number"] != state["number"]:
            for number in sorted({0, state["number"]} - {now["number"]}):
                self._set(pf, _NUMBER, number)
        for bdf, function in zip(self._addresses(pf, state["number"]), state["functions"]):
            self._bind(bdf, function)
        self._set(pf, _AUTOPROBE, int(state["autoprobe"]))
        found = self._virtual(pf)
        if found != state:
            raise TopovirtError(f"{pf}: wanted virtual functions {state}, found {found}.", "dmesg may say why.")

    def _bind(self, bdf: str, wanted: Dict[str, Optional[str]]) -> None:
        now = self._state(bdf)
        if now is None or (now["driver"], now["override"]) == (wanted["driver"], wanted["override"]):
            return
        if now["driver"] != wanted["driver"]:
            self._unbind(bdf)
        self._write(f"devices/{bdf}/driver_override", wanted["override"] or wanted["driver"] or "\n")
        if wanted["driver"]:
            self._write("drivers_probe", bdf)
        if wanted["driver"] and not wanted["override"]:
            self._write(f"devices/{bdf}/driver_override", "\n")

    def _set(self, pf: str, file: str, number: int) -> None:
        self._write(f"devices/{pf}/{file}", str(number))

    def _restore(self, pf: str, prior: Dict[str, Any]) -> None:
        """A device that died, or that somebody changed meanwhile, must not stop the way back."""
        now = self._virtual(pf)
        if now is None or now == prior:
            return
        if not self._is_ours(pf, now):
            self.context.kept.append(f"virtual functions of {pf}: there are {now['number']}, which nobody of us made")
            return
        try:
            self._make(pf, prior)
        except TopovirtError as error:
            self.context.kept.append(f"virtual functions of {pf}, until the reboot: {error.message}")
