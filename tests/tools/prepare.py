# Copyright: the topovirt.kvm authors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Look whether this machine can run the tests and the demo, then make what they need below ``.work/``.

``python3 -m tests.tools.prepare [--emulate]`` runs on the system's own Python before anything is installed: standard
library only. Everything that is missing is named at once. A second run finds everything made and takes a moment.
``--emulate``: what follows boots an emulated server, so its mirrors are asked too.
"""

from __future__ import annotations

import argparse
import fcntl
import hashlib
import os
import re
import shutil
import subprocess
import sys
import tempfile
import time
from pathlib import Path

from tests.tools import workspace

RELEASES = ("12", "13")  # of Debian: where the pinned tools and the image recipes are tried
OLDEST_PYTHON = (3, 11)  # ansible-core 2.19, the oldest that we support on a controller
GIB = 1024**3
DISK_COLD_GIB = 12  # baked images, overlays and the virtual environments
DISK_WARM_GIB = 4  # overlays of one run
# Stands in for ansible-test's own pip installer: run with the installer's flags it installs pip, otherwise it is pip.
STARTER = """\
import runpy
import sys

sys.path.insert(0, {wheel!r})
if "--no-setuptools" in sys.argv:
    sys.argv = ["pip", "install", "--no-index", "--no-deps", "--quiet", {wheel!r}]
runpy.run_module("pip", run_name="__main__")
"""
MEMORY_GIB = 16
MEMORY_SEEN_GIB = 15  # what a machine of 16 GiB reports after firmware and kernel took theirs


def apt_packages(root: Path = workspace.ROOT) -> list[str]:
    """The Debian packages that tests and demo need; README's first line repeats them (a test compares)."""
    return (root / "tests/tools/requirements-apt.txt").read_text(encoding="utf-8").split()


def apt_line(packages: list[str]) -> str:
    return f"apt-get update && apt-get install -y --no-install-recommends {' '.join(packages)}"


def release_problem(os_release: str) -> str | None:
    fields = dict(re.findall(r'^(\w+)="?([^"\n]*)"?$', os_release, re.MULTILINE))
    found = f"{fields.get('ID', 'unknown')} {fields.get('VERSION_ID', 'without a version')}"
    if fields.get("ID") == "debian" and fields.get("VERSION_ID") in RELEASES:
        return None
    return f"this is {found}; the tests run on Debian {' or '.join(RELEASES)}"


def memory_problem(meminfo: str) -> str | None:
    total = int(re.search(r"^MemTotal:\s+(\d+) kB", meminfo, re.MULTILINE).group(1)) * 1024  # type: ignore[union-attr]
    if total >= MEMORY_SEEN_GIB * GIB:
        return None
    return f"{total / GIB:.1f} GiB of memory; the emulated server needs a machine of {MEMORY_GIB} GiB"


def disk_problems(places: list[Path], needed_gib: int) -> list[str]:
    """One complaint per file system that is short of space."""
    problems, seen = [], set()
    for place in places:
        existing = next(folder for folder in (place, *place.parents) if folder.exists())
        device = existing.stat().st_dev
        if device in seen:
            continue
        seen.add(device)
        free = shutil.disk_usage(existing).free
        if free < needed_gib * GIB:
            problems.append(f"{free / GIB:.1f} GiB free on the file system of {place}; {needed_gib} GiB are needed")
    return problems


def missing_packages(wanted: list[str]) -> list[str]:
    if not shutil.which("dpkg-query"):
        return wanted
    done = subprocess.run(
        ["dpkg-query", "-W", "-f", "${Package} ${db:Status-Status}\n", *wanted],
        capture_output=True,
        text=True,
        check=False,
    )
    installed = {line.split()[0] for line in done.stdout.splitlines() if line.endswith(" installed")}
    return [package for package in wanted if package not in installed]


def mirror_problem() -> str | None:
    """Ask the mirror of apt's own configuration, with apt's own client: proxies and certificates are apt's business."""
    if not shutil.which("apt-get"):
        return "apt-get: not found, so there is no mirror to install from"
    done = subprocess.run(
        ["apt-get", "indextargets", "--format", "$(REPO_URI) $(RELEASE)"], capture_output=True, text=True, check=False
    )
    targets = [line.split() for line in dict.fromkeys(done.stdout.splitlines()) if len(line.split()) == 2]
    if not targets:
        return "apt knows no mirror: configure one in /etc/apt/sources.list.d and run apt-get update"
    with tempfile.TemporaryDirectory() as folder:
        for uri, release in targets:
            address = f"{uri.rstrip('/')}/dists/{release}/InRelease"
            done = subprocess.run(
                [
                    "/usr/lib/apt/apt-helper",
                    "-o",
                    "Acquire::Retries=1",
                    "-o",
                    "Acquire::http::Timeout=20",
                    "download-file",
                    address,
                    f"{folder}/InRelease",
                ],
                capture_output=True,
                text=True,
                check=False,
            )
            if done.returncode == 0:
                return None
    return f"no answer from the mirrors that apt is configured with, last asked: {address}"


def problems(emulate: bool, environ: dict[str, str]) -> list[str]:
    cache = workspace.cache_dir(environ)
    warm = (cache / "images").is_dir() and any((cache / "images").iterdir())
    found = [
        release_problem(Path("/etc/os-release").read_text(encoding="utf-8")),
        memory_problem(Path("/proc/meminfo").read_text(encoding="utf-8")),
        None if os.geteuid() == 0 else "not root: baking images and the emulated server's devices need it",
        None if sys.version_info >= OLDEST_PYTHON else f"Python {sys.version.split()[0]}; 3.11 or newer is needed",
        *disk_problems([workspace.WORK, cache], DISK_WARM_GIB if warm else DISK_COLD_GIB),
        mirror_problem() if emulate and not warm else None,
    ]
    missing = missing_packages(apt_packages())
    if missing:
        found.append(f"Debian packages are missing; install them with:\n    {apt_line(missing)}")
    return [problem for problem in found if problem]


def pip_install(venv: Path, requirements: Path, cache: Path) -> None:
    """Make a virtual environment that holds exactly what the file names; done before: nothing to do."""
    stamp = venv / ".requirements"
    wanted = hashlib.sha256(requirements.read_bytes() + sys.version.encode()).hexdigest()
    if stamp.is_file() and stamp.read_text(encoding="utf-8") == wanted:
        return
    started = time.monotonic()
    print(f"setup: {venv.name} from {requirements.relative_to(workspace.ROOT)} (usually half a minute)", flush=True)
    run([sys.executable, "-m", "venv", "--clear", str(venv)])
    run(
        [
            str(venv / "bin/pip"),
            "--disable-pip-version-check",
            "--cache-dir",
            str(cache / "pip"),
            "install",
            "--quiet",
            "--no-warn-script-location",
            "-r",
            str(requirements),
        ]
    )
    stamp.write_text(wanted, encoding="utf-8")
    print(f"setup: {venv.name} ready after {time.monotonic() - started:.0f} s", flush=True)


def sanity_pip(home: Path, cache: Path) -> None:
    """Give ansible-test the pip it starts its environments with.

    ``ansible-test sanity --venv`` first fetches a small installer from a server of its own. We put one where it looks:
    it installs that version of pip from the wheel beside it.
    """
    packages = next((workspace.VENV / "lib").glob("python3.*")) / "site-packages"
    source = packages / "ansible_test/_internal/python_requirements.py"
    version = re.search(r"\bpip='([0-9.]+)'", source.read_text(encoding="utf-8"))
    if version is None:
        raise SystemExit(f"setup: {source} no longer says which pip ansible-test wants; teach tests/tools/prepare.py")
    folder = home / ".ansible/test/cache"
    script = folder / f"get_pip_{version[1].replace('.', '_')}.py"
    wheel = folder / f"pip-{version[1]}-py3-none-any.whl"
    content = STARTER.format(wheel=str(wheel))
    if wheel.is_file() and script.is_file() and script.read_text(encoding="utf-8") == content:
        return
    folder.mkdir(parents=True, exist_ok=True)
    run(
        [
            str(workspace.VENV / "bin/pip"),
            "--disable-pip-version-check",
            "--cache-dir",
            str(cache / "pip"),
            "download",
            "--quiet",
            "--no-deps",
            "--dest",
            str(folder),
            f"pip=={version[1]}",
        ]
    )
    script.write_text(content, encoding="utf-8")


def link_collection() -> None:
    """Make the checkout importable and runnable as the collection topovirt.kvm."""
    link = workspace.COLLECTIONS / "ansible_collections/topovirt/kvm"
    link.parent.mkdir(parents=True, exist_ok=True)
    target = os.path.relpath(workspace.ROOT, link.parent)
    if not link.is_symlink() or os.readlink(link) != target:
        link.unlink(missing_ok=True)
        link.symlink_to(target)


def run(command: list[str]) -> None:
    """Run one step of the setup; what it says is shown when it fails."""
    done = subprocess.run(
        command, stdin=subprocess.DEVNULL, capture_output=True, text=True, errors="replace", check=False
    )
    if done.returncode:
        raise SystemExit(
            f"{done.stdout}{done.stderr}\nsetup: '{' '.join(command)}' failed with exit status {done.returncode}; "
            "it said what stands above"
        )


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--emulate", action="store_true", help="an emulated server will be booted afterwards")
    options = parser.parse_args()
    environ = dict(os.environ)
    found = problems(options.emulate, environ)
    if found:
        print("This machine cannot run it yet:", file=sys.stderr)
        for problem in found:
            print(f"  - {problem}", file=sys.stderr)
        return 1
    workspace.WORK.mkdir(exist_ok=True)
    cache = workspace.cache_dir(environ)
    with (workspace.WORK / "setup.lock").open("w", encoding="utf-8") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        workspace.HOME.mkdir(exist_ok=True)
        pip_install(workspace.VENV, workspace.ROOT / "requirements-dev.txt", cache)
        pip_install(workspace.IMPORTER_VENV, workspace.ROOT / "tests/tools/requirements-importer.txt", cache)
        link_collection()
        sanity_pip(workspace.HOME, cache)
    return 0


if __name__ == "__main__":
    sys.exit(main())
