# Copyright: the topovirt.kvm authors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
from __future__ import annotations

from typing import Any

import pytest
from ansible_collections.topovirt.kvm.plugins.module_utils._errors import TopovirtError
from ansible_collections.topovirt.kvm.plugins.plugin_utils._placement.policy import parse_policy
from ansible_collections.topovirt.kvm.plugins.plugin_utils._placement.request import (
    DiskBoot,
    KernelBoot,
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


def test_certain_devices() -> None:
    (parsed,) = parse_requests(
        [
            request(
                "a",
                ["0000:23:00.0", {"module_id": 3}, {"index": 0}],  # type: ignore[arg-type]
                nics=["0000:25:00.0"],
                nvme=["0000:C8:00.0"],
                vcpus="4-5,52-53",
            )
        ]
    )
    assert parsed.gpus == 3
    assert [(name.kind, name.value) for name in parsed.exact_gpus] == [
        ("bdf", "0000:23:00.0"),
        ("module_id", 3),
        ("index", 0),
    ]
    assert (parsed.nics, parsed.exact_nics, parsed.exact_nvmes) == (1, ("0000:25:00.0",), ("0000:c8:00.0",))
    assert (parsed.vcpus, parsed.exact_cpus) == (4, (4, 5, 52, 53))


@pytest.mark.parametrize(
    "key,value",
    [
        ("gpus", []),
        ("gpus", ["23:00.0"]),
        ("gpus", ["0000:23:00.0", "0000:23:00.0"]),
        ("gpus", [{"module_id": "3"}]),
        ("gpus", [{"uuid": 3}]),
        ("gpus", [{"module_id": 1, "index": 0}]),
        ("nics", ["eth0"]),
        ("nics", ["0000:25:00.0", "0000:25:00.0"]),
        ("nvme", ["nvme0n1"]),
        ("vcpus", "5-4"),
        ("vcpus", ""),
        ("smt", "yes"),
        ("numa", "any"),
        ("nvlink", True),
        ("anti_affinity", "b"),
        ("anti_affinity", ["a"]),
        ("priority", 1001),
        ("priority", "high"),
    ],
)
def test_bad_names_and_choices_are_told(key: str, value: Any) -> None:
    with pytest.raises(TopovirtError, match=rf"requests\[0\] \(a\)\.{key}"):
        parse_requests([{**request("a", 1), key: value}])


def test_the_named_policy_gives_sizes_and_reserve_and_figures_override_it() -> None:
    policy = parse_policy({"sizing": "dgx-2"})
    assert (policy.vcpus(4), policy.memory_bytes(16), policy.nics(8)) == ((22, True), 1446 << 30, 4)
    assert (policy.reserve.cores_per_node, policy.reserve.memory_bytes_per_node) == (1, 30 << 30)
    assert policy.vcpus(3) == (None, True)
    assert "not verified" in policy.warnings[0]
    mine = parse_policy({"sizing": "dgx-2", "vcpus_per_gpu": 4, "reserve_cores_per_node": 2})
    assert (mine.vcpus(4), mine.reserve.cores_per_node) == ((16, False), 2)
    with pytest.raises(TopovirtError, match="sizing: 'large' is not valid, expected one of dgx-2, proportional"):
        parse_policy({"sizing": "large"})
