# Copyright: the topovirt.kvm authors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""What mlxconfig prints, read: tables written after its documentation, of several versions."""

from __future__ import annotations

from typing import Any

import pytest
from ansible_collections.topovirt.kvm.plugins.module_utils._errors import TopovirtError
from ansible_collections.topovirt.kvm.plugins.module_utils._host.mlxconfig import (
    Mlxconfig,
    Parameter,
    installed,
    not_taken,
    parse_listing,
    parse_table,
    same,
    wanted_value,
    written,
)

# As mstflint 4.2x prints it: narrow columns, a star for what differs, a space where a value fills its column.
NARROW = """
Device #1:
----------

Device type:    ConnectX6
Name:           MCX653106A-HDA_Ax
Description:    ConnectX-6 VPI adapter card; HDR IB (200Gb/s) and 200GbE; dual-port QSFP56
Device:         0000:24:00.0

Configurations:                              Default         Current         Next Boot
         MEMIC_SIZE_LIMIT                    _256KB(1)       _256KB(1)       DISABLED(0)
         HOST_CHAINING_DESCRIPTORS           Array[0..7]     Array[0..7]     Array[0..7]
*        ATS_ENABLED                         False(0)        False(0)        True(1)
*        P2P_ORDERING_MODE                   DEVICE_DEFAULT(0) DEVICE_DEFAULT(0) SECURE_NONE(1)
         MAX_ACC_OUT_READ                    0               44              44
         EXP_ROM_UEFI_x86_ENABLE             True(1)         True(1)         True(1)
         FLEX_NOTE                           N/A             N/A             N/A
The '*' shows parameters with next value different from default/current value.
"""
# Newer ones: wider, and RO for what cannot be set.
WIDE = """
Device #1:
----------

Device type:        ConnectX7
Name:               MCX755106AS-HEA_Ax
Description:        NVIDIA ConnectX-7 adapter card; 200GbE / NDR200 IB
Device:             0000:24:00.0

Configurations:                                          Default              Current              Next Boot
 RO     NIC_FW_PCI_PRESENT                               True(1)              True(1)              True(1)
*       PCI_WR_ORDERING                                  per_mkey(0)          per_mkey(0)          force_relax(1)
*RO     SERIAL_LIKE                                      0                    1                    2
        ODD_NAME_WITH_TEXT                               a b                  c                    d
The '*' shows parameters with next value different from default/current value.

The 'RO' shows parameters which are for read only and cannot be changed
"""
# Of firmware that only tells the next boot, and of one without its defaults.
NEXT_ONLY = """
Device type:    ConnectX4
Configurations:                                 Next Boot
         SRIOV_EN                               True(1)
"""
NO_DEFAULT = """
Configurations:                              Current         Next Boot
*        NUM_OF_VFS                          8               16
"""
LISTING = """
List of configurations the device 0000:24:00.0 may support:
    GLOBAL PCI CONF:
        SRIOV_EN=<False|True>                   Enable Single-Root I/O Virtualization
        PCI_WR_ORDERING=<per_mkey|force_relax>Which ordering writes have
                                                0x0: per_mkey - each key decides
        MAX_ACC_OUT_READ=<NUM>                  Outstanding reads; 0 means X=<none>
"""


def alike(name: str, value: str) -> Parameter:
    """With the same value by default, now and from the next boot on."""
    return Parameter(name, value, value, value)


def test_a_narrow_table() -> None:
    assert parse_table(NARROW) == {
        "MEMIC_SIZE_LIMIT": Parameter("MEMIC_SIZE_LIMIT", "_256KB(1)", "_256KB(1)", "DISABLED(0)"),
        "HOST_CHAINING_DESCRIPTORS": alike("HOST_CHAINING_DESCRIPTORS", "Array[0..7]"),
        "ATS_ENABLED": Parameter("ATS_ENABLED", "False(0)", "False(0)", "True(1)"),
        "P2P_ORDERING_MODE": alike("P2P_ORDERING_MODE", "DEVICE_DEFAULT(0)")._replace(next="SECURE_NONE(1)"),
        "MAX_ACC_OUT_READ": Parameter("MAX_ACC_OUT_READ", "0", "44", "44"),
        "EXP_ROM_UEFI_x86_ENABLE": alike("EXP_ROM_UEFI_x86_ENABLE", "True(1)"),
        "FLEX_NOTE": alike("FLEX_NOTE", "N/A"),
    }


def test_a_wide_table() -> None:
    found = parse_table(WIDE)
    assert list(found) == ["NIC_FW_PCI_PRESENT", "PCI_WR_ORDERING", "SERIAL_LIKE", "ODD_NAME_WITH_TEXT"]
    assert found["NIC_FW_PCI_PRESENT"] == alike("NIC_FW_PCI_PRESENT", "True(1)")._replace(read_only=True)
    assert found["PCI_WR_ORDERING"] == Parameter("PCI_WR_ORDERING", "per_mkey(0)", "per_mkey(0)", "force_relax(1)")
    assert found["SERIAL_LIKE"].read_only
    assert found["ODD_NAME_WITH_TEXT"] == Parameter("ODD_NAME_WITH_TEXT", None, None, None)


def test_what_older_firmware_does_not_tell() -> None:
    assert parse_table(NEXT_ONLY) == {"SRIOV_EN": Parameter("SRIOV_EN", None, None, "True(1)")}
    assert parse_table(NO_DEFAULT) == {"NUM_OF_VFS": Parameter("NUM_OF_VFS", None, "8", "16")}


@pytest.mark.parametrize(
    "text", ["", "-E- Failed to open the device\n", "Device type:    ConnectX4\n         A   1  1  1\n"]
)
def test_what_is_no_table(text: str) -> None:
    assert parse_table(text) == {}


def test_what_parameters_take() -> None:
    assert parse_listing(LISTING) == {
        "SRIOV_EN": ["False", "True"],
        "PCI_WR_ORDERING": ["per_mkey", "force_relax"],
        "MAX_ACC_OUT_READ": ["NUM"],
    }
    assert parse_listing("-E- Failed to open the device\n") == {}


@pytest.mark.parametrize(
    ("given", "value"),
    [
        (True, "True(1)"),
        (False, "False(0)"),
        ("true", "True(1)"),
        ("False", "False(0)"),
        (44, "44"),
        ("44", "44"),
        ("0x2c", "44"),
        ("007", "7"),
        ("SECURE_NONE", "SECURE_NONE"),
        ("per_mkey(0)", "per_mkey(0)"),
        ("True(1)", "True(1)"),
    ],
)
def test_values_as_they_are_given(given: object, value: str) -> None:
    assert wanted_value(given) == value


@pytest.mark.parametrize("given", [-1, 1.5, "", "a b", "x=1", "--force", "x;y", None, ["a"], {"a": 1}, "0x"])
def test_what_is_no_value(given: object) -> None:
    with pytest.raises(TopovirtError, match="is no value: a number, true, false or a word"):
        wanted_value(given)


@pytest.mark.parametrize(
    ("printed", "value", "equal"),
    [
        ("True(1)", "True(1)", True),
        ("True(1)", "1", True),
        ("False(0)", "1", False),
        ("44", "44", True),
        ("44", "4", False),
        ("SECURE_NONE(1)", "SECURE_NONE", True),
        ("SECURE_NONE(1)", "SECURE_ALL", False),
        ("SECURE_NONE(1)", "secure_none", False),
        ("N/A", "0", False),
        (None, "0", False),
    ],
)
def test_what_is_the_same(printed: str | None, value: str, equal: bool) -> None:
    assert same(printed, value) is equal


def test_what_is_written_is_the_number_where_it_is_known() -> None:
    assert [written(value) for value in ("True(1)", "44", "SECURE_NONE", "per_mkey(0)")] == [
        "1",
        "44",
        "SECURE_NONE",
        "0",
    ]


MODE = Parameter("MODE", "per_mkey(0)", "per_mkey(0)", "per_mkey(0)")
SWITCH = Parameter("SWITCH", "False(0)", "False(0)", "True(1)")
COUNT = Parameter("COUNT", "0", "8", "8")


@pytest.mark.parametrize(
    ("parameter", "value", "takes", "complaint"),
    [
        (SWITCH, "True(1)", [], ""),
        (SWITCH, "0", [], ""),
        (SWITCH, "2", [], "takes true or false"),
        (SWITCH, "maybe", [], "takes true or false"),
        (SWITCH, "maybe(1)", [], "takes true or false"),
        (COUNT, "12", [], ""),
        (COUNT, "True(1)", [], "takes a number"),
        (COUNT, "many", ["NUM"], "takes a number"),
        (MODE, "force_relax", ["per_mkey", "force_relax"], ""),
        (MODE, "1", ["per_mkey", "force_relax"], ""),
        (MODE, "relax", ["per_mkey", "force_relax"], "takes per_mkey, force_relax"),
        (MODE, "True(1)", ["per_mkey", "force_relax"], "takes per_mkey, force_relax"),
        (MODE, "True(1)", [], "takes neither true nor false"),
        (MODE, "relax", [], ""),
        (SWITCH._replace(read_only=True), "True(1)", [], "is read-only"),
        (COUNT._replace(next="Array[0..7]"), "1", [], "is an array: those are not set here"),
        (COUNT._replace(next="N/A"), "1", [], "has the value N/A, to which there would be no way back"),
        (COUNT._replace(next=None), "1", [], "has the value (not readable), to which there would be no way back"),
    ],
)
def test_what_a_parameter_does_not_take(parameter: Parameter, value: str, takes: list[str], complaint: str) -> None:
    assert not_taken(parameter, value, takes) == complaint


# --- the program --------------------------------------------------------------------------------------------------


class Program:
    """Answers in turn, and keeps what it was asked."""

    def __init__(self, *answers: tuple[int, str, str]) -> None:
        self.answers, self.asked = list(answers), []  # type: ignore[var-annotated]

    def __call__(self, words: list[str]) -> tuple[int, str, str]:
        self.asked.append(" ".join(words))
        return self.answers.pop(0)


def test_only_what_is_wanted_is_asked_for() -> None:
    program = Program((0, NARROW, ""))
    found = Mlxconfig(program, "mlxconfig").query("0000:24:00.0", ["ATS_ENABLED", "MAX_ACC_OUT_READ"])
    assert (program.asked, found.complaint) == (["mlxconfig -d 0000:24:00.0 -e q ATS_ENABLED MAX_ACC_OUT_READ"], "")
    assert found.parameters == parse_table(NARROW)


@pytest.mark.parametrize("status", [0, 3])
def test_where_one_is_not_known_all_are_asked_for(status: int) -> None:
    said = "-E- The Device doesn't support NEVER parameter\n"
    program = Program((status, said, ""), (0, NARROW, ""))
    found = Mlxconfig(program, "mstconfig").query("0000:24:00.0", ["NEVER"])
    assert program.asked[1:] == ["mstconfig -d 0000:24:00.0 -e q"]
    assert (found.parameters, found.complaint) == (parse_table(NARROW), "")


def test_a_table_that_is_not_whole_comes_with_the_complaint() -> None:
    """Some settings of some firmware cannot be queried; the tool says so below the others."""
    partly = f"{NARROW}\n-E- Failed to query some of the TLVs:\n    x\n"
    found = Mlxconfig(Program((3, "", ""), (3, partly, "")), "mstconfig").query("0000:24:00.0", ["NEVER"])
    assert (found.parameters, found.complaint) == (parse_table(NARROW), "Failed to query some of the TLVs:")


@pytest.mark.parametrize(
    ("out", "errors", "complaint"),
    [
        (f"{NARROW}Applying... Failed!\n-E- Failed to set.\n", "", "Failed to set"),
        ("", "-E- No access\n", "No access"),
        ("", "cannot execute\n", "cannot execute"),
        ("", "", "exit status 1"),
    ],
)
def test_a_failing_set_says_what_the_tool_says(out: str, errors: str, complaint: str) -> None:
    program = Program((1, out, errors))
    with pytest.raises(TopovirtError) as failure:
        Mlxconfig(program, "mlxconfig").set("0000:24:00.0", {"ATS_ENABLED": "True(1)", "MODE": "relax"})
    assert program.asked == ["mlxconfig -d 0000:24:00.0 -y set ATS_ENABLED=1 MODE=relax"]
    assert failure.value.message == f"mlxconfig -d 0000:24:00.0 set ATS_ENABLED=1 MODE=relax failed: {complaint}."


def test_which_tool_a_host_has() -> None:
    def only(name: str) -> Any:
        def run(words: list[str]) -> tuple[int, str, str]:
            if words[0] != name:
                raise FileNotFoundError(2, "No such file or directory")
            return 0, f"{name}, mft 4.30\n", ""

        return run

    assert [getattr(installed(only(name)), "tool", None) for name in ("mlxconfig", "mstconfig", "other")] == [
        "mlxconfig",
        "mstconfig",
        None,
    ]
