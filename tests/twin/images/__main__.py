# Copyright: the topovirt.kvm authors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Bake the emulated server's images and print where they are: ``python -m tests.twin.images [CACHE]``."""

from __future__ import annotations

import argparse
import os
import sys
import time
from dataclasses import asdict
from pathlib import Path

from tests.twin.images import shapes
from tests.twin.images.bake import ensure_images
from tests.twin.images.process import BakeError


def default_cache() -> Path:
    """TOPOVIRT_CACHE, else topovirt below the user's cache folder."""
    if configured := os.environ.get("TOPOVIRT_CACHE"):
        return Path(configured)
    base = os.environ.get("XDG_CACHE_HOME") or Path(os.environ.get("HOME") or "/root") / ".cache"
    return Path(base) / "topovirt"


def main() -> int:
    """Bake and print."""
    parser = argparse.ArgumentParser(prog="python -m tests.twin.images", description=__doc__)
    parser.add_argument("cache", nargs="?", type=Path, default=default_cache(), help="default: %(default)s")
    parser.add_argument("--os", choices=shapes.NAMES, default=shapes.DEBIAN, help="what lies on the server's disk")
    given = parser.parse_args()
    start = time.monotonic()

    def log(message: str) -> None:
        print(f"[{time.monotonic() - start:6.1f} s] {message}", flush=True)

    try:
        images = ensure_images(given.cache, log, given.os)
    except BakeError as error:
        print(error, file=sys.stderr)
        return 1
    for name, value in asdict(images).items():
        if name != "packages":
            print(f"{name}={value}")
    log(f"kernel {images.packages['kernel']}, QEMU {images.packages['qemu']}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
