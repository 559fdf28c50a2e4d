# Copyright: the topovirt.kvm authors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Modules that do one step alone, there and back, as cases of test_every_module.py: on servers made of files."""

from __future__ import annotations

import os
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any
from unittest.mock import ANY

from ansible_collections.topovirt.kvm.plugins.module_utils._host.face import shown
from ansible_collections.topovirt.kvm.plugins.module_utils._host.faces import single
from ansible_collections.topovirt.kvm.plugins.module_utils._host.journals import Journals
from ansible_collections.topovirt.kvm.plugins.module_utils._host.single import Done, Single
from ansible_collections.topovirt.kvm.tests.unit.plugins.module_utils._host import test_kernel_cmdline as cmdline_tests
from ansible_collections.topovirt.kvm.tests.unit.plugins.module_utils._host import test_pci_binding as binding_tests
from ansible_collections.topovirt.kvm.tests.unit.plugins.module_utils._host import test_pcie_acs as acs_tests
from ansible_collections.topovirt.kvm.tests.unit.plugins.module_utils._host import test_tuned_profile as tuned_tests
from ansible_collections.topovirt.kvm.tests.unit.plugins.module_utils._host.fake_host import NATIVE, FakeHost

Things = dict[tuple[str, str], Any]
# Check mode, the real run and a second one; returns how many things changed, as predicted.
Hold = Callable[[Callable[[bool], dict[str, Any]], Callable[[], Things], Callable[[dict[str, Any]], Things]], int]
Make = Callable[..., Single]

# The collection's own records, and what the modules' documentation says that TuneD writes by itself.
OWN = ("var/lib/topovirt/faces/", "run/topovirt")
TUNED = ("etc/tuned/active_profile", "etc/tuned/profile_mode", "etc/tuned/bootcmdline", "boot/")


def result(done: Done) -> dict[str, Any]:
    said = {**shown(done.plan), **done.results}
    return {"changed": done.changed, "reboot_required": done.reboot_required, "kept": done.kept, **said}


def on_disk(root: Path, hidden: tuple[str, ...]) -> Things:
    """What files hold and where links lead."""
    found: Things = {}
    for path in root.rglob("*"):
        name = str(path.relative_to(root))
        if not name.startswith((*OWN, *hidden)) and (path.is_symlink() or path.is_file()):
            found["path", name] = os.readlink(path) if path.is_symlink() else path.read_bytes()
    return found


def effects(said: dict[str, Any]) -> Things:
    """What a plan says that things will be."""
    texts = {diff["before_header"]: diff["after"] for diff in said["diff"]}
    found: Things = {}
    for change in said["plan"]:
        kind, what = change["kind"], change["what"]
        if what.startswith(OWN):
            continue
        back = change["stage"] == "undo"
        if kind in ("file", "link", "initramfs", "generated"):
            text = texts.get(f"/{what}")
            known = kind == "file" and not back and text is not None
            value = text.encode() if known and text is not None else ANY
            found["path", what] = None if back and change["after"] == "absent" else value
        elif kind == "register":
            found["register", what.split()[0]] = ANY
        else:
            found[kind, what] = ANY if back else change["after"]
    return found


def there_and_back(hold: Hold, make: Make, name: str, look: Callable[[], Things], **options: Any) -> int:
    before = look()
    count = hold(lambda check: result(make(name, **options).present(check)), look, effects)
    count += hold(lambda check: result(make(name).restored(check)), look, effects)
    assert look() == before
    return count


def hugepages(hold: Hold, folder: Path) -> int:
    host = FakeHost(folder)

    def look() -> Things:
        files = on_disk(host.root, ("sys/",))
        base = host.root / "sys/devices/system/node"
        counts = {str(p.relative_to(host.root)): int(p.read_text()) for p in base.rglob("nr_hugepages")}
        started = {name: "active" for name, unit in host.units.items() if unit["active"]}
        return {
            **files,
            **{("pages", k): v for k, v in counts.items()},
            **{("start", k): v for k, v in started.items()},
        }

    return there_and_back(hold, host.face, "hugepages", look, pages={"1GiB": {"0": 3, "1": 2}})


def kernel_cmdline(hold: Hold, folder: Path) -> int:
    count = 0
    wish = cmdline_tests.WISH
    hosts = (
        cmdline_tests.Rhel(folder / "grubby", grubby=True),
        cmdline_tests.Rhel(folder / "files", grubby=False),
        cmdline_tests.Debian(folder / "debian"),
    )
    for host in hosts:
        look = _files_of(host)
        count += there_and_back(hold, host.face, "kernel_cmdline", look, **wish)
    return count


def tuned_profile(hold: Hold, folder: Path) -> int:
    host = tuned_tests.Host(folder)

    def look() -> Things:
        return {**on_disk(host.root, TUNED), ("profile", "active"): host.tuned_active}

    return there_and_back(hold, host.face, "tuned_profile", look, **tuned_tests.OWN)


def pci_binding(hold: Hold, folder: Path) -> int:
    count = 0
    for host in (binding_tests.Debian(folder / "debian"), binding_tests.RedHat(folder / "red-hat")):

        def look(host: FakeHost = host) -> Things:
            return {**on_disk(host.root, ("sys/",)), **{("device", bdf): host.driver(bdf) for bdf in NATIVE}}

        count += there_and_back(hold, host.face, "pci_binding", look, **binding_tests.SET)
    return count


def pcie_acs(hold: Hold, folder: Path) -> int:
    bench = acs_tests.Bench(acs_tests.Tree(folder / "tree", "hgx-h200").root, "hgx-h200")
    bench.journal.remove()  # of a conversion

    def make(name: str, **options: Any) -> Single:
        made = single(name, options, bench.root, lambda words: (0, "", ""))
        return replace(made, write=bench.write_attribute, write_config=bench.model.write)

    def look() -> Things:
        registers = {("register", bdf): data for bdf, data in bench.registers().items()}
        return {**on_disk(bench.root, ("sys/", "proc/")), **registers}

    return there_and_back(hold, make, "pcie_acs", look, max_read_request=0)


def host_journal(hold: Hold, folder: Path) -> int:
    host = FakeHost(folder)
    before = on_disk(host.root, ("sys/",))
    host.face("hugepages", pages={"1GiB": {"0": 1}}, at_once=False).present(check=False)
    journals = Journals(host.root, host.face, host.runner)
    count = hold(lambda check: result(journals.restore(check)), lambda: on_disk(host.root, ("sys/",)), effects)
    assert on_disk(host.root, ("sys/",)) == before
    return count


def _files_of(host: FakeHost) -> Callable[[], Things]:
    return lambda: on_disk(host.root, ())


CASES: dict[str, Callable[[Hold, Path], int]] = {
    case.__name__: case for case in (hugepages, kernel_cmdline, tuned_profile, pci_binding, pcie_acs, host_journal)
}
