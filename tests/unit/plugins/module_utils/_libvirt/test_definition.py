# Copyright: the topovirt.kvm authors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

from __future__ import annotations

import json
import xml.etree.ElementTree as ET
from pathlib import Path

import pytest
from ansible_collections.topovirt.kvm.plugins.module_utils._errors import TopovirtError
from ansible_collections.topovirt.kvm.plugins.module_utils._libvirt.definition import (
    Difference,
    compare,
    render,
    with_identity,
)
from ansible_collections.topovirt.kvm.tests.unit.plugins.module_utils._libvirt.fake_libvirt import completed
from ansible_collections.topovirt.kvm.tests.unit.plugins.module_utils._libvirt.sample import OURS, domain_xml
from ansible_collections.topovirt.kvm.tests.unit.plugins.module_utils._libvirt.test_domains import captured

WANTED = domain_xml(metadata=OURS)


def test_what_libvirt_fills_in_is_no_difference() -> None:
    assert compare(completed(WANTED), WANTED) == []


@pytest.mark.parametrize(
    ("before", "after", "difference"),
    [
        ("cpuset='3'", "cpuset='4'", Difference("cputune/vcpupin[1]@cpuset", "3", "4")),
        ("slot='0' function='0'/></hostdev>", "slot='1' function='0'/></hostdev>",
         Difference("devices/hostdev[0000:23:00.0]/address@slot", "0", "1")),
        ("<memory unit='GiB'>2", "<memory unit='GiB'>3", Difference("memory", str(2 << 30), str(3 << 30))),
        ("/images/vmlinuz", "/images/other", Difference("os/kernel", "/images/vmlinuz", "/images/other")),
        ("machine='q35'", "machine='pc-q35-9.2'", Difference("os/type@machine", "pc-q35-10.0", "pc-q35-9.2")),
    ],
)  # fmt: skip
def test_a_real_change_shows(before: str, after: str, difference: Difference) -> None:
    wanted = WANTED.replace(before, after)
    assert wanted != WANTED
    assert compare(completed(WANTED), wanted) == [difference]


@pytest.mark.parametrize(
    "gone",
    [
        "<hugepages><page size='1048576' unit='KiB'/></hugepages>",
        "<emulatorpin cpuset='0-1'/>",
        "<vcpupin vcpu='1' cpuset='3'/>",
        "<memnode cellid='0' mode='strict' nodeset='0'/>",
        "<kernel>/images/vmlinuz</kernel>",
    ],
)
def test_what_is_no_longer_wanted_shows(gone: str) -> None:
    assert gone in WANTED
    found = compare(completed(WANTED), WANTED.replace(gone, ""))
    assert found and all(difference.after is None for difference in found)


def test_a_device_added_by_hand_shows_once() -> None:
    by_hand = completed(domain_xml(devices=("0000:23:00.0", "0000:24:00.0"), metadata=OURS))
    assert compare(by_hand, WANTED) == [Difference("devices/hostdev[0000:24:00.0]", "", None)]


def test_order_and_spelling_do_not_matter() -> None:
    ET.register_namespace("topovirt", "urn:topovirt:kvm:1")
    root = ET.fromstring(WANTED)
    devices = root.find("devices")
    assert devices is not None
    devices[:] = list(devices)[::-1]
    text = (
        ET.tostring(root, encoding="unicode").replace('cpuset="0-1"', 'cpuset="0,1"').replace('bus="4"', 'bus="0x04"')
    )
    assert compare(text, WANTED) == []


def test_qemu_overrides_are_compared_by_device_and_property() -> None:
    def override(value: str) -> str:
        return WANTED.replace("<domain ", "<domain xmlns:qemu='http://libvirt.org/schemas/domain/qemu/1.0' ").replace(
            "</domain>",
            "<qemu:override><qemu:device alias='hostdev0'><qemu:frontend>"
            f"<qemu:property name='x-no-mmap' type='bool' value='{value}'/>"
            "</qemu:frontend></qemu:device></qemu:override></domain>",
        )

    path = "qemu:override/qemu:device[hostdev0]/qemu:frontend/qemu:property[x-no-mmap]@value"
    assert compare(completed(override("true")), override("false")) == [Difference(path, "true", "false")]
    assert compare(completed(override("true")), override("true")) == []
    assert [item.after for item in compare(completed(override("true")), WANTED)].count(None) > 0


@pytest.mark.parametrize("name", ["hostdev-vfio", "pcie-expander-bus", "pcie-switch-downstream-port"])
def test_libvirts_own_completed_examples(name: str) -> None:
    """libvirt's test data holds definitions as given and as completed by it."""
    assert compare(captured(f"qemuxmlconfdata/{name}.x86_64-latest.xml"), captured(f"qemuxmlconfdata/{name}.xml")) == []


def test_the_rendered_difference_has_both_sides() -> None:
    assert render([Difference("a", None, "1"), Difference("b@c", "2", None), Difference("d", "", "x")]) == {
        "before": "b@c = 2\nd\n",
        "after": "a = 1\nd = x\n",
    }


def test_identity_keeps_uuid_and_notes_files() -> None:
    text = with_identity(WANTED, "c7a5fdbd-edaf-9466-926a-d65c16db1809", ["/b", "/a"], ["/d"])
    root = ET.fromstring(text)
    assert root.findtext("uuid") == "c7a5fdbd-edaf-9466-926a-d65c16db1809"
    note = json.loads(root.findtext("./metadata/{urn:topovirt:kvm:1}vm") or "")
    assert note == {**OURS, "files": ["/a", "/b"], "disks": ["/d"]}
    assert "<topovirt:vm" in text


def test_a_definition_without_our_metadata_is_refused() -> None:
    with pytest.raises(TopovirtError, match="VM 'train-0': domain_xml has no topovirt metadata"):
        with_identity(domain_xml(), None, [])


DATA = Path(__file__).parent / "data"


def test_a_planned_vm_after_libvirt_has_completed_it() -> None:
    """Made once with libvirt 11.3.0: a plan of ours with 20 devices and UEFI, and what libvirt kept of it."""
    completed_by_libvirt = (DATA / "planned-completed.xml").read_text()
    files = ["/var/lib/topovirt/vms/train-1/nccl.xml"]
    wanted = with_identity((DATA / "planned.xml").read_text(), None, files)
    assert compare(completed_by_libvirt, wanted) == []
    moved = wanted.replace('name="ua-0000-23-00-0"', 'name="ua-other"')
    assert moved != wanted
    assert [item.path for item in compare(completed_by_libvirt, moved)] == ["devices/hostdev[0000:23:00.0]/alias@name"]
