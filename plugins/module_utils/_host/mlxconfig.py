# Copyright: the topovirt.kvm authors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Settings in the firmware of NVIDIA's (Mellanox') NICs, through mlxconfig or mstconfig: what they print, as values.

The format is that of the documentation of NVIDIA's firmware tools ("Examples of mlxconfig Usage"), and of the printing
functions of mstflint, whose mstconfig is the same program.
"""

from __future__ import annotations

import re
from dataclasses import dataclass, field
from typing import Dict, List, NamedTuple, Optional, Sequence, Tuple

from ansible_collections.topovirt.kvm.plugins.module_utils._errors import TopovirtError
from ansible_collections.topovirt.kvm.plugins.module_utils._host.places import Run, output

# The name in NVIDIA's MFT, and in the package mstflint of distributions.
TOOLS = ("mlxconfig", "mstconfig")

NAME = re.compile(r"[A-Za-z][A-Za-z0-9_]*\Z")
_WORD = re.compile(r"[A-Za-z_][A-Za-z0-9_]*\Z")
_NUMBERED = re.compile(r"([^\s()]+)\((\d+)\)\Z")
_NUMBER = re.compile(r"0[xX][0-9a-fA-F]+\Z|\d+\Z")
_ARRAY = re.compile(r"Array\[")
_BOOLEANS = ("False", "True")

_HEADER = re.compile(r"Configurations:\s")
_COLUMNS = ("Default", "Current", "Next Boot")  # each only where the firmware tells it
_ROW = re.compile(r"(?:\*|\s)(?P<read_only>RO)?\s+(?P<name>\S+)\s+(?P<values>\S.*)\Z")
_LISTED = re.compile(r"\s+(?P<name>[A-Za-z][A-Za-z0-9_]*)=<(?P<takes>[^>]*)>")


class Parameter(NamedTuple):
    """A row of the table; values as they are printed, ``None`` where the firmware does not tell them."""

    name: str
    default: Optional[str]
    current: Optional[str]
    next: Optional[str]
    read_only: bool = False


@dataclass
class Answer:
    """What a query said: its table, and the tool's own complaint where it had one."""

    parameters: Dict[str, Parameter] = field(default_factory=dict)
    complaint: str = ""


class Mlxconfig:
    """The tool that a host has."""

    def __init__(self, run: Run, tool: str) -> None:
        self.tool = tool
        self._run = run

    def query(self, bdf: str, names: Sequence[str]) -> Answer:
        """What the device says of these parameters; of all that it has, when it does not know one of them."""
        status, text, complaint = self._ask(bdf, "-e", "q", *names)
        found = parse_table(text)
        if status == 0 and set(names) <= set(found):
            return Answer(found)
        status, text, complaint = self._ask(bdf, "-e", "q")
        return Answer(parse_table(text), "" if status == 0 else complaint)

    def takes(self, bdf: str) -> Dict[str, List[str]]:
        """Parameters that the tool knows of such a device, with what each takes; empty when it does not say."""
        status, text, _complaint = self._ask(bdf, "i")
        return parse_listing(text) if status == 0 else {}

    def set(self, bdf: str, values: Dict[str, str]) -> None:
        """Write values for the next boot.

        :raises TopovirtError: when the tool does not take them.
        """
        words = [f"{name}={written(value)}" for name, value in values.items()]
        status, _text, complaint = self._ask(bdf, "-y", "set", *words)
        if status != 0:
            raise TopovirtError(f"{self.tool} -d {bdf} set {' '.join(words)} failed: {complaint}.")

    def _ask(self, bdf: str, *words: str) -> Tuple[int, str, str]:
        """Exit status, standard output, and what it complains about."""
        status, text, errors = self._run([self.tool, "-d", bdf, *words])
        return status, text, _complaint(text, errors, status)


def installed(run: Run) -> Optional[Mlxconfig]:
    """The tool, ``None`` where there is none."""
    return next((Mlxconfig(run, tool) for tool in TOOLS if output(run, tool, "--version")), None)


def parse_table(text: str) -> Dict[str, Parameter]:
    """The table of ``mlxconfig -e q``; a row with values that cannot be told apart has none."""
    found: Dict[str, Parameter] = {}
    columns: List[str] = []
    for line in text.splitlines():
        if _HEADER.match(line):
            columns = [name for name in _COLUMNS if name in line]
            continue
        row = _ROW.match(line.rstrip()) if columns else None
        if row is None or not NAME.match(row["name"]):
            continue
        values = row["values"].split()
        by_column = dict(zip(columns, values)) if len(values) == len(columns) else {}
        found[row["name"]] = Parameter(
            row["name"],
            by_column.get("Default"),
            by_column.get("Current"),
            by_column.get("Next Boot"),
            row["read_only"] is not None,
        )
    return found


def parse_listing(text: str) -> Dict[str, List[str]]:
    """What ``mlxconfig i`` says that parameters take: words, or ``NUM``."""
    rows = (_LISTED.match(line) for line in text.splitlines())
    return {row["name"]: row["takes"].split("|") for row in rows if row is not None}


# --- values


def wanted_value(given: object) -> str:
    """A value as an operator gives it, in the form in which the tool prints it as far as that is known.

    :raises TopovirtError: when it is none.
    """
    text = "" if given is None else str(given).strip()
    if text.capitalize() in _BOOLEANS:
        return boolean(text.capitalize() == "True")
    if _NUMBER.match(text):
        return str(int(text, 0 if text[:2].lower() == "0x" else 10))
    if _WORD.match(text) or _NUMBERED.match(text):
        return text
    raise TopovirtError(f"{given!r} is no value: a number, true, false or a word such as SECURE_NONE was expected.")


def boolean(on: bool) -> str:
    return "True(1)" if on else "False(0)"


def number(value: str) -> Optional[int]:
    """The number behind a value, ``None`` where it is not printed."""
    numbered = _NUMBERED.match(value)
    if numbered:
        return int(numbered[2])
    return int(value) if value.isdigit() else None


def word(value: str) -> Optional[str]:
    numbered = _NUMBERED.match(value)
    return numbered[1] if numbered else None if value.isdigit() else value


def same(printed: Optional[str], value: str) -> bool:
    """Whether a printed value is that value, which may lack its number or its word."""
    if printed is None:
        return False
    if number(value) is not None:
        return number(printed) == number(value)
    return word(printed) == value


def written(value: str) -> str:
    """A value as ``set`` takes it."""
    known = number(value)
    return value if known is None else str(known)


def not_taken(parameter: Parameter, value: str, takes: Sequence[str]) -> str:
    """Why a parameter cannot be given a value, in words; empty when nothing speaks against it.

    :param takes: what the tool says that it takes, empty when it does not say.
    """
    shown = parameter.next or ""
    if parameter.read_only:
        return "is read-only"
    if _ARRAY.match(shown):
        return "is an array: those are not set here"
    if number(shown) is None:
        return f"has the value {shown or '(not readable)'}, to which there would be no way back"
    kind = list(takes) or _kind(parameter)
    if kind == list(_BOOLEANS):
        return "" if number(value) in (0, 1) and word(value) in (None, *_BOOLEANS) else "takes true or false"
    if kind == ["NUM"]:
        return "" if word(value) is None else "takes a number"
    if word(value) in (None, *kind):
        return ""
    if kind:
        return f"takes {', '.join(kind)}"
    return "takes neither true nor false" if word(value) in _BOOLEANS else ""


def _kind(parameter: Parameter) -> List[str]:
    """What a parameter takes, by what it shows; empty when that does not tell."""
    words = {word(value) for value in (parameter.default, parameter.current, parameter.next) if value}
    if words <= {None}:
        return ["NUM"]
    return list(_BOOLEANS) if words <= set(_BOOLEANS) else []


def _complaint(text: str, errors: str, status: int) -> str:
    """The tool's own words; it writes its errors to standard output, below what it printed before."""
    lines = [line.strip() for line in (*errors.splitlines(), *text.splitlines())]
    said = [line[4:] for line in lines if line.startswith("-E- ")] or [line for line in lines if line][:1]
    return " ".join(said).rstrip(".") or f"exit status {status}"
