# Copyright: the topovirt.kvm authors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Which VM has a device, from the files that libvirt keeps of running VMs."""

from __future__ import annotations

from pathlib import Path

from ansible_collections.topovirt.kvm.plugins.module_utils._topology.gaps import Gaps
from ansible_collections.topovirt.kvm.plugins.module_utils._topology.sysfs import Tree
from ansible_collections.topovirt.kvm.plugins.module_utils._topology.vms import RUNNING, read_vms

STATUS = """<domstatus state='running' reason='booted' pid='4711'>
  <domain type='kvm' id='1'><name>train-0</name><devices>
    <hostdev mode='subsystem' type='pci' managed='no'>
      <source><address domain='0x0000' bus='0x23' slot='0x00' function='0x1'/></source>
      <address type='pci' domain='0x0000' bus='0x05' slot='0x00' function='0x0'/>
    </hostdev>
    <hostdev mode='subsystem' type='usb'><source><address bus='1' device='2'/></source></hostdev>
  </devices></domain>
</domstatus>"""


def test_the_owner_of_a_device(tmp_path: Path) -> None:
    (tmp_path / RUNNING).mkdir(parents=True)
    (tmp_path / RUNNING / "train-0.xml").write_text(STATUS, encoding="utf-8")
    (tmp_path / RUNNING / "train-0.pid").write_text("4711\n", encoding="utf-8")
    gaps = Gaps()
    assert read_vms(Tree(tmp_path), gaps) == {"0000:23:00.1": "train-0"}
    assert gaps.listed() == []


def test_no_libvirt(tmp_path: Path) -> None:
    gaps = Gaps()
    assert (read_vms(Tree(tmp_path), gaps), gaps.listed()) == ({}, [])


def test_a_file_that_is_no_definition(tmp_path: Path) -> None:
    (tmp_path / RUNNING).mkdir(parents=True)
    (tmp_path / RUNNING / "a.xml").write_text("<domstatus>", encoding="utf-8")
    (tmp_path / RUNNING / "b.xml").write_text(STATUS.replace("0x23", "x"), encoding="utf-8")
    (tmp_path / RUNNING / "c.xml").mkdir()
    gaps = Gaps()
    assert read_vms(Tree(tmp_path), gaps) == {}
    assert [gap["fact"] for gap in gaps.listed()] == ["vm"] * 3
