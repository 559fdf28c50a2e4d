# Copyright: the topovirt.kvm authors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""A host as things with values, and which of them differ between two looks at it.

An observation is what tests/tools/manifest_host.py and tests/truth/effective_host.py say of a host, in one dict.
Nothing here or there is of the collection.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property
from typing import Any, NamedTuple

from tests.tools import manifest

# A pool of huge pages as sysfs names it.
POOL = re.compile(r"node(\d+)/hugepages/hugepages-(\d+)kB$")
# What GRUB, not a command line, says of itself; and words that only GRUB knows, see bls in its documentation.
_LOADERS_WORDS = re.compile(r"^(BOOT_IMAGE=.*|initrd=.*|\$\{?\w+\}?)$")


class Thing(NamedTuple):
    """Something that can differ: its kind and its name."""

    kind: str
    name: str

    def __str__(self) -> str:
        return " ".join(filter(None, self))


class Unit(NamedTuple):
    """A unit's state.

    :param enabled: None without a unit file.
    :param active: None when its activity passes.
    """

    enabled: str | None
    active: bool | None


class Driver(NamedTuple):
    driver: str | None
    override: str


class VirtualFunctions(NamedTuple):
    """Of one physical function.

    :param autoprobe: whether drivers take new ones.
    :param held: who holds each, in their order.
    """

    number: int
    autoprobe: bool
    held: tuple[Driver, ...]


class Path(NamedTuple):
    """As the observer lists a path: bits of its type, mode, owner, hash of the content or target of the link."""

    type: int
    mode: str
    owner: int
    group: int
    attributes: tuple[tuple[str, str], ...]
    content: Any


Value = Any  # of one of the types above, or plain; a thing that is not there has none
Things = Mapping[Thing, Value]

COMMAND_LINE = Thing("command line", "")
DEFAULT_ENTRY = Thing("default entry", "")
NEXT_ENTRY = Thing("next entry", "")
PROFILE = Thing("TuneD profile", "")


def command_words(line: str) -> tuple[str, ...]:
    """Words of a kernel command line, in an order that means nothing, less those of the boot loader."""
    return tuple(sorted(word for word in line.split() if not _LOADERS_WORDS.match(word)))


def things(observation: Mapping[str, Any]) -> dict[Thing, Value]:
    """Every thing of an observation; paths that differ by themselves (volatile-paths.yml) are left out."""
    exact, trees = manifest.volatile()
    found: dict[Thing, Value] = {}
    for path, state in observation["files"].items():
        if path in exact or path.startswith(tuple(f"{tree}/" for tree in trees)) or path.endswith("/grubenv"):
            continue  # of an environment block the variables count
        kind, mode, owner, group, attributes, content = state
        shown = tuple(content) if isinstance(content, list) else content
        found[Thing("path", path)] = Path(kind, mode, owner, group, tuple(sorted(attributes.items())), shown)
    for line in observation["packages"]:
        name, version = _package(line)
        found[Thing("package", name)] = version
    for name in observation["manual_packages"]:
        found[Thing("asked-for package", name)] = True
    found |= _units(observation)
    virtual = {bdf for of in observation["virtual_functions"].values() for bdf, _driver, _override in of["functions"]}
    for bdf, (driver, override) in observation["drivers"].items():
        if bdf not in virtual:  # which come and go: they are what their physical function has
            found[Thing("driver", bdf)] = Driver(driver, override)
    for bdf, of in observation["virtual_functions"].items():
        held = tuple(Driver(driver, override) for _bdf, driver, override in of["functions"])
        found[Thing("virtual functions", bdf)] = VirtualFunctions(of["number"], of["autoprobe"], held)
    for directory, count in observation["hugepages"].items():
        pool = POOL.search(directory)
        if pool:
            found[pages(*pool.groups())] = int(count)
    for what, value in observation["registers"].items():
        if what.split()[0] not in virtual:
            found[Thing("register", what)] = value
    # Of servers made of files only: the emulated ones' NICs have no settings.
    found |= {Thing("firmware", what): value for what, value in observation.get("firmware", {}).items()}
    boot = observation["boot"]
    found |= {Thing("boot entry", name): command_words(line) for name, line in boot["entries"].items()}
    found |= {Thing("boot variable", name): value for name, value in boot["variables"].items()}
    found[NEXT_ENTRY] = found.pop(Thing("boot variable", "next_entry"), "")
    found.pop(Thing("boot variable", "saved_entry"), None)  # the default entry, see there
    found[DEFAULT_ENTRY] = boot["default"] or boot["variables"].get("saved_entry", "")
    found[COMMAND_LINE] = command_words(observation["cmdline"])
    found[PROFILE] = observation["tuned"]
    return found


def pages(node: str, kib: str) -> Thing:
    return Thing("huge pages", f"of {kib} KiB on node {node}")


@dataclass(frozen=True)
class Observed:
    """A host before and after."""

    before: Things
    after: Things

    @cached_property
    def changes(self) -> dict[Thing, tuple[Value, Value]]:
        """What differs: thing -> its value before and after, None for one that is not there."""
        return {
            thing: (self.before.get(thing), self.after.get(thing))
            for thing in sorted({*self.before, *self.after})
            if not _same(self.before.get(thing), self.after.get(thing))
        }


def observed(before: Mapping[str, Any], after: Mapping[str, Any]) -> Observed:
    """What two observations of a host say."""
    return Observed(things(before), things(after))


def _same(before: Value, after: Value) -> bool:
    """Whether nothing changed: a unit whose activity passes counts as one that is not active."""
    if isinstance(before, Unit) and isinstance(after, Unit):
        return (before.enabled, bool(before.active)) == (after.enabled, bool(after.active))
    return bool(before == after)


def _package(line: str) -> tuple[str, str]:
    """Name and version: dpkg's words (state, name and architecture, version), or rpm's one."""
    words = line.split()
    if len(words) >= 2:
        return words[1].partition(":")[0], " ".join([words[0], *words[2:]])
    name, version, release = line.rsplit("-", 2)
    return name, f"{version}-{release}"


def _units(observation: Mapping[str, Any]) -> dict[Thing, Value]:
    enabled = {words[0]: words[1] for words in map(str.split, observation["units"]) if len(words) >= 2}
    active = observation["active"]
    return {
        Thing("unit", name): Unit(enabled.get(name), active.get(name, False)) for name in sorted({*enabled, *active})
    }
