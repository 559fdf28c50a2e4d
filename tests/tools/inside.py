# Copyright: the topovirt.kvm authors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""``inside MODULE [ARGUMENT...]``: become a Python module that runs inside the project's environment."""

from __future__ import annotations

import os
import sys

from tests.tools import workspace

if __name__ == "__main__":
    os.chdir(workspace.ROOT)
    python = str(workspace.VENV / "bin/python")
    os.execve(python, [python, "-m", *sys.argv[1:]], workspace.environment(os.environ))
