# Copyright: the topovirt.kvm authors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""The server's part of tests/truth, with a server made of files in place of the emulated one."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from ansible_collections.topovirt.kvm.plugins.module_utils._host.face import as_result
from ansible_collections.topovirt.kvm.plugins.module_utils._host.journals import journal_summary
from ansible_collections.topovirt.kvm.plugins.module_utils._host.services import Services
from ansible_collections.topovirt.kvm.plugins.module_utils._host.tuned import Tuned
from ansible_collections.topovirt.kvm.tests.unit.plugins.module_utils._host.fake_host import FakeHost

from tests.demo import truth
from tests.demo.operator import Failure
from tests.tools import workspace
from tests.unit.truth.looking import observe

PLAY = """\
- hosts: localhost
  gather_facts: false
  tasks:
    - name: A module that is watched
      topovirt.kvm.host_journal: {root: ROOT}
    - name: Another one
      ansible.builtin.debug: {msg: nothing}
"""


@pytest.mark.parametrize("adhoc", [False, True], ids=["playbook", "ad hoc"])
def test_the_callback_writes_down_what_the_modules_return(tmp_path: Path, adhoc: bool) -> None:
    results = tmp_path / "results.jsonl"
    (tmp_path / "play.yml").write_text(PLAY.replace("ROOT", str(tmp_path)), encoding="utf-8")
    folder = Path(sys.executable).parent
    words = ["localhost", "-m", "topovirt.kvm.host_journal", "-a", f"root={tmp_path}"]
    command = [str(folder / "ansible"), *words] if adhoc else [str(folder / "ansible-playbook"), "play.yml"]
    environment = workspace.environment({}, workspace.COLLECTIONS) | {
        "HOME": str(tmp_path),
        "ANSIBLE_HOME": str(tmp_path / "ansible"),
        "ANSIBLE_CALLBACK_PLUGINS": str(truth.CALLBACKS),
        "ANSIBLE_CALLBACKS_ENABLED": "host_results",
        "ANSIBLE_LOAD_CALLBACK_PLUGINS": "1",
        "TOPOVIRT_RESULTS": str(results),
    }
    done = subprocess.run(command, cwd=tmp_path, env=environment, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    (found,) = truth.read_results(results)
    assert found["module"] == "host_journal" and found["touched"] == [] and found["state"] == "none"
    assert found["invocation"]["module_args"]["root"] == str(tmp_path)


class Workplace:
    """Plays on the fake server what the playbooks do, and writes down what the callback would."""

    def __init__(self, host: FakeHost, folder: Path) -> None:
        self.host, self.folder, self.logs = host, folder, folder / "log"
        self.environment: dict[str, str] = {}
        self.server = SimpleNamespace(machine_name="fake", os="debian")

    def must_play(self, name: str, playbook: str, *arguments: str) -> None:
        check, host, runner = "--check" in arguments, self.host, self.host.runner()
        if playbook == "convert_to_bare_metal":
            undone = runner.undo(False, check)
            self.write(undone, "undo")
            if undone.reboot_required and not check:
                host.reboot()
            self.write(runner.finish(False, check), "finish")
            return
        self.write(runner.plan(host.wanted), "plan")  # by role preflight
        recorded = runner.record(host.wanted, check)
        self.write(recorded, "record")
        if not check:
            host.install(*[change.what for change in recorded.plan])
        applied = runner.apply(host.wanted, check)
        self.write(applied, "apply")
        if applied.reboot_required and not check:
            host.reboot()
        self.write(runner.commit(host.wanted, check), "commit")

    def write(self, report: Any, phase: str) -> None:
        result = {**as_result(report, phase), "module": "host_state", "invocation": {"module_args": {"phase": phase}}}
        with open(self.environment["TOPOVIRT_RESULTS"], "a", encoding="utf-8") as file:
            file.write(json.dumps(result) + "\n")


@pytest.fixture
def mine(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Any:
    host = FakeHost(tmp_path / "host")
    monkeypatch.setattr(truth, "MEASURED", tmp_path / "measured")
    monkeypatch.setattr(truth, "look", lambda server: observe(host))
    monkeypatch.setattr(truth.Watch, "touched", lambda self, name: journal_summary(host.root)["touched"])
    return Workplace(host, tmp_path / "work")


def measure(mine: Any, folder: Path) -> None:
    """What ``install_plainly`` keeps."""
    other = FakeHost(folder)
    before = observe(other)
    other.install(*other.wanted["packages"])
    other.reboot()
    truth.MEASURED.mkdir()
    looks = {"before": before, "after": observe(other)}
    truth.measurement(mine.server).write_text(json.dumps(looks), encoding="utf-8")


def test_a_conversion_and_its_way_back(mine: Any, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    measure(mine, tmp_path / "other")
    truth.convert(mine)
    truth.back(mine)
    said = capsys.readouterr().out
    assert "convert: " in said and "back: " in said and " brought by packages" in said
    assert said.count("; 0 untruths") == 2


def test_packages_that_are_there(mine: Any, capsys: pytest.CaptureFixture[str]) -> None:
    mine.host.install(*mine.host.wanted["packages"])
    truth.convert(mine)
    assert "brought by packages" not in capsys.readouterr().out


def test_what_packages_bring_is_nobodys_word(mine: Any) -> None:
    """Without the measurement everything that came with them is unexplained."""
    with pytest.raises(Failure, match="observed, but not predicted: package libvirt0"):
        truth.convert(mine)
    assert "path /etc/libvirt/qemu.conf" in (mine.folder / "truth/convert-untruths.txt").read_text(encoding="utf-8")


def test_an_untruth_fails_the_step(mine: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    measure(mine, tmp_path / "other")
    monkeypatch.setattr(Tuned, "apply", lambda self, changes: super(Tuned, self).apply(changes[:-1]))
    with pytest.raises(Failure, match="convert: check mode did not tell the truth"):
        truth.convert(mine)


def test_check_mode_that_changes_something_fails_the_step(mine: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    read = Services.read

    def careless(self: Services) -> dict[str, Any]:
        (self.context.root / "etc/looked").touch()
        return read(self)

    monkeypatch.setattr(Services, "read", careless)
    with pytest.raises(Failure, match="check mode changed the host: path /etc/looked"):
        truth.convert(mine)
