# Copyright: the topovirt.kvm authors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""The package repository inside the image: a flat folder with an index, its packages quick to unpack.

Unpacking xz costs minutes on an emulated processor, so the payload of each package is stored uncompressed.
"""

from __future__ import annotations

import hashlib
import lzma
from collections.abc import Iterator
from pathlib import Path

from tests.twin.images import process
from tests.twin.images.process import BakeError

MAGIC = b"!<arch>\n"
HEADER = 60


def members(data: bytes) -> Iterator[tuple[str, bytes]]:
    """Names and contents of an ar archive (deb(5)).

    :raises BakeError: the data is no such archive.
    """
    if not data.startswith(MAGIC):
        raise BakeError("A package of the repository is no ar archive.")
    offset = len(MAGIC)
    while offset < len(data):
        header = data[offset : offset + HEADER]
        size = int(header[48:58])
        start = offset + HEADER
        yield header[:16].decode().strip().rstrip("/"), data[start : start + size]
        offset = start + size + size % 2


def archive(parts: list[tuple[str, bytes]]) -> bytes:
    """An ar archive as deb(5) wants it."""
    out = [MAGIC]
    for name, content in parts:
        out.append(f"{name:<16}{0:<12}{0:<6}{0:<6}{'100644':<8}{len(content):<10}`\n".encode())
        out.append(content)
        if len(content) % 2:
            out.append(b"\n")
    return b"".join(out)


def without_compression(deb: bytes) -> bytes:
    """The same package with its xz members stored uncompressed."""
    parts = []
    for name, content in members(deb):
        if name.endswith(".xz"):
            parts.append((name.removesuffix(".xz"), lzma.decompress(content)))
        else:
            parts.append((name, content))
    return archive(parts)


def index_entry(control: str, filename: str, deb: bytes) -> str:
    """One block of a Packages index."""
    return f"{control.rstrip()}\nFilename: ./{filename}\nSize: {len(deb)}\nSHA256: {hashlib.sha256(deb).hexdigest()}\n"


def make(downloads: Path, target: Path) -> dict[str, str]:
    """Fill ``target`` from the packages in ``downloads`` and write its index; returns package -> version."""
    target.mkdir(parents=True, exist_ok=True)
    blocks, versions = [], {}
    for source in sorted(downloads.glob("*.deb")):
        control = process.output(["dpkg-deb", "-f", source])
        fields = dict(line.split(": ", 1) for line in control.splitlines() if ": " in line and line[0] != " ")
        deb = without_compression(source.read_bytes())
        # the epoch's colon is left out of the name, as in Debian's archive
        name = f"{fields['Package']}_{fields['Version'].split(':', 1)[-1]}_{fields['Architecture']}.deb"
        (target / name).write_bytes(deb)
        blocks.append(index_entry(control, name, deb))
        versions[fields["Package"]] = fields["Version"]
    if not versions:
        raise BakeError(f"No packages were downloaded to {downloads}.")
    (target / "Packages").write_text("\n".join(blocks))
    return versions
