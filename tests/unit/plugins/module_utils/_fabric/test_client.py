# Copyright: the topovirt.kvm authors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""The client is a script that speaks the documented command line and keeps its state in a file."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from ansible_collections.topovirt.kvm.plugins.module_utils._errors import TopovirtError
from ansible_collections.topovirt.kvm.plugins.module_utils._fabric.client import Client, ensure_partition

SCRIPT = """\
import json, pathlib, sys
state = pathlib.Path(__file__).with_name("state.json")
data = json.loads(state.read_text())
data["calls"].append(" ".join(sys.argv[1:]))
option, argument = (sys.argv[1:] + [None])[:2]
busy = data["busy"] > 0 and option != "-v"
data["busy"] -= busy
status = 0
if option == "-v":
    print("fmpm stand-in for tests 1.0")
elif busy:
    print("FM_ST_NOT_CONFIGURED: fabric manager is not ready", file=sys.stderr)
    status = 1
elif option == "-l":
    print(json.dumps({"version": 1, "partitionInfo": data["partitions"]}))
else:
    for partition in data["partitions"]:
        if str(partition["partitionId"]) == argument:
            if data["fail"]:
                print("FM_ST_IN_USE", file=sys.stderr)
                status = 4
            elif not data["lie"]:
                partition["isActive"] = int(option == "-a")
state.write_text(json.dumps(data))
sys.exit(status)
"""


class Fabric:
    def __init__(self, folder: Path) -> None:
        self.state = folder / "state.json"
        self.script = folder / "fmpm.py"
        self.script.write_text(SCRIPT)
        self.slept = 0.0
        self.set(
            calls=[],
            busy=0,
            fail=False,
            lie=False,
            partitions=[
                {"partitionId": identity, "isActive": 0, "numGpus": len(modules), "gpuInfo": self.gpus(modules)}
                for identity, modules in {0: range(1, 9), 1: range(1, 5), 2: range(5, 9)}.items()
            ],
        )

    @staticmethod
    def gpus(modules: range) -> list[dict[str, Any]]:
        return [{"physicalId": module, "uuid": "", "pciBusId": ""} for module in modules]

    def get(self) -> dict[str, Any]:
        data: dict[str, Any] = json.loads(self.state.read_text())
        return data

    def set(self, **values: Any) -> None:
        old = self.get() if self.state.exists() else {}
        self.state.write_text(json.dumps({**old, **values}))

    def sleep(self, seconds: float) -> None:
        self.slept += seconds

    def ensure(self, partition: int, active: bool, check: bool = False) -> dict[str, Any]:
        def run(command: list[str]) -> tuple[int, str, str]:
            done = subprocess.run(
                [sys.executable, str(self.script), *command[1:]], capture_output=True, text=True, check=False
            )
            return done.returncode, done.stdout, done.stderr

        return ensure_partition(Client(run, "fmpm", 20, lambda: self.slept, self.sleep), partition, active, check)

    def active(self) -> list[int]:
        return [item["partitionId"] for item in self.get()["partitions"] if item["isActive"]]


@pytest.fixture
def fabric(tmp_path: Path) -> Fabric:
    return Fabric(tmp_path)


def test_activate_and_deactivate_once_each_and_as_predicted(fabric: Fabric) -> None:
    for active, after in ((True, [1]), (False, [])):
        before = fabric.active()
        predicted = fabric.ensure(1, active, check=True)
        assert fabric.active() == before
        done = fabric.ensure(1, active)
        assert done == predicted
        assert done["changed"] is True and done["modules"] == [1, 2, 3, 4]
        assert fabric.active() == after
        assert fabric.ensure(1, active)["changed"] is False
    assert [call for call in fabric.get()["calls"] if call[:2] in ("-a", "-d")] == ["-a 1", "-d 1"]


def test_two_tenants_at_the_same_time(fabric: Fabric) -> None:
    fabric.ensure(1, True)
    fabric.ensure(2, True)
    assert fabric.active() == [1, 2]


def test_the_version_says_what_the_client_is(fabric: Fabric) -> None:
    assert fabric.ensure(1, False)["client_version"] == "fmpm stand-in for tests 1.0"


def test_an_overlap_is_refused_by_name_in_check_mode_too(fabric: Fabric) -> None:
    fabric.ensure(1, True)
    for check in (True, False):
        with pytest.raises(TopovirtError, match=r"Partition 0 .* in use by partition 1 \(modules 1, 2, 3, 4\)"):
            fabric.ensure(0, True, check=check)
    assert fabric.active() == [1]


def test_an_unknown_id_names_those_that_exist(fabric: Fabric) -> None:
    with pytest.raises(TopovirtError, match="Partition 7 is not one of this machine's: 0, 1, 2"):
        fabric.ensure(7, True)


def test_waits_while_fabric_manager_initialises(fabric: Fabric) -> None:
    fabric.set(busy=3)
    assert fabric.ensure(1, True)["changed"] is True
    assert fabric.slept == 6


def test_gives_up_when_it_never_gets_ready(fabric: Fabric) -> None:
    fabric.set(busy=1000)
    with pytest.raises(TopovirtError, match="still initialising after 20 s"):
        fabric.ensure(1, True)
    assert fabric.active() == []


def test_a_failing_client_is_quoted(fabric: Fabric) -> None:
    fabric.set(fail=True)
    with pytest.raises(TopovirtError, match="'fmpm -a 1' failed with status 4: FM_ST_IN_USE"):
        fabric.ensure(1, True)


def test_success_that_shows_no_effect_is_an_error(fabric: Fabric) -> None:
    fabric.set(lie=True)
    with pytest.raises(TopovirtError, match="still inactive, although"):
        fabric.ensure(1, True)


def test_output_that_is_no_list(fabric: Fabric) -> None:
    fabric.set(partitions=None)
    with pytest.raises(TopovirtError, match="did not print a list of partitions"):
        fabric.ensure(1, True)
