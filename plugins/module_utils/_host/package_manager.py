# Copyright: the topovirt.kvm authors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""The host's package manager: what is installed, what a package owns, and taking packages away again.

Ansible's own modules install them.
"""

from __future__ import annotations

import re
from abc import ABC, abstractmethod
from pathlib import Path
from typing import ClassVar, Dict, FrozenSet, Iterable, List, Sequence, Set, Tuple

from ansible_collections.topovirt.kvm.plugins.module_utils._errors import TopovirtError
from ansible_collections.topovirt.kvm.plugins.module_utils._host.places import Run, output

_MERGED = ("bin", "sbin", "lib", "lib32", "lib64", "libx32")  # links to the same below /usr
_NATIVE = ("x86_64", "noarch", "(none)")  # rpm's words for packages of this architecture, of any, and its keys


class PackageManager(ABC):
    """One family's way to know packages."""

    databases: ClassVar[Tuple[str, ...]]  # one of these files is there, relative to the root
    families: ClassVar[FrozenSet[str]]  # ids in os-release(5)

    def __init__(self, root: Path, run: Run) -> None:
        self._root = root
        self._run = run

    @classmethod
    def found(cls, root: Path) -> bool:
        return any((root / path).is_file() for path in cls.databases)

    @abstractmethod
    def installed(self) -> Dict[str, str]:
        """Version by name, ``name:architecture`` for packages that are there for another or several."""

    @abstractmethod
    def known(self) -> Set[str]:
        """Names of packages of which at least configuration files are left."""

    @abstractmethod
    def owned(self) -> Set[str]:
        """Paths that packages own, relative to the root; the merged-/usr links are resolved."""

    @abstractmethod
    def obstacles(self, names: Sequence[str]) -> List[str]:
        """Why these packages cannot be removed, such as others that need them."""

    @abstractmethod
    def purge(self, names: Sequence[str]) -> None:
        """Remove packages with their configuration.

        :raises TopovirtError: with what the package manager says.
        """

    def _failed(self, program: str, names: Sequence[str], said: str) -> TopovirtError:
        return TopovirtError(
            f"{program} could not remove {' '.join(names)}: {said.strip()}",
            "Remove what needs them, then run the way back again.",
        )


class Dpkg(PackageManager):
    """The package manager of Debian and its children."""

    databases = ("var/lib/dpkg/status",)
    families = frozenset({"debian", "ubuntu"})

    def installed(self) -> Dict[str, str]:
        lines = output(self._run, "dpkg-query", "-W", "-f", "${db:Status-Status} ${binary:Package} ${Version}\\n")
        words = [line.split() for line in lines.splitlines()]
        return {entry[1]: entry[2] for entry in words if len(entry) == 3 and entry[0] == "installed"}

    def known(self) -> Set[str]:
        lines = output(self._run, "dpkg-query", "-W", "-f", "${db:Status-Status} ${binary:Package}\\n").splitlines()
        return {line.split()[1] for line in lines if len(line.split()) == 2 and line.split()[0] != "not-installed"}

    def owned(self) -> Set[str]:
        lists = (self._root / "var/lib/dpkg/info").glob("*.list")
        return _merged(line for path in lists for line in path.read_text("utf-8", "surrogateescape").splitlines())

    def obstacles(self, names: Sequence[str]) -> List[str]:
        if not names:
            return []
        status, out, errors = self._run(["env", "LC_ALL=C", "dpkg", "--no-act", "--purge", *names])
        return [] if status == 0 else [line.strip() for line in (errors or out).splitlines() if line.strip()]

    def purge(self, names: Sequence[str]) -> None:
        environment = ["env", "LC_ALL=C", "DEBIAN_FRONTEND=noninteractive"]
        status, out, errors = self._run([*environment, "dpkg", "--purge", *names])
        if status != 0:
            raise self._failed("dpkg", names, errors or out)


class Rpm(PackageManager):
    """The package manager below dnf."""

    databases = ("usr/lib/sysimage/rpm/rpmdb.sqlite", "var/lib/rpm/rpmdb.sqlite", "var/lib/rpm/Packages")
    families = frozenset({"rhel", "fedora", "centos"})

    def installed(self) -> Dict[str, str]:
        lines = output(self._run, "rpm", "-qa", "--qf", "%{NAME} %{ARCH} %{EPOCHNUM}:%{VERSION}-%{RELEASE}\\n")
        found: Dict[str, List[str]] = {}
        for name, arch, version in (line.split() for line in lines.splitlines() if len(line.split()) == 3):
            found.setdefault(name if arch in _NATIVE else f"{name}:{arch}", []).append(version)
        return {name: " ".join(sorted(versions)) for name, versions in found.items()}  # several kernels, for one

    def known(self) -> Set[str]:
        return set(self.installed())

    def owned(self) -> Set[str]:
        lines = output(self._run, "rpm", "-qal").splitlines()
        return _merged(line for line in lines if line.startswith("/"))  # others say that a package has no files

    def obstacles(self, names: Sequence[str]) -> List[str]:
        if not names:
            return []
        status, out, errors = self._run(["rpm", "--erase", "--test", *map(_with_architecture, names)])
        return [] if status == 0 else [line.strip() for line in (errors or out).splitlines() if line.strip()]

    def purge(self, names: Sequence[str]) -> None:
        status, out, errors = self._run(["rpm", "--erase", *map(_with_architecture, names)])
        if status != 0:
            raise self._failed("rpm", names, errors or out)


def package_manager(root: Path, run: Run) -> PackageManager:
    """The host's package manager.

    :raises TopovirtError: for a family that is not supported.
    """
    found = [kind for kind in (Dpkg, Rpm) if kind.found(root)]
    for kind in found:
        if len(found) == 1 or kind.families & _families(root):  # either's tools can be installed on the other
            return kind(root, run)
    raise TopovirtError(
        "This host has neither a dpkg nor an rpm database: only the families of Debian and Red Hat can be converted.",
        "Nothing was changed.",
    )


def _families(root: Path) -> Set[str]:
    """The distribution's id and those that it is like."""
    path = root / "etc/os-release"
    text = path.read_text(encoding="utf-8", errors="replace") if path.is_file() else ""
    return {word for line in re.findall(r"^ID(?:_LIKE)?=(.*)$", text, re.M) for word in re.findall(r"[\w-]+", line)}


def plain_name(package: str) -> str:
    """A package's name without its architecture."""
    return package.split(":", 1)[0]


def _with_architecture(name: str) -> str:
    """As rpm writes it."""
    return name.replace(":", ".")


def _merged(lines: Iterable[str]) -> Set[str]:
    paths = (line.lstrip("/") for line in lines)
    return {f"usr/{path}" if path.split("/", 1)[0] in _MERGED else path for path in paths}
