# Copyright: the topovirt.kvm authors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""A log file that a flood cannot fill the disk with.

QEMU repeats some messages millions of times ("iommu map to non memory area" whenever a nested guest maps device memory
for peers). Lines that differ in numbers alone count as the same; each is kept a few times and counted from then on.
"""

from __future__ import annotations

import re
from pathlib import Path

REPEATS = 20
LIMIT_BYTES = 4 << 20
_NUMBERS = re.compile(rb"0x[0-9a-fA-F]+|\d+")


class CappedLog:
    """Takes pieces of output as they come, writes whole lines."""

    def __init__(self, path: Path, repeats: int = REPEATS, limit_bytes: int = LIMIT_BYTES) -> None:
        self._file = path.open("ab")
        self._repeats = repeats
        self._left = limit_bytes
        self._rest = b""
        self._seen: dict[bytes, int] = {}
        self._beyond = 0

    def feed(self, data: bytes) -> None:
        """Take the next piece of output."""
        *lines, rest = (self._rest + data).split(b"\n")
        # A line that never ends is not kept in memory for ever.
        self._rest = rest[:LIMIT_BYTES]
        for line in lines:
            self._line(line)
        self._file.flush()

    def _line(self, line: bytes) -> None:
        if self._left <= 0:
            self._beyond += 1
            return
        shape = _NUMBERS.sub(b"#", line)
        self._seen[shape] = self._seen.get(shape, 0) + 1
        if self._seen[shape] <= self._repeats:
            self._file.write(line + b"\n")
            self._left -= len(line) + 1

    def close(self) -> None:
        """Write what was left out, as counts."""
        if self._rest:
            self._line(self._rest)
        for shape, count in self._seen.items():
            if count > self._repeats:
                self._file.write(b"[%d more lines like: %s]\n" % (count - self._repeats, shape))
        if self._beyond:
            self._file.write(b"[%d more lines: the log had reached its limit]\n" % self._beyond)
        self._file.close()
