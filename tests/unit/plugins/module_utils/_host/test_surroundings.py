# Copyright: the topovirt.kvm authors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""What speaks against a conversion besides devices: space, versions, reboots that are due, other runs."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from ansible_collections.topovirt.kvm.plugins.module_utils._errors import TopovirtError
from ansible_collections.topovirt.kvm.plugins.module_utils._host.lock import holder, host_lock
from ansible_collections.topovirt.kvm.tests.unit.plugins.module_utils._host.fake_host import KERNEL, FakeHost
from ansible_collections.topovirt.kvm.tests.unit.plugins.module_utils._host.fake_red_hat import FakeRedHat

MIB = 1 << 20


@pytest.fixture(params=[FakeHost, FakeRedHat], ids=["debian", "red-hat"])
def host(request: pytest.FixtureRequest, tmp_path: Path) -> FakeHost:
    kind: type[FakeHost] = request.param
    return kind(tmp_path)


def refusal(host: FakeHost, free_mib: int = 1 << 20) -> str:
    runner = host.runner()
    runner.free = lambda path: free_mib * MIB
    before = host.snapshot()
    with pytest.raises(TopovirtError) as caught:
        runner.plan(host.wanted)
    assert host.snapshot() == before
    return str(caught.value)


def test_too_little_space_is_named_with_what_it_is_for(host: FakeHost) -> None:
    text = refusal(host, 900)
    assert "has 900 MiB left, and the conversion needs 1120 MiB there" in text  # one file system: 64 + 32 + 1024
    for what in ("the journal of the conversion", "an initramfs of its own", "packages"):
        assert what in text


def test_space_is_needed_for_what_is_due_only(host: FakeHost) -> None:
    host.convert()
    runner = host.runner()
    runner.free = lambda path: 0
    assert not runner.plan(host.wanted).changed  # a converted host needs nothing
    runner.free = lambda path: 200 * MIB
    assert runner.plan({**host.wanted, "fabric_model": "shared_nvswitch"}).changed  # no packages


def test_a_file_system_of_its_own_for_boot(host: FakeHost, monkeypatch: pytest.MonkeyPatch) -> None:
    real = os.stat

    def stat(path: Any, **how: Any) -> Any:
        found = real(path, **how)
        if Path(path) != host.root / "boot":
            return found
        return os.stat_result((found.st_mode, found.st_ino, 7, *found[3:10]))

    runner = host.runner()
    runner.free = lambda path: 10 * MIB if path == host.root / "boot" else 1 << 40
    monkeypatch.setattr(os, "stat", stat)
    with pytest.raises(TopovirtError, match="the file system of /boot has 10 MiB left"):
        runner.plan(host.wanted)


def test_a_reboot_that_is_due(host: FakeHost) -> None:
    host.write("run/reboot-required", "*** System restart required ***\n")
    assert "a reboot is due: reboot first" in refusal(host)
    host.write("run/reboot-required.pkgs", "linux-image-6.12\nlibc6\nlibc6\n")
    assert "a reboot is due for libc6, linux-image-6.12: reboot first" in refusal(host)


def test_a_reboot_that_red_hats_tool_asks_for(host: FakeHost, monkeypatch: pytest.MonkeyPatch) -> None:
    run, status = host.run, [1]
    host.write("usr/bin/needs-restarting", "#!/bin/sh\n")
    monkeypatch.setattr(
        host, "run", lambda words: (status[0], "", "") if words[0] == "needs-restarting" else run(words)
    )
    assert "needs-restarting --reboothint says why" in refusal(host)
    status[0] = 0
    assert host.runner().plan(host.wanted).changed


def test_another_kernel_than_the_next_boots(host: FakeHost) -> None:
    host.write("proc/sys/kernel/osrelease", "6.11.0-old\n")
    assert f"the default boot entry starts kernel {KERNEL}, and 6.11.0-old is running: reboot first" in refusal(host)


def test_a_reboot_that_is_due_does_not_stop_a_conversion_half_way(host: FakeHost) -> None:
    """It may be due because of the packages that the conversion itself brought."""
    host.convert(until="record")
    host.write("run/reboot-required", "")
    assert host.convert()


def test_a_libvirt_that_is_too_old(host: FakeHost, monkeypatch: pytest.MonkeyPatch) -> None:
    host.write("usr/sbin/libvirtd", "")
    host.write("var/lib/topovirt/captured-software.json", '{"libvirt": "4.5.0"}')
    assert "libvirt is 4.5.0, VMs need 5.2 or newer" in refusal(host)


def test_another_run_is_named_by_its_owner(host: FakeHost) -> None:
    """In a process of its own, as two runs of Ansible are."""
    code = (
        "import sys, time; from pathlib import Path;"
        "from ansible_collections.topovirt.kvm.plugins.module_utils._host.lock import host_lock\n"
        "with host_lock(Path(sys.argv[1]), 'host_state (apply)'): print('held', flush=True); sys.stdin.read()"
    )
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)}
    words = [sys.executable, "-c", code, str(host.root)]
    with subprocess.Popen(words, stdin=subprocess.PIPE, stdout=subprocess.PIPE, env=environment) as other:
        assert other.stdout is not None and other.stdin is not None
        assert other.stdout.readline() == b"held\n"
        text = refusal(host)
        assert f"another run is changing this host: host_state (apply) (process {other.pid}) since " in text
        with pytest.raises(TopovirtError, match="is held by host_state"), host_lock(host.root, "mine"):
            pass
        other.kill()  # without a chance to clean up: the lock is free all the same
    assert holder(host.root) == ""
    with host_lock(host.root, "mine"):
        pass


RULE = "driverctl: a rule of driverctl binds 0000:23:00.0 to nvidia at each boot. Run driverctl unset-override"


def test_other_binders_are_refused_by_name_or_tolerated(host: FakeHost) -> None:
    host.write("etc/driverctl.d/pci-0000:23:00.0", "nvidia\n")
    assert RULE in refusal(host)
    assert "or name it in kvm_host_tolerate" in refusal(host)
    tolerant = {**host.wanted, "tolerate": ["driverctl"]}
    report = host.runner().plan(tolerant)
    assert report.changed and [text for text in report.warnings if text.startswith(RULE)]


def test_a_binding_that_somebody_else_made_is_taken_as_it_is(host: FakeHost) -> None:
    """The device is on vfio-pci before and after, and its rule stays."""
    host.write("etc/driverctl.d/pci-0000:23:00.0", "vfio-pci\n")
    device = host.root / "sys/bus/pci/devices/0000:23:00.0"
    host.modules.add("vfio-pci")
    host.write_attribute(device / "driver/unbind", "0000:23:00.0")
    host.write_attribute(device / "driver_override", "vfio-pci")
    host.write_attribute(device.parent.parent / "drivers_probe", "0000:23:00.0")
    report = host.runner().plan(host.wanted)
    assert "0000:23:00.0" not in [change.what for change in report.plan]
    assert [text for text in report.warnings if text.startswith("driverctl: a rule of driverctl binds")]
    host.convert()
    assert host.driver("0000:23:00.0") == "vfio-pci"


def test_a_rule_by_id_that_takes_what_stays_with_the_host(host: FakeHost) -> None:
    host.write("etc/modprobe.d/vfio.conf", "options vfio-pci ids=15b3:1021\n")
    runner = host.runner()
    with pytest.raises(TopovirtError, match=r"takes every device of 15b3:1021, so 0000:94:00\.0, too"):
        runner.plan({**host.wanted, "exclude": ["0000:94:00.0"]})
    assert runner.plan(host.wanted).changed


def test_all_reasons_come_at_once(host: FakeHost) -> None:
    host.write("run/reboot-required", "")
    host.write("run/libvirt/qemu/train-0.xml", "<domstatus/>")
    text = refusal(host, 1)
    for words in ("a reboot is due", "VM train-0 is running", "has 1 MiB left"):
        assert words in text
