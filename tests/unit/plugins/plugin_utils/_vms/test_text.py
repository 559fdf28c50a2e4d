# Copyright: the topovirt.kvm authors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

from __future__ import annotations

from ansible_collections.topovirt.kvm.plugins.plugin_utils._vms.text import comparison_text, vm_table

VM = {
    "name": "train-0",
    "state": "running",
    "cpus": "2-3",
    "emulator_cpus": "",
    "memory_bytes": 3 << 29,
    "hostdevs": ["0000:23:00.0", "0000:24:00.0"],
    "metadata": {"partition": 1},
}


def test_a_line_for_each_vm_below_the_head() -> None:
    head, first, second = vm_table([VM, {**VM, "name": "x", "hostdevs": [], "metadata": None}])
    assert head.split() == ["name", "state", "CPUs", "emulator", "memory", "devices", "partition"]
    assert first.split() == ["train-0", "running", "2-3", "-", "1.5", "GiB", "0000:23:00.0", "0000:24:00.0", "1"]
    assert second.split() == ["x", "running", "2-3", "-", "1.5", "GiB", "-", "-"]
    assert first.index("running") == second.index("running") == head.index("state")
    assert len(vm_table([])) == 1


def test_differences_stand_out() -> None:
    matrix = {"order": ["0000:23:00.0", "0000:24:00.0"], "host": [["LOC", "PIX"], ["PIX", "LOC"]]}
    true = {"fidelity": {"paths": {"equal": 1, "pairs": 1}, "l3": None}, "causes": []}
    same = comparison_text({"matrix": {**matrix, "guest": [["LOC", "PIX"], ["PIX", "LOC"]]}, **true})
    assert [line.split() for line in same] == [
        ["23:00.0", "24:00.0"],
        ["0000:23:00.0", "LOC", "PIX"],
        ["0000:24:00.0", "PIX", "LOC"],
        ["paths:", "1", "of", "1", "pairs", "equal", "(100", "%)"],
    ]
    wrong = {"fidelity": {"paths": {"equal": 0, "pairs": 3}}, "causes": [{"cause": "no switch"}]}
    other = comparison_text({"matrix": {**matrix, "guest": [["LOC", "PHB"], ["PHB", "LOC"]]}, **wrong})
    assert other[-2:] == ["paths: 0 of 3 pairs equal (0 %)", "no switch"]
    assert other[1].split() == ["0000:23:00.0", "LOC", "PIX!PHB"]
