# Copyright: the topovirt.kvm authors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""NVLink partitions through ``fmpm``, the command-line client of Fabric Manager's SDK.

Its options and its JSON are described in the Fabric Manager user guide and in the SDK's sample: ``-l`` lists the
partitions, ``-a ID`` activates, ``-d ID`` deactivates, ``-v`` prints the version.
"""

from __future__ import annotations

import json
import time
from typing import Any, Callable, Dict, NamedTuple

from ansible_collections.topovirt.kvm.plugins.module_utils._errors import TopovirtError
from ansible_collections.topovirt.kvm.plugins.module_utils._host.places import Run

# Fabric Manager answers so until it has found all switches and GPUs (FM_ST_NOT_CONFIGURED).
NOT_CONFIGURED = "NOT_CONFIGURED"
RETRY_SECONDS = 2.0


class Client(NamedTuple):
    """How Fabric Manager is reached."""

    run: Run
    command: str = "fmpm"
    timeout: float = 120  # seconds to wait while Fabric Manager is still initialising
    clock: Callable[[], float] = time.monotonic
    sleep: Callable[[float], None] = time.sleep

    def call(self, *options: str) -> str:
        """Output of one call, asked again while Fabric Manager initialises.

        :raises TopovirtError: with the client's own words.
        """
        end = self.clock() + self.timeout
        while True:
            status, output, errors = self.run([self.command, *options])
            if status == 0:
                return output
            words = " ".join(f"{output} {errors}".split())
            if NOT_CONFIGURED not in words:
                raise TopovirtError(
                    f"'{self.command} {' '.join(options)}' failed with status {status}: {words or 'no message'}.",
                    "See 'systemctl status nvidia-fabricmanager' on the host.",
                )
            if self.clock() >= end:
                raise TopovirtError(
                    f"Fabric Manager is still initialising after {self.timeout:.0f} s: {words}.",
                    "It waits until every NVSwitch is bound to the nvidia driver; see /var/log/fabricmanager.log.",
                )
            self.sleep(RETRY_SECONDS)

    def version(self) -> str:
        return " ".join(self.call("-v").split())

    def partitions(self) -> Dict[int, Dict[str, Any]]:
        """Partition id -> ``{"active": bool, "modules": [physical ids, ascending]}``.

        :raises TopovirtError: when the client prints anything else than its documented JSON.
        """
        output = self.call("-l")
        try:
            return {
                int(partition["partitionId"]): {
                    # The sample client prints numbers or booleans, depending on its version.
                    "active": bool(int(partition["isActive"])),
                    "modules": sorted(int(gpu["physicalId"]) for gpu in partition.get("gpuInfo", [])),
                }
                for partition in json.loads(output)["partitionInfo"]
            }
        except (ValueError, KeyError, TypeError):
            raise TopovirtError(
                f"'{self.command} -l' did not print a list of partitions in JSON, but: {output.strip()[:200]!r}."
            ) from None


def ensure_partition(client: Client, partition: int, active: bool, check_mode: bool) -> Dict[str, Any]:
    """Activate or deactivate one partition.

    :returns: ``changed``, ``id``, ``state``, ``modules`` and ``client_version``.
    :raises TopovirtError: for an id that the fabric does not have, for a partition whose GPUs are in another active
        one, and when the client fails or its list does not show the change.
    """
    version = client.version()
    known = client.partitions()
    if partition not in known:
        ids = ", ".join(map(str, sorted(known))) or "it has none"
        raise TopovirtError(f"Partition {partition} is not one of this machine's: {ids}.")
    modules = known[partition]["modules"]
    changed = known[partition]["active"] != active
    if changed and active:
        overlaps = [
            f"partition {other} (modules {', '.join(map(str, sorted(set(entry['modules']) & set(modules))))})"
            for other, entry in sorted(known.items())
            if entry["active"] and set(entry["modules"]) & set(modules)
        ]
        if overlaps:
            raise TopovirtError(
                f"Partition {partition} cannot be activated, its GPUs are in use by {' and '.join(overlaps)}.",
                "Stop the VMs of those partitions and deactivate them first.",
            )
    if changed and not check_mode:
        client.call("-a" if active else "-d", str(partition))
        if client.partitions()[partition]["active"] != active:
            raise TopovirtError(
                f"Partition {partition} is still {'inactive' if active else 'active'}, although "
                f"'{client.command}' reported success."
            )
    return {
        "changed": changed,
        "id": partition,
        "state": "active" if active else "inactive",
        "modules": modules,
        "client_version": version,
    }
