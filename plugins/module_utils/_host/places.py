# Copyright: the topovirt.kvm authors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Paths and limits that everything on the host shares."""

from __future__ import annotations

from pathlib import Path
from typing import Callable, List, Tuple

# (arguments) -> (exit status, standard output, standard error); OSError when the program is not there.
Run = Callable[[List[str]], Tuple[int, str, str]]

# Everything of ours on the host lies here, root only; all of it is gone after the way back.
STATE = Path("var/lib/topovirt")
# Journals of modules that do one step of a conversion alone, one directory each.
FACES = STATE / "faces"
# Of these, modules whose doing is no part of a conversion: neither of both excludes the other.
APART = ("nic_firmware",)
# Below the place of each journal.
JOURNAL = Path("journal/records.jsonl")
SAVED = Path("saved")
HOST_FILE = STATE / "host.json"
MODULE_IDS = STATE / "module-ids.json"
DEVICES = STATE / "devices"
BOOT_STATE = STATE / "boot.json"
# What registers held before they were written in this boot; another boot begins without it, and so do the registers.
REGISTERS_FOUND = Path("run/topovirt-registers")
LOCK = Path("run/topovirt.lock")

# The word on the kernel command line under which units and hooks of ours act.
TOKEN = "topovirt"


def output(run: Run, *words: str) -> str:
    """Standard output of a command, empty when it fails or does not exist: for questions, not for actions."""
    try:
        status, out, _errors = run(list(words))
    except OSError:
        return ""
    return out if status == 0 else ""


def token_of(cmdline: str) -> str:
    """The id in ``topovirt=<id>`` on a kernel command line, empty when there is none."""
    return next((word[len(TOKEN) + 1 :] for word in cmdline.split() if word.startswith(f"{TOKEN}=")), "")
