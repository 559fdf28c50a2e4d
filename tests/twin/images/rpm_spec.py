# Copyright: the topovirt.kvm authors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""RPM packages as data, and the one spec file that rpmbuild makes all of them from. Pure."""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass

#: Where the files of all packages lie while rpmbuild runs.
PAYLOAD = "/mnt/payload"
LICENSE = "as the files in it; packaging GPL-3.0-or-later"


@dataclass(frozen=True)
class Package:
    """One binary package."""

    name: str
    #: Key of the version in the table that ``spec`` is given.
    version_of: str
    epoch: int = 0
    requires: tuple[str, ...] = ()
    provides: tuple[str, ...] = ()
    #: Lines of %files: patterns below the payload, with rpm's directives.
    files: tuple[str, ...] = ()
    #: Units that follow the presets when the package comes, and stop when it goes.
    units: tuple[str, ...] = ()
    #: Shell run before the files come.
    pre: str = ""
    #: Shell run after the files came, on the first installation only.
    post: str = ""
    #: Further sections, with this package's name in them.
    sections: str = ""


def upstream(version: str) -> str:
    """A version that rpm accepts from a Debian one: no epoch, no revision, no suffix of repacking."""
    match = re.match(r"(?:\d+:)?(\d+(?:\.\w+)*)", version)
    if match is None:
        raise ValueError(f"{version!r} is no Debian version")
    return match[1]


def _package(package: Package, versions: Mapping[str, str], release: str) -> list[str]:
    lines = [f"%package -n {package.name}"]
    if package.epoch:
        lines.append(f"Epoch: {package.epoch}")
    lines += [
        f"Version: {versions[package.version_of]}",
        f"Release: {release}",
        f"Summary: {package.name}",
        "AutoReqProv: no",
    ]
    lines += [f"Requires: {name}" for name in package.requires]
    lines += [f"Provides: {name}" for name in package.provides]
    lines += [f"%description -n {package.name}", f"{package.name} of an emulated server."]
    if package.pre:
        lines += [f"%pre -n {package.name}", package.pre, "exit 0"]
    units = " ".join(package.units)
    if units or package.post:
        lines += [f"%post -n {package.name}", "if [ $1 -eq 1 ]; then"]
        lines += [f"    systemctl --no-reload preset {units} || :"] if units else []
        lines += [package.post] if package.post else []
        lines += ["fi", "exit 0"]
    if units:
        lines += [f"%preun -n {package.name}", "if [ $1 -eq 0 ]; then"]
        lines += [f"    systemctl --no-reload disable --now {units} || :", "fi", "exit 0"]
    lines += [package.sections] if package.sections else []
    return [*lines, f"%files -n {package.name}", *package.files, ""]


def spec(packages: Iterable[Package], versions: Mapping[str, str], release: str) -> str:
    """The text of the spec file.

    :param versions: version by ``version_of``.
    :param release: of every package, such as ``1.el9``.
    """
    head = [
        # Nothing is derived from the files: requirements are those of the table, and nothing is stripped or compressed.
        "%global debug_package %{nil}",
        "%global _build_id_links none",
        "%global __os_install_post %{nil}",
        "%global _binary_payload w.ufdio",
        "Name: emulated-server",
        "Version: 1",
        f"Release: {release}",
        "Summary: Packages of an emulated server",
        f"License: {LICENSE}",
        "AutoReqProv: no",
        "%description",
        "Packages of an emulated server.",
        "%install",
        f"cp -a {PAYLOAD}/. %{{buildroot}}/",
        "",
    ]
    for package in packages:
        head += _package(package, versions, release)
    return "\n".join(head) + "\n"
