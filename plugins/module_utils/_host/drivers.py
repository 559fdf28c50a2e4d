# Copyright: the topovirt.kvm authors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Which driver holds a PCI function, and how it is given another one."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any, Dict, Optional

from ansible_collections.topovirt.kvm.plugins.module_utils._errors import TopovirtError
from ansible_collections.topovirt.kvm.plugins.module_utils._host.step import Step

VFIO = "vfio-pci"
_PCI = Path("sys/bus/pci")


class DriverStep(Step):
    """Base of steps that bind PCI functions to drivers."""

    def _unbind(self, bdf: str) -> None:
        if (self._state(bdf) or {}).get("driver"):
            self._write(f"devices/{bdf}/driver/unbind", bdf)

    def _load(self, module: str) -> None:
        status, _out, errors = self.context.run(["modprobe", module])
        if status != 0:
            raise TopovirtError(f"The kernel module {module} cannot be loaded: {errors.strip()}")

    def _write(self, path: str, text: str) -> None:
        try:
            self.context.write(self.context.root / _PCI / path, text)
        except OSError as error:
            raise TopovirtError(
                f"/{_PCI / path}: the kernel refused {text.strip()!r}: {error.strerror}.", "dmesg may say why."
            ) from None

    def _state(self, bdf: str) -> Optional[Dict[str, Any]]:
        """Driver, its module and the override; ``None`` when there is no such device."""
        device = self.context.root / _PCI / "devices" / bdf
        if not device.is_dir():
            return None
        override = None
        if (device / "driver_override").exists():
            override = (device / "driver_override").read_text(encoding="ascii").strip()
        return {
            "driver": _link_name(device / "driver"),
            "module": _link_name(device / "driver/module"),
            "override": None if override in (None, "", "(null)") else override,
        }


def _link_name(path: Path) -> Optional[str]:
    try:
        return os.path.basename(os.readlink(path))
    except OSError:
        return None
