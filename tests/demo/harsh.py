# Copyright: the topovirt.kvm authors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Surroundings that hosts of careful administrators have: sudo asks for a password, and nothing can be run in /tmp."""

from __future__ import annotations

from typing import Any

from tests.twin.lifecycle import Server

PASSWORD = "correct-horse"  # of a server that lives for minutes
#: What the operator's inventory says of it; a real one keeps it in a vault.
VARIABLES: dict[str, Any] = {"ansible_become_password": PASSWORD}
_MAKE = (
    f"set -e; echo ops:{PASSWORD} | chpasswd; echo 'ops ALL=(ALL) ALL' >/etc/sudoers.d/ops; "
    "chmod 0440 /etc/sudoers.d/ops; echo 'tmpfs /tmp tmpfs noexec,nosuid,nodev 0 0' >>/etc/fstab; "
    "systemctl daemon-reload; mount /tmp"
)
_IS = "su ops -c 'sudo -n true' 2>&1 | grep -q password && cp /bin/true /tmp/t && ! /tmp/t 2>/dev/null && rm /tmp/t"


def make(server: Server) -> None:
    """Make the server so, and see that it is."""
    server.copy_from(_MAKE)
    server.copy_from(_IS)
