# Copyright: the topovirt.kvm authors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Machine descriptions: the one that exists, its variants, and every kind of fault with its place."""

from __future__ import annotations

from typing import Any

import pytest
import yaml

from tests.twin import addresses, description

HGX = "hgx-h200"


@pytest.fixture
def data() -> Any:
    return yaml.safe_load((description.MACHINES / f"{HGX}.yml").read_text(encoding="utf-8"))


def test_the_reference_machine() -> None:
    machine = description.load(HGX)
    kinds = [endpoint.kind.name for endpoint in machine.endpoints()]
    assert (kinds.count("h200"), kinds.count("cx7"), kinds.count("nvswitch")) == (8, 8, 4)
    assert len([device for device in machine.devices() if isinstance(device, description.Nvme)]) == 4
    h200 = next(machine.endpoints()).kind
    assert (h200.vendor, h200.device, h200.bars) == (0x10DE, 0x2335, {0: 16 << 20, 2: 256 << 30, 4: 32 << 20})
    assert len({endpoint.serial for endpoint in machine.endpoints()}) == 20


def test_variant_without_iommu_changes_nothing_else() -> None:
    machine, without = description.load(HGX), description.load(HGX, "no-iommu")
    assert (machine.iommu, without.iommu) == ("dmar", None)
    assert without.host_bridges == machine.host_bridges
    assert addresses.iommu_groups(without) == {}


def test_unknown_names_list_what_there_is() -> None:
    with pytest.raises(description.DescriptionError, match=r"'dgx-9'.*hgx-h200"):
        description.load("dgx-9")
    with pytest.raises(description.DescriptionError, match=r"'turbo'.*no-iommu"):
        description.load(HGX, "turbo")


def test_every_machine_loads() -> None:
    for name in description.names():
        assert description.load(name).name == name


@pytest.mark.parametrize(
    ("path", "value", "fault"),
    [
        (["schema"], 2, "schema: 2; expected 1"),
        (["name"], "HGX", "name: 'HGX'"),
        (["iommu"], "smmu", "iommu: 'smmu'; expected dmar"),
        (["color"], "green", "color: unknown"),
        (["cpu", "vendor"], "Intel", "cpu.vendor: 'Intel'; expected GenuineIntel or AuthenticAMD"),
        (["cpu", "physical_bits"], 64, "cpu.physical_bits: 64; expected a whole number from 32 to 52"),
        (["scale", "real", "cores_per_l3"], 5, "scale.real.cores_per_l3: 5; expected a divisor of cores_per_socket"),
        (
            ["scale", "boot", "threads_per_core"],
            4,
            "scale.boot.threads_per_core: 4; expected a whole number from 1 to 2",
        ),
        (["scale", "boot", "sockets"], 4, "scale.boot.sockets: 4; expected as many as the nodes name: [0, 1]"),
        (["nodes", 0, "distances"], [11, 21], "nodes[0].distances: [11, 21]; expected 10 to itself"),
        (["nodes", 1, "id"], 7, "nodes[1].id: 7; expected 1"),
        (["devices", "h200", "device"], 2335, "devices.h200.device: 2335; expected text like [0-9a-f]{4} (quote it)"),
        (["devices", "h200", "bars", 2], "200GiB", "devices.h200.bars.2: '200GiB'; expected a power of two"),
        (["devices", "h200", "link"], [7, 16], "devices.h200.link: [7, 16]"),
        (["devices", "cx7", "ats"], "no", "devices.cx7.ats: 'no'; expected true or false"),
        (["devices", "cx7", "vpd"], {"fields": {}}, "devices.cx7.vpd.name: missing"),
        (
            ["devices", "cx7", "vpd"],
            {"name": "x", "fields": {"va": "a"}},
            "devices.cx7.vpd.fields: 'va'; expected a key",
        ),
        (
            ["devices", "cx7", "vpd"],
            {"name": "x", "fields": {"RV": "a"}},
            "devices.cx7.vpd.fields: 'RV'; expected a key",
        ),
        (["devices", "cx7", "vpd"], {"name": "x", "fields": {"VA": "a" * 256}}, "devices.cx7.vpd.fields.VA: 'aaa"),
        (
            ["devices", "cx7", "vpd"],
            {"name": "x", "fields": ["VA"]},
            "devices.cx7.vpd.fields: ['VA']; expected a mapping",
        ),
        (["host_bridges", 1, "bus"], 0x25, "host_bridges[0].bus: '0x20'; expected ascending, with room up to bus 0x29"),
        (["host_bridges", 0, "node"], 5, "host_bridges[0].node: 5; expected a whole number from 0 to 1"),
        (
            ["host_bridges", 0, "ports", 0, "switch", 0, "endpoint"],
            "b200",
            "[0].endpoint: 'b200'; expected one of",
        ),
        (
            ["host_bridges", 0, "ports", 0, "switch", 0, "module_id"],
            4,
            "module_id: 4; expected a module id",
        ),
        (["host_bridges", 0, "ports", 0, "switch", 0, "name"], "gpu7", "name: 'gpu7'; expected a name that no other"),
        (["host_bridges", 0, "ports", 0, "switch", 4, "serial"], "TWINNVME1", "serial: 'TWINNVME1'; expected a serial"),
        (["host_bridges", 0, "ports", 2, "functions", 0, "network"], "none", "'0 cards with network management'"),
    ],
)
def test_faults_name_element_value_and_what_was_expected(data: Any, path: list[Any], value: Any, fault: str) -> None:
    place = data
    for step in path[:-1]:
        place = place[step]
    place[path[-1]] = value
    with pytest.raises(description.DescriptionError) as caught:
        description.parse(data)
    assert fault in str(caught.value)


def test_all_faults_come_at_once(data: Any) -> None:
    data["iommu"] = "none"
    del data["title"]
    data["devices"]["cx7"]["vendor"] = "mellanox"
    with pytest.raises(description.DescriptionError) as caught:
        description.parse(data, "mine.yml")
    lines = str(caught.value).splitlines()
    assert len(lines) == 3
    assert all(line.startswith("mine.yml: ") for line in lines)


def test_something_that_is_no_mapping() -> None:
    with pytest.raises(description.DescriptionError, match="expected a mapping"):
        description.parse(["a"])
