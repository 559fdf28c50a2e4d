# Copyright: the topovirt.kvm authors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Where the checkout keeps what it makes, and the environment in which its tools run.

Nothing that runs here depends on the user's home folder: tools get a home of their own below ``.work/``.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
WORK = ROOT / ".work"
VENV = WORK / "venv"
IMPORTER_VENV = WORK / "venv-importer"
HOME = WORK / "home"
COLLECTIONS = WORK / "collections"

SYSTEM_PATH = "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"


def cache_dir(environ: Mapping[str, str]) -> Path:
    """What outlives a checkout: baked images, downloaded wheels. ``TOPOVIRT_CACHE`` names another place."""
    if environ.get("TOPOVIRT_CACHE"):
        return Path(environ["TOPOVIRT_CACHE"])
    if environ.get("XDG_CACHE_HOME"):
        return Path(environ["XDG_CACHE_HOME"]) / "topovirt"
    return Path(environ.get("HOME") or "/root") / ".cache" / "topovirt"


def environment(environ: Mapping[str, str], collections: Path = COLLECTIONS) -> dict[str, str]:
    """The environment for every tool: our virtual environment first, a home of our own, one locale, no colours."""
    kept = {name: value for name, value in environ.items() if not name.startswith(("ANSIBLE_", "PYTHON", "MOLECULE_"))}
    return {
        **kept,
        "PATH": f"{VENV / 'bin'}:{SYSTEM_PATH}",
        "HOME": str(HOME),
        "TOPOVIRT_CACHE": str(cache_dir(environ)),
        "VIRTUAL_ENV": str(VENV),
        "PYTHONPATH": f"{collections}:{ROOT}",
        "PYTHONUNBUFFERED": "1",
        "ANSIBLE_CONFIG": str(ROOT / "ansible.cfg"),
        "ANSIBLE_COLLECTIONS_PATH": str(collections),
        "ANSIBLE_HOME": str(HOME / ".ansible"),
        "ANSIBLE_NOCOLOR": "1",
        "NO_COLOR": "1",
        "LC_ALL": "C.UTF-8",
    }
