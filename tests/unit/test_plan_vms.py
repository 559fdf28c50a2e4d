# Copyright: the topovirt.kvm authors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""plan-vms as a user runs it: from an archive, without a host."""

from __future__ import annotations

import json
import os
import re
import subprocess
import tarfile
from pathlib import Path

import pytest

from tests.tools import workspace
from tests.twin import description, recorded

VMS = {"gpu_vms": [{"name": "a", "gpus": 2, "image": "rhel-9"}, {"name": "b", "gpus": 64}]}
FILES = ["_host.svg", "a.domain.xml", "a.nccl.xml", "a.spec.json", "a.svg", "plan.json"]


def plan(place: Path, *more: str, **variables: str) -> subprocess.CompletedProcess[str]:
    extra = [f"-e{name}={value}" for name, value in variables.items()]
    command = ["ansible-playbook", str(workspace.ROOT / "playbooks/plan-vms.yml"), "-e@vms.json", *extra, *more]
    # PWD is where a shell says that the user is.
    env = {**workspace.environment(os.environ), "PWD": str(place)}
    return subprocess.run(command, cwd=place, env=env, capture_output=True, text=True, check=False)


def changed(done: subprocess.CompletedProcess[str]) -> int:
    assert done.returncode == 0, done.stdout + done.stderr
    found = re.search(r"changed=(\d+)", done.stdout)
    assert found
    return int(found[1])


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("desk")
    recorded.record(description.load("pcie-l40s"), folder / "tree")
    with tarfile.open(folder / "node17.tar.gz", "w:gz") as archive:
        archive.add(folder / "tree", arcname=".")
    (folder / "vms.json").write_text(json.dumps(VMS))
    return folder


def test_a_design_is_written_once_and_shown_before(place: Path) -> None:
    checked = plan(place, "--check", "--diff", topology_root="node17.tar.gz", out="out")
    assert changed(checked) == 2
    assert '+  "basis": "planned"' in checked.stdout
    assert not (place / "out").exists()

    assert changed(plan(place, topology_root="node17.tar.gz", out="out")) == 2
    assert sorted(path.name for path in (place / "out").iterdir()) == FILES
    told = json.loads((place / "out/plan.json").read_text())
    assert told["host"] == "node17"
    assert [vm["name"] for vm in told["placed"]] == ["a"]
    assert [vm["name"] for vm in told["refused"]] == ["b"]

    assert changed(plan(place, topology_root="tree", out=str(place / "out"))) == 1, "the host has another name"
    assert changed(plan(place, topology_root="tree", out=str(place / "out"))) == 0


@pytest.mark.parametrize(
    "variables,message",
    [
        ({"topology_root": "nowhere", "out": "wrong"}, "nowhere is no directory on the host and no file that can be"),
        ({"topology_root": "vms.json", "out": "wrong"}, "The captured tree cannot be unpacked"),
        ({"topology_root": "tree"}, "-e out="),
    ],
)
def test_a_wrong_call_is_one_clear_error(place: Path, variables: dict[str, str], message: str) -> None:
    done = plan(place, **variables)
    assert done.returncode != 0
    assert message in done.stdout + done.stderr
    assert "Traceback" not in done.stdout + done.stderr
    assert not (place / "wrong").exists()
