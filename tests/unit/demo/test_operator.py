# Copyright: the topovirt.kvm authors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""The demo reads Ansible's own output: what failed, in one line, and how much changed."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

from tests.demo.operator import CONFIGURATION, Failure, changed_tasks, changes, failure_message
from tests.demo.story import prediction_errors

RECAP = (
    "PLAY RECAP ***\nh200    : ok=9    changed={}    unreachable=0    failed=0    skipped=0    rescued=0    ignored=0\n"
)


def play(folder: Path, tasks: str) -> str:
    """The output of a real run with the operator's configuration."""
    (folder / "ansible.cfg").write_text(CONFIGURATION, encoding="utf-8")
    (folder / "play.yml").write_text(f"- hosts: localhost\n  gather_facts: false\n  tasks:\n{tasks}", encoding="utf-8")
    done = subprocess.run(
        [str(Path(sys.executable).parent / "ansible-playbook"), "play.yml"],
        cwd=folder, capture_output=True, text=True, check=False,
        env={"PATH": "/usr/bin:/bin", "HOME": str(folder), "ANSIBLE_CONFIG": f"{folder}/ansible.cfg", "NO_COLOR": "1"},
    )  # fmt: skip
    assert done.returncode
    return done.stdout


def test_the_message_of_the_failed_task_becomes_one_line(tmp_path: Path) -> None:
    text = play(tmp_path, '    - ansible.builtin.fail: {msg: "4 GPUs: refused; possible: 1, 8\\nbecause: fabric"}\n')
    assert failure_message(text) == "4 GPUs: refused; possible: 1, 8 because: fabric"


def test_the_last_failed_item_is_named(tmp_path: Path) -> None:
    text = play(
        tmp_path, "    - ansible.builtin.assert: {that: item == 1, fail_msg: 'not {{ item }}'}\n      loop: [1, 2]\n"
    )
    assert failure_message(text) == "not 2"


def test_what_a_command_said_is_part_of_it(tmp_path: Path) -> None:
    text = play(tmp_path, "    - ansible.builtin.command: ls /does/not/exist\n")
    assert "non-zero return code" in failure_message(text) and "/does/not/exist" in failure_message(text)


def test_a_playbook_that_does_not_even_start_is_an_error_line() -> None:
    assert (
        failure_message("[ERROR]: the playbook: x could not be found\n")
        == "[ERROR]: the playbook: x could not be found"
    )


def test_changes_are_counted_over_all_hosts() -> None:
    assert changed_tasks(RECAP.format(3) + "other : ok=1  changed=4  unreachable=0\n") == 7


def test_output_without_a_recap_is_a_failure() -> None:
    with pytest.raises(Failure, match="recap"):
        changed_tasks("")


def test_changes_are_told_with_their_diffs() -> None:
    text = "TASK [a : b] ***\n-x\n+y topovirt=1f2e\nchanged: [h]\nTASK [c] ***\nok: [h]\n"
    assert changes(text) == {"a : b": "-x\n+y topovirt=ID"}


def test_a_prediction_that_came_true_has_no_errors() -> None:
    real = {"kvm_host : Prepare": "+a", "kvm_host : Install packages": ""}
    assert prediction_errors({"kvm_host : Prepare": "+a"}, real) == []


@pytest.mark.parametrize(
    ("predicted", "real", "word"),
    [
        ({}, {}, "no change at all"),
        ({"a": ""}, {}, "did not"),
        ({"a": "+x"}, {"a": "+y"}, "another change"),
        ({"a": ""}, {"a": "", "b": ""}, "not announced"),
    ],
)
def test_a_wrong_prediction_is_told(predicted: dict[str, str], real: dict[str, str], word: str) -> None:
    assert any(word in error for error in prediction_errors(predicted, real))
