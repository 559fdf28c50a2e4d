# Copyright: the topovirt.kvm authors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""A boot entry of our own, with our initramfs and token: tried once, made the default after it was verified."""

from __future__ import annotations

import json
import re
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any, Dict, List, Optional, Sequence

from ansible_collections.topovirt.kvm.plugins.module_utils._host.cmdline.choice import boot_loader, initramfs_builder
from ansible_collections.topovirt.kvm.plugins.module_utils._host.cmdline.environment import lasting
from ansible_collections.topovirt.kvm.plugins.module_utils._host.cmdline.loader import Entry
from ansible_collections.topovirt.kvm.plugins.module_utils._host.files import content, remove_tree, restore, write_file
from ansible_collections.topovirt.kvm.plugins.module_utils._host.places import BOOT_STATE, TOKEN
from ansible_collections.topovirt.kvm.plugins.module_utils._host.step import Change, Context, Step, Touched
from ansible_collections.topovirt.kvm.plugins.module_utils._host.trial import is_trial, tried_arguments

# TuneD's own part of a command line, where entries take it in (its boot loader plug-in).
_OF_TUNED = re.compile(r"\$\{?tuned_(params|initrd)\}?$")


# How many huge pages there are at boot. The pool is resized at run time, too, and what counts is what it holds, which
# its own step verifies: other numbers need neither a trial nor a reboot.
_POOL = "hugepages="


class Boot(Step):
    """Kernel command line and early binding, by an entry that stands beside the host's own ones."""

    name = "boot"

    def __init__(self, context: Context) -> None:
        super().__init__(context)
        self._loader = boot_loader(context.root, context.run)
        self._builder = initramfs_builder(context.root, context.run)

    def early(self) -> bool:
        return True  # the way back starts by booting the old entry

    def read(self) -> Dict[str, Any]:
        """As last written: ``{"entries": [of ours], "default": id or None, "initramfs": digest of its inputs, "before":
        id of the host's own entry from which ours was made}``."""
        try:
            state: Dict[str, Any] = json.loads((self.context.root / BOOT_STATE).read_text(encoding="utf-8"))
        except FileNotFoundError:
            return {"entries": [], "default": None, "initramfs": None, "before": ""}
        return {"before": "", **state}

    def plan(self) -> List[Change]:
        state = self.read()
        entries = [_from_json(data) for data in state["entries"]]
        committed = next((entry for entry in entries if entry.id == state["default"]), None)
        target = self._target(committed)
        stay = committed is not None and committed.id == target.id
        shown = [target] if committed is None or stay else [committed, target]
        image = self._image(target)
        inputs = self._builder.inputs_digest(self.context.id, list(self.context.wanted.devices), target.kernel_version)
        changes = []
        if state["initramfs"] != inputs or not (self.context.root / image).is_file():
            changes.append(Change(self.name, "initramfs", str(image), state["initramfs"], inputs, reboot=not stay))
        changes += self._plan_entries(shown, committed, inputs, "apply")
        environment = self._loader.environment
        if not stay:
            now = environment.next_entry()
            if not self._runs(target) and now != target.id:
                changes.append(Change(self.name, "next_entry", environment.path, now, target.id, reboot=True))
            changes += self._plan_entries([target], target, inputs, "commit")
        default = self._loader.default_id()
        if default is not None and default != target.id:
            changes.append(Change(self.name, "default_entry", environment.path, default, target.id, "commit"))
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
        armed = self.context.journal.made((self.name, "next_entry", self._loader.environment.path))
        runs = self.context.under_token and is_trial(self.context.topology["host"]["cmdline"])
        if tried is None or not armed or runs or self._loader.environment.next_entry() == tried:
            return None
        return str(tried)

    def differences(self) -> List[str]:
        words = self.context.topology["host"]["cmdline"].split()
        wanted = [f"{TOKEN}={self.context.id}", *self.context.wanted.arguments]
        found = [f"kernel command line: {word} is missing" for word in _without_pool(wanted) if word not in words]
        state = self.read()
        target = _from_json(state["entries"][-1]) if state["entries"] else None
        kernel = self.context.topology["host"]["kernel"]
        if target is not None and target.kernel_version != kernel:
            found.append(f"kernel: wanted {target.kernel_version}, {kernel} is running")
        default = self._loader.default_id()
        if default is not None and state["default"] not in (None, default):
            found.append(f"boot loader: the default entry is {default!r}, wanted {state['default']!r}")
        if not self.context.topology["iommu"]["active"]:
            found.append("IOMMU: the kernel made no IOMMU groups")
        return found

    def prior(self, change: Change) -> Any:
        if change.kind == "initramfs":
            return {"type": "absent"}  # the name carries our id
        if change.kind == "next_entry":
            return super().prior(replace(change, kind="file"))
        if change.kind == "default_entry":
            return {"default": change.before}
        return super().prior(change)

    def apply(self, changes: Sequence[Change]) -> None:
        for change in changes:
            if change.kind == "initramfs":
                devices = list(self.context.wanted.devices)
                self._builder.build(self.context.id, devices, self.context.root / change.what)
            elif change.kind == "next_entry":
                self._loader.environment.set_next_entry(change.after)
            elif change.kind == "default_entry":
                self._loader.set_default_id(change.after)
            else:
                super().apply([change])

    def undo(self, touched: Sequence[Touched]) -> None:
        for thing in touched:
            path = self.context.root / thing.what
            if thing.kind == "initramfs":
                remove_tree(path)
            elif thing.kind == "next_entry":
                self._undo_once(path, thing.prior)
            elif thing.kind == "default_entry":
                self._undo_default(thing.prior["default"])
            elif thing.what == self._loader.shared_file:
                self._undo_entries(path, thing.prior)
            else:
                super().undo([thing])

    def _undo_once(self, path: Path, prior: Dict[str, Any]) -> None:
        """The block as bytes, unless somebody set other variables meanwhile: then only ours goes."""
        environment = self._loader.environment
        if environment.next_entry().startswith(f"{TOKEN}-"):
            environment.set_next_entry("")
        old = content(prior, self.context.journal.load)
        if old is not None and lasting(old) == lasting(path.read_bytes()):
            restore(path, prior, self.context.journal.load)

    def _undo_default(self, prior: str) -> None:
        """Unless somebody chose another default meanwhile."""
        now = self._loader.default_id() or ""
        if now.startswith(f"{TOKEN}-"):
            self._loader.set_default_id(prior)
        elif now != prior:
            self.context.kept.append(
                f"boot loader: the default entry is {now!r}, it was {prior!r} before the conversion"
            )

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
        committed = default.id if default else None
        state = {
            "entries": [asdict(entry) for entry in entries],
            "default": committed,
            "initramfs": inputs,
            "before": self._base().id,
        }
        changes = []
        shown = [entry if entry.id == committed else self._tried(entry) for entry in entries]
        for what, text in self._loader.files(shown, default).items():
            path = self.context.root / what
            mode = path.stat().st_mode & 0o7777 if path.is_file() else 0o644
            changes += self.plan_file(what, text, mode, stage)
        changes += [self.plan_removal(what, stage) for what in self._loader.stale(entries)]
        return [
            *changes,
            *self.plan_file(str(BOOT_STATE), json.dumps(state, indent=1, sort_keys=True) + "\n", 0o600, stage),
        ]

    def _base(self) -> Entry:
        """The entry that the host boots by itself, ours aside."""
        return self._loader.default_entry(self.read()["before"])

    def _target(self, committed: Optional[Entry]) -> Entry:
        """The entry that is wanted: the host's default one, with our arguments, token and initramfs.

        When it differs from the committed one (new arguments, new kernel) it gets a new id, so that it can be tried
        while the committed one stays the default.
        """
        base = self._base()
        ours = [*self.context.wanted.arguments, f"{TOKEN}={self.context.id}"]
        names = {word.partition("=")[0] for word in ours}
        kept = [word for word in base.arguments if word.partition("=")[0] not in names]
        initrd = self._loader.initrd_path(base, self._image(base).name)
        others = [path for path in base.initrds if not path.rsplit("/", 1)[-1].startswith(("initrd", "initramfs"))]
        if self.context.wanted.tuned:  # the profile that runs under our entry has no such part
            kept = [word for word in kept if not _OF_TUNED.match(word)]
            others = [path for path in others if not _OF_TUNED.match(path)]
        target = replace(
            base,
            id=f"{TOKEN}-{self.context.id}",
            title=f"{base.title} (KVM host, topovirt {self.context.id})",
            arguments=(*kept, *ours),
            initrds=(*others, initrd),
        )
        if committed is None:
            return target
        same = replace(committed, id=target.id, arguments=target.arguments) == target
        if same and _without_pool(committed.arguments) == _without_pool(target.arguments):
            return replace(committed, arguments=target.arguments)
        number = int(committed.id.rpartition("-")[2]) if committed.id.count("-") > 1 else 1
        return replace(target, id=f"{TOKEN}-{self.context.id}-{number + 1}")

    def _image(self, entry: Entry) -> Path:
        return self._builder.image(self.context.id, entry.kernel_version)

    def _runs(self, entry: Entry) -> bool:
        host = self.context.topology["host"]
        words = [word for word in host["cmdline"].split() if not word.startswith("BOOT_IMAGE=")]
        ways = (_without_pool(self._loader.expanded(way.arguments)) for way in (entry, self._tried(entry)))
        return host["kernel"] == entry.kernel_version and _without_pool(words) in ways

    def _tried(self, entry: Entry) -> Entry:
        """The entry as it boots until it is committed."""
        return replace(entry, arguments=tried_arguments(entry.arguments, self._builder.trial_arguments))


def _from_json(data: Dict[str, Any]) -> Entry:
    values: Dict[str, Any] = {name: tuple(value) if isinstance(value, list) else value for name, value in data.items()}
    return Entry(**values)


def _without_pool(words: Sequence[str]) -> List[str]:
    return sorted(word for word in words if not word.startswith(_POOL))
