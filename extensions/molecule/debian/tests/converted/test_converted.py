# Copyright: the topovirt.kvm authors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""The converted host, whatever its distribution."""

from __future__ import annotations

from typing import Any

import looks


def test_the_host_has_the_shape_that_the_scenario_is_about(server: Any, shape: Any) -> None:
    facts = server.ansible("setup", "gather_subset=!all,!min,distribution,pkg_mgr,python", check=False)["ansible_facts"]
    assert facts["ansible_os_family"] == shape.family
    assert facts["ansible_distribution_major_version"] == shape.version
    assert facts["ansible_pkg_mgr"].startswith(shape.package_manager)
    version = facts["ansible_python"]["version"]
    assert f"{version['major']}.{version['minor']}" == shape.python


def test_passthrough_devices_are_on_vfio_pci(server: Any, shape: Any) -> None:
    for ids, count in shape.passthrough.items():
        assert list(looks.drivers(server, ids).values()) == ["vfio-pci"] * count


def test_peers_reach_each_other_through_their_ports(server: Any, shape: Any) -> None:
    """Where the scenario asks for it: direct translation is on where the port can, and what groups rest on stays."""
    ports = server.check_output("lspci -vv -d ::0604 2>/dev/null | grep -A1 'ACSCap:' || true").split("ACSCap:")[1:]
    told = [port.partition("ACSCtl:")[::2] for port in ports]
    if shape.family != "Debian":
        return
    assert told
    for able, control in told:
        if "DirectTrans+" in able:
            assert "ReqRedir+" in control and "CmpltRedir+" in control and "UpstreamFwd+" in control
    assert sum("DirectTrans+" in control for _able, control in told) > 0


def test_the_entry_of_the_conversion_is_what_runs(server: Any) -> None:
    assert " topovirt=" in server.check_output("cat /proc/cmdline")


def test_every_node_has_huge_pages(server: Any) -> None:
    counts = server.check_output(
        "cat /sys/devices/system/node/node*/hugepages/hugepages-1048576kB/nr_hugepages"
    ).split()
    assert len(counts) == 2 and all(int(count) > 0 for count in counts)


def test_the_profile_is_active(server: Any) -> None:
    assert server.check_output("tuned-adm active").endswith("topovirt")


def test_the_hypervisor_is_the_distributions(server: Any, shape: Any) -> None:
    assert shape.emulator in server.check_output("virsh -c qemu:///system domcapabilities --virttype kvm")
    assert server.check_output("ps -e -o comm=").split().count(shape.daemon) == 1
