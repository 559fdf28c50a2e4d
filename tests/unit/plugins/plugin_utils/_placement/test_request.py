# Copyright: the topovirt.kvm authors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
from __future__ import annotations

from typing import Any

import pytest
from ansible_collections.topovirt.kvm.plugins.module_utils._errors import TopovirtError
from ansible_collections.topovirt.kvm.plugins.plugin_utils._placement.request import (
    DiskBoot,
    KernelBoot,
    parse_policy,
    parse_requests,
)
from ansible_collections.topovirt.kvm.tests.unit.plugins.plugin_utils.hosts import request


def test_everything_left_out_is_auto() -> None:
    (parsed,) = parse_requests([request("train-0", 4)])
    assert (parsed.nics, parsed.nvme, parsed.vcpus, parsed.memory_bytes) == (None, 0, None, None)
    assert parsed.boot == KernelBoot("/images/vmlinuz", "/images/initrd", "console=ttyS0")
    assert parsed.hostdev_properties == {}
    assert parsed.pv_eoi is None
    assert (parsed.pcie, parsed.gpu_p2p) == ("mirror", False)


def test_explicit_values() -> None:
    disk = {"disk": {"path": "/images/a.raw", "format": "raw"}}
    (parsed,) = parse_requests([{"name": "a", "gpus": 1, "nics": 2, "vcpus": 6, "memory": "120GiB", "boot": disk}])
    assert (parsed.nics, parsed.vcpus, parsed.memory_bytes) == (2, 6, 120 << 30)
    assert parsed.boot == DiskBoot("/images/a.raw", "raw")
    assert parsed.asked == {"gpus": 1, "nics": 2, "vcpus": 6, "memory": "120GiB"}


@pytest.mark.parametrize("mode", ["mirror", "root_port", "flat"])
def test_modes_of_the_pcie_tree(mode: str) -> None:
    (parsed,) = parse_requests([request("a", 1, pcie=mode, gpu_p2p=True)])
    assert (parsed.pcie, parsed.gpu_p2p) == (mode, True)
    assert parsed.asked == {"gpus": 1, "pcie": mode, "gpu_p2p": True}


def test_disk_format_is_qcow2_when_left_out() -> None:
    (parsed,) = parse_requests([{"name": "a", "gpus": 1, "boot": {"disk": {"path": "/a"}}}])
    assert parsed.boot == DiskBoot("/a", "qcow2")


@pytest.mark.parametrize("size,expected", [("1KiB", 1 << 10), ("3 MiB", 3 << 20), ("2TiB", 2 << 40)])
def test_sizes(size: str, expected: int) -> None:
    (parsed,) = parse_requests([request("a", 1, memory=size)])
    assert parsed.memory_bytes == expected


@pytest.mark.parametrize(
    "key,value",
    [
        ("gpus", "four"),
        ("gpus", 0),
        ("gpus", True),
        ("gpus", None),
        ("nics", -1),
        ("nics", "all"),
        ("nvme", 1.5),
        ("vcpus", 0),
        ("memory", "120GB"),
        ("memory", "120"),
        ("memory", 120),
        ("memory", "0GiB"),
        ("memory", "1.5GiB"),
        ("name", ""),
        ("name", "a/b"),
        ("name", "-a"),
        ("name", "a b"),
        ("name", "a\nb"),
        ("name", "x" * 65),
        ("name", 7),
        ("boot", None),
        ("boot", {}),
        ("boot", {"kernel": "/k", "disk": {"path": "/d"}}),
        ("boot", {"kernel": "vmlinuz"}),
        ("boot", {"kernel": "/k", "cmdline": "a\nb"}),
        ("boot", {"kernel": "/k", "root": "/dev/vda"}),
        ("boot", {"disk": "/d"}),
        ("boot", {"disk": {}}),
        ("boot", {"disk": {"path": "/d", "format": "vmdk"}}),
        ("hostdev_properties", ["x-no-mmap"]),
        ("hostdev_properties", {"X;": True}),
        ("hostdev_properties", {"x-no-mmap": None}),
        ("pv_eoi", "off"),
        ("pcie", "switches"),
        ("pcie", None),
        ("gpu_p2p", "on"),
        ("gpu", 4),
    ],
)
def test_each_bad_value_is_named(key: str, value: Any) -> None:
    with pytest.raises(TopovirtError, match=r"requests\[0\]") as refusal:
        parse_requests([{**request("train-0", 4), key: value}])
    assert "1 problem(s)" in refusal.value.message
    assert key in refusal.value.message


def test_all_problems_come_in_one_error() -> None:
    bad = [request("a", 0, memory="2G"), request("a", 1, colour="red"), "b"]
    with pytest.raises(TopovirtError) as refusal:
        parse_requests(bad)
    for part in ("gpus: 0", "'2G'", "'colour'", "given 2 times", "requests[2]", "5 problem(s)"):
        assert part in refusal.value.message
    assert refusal.value.hint


def test_requests_must_be_a_list() -> None:
    with pytest.raises(TopovirtError, match="a list of requests"):
        parse_requests("train-0")


def test_policy() -> None:
    policy = parse_policy({"vcpus_per_gpu": 10, "memory_per_gpu": "100GiB", "nics_per_gpu": 0})
    assert (policy.vcpus_per_gpu, policy.memory_per_gpu_bytes, policy.nics_per_gpu) == (10, 100 << 30, 0)
    assert parse_policy(None).vcpus_per_gpu is None


def test_bad_policy_is_refused_completely() -> None:
    with pytest.raises(TopovirtError, match=r"3 problem\(s\)"):
        parse_policy({"vcpus_per_gpu": 0, "memory_per_gpu": "a lot", "colour": "red"})
