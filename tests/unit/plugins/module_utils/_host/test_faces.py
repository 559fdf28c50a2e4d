# Copyright: the topovirt.kvm authors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""From a module's parameters to its result."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import pytest
from ansible_collections.topovirt.kvm.plugins.module_utils._errors import TopovirtError
from ansible_collections.topovirt.kvm.plugins.module_utils._host import faces
from ansible_collections.topovirt.kvm.plugins.module_utils._host.lock import host_lock
from ansible_collections.topovirt.kvm.tests.unit.plugins.module_utils._host.fake_host import FakeHost

from tests.tools import workspace

PAGES: dict[str, Any] = {"pages": {"1GiB": {"0": 2}}, "at_once": False}


@pytest.fixture
def host(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> FakeHost:
    monkeypatch.setattr(os, "geteuid", lambda: 0)
    return FakeHost(tmp_path)


def run(host: FakeHost, check: bool, **options: Any) -> dict[str, Any]:
    def run_command(words: list[str], **given: Any) -> tuple[int, str, str]:
        assert given["environ_update"]["LC_ALL"] == "C"
        return host.run(words)

    params = {"state": "present", "root": str(host.root), **options}
    return faces.run_face("hugepages", params, check, run_command)


def test_each_of_these_modules_is_documented_as_one() -> None:
    modules = workspace.ROOT / "plugins/modules"
    said = {path.stem for path in modules.glob("*.py") if "- topovirt.kvm.single_step" in path.read_text()}
    assert said == set(faces.BUILDERS)


def test_what_a_module_returns_and_shows(host: FakeHost) -> None:
    predicted, done = run(host, True, **PAGES), run(host, False, **PAGES)
    assert {**predicted, "journal_state": "applied"} == done
    assert (done["changed"], done["reboot_required"], done["kept"]) == (True, True, [])
    assert "directory" not in {change["kind"] for change in done["plan"]}
    unit = next(text for text in done["diff"] if text["before_header"].endswith("topovirt-hugepages.service"))
    assert (unit["before"], "ExecStart=" in unit["after"]) == ("", True)
    assert not run(host, False, **PAGES)["changed"]
    back = run(host, False, state="restored", pages=None, at_once=True)
    assert (back["changed"], back["journal_state"]) == (True, "none")
    assert "pages" not in back


def test_one_run_at_a_time_changes_the_host(host: FakeHost) -> None:
    with host_lock(host.root, "somebody"):
        assert run(host, True, **PAGES)["changed"]
        with pytest.raises(TopovirtError, match="held by somebody"):
            run(host, False, **PAGES)


def test_only_root_may(host: FakeHost, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(os, "geteuid", lambda: 1000)
    with pytest.raises(TopovirtError, match="by root only"):
        run(host, True, **PAGES)
    with pytest.raises(TopovirtError, match="by root only"):
        faces.run_journal({"action": "show", "root": str(host.root)}, True, None)


def test_the_journal_module_shows_verifies_and_restores(host: FakeHost) -> None:
    def ask(action: str, check: bool = False) -> dict[str, Any]:
        return faces.run_journal({"action": action, "root": str(host.root)}, check, lambda words, **_: host.run(words))

    run(host, False, **PAGES)
    assert [face["name"] for face in ask("show")["faces"]] == ["hugepages"]
    verified = ask("verify")
    assert (verified["damaged"], verified["changed"]) == ([], False)
    assert {thing["module"] for thing in verified["things"]} == {"hugepages"}
    predicted = ask("restore", check=True)
    done = ask("restore")
    assert predicted["changed"]
    assert predicted["plan"] == done["plan"]
    assert done["faces"] == []
    assert not ask("restore")["changed"]
