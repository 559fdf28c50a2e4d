# Copyright: the topovirt.kvm authors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""A flood of messages does not fill the disk."""

from __future__ import annotations

from pathlib import Path

from tests.twin.capped_log import CappedLog


def test_messages_that_differ_in_numbers_are_counted(tmp_path: Path) -> None:
    log = CappedLog(tmp_path / "log", repeats=3)
    for number in range(1000):
        log.feed(b"iommu map to non memory area 0x%x\n" % (number << 12))
    log.feed(b"something else\n")
    log.close()
    lines = (tmp_path / "log").read_text().splitlines()
    assert lines[:4] == [f"iommu map to non memory area {n << 12:#x}" for n in range(3)] + ["something else"]
    assert lines[4:] == ["[997 more lines like: iommu map to non memory area #]"]


def test_a_flood_of_different_messages_ends_at_the_limit(tmp_path: Path) -> None:
    log = CappedLog(tmp_path / "log", limit_bytes=1000)
    for number in range(1000):
        log.feed(b"x" * (number % 97) + bytes([65 + number % 26]) * (number // 97) + b"\n")
    log.close()
    assert (tmp_path / "log").stat().st_size < 6000
    assert "the log had reached its limit" in (tmp_path / "log").read_text()


def test_lines_may_come_in_pieces_and_the_last_one_counts(tmp_path: Path) -> None:
    log = CappedLog(tmp_path / "log")
    for piece in (b"he", b"llo\nwor", b"ld"):
        log.feed(piece)
    log.close()
    assert (tmp_path / "log").read_text() == "hello\nworld\n"
