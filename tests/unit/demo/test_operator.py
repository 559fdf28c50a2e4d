# Copyright: the topovirt.kvm authors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""The demo reads Ansible's own output: what failed, in one line, and how much changed."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

from tests.demo.operator import CONFIGURATION, Failure, changed_names, changed_tasks, failure_message

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


def test_changed_tasks_are_named_once_and_in_order() -> None:
    text = "TASK [a : b] ***\nchanged: [h] => (item=1)\nchanged: [h] => (item=2)\nTASK [c] ***\nok: [h]\n"
    assert changed_names(text + "RUNNING HANDLER [d] ***\nchanged: [h -> localhost]\n") == ["a : b", "d"]
