# Copyright: the topovirt.kvm authors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""The parameters of ``vm`` against an empty host: no PCI device, no domain."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

import pytest
from ansible_collections.topovirt.kvm.plugins.module_utils._errors import TopovirtError
from ansible_collections.topovirt.kvm.plugins.module_utils._host.lock import host_lock
from ansible_collections.topovirt.kvm.plugins.module_utils._libvirt.basis import make_basis
from ansible_collections.topovirt.kvm.plugins.module_utils._libvirt.connection import (
    LibvirtMissing,
    open_libvirt,
    read_domains,
)
from ansible_collections.topovirt.kvm.plugins.module_utils._libvirt.face import run_vm
from ansible_collections.topovirt.kvm.plugins.module_utils._topology.reader import read_topology
from ansible_collections.topovirt.kvm.tests.unit.plugins.module_utils._libvirt import fake_libvirt
from ansible_collections.topovirt.kvm.tests.unit.plugins.module_utils._libvirt.sample import OURS, domain_xml

XML = domain_xml(metadata=OURS)


def run(_command: list[str]) -> tuple[int, str, str]:
    return 1, "", ""


def call(root: Path, connection: fake_libvirt.Connection | None, check: bool = False, **given: Any) -> dict[str, Any]:
    params = {
        "name": "train-0",
        "state": "running",
        "domain_xml": XML,
        "basis": None,
        "files": [],
        "disks": [],
        "wait_for_agent": False,
        "timeout": 600,
        "force": False,
        **given,
    }
    return run_vm(params, check, run, root, fake_libvirt.Binding(connection))


def test_a_fresh_plan_is_carried_out_and_the_connection_closed(tmp_path: Path) -> None:
    connection = fake_libvirt.Connection()
    basis = make_basis(read_topology(tmp_path, run), [])
    assert call(tmp_path, connection, basis=basis)["actions"] == ["define", "start"]
    assert connection.closed
    assert not (tmp_path / "run/topovirt.lock").exists()


def test_a_plan_made_before_another_vm_came_is_refused(tmp_path: Path) -> None:
    connection = fake_libvirt.Connection()
    basis = make_basis(read_topology(tmp_path, run), [])
    connection.defineXML(domain_xml("infer-0", devices=("0000:24:00.0",)))
    for check in (True, False):
        with pytest.raises(TopovirtError, match=r"stale.*VM infer-0 is new"):
            call(tmp_path, connection, check, basis=basis)
    assert list(connection.domains) == ["infer-0"]


def test_somebody_else_holds_the_lock(tmp_path: Path) -> None:
    connection = fake_libvirt.Connection()
    with host_lock(tmp_path, "a conversion"), pytest.raises(TopovirtError, match="held by a conversion"):
        call(tmp_path, connection)
    assert connection.domains == {}


def test_a_mode_that_is_no_octal_number(tmp_path: Path) -> None:
    file = {"path": "/var/lib/topovirt/vms/train-0/x", "content": "", "mode": "rw"}
    with pytest.raises(TopovirtError, match="has the mode 'rw'"):
        call(tmp_path, fake_libvirt.Connection(), files=[file])


def test_a_host_without_libvirt_is_one_clear_error(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(LibvirtMissing, match=r"does not answer at qemu:///system.*systemctl"):
        call(tmp_path, None)
    monkeypatch.setitem(sys.modules, "libvirt", None)
    with pytest.raises(LibvirtMissing, match=r"cannot be imported by .*python3-libvirt"), open_libvirt():
        pass


def test_every_domain_is_listed_with_its_state() -> None:
    connection = fake_libvirt.Connection()
    connection.defineXML(domain_xml("b"))
    connection.defineXML(XML).create()
    transient = connection.defineXML(domain_xml("a", devices=()))
    transient.live_xml, transient.persistent_xml = transient.persistent_xml, None
    entries = read_domains(connection, fake_libvirt.Binding())
    assert [(entry["name"], entry["state"], entry["persistent"], entry["ours"]) for entry in entries] == [
        ("a", "running", False, False),
        ("b", "shut off", True, False),
        ("train-0", "running", True, True),
    ]
