# Copyright: the topovirt.kvm authors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""For every module that can change something: what check mode predicts is what the real run reports and what changes,
and check mode itself changes nothing. A new module needs a line in CASES, or says in its documentation that it only
reads.
"""

from __future__ import annotations

import ast
import importlib
import json
import shutil
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from types import SimpleNamespace
from typing import Any
from unittest.mock import ANY

import pytest
import yaml
from ansible.module_utils import basic
from ansible.parsing.dataloader import DataLoader
from ansible.playbook.task import Task
from ansible.template import Templar
from ansible_collections.topovirt.kvm.plugins.action import vm_image as vm_image_action
from ansible_collections.topovirt.kvm.plugins.module_utils._libvirt.images import Image, ensure_image
from ansible_collections.topovirt.kvm.plugins.module_utils._libvirt.lifecycle import STATES
from ansible_collections.topovirt.kvm.tests.unit.plugins.module_utils._fabric import test_client as fabric_tests
from ansible_collections.topovirt.kvm.tests.unit.plugins.module_utils._host.fake_host import FakeHost
from ansible_collections.topovirt.kvm.tests.unit.plugins.module_utils._libvirt import test_images as image_tests
from ansible_collections.topovirt.kvm.tests.unit.plugins.module_utils._libvirt import test_lifecycle as vm_tests

from tests.tools import workspace
from tests.unit.plugins.module_utils._topology.machine import two_level_machine
from tests.unit.truth import single_steps
from tests.unit.truth.watched import conversion, plain_installation

PLUGINS = workspace.ROOT / "plugins"
READS_ONLY = "because it changes nothing"

# Ansible adds it of a path that is there; who stopped a VM is known afterwards.
ADDED = {"uid", "gid", "owner", "group", "mode", "size", "invocation", "stopped_by"}

Look = Mapping[tuple[str, str], Any]  # (kind, name) of a thing -> its value


def difference(before: Look, after: Look) -> dict[tuple[str, str], Any]:
    return {thing: after.get(thing) for thing in {*before, *after} if before.get(thing) != after.get(thing)}


def hold(
    run: Callable[[bool], dict[str, Any]],
    look: Callable[[], Look],
    effects: Callable[[dict[str, Any]], dict[tuple[str, str], Any]],
) -> int:
    """Check mode, the real run, and a second run; returns how many things changed, as predicted.

    :param effects: what the result of check mode says will be: thing -> value afterwards, None for one that goes.
    """
    before = look()
    predicted = run(True)
    assert look() == before, "check mode changed something"
    reported = run(False)
    told = predicted.keys() - ADDED
    assert {key: predicted[key] for key in told} == {key: reported.get(key) for key in told}
    changed = difference(before, look())
    assert changed == effects(predicted)
    assert predicted["changed"] is bool(changed)
    after = look()
    for check in (True, False):
        assert run(check)["changed"] is False
    assert look() == after, "a second run changed something"
    return len(changed)


def files(root: Path) -> dict[tuple[str, str], Any]:
    return {
        ("path", f"/{path.relative_to(root)}"): (path.stat().st_mode & 0o7777, path.read_bytes())
        for path in root.rglob("*")
        if path.is_file()
    }


@dataclass
class Bench:
    """What a case works with."""

    folder: Path
    monkeypatch: pytest.MonkeyPatch
    capsys: pytest.CaptureFixture[str]

    def main(self, name: str, check: bool, **arguments: Any) -> dict[str, Any]:
        """Run a module as Ansible does."""
        given = {"ANSIBLE_MODULE_ARGS": {**arguments, "_ansible_check_mode": check, "_ansible_diff": True}}
        self.monkeypatch.setattr(basic, "_ANSIBLE_ARGS", json.dumps(given).encode())
        self.monkeypatch.setattr(basic, "_ANSIBLE_PROFILE", "legacy", raising=False)
        module = importlib.import_module(f"ansible_collections.topovirt.kvm.plugins.modules.{name}")
        self.capsys.readouterr()
        with pytest.raises(SystemExit) as ended:
            module.main()
        result: dict[str, Any] = json.loads(self.capsys.readouterr().out)
        assert ended.value.code == 0, result
        return result


# --- the cases ----------------------------------------------------------------------------------------------------


def host_state(bench: Bench) -> int:
    """An untouched host; all else is in test_conversion.py and test_untruths.py."""
    plain = plain_installation(FakeHost, bench.folder / "plain")
    found = conversion(FakeHost(bench.folder / "host"), plain=plain).verdict()
    assert not found.untruths
    return found.compared


def vm(bench: Bench) -> int:
    host = vm_tests.Host(bench.folder)

    def look() -> Look:
        found = files(host.root)
        for name, domain in host.connection.domains.items():
            found["definition", name] = domain.persistent_xml
            found["running", name] = domain.live_xml is not None
        return found

    def effects(result: dict[str, Any]) -> dict[tuple[str, str], Any]:
        texts = {diff["before_header"]: diff["after"] for diff in result["diff"]}
        found: dict[tuple[str, str], Any] = {}
        for action in result["actions"]:
            verb, _space, path = action.partition(" ")
            if verb == "write":
                found["path", path] = (0o644, texts[path].encode())
            elif verb == "remove":
                found["path", path] = None
            elif verb == "define":
                found |= {("definition", result["name"]): ANY, ("running", result["name"]): False}
            elif verb == "redefine":
                found["definition", result["name"]] = ANY
            elif verb in ("start", "stop"):
                found["running", result["name"]] = verb == "start"
            else:
                assert verb == "undefine", action
                found |= {("definition", result["name"]): None, ("running", result["name"]): None}
        return found

    other = vm_tests.XML.replace("cpuset='3'", "cpuset='4'")
    steps: tuple[tuple[str, str | None, tuple[Any, ...]], ...] = (
        ("defined", vm_tests.XML, ()),
        ("running", vm_tests.XML, (vm_tests.NCCL,)),
        ("running", other, (vm_tests.NCCL,)),
        ("stopped", None, ()),
        ("running", None, ()),
        ("absent", None, ()),
        ("running", vm_tests.XML, (vm_tests.NCCL,)),
        ("absent", None, ()),
    )
    assert {state for state, _xml, _files in steps} == set(STATES)
    return sum(hold(lambda check: host.ensure(s, x, check, files=f), look, effects) for s, x, f in steps)  # noqa: B023


def vm_image(bench: Bench) -> int:
    host = image_tests.Host(bench.folder)
    home = f"/{image_tests.HOME}"

    def effects(result: dict[str, Any]) -> dict[tuple[str, str], Any]:
        found: dict[tuple[str, str], Any] = {}
        for action in result["actions"]:
            words = action.split()
            path = words[3] if words[0] == "set" else words[1]
            mode = int(words[-1], 8) if words[0] == "set" else ANY if words[0] == "create" else 0o644
            found["path", path] = (mode, ANY)
        return found

    sources: tuple[dict[str, Any], ...] = (
        {"name": "a", "path": "/srv/vmlinuz"},
        {"name": "b", "url": "https://example.org/vmlinuz", "checksum": image_tests.SUM},
        {"name": "a", "path": "/srv/vmlinuz", "mode": 0o600},
        {"name": "vms/x/root.qcow2", "backing": "b", "size": "1G"},
    )
    count = 0
    for source in sources:
        count += hold(lambda check: host.ensure(check, **source), lambda: files(host.root), effects)  # noqa: B023
    local = bench.folder / "srv/vmlinuz"
    assert f"{home}/sent" not in {name for _kind, name in files(host.root)}
    return count + hold(lambda check: sent(host, local, check), lambda: files(host.root), effects)


def sent(host: image_tests.Host, local: Path, check: bool) -> dict[str, Any]:
    """A file of the controller, by the action; what it copies to the host goes when the task ends."""
    loader, task = DataLoader(), Task()
    task.action, task.args, task.check_mode = "topovirt.kvm.vm_image", {"name": "sent", "src": str(local)}, check
    shell = SimpleNamespace(tmpdir="/srv/ansible-tmp", join_path=lambda *parts: "/".join(parts))
    action = vm_image_action.ActionModule(
        task=task,
        connection=SimpleNamespace(_shell=shell),
        play_context=None,
        loader=loader,
        templar=Templar(loader=loader),
        shared_loader_obj=None,
    )

    def execute(_name: str, module_args: dict[str, Any], task_vars: dict[str, Any]) -> dict[str, Any]:
        return ensure_image(host.root, Image(**module_args), host.fetch, host.qemu_img, check)

    def transfer(source: str, target: str) -> None:
        place = host.root / target.lstrip("/")
        place.parent.mkdir(parents=True)
        shutil.copy(source, place)

    action._execute_module = execute
    action._transfer_file = transfer
    action._fixup_perms2 = lambda paths: None
    action._find_needle = lambda folder, name: name
    result: dict[str, Any] = action.run(task_vars={})
    shutil.rmtree(host.root / "srv/ansible-tmp", ignore_errors=True)
    return result


def fabric_partition(bench: Bench) -> int:
    fabric = fabric_tests.Fabric(bench.folder)

    def look() -> Look:
        return {("partition", str(item["partitionId"])): bool(item["isActive"]) for item in fabric.get()["partitions"]}

    def effects(result: dict[str, Any]) -> dict[tuple[str, str], Any]:
        return {("partition", str(result["id"])): result["state"] == "active"} if result["changed"] else {}

    return sum(
        hold(lambda check: fabric.ensure(identity, active, check), look, effects)  # noqa: B023
        for identity, active in ((1, True), (2, True), (1, False), (2, False))
    )


def topology_capture(bench: Bench) -> int:
    machine, target = bench.folder / "machine", bench.folder / "captured"
    machine.mkdir()
    two_level_machine(machine)
    target.mkdir()
    dest = target / "host.tar.gz"

    def effects(result: dict[str, Any]) -> dict[tuple[str, str], Any]:
        return {("path", f"/{Path(result['path']).name}"): (0o600, ANY)} if result["changed"] else {}

    def run(check: bool) -> dict[str, Any]:
        return bench.main("topology_capture", check, dest=str(dest), root=str(machine))

    count = hold(run, lambda: files(target), effects)
    dest.write_bytes(b"something else")
    return count + hold(run, lambda: files(target), effects)


def _in_folder(case: Callable[[Path], int], bench: Bench) -> int:
    return case(bench.folder)


_OF_BENCH: tuple[Callable[[Bench], int], ...] = (host_state, vm, vm_image, fabric_partition, topology_capture)
CASES: dict[str, Callable[[Bench], int]] = {
    **{case.__name__: case for case in _OF_BENCH},
    **{name: partial(_in_folder, case) for name, case in single_steps.CASES.items()},
}


# --- all of them --------------------------------------------------------------------------------------------------

MODULES = sorted(path.stem for path in (PLUGINS / "modules").glob("*.py"))


def reads_only(name: str) -> bool:
    module = importlib.import_module(f"ansible_collections.topovirt.kvm.plugins.modules.{name}")
    attributes = yaml.safe_load(module.DOCUMENTATION).get("attributes")  # else in a fragment of modules that change
    return attributes is not None and READS_ONLY in " ".join([attributes["check_mode"]["description"]])


@pytest.mark.parametrize("name", MODULES)
def test_check_mode_tells_the_truth(
    name: str,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    record_property: Callable[[str, object], None],
) -> None:
    if reads_only(name):
        assert name not in CASES, f"{name} says that it changes nothing, but has a case"
        return
    assert name in CASES, f"{name} can change something: add a case for what check mode predicts of it"
    count = CASES[name](Bench(tmp_path, monkeypatch, capsys))
    record_property("changes", count)
    print(f"{name}: {count} predicted changes are real ones")
    assert count > 0


@pytest.mark.parametrize("name", [name for name in MODULES if reads_only(name)])
def test_what_only_reads_never_reports_a_change(name: str) -> None:
    said = []
    for path in (PLUGINS / "modules" / f"{name}.py", PLUGINS / "action" / f"{name}.py"):
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))) if path.is_file() else []:
            if isinstance(node, ast.Call):
                said += [keyword.value for keyword in node.keywords if keyword.arg == "changed"]
            elif isinstance(node, ast.Dict):
                keys = zip(node.keys, node.values, strict=True)
                said += [value for key, value in keys if isinstance(key, ast.Constant) and key.value == "changed"]
    assert said and all(isinstance(value, ast.Constant) and value.value is False for value in said)
