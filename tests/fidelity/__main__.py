# Copyright: the topovirt.kvm authors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""``python -m tests.fidelity COMMAND``: how true guests are to their hosts.

table   machine x fabric model x size: planned fidelity, mirrored and flat
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Callable

from tests.fidelity import table

COMMANDS: dict[str, Callable[[], int]] = {"table": table.main}


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("command", choices=list(COMMANDS))
    return COMMANDS[parser.parse_args().command]()


if __name__ == "__main__":
    sys.exit(main())
