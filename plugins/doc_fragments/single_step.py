# Copyright: the topovirt.kvm authors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""What the modules that do one step of a conversion alone have in common."""

from __future__ import annotations


class ModuleDocFragment:
    DOCUMENTATION = r"""
options:
  state:
    description:
      - V(present) makes the host as the other options say.
      - V(restored) puts back what was before the first run, and needs no other option. What somebody else changed
        meanwhile stays, and is named in RV(ignore:kept).
    type: str
    choices: [present, restored]
    default: present
  root:
    description:
      - Root of the file tree.
    type: path
    default: /
attributes:
  check_mode:
    description: Can run in check mode and return changed status prediction without modifying target.
    support: full
  diff_mode:
    description: Will return details on what has changed or would change.
    support: full
  platform:
    description: Where the module runs.
    support: full
    platforms: posix
notes:
  - Needs root. Holds C(/run/topovirt.lock) while it changes the host, and fails at once when another run holds it.
  - It keeps a journal of its own below C(/var/lib/topovirt/faces). Unless another note says otherwise,
    M(topovirt.kvm.host_state) refuses a conversion while that exists; and on a converted host this module refuses,
    because the conversion says all of it at once.
  - When something fails, everything that this run changed is put back.
seealso:
  - module: topovirt.kvm.host_state
  - module: topovirt.kvm.host_journal
"""
