# Copyright: the topovirt.kvm authors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""The modules of one step on an emulated server: in check mode, for real, again, after a reboot, and all of it back.

The playbook is what an operator would write who wants only these things. Afterwards the server is compared with how it
was by the manifest, which knows nothing of the modules.
"""

from __future__ import annotations

from typing import Any

import yaml

from tests.demo.operator import Failure, Operator, changes
from tests.demo.trials import reboot
from tests.tools import progress

GPU, NIC = "10de 26b9", "15b3 1021"
_BDF = (
    "cd /sys/bus/pci/devices; for d in *; do "
    "echo $(cut -c3- $d/vendor) $(cut -c3- $d/device) $(basename $(readlink $d/driver || echo none)) $d; done"
)
_PAGES = "cat /sys/devices/system/node/node0/hugepages/hugepages-1048576kB/nr_hugepages"
WORD = "topovirt_test=1"


def functions(mine: Operator) -> dict[str, dict[str, str]]:
    """Ids -> BDF -> driver of the server's functions."""
    found: dict[str, dict[str, str]] = {}
    for line in mine.server.copy_from(_BDF).decode().splitlines():
        vendor, device, driver, bdf = line.split()
        found.setdefault(f"{vendor} {device}", {})[bdf] = driver
    return found


def tasks(gpu: str, nic: str) -> list[dict[str, Any]]:
    """One task for each module, on a host with TuneD."""
    modules: dict[str, dict[str, Any]] = {
        "kernel_cmdline": {"present": [WORD], "absent": ["quiet"]},
        "hugepages": {"pages": {"1GiB": {"0": 1}}},
        "pci_binding": {"devices": [gpu, nic]},
        "pcie_acs": {},
        "tuned_profile": {"profile": "virtual-host"},
    }
    return [{"name": name, f"topovirt.kvm.{name}": options} for name, options in modules.items()]


def run(mine: Operator) -> None:
    """All of them.

    :raises Failure: naming the first promise that does not hold.
    """
    there = functions(mine)
    gpu, nic = sorted(there[GPU])[0], sorted(there[NIC])[0]
    play = {"hosts": "gpu_hosts", "gather_facts": False, "become": True}
    books = {"alone": tasks(gpu, nic), "look": [_journal("verify")], "restore": [_journal("restore")]}
    for name, content in books.items():
        text = yaml.safe_dump([{"name": name, **play, "tasks": content}], sort_keys=False)
        (mine.folder / f"{name}.yml").write_text(text, encoding="utf-8")
    said = [
        changes(mine.must_play(name, "alone.yml", *arguments).text)
        for name, arguments in (("alone-check", ("--check", "--diff")), ("alone", ("--diff",)))
    ]
    if said[0] != said[1] or len(said[0]) != len(tasks(gpu, nic)):
        raise Failure(f"check mode did not tell the truth of the modules of one step (logs: {mine.logs})")
    demand_unchanged(mine, "alone-again")
    took = reboot(mine.server)
    progress.say(
        f"{len(said[0])} modules changed what check mode had said; the server answers again after {took:.0f} s"
    )
    demand(mine, gpu, nic)
    demand_unchanged(mine, "alone-after-boot")
    mine.must_play("verify", "look.yml")
    mine.must_play("restore", "restore.yml", "--diff")
    progress.say(f"restored; the server answers again after {reboot(mine.server):.0f} s")


def demand(mine: Operator, gpu: str, nic: str) -> None:
    """What each is for, seen on the server."""
    there = functions(mine)
    seen = {
        "the word on the command line": WORD in mine.server.copy_from("cat /proc/cmdline").decode().split(),
        "the devices on vfio-pci": there[GPU][gpu] == there[NIC][nic] == "vfio-pci",
        "no other device on vfio-pci": sum(list(d.values()).count("vfio-pci") for d in there.values()) == 2,
        "a huge page": mine.server.copy_from(_PAGES).decode().strip() == "1",
        "the profile": "virtual-host" in mine.server.copy_from("tuned-adm active").decode(),
        "direct translation": "DirectTrans+" in mine.server.copy_from("lspci -vv | grep ACSCtl").decode(),
    }
    missing = [what for what, is_there in seen.items() if not is_there]
    if missing:
        raise Failure(f"after the reboot there is not: {', '.join(missing)}")


def demand_unchanged(mine: Operator, name: str) -> None:
    played = mine.must_play(name, "alone.yml", "--diff")
    if played.changed:
        raise Failure(f"a second run of the modules of one step changed something (log: {played.log})")


def _journal(action: str) -> dict[str, Any]:
    return {"name": action, "topovirt.kvm.host_journal": {"action": action}}
