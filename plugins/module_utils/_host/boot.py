# Copyright: the topovirt.kvm authors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""A boot entry of our own, with our initramfs and token: tried once, made the default after it was verified."""

from __future__ import annotations

import json
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any, Dict, List, Optional, Sequence

from ansible_collections.topovirt.kvm.plugins.module_utils._errors import TopovirtError
from ansible_collections.topovirt.kvm.plugins.module_utils._host.cmdline import initramfs_tools
from ansible_collections.topovirt.kvm.plugins.module_utils._host.cmdline.grub import Grub
from ansible_collections.topovirt.kvm.plugins.module_utils._host.cmdline.loader import BootLoader, Entry
from ansible_collections.topovirt.kvm.plugins.module_utils._host.files import content, remove_tree, restore, write_file
from ansible_collections.topovirt.kvm.plugins.module_utils._host.places import BOOT_STATE, TOKEN, Run
from ansible_collections.topovirt.kvm.plugins.module_utils._host.step import Change, Context, Step, Touched
from ansible_collections.topovirt.kvm.plugins.module_utils._host.trial import is_trial, tried_arguments

_BOOT = Path("boot")


def boot_loader(root: Path, run: Run) -> BootLoader:
    """The host's boot loader.

    :raises TopovirtError: for one that is not supported yet.
    """
    if Grub.found(root):
        return Grub(root, run)
    raise TopovirtError(
        "the boot loader of this host is not supported: there is no /boot/grub/grub.cfg",
        "(this version converts hosts that boot by GRUB with a generated grub.cfg, as Debian and its children do)",
    )


def boot_obstacles(root: Path, run: Run) -> List[str]:
    """Why no trial boot is possible on this host."""
    try:
        loader = boot_loader(root, run)
    except TopovirtError as error:
        return [str(error)]
    return [*loader.obstacles(), *initramfs_tools.available(root)]


class Boot(Step):
    """Kernel command line and early binding, by an entry that stands beside the host's own ones."""

    name = "boot"

    def __init__(self, context: Context) -> None:
        super().__init__(context)
        self._loader = boot_loader(context.root, context.run)

    def early(self) -> bool:
        return True  # the way back starts by booting the old entry

    def read(self) -> Dict[str, Any]:
        """As last written: ``{"entries": [of ours], "default": id or None, "initramfs": digest of its inputs}``."""
        try:
            state: Dict[str, Any] = json.loads((self.context.root / BOOT_STATE).read_text(encoding="utf-8"))
        except FileNotFoundError:
            return {"entries": [], "default": None, "initramfs": None}
        return state

    def plan(self) -> List[Change]:
        state = self.read()
        entries = [_from_json(data) for data in state["entries"]]
        committed = next((entry for entry in entries if entry.id == state["default"]), None)
        target = self._target(committed)
        stay = committed is not None and committed == target
        shown = [target] if committed is None or stay else [committed, target]
        image = self._image(target)
        inputs = initramfs_tools.inputs_digest(
            self.context.id, list(self.context.wanted.devices), target.kernel_version
        )
        changes = []
        if state["initramfs"] != inputs or not (self.context.root / image).is_file():
            changes.append(Change(self.name, "initramfs", str(image), state["initramfs"], inputs, reboot=not stay))
        changes += self._plan_entries(shown, committed, inputs, "apply")
        if not stay:
            now = self._loader.next_entry()
            if not self._runs(target) and now != target.id:
                changes.append(Change(self.name, "next_entry", self._loader.once_file, now, target.id, reboot=True))
            changes += self._plan_entries([target], target, inputs, "commit")
        return changes

    def reboot_required(self) -> bool:
        """Whether the host does not run the wanted entry."""
        state = self.read()
        entries = [_from_json(data) for data in state["entries"]]
        committed = next((entry for entry in entries if entry.id == state["default"]), None)
        return not self._runs(self._target(committed))

    def failed_trial(self) -> Optional[str]:
        """Id of the entry that was booted once, and after which the host came back with another one."""
        state = self.read()
        tried = next((entry["id"] for entry in state["entries"] if entry["id"] != state["default"]), None)
        armed = self.context.journal.made((self.name, "next_entry", self._loader.once_file))
        runs = self.context.under_token and is_trial(self.context.topology["host"]["cmdline"])
        if tried is None or not armed or runs or self._loader.next_entry() == tried:
            return None
        return str(tried)

    def differences(self) -> List[str]:
        words = self.context.topology["host"]["cmdline"].split()
        wanted = [f"{TOKEN}={self.context.id}", *self.context.wanted.arguments]
        found = [f"kernel command line: {word} is missing" for word in wanted if word not in words]
        state = self.read()
        target = _from_json(state["entries"][-1]) if state["entries"] else None
        kernel = self.context.topology["host"]["kernel"]
        if target is not None and target.kernel_version != kernel:
            found.append(f"kernel: wanted {target.kernel_version}, {kernel} is running")
        if not self.context.topology["iommu"]["active"]:
            found.append("IOMMU: the kernel made no IOMMU groups")
        return found

    def prior(self, change: Change) -> Any:
        if change.kind == "initramfs":
            return {"type": "absent"}  # the name carries our id
        if change.kind == "next_entry":
            return super().prior(replace(change, kind="file"))
        return super().prior(change)

    def apply(self, changes: Sequence[Change]) -> None:
        for change in changes:
            if change.kind == "initramfs":
                version = Path(change.what).name.partition("initrd.img-")[2]
                initramfs_tools.build(
                    self.context.root,
                    self.context.run,
                    self.context.id,
                    list(self.context.wanted.devices),
                    version,
                    self.context.root / change.what,
                )
            elif change.kind == "next_entry":
                self._loader.set_next_entry(change.after)
            else:
                super().apply([change])

    def undo(self, touched: Sequence[Touched]) -> None:
        for thing in touched:
            path = self.context.root / thing.what
            if thing.kind == "initramfs":
                remove_tree(path)
            elif thing.kind == "next_entry":
                self._undo_once(path, thing.prior)
            elif thing.what == self._loader.entries_file:
                self._undo_entries(path, thing.prior)
            else:
                super().undo([thing])

    def _undo_once(self, path: Path, prior: Dict[str, Any]) -> None:
        """The block as bytes, unless somebody set other variables meanwhile: then only ours goes."""
        if self._loader.next_entry().startswith(f"{TOKEN}-"):
            self._loader.set_next_entry("")
        old = content(prior, self.context.journal.load)
        if old is not None and _variables(old) == _variables(path.read_bytes()):
            restore(path, prior, self.context.journal.load)

    def _undo_entries(self, path: Path, prior: Dict[str, Any]) -> None:
        """The file as bytes, unless somebody changed it meanwhile: then only our block goes."""
        current = path.read_text(encoding="utf-8", errors="surrogateescape") if path.is_file() else ""
        rest = self._loader.without_ours(current)
        old = (content(prior, self.context.journal.load) or b"").decode("utf-8", "surrogateescape")
        if rest.rstrip("\n") == old.rstrip("\n"):
            restore(path, prior, self.context.journal.load)
        elif rest != current:
            write_file(path, rest.encode("utf-8", "surrogateescape"), path.stat().st_mode & 0o7777)

    def _plan_entries(self, entries: List[Entry], default: Optional[Entry], inputs: str, stage: str) -> List[Change]:
        path = self.context.root / self._loader.entries_file
        current = path.read_text(encoding="utf-8", errors="surrogateescape") if path.is_file() else ""
        mode = path.stat().st_mode & 0o7777 if path.is_file() else 0o644
        committed = default.id if default else None
        state = {
            "entries": [asdict(entry) for entry in entries],
            "default": committed,
            "initramfs": inputs,
        }
        shown = [entry if entry.id == committed else self._tried(entry) for entry in entries]
        return [
            *self.plan_file(self._loader.entries_file, self._loader.render(current, shown, default), mode, stage),
            *self.plan_file(str(BOOT_STATE), json.dumps(state, indent=1, sort_keys=True) + "\n", 0o600, stage),
        ]

    def _target(self, committed: Optional[Entry]) -> Entry:
        """The entry that is wanted: the host's default one, with our arguments, token and initramfs.

        When it differs from the committed one (new arguments, new kernel) it gets a new id, so that it can be tried
        while the committed one stays the default.
        """
        base = self._loader.default_entry()
        ours = [*self.context.wanted.arguments, f"{TOKEN}={self.context.id}"]
        names = {word.partition("=")[0] for word in ours}
        kept = [word for word in base.arguments if word.partition("=")[0] not in names]
        initrd = self._loader.initrd_path(base, self._image(base).name)
        others = tuple(path for path in base.initrds if not path.rsplit("/", 1)[-1].startswith(("initrd", "initramfs")))
        target = replace(
            base,
            id=f"{TOKEN}-{self.context.id}",
            title=f"{base.title} (KVM host, topovirt {self.context.id})",
            arguments=(*kept, *ours),
            initrds=(*others, initrd),
        )
        if committed is None or replace(committed, id=target.id) == target:
            return target if committed is None else committed
        number = int(committed.id.rpartition("-")[2]) if committed.id.count("-") > 1 else 1
        return replace(target, id=f"{TOKEN}-{self.context.id}-{number + 1}")

    def _image(self, entry: Entry) -> Path:
        return _BOOT / f"{TOKEN}-{self.context.id}-initrd.img-{entry.kernel_version}"

    def _runs(self, entry: Entry) -> bool:
        host = self.context.topology["host"]
        words = [word for word in host["cmdline"].split() if not word.startswith("BOOT_IMAGE=")]
        ways = (entry, self._tried(entry))
        return host["kernel"] == entry.kernel_version and sorted(words) in [sorted(way.arguments) for way in ways]

    @staticmethod
    def _tried(entry: Entry) -> Entry:
        """The entry as it boots until it is committed."""
        return replace(entry, arguments=tried_arguments(entry.arguments, initramfs_tools.TRIAL_ARGUMENTS))


def _from_json(data: Dict[str, Any]) -> Entry:
    values: Dict[str, Any] = {name: tuple(value) if isinstance(value, list) else value for name, value in data.items()}
    return Entry(**values)


def _variables(block: bytes) -> List[bytes]:
    """The lines of a GRUB environment block but for the one-time entry and the padding."""
    lines = [line for line in block.split(b"\n") if line.strip(b"#") and not line.startswith(b"next_entry=")]
    return [line for line in lines if not line.startswith(b"# GRUB") and not line.startswith(b"# WARNING")]
