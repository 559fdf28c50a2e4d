# Copyright: the topovirt.kvm authors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Devices bound to vfio-pci by address, without a conversion: at once, and by the host's own initramfs."""

from __future__ import annotations

from typing import Any, Dict, Iterator, List, Optional, Sequence

from ansible_collections.topovirt.kvm.plugins.module_utils._errors import TopovirtError
from ansible_collections.topovirt.kvm.plugins.module_utils._host.binding import Binding
from ansible_collections.topovirt.kvm.plugins.module_utils._host.cmdline.host_initramfs import (
    HostInitramfs,
    host_initramfs,
)
from ansible_collections.topovirt.kvm.plugins.module_utils._host.competitors import CONFLICT, Competitor, competitors
from ansible_collections.topovirt.kvm.plugins.module_utils._host.drivers import VFIO
from ansible_collections.topovirt.kvm.plugins.module_utils._host.files import content, digest, restore
from ansible_collections.topovirt.kvm.plugins.module_utils._host.guard import device_reasons
from ansible_collections.topovirt.kvm.plugins.module_utils._host.places import STATE
from ansible_collections.topovirt.kvm.plugins.module_utils._host.step import (
    AS_BEFORE,
    AS_WRITTEN,
    Change,
    Context,
    Thing,
    Touched,
)
from ansible_collections.topovirt.kvm.plugins.module_utils._host.surroundings import free_bytes

_IMAGE = "initramfs"
# Topics of notes: digests of the images as they were built last, and of what they were built from.
_BUILT, _INPUTS = "built", "inputs"


class PciBinding(Binding):
    """Which driver holds the devices that are named, now and at every boot."""

    name = "pci_binding"
    disturbs_vms = True

    def __init__(self, context: Context, persistent: bool, tolerated: Sequence[str] = ()) -> None:
        """:raises TopovirtError: when nothing is known that builds initramfs images here."""
        super().__init__(context)
        self._tolerated = tolerated
        self._initramfs: Optional[HostInitramfs] = host_initramfs(context.root, context.run) if persistent else None

    def obstacles(self) -> List[str]:
        return list(self._obstacles())

    def plan(self) -> List[Change]:
        changes = self.plan_devices()
        if self._initramfs is None:
            return changes
        files = self._initramfs.files(list(self.context.wanted.devices))
        configuration = [
            change for path, (text, mode) in files.items() for change in self.plan_file(path, text, mode, reboot=True)
        ]
        if configuration or self.context.journal.note(_INPUTS) != self._inputs():
            configuration += [
                Change(self.name, _IMAGE, path, None, "built anew", reboot=True) for path in self._initramfs.images()
            ]
        # What is bound at once stays bound when the images cannot be built, so they come first.
        return [*configuration, *changes]

    def results(self, changes: Sequence[Change]) -> Dict[str, Any]:
        return {"competitors": [competitor.as_dict() for competitor in self._competitors()]}

    def reboot_required(self) -> bool:
        states = {bdf: self._state(bdf) for bdf in self.context.wanted.devices}
        return any(state is not None and state["driver"] != VFIO for state in states.values())

    def find(self, thing: Thing) -> str:
        if thing.kind != _IMAGE:
            return super().find(thing)
        before = content(thing.prior, self.context.journal.load)
        same = before is not None and self._digest(thing.what) == digest(before)
        return AS_BEFORE if same else AS_WRITTEN  # whoever built it meanwhile built our binding in

    def apply(self, changes: Sequence[Change]) -> None:
        super().apply([change for change in changes if change.kind not in (_IMAGE, "device")])
        if self._initramfs is not None and any(change.kind == _IMAGE for change in changes):
            self.context.journal.add_note(_BUILT, None)
            self._initramfs.build()
            self.context.journal.add_note(_BUILT, {path: self._digest(path) for path in self._initramfs.images()})
            self.context.journal.add_note(_INPUTS, self._inputs())
        super().apply([change for change in changes if change.kind == "device"])

    def undo(self, touched: Sequence[Touched]) -> None:
        images = {thing.what: thing.prior for thing in touched if thing.kind == _IMAGE}
        super().undo([thing for thing in touched if thing.kind != _IMAGE])
        made: Optional[Dict[str, str]] = self.context.journal.note(_BUILT)
        if made is not None:
            built_by = host_initramfs(self.context.root, self.context.run)
            # Of a kernel that came meanwhile, or that somebody built anew: what was is no longer what it should be.
            others = {path for path in built_by.images() if made.get(path) != self._digest(path)}
            others -= {path for path, prior in images.items() if self._is_prior(path, prior)}
            if others:
                built_by.build()
            images = {path: prior for path, prior in images.items() if path not in others}
        for path, prior in images.items():
            restore(self._path(path), prior, self.context.journal.load)

    # --- inside

    def _obstacles(self) -> Iterator[str]:
        devices, topology = self.context.wanted.devices, self.context.topology
        yield from device_reasons(topology, devices)
        if any(f["iommu_group"] is None for f in topology["pci"] if f["bdf"] in devices):
            yield "the kernel made no IOMMU groups: switch the IOMMU on (topovirt.kvm.kernel_cmdline) and reboot first"
        for found in self._competitors():
            if found.severity == CONFLICT and found.name not in self._tolerated:
                yield found.reason("tolerate")
        yield from self._space()

    def _competitors(self) -> List[Competitor]:
        return competitors(
            self.context.root, self.context.run, self.context.topology, list(self.context.wanted.devices)
        )

    def _space(self) -> Iterator[str]:
        if self._initramfs is None or self.context.journal.note(_INPUTS) == self._inputs():
            return
        needed = sum(self._path(path).stat().st_size for path in self._initramfs.images())
        free = free_bytes(self._path(str(STATE.parent)))
        if free < needed:
            yield f"/{STATE.parent} has {free >> 20} MiB free; the initramfs images to keep take {needed >> 20} MiB"

    def _inputs(self) -> Optional[str]:
        if self._initramfs is None:
            return None
        files = self._initramfs.files(list(self.context.wanted.devices))
        return digest("".join(text for text, _mode in files.values()).encode("ascii"))

    def _is_prior(self, path: str, prior: Any) -> bool:
        before = content(prior, self.context.journal.load)
        return before is not None and self._digest(path) == digest(before)

    def _digest(self, path: str) -> Optional[str]:
        file = self._path(path)
        return digest(file.read_bytes()) if file.is_file() else None


def demand_effect(persistent: bool, at_once: bool) -> None:
    """:raises TopovirtError: when nothing would happen."""
    if not persistent and not at_once:
        raise TopovirtError(
            "With persistent: false and at_once: false nothing would be bound.", "Leave one of them out."
        )
