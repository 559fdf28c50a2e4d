# Copyright: the topovirt.kvm authors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""NICs with firmware, and a double of mlxconfig that speaks its documented format.

Written from the manual page of mstconfig, from the examples in the documentation of NVIDIA's firmware tools, and from
what mstconfig 4.21 prints of a device that is not there; no adapter was at hand. It shares nothing with the code that
it judges.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path

from ansible_collections.topovirt.kvm.tests.unit.plugins.module_utils._host.fake_host import NIC0, NIC1, FakeHost
from ansible_collections.topovirt.kvm.tests.unit.plugins.module_utils._host.fake_red_hat import FakeRedHat

BOOLEAN = {"False": 0, "True": 1}
FAILED = 3  # exit status of mstconfig 4.21 for a device that it cannot open


@dataclass
class Setting:
    """A parameter: its words with their numbers, none for a plain number; what holds by default, now and next."""

    words: dict[str, int] = field(default_factory=dict)
    default: int = 0
    hidden: bool = False  # while ADVANCED_PCI_SETTINGS is off
    read_only: bool = False
    array: int = 0  # elements

    def __post_init__(self) -> None:
        self.current = self.next = self.default

    def shown(self, value: int) -> str:
        if self.array:
            return f"Array[0..{self.array - 1}]"
        return next((f"{word}({value})" for word, number in self.words.items() if number == value), str(value))


def settings() -> dict[str, Setting]:
    return {
        "MEMIC_BAR_SIZE": Setting(),
        "HOST_CHAINING_DESCRIPTORS": Setting(array=8),
        "MAX_ACC_OUT_READ": Setting(hidden=True),
        "PCI_WR_ORDERING": Setting({"per_mkey": 0, "force_relax": 1}),
        "P2P_ORDERING_MODE": Setting({"DEVICE_DEFAULT": 0, "SECURE_NONE": 1, "SECURE_TRUST": 2}),
        "NUM_OF_VFS": Setting(default=8),
        "SRIOV_EN": Setting(BOOLEAN, 1),
        "NIC_FW_PCI_PRESENT": Setting(BOOLEAN, 1, read_only=True),
        "ATS_ENABLED": Setting(BOOLEAN),
        "ADVANCED_PCI_SETTINGS": Setting(BOOLEAN),
    }


class FirmwareHost(FakeHost):
    """Both NICs have firmware that can be asked."""

    tool = "mlxconfig"
    wide = False  # whether the table is that of newer versions

    def __init__(self, root: Path) -> None:
        super().__init__(root)
        self.nics = {NIC0: settings(), NIC1: settings()}
        self.shows_at_once = False  # what ADVANCED_PCI_SETTINGS hides, without a reboot
        self.fails: set[tuple[str, str]] = set()  # (address, parameter) that cannot be written
        self.deaf: set[str] = set()  # parameters whose new value gets lost
        self.silent: set[str] = set()  # adapters that do not answer
        self.lists = True
        self.tells_current = True
        for name in ("mlxconfig", "mstconfig"):
            self.programs[name] = self._mlxconfig if name == self.tool else self._no_program

    def firmware(self) -> dict[str, str]:
        return {
            f"{bdf} {name}": setting.shown(setting.next)
            for bdf, parameters in self.nics.items()
            for name, setting in parameters.items()
        }

    def running_firmware(self) -> dict[str, str]:
        return {
            f"{bdf} {name}": setting.shown(setting.current)
            for bdf, parameters in self.nics.items()
            for name, setting in parameters.items()
        }

    def reboot(self) -> None:
        super().reboot()
        for parameters in self.nics.values():
            for setting in parameters.values():
                setting.current = setting.next

    def commands(self, command: str) -> list[list[str]]:
        return [words for words in self.log if words[0] == self.tool and command in words]

    # --- the program ---

    @staticmethod
    def _no_program(words: list[str]) -> tuple[int, str, str]:
        raise FileNotFoundError(2, "No such file or directory")

    def _mlxconfig(self, words: list[str]) -> tuple[int, str, str]:
        if words == ["--version"]:
            return 0, f"{self.tool}, mft 4.30.0, built on a day\n", ""
        assert words[0] == "-d", words
        bdf, options = words[1], [word for word in words[2:] if word in ("-e", "-y")]
        command, *rest = words[2 + len(options) :]
        assert words[2 : 2 + len(options)] == options, "options come first"
        if bdf in self.silent or bdf not in self.nics:
            return FAILED, "-E- Failed to open the device\n", ""
        if command == "i":
            return (0, self._listing(bdf), "") if self.lists else (FAILED, "-E- Failed to query device\n", "")
        if command == "q":
            assert options == ["-e"]
            return self._query(bdf, rest)
        assert (command, options) == ("set", ["-y"]), words
        return self._set(bdf, rest)

    def _visible(self, bdf: str) -> dict[str, Setting]:
        parameters = self.nics[bdf]
        switch = parameters.get("ADVANCED_PCI_SETTINGS", Setting())
        shows = switch.next if self.shows_at_once else switch.current
        return {name: setting for name, setting in parameters.items() if shows or not setting.hidden}

    def _query(self, bdf: str, names: list[str]) -> tuple[int, str, str]:
        visible = self._visible(bdf)
        for name in names:
            if name not in visible:
                return FAILED, f"{self._opening(bdf)}-E- The Device doesn't support {name} parameter\n", ""
        return 0, self._opening(bdf) + self._rows({name: visible[name] for name in names or visible}), ""

    @staticmethod
    def _opening(bdf: str) -> str:
        return (
            f"\nDevice #1:\n----------\n\nDevice type:    ConnectX7\nName:           MCX755106AS-HEA_Ax\n"
            f"Description:    NVIDIA ConnectX-7; 200GbE; dual-port QSFP112; PCIe 5.0 x16;\nDevice:         {bdf}\n\n"
        )

    def _rows(self, parameters: dict[str, Setting]) -> str:
        name_width, width = (48, 20) if self.wide else (36, 16)
        columns = ["Default", "Current", "Next Boot"] if self.tells_current else ["Next Boot"]
        lines = ["Configurations:".ljust(name_width + 9) + "".join(column.ljust(width) for column in columns)]
        for name, setting in parameters.items():
            values = [setting.default, setting.current, setting.next] if self.tells_current else [setting.next]
            star = "*" if len(set(values)) > 1 else " "
            mark = "RO" if self.wide and setting.read_only else "  "
            shown = [setting.shown(value) for value in values]
            cells = [text.ljust(width if len(text) < width else len(text) + 1) for text in shown]
            lines.append(f"{star}{mark}      {name.ljust(name_width)}{''.join(cells)}")
        if any(line.startswith("*") for line in lines):
            lines.append("The '*' shows parameters with next value different from default/current value.")
        return "\n".join(lines) + "\n"

    def _listing(self, bdf: str) -> str:
        lines = [f"\nList of configurations the device {bdf} may support:", "    GLOBAL PCI CONF:"]
        for name, setting in self.nics[bdf].items():
            words = "|".join(setting.words) or "NUM"
            lines.append(f"        {name}=<{words}>    What it does, see {name}")
            lines += [f"{'':40}{number:#x}: {word}" for word, number in setting.words.items()]
        return "\n".join(lines) + "\n"

    def _set(self, bdf: str, pairs: list[str]) -> tuple[int, str, str]:
        visible, said = self._visible(bdf), self._opening(bdf)
        new: dict[str, int] = {}
        for pair in pairs:
            name, _equals, value = pair.partition("=")
            if name not in visible:
                return FAILED, f"{said}-E- The Device doesn't support {name} parameter\n", ""
            setting = visible[name]
            if not value.isdigit() and value not in setting.words:
                return FAILED, f"{said}-E- Cannot set the value {value} for the parameter {name}\n", ""
            new[name] = int(value) if value.isdigit() else setting.words[value]
        for name, number in new.items():
            if (bdf, name) in self.fails:
                return FAILED, f"{said}\n Apply new Configuration? (y/n) [n] : y\nApplying... Failed!\n-E- Failed\n", ""
            if name not in self.deaf:
                visible[name].next = number
        ending = " Apply new Configuration? (y/n) [n] : y\nApplying... Done!\n"
        return 0, f"{said}{ending}-I- Please reboot machine to load new configurations.\n", ""


class FirmwareRedHat(FirmwareHost, FakeRedHat):
    """Below the other distribution, with the tool that it has, in a newer version."""

    tool = "mstconfig"
    wide = True
