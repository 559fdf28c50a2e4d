# Copyright: the topovirt.kvm authors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""The distributions that an emulated server can show."""

from __future__ import annotations

from dataclasses import dataclass

DEBIAN = "debian"


@dataclass(frozen=True)
class Rhel:
    """What tells one release of Red Hat Enterprise Linux from another here."""

    version: str
    codename: str
    #: What runs Ansible's modules; None for the image's own Python, whose version is another than on the real release.
    python: str | None
    #: Packages that the installer of the real release puts on a server, and not in ``rhel_packages.base``.
    installed: tuple[str, ...] = ()

    @property
    def major(self) -> int:
        return int(self.version.partition(".")[0])


RHEL = {
    "rhel9": Rhel("9.6", "Plow", "3.9", ("tuned",)),
    # RHEL 10 has Python 3.12, which no suite of Debian carries.
    "rhel10": Rhel("10.0", "Coughlan", None),
}
NAMES = (DEBIAN, *RHEL)


def interpreter(name: str) -> str:
    """Path of the Python that Ansible's modules run with on a server of this distribution."""
    python = RHEL[name].python if name in RHEL else None
    return f"/usr/bin/python{python or '3'}"
