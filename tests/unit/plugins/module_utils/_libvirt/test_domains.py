# Copyright: the topovirt.kvm authors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

from __future__ import annotations

from pathlib import Path

import pytest
from ansible_collections.topovirt.kvm.plugins.module_utils._errors import TopovirtError
from ansible_collections.topovirt.kvm.plugins.module_utils._libvirt import domains
from ansible_collections.topovirt.kvm.tests.unit.plugins.module_utils._libvirt.sample import OURS, domain_xml

GIB = 1 << 30
CAPTURES = Path(__file__).resolve().parents[6] / "shared" / "captures" / "libvirt"


def captured(name: str) -> str:
    path = CAPTURES / name
    if not path.exists():
        pytest.skip(f"the captures of other projects are not on this machine: {path}")
    return path.read_text()


def test_what_a_vm_of_ours_owns() -> None:
    entry = domains.parse_domain(domain_xml(devices=("0000:26:00.0", "0000:23:00.0"), metadata=OURS))
    assert entry == {
        "name": "train-0",
        "uuid": None,
        "state": "shut off",
        "persistent": True,
        "autostart": False,
        "ours": True,
        "hostdevs": ["0000:23:00.0", "0000:26:00.0"],
        "cpus": "2-3",
        "emulator_cpus": "0-1",
        "memory_bytes": 2 * GIB,
        "memory_by_node": {"0": 2 * GIB},
        "page_size_bytes": GIB,
        "metadata": OURS,
    }


def test_every_way_to_own_a_pci_function_counts() -> None:
    extra = (
        "<interface type='hostdev'><source><address type='pci' domain='0x0000' bus='0x28' slot='0x00' function='0x2'/>"
        "</source></interface>"
        "<disk type='nvme' device='disk'><source type='pci' namespace='1'>"
        "<address domain='0' bus='41' slot='0' function='0'/></source><target dev='vda'/></disk>"
        "<hostdev mode='subsystem' type='mdev' model='vfio-pci'><source>"
        "<address uuid='c2177883-f1bb-47f0-914d-32a22e3a8804'/></source></hostdev>"
        "<interface type='network'><source network='default'/></interface>"
    )
    entry = domains.parse_domain(domain_xml(extra=extra))
    assert entry["hostdevs"] == ["0000:23:00.0", "0000:28:00.2", "0000:29:00.0"]
    assert entry["ours"] is False and entry["metadata"] is None


def test_a_running_domain_owns_its_live_and_its_next_definition() -> None:
    live = domain_xml(devices=("0000:23:00.0",), cpus=("2", "3"), memory_gib=2)
    later = domain_xml(devices=("0000:24:00.0",), cpus=("4", "5"), memory_gib=3, node=1)
    entry = domains.parse_domain(live, later)
    assert entry["hostdevs"] == ["0000:23:00.0", "0000:24:00.0"]
    assert entry["cpus"] == "2-5"
    assert entry["memory_bytes"] == 3 * GIB
    assert entry["memory_by_node"] == {"0": 2 * GIB, "1": 3 * GIB}


def test_without_pins_and_binding_nothing_is_guessed() -> None:
    entry = domains.parse_domain("<domain><name>x</name><memory>1048576</memory><vcpu>2</vcpu></domain>")
    assert entry["cpus"] == "" and entry["emulator_cpus"] == ""
    assert entry["memory_bytes"] == GIB
    assert entry["memory_by_node"] == {} and entry["page_size_bytes"] is None


def test_memory_bound_to_several_nodes_belongs_to_none_of_them() -> None:
    text = "<domain><name>x</name><memory>1048576</memory><numatune><memory nodeset='0-1'/></numatune></domain>"
    assert domains.parse_domain(text)["memory_by_node"] == {}


def test_published_vm_with_eight_gpus() -> None:
    """Figures counted in the file by hand (grep), not taken from our parser."""
    text = captured("vela/sample-optimized-a100-vm-q35.xml")
    entry = domains.parse_domain(text)
    assert len(entry["hostdevs"]) == text.count("type='pci' managed=") == len(set(entry["hostdevs"]))
    assert entry["page_size_bytes"] == GIB
    assert set(entry["memory_by_node"]) == {"0", "1"}


@pytest.mark.parametrize(
    ("name", "expected"),
    [
        ("qemuxmlconfdata/hostdev-vfio.x86_64-latest.xml", ["0000:06:12.1", "0000:06:12.2", "0000:06:12.3"]),
        ("qemuxmlconfdata/numatune-memnode.xml", []),
    ],
)
def test_libvirts_own_examples_are_read(name: str, expected: list[str]) -> None:
    assert domains.parse_domain(captured(name))["hostdevs"][: len(expected)] == expected


@pytest.mark.parametrize(
    ("value", "unit", "expected"),
    [("4", None, 4096), ("4", "KiB", 4096), ("4", "k", 4096), ("4", "KB", 4000), ("2", "GiB", 2 * GIB), ("7", "b", 7)],
)
def test_units(value: str, unit: str | None, expected: int) -> None:
    assert domains.scaled_bytes(value, unit) == expected


@pytest.mark.parametrize(("value", "unit"), [("4", "furlong"), ("four", "KiB"), ("", None)])
def test_wrong_sizes_are_refused(value: str, unit: str | None) -> None:
    with pytest.raises(TopovirtError, match="not one that libvirt knows"):
        domains.scaled_bytes(value, unit)


def test_cpusets_of_libvirt_may_take_cpus_out() -> None:
    assert domains.parse_cpuset("0-3,^2,8") == [0, 1, 3, 8]
    with pytest.raises(TopovirtError, match="'x' is neither a number nor a range"):
        domains.parse_cpuset("0,x")


@pytest.mark.parametrize("text", ["<domain>", "<network/>"])
def test_what_is_no_domain_is_refused(text: str) -> None:
    with pytest.raises(TopovirtError):
        domains.parse_domain(text)


@pytest.mark.parametrize(
    ("metadata", "word"),
    [({"schema": 99}, "schema 99"), ({}, "schema None"), ({"unreadable": "what"}, "not a JSON object")],
)
def test_metadata_of_newer_versions_is_refused(metadata: dict[str, object], word: str) -> None:
    assert word in domains.metadata_refusal("train-0", metadata)
    assert domains.metadata_refusal("train-0", {"schema": 1}) == ""
    assert domains.metadata_refusal("train-0", None) == ""


DOMAINS = [
    domains.parse_domain(domain_xml("b", metadata=OURS)),
    domains.parse_domain(domain_xml("a", metadata=OURS)),
    domains.parse_domain(domain_xml("theirs")),
]


@pytest.mark.parametrize(
    ("names", "expected"),
    [([], ["a", "b"]), (["all"], ["a", "b"]), (["b", " a ", ""], ["b", "a"]), (["a", "a"], ["a"])],
)
def test_selection(names: list[str], expected: list[str]) -> None:
    assert [domain["name"] for domain in domains.select(DOMAINS, names)] == expected


def test_unknown_and_foreign_names_are_refused_together() -> None:
    with pytest.raises(TopovirtError) as error:
        domains.select(DOMAINS, ["a", "theirs", "nobody"])
    assert "VM 'nobody' is not known on this host. VM 'theirs' was not made by topovirt.kvm." in str(error.value)
    assert "a, b" in str(error.value)
