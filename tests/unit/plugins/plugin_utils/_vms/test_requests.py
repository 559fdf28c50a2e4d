# Copyright: the topovirt.kvm authors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

from __future__ import annotations

from typing import Any

import pytest
from ansible_collections.topovirt.kvm.plugins.module_utils._errors import TopovirtError
from ansible_collections.topovirt.kvm.plugins.plugin_utils._vms.requests import resolve

HOME = "/var/lib/libvirt/images/topovirt"
IMAGES: dict[str, Any] = {
    "tiny": {"kernel": "files/vmlinuz", "initrd": {"src": "/abs/initrd"}, "cmdline": "console=ttyS0"},
    "rhel-9": {"disk": {"url": "https://example.org/rhel.qcow2", "checksum": "sha256:00"}},
    "raw": {"disk": {"path": "/srv/disk.raw"}, "format": "raw"},
}


def test_a_kernel_image_becomes_paths_on_the_host_and_files_to_bring() -> None:
    made = resolve([{"name": "a", "gpus": 4, "image": "tiny"}], IMAGES, "/plays")
    boot = {"kernel": f"{HOME}/images/tiny/kernel", "initrd": f"{HOME}/images/tiny/initrd", "cmdline": "console=ttyS0"}
    assert made == {
        "requests": [{"name": "a", "gpus": 4, "boot": boot}],
        "vms": [{"name": "a", "state": "running", "disks": []}],
        "files": [
            {"name": "images/tiny/kernel", "dest": f"{HOME}/images/tiny/kernel", "src": "/plays/files/vmlinuz"},
            {"name": "images/tiny/initrd", "dest": f"{HOME}/images/tiny/initrd", "src": "/abs/initrd"},
        ],
        "overlays": [],
    }


def test_two_vms_share_an_image_but_no_disk() -> None:
    vms = [{"name": name, "gpus": 1, "image": "rhel-9", "disk": "100G"} for name in ("a", "b")]
    made = resolve(vms, IMAGES, "/plays")
    assert [item["name"] for item in made["files"]] == ["images/rhel-9/disk.qcow2"]
    assert made["files"][0]["checksum"] == "sha256:00"
    assert [item["name"] for item in made["overlays"]] == ["vms/a/root.qcow2", "vms/b/root.qcow2"]
    assert {item["backing"] for item in made["overlays"]} == {"images/rhel-9/disk.qcow2"}
    assert [vm["disks"] for vm in made["vms"]] == [[f"{HOME}/vms/{name}/root.qcow2"] for name in ("a", "b")]
    assert made["requests"][0]["boot"] == {"disk": {"path": f"{HOME}/vms/a/root.qcow2", "format": "qcow2"}}
    assert "disk" not in made["requests"][0]


def test_a_raw_image_on_the_host() -> None:
    made = resolve([{"name": "a", "gpus": 1, "image": "raw", "state": "stopped"}], IMAGES, "/plays")
    assert made["files"] == [
        {"name": "images/raw/disk.raw", "dest": f"{HOME}/images/raw/disk.raw", "path": "/srv/disk.raw"}
    ]
    assert made["overlays"][0]["backing_format"] == "raw"
    assert made["vms"][0]["state"] == "stopped"


def test_paths_on_the_host_need_no_image() -> None:
    request = {"name": "a", "gpus": 1, "boot": {"kernel": "/k"}}
    made = resolve([{**request, "state": "defined"}], {}, "/plays")
    assert made["requests"] == [request] and made["files"] == []


@pytest.mark.parametrize(
    ("vm", "images", "message"),
    [
        ({"image": "none"}, {}, "the image 'none' does not exist, known images: raw, rhel-9, tiny"),
        ({}, {}, "expected either image"),
        ({"image": "tiny", "boot": {}}, {}, "expected either image"),
        ({"image": "tiny", "state": "absent"}, {}, "state is 'absent', expected one of running, defined, stopped"),
        ({"image": "x"}, {"x": {"kernel": 3}}, "Image 'x', kernel: 3 is neither"),
        ({"image": "x"}, {"x": {"kernel": {"src": "/a", "url": "b"}}}, "exactly one of src"),
        ({"image": "x"}, {"x": {"kernel": {"source": "/a"}}}, "exactly one of src"),
        ({"image": "x"}, {"x": {"disk": {"url": "https://a"}}}, "needs a checksum"),
        ({"image": "x"}, {"x": {"disk": "/a", "format": "vmdk"}}, "expected kernel, initrd"),
        ({"image": "x"}, {"x": {"disk": "/a", "kernel": "/b"}}, "expected kernel, initrd"),
        ({"image": "x"}, {"x": "rhel"}, "not 'rhel'"),
    ],
)
def test_wrong_entries_are_named(vm: dict[str, Any], images: dict[str, Any], message: str) -> None:
    with pytest.raises(TopovirtError) as error:
        resolve([{"name": "a", "gpus": 1, **vm}], {**IMAGES, **images}, "/plays")
    assert message in str(error.value)


def test_all_problems_at_once() -> None:
    with pytest.raises(TopovirtError) as error:
        resolve([{"name": "a", "image": "no"}, {"name": "b", "image": "neither", "state": "on"}], {}, "/")
    for part in ("VM 'a': the image 'no'", "VM 'b': the image 'neither'", "VM 'b': state is 'on'"):
        assert part in str(error.value)


def test_only_some_of_the_vms() -> None:
    vms = [{"name": name, "gpus": 1, "image": "tiny"} for name in ("a", "b", "c")]
    assert [vm["name"] for vm in resolve(vms, IMAGES, "/", "c,a")["vms"]] == ["a", "c"]
    with pytest.raises(TopovirtError, match="VM 'z' is not in the list of VMs: a, b, c"):
        resolve(vms, IMAGES, "/", ["z"])
