# Copyright: the topovirt.kvm authors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""What a list of predicted changes must leave behind on the host, in the words of its observer.

A change is what ``host_state`` returns in ``plan`` (step, kind, what, before, after, stage, reboot) with the text that
``--diff`` shows of it, see :func:`changes_of`. Files with a meaning to the kernel, systemd, GRUB or TuneD have
*consequences*: a unit file is a unit, a boot entry that is to be booted once is the command line afterwards.
"""

from __future__ import annotations

import hashlib
import re
import stat
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any, NamedTuple

from tests.truth import effective_host
from tests.truth.things import (
    COMMAND_LINE,
    DEFAULT_ENTRY,
    NEXT_ENTRY,
    POOL,
    PROFILE,
    Driver,
    Path,
    Thing,
    Things,
    Value,
    VirtualFunctions,
    command_words,
    pages,
)

Change = Mapping[str, Any]

PATHS = ("file", "link", "removal", "initramfs", "generated", "directory")  # kinds of changes that are about a path

UNITS = "/etc/systemd/system/"
_UNIT_FILE = re.compile(rf"{UNITS}([^/]+\.(?:service|socket|mount|timer|path|target))$")
_UNIT_LINK = re.compile(rf"{UNITS}[^/]+\.(?:wants|requires)/([^/]+)$")
_PAGES_SCRIPT = "/var/lib/topovirt/hugepages.sh"
_ACTIVE_PROFILE = "/etc/tuned/active_profile"
_MENU = "/boot/grub/custom.cfg"
_MENUS = (_MENU, "/boot/grub/grub.cfg")
_ENTRY_FILE = re.compile(r"/boot/loader/entries/(.+)\.conf$")


class Expected(NamedTuple):
    """What a value must be."""

    text: str
    fits: Callable[[Value], bool]


class Effect(NamedTuple):
    """What one thing must be after, and before where the change says so."""

    after: Expected
    before: Expected | None
    direct: bool  # named by a change, so it must differ; a consequence may have been so already
    step: str


def changes_of(result: Mapping[str, Any]) -> list[dict[str, Any]]:
    """The changes of one result of a module, each with what ``--diff`` shows of it; of a file that a program makes,
    with what the result says of the boot entries in it."""
    shown = [(diff["before"], diff["after"]) for diff in result["diff"]]
    found = [{**change, "diff": list(diff)} for change, diff in zip(result["plan"], shown, strict=True)]
    for change in found:
        if change["kind"] == "generated" and change["stage"] != "undo":
            change["entries"] = {entry["id"]: " ".join(entry["after"]) for entry in result["entries"]}
    return found


# --- what is expected


def exactly(value: Value) -> Expected:
    return Expected(repr(value), lambda found: bool(found == value))


ABSENT = Expected("absent", lambda found: found is None)
THERE = Expected("there", lambda found: found is not None)
DIRECTORY = Expected("a directory", lambda found: isinstance(found, Path) and stat.S_ISDIR(found.type))
ANY_FILE = Expected("a file", lambda found: isinstance(found, Path) and stat.S_ISREG(found.type))
INSTALLED = Expected("installed", lambda found: found is not None and not str(found).startswith("rc"))
ENABLED = Expected("enabled", lambda found: found is not None and found.enabled in ("enabled", "enabled-runtime"))
RUNNING = Expected("enabled and active", lambda found: ENABLED.fits(found) and found.active is not False)
WAITING = Expected("enabled and not active", lambda found: ENABLED.fits(found) and not found.active)
_IDLE = Expected("not active", lambda found: found is None or not found.active)


def file_with(text: str) -> Expected:
    digest = hashlib.sha256(text.encode("utf-8", "surrogateescape")).hexdigest()
    return Expected(
        f"a file with the content of the diff ({digest[:8]})",
        lambda found: ANY_FILE.fits(found) and found.content == digest,
    )


def link_to(target: str) -> Expected:
    return Expected(
        f"a link to {target}",
        lambda found: isinstance(found, Path) and stat.S_ISLNK(found.type) and found.content == target,
    )


def _unit_before(state: Mapping[str, Any]) -> Expected:
    def fits(found: Value) -> bool:
        enabled = "not-found" if found is None or found.enabled is None else found.enabled
        passing = found is not None and found.active is None
        return enabled == state["enabled"] and (passing or (found is not None and found.active) == state["active"])

    return Expected(str(dict(state)), fits)


# --- kinds of changes


def _file(change: Change) -> tuple[Thing, Effect]:
    before, after = change["diff"]
    prior = ABSENT if change["before"] is None else file_with(before)
    return Thing("path", f"/{change['what']}"), Effect(file_with(after), prior, True, change["step"])


def _link(change: Change) -> tuple[Thing, Effect]:
    prior = None if change["before"] is None else link_to(change["before"])
    return Thing("path", f"/{change['what']}"), Effect(link_to(change["after"]["target"]), prior, True, change["step"])


def _path(after: Expected, before: Expected | None) -> Callable[[Change], tuple[Thing, Effect]]:
    return lambda change: (Thing("path", f"/{change['what']}"), Effect(after, before, True, change["step"]))


def _package(change: Change) -> tuple[Thing, Effect]:
    missing = Expected("not installed", lambda found: not INSTALLED.fits(found))
    return Thing("package", change["what"]), Effect(INSTALLED, missing, True, change["step"])


def _unit(change: Change) -> tuple[Thing, Effect]:
    return Thing("unit", change["what"]), Effect(RUNNING, _unit_before(change["before"]), True, change["step"])


def _device(change: Change) -> tuple[Thing, Effect]:
    def held_by(driver: str | None) -> Expected:
        return Expected(f"driver {driver}", lambda found: found is not None and found.driver == driver)

    return Thing("driver", change["what"]), Effect(
        held_by(change["after"]), held_by(change["before"]), True, change["step"]
    )


def _register(change: Change) -> tuple[Thing, Effect]:
    bits = effective_host.FIELDS[change["what"].split()[1]]
    after, before = (exactly(change[when] & bits) for when in ("after", "before"))
    return Thing("register", change["what"]), Effect(after, before, True, change["step"])


def _firmware(change: Change) -> tuple[Thing, Effect]:
    """For the next boot; a word may be predicted without the number that the firmware knows it by."""

    def value(text: str) -> Expected:
        return Expected(text, lambda found: found is not None and text in (found, found.partition("(")[0]))

    return Thing("firmware", change["what"]), Effect(
        value(change["after"]), exactly(change["before"]), True, change["step"]
    )


def _virtual_functions(change: Change) -> tuple[Thing, Effect]:
    def state(said: Mapping[str, Any]) -> VirtualFunctions:
        held = tuple(Driver(each["driver"], each["override"] or "(null)") for each in said["functions"])
        return VirtualFunctions(said["number"], said["autoprobe"], held)

    after, before = (exactly(state(change[when])) for when in ("after", "before"))
    return Thing("virtual functions", change["what"]), Effect(after, before, True, change["step"])


def _pages(change: Change) -> tuple[Thing, Effect]:
    after, before = (exactly(change[when]) for when in ("after", "before"))
    return _pool(change["what"]), Effect(after, before, True, change["step"])


def _pool(path: str) -> Thing:
    node, kib = POOL.search(path.rpartition("/")[0]).groups()  # type: ignore[union-attr]
    return pages(node, kib)


def _start(change: Change) -> tuple[Thing, Effect]:
    return Thing("unit", change["what"]), Effect(RUNNING, _IDLE, True, change["step"])


def _profile(change: Change) -> tuple[Thing, Effect]:
    # One that is switched to again, since its files are others, is the same by name.
    after, before = (exactly(change[when] or "") for when in ("after", "before"))
    return PROFILE, Effect(after, before, change["after"] != change["before"], change["step"])


def _default_entry(change: Change) -> tuple[Thing, Effect]:
    return DEFAULT_ENTRY, Effect(exactly(change["after"]), exactly(change["before"]), True, change["step"])


def _next_entry(change: Change) -> tuple[Thing, Effect]:
    # Booting takes it back; what it leads to is the command line.
    return NEXT_ENTRY, Effect(exactly(""), exactly(change["before"] or ""), False, change["step"])


_KINDS: dict[str, Callable[[Change], tuple[Thing, Effect]]] = {
    "file": _file,
    "link": _link,
    "directory": _path(DIRECTORY, ABSENT),
    "removal": _path(ABSENT, THERE),
    "initramfs": _path(ANY_FILE, None),
    "generated": _path(ANY_FILE, None),
    "firmware": _firmware,
    "pages": _pages,
    "start": _start,
    "profile": _profile,
    "package": _package,
    "unit": _unit,
    "device": _device,
    "register": _register,
    "virtual_functions": _virtual_functions,
    "default_entry": _default_entry,
    "next_entry": _next_entry,
}


def effects(changes: Sequence[Change], booted: bool = True) -> dict[Thing, Effect]:
    """What the changes of a conversion leave behind when it has ended, the last of several on one thing.

    :param booted: whether the host booted meanwhile, so that what is enabled may run.
    :raises KeyError: for a kind of change that is not known here: say above what it leaves behind.
    """
    found: dict[Thing, Effect] = {}
    for change in changes:
        if change["kind"] not in _KINDS:
            raise KeyError(f"no effect is known of a change of kind {change['kind']} of step {change['step']}")
        thing, effect = _KINDS[change["kind"]](change)
        if thing in found:
            effect = effect._replace(before=found[thing].before, direct=found[thing].direct or effect.direct)
        found[thing] = effect
    # What came and went again in one conversion leaves nothing behind.
    for thing in [thing for thing, effect in found.items() if (effect.before, effect.after) == (ABSENT, ABSENT)]:
        found[thing] = found[thing]._replace(direct=False)
    for thing, effect in _consequences(changes, booted):
        found.setdefault(thing, effect)
    return found


# --- consequences


def _consequences(changes: Sequence[Change], booted: bool) -> Iterable[tuple[Thing, Effect]]:
    files = [change for change in changes if change["kind"] == "file"]
    first = {f"/{change['what']}": change for change in reversed(files)}
    last = {f"/{change['what']}": change for change in files}
    for path, change in last.items():
        for thing, expected in _of_text(path, first[path]["diff"][0], change["diff"][1], booted):
            yield thing, Effect(expected, None, False, change["step"])
    for change in changes:
        if change["kind"] == "link":
            name = _UNIT_LINK.match(f"/{change['what']}")
            if name:
                state = ENABLED if booted or change["before"] is not None else WAITING
                yield Thing("unit", name.group(1)), Effect(state, None, False, change["step"])
        elif change["kind"] == "removal":
            for thing, expected in _of_removal(f"/{change['what']}"):
                yield thing, Effect(expected, None, False, change["step"])
        elif change["kind"] == "generated":
            for entry, line in change["entries"].items():
                yield Thing("boot entry", entry), Effect(exactly(command_words(line)), None, False, change["step"])
        elif change["kind"] == "profile":
            named = file_with(f"{change['after'] or ''}\n")
            yield Thing("path", _ACTIVE_PROFILE), Effect(named, None, False, change["step"])
        elif change["kind"] == "package":
            # By the package manager's own count: it is asked for by whoever runs the conversion.
            yield Thing("asked-for package", change["what"]), Effect(THERE, None, False, change["step"])
    yield from _booted(changes)


def _of_text(path: str, before: str, text: str, booted: bool = True) -> Iterable[tuple[Thing, Expected]]:
    unit, entry = _UNIT_FILE.match(path), _ENTRY_FILE.match(path)
    if unit:
        yield Thing("unit", unit.group(1)), ENABLED if booted or before else WAITING
    elif entry:
        yield Thing("boot entry", entry.group(1)), exactly(command_words(effective_host.loader_entry(text)))
    elif path == _MENU:
        entries = effective_host.menu_entries(text)
        for name, line in entries.items():
            yield Thing("boot entry", name), exactly(command_words(line))
        for name in sorted(effective_host.menu_entries(before).keys() - entries):
            yield Thing("boot entry", name), ABSENT
        if effective_host.default_in(text):
            yield DEFAULT_ENTRY, exactly(effective_host.default_in(text))
    elif path == _ACTIVE_PROFILE:
        yield PROFILE, exactly(text.strip())
    elif path == _PAGES_SCRIPT:
        kib = re.search(r"hugepages-(\d+)kB", text)
        for node, count in re.findall(r"^want (\d+) (\d+)$", text, re.MULTILINE):
            if kib:
                yield pages(node, kib.group(1)), exactly(int(count))


def _of_removal(path: str) -> Iterable[tuple[Thing, Expected]]:
    entry, unit = _ENTRY_FILE.match(path), _UNIT_FILE.match(path)
    if entry:
        yield Thing("boot entry", entry.group(1)), ABSENT
    elif unit:
        yield Thing("unit", unit.group(1)), ABSENT


def _booted(changes: Sequence[Change]) -> Iterable[tuple[Thing, Effect]]:
    """The command line of the entry that is booted once: as the files say when it is named."""
    lines: dict[str, str] = {}
    for change in changes:
        path = f"/{change['what']}"
        entry = _ENTRY_FILE.match(path)
        if change["kind"] == "file" and path == _MENU:
            lines.update(effective_host.menu_entries(change["diff"][1]))
        elif change["kind"] == "file" and entry:
            lines[entry.group(1)] = effective_host.loader_entry(change["diff"][1])
        elif change["kind"] == "next_entry":
            expected = exactly(command_words(lines.get(change["after"], "")))
            yield COMMAND_LINE, Effect(expected, None, False, change["step"])


# --- the way back

# What the plan of a way back calls the state that comes back.
_BACK = {"absent": ABSENT, "the saved file": ANY_FILE, "the saved directory": DIRECTORY}
_BACK_TO: dict[str, Callable[[str], Thing]] = {
    "unit": lambda what: Thing("unit", what),
    "start": lambda what: Thing("unit", what),
    "device": lambda what: Thing("driver", what),
    "register": lambda what: Thing("register", what),
    "firmware": lambda what: Thing("firmware", what),
    "virtual_functions": lambda what: Thing("virtual functions", what),
    "pages": _pool,
    "profile": lambda _what: PROFILE,
}


def thing_of(kind: str, what: str) -> Thing | None:
    """What a change of this kind is about, where that is one thing that an observer sees."""
    if kind in PATHS:
        return Thing("path", f"/{what}")
    return _BACK_TO[kind](what) if kind in _BACK_TO else None


def effects_back(changes: Sequence[Change], original: Things, now: Things) -> dict[Thing, Effect]:
    """What the changes of a way back leave behind: each thing as it was, ``original``, and as the change says."""
    found: dict[Thing, Effect] = {}

    def back(thing: Thing, change: Change, direct: bool) -> None:
        if thing not in found or direct:
            said = _BACK.get(change["after"] if isinstance(change["after"], str) else "")
            value = original.get(thing)
            whole = Expected(
                f"as before the conversion{f' ({said.text})' if said and direct else ''}",
                lambda state: state == value and (said is None or not direct or said.fits(state)),
            )
            found[thing] = Effect(whole, None, direct, change["step"])

    for change in changes:
        kind, what = change["kind"], change["what"]
        if kind == "interval":
            for thing in _installed_since(original, now):
                back(thing, change, True)
        elif kind in ("next_entry", "default_entry"):
            back(NEXT_ENTRY if kind == "next_entry" else DEFAULT_ENTRY, change, kind == "default_entry")
            if kind == "next_entry":
                back(COMMAND_LINE, change, False)
        elif kind in _BACK_TO:
            back(_BACK_TO[kind](what), change, True)
            if kind == "profile":
                back(Thing("path", _ACTIVE_PROFILE), change, False)
        elif kind == "file" and change["after"] == "present":  # of somebody else, who keeps the rest of it
            thing, effect = _file(change)
            found[thing] = effect
            for other, expected in _of_text(thing.name, *change["diff"]):
                found[other] = Effect(expected, None, False, change["step"])
        elif kind in PATHS:
            back(Thing("path", f"/{what}"), change, True)
            for thing in _hangs_on(f"/{what}", {*original, *now}):
                back(thing, change, False)
        else:
            raise KeyError(f"no effect is known of taking back a change of kind {kind} of step {change['step']}")
    return found


def _installed_since(original: Things, now: Things) -> list[Thing]:
    return [thing for thing in now if thing.kind == "package" and thing not in original]


def _hangs_on(path: str, known: Iterable[Thing]) -> Iterable[Thing]:
    """Things that are so because of a file."""
    unit, link, entry = _UNIT_FILE.match(path), _UNIT_LINK.match(path), _ENTRY_FILE.match(path)
    if unit or link:
        yield Thing("unit", (unit or link).group(1))  # type: ignore[union-attr]
    elif entry:
        yield Thing("boot entry", entry.group(1))
    elif path in _MENUS:
        yield from (thing for thing in known if thing.kind == "boot entry" or thing == DEFAULT_ENTRY)
    elif path == _ACTIVE_PROFILE:
        yield PROFILE
    elif path == _PAGES_SCRIPT:
        yield from (thing for thing in known if thing.kind == "huge pages")
