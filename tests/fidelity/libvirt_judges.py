# Copyright: the topovirt.kvm authors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""libvirt itself as a judge of definitions: its schema, and its translation to QEMU's command line.

The translation is done by the real parser, address allocator and validator, without a daemon, without KVM
(https://libvirt.org/drvqemu.html, embedded driver).
"""

from __future__ import annotations

import shlex
import tempfile
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from lxml import etree

from tests.twin.images import process
from tests.twin.images.libvirt_tree import SCHEMA, SHARED

# The driver's own folder lies in memory that goes with the command; the first file makes it ask QEMU what it can do.
_TRANSLATE = f"""
cd {SHARED}
for file in *.xml; do
    virsh -q -c 'qemu:///embed?root=/run/embedded' domxml-to-native qemu-argv --xml "$file" \
        >"${{file%.xml}}.argv" 2>"${{file%.xml}}.error" && : >"${{file%.xml}}.good"
done
exit 0
"""


@dataclass(frozen=True)
class Translation:
    """What libvirt makes of a definition."""

    argv: list[str]  # environment assignments and the emulator come first; empty when refused
    error: str  # why it was refused


class Schema:
    """libvirt's RELAX NG schema of domains."""

    def __init__(self, tree: Path) -> None:
        self._schema = etree.RelaxNG(etree.parse(str(tree / SCHEMA)))

    def faults(self, xml: str) -> list[str]:
        """What the schema says against a definition; nothing when it is valid."""
        if self._schema.validate(etree.fromstring(xml)):
            return []
        return [f"line {entry.line}: {entry.message}" for entry in self._schema.error_log]


def translate(tree: Path, definitions: Sequence[str]) -> list[Translation]:
    """Translate definitions (see checked_copy.py) to command lines, in their order.

    :param tree: as baked by libvirt_tree.py.
    :raises BakeError: libvirt cannot be started.
    """
    with tempfile.TemporaryDirectory() as folder:
        share, log = Path(folder) / "share", Path(folder) / "log"
        share.mkdir()
        names = [f"{number:04}" for number in range(len(definitions))]
        for name, text in zip(names, definitions, strict=True):
            (share / f"{name}.xml").write_text(text, encoding="utf-8")
        # the tree has no locales
        process.chroot(tree, ["dash", "-c", _TRANSLATE], log, env={"LC_ALL": "C"}, share=share)
        return [_read(share, name) for name in names]


def _read(share: Path, name: str) -> Translation:
    if (share / f"{name}.good").exists():
        return Translation(shlex.split((share / f"{name}.argv").read_text(encoding="utf-8")), "")
    said = (share / f"{name}.error").read_text(encoding="utf-8").splitlines()
    lines = [line.removeprefix("error: ") for line in said if line.strip()]
    return Translation([], " ".join(lines) or "it says nothing")
