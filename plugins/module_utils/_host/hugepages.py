# Copyright: the topovirt.kvm authors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Huge pages per NUMA node, by a unit of ours that runs early in boot and reads back what the kernel gave.

Pages of 1 GiB are there already when the kernel understood the arguments that ``wanted.py`` gives it.
A step that stands alone also asks the running kernel for them, node by node.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any, Dict, Iterator, List, Mapping, Optional, Sequence

from ansible_collections.topovirt.kvm.plugins.module_utils._errors import TopovirtError
from ansible_collections.topovirt.kvm.plugins.module_utils._host.early_unit import (
    UNITS,
    plan_early_script,
    plan_unit,
)
from ansible_collections.topovirt.kvm.plugins.module_utils._host.services import unit_state
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
from ansible_collections.topovirt.kvm.plugins.module_utils._host.wanted import PAGE_SIZES, counts_per_node
from ansible_collections.topovirt.kvm.plugins.module_utils._topology.model import Node, Topology
from ansible_collections.topovirt.kvm.plugins.module_utils._topology.reserve import guest_pages

UNIT = "topovirt-hugepages.service"
_DESCRIPTION = "Huge pages per NUMA node for virtual machines"
_SCRIPT = "hugepages.sh"
_MOUNT = "dev-hugepages1G.mount"
_GIB_KIB = 1 << 20

# systemd mounts /dev/hugepages with the default page size only; libvirt looks for a mount of each size it is to use.
_MOUNT_TEXT = """\
# Written by the Ansible collection topovirt.kvm; removed by its way back.
[Unit]
Description=Huge pages of 1 GiB for virtual machines
{condition}DefaultDependencies=no
Before=sysinit.target libvirtd.service virtqemud.service

[Mount]
What=hugetlbfs
Where=/dev/hugepages1G
Type=hugetlbfs
Options=pagesize=1G

[Install]
WantedBy=sysinit.target
"""

# The kernel gives fewer pages than asked for without an error, so each node is read back. Free memory is in pieces
# after the initial ramdisk and early daemons: caches are dropped and memory is compacted before another try.
_HEAD = """\
#!/bin/sh
# Written by the Ansible collection topovirt.kvm; removed by its way back.
failed=0
"""
_POOL = """\
want() {{
    file=/sys/devices/system/node/node$1/hugepages/hugepages-{kib}kB/nr_hugepages
    for try in 1 2 3; do
        echo "$2" > "$file"
        read -r got < "$file"
        [ "$got" = "$2" ] && return
        echo 3 > /proc/sys/vm/drop_caches
        echo 1 > /proc/sys/vm/compact_memory
    done
    echo "node $1: wanted $2 huge pages of {kib} KiB, got $got" >&2
    failed=1
}}
{lines}"""
_TAIL = "exit $failed\n"
_TRIES = 3

# Size in bytes -> node -> number of pages.
Pools = Mapping[int, Mapping[int, int]]


_COUNT, _START = "pages", "start"


class Hugepages(Step):
    """The pool of huge pages that guests' memory comes from."""

    name = "hugepages"

    def __init__(self, context: Context, pools: Optional[Pools] = None) -> None:
        """:param pools: what is wanted, where it is not the context's wanted state that says so."""
        super().__init__(context)
        wanted = {context.wanted.page_size_bytes: context.wanted.pages}
        # Large pages first: small ones would take pieces out of them.
        self._pools = sorted((wanted if pools is None else pools).items(), reverse=True)
        self._given = pools is not None

    def obstacles(self) -> List[str]:
        if not self._given:
            return []  # the guard looks at a conversion as a whole
        return [*self._unknown_sizes(), *self._starved()]

    def read(self) -> Dict[str, Any]:
        """Pages per node that the running kernel has, by size in KiB."""
        return {
            str(size >> 10): {str(node["id"]): self._have(node["id"], size) for node in self._nodes()}
            for size, _pages in self._pools
        }

    def plan(self) -> List[Change]:
        pools = [
            _POOL.format(
                kib=size >> 10, lines="".join(f"want {node} {count}\n" for node, count in sorted(pages.items()))
            )
            for size, pages in self._pools
        ]
        script = self.context.journal.place / _SCRIPT
        changes = plan_early_script(self, UNIT, _DESCRIPTION, script, f"{_HEAD}{''.join(pools)}{_TAIL}")
        if _GIB_KIB << 10 in dict(self._pools) and not self._foreign_mount():
            changes += plan_unit(self, _MOUNT, _MOUNT_TEXT.format(condition=self.context.condition))
            if self.context.alone and self.context.acts_now and not unit_state(self.context.run, _MOUNT)["active"]:
                changes.append(Change(self.name, _START, _MOUNT, "inactive", "active"))
        if self.context.alone:
            changes += self._plan_counts()
        return changes

    def results(self, changes: Sequence[Change]) -> Dict[str, Any]:
        before = self.read()
        wanted = {str(size >> 10): {str(node): count for node, count in pages.items()} for size, pages in self._pools}
        now = {kib: {**pages, **(wanted[kib] if self.context.acts_now else {})} for kib, pages in before.items()}
        return {"pages_before": before, "pages": now}

    def reboot_required(self) -> bool:
        return self._given and bool(self.differences())

    def differences(self) -> List[str]:
        return [
            f"node {node}: wanted {count} huge pages of {size >> 10} KiB, the kernel has {self._have(node, size)}"
            for size, pages in self._pools
            for node, count in sorted(pages.items())
            if self._have(node, size) != count
        ]

    def prior(self, change: Change) -> Any:
        return change.before if change.kind in (_COUNT, _START) else super().prior(change)

    def find(self, thing: Thing) -> str:
        if thing.kind == _START:
            return AS_WRITTEN if unit_state(self.context.run, thing.what)["active"] else AS_BEFORE
        if thing.kind != _COUNT:
            return super().find(thing)
        path = self._path(thing.what)
        if not path.is_file():
            return GONE
        count = _number(path)
        return AS_BEFORE if count == thing.prior else AS_WRITTEN if count in thing.afters else CHANGED

    def apply(self, changes: Sequence[Change]) -> None:
        super().apply([change for change in changes if change.kind not in (_COUNT, _START)])
        for change in changes:
            if change.kind == _START:
                self._systemctl("daemon-reload")
                self._systemctl("start", change.what)
        for change in changes:
            if change.kind == _COUNT and self.context.acts_now:
                self._set(change.what, change.after)
        if self.context.acts_now and not self.context.alone:
            self.context.run(["systemctl", "daemon-reload"])
            status, _out, _errors = self.context.run(["systemctl", "restart", UNIT])
            if status != 0:
                raise TopovirtError(
                    "The kernel did not give the wanted huge pages.", f"Look at: journalctl -u {UNIT}; a reboot helps."
                )

    def undo(self, touched: Sequence[Touched]) -> None:
        for thing in touched:
            if thing.kind == _START:
                self._systemctl("stop", thing.what)
        super().undo([thing for thing in touched if thing.kind not in (_COUNT, _START)])
        for thing in touched:
            if thing.kind == _COUNT:
                self._set(thing.what, thing.prior)

    def _systemctl(self, *words: str) -> None:
        status, _out, errors = self.context.run(["systemctl", *words])
        if status != 0:
            raise TopovirtError(f"systemctl {' '.join(words)} failed: {errors.strip()}.", "The system log says why.")

    def _nodes(self) -> List[Node]:
        return self.context.topology["numa_nodes"]

    def _have(self, node: int, size: int) -> int:
        """Pages of a node as the topology says, which was read before anything was changed."""
        pages = next((each["hugepages"] for each in self._nodes() if each["id"] == node), {})
        return pages[str(size >> 10)]["total"] if str(size >> 10) in pages else 0

    def _plan_counts(self) -> List[Change]:
        wanted = [(node, size, count) for size, pages in self._pools for node, count in sorted(pages.items())]
        # What gives memory back comes before what takes it.
        wanted.sort(key=lambda item: item[2] > self._have(item[0], item[1]))
        at_once, afters = self.context.acts_now, self.context.journal.afters()
        changes = [
            Change(self.name, _COUNT, _count_file(node, size), self._have(node, size), count, reboot=not at_once)
            for node, size, count in wanted
            if self._have(node, size) != count
        ]
        # Those that are recorded already wait for the reboot.
        return [change for change in changes if at_once or change.after not in afters.get(change.key, [])[-1:]]

    def _set(self, what: str, count: int) -> None:
        path, got = self._path(what), -1
        for _try in range(_TRIES):
            self.context.write(path, str(count))
            got = _number(path)
            if got == count:
                return
            self.context.write(self.context.root / "proc/sys/vm/drop_caches", "3")
            self.context.write(self.context.root / "proc/sys/vm/compact_memory", "1")
        raise TopovirtError(
            f"The kernel gave {got} of {count} huge pages (/{what}).",
            "Memory is in use or in pieces: use at_once: false and reboot, or ask for fewer.",
        )

    def _unknown_sizes(self) -> Iterator[str]:
        for size, pages in self._pools:
            for node in sorted(pages):
                if not self._path(_count_file(node, size)).is_file():
                    yield f"node {node} has no huge pages of {_size(size)}: CPU or kernel lack them"

    def _starved(self) -> Iterator[str]:
        """Nodes on which the host would be left less than its reserve, pages of all sizes together."""
        for node in self._nodes():
            asked = {size: pages[node["id"]] for size, pages in self._pools if pages.get(node["id"])}
            sizes = {int(kib) << 10 for kib in node["hugepages"]} | set(asked)
            kept = {
                size: self._have(node["id"], size)
                for size in sizes
                if node["id"] not in dict(self._pools).get(size, {})
            }
            total = sum(size * count for size, count in {**kept, **asked}.items())
            most = guest_pages(node["memory_bytes"], 1)
            if asked and total > most:
                words = " and ".join(f"{count} pages of {_size(size)}" for size, count in sorted(asked.items()))
                known = node["memory_bytes"]
                memory = "an unknown amount" if known is None else f"{known / 2**30:.1f} GiB"
                others = f" beside {sum(s * c for s, c in kept.items()) / 2**30:.1f} GiB in pages of other sizes"
                yield (
                    f"node {node['id']} has {memory} of memory: {words}{others if any(kept.values()) else ''} are "
                    f"{total / 2**30:.1f} GiB, and at most {most / 2**30:.1f} GiB may go beside what the host needs"
                )

    def _foreign_mount(self) -> bool:
        """Whether the host mounts huge pages of 1 GiB itself."""
        ours = (self.name, "file", f"{UNITS}/{_MOUNT}") in self.context.journal.first_priors()
        if ours:
            return False
        fstab = self.context.root / "etc/fstab"
        lines = fstab.read_text(encoding="utf-8", errors="replace").splitlines() if fstab.is_file() else []
        named = any("hugetlbfs" in line and "pagesize=1" in line for line in lines if not line.startswith("#"))
        return named or any(
            (self.context.root / place / _MOUNT).exists() for place in (UNITS, "usr/lib/systemd/system")
        )


def pools_of(given: Mapping[str, Any], topology: Topology) -> Pools:
    """What an operator asks for, by name of the size and by node.

    :raises TopovirtError: with everything that is wrong with its form.
    """
    nodes = {node["id"] for node in topology["numa_nodes"]}
    errors: List[str] = []
    pools: Dict[int, Dict[int, int]] = {}
    for name, per_node in given.items():
        if name not in PAGE_SIZES:
            errors.append(f"huge page size {name!r} is none of {', '.join(PAGE_SIZES)}")
        elif not isinstance(per_node, Mapping):
            errors.append(f"{name}: {per_node!r} is not a dictionary of nodes and numbers of pages")
        else:
            pools[PAGE_SIZES[name]] = counts_per_node(per_node, nodes, errors)
    if not given:
        errors.append("no huge pages are asked for: name a page size, nodes and numbers")
    if errors:
        raise TopovirtError(f"The wanted huge pages are wrong: {'; '.join(errors)}.", "Nothing was changed.")
    return pools


def _count_file(node: int, size: int) -> str:
    return f"sys/devices/system/node/node{node}/hugepages/hugepages-{size >> 10}kB/nr_hugepages"


def _number(path: Path) -> int:
    return int(path.read_text(encoding="ascii"))


def _size(size_bytes: int) -> str:
    return next(name for name, size in PAGE_SIZES.items() if size == size_bytes)
