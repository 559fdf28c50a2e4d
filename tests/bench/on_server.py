# Copyright: the topovirt.kvm authors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""A booted server against what is said of it: its recorded tree, and its own lstopo."""

from __future__ import annotations

import json
import shlex
import subprocess
import tempfile
import time
import xml.etree.ElementTree as ET
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from ansible_collections.topovirt.kvm.plugins.module_utils._topology.capture import IN_GUESTS, script, unpack
from ansible_collections.topovirt.kvm.plugins.module_utils._topology.guest import Agent, capture_guest
from ansible_collections.topovirt.kvm.plugins.module_utils._topology.reader import read_topology

from tests.bench import lstopo
from tests.bench.against_lstopo import CHECKS
from tests.bench.lstopo import OPTIONS
from tests.twin import agreement
from tests.twin.lifecycle import Server, TwinError

_AGENT_SECONDS, _GUEST_SECONDS = 120, 600

# The server has the package but not installed, and must stay as it is.
LSTOPO = (
    "set -e; d=$(mktemp -d /dev/shm/lstopo.XXXXXX); trap 'rm -r $d' EXIT; "
    f"dpkg -x $(find /srv/repo -name 'hwloc-nox_*.deb') $d; $d/usr/bin/lstopo-no-graphics {' '.join(OPTIONS)}"
)


def agree(server: Server) -> int:
    """Compare, print, and return 0 when nothing differs, else 1."""
    differing = lstopo_differences(server)
    for name in differing:
        print(f"lstopo on the server says otherwise: {name}")
    print(f"lstopo on the server: {len(CHECKS)} kinds of facts, {len(differing)} differ from the reader's")
    return 1 if agreement.report(server) or differing else 0


def lstopo_differences(server: Server) -> list[str]:
    """Kinds of facts in which lstopo, run on the server, and the reader, given the server's captured tree, differ."""
    archive = _output(server, script())
    theirs = ET.fromstring(_output(server, LSTOPO))
    with tempfile.TemporaryDirectory() as folder:
        unpack(archive, Path(folder))
        ours = read_topology(Path(folder))
    said = {name: check(ours, theirs) for name, check in CHECKS.items()}
    return [name for name, (one, other) in said.items() if one != other]


def guest_differences(server: Server, vm: str) -> list[str]:
    """Kinds of facts in which lstopo and the reader differ, given the files that a guest's kernel shows."""
    archive = capture_guest(
        _agent(server, vm), time.monotonic() + _GUEST_SECONDS, directories=(*IN_GUESTS, *lstopo.FILES)
    )
    return archive_differences(archive)


def archive_differences(archive: bytes) -> list[str]:
    """The same of files that were captured with ``lstopo.FILES``."""
    with tempfile.TemporaryDirectory() as folder:
        unpack(archive, Path(folder))
        ours, theirs = read_topology(Path(folder)), lstopo.objects(Path(folder))
    said = {name: check(ours, theirs) for name, check in CHECKS.items()}
    return [name for name, (one, other) in said.items() if one != other]


def _agent(server: Server, vm: str) -> Agent:
    def execute(command: Mapping[str, Any]) -> Any:
        words = f"virsh qemu-agent-command --timeout {_AGENT_SECONDS} {vm} {shlex.quote(json.dumps(command))}"
        return json.loads(_output(server, words)).get("return", {})

    return execute


def _output(server: Server, command: str) -> bytes:
    done = subprocess.run([*server.ssh_command(), command], capture_output=True, check=False)
    if done.returncode != 0:
        raise TwinError(f"{command[:60]} failed on the server: {done.stderr.decode(errors='replace').strip()[-300:]}")
    return done.stdout
