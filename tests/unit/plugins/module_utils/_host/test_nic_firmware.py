# Copyright: the topovirt.kvm authors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""The firmware of NICs, with a double of mlxconfig: there, through reboots, beside a conversion, and back."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from ansible_collections.topovirt.kvm.plugins.module_utils._errors import TopovirtError
from ansible_collections.topovirt.kvm.plugins.module_utils._host.journal import Journal
from ansible_collections.topovirt.kvm.plugins.module_utils._host.journals import Journals
from ansible_collections.topovirt.kvm.plugins.module_utils._host.places import FACES
from ansible_collections.topovirt.kvm.plugins.module_utils._host.runner import describe
from ansible_collections.topovirt.kvm.plugins.module_utils._host.single import Done
from ansible_collections.topovirt.kvm.plugins.module_utils._topology.devices import MARKED_VPD
from ansible_collections.topovirt.kvm.tests.unit.plugins.module_utils._host.cut import Cut
from ansible_collections.topovirt.kvm.tests.unit.plugins.module_utils._host.fake_host import (
    GPU0,
    IGB,
    NIC0,
    NIC1,
    SWITCH0,
    WANTED,
    Crash,
)
from ansible_collections.topovirt.kvm.tests.unit.plugins.module_utils._host.firmware_host import FirmwareHost, Setting
from ansible_collections.topovirt.kvm.tests.unit.plugins.module_utils._topology.machine import ENDPOINT

ATS: dict[str, Any] = {"values": {"ATS_ENABLED": True}}
HIDDEN: dict[str, Any] = {"values": {"ATS_ENABLED": True, "MAX_ACC_OUT_READ": 44}}


@pytest.fixture
def host(tmp_path: Path) -> FirmwareHost:
    return FirmwareHost(tmp_path)


def whole(host: FirmwareHost) -> dict[str, Any]:
    return {**host.snapshot(), "firmware": host.firmware()}


def make(host: FirmwareHost, check: bool = False, **options: Any) -> Done:
    return host.face("nic_firmware", **options).present(check)


def back(host: FirmwareHost, check: bool = False) -> Done:
    return host.face("nic_firmware").restored(check)


def refusal(host: FirmwareHost, **options: Any) -> str:
    """Why it is refused, with nothing changed and nothing written."""
    before = whole(host)
    for check in (True, False):
        with pytest.raises(TopovirtError) as refused:
            make(host, check, **options)
    assert whole(host) == before
    assert not host.commands("set")
    assert refused.value.hint == "Nothing was changed."
    return refused.value.message


# --- one reboot ---------------------------------------------------------------------------------------------------


def test_values_are_written_for_the_next_boot_and_put_back(host: FirmwareHost) -> None:
    before = whole(host)
    predicted = make(host, check=True, **ATS)
    assert whole(host) == before
    assert not host.commands("set")
    done = make(host, **ATS)
    assert [describe(change) for change in done.plan] == [describe(change) for change in predicted.plan]
    assert (predicted.results, predicted.reboot_required) == (done.results, done.reboot_required)
    assert [(c.kind, c.what, c.before, c.after, c.reboot) for c in done.plan] == [
        ("firmware", f"{nic} ATS_ENABLED", "False(0)", "True(1)", True) for nic in (NIC0, NIC1)
    ]
    assert (done.changed, done.reboot_required, done.journal) == (True, True, "applied")
    assert done.results == {
        "tool": "mlxconfig",
        "devices": [
            {
                "device": nic,
                "values": {"ATS_ENABLED": {"current": "False(0)", "before": "False(0)", "after": "True(1)"}},
            }
            for nic in (NIC0, NIC1)
        ],
        "remaining": [],
        "effective": False,
        "running_vms": [],
    }
    assert host.firmware()[f"{NIC1} ATS_ENABLED"] == "True(1)"

    again = make(host, **ATS)
    assert (again.changed, again.reboot_required, again.results["effective"]) == (False, True, False)
    host.reboot()
    again = make(host, **ATS)
    assert (again.changed, again.reboot_required, again.results["effective"]) == (False, False, True)

    assert back(host, check=True).reboot_required
    undone = back(host)
    assert [(c.what, c.before, c.after) for c in undone.plan] == [
        (f"{nic} ATS_ENABLED", "True(1)", "False(0)") for nic in (NIC1, NIC0)
    ]
    assert (undone.changed, undone.reboot_required, undone.kept, undone.journal) == (True, True, [], "none")
    assert host.firmware() == before["firmware"]
    assert not (host.root / "var/lib/topovirt").exists()
    assert not back(host).changed


def test_before_the_reboot_the_way_back_needs_none(host: FirmwareHost) -> None:
    make(host, **ATS)
    assert not back(host, check=True).reboot_required
    assert not back(host).reboot_required


def test_only_what_is_named_is_set(host: FirmwareHost) -> None:
    before = host.firmware()
    make(host, devices=[NIC1], values={"NUM_OF_VFS": 16, "P2P_ORDERING_MODE": "SECURE_NONE"})
    changed = {key: value for key, value in host.firmware().items() if value != before[key]}
    assert changed == {f"{NIC1} NUM_OF_VFS": "16", f"{NIC1} P2P_ORDERING_MODE": "SECURE_NONE(1)"}
    assert host.commands("set") == [
        ["mlxconfig", "-d", NIC1, "-y", "set", "NUM_OF_VFS=16", "P2P_ORDERING_MODE=SECURE_NONE"]
    ]


def test_a_value_that_waits_for_the_boot_already_is_no_change(host: FirmwareHost) -> None:
    for nic in (NIC0, NIC1):
        host.nics[nic]["ATS_ENABLED"].next = 1
    done = make(host, **ATS)
    assert (done.changed, done.reboot_required, done.journal) == (False, True, "none")


def test_taking_back_what_did_not_boot_yet_needs_no_boot(host: FirmwareHost) -> None:
    host.nics[NIC0]["ATS_ENABLED"].next = 1
    done = make(host, devices=[NIC0], values={"ATS_ENABLED": False})
    assert (done.changed, done.reboot_required) == (True, False)


# --- two reboots --------------------------------------------------------------------------------------------------


def test_what_is_hidden_takes_a_second_run_and_a_second_reboot(host: FirmwareHost) -> None:
    before = host.firmware()
    done = make(host, **HIDDEN)
    assert [c.what for c in done.plan if NIC0 in c.what] == [f"{NIC0} ADVANCED_PCI_SETTINGS", f"{NIC0} ATS_ENABLED"]
    assert done.results["remaining"] == [{"device": nic, "name": "MAX_ACC_OUT_READ"} for nic in (NIC0, NIC1)]
    assert done.reboot_required
    waiting = make(host, **HIDDEN)
    assert (waiting.changed, waiting.reboot_required, len(waiting.results["remaining"])) == (False, True, 2)
    host.reboot()
    second = make(host, **HIDDEN)
    assert [c.what for c in second.plan] == [f"{nic} MAX_ACC_OUT_READ" for nic in (NIC0, NIC1)]
    assert (second.results["remaining"], second.reboot_required) == ([], True)
    host.reboot()
    third = make(host, **HIDDEN)
    assert (third.changed, third.reboot_required, third.results["effective"]) == (False, False, True)
    assert host.running_firmware()[f"{NIC0} MAX_ACC_OUT_READ"] == "44"

    host.log.clear()
    assert back(host).reboot_required
    # What hides others goes alone, and last.
    assert [words[5:] for words in host.commands("set") if NIC0 in words] == [
        ["MAX_ACC_OUT_READ=0"],
        ["ATS_ENABLED=0"],
        ["ADVANCED_PCI_SETTINGS=0"],
    ]
    assert host.firmware() == before
    host.reboot()
    assert host.running_firmware() == before


def test_firmware_that_shows_at_once_what_was_hidden_is_taken_as_it_is(host: FirmwareHost) -> None:
    host.shows_at_once = True
    before = host.firmware()
    make(host, **HIDDEN)
    second = make(host, **HIDDEN)
    assert [c.what for c in second.plan] == [f"{nic} MAX_ACC_OUT_READ" for nic in (NIC0, NIC1)]
    host.reboot()
    assert make(host, **HIDDEN).results["effective"]
    assert not back(host).kept
    assert host.firmware() == before


def test_a_tool_that_lists_nothing_is_believed_later(host: FirmwareHost) -> None:
    host.lists = False
    assert len(make(host, **HIDDEN).results["remaining"]) == 2


def test_what_is_still_not_there_after_the_reboot_is_refused(host: FirmwareHost) -> None:
    for nic in (NIC0, NIC1):
        del host.nics[nic]["MAX_ACC_OUT_READ"]
    host.lists = False
    make(host, **HIDDEN)
    host.reboot()
    with pytest.raises(TopovirtError, match=f"{NIC0} has no parameter MAX_ACC_OUT_READ"):
        make(host, **HIDDEN)


def test_nothing_is_shown_against_the_operators_word(host: FirmwareHost) -> None:
    message = refusal(host, values={"ADVANCED_PCI_SETTINGS": False, "MAX_ACC_OUT_READ": 44})
    assert message.count("has no parameter MAX_ACC_OUT_READ") == 2


# --- refusals -----------------------------------------------------------------------------------------------------


def test_unknown_names_and_values_are_refused_all_at_once(host: FirmwareHost) -> None:
    wrong = {
        "ATS_ENABLE": True,
        "ATS_ENABLED": 2,
        "NUM_OF_VFS": "many",
        "P2P_ORDERING_MODE": "SECURE",
        "HOST_CHAINING_DESCRIPTORS": 1,
    }
    said = refusal(host, devices=[NIC0], values=wrong).splitlines()[1:]
    assert said == [
        f" - {NIC0} has no parameter ATS_ENABLE, but ATS_ENABLED",
        f" - {NIC0}: ATS_ENABLED takes true or false; 2 was asked for",
        f" - {NIC0}: NUM_OF_VFS takes a number; many was asked for",
        f" - {NIC0}: P2P_ORDERING_MODE takes DEVICE_DEFAULT, SECURE_NONE, SECURE_TRUST; SECURE was asked for",
        f" - {NIC0}: HOST_CHAINING_DESCRIPTORS is an array: those are not set here; 1 was asked for",
    ]


@pytest.mark.parametrize(
    ("options", "complaint"),
    [
        ({"values": {}}, "values names none, like {ATS_ENABLED: true}"),
        ({"values": None}, "values names none"),
        ({"values": {"A=1 B": 1}}, "'A=1 B' is no name of a parameter"),
        ({"values": {"ARRAY[3]": 1}}, "'ARRAY[3]' is no name of a parameter"),
        ({"values": {"ATS_ENABLED": "on; x"}}, "ATS_ENABLED: 'on; x' is no value"),
        ({"devices": ["0000:ff:00.0"], **ATS}, "there is no PCI function 0000:ff:00.0"),
        ({"devices": [IGB], **ATS}, f"{IGB} (vendor 8086, class 0200) is no NIC of NVIDIA (Mellanox)"),
        ({"devices": [GPU0], **ATS}, f"{GPU0} (vendor 10de, class 0302) is no NIC"),
        ({"devices": [SWITCH0], **ATS}, f"{SWITCH0} (vendor 10de, class 0680) is no NIC"),
        ({"devices": ["0000:20:00.0"], **ATS}, "0000:20:00.0 is a root port, not an endpoint"),
    ],
)
def test_bad_input_is_refused(host: FirmwareHost, options: dict[str, Any], complaint: str) -> None:
    assert complaint in refusal(host, **options)


def test_virtual_functions_and_bridges_of_the_fabric_are_no_nics(host: FirmwareHost) -> None:
    function, ours = "0000:24:00.1", {"port_type": ENDPOINT, "group": 50, "driver": "mlx5_core"}
    host.pci(function, "0000:22:01.0", "15b3:101e", "0x020000", physfn=NIC0, **ours)  # type: ignore[arg-type]
    assert f"{function} is a virtual function: name the physical one, {NIC0}" in refusal(
        host, devices=[function], **ATS
    )
    host.write(f"{host.paths[NIC1]}/vpd", MARKED_VPD)
    assert f"{NIC1} is a bridge of the NVLink fabric" in refusal(host, devices=[NIC1.upper()], **ATS)
    assert {change.what for change in make(host, **ATS).plan} == {f"{NIC0} ATS_ENABLED"}


def test_a_host_without_the_tool_or_such_nics_is_refused(host: FirmwareHost) -> None:
    host.programs["mlxconfig"] = host.programs["mstconfig"]
    assert "neither mlxconfig nor mstconfig: install mstflint" in refusal(host, **ATS)
    for nic in (NIC0, NIC1):
        host.write(f"{host.paths[nic]}/vendor", "0x8086\n")
        host.write(f"{host.paths[nic]}/uevent", "")
    assert "no NIC of NVIDIA (Mellanox) shares a PCIe switch with a GPU" in refusal(host, **ATS)


def test_adapters_that_do_not_answer_or_do_not_tell_are_refused(host: FirmwareHost) -> None:
    host.silent.add(NIC1)
    assert refusal(host, **ATS).endswith(f" - {NIC1} does not answer mlxconfig: Failed to open the device")
    host.silent.clear()
    host.tells_current = False
    assert "does not tell its current values: its firmware is too old" in refusal(host, **ATS)


# --- failures -----------------------------------------------------------------------------------------------------


def test_a_set_that_fails_leaves_all_as_it_was(host: FirmwareHost) -> None:
    before = whole(host)
    host.fails.add((NIC1, "ATS_ENABLED"))
    with pytest.raises(TopovirtError, match=rf"mlxconfig -d {NIC1} set .* failed: Failed. Everything is as it was"):
        make(host, values={"NUM_OF_VFS": 4, "ATS_ENABLED": True})
    assert whole(host) == before
    assert tuple(dict.fromkeys(words[2] for words in host.commands("set"))) == (NIC0, NIC1)


def test_a_value_that_gets_lost_leaves_all_as_it_was(host: FirmwareHost) -> None:
    before = whole(host)
    host.deaf.add("ATS_ENABLED")
    with pytest.raises(TopovirtError) as failure:
        make(host, values={"NUM_OF_VFS": 4, "ATS_ENABLED": True})
    assert f"{NIC0} ATS_ENABLED: wanted True(1), for the next boot it has False(0)" in failure.value.message
    assert "Everything is as it was before." in failure.value.message
    assert whole(host) == before


def test_a_second_failure_leaves_what_the_first_run_made(host: FirmwareHost) -> None:
    make(host, **ATS)
    before = host.firmware()
    host.fails.add((NIC1, "NUM_OF_VFS"))
    with pytest.raises(TopovirtError, match="Everything is as it was before"):
        make(host, values={"NUM_OF_VFS": 4})
    assert host.firmware() == before
    back(host)
    assert host.firmware()[f"{NIC0} ATS_ENABLED"] == "False(0)"


def test_a_way_back_that_fails_can_be_repeated(host: FirmwareHost) -> None:
    before = host.firmware()
    make(host, **ATS)
    host.fails.add((NIC0, "ATS_ENABLED"))
    with pytest.raises(TopovirtError, match="failed: Failed"):
        back(host)
    host.fails.clear()
    host.deaf.add("ATS_ENABLED")
    with pytest.raises(TopovirtError, match=f"The firmware did not take back: {NIC0} ATS_ENABLED. Run again"):
        back(host)
    host.deaf.clear()
    with pytest.raises(TopovirtError, match="was cut off on this host"):
        make(host, **ATS)
    back(host)
    assert host.firmware() == before


@pytest.mark.parametrize("after", [False, True], ids=["before", "after"])
def test_a_run_cut_anywhere_is_finished_or_undone(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, after: bool) -> None:
    full = FirmwareHost(tmp_path / "full")
    pristine = full.firmware()
    make(full, **HIDDEN)
    points = len(Journal(full.root, FACES / "nic_firmware").records)
    assert points > 6
    for point in range(1, points + 1):
        host = FirmwareHost(tmp_path / str(point))
        with monkeypatch.context() as patch:
            Cut(patch, after).left = point
            with pytest.raises(Crash):
                make(host, **HIDDEN)
        if point % 2:
            make(host, **HIDDEN)
            assert host.firmware() == full.firmware(), point
        back(host)
        assert host.firmware() == pristine, point
        assert not (host.root / "var/lib/topovirt").exists()


def test_what_somebody_else_set_meanwhile_stays(host: FirmwareHost) -> None:
    make(host, values={"NUM_OF_VFS": 4, "ATS_ENABLED": True})
    host.nics[NIC0]["NUM_OF_VFS"].next = 32
    host.nics[NIC1].pop("ATS_ENABLED")
    done = back(host)
    assert done.kept == [
        f"firmware {NIC1} ATS_ENABLED: gone meanwhile, so that stays",
        f"firmware {NIC0} NUM_OF_VFS: changed by somebody meanwhile, so that stays",
    ]
    assert host.firmware()[f"{NIC0} NUM_OF_VFS"] == "32"
    assert (host.firmware()[f"{NIC1} NUM_OF_VFS"], host.firmware()[f"{NIC0} ATS_ENABLED"]) == ("8", "False(0)")


# --- VMs, and beside a conversion ---------------------------------------------------------------------------------


def test_nothing_is_set_or_put_back_while_vms_run(host: FirmwareHost) -> None:
    host.write("run/libvirt/qemu/train-0.xml", "<domstatus/>")
    assert "VM train-0 is running: stop it first" in refusal(host, **ATS)
    (host.root / "run/libvirt/qemu/train-0.xml").unlink()
    make(host, **ATS)
    host.write("run/libvirt/qemu/train-0.xml", "<domstatus/>")
    # Nothing to set, but a reboot is due: whoever thinks of it is told what runs.
    assert make(host, **ATS).results["running_vms"] == ["VM train-0 is running: stop it first"]
    with pytest.raises(TopovirtError, match="VM train-0 is running"):
        back(host)


def test_a_conversion_neither_minds_nor_ends_it(host: FirmwareHost) -> None:
    make(host, **ATS)
    host.runner().plan(WANTED)
    host.convert()
    assert host.driver(NIC0) == "vfio-pci"
    host.log.clear()
    before = host.firmware()
    for act in (make, back):
        with pytest.raises(TopovirtError, match=f"{NIC0} is bound to vfio-pci: its firmware is set before that"):
            act(host, **(ATS if act is make else {}))
    found = Journals(host.root, host.face, host.runner).verify()["things"]
    assert {item["found"] for item in found if item["module"] == "nic_firmware"} == {"not compared"}
    assert not [words for words in host.log if words[:2] == ["mlxconfig", "-d"]], "a guest may have it"
    host.go_back()
    assert host.firmware() == before
    assert Journal(host.root, FACES / "nic_firmware").state == "applied"
    back(host)
    assert host.firmware()[f"{NIC0} ATS_ENABLED"] == "False(0)"
    assert not (host.root / "var/lib/topovirt").exists()


def test_on_a_converted_host_a_nic_that_the_host_keeps_is_set(host: FirmwareHost) -> None:
    host.convert({**WANTED, "exclude": [NIC1]})
    assert host.driver(NIC1) == "mlx5_core"
    assert make(host, devices=[NIC1], **ATS).changed
    host.go_back()
    assert host.firmware()[f"{NIC1} ATS_ENABLED"] == "True(1)"
    assert back(host).changed


def test_a_nic_without_a_driver_is_set(host: FirmwareHost) -> None:
    (host.root / "sys/bus/pci/devices" / NIC0 / "driver").unlink()
    assert make(host, devices=[NIC0], **ATS).changed


def test_all_journals_are_put_back_together(host: FirmwareHost) -> None:
    before = host.firmware()
    make(host, **ATS)
    host.nics[NIC0]["NUM_OF_VFS"] = Setting(default=9)
    done = Journals(host.root, host.face, host.runner).restore(check=False)
    assert [c.kind for c in done.plan] == ["firmware", "firmware"]
    assert host.firmware() == {**before, f"{NIC0} NUM_OF_VFS": "9"}
