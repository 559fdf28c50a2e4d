# Copyright: the topovirt.kvm authors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""What the collection remembers on the host: GPU module ids, and what was committed."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any, Dict, List, Optional

from ansible_collections.topovirt.kvm.plugins.module_utils._errors import TopovirtError
from ansible_collections.topovirt.kvm.plugins.module_utils._host.places import HOST_FILE, MODULE_IDS
from ansible_collections.topovirt.kvm.plugins.module_utils._host.step import Change, Step

HOST_SCHEMA = 1


def committed_state(root: Path) -> Optional[Dict[str, Any]]:
    """``host.json``: what the last verified conversion made of this host, ``None`` on bare metal.

    ``{"schema": 1, "id", "fabric_model", "passthrough": {bdf: role}, "hugepages": {"page_size_bytes", "per_node":
    {"0": 2}}, "housekeeping_cpus": {"0": "0-1"}}``

    :raises TopovirtError: for a newer schema or a damaged file.
    """
    path = root / HOST_FILE
    try:
        data = json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        return None
    except ValueError:
        raise TopovirtError(f"{path} is damaged.", "Run the way back, which does not need it.") from None
    if data.get("schema", 0) > HOST_SCHEMA:
        raise TopovirtError(
            f"{path} has schema {data['schema']}; this version knows {HOST_SCHEMA} and older ones.",
            "Use the version of the collection that converted this host, or a newer one. Nothing was changed.",
        )
    return dict(data)


class ModuleIds(Step):
    """The numbers of GPUs on their baseboard: only the native driver can read them, so they are kept before it goes."""

    name = "module_ids"

    def read(self) -> Dict[str, Any]:
        gpus = [f for f in self.context.topology["pci"] if f["role"] == "gpu"]
        return {gpu["bdf"]: gpu["module_id"] for gpu in gpus if gpu["module_id"] is not None}

    def plan(self) -> List[Change]:
        known = self.read()
        return (
            self.plan_file(str(MODULE_IDS), json.dumps(known, indent=1, sort_keys=True) + "\n", 0o600) if known else []
        )


class HostFile(Step):
    """``host.json`` says what is committed; everything that places VMs relies on it."""

    name = "host_file"

    def read(self) -> Dict[str, Any]:
        return committed_state(self.context.root) or {}

    def plan(self) -> List[Change]:
        wanted = self.context.wanted
        data = {
            "schema": HOST_SCHEMA,
            "id": self.context.id,
            "fabric_model": wanted.fabric_model,
            "passthrough": wanted.devices,
            "hugepages": {
                "page_size_bytes": wanted.page_size_bytes,
                "per_node": {str(node): count for node, count in wanted.pages.items()},
            },
            "housekeeping_cpus": {str(node): cpus for node, cpus in wanted.housekeeping.items()},
        }
        return self.plan_file(str(HOST_FILE), json.dumps(data, indent=1, sort_keys=True) + "\n", 0o600, "commit")
