# Copyright: the topovirt.kvm authors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Packages: what a conversion adds, and taking exactly that away again.

Ansible's own module installs them. Before it runs, an inventory is kept; afterwards the difference is what came,
dependencies and everything that package scripts made included. Both together are one *interval*.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any, Callable, Dict, List, Sequence

from ansible_collections.topovirt.kvm.plugins.module_utils._host import inventory
from ansible_collections.topovirt.kvm.plugins.module_utils._host.accounts import (
    ACCOUNT_FILES,
    added,
    number_of,
    without,
)
from ansible_collections.topovirt.kvm.plugins.module_utils._host.files import (
    State,
    capture,
    content,
    digest,
    remove_tree,
    restore,
)
from ansible_collections.topovirt.kvm.plugins.module_utils._host.journal import Journal
from ansible_collections.topovirt.kvm.plugins.module_utils._host.package_manager import package_manager, plain_name
from ansible_collections.topovirt.kvm.plugins.module_utils._host.services import unit_state
from ansible_collections.topovirt.kvm.plugins.module_utils._host.step import Change, Step, Touched

# What the daemons make later, outside the directories of their packages.
_RUNTIME_PATHS = ("root/.cache/libvirt", "root/.config/libvirt", "root/.local/share/libvirt", "var/log/swtpm")
# Directories whose content belongs to the operator even if a package made the directory.
_USER_DATA = ("var/lib/libvirt/images",)
# Rebuilt by triggers of some packages; too large for the inventory, so they are kept as files.
_BOOT_FILES = ("boot/grub/grub.cfg", "boot/grub2/grub.cfg", "boot/initrd.img-*", "boot/initramfs-*.img")
_OUR_IMAGES = "topovirt"  # below it: copies that the collection made, its VMs are deleted before


class Packages(Step):
    """Packages that the conversion needs; ``record`` and ``close`` frame their installation."""

    name = "packages"

    def read(self) -> Dict[str, Any]:
        return dict(package_manager(self.context.root, self.context.run).installed())

    def plan(self) -> List[Change]:
        names = {plain_name(name) for name in self.read()}
        return [
            Change(self.name, "package", name, None, "installed", "packages")
            for name in self.context.wanted.packages
            if name not in names
        ]

    def differences(self) -> List[str]:
        return [f"package {change.what} is not installed" for change in self.plan()]

    def record(self) -> None:
        """Keep an inventory before packages are installed, unless one is kept and not used yet."""
        journal = self.context.journal
        number = _intervals(journal)
        if number and journal.note(f"packages/{number}") is None:
            return
        manager = package_manager(self.context.root, self.context.run)
        packages = manager.installed()
        before = {
            **inventory.take(self.context.root, manager.owned()),
            "packages": packages,
            "boot": self._boot_files(journal.save),
        }
        journal.add_note("units", {u: unit_state(self.context.run, u) for u in self.context.wanted.services})
        saved = journal.save(inventory.pack(before))
        journal.intent(
            (self.name, "interval", str(number + 1)), {"inventory": saved, "packages": sorted(packages)}, None
        )

    def close(self) -> List[str]:
        """Find out what the installation brought; returns the topmost paths, unless that was done before."""
        journal = self.context.journal
        number = _intervals(journal)
        if not number or journal.note(f"packages/{number}") is not None:
            return []
        touched = journal.first_priors()[(self.name, "interval", str(number))]
        brought = self._brought(touched)
        journal.outcome(touched["seq"])
        journal.add_note(f"packages/{number}", {"changes": journal.save(inventory.pack(brought))})
        return list(brought["created"])

    def brought(self) -> List[str]:
        """Topmost paths that all intervals brought which are not taken back."""
        journal = self.context.journal
        keys = [(self.name, "interval", str(number)) for number in range(1, _intervals(journal) + 1)]
        return [
            path
            for key in keys
            if key not in journal.undone()
            for path in self._changes(int(key[2]), journal.first_priors()[key])["created"]
        ]

    def _brought(self, interval: Dict[str, Any]) -> Dict[str, Any]:
        before = inventory.unpack(self.context.journal.load(interval["prior"]["inventory"]))
        now = package_manager(self.context.root, self.context.run).installed()
        old, boot = before["packages"], self._boot_files(digest)
        return {
            **inventory.difference(self.context.root, before),
            "packages": sorted(name for name in now if name not in old),
            "upgraded": {name: [old[name], now[name]] for name in now if name in old and old[name] != now[name]},
            "boot": {path: boot.get(path) for path, state in before["boot"].items() if boot.get(path) != state},
            "accounts": {path: _text(self.context.root / path) for path in ACCOUNT_FILES},
        }

    def _boot_files(self, save: Callable[[bytes], str]) -> Dict[str, State]:
        """Exact states of the boot files that packages may rebuild. ``save`` names the bytes of large ones."""
        root = self.context.root
        found = sorted(path for pattern in _BOOT_FILES for path in root.glob(pattern))
        states = {str(path.relative_to(root)): capture(path, save) for path in found}
        for state in states.values():
            state.pop("mtime_ns", None)
        return states

    def obstacles(self) -> List[str]:
        """Why the way back would fail or destroy the operator's data; asked before anything is changed."""
        journal = self.context.journal
        manager = package_manager(self.context.root, self.context.run)
        reasons: List[str] = []
        for number in range(_intervals(journal), 0, -1):
            key = (self.name, "interval", str(number))
            if key in journal.undone():
                continue
            brought = self._changes(number, journal.first_priors()[key])
            names = [name for name in brought["packages"] if name in manager.known()]
            reasons.extend(f"packages: {line}" for line in manager.obstacles(names))
            for directory in _USER_DATA:
                if any(directory == path or directory.startswith(f"{path}/") for path in brought["created"]):
                    top = self.context.root / directory
                    files = sorted(p for p in top.rglob("*") if not p.is_dir() and top / _OUR_IMAGES not in p.parents)
                    reasons.extend(
                        f"/{path.relative_to(self.context.root)} would be lost: its directory came with the conversion"
                        for path in files
                    )
        return reasons

    def undo(self, touched: Sequence[Touched]) -> None:
        for thing in touched:
            if thing.kind == "interval":
                self._revert(int(thing.what), {"prior": thing.prior})

    def _changes(self, number: int, interval: Dict[str, Any]) -> Dict[str, Any]:
        note = self.context.journal.note(f"packages/{number}")
        if note is None:  # cut off while packages were being installed
            return self._brought(interval)
        changes: Dict[str, Any] = inventory.unpack(self.context.journal.load(note["changes"]))
        return changes

    def _revert(self, number: int, interval: Dict[str, Any]) -> None:
        root, journal = self.context.root, self.context.journal
        manager = package_manager(root, self.context.run)
        before = inventory.unpack(journal.load(interval["prior"]["inventory"]))
        topic = f"revert/{number}"
        if journal.note(topic) is None:  # decided once, on the state before removal touches anything
            brought = self._changes(number, interval)
            ours = [path for path, seen in brought["changed"].items() if inventory.fingerprint(root / path) == seen]
            boot = self._boot_files(digest)
            ours_boot = [path for path, state in brought.get("boot", {}).items() if boot.get(path) == state]
            data = {**brought, "ours": ours, "ours_boot": ours_boot}
            journal.add_note(topic, {"plan": journal.save(inventory.pack(data))})
        plan = inventory.unpack(journal.load(journal.note(topic)["plan"]))  # type: ignore[index]
        names = [name for name in plan["packages"] if name in manager.known()]
        if names:
            manager.purge(names)
        owned = manager.owned()
        for path in plan["created"]:
            if path not in owned and not any(name.startswith(f"{path}/") for name in owned):
                remove_tree(root / path)  # else a package that came later lives there
        for path in _RUNTIME_PATHS:
            if path not in before["paths"]:
                remove_tree(root / path)
        self._revert_accounts(before, plan)
        for path in plan["ours"]:
            if path not in ACCOUNT_FILES and (root / path).parent.is_dir():
                restore(root / path, before["states"][path], inventory.decode)
        for path in plan.get("ours_boot", []):
            restore(root / path, before["boot"][path], journal.load)
        for path in sorted(set(plan["changed"]) - set(plan["ours"]) - set(ACCOUNT_FILES)):
            if path.startswith("etc/") and inventory.fingerprint(root / path) != inventory.state_fingerprint(
                before["states"][path]
            ):
                self.context.kept.append(f"/{path}: somebody changed it after the conversion")
        for name, (old, new) in sorted(plan["upgraded"].items()):
            self.context.kept.append(
                f"package {name}: upgraded from {old} to {new} while the conversion installed others"
            )

    def _revert_accounts(self, before: Dict[str, Any], plan: Dict[str, Any]) -> None:
        """Remove users and groups that came, but for those that own files which stay."""
        root = self.context.root
        old = {path: _before_text(before, path) for path in ACCOUNT_FILES}
        new = plan["accounts"]
        users = {number_of(new["etc/passwd"], n): n for n in added(old["etc/passwd"], new["etc/passwd"])}
        groups = {number_of(new["etc/group"], n): n for n in added(old["etc/group"], new["etc/group"])}
        keep = []
        if users or groups:
            for (kind, number), path in inventory.owners(root, set(users), set(groups)).items():
                name = users[number] if kind == "user" else groups[number]
                keep.append(name)
                self.context.kept.append(f"{kind} {name}: owns {path}")
        for path in ACCOUNT_FILES:
            if path not in before["states"]:
                continue
            if path in plan["ours"] and not keep:
                restore(root / path, before["states"][path], inventory.decode)
            elif path in plan["changed"]:
                current = _text(root / path)
                wanted = without(path, current, old[path], new[path], keep)
                if wanted != current:
                    state = capture(root / path, self.context.journal.save)
                    state.pop("saved", None)
                    restore(root / path, {**state, "data": inventory.encode(wanted)}, inventory.decode)


def _intervals(journal: Journal) -> int:
    return sum(1 for step, kind, _what in journal.first_priors() if (step, kind) == (Packages.name, "interval"))


def _text(path: Path) -> str:
    return path.read_text(encoding="utf-8", errors="surrogateescape") if path.is_file() else ""


def _before_text(before: Dict[str, Any], path: str) -> str:
    data = content(before["states"].get(path, {"type": "absent"}), inventory.decode)
    return (data or b"").decode("utf-8", "surrogateescape")
