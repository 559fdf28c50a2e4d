# Copyright: the topovirt.kvm authors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""The one error that logic raises and faces turn into a failure."""

from __future__ import annotations


class TopovirtError(Exception):
    """A refusal or failure that a user can act on.

    :param message: which element, which value, what was expected and why.
    :param hint: what to do about it; may be empty.
    """

    def __init__(self, message: str, hint: str = "") -> None:
        super().__init__(message)
        self.message = message
        self.hint = hint

    def __str__(self) -> str:
        if not self.hint:
            return self.message
        between = "\n" if "\n" in self.message else " "  # below a list of reasons the hint has a line of its own
        return f"{self.message}{between}{self.hint}"
