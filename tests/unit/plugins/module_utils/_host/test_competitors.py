# Copyright: the topovirt.kvm authors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Who else binds devices: each found by what it leaves on a host, and told apart by whether it does harm."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest
from ansible_collections.topovirt.kvm.plugins.module_utils._host.competitors import CONFLICT, HINT, competitors
from ansible_collections.topovirt.kvm.plugins.module_utils._topology.reader import read_topology
from ansible_collections.topovirt.kvm.tests.unit.plugins.module_utils._host.fake_host import (
    GPU0,
    GPU1,
    NIC0,
    FakeHost,
)


@pytest.fixture
def host(tmp_path: Path) -> FakeHost:
    made = FakeHost(tmp_path)
    made.write("etc/modprobe.d/blacklist.conf", "blacklist nvidia\n")
    return made


def found(host: FakeHost, *devices: str) -> dict[str, tuple[str, str]]:
    """Severity and sentence by name."""
    result = competitors(host.root, host.run, read_topology(host.root), devices or (GPU0, NIC0))
    assert all(each.remedy for each in result)
    assert len({each.name for each in result}) == len(result)
    return {each.name: (each.severity, each.text) for each in result}


def test_nobody_competes_on_a_plain_host(host: FakeHost) -> None:
    assert found(host) == {}


@pytest.mark.parametrize(
    ("make", "name", "severity", "part"),
    [
        (lambda h: h.write(f"etc/driverctl.d/pci-{GPU0}", "nvidia\n"), "driverctl", CONFLICT, f"{GPU0} to nvidia"),
        (lambda h: h.write(f"etc/driverctl.d/pci-{NIC0}", "vfio-pci\n"), "driverctl", HINT, f"{NIC0} to vfio-pci"),
        (
            lambda h: h.write("proc/cmdline", "ro vfio-pci.ids=10de:2335\n"),
            "binding by id",
            CONFLICT,
            f"the kernel argument vfio-pci.ids=10de:2335 takes every device of 10de:2335, so {GPU1}, too",
        ),
        (
            lambda h: h.write("etc/modprobe.d/vfio.conf", "options vfio_pci disable_vga=1 ids=15b3:1021\n"),
            "binding by id",
            CONFLICT,
            "/etc/modprobe.d/vfio.conf (options ... ids=) takes every device of 15b3:1021",
        ),
        (
            lambda h: h.write("proc/cmdline", "ro vfio_pci.ids=1234:5678\n"),
            "binding by id",
            HINT,
            "takes every device of 1234:5678",
        ),
        (
            lambda h: h.write("etc/modprobe.d/blacklist.conf", "# none\n"),
            "nvidia",
            HINT,
            "is loaded and not blacklisted",
        ),
        (lambda h: (h.root / "sys/module/nouveau").mkdir(), "nouveau", HINT, "is loaded and not blacklisted"),
        (
            lambda h: h.units.update({"nvidia-persistenced.service": {"enabled": "enabled", "active": True}}),
            "nvidia-persistenced",
            CONFLICT,
            f"may hold {GPU0} open",
        ),
        (
            lambda h: h.units.update({"nvidia-fabricmanager.service": {"enabled": "enabled", "active": False}}),
            "nvidia-fabricmanager",
            HINT,
            "started at each boot",
        ),
        (lambda h: h.write("var/lib/dkms/nvidia/570.1/x", ""), "DKMS nvidia", HINT, "built again for each new kernel"),
        (lambda h: h.write("run/nvidia/validations/x", ""), "NVIDIA GPU Operator", CONFLICT, "binds GPUs anew"),
        (
            lambda h: h.write("var/lib/kubelet/device-plugins/kubevirt-gpu.sock", ""),
            "KubeVirt",
            CONFLICT,
            "hands devices to pods (kubevirt-gpu.sock)",
        ),
        (
            lambda h: h.units.update({"kubelet.service": {"enabled": "enabled", "active": True}}),
            "kubelet",
            HINT,
            "a node of Kubernetes",
        ),
        (
            lambda h: h.units.update({"numad.service": {"enabled": "enabled", "active": True}}),
            "numad",
            HINT,
            "moves processes and memory",
        ),
    ],
)
def test_each_is_found_alone(
    host: FakeHost, make: Callable[[FakeHost], object], name: str, severity: str, part: str
) -> None:
    make(host)
    result = found(host)
    assert list(result) == [name]
    assert result[name][0] == severity
    assert part in result[name][1]


def test_an_id_of_which_guests_get_every_device_is_only_told(host: FakeHost) -> None:
    host.write("proc/cmdline", "ro vfio-pci.ids=10de:2335,10de:9999\n")
    assert found(host, GPU0, GPU1)["binding by id"][0] == HINT


def test_what_is_blacklisted_elsewhere_counts(host: FakeHost) -> None:
    host.write("etc/modprobe.d/blacklist.conf", "# none\n")
    host.write("usr/lib/modprobe.d/nvidia.conf", "install nvidia /bin/false\n")
    assert found(host) == {}
    host.write("etc/modprobe.d/nvidia.conf", "# hides the one in /usr\n")
    assert list(found(host)) == ["nvidia"]
    host.write("proc/cmdline", "ro modprobe.blacklist=nouveau,nvidia\n")
    assert found(host) == {}


def test_daemons_of_nvidia_do_not_matter_to_other_devices(host: FakeHost) -> None:
    host.units["nvidia-persistenced.service"] = {"enabled": "enabled", "active": True}
    host.write("etc/modprobe.d/blacklist.conf", "# none\n")
    assert found(host, NIC0) == {}


def test_a_daemon_that_holds_nothing_any_more_is_only_told(host: FakeHost) -> None:
    host.units["nvidia-persistenced.service"] = {"enabled": "enabled", "active": True}
    (host.root / "sys/bus/pci/devices" / GPU0 / "driver").unlink()
    assert found(host)["nvidia-persistenced"][0] == HINT
