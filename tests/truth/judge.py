# Copyright: the topovirt.kvm authors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Did check mode tell the truth? Four lists that have to agree: what it predicted, what the real run reported, what the
journal holds, and what an observer sees on the host, who shares no code with the modules.

What the changes are not, but come with them, is *attributed* to somebody, and counted: see :class:`Attribution`.
"""

from __future__ import annotations

import json
import stat
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from tests.truth.effects import PATHS, Change, Effect
from tests.truth.things import COMMAND_LINE, Observed, Path, Thing, Things, Value

# The journal, and what it saves (docs/architecture.md, "state on the host"); it is itself what the others are held to.
RECORDS = ("/var/lib/topovirt/journal", "/var/lib/topovirt/saved")
# ACS of ports and ATS of devices, as the kernel sets them when the IOMMU is on (pci_std_enable_acs, pci_enable_ats):
# by the command line, not by a step.
KERNELS_ACS, KERNELS_ATS = 0x1D, 0x8000
# Below it daemons keep their state: of a directory that packages brought there, the content is theirs, too.
_DAEMONS = "/var/"
# What packages make in /etc and what of it is drawn by lot, so that no two installations are equal.
_BY_LOT = {"/etc/libvirt/qemu/networks/default.xml": "uuid and MAC address of the network"}


@dataclass(frozen=True)
class Journalled:
    """Keys (step, kind, what) of the journal before and after, by ``touched`` of ``host_journal``."""

    before: frozenset[tuple[str, str, str]]
    after: frozenset[tuple[str, str, str]]
    unfinished: tuple[str, ...] = ()

    @property
    def new(self) -> frozenset[tuple[str, str, str]]:
        return self.after - self.before


def journalled(before: Sequence[Mapping[str, Any]], after: Sequence[Mapping[str, Any]]) -> Journalled:
    """What two looks into the journal say; a thing that is back in its prior state is not in it any more."""
    first, second = (
        frozenset((item["step"], item["kind"], item["what"]) for item in touched if not item["undone"])
        for touched in (before, after)
    )
    return Journalled(first, second, tuple(f"{i['step']}: {i['kind']} {i['what']}" for i in after if not i["done"]))


@dataclass
class Verdict:
    """What is untrue, a sentence each, and what was held together."""

    untruths: list[str] = field(default_factory=list)
    changes: int = 0  # predicted
    compared: int = 0  # things of the host that the predicted changes name or lead to
    attributed: Counter[str] = field(default_factory=Counter)

    @property
    def summary(self) -> str:
        """One line for whoever runs it."""
        others = ", ".join(f"{count} {why}" for why, count in sorted(self.attributed.items()))
        return (
            f"{self.changes} changes predicted, reported and journalled, {self.compared} things of the host compared; "
            f"attributed: {others or 'nothing'}; {len(self.untruths)} untruths"
        )


def verdict(
    predicted: Sequence[Change],
    reported: Sequence[Change],
    journal: Journalled,
    seen: Observed,
    expected: Mapping[Thing, Effect],
    plain: Observed | None = None,
) -> Verdict:
    """Hold the four together.

    :param expected: what the predicted changes leave behind, by ``effects`` or ``effects_back``.
    :param plain: what the packages bring by themselves: a host like this one before and after their plain
        installation. Without it nothing is attributed to packages.
    """
    result = Verdict(changes=len(predicted), compared=len(expected))
    result.untruths += _unequal(predicted, reported)
    result.untruths += _unobserved(expected, seen)
    attribution = Attribution(predicted, expected, seen, plain)
    for thing, (before, after) in seen.changes.items():
        if thing in expected:
            continue
        owner = attribution.owner(thing, before, after)
        if owner:
            result.attributed[owner] += 1
        else:
            result.untruths.append(f"observed, but not predicted: {thing} {_brief(before)} became {_brief(after)}")
    going_back = any(change["stage"] == "undo" for change in predicted)
    result.untruths += _not_taken_from(predicted, journal, seen) if going_back else _not_kept(reported, journal, seen)
    return result


def _unequal(predicted: Sequence[Change], reported: Sequence[Change]) -> Iterable[str]:
    said, done = Counter(map(_text, predicted)), Counter(map(_text, reported))
    yield from (f"predicted, but not reported: {text}" for text in sorted((said - done).elements()))
    yield from (f"reported, but not predicted: {text}" for text in sorted((done - said).elements()))


def _text(change: Change) -> str:
    """All that a change says; long texts by their digest would hide where they differ, so they stay."""
    return f"{change['step']}: {change['kind']} {change['what']} {json.dumps(change, sort_keys=True)}"


def _unobserved(expected: Mapping[Thing, Effect], seen: Observed) -> Iterable[str]:
    for thing, effect in expected.items():
        before, after = seen.before.get(thing), seen.after.get(thing)
        if effect.direct and thing not in seen.changes:
            yield f"predicted by {effect.step}, but not observed: {thing} is {_brief(after)} as before"
        elif not effect.after.fits(after):
            yield f"predicted by {effect.step}: {thing} becomes {effect.after.text}; observed is {_brief(after)}"
        elif effect.before is not None and not effect.before.fits(before):
            yield f"predicted by {effect.step}: {thing} was {effect.before.text}; observed was {_brief(before)}"


def _not_kept(reported: Sequence[Change], journal: Journalled, seen: Observed) -> Iterable[str]:
    """The journal against what the run reported; it holds packages as one interval, and directories apart."""
    own = {(change["step"], change["kind"], change["what"]) for change in reported if change["kind"] != "package"}
    intervals = {key for key in journal.new if key[:2] == ("packages", "interval")}
    yield from (f"reported, but not journalled: {' '.join(key)}" for key in sorted(own - journal.after))
    for key in sorted(journal.new - own - intervals):
        made = seen.changes.get(Thing("path", f"/{key[2]}"))
        if key[1] != "directory" or made is None or made[0] is not None:
            yield f"journalled, but not reported: {' '.join(key)}"
    if len(own) < len({(c["step"], c["kind"], c["what"]) for c in reported}) and not intervals:
        yield "packages were reported, but no interval is journalled"
    yield from (f"journalled as begun, but not as done: {text}" for text in journal.unfinished)


def _not_taken_from(predicted: Sequence[Change], journal: Journalled, seen: Observed) -> Iterable[str]:
    """A way back is predicted from the journal, whole, and leaves none."""

    def place(step: str, kind: str, what: str) -> tuple[str, str, str]:
        return (step, "path", what) if kind in PATHS else (step, kind, what)  # several changes may be of one path

    own = {place(change["step"], change["kind"], change["what"]) for change in predicted}
    held = {
        place(*key)
        for key in journal.before
        if key[1] != "directory"  # goes with the files in it
        and (key[1] not in PATHS or Thing("path", f"/{key[2]}") in seen.before)  # gone already
    }
    yield from (f"journalled, but not predicted to be taken back: {' '.join(key)}" for key in sorted(held - own))
    yield from (f"predicted to be taken back, but not journalled: {' '.join(key)}" for key in sorted(own - held))
    yield from (f"still journalled after the way back: {' '.join(key)}" for key in sorted(journal.after))


class Attribution:
    """Who, if not a step, made a change that comes with the predicted ones."""

    def __init__(
        self, predicted: Sequence[Change], expected: Mapping[Thing, Effect], seen: Observed, plain: Observed | None
    ) -> None:
        self._any = bool(predicted)
        self._seen = seen
        self._forth = [
            thing.name
            for thing, effect in expected.items()
            if thing.kind == "path" and thing in seen.changes and effect.direct
        ]
        installs = any(change["kind"] in ("package", "interval") for change in predicted)
        self._brought: Mapping[Thing, tuple[Value, Value]] = plain.changes if plain and installs else {}
        self._plain: Things = plain.after if plain else {}
        self._folders = tuple(
            f"{thing.name}/"
            for thing, (before, after) in self._brought.items()
            if before is None and _is_directory(after) and thing.name.startswith(_DAEMONS)
        )
        self._new_line = COMMAND_LINE in expected and COMMAND_LINE in seen.changes

    def owner(self, thing: Thing, before: Value, after: Value) -> str:
        """In words, empty when it is nobody."""
        if thing.kind == "path":
            if self._any and f"{thing.name}/".startswith(tuple(f"{place}/" for place in RECORDS)):
                return "records of the journal"
            one_is_none = (before is None) != (after is None)
            if one_is_none and _is_directory(before or after) and self._holds_predicted(thing.name):
                return "directories of predicted files"
        if thing in self._brought and self._as_plain(thing, before, after):
            return "brought by packages"
        if thing.kind == "path" and thing.name.startswith(self._folders):
            return "made by daemons in directories that packages brought"
        if thing.kind == "register" and self._new_line and _kernels(thing, before, after):
            return "registers that the kernel sets with the IOMMU"
        return ""

    def _holds_predicted(self, directory: str) -> bool:
        return any(path.startswith(f"{directory}/") for path in self._forth)

    def _as_plain(self, thing: Thing, before: Value, after: Value) -> bool:
        """Configuration must be just what a plain installation makes of it, or on the way back what it was before; the
        rest are databases and caches, of which no two are equal."""
        if thing.kind == "asked-for package":
            return after is None  # what somebody asks for is predicted, what comes with it need not be
        if thing.kind == "unit":
            return after is None or after.enabled == getattr(self._plain.get(thing), "enabled", None)
        if thing.kind != "path":
            return True
        if not thing.name.startswith("/etc/") or thing.name in _BY_LOT:
            return True
        plain = self._plain.get(thing)
        return bool(after == plain or (before == plain and after == self._before(thing)))

    def _before(self, thing: Thing) -> Value:
        return self._brought[thing][0]


def _kernels(thing: Thing, before: Value, after: Value) -> bool:
    """Whether a register differs only in bits that the kernel sets, all in one direction."""
    if before is None or after is None:
        return False
    bits = {"acs_control": KERNELS_ACS, "ats_control": KERNELS_ATS}.get(thing.name.split()[-1], 0)
    return not (before ^ after) & ~bits and (before & ~after == 0 or after & ~before == 0)


def _is_directory(value: Value) -> bool:
    return isinstance(value, Path) and stat.S_ISDIR(value.type)


def _brief(value: Value) -> str:
    if value is None:
        return "absent"
    if not isinstance(value, Path):
        return str(value)
    if stat.S_ISLNK(value.type):
        return f"a link to {value.content}"
    content = f", {value.content[:8]}" if isinstance(value.content, str) else ""
    return f"a {'directory' if _is_directory(value) else 'file'} ({value.mode}{content})"
