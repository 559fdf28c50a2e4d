# Copyright: the topovirt.kvm authors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Build the collection as it ships, and say what is in it."""

from __future__ import annotations

import json
import os
import shutil
import tarfile
from pathlib import Path

from tests.tools import progress, workspace


def build(folder: Path, log: Path) -> Path:
    """Build the tarball from the checkout into an empty folder and return its path."""
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir(parents=True)
    galaxy = str(workspace.VENV / "bin/ansible-galaxy")
    command = [galaxy, "collection", "build", "--output-path", str(folder), str(workspace.ROOT)]
    if progress.run_logged(command, log, workspace.environment(os.environ), workspace.ROOT):
        raise SystemExit(f"the collection cannot be built:\n{progress.tail(log, 20)}")
    return next(folder.glob("*.tar.gz"))


def install(tarball: Path, collections: Path, log: Path) -> None:
    """Install the tarball, and nothing else, into an empty collections folder, as an operator without network would."""
    shutil.rmtree(collections, ignore_errors=True)
    galaxy = str(workspace.VENV / "bin/ansible-galaxy")
    command = [galaxy, "collection", "install", "--offline", "--collections-path", str(collections), str(tarball)]
    # Its own path only: a collection that is found elsewhere counts as installed, and nothing is done.
    if progress.run_logged(command, log, workspace.environment(os.environ, collections), workspace.ROOT):
        raise SystemExit(f"the collection cannot be installed:\n{progress.tail(log, 20)}")


def shipped(tarball: Path) -> list[str]:
    """The files that the tarball takes from the checkout."""
    with tarfile.open(tarball) as archive:
        listing = archive.extractfile("FILES.json")
        assert listing is not None
        entries = json.load(listing)["files"]
    return [entry["name"] for entry in entries if entry["ftype"] == "file"]
