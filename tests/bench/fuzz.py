# Copyright: the topovirt.kvm authors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Trees that no machine should have: each file, directory and link of a small machine in turn replaced by rubbish.

Whatever is there, the reader answers with facts of the published shape, what is unknown being null, or with the one
error of the collection. Hypothesis chooses what is replaced by what and makes a failure small.
"""

from __future__ import annotations

import json
import os
import shutil
import tempfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from ansible_collections.topovirt.kvm.plugins.module_utils._errors import TopovirtError
from ansible_collections.topovirt.kvm.plugins.module_utils._topology.facts import summarize
from ansible_collections.topovirt.kvm.plugins.module_utils._topology.reader import read_topology
from ansible_collections.topovirt.kvm.plugins.module_utils._topology.text import topology_text
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from tests.bench.published import violations
from tests.twin import description, mutations, recorded

MACHINE = "pcie-l40s"  # the smallest, so that the most trees are read in a given time
MOST_AT_ONCE = 8
HUGE = b"0-4095,1,2,3 0x1 " * (1 << 16)

TEXTS = (
    "", "\n", "-1", "-9223372036854775809", "99999999999999999999999999", "0x", "0xzz", "\u0662", "\u00b2", "1e9",
    "nan", "0-", "-0", "3-1", "0-99999999", "1,,2", ",", "(null)", "none", "[", "{", "{}", "[]", '"a"', "null", "true",
    "0000:00:00.0", "32.0 GT/s PCIe", "255", "63", "0", "4294967296", " ", "\x00", "\t\t", "../..", "a" * 5000,
    "MemTotal: -1 kB", "Node 0 MemTotal: 99999999999999999999 kB", "0x0 0x0 0x0\n" * 40, "0xffffffffffffffff 0x0 0x200",
)  # fmt: skip
BINARIES = (b"\xff" * 64, b"\xff" * 4096, b"\x00" * 4096, b"\x80\x81\xfe", bytes(range(256)) * 16, HUGE)
TARGETS = ("nowhere", "/", "..", ".", "../../..", "/proc/self/fd/0", "loop", "../0000:zz:00.0", "x" * 255)


@dataclass(frozen=True)
class Harm:
    """What takes the place of an entry."""

    kind: str  # "gone", "text", "binary", "link", "directory", "fifo"
    text: str = ""
    binary: bytes = b""


HARM = st.one_of(
    st.sampled_from([Harm("gone"), Harm("directory"), Harm("fifo")]),
    st.sampled_from(TEXTS).map(lambda text: Harm("text", text)),
    st.text(max_size=40).map(lambda text: Harm("text", text)),
    st.sampled_from(BINARIES).map(lambda data: Harm("binary", binary=data)),
    st.binary(max_size=300).map(lambda data: Harm("binary", binary=data)),
    st.sampled_from(TARGETS).map(lambda target: Harm("link", target)),
)


def small_machine(root: Path) -> list[str]:
    """A tree with something in every place that the reader looks at; its entries, relative to it."""
    recorded.record(description.load(MACHINE), root, drivers="vfio")
    mutations.a_virtual_function(root)
    (root / "run/libvirt/qemu").mkdir(parents=True)
    (root / "run/libvirt/qemu/vm.xml").write_text(
        "<domstatus><domain><devices/></domain></domstatus>", encoding="utf-8"
    )
    (root / "var/lib/topovirt/captured-software.json").write_text('{"libvirt": "11.3.0"}', encoding="utf-8")
    entries = []
    for directory, directories, files in os.walk(root):
        entries += [os.path.relpath(os.path.join(directory, name), root) for name in (*directories, *files)]
    return sorted(entries)


@contextmanager
def harmed(root: Path, entry: str, harm: Harm) -> Iterator[None]:
    """Replace an entry; afterwards it is what it was."""
    place, aside = root / entry, root.parent / "aside" / entry.replace("/", "!")[-200:]
    # Harm above it may have taken it away, or made its folder a link that leads out of the tree.
    inside = os.path.realpath(place.parent) == str(place.parent)
    if not inside or not os.path.lexists(place) or os.path.lexists(aside):
        yield
        return
    os.rename(place, aside)
    try:
        if harm.kind == "text":
            place.write_bytes(harm.text.encode("utf-8", "replace"))
        elif harm.kind == "binary":
            place.write_bytes(harm.binary)
        elif harm.kind == "link":
            os.symlink(place.name if harm.text == "loop" else harm.text, place)
        elif harm.kind == "directory":
            place.mkdir()
        elif harm.kind == "fifo":
            os.mkfifo(place)
        yield
    finally:
        if place.is_dir() and not place.is_symlink():
            shutil.rmtree(place)
        elif os.path.lexists(place):
            place.unlink()
        os.rename(aside, place)


def check(root: Path) -> None:
    """Read the tree as it is now.

    :raises AssertionError: the answer is neither facts of the published shape nor one error with a message.
    """
    try:
        topology = read_topology(root)
    except TopovirtError as error:
        assert str(error).strip()
        return
    assert violations(topology) == []
    assert json.loads(json.dumps(topology)) == topology
    topology_text(topology)
    summarize(topology, None)


@dataclass
class Count:
    trees: int = 0
    mutations: int = 0


def fuzz(trees: int, derandomize: bool, tell: Callable[[Count], None] | None = None) -> Count:
    """Read this many harmed trees, each with up to ``MOST_AT_ONCE`` mutations.

    :param derandomize: the same trees each time.
    :raises AssertionError: or whatever the reader let through, with the smallest tree that shows it.
    """
    count = Count()
    memory = "/dev/shm" if os.access("/dev/shm", os.W_OK) else None
    with tempfile.TemporaryDirectory(dir=memory) as folder:
        root = Path(folder).resolve() / "tree"
        (root.parent / "aside").mkdir()
        entries = small_machine(root)
        check(root)

        @settings(
            max_examples=trees,
            derandomize=derandomize,
            database=None,
            deadline=None,
            suppress_health_check=list(HealthCheck),
        )
        @given(st.lists(st.tuples(st.sampled_from(entries), HARM), min_size=1, max_size=MOST_AT_ONCE))
        def read(harms: list[tuple[str, Harm]]) -> None:
            count.trees += 1
            count.mutations += len(harms)
            if tell is not None:
                tell(count)
            _read_harmed(root, harms)

        read()
    return count


def _read_harmed(root: Path, harms: list[tuple[str, Harm]]) -> None:
    if not harms:
        check(root)
        return
    with harmed(root, *harms[0]):
        _read_harmed(root, harms[1:])
