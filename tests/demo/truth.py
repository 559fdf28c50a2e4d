# Copyright: the topovirt.kvm authors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Check mode on an emulated server, held to what an observer sees there: the server's part of tests/truth.

The numbers come from the playbooks that an operator runs: a callback writes down what their tasks return. What packages
bring by themselves is measured on a server that is given them without the collection, see :func:`install_plainly`.
"""

from __future__ import annotations

import json
import shlex
import subprocess
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import yaml

from tests.demo.operator import Failure, Operator, Played, record
from tests.tools import progress, workspace
from tests.truth import effective_host
from tests.truth.effects import changes_of
from tests.truth.evidence import Evidence
from tests.truth.judge import journalled
from tests.truth.things import Observed, observed, things
from tests.twin.lifecycle import Server

MEASURED = workspace.WORK / "truth"  # outlives the servers
CALLBACKS = workspace.ROOT / "tests/truth/callback"
PACKAGES = workspace.ROOT / "roles/kvm_host/vars/main.yml"
PHASES = ("record", "apply", "commit", "undo", "finish")  # that change something
_REBOOT_SECONDS = 900

# As an administrator would, but for what is only recommended, which the collection leaves out, too.
_INSTALL = {
    "Debian": "DEBIAN_FRONTEND=noninteractive apt-get install --yes --no-install-recommends",
    "RedHat": "dnf install --assumeyes --setopt=install_weak_deps=False",
}


def look(server: Server) -> dict[str, Any]:
    """An observation of the server."""
    command = [*server.ssh_command(), "python3", "-"]
    script = Path(effective_host.__file__).read_bytes()
    try:
        said = subprocess.run(command, input=script, stdout=subprocess.PIPE, check=True).stdout
    except subprocess.CalledProcessError as error:
        raise Failure(f"what is in effect on the host cannot be observed: {error}") from error
    return {**record(server), **json.loads(said)}


class Watch:
    """Runs playbooks and keeps what the modules return in them."""

    def __init__(self, mine: Operator) -> None:
        self.mine = mine
        self.folder = mine.folder / "truth"
        self.folder.mkdir(parents=True, exist_ok=True)

    def play(self, name: str, playbook: str, *arguments: str) -> tuple[Played, list[dict[str, Any]]]:
        """The run, and the changes of all its phases."""
        results = self._results(name)
        played = self.mine.must_play(name, playbook, *arguments)
        found = read_results(results)
        return played, [
            change
            for result in found
            if result["module"] == "host_state" and result["invocation"]["module_args"]["phase"] in PHASES
            for change in changes_of(result)
        ]

    def touched(self, name: str) -> list[dict[str, Any]]:
        """What the journal of the host holds, by ``host_journal``."""
        results = self._results(name)
        environment = workspace.environment({}, self.mine.collections) | self.mine.environment
        environment["ANSIBLE_CONFIG"] = str(self.mine.folder / "ansible.cfg")
        words = ["-i", str(self.mine.folder / "inventory"), "gpu_hosts", "--become", "-m", "topovirt.kvm.host_journal"]
        log = self.mine.logs / f"{name}.log"
        if progress.run_logged([str(workspace.VENV / "bin/ansible"), *words], log, environment, self.mine.folder):
            raise Failure(f"the journal of the host cannot be read (log: {log})")
        touched: list[dict[str, Any]] = read_results(results)[-1]["touched"]
        return touched

    def _results(self, name: str) -> Path:
        results = self.folder / f"{name}.jsonl"
        results.unlink(missing_ok=True)
        self.mine.environment = {
            "ANSIBLE_CALLBACK_PLUGINS": str(CALLBACKS),
            "ANSIBLE_CALLBACKS_ENABLED": "host_results",
            "ANSIBLE_LOAD_CALLBACK_PLUGINS": "1",
            "TOPOVIRT_RESULTS": str(results),
        }
        return results

    def run(self, name: str, playbook: str, original: Mapping[str, Any] | None = None) -> Evidence:
        """Check mode, the real run, and all that there is to see of both.

        :raises Failure: check mode changed something.
        """
        server = self.mine.server
        before, touched = look(server), self.touched(f"{name}-journal-before")
        self._keep(f"{name}-before", before)
        _played, predicted = self.play(f"{name}-check", playbook, "--check", "--diff")
        unchanged = observed(before, look(server))
        if unchanged.changes:
            raise Failure(f"check mode changed the host: {'; '.join(map(str, list(unchanged.changes)[:20]))}")
        _played, reported = self.play(name, playbook, "--diff")
        after = look(server)
        self._keep(f"{name}-after", after)
        journal = journalled(touched, self.touched(f"{name}-journal-after"))
        return Evidence(
            predicted,
            reported,
            journal,
            observed(before, after),
            measured(server),
            things(original) if original is not None else None,
        )

    def judge(self, name: str, evidence: Evidence) -> None:
        """Print the counts.

        :raises Failure: naming what is untrue; all of it is in a file.
        """
        found = evidence.verdict()
        progress.say(f"{name}: {found.summary}")
        file = self.folder / f"{name}-untruths.txt"
        file.write_text("".join(f"{text}\n" for text in found.untruths), encoding="utf-8")
        if found.untruths:
            shown = "\n    ".join(text[:300] for text in found.untruths[:20])
            raise Failure(f"{name}: check mode did not tell the truth:\n    {shown}\n    all: {file}")
        if not found.changes:
            raise Failure(f"{name}: check mode announced no change at all")

    def _keep(self, name: str, observation: Mapping[str, Any]) -> None:
        (self.folder / f"{name}.json").write_text(json.dumps(observation), encoding="utf-8")


def read_results(file: Path) -> list[dict[str, Any]]:
    """What the callback wrote.

    :raises Failure: nothing.
    """
    if not file.is_file():
        raise Failure(f"no task of the modules that are watched ran ({file} is missing)")
    return [json.loads(line) for line in file.read_text(encoding="utf-8").splitlines()]


def measurement(server: Server) -> Path:
    """Where it is kept what packages bring to a server of this kind."""
    return MEASURED / f"{server.machine_name}-{server.os}.json"


def measured(server: Server) -> Observed | None:
    """What the packages bring by themselves to this server, if that was measured."""
    file = measurement(server)
    if not file.is_file():
        return None
    looks = json.loads(file.read_text(encoding="utf-8"))
    return observed(looks["before"], looks["after"])


def install_plainly(mine: Operator) -> None:
    """Give the server the packages without the collection, reboot it, and keep what that changed."""
    server = mine.server
    before = look(server)
    family = "Debian" if server.run("command -v dpkg-query", timeout=60).returncode == 0 else "RedHat"
    names: Sequence[str] = yaml.safe_load(PACKAGES.read_text(encoding="utf-8"))["__kvm_host_packages"][family]
    server.copy_from(f"{_INSTALL[family]} {shlex.join(names)} </dev/null >/var/log/plain-installation.log 2>&1")
    environment = workspace.environment({}, mine.collections) | {"ANSIBLE_CONFIG": str(mine.folder / "ansible.cfg")}
    words = ["-i", str(mine.folder / "inventory"), "gpu_hosts", "--become", "-m", "ansible.builtin.reboot"]
    words += ["-a", f"reboot_timeout={_REBOOT_SECONDS}"]
    log = mine.logs / "plain-reboot.log"
    if progress.run_logged([str(workspace.VENV / "bin/ansible"), *words], log, environment, mine.folder):
        raise Failure(f"the server does not come back after its packages were installed (log: {log})")
    MEASURED.mkdir(parents=True, exist_ok=True)
    looks = {"before": before, "after": look(server)}
    measurement(server).write_text(json.dumps(looks), encoding="utf-8")
    progress.say(f"{len(names)} packages by themselves: {len(observed(**looks).changes)} things changed")


def convert(mine: Operator) -> None:
    """The conversion. Where the packages are there already, nothing at all is attributed to them."""
    watch = Watch(mine)
    watch.judge("convert", watch.run("convert", "convert_to_kvm"))


def back(mine: Operator) -> None:
    """The way back of what :func:`convert` watched."""
    watch = Watch(mine)
    original = json.loads((watch.folder / "convert-before.json").read_text(encoding="utf-8"))
    watch.judge("back", watch.run("back", "convert_to_bare_metal", original))
