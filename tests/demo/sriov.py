# Copyright: the topovirt.kvm authors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Virtual functions for guests on a server whose network card has working SR-IOV (QEMU's igb), and which is managed by
that very card.

What there is, is read off the server by the observer of tests/truth, who shares no code with the collection.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from tests.demo import trials
from tests.demo.operator import Failure, Operator, management_nic
from tests.demo.truth import look
from tests.tools import progress
from tests.twin.lifecycle import Server

NUMBER = 2
UNIT = "topovirt-sriov.service"
# The other members of the IOMMU groups of a card's virtual functions.
_COMPANY = (
    "cd /sys/bus/pci/devices && for f in {nic}/virtfn*; do "
    "ls $f/iommu_group/devices | grep -v $(basename $(readlink $f)); done; true"
)


def objections(found: Mapping[str, Any], number: int) -> list[str]:
    """What is wrong with a card's virtual functions, as the observer saw them, empty when nothing is.

    :param number: that are to be there, all for guests; with 0 everything is to be as a kernel boots.
    """
    wrong = [
        f"virtual function {bdf} has driver {driver} and override {override}"
        for bdf, driver, override in found["functions"]
        if (driver, override) != ("vfio-pci", "vfio-pci")
    ]
    if (found["number"], len(found["functions"])) != (number, number):
        wrong.append(f"{found['number']} virtual functions instead of {number}: {found['functions']}")
    if found["autoprobe"] != (number == 0):
        wrong.append(f"drivers {'take' if found['autoprobe'] else 'do not take'} new virtual functions")
    return wrong


def demand(server: Server, nic: str, number: int, when: str) -> None:
    """The card has its virtual functions, each alone in its IOMMU group, and carries the management network.

    :raises Failure: otherwise.
    """
    seen = look(server)
    wrong = objections(seen["virtual_functions"][nic], number)
    company = server.copy_from(_COMPANY.format(nic=nic)).decode().split()
    if number and company:
        wrong.append(f"{', '.join(company)} share their IOMMU groups")
    if management_nic(server) != nic or seen["drivers"][nic][0] != "igb":
        wrong.append(f"the management network is not that of {nic} on igb any more")
    if wrong:
        raise Failure(f"{when}: {'; '.join(wrong)}")
    progress.say(f"{when}: {number} virtual functions of {nic}, which carries the management network")


def prove(mine: Operator) -> None:
    """There with the conversion, there after another boot, nothing to do for a second run, gone with the way back."""
    server = mine.server
    nic = management_nic(server)
    variables = {"kvm_host_sriov": {nic: NUMBER}}
    mine.must_play("sriov", "convert_to_kvm", variables=variables)
    demand(server, nic, NUMBER, "converted")
    trials.reboot(server)
    state = server.copy_from(f"systemctl is-active {UNIT} || true").decode().strip()
    if state != "active":
        raise Failure(f"{UNIT} is {state} after a reboot")
    demand(server, nic, NUMBER, "after a reboot")
    again = mine.must_play("sriov-again", "convert_to_kvm", variables=variables)
    if again.changed:
        raise Failure(f"a second run changed {again.changed} tasks (log: {again.log})")
    mine.must_play("sriov-none", "convert_to_kvm")
    demand(server, nic, 0, "no longer wanted")
    mine.must_play("sriov-once-more", "convert_to_kvm", variables=variables)
    demand(server, nic, NUMBER, "at once on a converted host")
    mine.must_play("sriov-back", "convert_to_bare_metal")
    demand(server, nic, 0, "converted back")
