# Copyright: the topovirt.kvm authors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Each kind of use by the host, and whatever else speaks against a conversion, is refused and changes nothing."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from ansible_collections.topovirt.kvm.plugins.module_utils._errors import TopovirtError
from ansible_collections.topovirt.kvm.tests.unit.plugins.module_utils._host.fake_host import (
    GPU0,
    GPU1,
    IGB,
    NIC0,
    NVME0,
    SWITCH0,
    SWITCH1,
    WANTED,
    FakeHost,
)

WITH_NVME = {**WANTED, "devices": [NVME0], "erase_ok": ["SER0"]}


@pytest.fixture
def host(tmp_path: Path) -> FakeHost:
    return FakeHost(tmp_path)


def refusal(host: FakeHost, wanted: dict[str, Any] | None = None) -> str:
    """The refusal of a conversion, which must have changed nothing."""
    before = host.snapshot()
    with pytest.raises(TopovirtError) as error:
        host.runner().record(wanted or WANTED, check=False)
    assert host.snapshot() == before
    with pytest.raises(TopovirtError):
        host.runner().plan(wanted or WANTED)
    return str(error.value)


# --- disks --------------------------------------------------------------------------------------------------------


def lvm(host: FakeHost) -> None:
    host.partition("nvme0n1", "nvme0n1p1", "259:1")
    host.stack("dm-0", "253:0", "nvme0n1p1", uuid="LVM-abc", dm_name="vg-data")


def lvm_mounted(host: FakeHost) -> None:
    lvm(host)
    host.mount("253:0", "/srv", "xfs", "/dev/mapper/vg-data")


def raid(host: FakeHost) -> None:
    host.stack("md0", "9:0", "nvme0n1")


def stacked_swap(host: FakeHost) -> None:
    raid(host)
    swap_on(host, "/dev/md0")


def swap_on(host: FakeHost, device: str = "/dev/nvme0n1") -> None:
    host.write("proc/swaps", f"Filename\tType\tSize\tUsed\tPriority\n{device}  partition\t100\t0\t-2\n")


def btrfs(host: FakeHost) -> None:
    """Mounted by the name of its other member."""
    host.mount("0:40", "/data", "btrfs", "/dev/vda1")
    for member in ("vda1", "nvme0n1"):
        host.link(f"sys/fs/btrfs/1234/devices/{member}", f"../../../../class/block/{member}")


def signature(kind: str) -> Callable[[FakeHost], None]:
    return lambda host: host.write("run/udev/data/b259:0", f"S:disk/by-id/x\nE:ID_FS_TYPE={kind}\n")


def native_multipath(host: FakeHost) -> None:
    """The disk hangs on the subsystem, which links to its controllers."""
    path = host.paths[NVME0]
    (host.root / "sys/class/block/nvme0n1").unlink()
    shutil.rmtree(host.root / path / "nvme/nvme0/nvme0n1")
    below = "sys/devices/virtual/nvme-subsystem/nvme-subsys0"
    host.write(f"{below}/nvme0n1/dev", "259:0\n")
    host.link(f"{below}/nvme0", f"../../../../{path[4:]}/nvme/nvme0")
    host.link("sys/class/block/nvme0n1", f"../../{below[4:]}/nvme0n1")
    host.mount("259:0", "/data", "ext4", "/dev/nvme0n1")


def other_namespace(host: FakeHost) -> None:
    host.write("proc/77/mountinfo", "90 20 259:0 / /inside rw - ext4 /dev/nvme0n1 rw\n")
    host.link("proc/77/ns/mnt", "mnt:[4026532000]")


def dump(host: FakeHost) -> None:
    host.write("run/udev/data/b259:0", "E:ID_FS_UUID=dead-beef\n")
    host.write("etc/kdump.conf", "# where to\next4 UUID=dead-beef\npath /crash\n")


def fstab(host: FakeHost) -> None:
    host.write("etc/fstab", "/dev/nvme0n1 /data ext4 noauto 0 0\n")


DISK_USES: list[tuple[str, Callable[[FakeHost], None], str]] = [
    (
        "mount",
        lambda h: h.mount("259:0", "/my data".replace(" ", "\\040"), "ext4", "/dev/nvme0n1"),
        "on /my data (ext4)",
    ),
    ("swap", swap_on, "/dev/nvme0n1 on it is swap space"),
    ("lvm", lvm, "/dev/nvme0n1p1 on it is part of the LVM volume /dev/mapper/vg-data"),
    ("mount-on-lvm", lvm_mounted, "/dev/mapper/vg-data on it is mounted on /srv (xfs)"),
    ("md", raid, "/dev/nvme0n1 on it is part of the md array /dev/md0"),
    ("swap-on-md", stacked_swap, "/dev/md0 on it is swap space"),
    ("btrfs", btrfs, "/dev/nvme0n1 on it is mounted on /data (btrfs)"),
    ("zfs", signature("zfs_member"), "/dev/nvme0n1 on it is a member of a ZFS pool"),
    ("lvm-inactive", signature("LVM2_member"), "/dev/nvme0n1 on it is an LVM physical volume"),
    ("multipath", signature("mpath_member"), "/dev/nvme0n1 on it is a path of a multipath device"),
    ("native-multipath", native_multipath, "/dev/nvme0n1 on it is mounted on /data (ext4)"),
    ("other-namespace", other_namespace, "/dev/nvme0n1 on it is mounted on /inside (ext4)"),
    ("dump", dump, "/dev/nvme0n1 on it is the crash dump target"),
    ("fstab", fstab, "/etc/fstab names /dev/nvme0n1 on it for /data"),
    ("open", lambda h: h.process(50, "ceph-osd", "/dev/nvme0n1"), "ceph-osd (pid 50) has /dev/nvme0n1 open"),
]


@pytest.mark.parametrize(("make", "reason"), [use[1:] for use in DISK_USES], ids=[use[0] for use in DISK_USES])
def test_a_disk_in_use_is_refused(host: FakeHost, make: Callable[[FakeHost], None], reason: str) -> None:
    make(host)
    text = refusal(host, WITH_NVME)
    assert f"nvme {NVME0} is in use by the host: " in text
    assert reason in text


def test_a_free_disk_is_handed_over(host: FakeHost) -> None:
    host.convert(WITH_NVME)
    assert host.driver(NVME0) == "vfio-pci"


@pytest.mark.parametrize(
    ("make", "found"),
    [
        (lambda h: h.signatures.update({"/dev/nvme0n1": "ext4\n"}), "/dev/nvme0n1 has a signature ext4"),
        (lambda h: h.partition("nvme0n1", "nvme0n1p1", "259:1"), "/dev/nvme0n1 has partitions nvme0n1p1"),
        (lambda h: h.write("run/udev/data/b259:0", "E:ID_PART_TABLE_TYPE=gpt\n"), "has a partition table gpt"),
    ],
    ids=["wipefs", "partition", "udev"],
)
def test_a_disk_with_data_needs_its_serial_number(host: FakeHost, make: Any, found: str) -> None:
    make(host)
    text = refusal(host, {**WANTED, "devices": [NVME0], "erase_ok": ["OTHER"]})
    assert found in text
    assert "SER0 in kvm_host_erase_ok" in text
    host.convert(WITH_NVME)


def test_a_disk_that_cannot_be_examined_is_refused(host: FakeHost, monkeypatch: pytest.MonkeyPatch) -> None:
    run = host.run
    monkeypatch.setattr(host, "run", lambda words: (1, "", "no such tool") if words[0] == "wipefs" else run(words))
    assert "unknown content (wipefs failed: no such tool)" in refusal(host, {**WANTED, "devices": [NVME0]})


# --- network ------------------------------------------------------------------------------------------------------


def nic_up(host: FakeHost) -> None:
    host.interface("ib0", NIC0, up=True)


def with_address(host: FakeHost) -> None:
    nic_up(host)
    host.address("ib0", "192.168.7.1", 24)


def with_ipv6(host: FakeHost) -> None:
    nic_up(host)
    host.write("proc/net/if_inet6", "fd000000000000000000000000000001 03 40 00 80     ib0\n")


def default_route(host: FakeHost) -> None:
    host.interface("ib0", NIC0, up=False)
    host.address("ib0", "192.168.7.1", 24, default=True)


def upper(name: str, kind: str) -> Callable[[FakeHost], None]:
    def make(host: FakeHost) -> None:
        host.interface("ib0", NIC0)
        host.interface(name, None, kind=kind)
        host.link(f"{host.paths[NIC0]}/net/ib0/upper_{name}", "x/" + name)
        host.link(f"sys/devices/virtual/net/{name}/lower_ib0", "x/ib0")
        if kind in ("bond", "bridge"):
            host.link(f"{host.paths[NIC0]}/net/ib0/master", "x/" + name)

    return make


def address_on_vlan_on_bond(host: FakeHost) -> None:
    upper("bond0", "bond")(host)
    host.interface("bond0.5", None, up=True, kind="vlan")
    host.link("sys/devices/virtual/net/bond0.5/lower_bond0", "x/bond0")
    host.address("bond0.5", "10.9.0.1", 16)


def nfs(host: FakeHost) -> None:
    with_address(host)
    host.mount("0:50", "/home", "nfs4", "filer:/home", "rw,vers=4.2,addr=192.168.7.9")


def iscsi(host: FakeHost) -> None:
    with_address(host)
    host.write("sys/class/iscsi_connection/connection1:0/address", "192.168.7.8\n")


def ssh(host: FakeHost) -> None:
    with_address(host)
    host.process(60, "sshd-session", "socket:[4711]")
    host.write(
        "proc/net/tcp",
        "  sl  local_address rem_address   st tx_queue rx_queue tr tm->when retrnsmt   uid  timeout inode\n"
        "   0: 0107A8C0:0016 0207A8C0:C350 01 00000000:00000000 00:00000000 00000000     0        0 4711 1\n",
    )


NET_USES: list[tuple[str, Callable[[FakeHost], None], str]] = [
    ("address", with_address, "interface ib0 is up with address 192.168.7.1"),
    ("ipv6", with_ipv6, "interface ib0 is up with address fd00::1"),
    ("route", with_address, "interface ib0 carries the route to 192.168.7.0/24"),
    ("default-route", default_route, "interface ib0 carries the default route"),
    ("bond", upper("bond0", "bond"), "interface ib0 belongs to the bond bond0"),
    ("bridge", upper("br0", "bridge"), "interface ib0 belongs to the bridge br0"),
    ("vlan", upper("ib0.5", "vlan"), "interface ib0 belongs to the VLAN ib0.5"),
    ("address-on-vlan", address_on_vlan_on_bond, "interface bond0.5 is up with address 10.9.0.1"),
    ("nfs", nfs, "the network mount /home (nfs4) reaches 192.168.7.9 through it"),
    ("iscsi", iscsi, "an iSCSI session reaches 192.168.7.8 through it"),
    ("ssh", ssh, "an SSH session runs through interface ib0 (192.168.7.1)"),
]


@pytest.mark.parametrize(("make", "reason"), [use[1:] for use in NET_USES], ids=[use[0] for use in NET_USES])
def test_a_nic_in_use_is_refused(host: FakeHost, make: Callable[[FakeHost], None], reason: str) -> None:
    make(host)
    text = refusal(host)
    assert f"nic {NIC0} is in use by the host: {reason}" in text
    assert GPU0 not in text


def test_a_nic_that_is_only_up_is_free(host: FakeHost) -> None:
    nic_up(host)
    host.write("proc/net/if_inet6", "fe800000000000000000000000000001 03 40 20 80     ib0\n")
    assert host.runner().plan(WANTED).changed


def test_the_way_out_is_to_exclude_a_nic(host: FakeHost) -> None:
    with_address(host)
    host.convert({**WANTED, "exclude": [NIC0]})
    assert host.driver(NIC0) == "mlx5_core"


def test_an_onboard_nic_is_never_meant_by_a_role(host: FakeHost) -> None:
    """The management NIC is up with an address: were it in the set, the conversion would be refused."""
    host.convert()
    assert host.driver(IGB) == "igb"
    assert f"{IGB} is in use by the host" in refusal(FakeHost(host.root / "2"), {**WANTED, "devices": [IGB]})


# --- open handles -------------------------------------------------------------------------------------------------


def test_a_gpu_with_open_handles_is_refused(host: FakeHost) -> None:
    host.write(f"proc/driver/nvidia/gpus/{GPU1}/information", "Model: \t H200\nDevice Minor: \t 1\n")
    host.process(70, "python3", "/dev/nvidia1", "/dev/null")
    text = refusal(host)
    assert f"gpu {GPU1} is in use by the host: python3 (pid 70) has /dev/nvidia1 open" in text
    assert GPU0 not in text


def test_a_handle_that_cannot_be_mapped_counts_for_all_gpus(host: FakeHost) -> None:
    host.process(70, "nvidia-persiste", "/dev/nvidia0")
    text = refusal(host)
    assert f"gpu {GPU0} is in use" in text
    assert f"gpu {GPU1} is in use" in text


def test_the_fabric_manager_holds_nvswitches(host: FakeHost) -> None:
    host.process(71, "nv-fabricmanage", "/dev/nvidia-nvswitch0")
    text = refusal(host)
    assert f"nvswitch {SWITCH0} is in use by the host: nv-fabricmanage (pid 71)" in text
    assert f"nvswitch {SWITCH1}" in text


def test_rdma_and_display_handles(host: FakeHost) -> None:
    host.link("sys/class/infiniband_verbs/uverbs0/device", f"../../../{host.paths[NIC0][4:]}")
    host.link("sys/class/drm/renderD128/device", f"../../../{host.paths[GPU0][4:]}")
    host.process(72, "ib_write_bw", "/dev/infiniband/uverbs0")
    host.process(73, "Xorg", "/dev/dri/renderD128")
    text = refusal(host)
    assert f"nic {NIC0} is in use by the host: ib_write_bw (pid 72) has /dev/infiniband/uverbs0 open" in text
    assert f"gpu {GPU0} is in use by the host: Xorg (pid 73) has /dev/dri/renderD128 open" in text


# --- groups and the machine ---------------------------------------------------------------------------------------


def regroup(host: FakeHost, bdf: str, group: int) -> None:
    link = host.root / host.paths[bdf] / "iommu_group"
    target = link.readlink()
    link.unlink()
    link.symlink_to(target.parent / str(group))


def test_a_device_that_shares_its_group_with_a_used_one_is_refused(host: FakeHost) -> None:
    regroup(host, IGB, 32)  # GPU0's
    text = refusal(host)
    assert f"device {IGB} shares IOMMU group 32 with {GPU0} and is in use by the host: interface eth0" in text


def test_a_group_goes_as_a_whole(host: FakeHost) -> None:
    regroup(host, NVME0, 32)
    assert f"nvme {NVME0} shares IOMMU group 32 with {GPU0} but is not in the passthrough set" in refusal(host)


def test_a_bridge_in_the_group_does_not_matter(host: FakeHost) -> None:
    port = host.root / host.paths["0000:22:00.0"] / "iommu_group"
    port.symlink_to((host.root / host.paths[GPU0] / "iommu_group").readlink())
    assert host.runner().plan(WANTED).changed


def test_a_virtual_function_in_use_keeps_its_physical_one(host: FakeHost) -> None:
    host.pci("0000:24:00.1", "0000:22:01.0", "15b3:101e", "0x020700", 0, 0, group=44, physfn=NIC0)
    host.interface("vf0", "0000:24:00.1", up=True)
    host.address("vf0", "10.77.0.1", 24)
    assert f"nic {NIC0} is in use by the host: its virtual function 0000:24:00.1 is used" in refusal(host)


def test_no_iommu_no_virtualization(host: FakeHost) -> None:
    (host.root / "sys/firmware/acpi/tables/DMAR").unlink()
    host.write("proc/cpuinfo", "flags\t\t: fpu lm pdpe1gb\n")
    text = refusal(host)
    assert "switch on VT-d or AMD-Vi in the firmware setup" in text
    assert "the CPU shows neither vmx nor svm" in text


def test_another_architecture(host: FakeHost) -> None:
    host.write("proc/sys/kernel/arch", "aarch64\n")
    assert "the CPU architecture is aarch64" in refusal(host)


def test_too_little_memory(host: FakeHost) -> None:
    text = refusal(host, {**WANTED, "hugepages": {"per_node": {"0": 6, "1": 5}}})
    assert "node 0 has 8.0 GiB of memory: of 6 huge pages of 1 GiB at most 5 fit" in text
    assert "node 1" not in text


def test_vms_that_run(host: FakeHost) -> None:
    host.write("run/libvirt/qemu/old.xml", "<domstatus/>")
    host.write("run/libvirt/qemu/old.pid", "80")
    host.process(80, "qemu-system-x86")
    host.process(81, "qemu-kvm")
    text = refusal(host)
    assert "VM old is running" in text
    assert "qemu-kvm (pid 81) runs a VM" in text
    assert "pid 80" not in text


def test_nothing_to_pass_through(host: FakeHost) -> None:
    assert "the passthrough set is empty" in refusal(host, {**WANTED, "passthrough": [], "fabric_model": "none"})


def test_all_reasons_come_at_once(host: FakeHost) -> None:
    with_address(host)
    (host.root / "sys/firmware/acpi/tables/DMAR").unlink()
    (host.root / "boot/grub/grub.cfg").unlink()
    host.write("run/libvirt/qemu/old.xml", "<domstatus/>")
    text = refusal(host)
    for part in ("no IOMMU", "interface ib0", "boot loader", "VM old is running"):
        assert part in text


@pytest.mark.parametrize(
    ("wanted", "part"),
    [
        ({"devices": ["0000:ff:00.0"]}, "devices: there is no PCI function 0000:ff:00.0"),
        ({"exclude": ["0000:ff:00.0"]}, "exclude: there is no PCI function 0000:ff:00.0"),
        ({"devices": ["0000:20:00.0"]}, "0000:20:00.0 is a root port, not an endpoint"),
        ({"fabric_model": "some"}, "fabric model 'some' is none of"),
        ({"passthrough": ["gpu", "disk"]}, "passthrough role 'disk' is none of"),
        ({"passthrough": ["nvswitch"], "fabric_model": "shared_nvswitch"}, "keeps it on the host"),
        ({"hugepages": {"page_size": "4KiB"}}, "huge page size '4KiB' is none of"),
        ({"hugepages": {"per_node": {"7": 1}}}, "there is no NUMA node 7"),
        ({"hugepages": {"per_node": {"0": "many"}}}, "count 'many', which is not a number"),
    ],
)
def test_wishes_that_make_no_sense(host: FakeHost, wanted: dict[str, Any], part: str) -> None:
    assert part in refusal(host, {**WANTED, **wanted})


# --- the boot loader ----------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("make", "part"),
    [
        (lambda h: (h.root / "boot/grub/grubenv").unlink(), "/boot/grub/grubenv is missing"),
        (lambda h: h.write("boot/grub/grubenv", "short"), "is no environment block"),
        (lambda h: h.write("boot/grub/grub.cfg", "menuentry 'x' {\n}\n"), "does not source custom.cfg"),
        (lambda h: h.mount("9:1", "/boot", "ext4", "/dev/md1"), "/boot/grub lies on ext4 on /dev/md1"),
        (lambda h: h.mount("253:0", "/boot", "ext4", "/dev/mapper/vg-boot"), "/boot/grub lies on ext4 on /dev/mapper/"),
        (lambda h: h.mount("0:30", "/boot", "btrfs", "/dev/sda1"), "/boot/grub lies on btrfs"),
        (lambda h: h.mount("0:31", "/boot", "zfs", "bpool/BOOT"), "/boot/grub lies on zfs"),
        (lambda h: (h.root / "usr/sbin/mkinitramfs").unlink(), "the host has neither mkinitramfs nor dracut"),
    ],
    ids=["no-grubenv", "bad-grubenv", "no-custom", "md", "lvm", "btrfs", "zfs", "no-mkinitramfs"],
)
def test_a_boot_loader_that_cannot_try_an_entry_once(host: FakeHost, make: Any, part: str) -> None:
    make(host)
    assert part in refusal(host)
