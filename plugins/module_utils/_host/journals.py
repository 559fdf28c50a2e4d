# Copyright: the topovirt.kvm authors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""All journals of a host, of a conversion and of modules that do one step alone: shown, verified, restored."""

from __future__ import annotations

import re
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Callable, Dict, Iterator, List, Optional

from ansible_collections.topovirt.kvm.plugins.module_utils._errors import TopovirtError
from ansible_collections.topovirt.kvm.plugins.module_utils._host.journal import Journal, faces_in_force
from ansible_collections.topovirt.kvm.plugins.module_utils._host.places import FACES, STATE
from ansible_collections.topovirt.kvm.plugins.module_utils._host.remembered import committed_state
from ansible_collections.topovirt.kvm.plugins.module_utils._host.runner import Runner
from ansible_collections.topovirt.kvm.plugins.module_utils._host.single import Done, Single
from ansible_collections.topovirt.kvm.plugins.module_utils._host.step import AS_BEFORE

# Keys of a record whose value may be the name of saved bytes, which is their digest.
_SAVED_BY = ("saved", "inventory", "changes", "plan")


@dataclass
class Journals:
    root: Path
    single: Callable[[str], Single]  # the step of a module, as good as for its way back
    runner: Callable[[], Runner]

    def show(self) -> Dict[str, Any]:
        """What is in them.

        :raises TopovirtError: as ``journal_summary`` does.
        """
        return journal_summary(self.root)

    def verify(self) -> Dict[str, Any]:
        """Whether everything that a way back needs is there, and what became of what was touched.

        :raises TopovirtError: as ``show`` does.
        """
        names: List[Optional[str]] = [*([None] if Journal(self.root).exists else []), *faces_in_force(self.root)]
        damaged: List[str] = []
        found = []
        for name in names:
            journal = Journal(self.root, STATE if name is None else FACES / name)
            wrong = (_damage(journal, saved) for saved in sorted(set(_saved(journal.records))))
            damaged += [f"{name or 'host_state'}: {text}" for text in wrong if text]
            states = self.runner().find() if name is None else self.single(name).find()
            found += [
                {"module": name or "host_state", "step": key[0], "kind": key[1], "what": key[2], "found": state}
                for key, state in states
            ]
        return {"damaged": damaged, "things": found}

    def restore(self, check: bool) -> Done:
        """Put back what modules of one step changed, and a conversion whose boot entry does not run.

        :raises TopovirtError: when the conversion's boot entry runs: its way back needs a reboot in between.
        """
        done = Done()
        if Journal(self.root).exists:
            runner = self.runner()
            back = runner.plan_back()
            if back.reboot_required:
                raise TopovirtError(
                    f"The host runs the boot entry of its conversion (id {back.id}).",
                    "Run the playbook convert-to-bare-metal, which reboots in between. Nothing was changed.",
                )
            found = dict(runner.find())  # what waits for the reboot is as it was
            if not check:
                runner.undo(discard=False, check=False)
                done.kept += runner.finish(discard=False, check=False).kept
            done.plan = [change for change in back.plan if found.get(change.key) != AS_BEFORE]
            done.changed = True
        for name in faces_in_force(self.root):
            part = self.single(name).restored(check)
            done.plan += part.plan
            done.kept += part.kept
            done.changed = done.changed or part.changed
            done.reboot_required = done.reboot_required or part.reboot_required
        return done


def journal_summary(root: Path) -> Dict[str, Any]:
    """What is in all journals of a host.

    :raises TopovirtError: for a journal that is damaged, newer or of another host.
    """
    journal = Journal(root)
    return {
        "state": journal.state,
        "id": journal.id,
        "committed": committed_state(root) or {},
        "touched": _touched(journal),
        "faces": [
            {"name": name, "state": own.state, "touched": _touched(own)}
            for name in faces_in_force(root)
            for own in [Journal(root, FACES / name)]
        ],
    }


def _touched(journal: Journal) -> List[Dict[str, Any]]:
    done = set(journal.undone())
    outcomes = {record["of"] for record in journal.records if record["kind"] == "outcome"}
    return [
        {
            "step": key[0],
            "kind": key[1],
            "what": key[2],
            "done": record["seq"] in outcomes,
            "undone": key in done,
            "time": record["time"],
        }
        for key, record in journal.first_priors().items()
    ]


def _damage(journal: Journal, saved: str) -> str:
    """What is wrong with saved bytes, if anything."""
    try:
        journal.load(saved)
    except TopovirtError as error:
        return error.message
    return ""


def _saved(value: Any) -> Iterator[str]:
    """Names of saved bytes anywhere in records."""
    if isinstance(value, dict):
        for key, inner in value.items():
            if key in _SAVED_BY and isinstance(inner, str) and re.match(r"[0-9a-f]{64}\Z", inner):
                yield inner
            else:
                yield from _saved(inner)
    elif isinstance(value, list):
        for inner in value:
            yield from _saved(inner)
