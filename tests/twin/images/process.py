# Copyright: the topovirt.kvm authors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Run a command for a bake: its output goes to a log, it dies with us, a failure shows the end of the log."""

from __future__ import annotations

import ctypes
import os
import shutil
import signal
import subprocess
from collections.abc import Mapping, Sequence
from pathlib import Path


class BakeError(Exception):
    """A bake cannot go on; the text says what is missing or what failed and what to do."""


PR_SET_PDEATHSIG = 1  # linux/prctl.h

#: Runs inside the tree with its own mounts. They are also taken away by hand: where our own root is a
#: chroot, mounts cannot be kept from reaching the machine's other name spaces.
#: Arguments: the tree, a folder that appears in it as /mnt (or nothing), the command.
ENTER = """
mount --make-rprivate / 2>/dev/null
tree=$1
share=$2
shift 2
mount -t proc proc "$tree/proc" && mount -t sysfs -o ro sysfs "$tree/sys" && mount -t tmpfs tmpfs "$tree/run" &&
    mount -t tmpfs tmpfs "$tree/dev" && ln -s /proc/self/fd "$tree/dev/fd" || exit
for node in null zero full random urandom tty; do
    touch "$tree/dev/$node" && mount --bind "/dev/$node" "$tree/dev/$node" || exit
done
[ -z "$share" ] || mount --bind "$share" "$tree/mnt" || exit
chroot "$tree" "$@"
status=$?
[ -z "$share" ] || umount "$tree/mnt"
umount "$tree"/dev/* 2>/dev/null
umount "$tree/dev" "$tree/run" "$tree/sys" "$tree/proc"
exit $status
"""

#: Debian package that brings a command which bakes use.
TOOLS = {
    "mmdebstrap": "mmdebstrap",
    "mke2fs": "e2fsprogs",
    "sfdisk": "fdisk",
    "mkfs.vfat": "dosfstools",
    "mcopy": "mtools",
    "cpio": "cpio",
    "ssh-keygen": "openssh-client",
}
KEYRING = Path("/usr/share/keyrings/debian-archive-keyring.gpg")


def environment(extra: Mapping[str, str] | None = None) -> dict[str, str]:
    """Environment for baking commands: the C locale and a PATH that has the administrator's tools."""
    path = os.environ.get("PATH", "/usr/bin:/bin")
    return {"PATH": f"{path}:/usr/sbin:/sbin", "LC_ALL": "C.UTF-8", "HOME": "/nonexistent", **(extra or {})}


def require_tools() -> None:
    """Fail naming every missing tool and the package that brings it."""
    if os.geteuid() != 0:
        raise BakeError("Baking the emulated server's images needs root (file owners, chroot). Run it as root.")
    path = environment()["PATH"]
    missing = [
        f"{tool} (package {package})" for tool, package in TOOLS.items() if shutil.which(tool, path=path) is None
    ]
    packages = [package for tool, package in TOOLS.items() if shutil.which(tool, path=path) is None]
    if not KEYRING.exists():
        missing.append(f"{KEYRING} (package debian-archive-keyring)")
        packages.append("debian-archive-keyring")
    if missing:
        raise BakeError(
            f"Missing for baking the emulated server's images: {', '.join(missing)}. "
            f"Install them: apt-get install -y {' '.join(packages)}"
        )


def _die_with_parent() -> None:
    ctypes.CDLL(None).prctl(PR_SET_PDEATHSIG, signal.SIGTERM)


def run(
    command: Sequence[str | Path], log_file: Path, *, cwd: Path | None = None, env: Mapping[str, str] | None = None
) -> None:
    """Run to completion; output is appended to ``log_file``.

    :raises BakeError: exit status not 0; carries the last lines of the output.
    """
    words = [str(word) for word in command]
    with log_file.open("ab") as log:
        log.write(f"+ {' '.join(words)}\n".encode())
        log.flush()
        start = log.tell()
        try:
            status = subprocess.run(
                words,
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
                cwd=cwd,
                env=environment(env),
                preexec_fn=_die_with_parent,
                check=False,
            ).returncode
        except OSError as error:
            raise BakeError(f"{words[0]} cannot be run: {error}") from error
    if status != 0:
        text = log_file.read_bytes()[start:].decode(errors="replace")
        tail = "\n".join(text.splitlines()[-25:])
        raise BakeError(f"{words[0]} failed with status {status} ({' '.join(words[:6])} ...). Its last lines:\n{tail}")


def output(command: Sequence[str | Path], *, env: Mapping[str, str] | None = None) -> str:
    """Standard output of a quick command.

    :raises BakeError: exit status not 0.
    """
    words = [str(word) for word in command]
    try:
        done = subprocess.run(words, stdin=subprocess.DEVNULL, capture_output=True, env=environment(env), check=False)
    except OSError as error:
        raise BakeError(f"{words[0]} cannot be run: {error}") from error
    if done.returncode != 0:
        raise BakeError(f"{' '.join(words)} failed: {done.stderr.decode(errors='replace').strip()}")
    return done.stdout.decode(errors="replace")


def chroot(
    tree: Path,
    command: Sequence[str],
    log_file: Path,
    env: Mapping[str, str] | None = None,
    share: Path | None = None,
) -> None:
    """Run a command inside a tree, with /proc, /sys and a small /dev that exist for this command only.

    :param share: folder that appears as /mnt inside.
    """
    enter: list[str | Path] = [
        "unshare",
        "--mount",
        "--propagation=unchanged",
        "--pid",
        "--fork",
        "--kill-child",
        "sh",
        "-c",
        ENTER,
        "sh",
        tree,
        share or "",
        *command,
    ]
    run(enter, log_file, env=env)
