# Copyright: the topovirt.kvm authors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Record a converted host made of files, so that later versions can be shown to undo what this one did.

``python -m tests.tools.inside tests.tools.record_conversion``, once for each schema of the journal, before its release:
an archive is never made anew. ``tests/unit/plugins/module_utils/_host/test_older_journals.py`` goes back from each.
"""

from __future__ import annotations

import io
import json
import sys
import tarfile
import tempfile
from pathlib import Path

from tests.tools import workspace

sys.path.insert(0, str(workspace.COLLECTIONS))

from ansible_collections.topovirt.kvm.plugins.module_utils._host.journal import SCHEMA
from ansible_collections.topovirt.kvm.tests.unit.plugins.module_utils._host.fake_host import FakeHost

RECORDED = workspace.ROOT / "tests/unit/recorded"
DIRECTORIES = ("boot", "etc", "opt", "root", "usr", "var")


def archive(schema: int) -> Path:
    return RECORDED / f"conversion-schema-{schema}.tar.xz"


def record(host: FakeHost, target: Path) -> None:
    """What lies on the host's disk, and what its package manager and systemd know."""

    def plain(info: tarfile.TarInfo) -> tarfile.TarInfo:
        info.mtime, info.uname, info.gname = 0, "", ""
        return info

    programs = json.dumps({"installed": host.installed, "units": host.units}).encode()
    with tarfile.open(target, "w:xz") as tar:
        for name in DIRECTORIES:
            if (host.root / name).exists():
                tar.add(host.root / name, name, filter=plain)
        info = tarfile.TarInfo("programs.json")
        info.size = len(programs)
        tar.addfile(info, io.BytesIO(programs))


def main() -> int:
    target = archive(SCHEMA)
    if target.exists():
        print(f"{target.relative_to(workspace.ROOT)} is there and is never made anew", file=sys.stderr)
        return 1
    with tempfile.TemporaryDirectory() as folder:
        host = FakeHost(Path(folder))
        host.convert()
        record(host, target)
    print(target.relative_to(workspace.ROOT))
    return 0


if __name__ == "__main__":
    sys.exit(main())
