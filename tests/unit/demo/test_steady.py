# Copyright: the topovirt.kvm authors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Guests that answer are left alone, silent ones are reset and that is told, hopeless ones are a failure."""

from __future__ import annotations

from typing import Any, cast

import pytest

from tests.demo import steady
from tests.demo.operator import Failure
from tests.twin.lifecycle import Server


class Guests:
    """A server whose guests answer after a number of resets."""

    def __init__(self, needed: dict[str, int]) -> None:
        self.needed = needed
        self.reset: list[str] = []

    def copy_from(self, command: str) -> bytes:
        if command.startswith("virsh --quiet list"):
            return "\n".join(self.needed).encode()
        if command.startswith("for vm in"):
            return "\n".join(name for name in self.needed if self.reset.count(name) < self.needed[name]).encode()
        self.reset += [part.removeprefix("virsh reset ") for part in command.split("; ")]
        return b""


def settle(needed: dict[str, int], monkeypatch: pytest.MonkeyPatch) -> tuple[int, list[str], list[str]]:
    guests, said = Guests(needed), list[str]()
    clock = iter(range(0, 1_000_000, 50))
    monkeypatch.setattr("time.sleep", lambda _seconds: None)
    count = steady.settle(cast(Server, cast(Any, guests)), said.append, lambda: float(next(clock)))
    return count, guests.reset, said


def test_guests_that_answer_are_left_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    assert settle({"a": 0, "b": 0}, monkeypatch) == (0, [], [])


def test_only_the_silent_guest_is_reset_and_told(monkeypatch: pytest.MonkeyPatch) -> None:
    count, resets, said = settle({"a": 0, "b": 2}, monkeypatch)
    assert (count, resets) == (2, ["b", "b"])
    assert len(said) == 2 and all("b" in text for text in said)


def test_a_guest_that_never_answers_is_a_failure(monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(Failure, match="b does not answer"):
        settle({"a": 0, "b": 99}, monkeypatch)
