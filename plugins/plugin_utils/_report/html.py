# Copyright: the topovirt.kvm authors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""One self-contained HTML page about a host: its picture, its tenants and what their kernels see."""

from __future__ import annotations

import xml.etree.ElementTree as ET
from collections.abc import Mapping, Sequence
from typing import TypedDict

from ansible_collections.topovirt.kvm.plugins.module_utils._libvirt.domains import Allocation
from ansible_collections.topovirt.kvm.plugins.module_utils._topology.compare import Comparison
from ansible_collections.topovirt.kvm.plugins.module_utils._topology.model import PciFunction, Topology
from ansible_collections.topovirt.kvm.plugins.plugin_utils._report.owners import Owners, gib, short_bdf
from ansible_collections.topovirt.kvm.plugins.plugin_utils._report.svg import ROLE_NAMES, draw_host, kind_name
from ansible_collections.topovirt.kvm.plugins.plugin_utils._vms.text import fidelity_text

STYLE = """
body { font: 15px/1.5 system-ui, 'DejaVu Sans', 'Segoe UI', Helvetica, Arial, sans-serif; color: #1f2933;
  background: #fff; max-width: 1280px; margin: 0 auto; padding: 24px; }
h1 { font-size: 26px; margin: 0 0 4px; } h2 { font-size: 19px; margin: 36px 0 8px; }
h3 { font-size: 16px; margin: 24px 0 6px; }
p.note { background: #fff8e1; border-left: 4px solid #d9a400; padding: 6px 12px; margin: 8px 0; }
dl { display: grid; grid-template-columns: max-content 1fr; gap: 2px 18px; margin: 0; }
dt { color: #52606d; } dd { margin: 0; overflow-wrap: anywhere; }
ul.tiles { list-style: none; display: flex; flex-wrap: wrap; gap: 10px; padding: 0; margin: 14px 0; }
ul.tiles li { border: 1px solid #cbd2d9; border-radius: 8px; padding: 8px 14px; min-width: 96px; color: #52606d; }
ul.tiles b { display: block; font-size: 20px; color: #1f2933; }
table { border-collapse: collapse; } th, td { text-align: left; padding: 4px 10px; border-bottom: 1px solid #dde3e9;
  vertical-align: top; } th { color: #52606d; font-weight: 600; }
td:not(:last-child), th { white-space: nowrap; }
code, .mono { font-family: ui-monospace, 'DejaVu Sans Mono', Menlo, Consolas, monospace; font-size: 12px; }
table.matrix td { font-size: 11px; text-align: center; padding: 2px 4px; border: 1px solid #fff; min-width: 34px; }
table.matrix th { font-size: 11px; padding: 2px 6px; border: 0; white-space: nowrap; }
table.matrix thead th { writing-mode: vertical-rl; transform: rotate(180deg); text-align: left; padding: 6px 2px; }
td.same { background: #d8efe0; } td.self { background: #eef2f6; color: #7b8794; }
td.other { background: #c62828; color: #fff; font-weight: 700; }
.good { color: #1b7a3d; font-weight: 600; } .bad { color: #c62828; font-weight: 600; }
.swatch { display: inline-block; width: 12px; height: 12px; border: 1px solid; border-radius: 3px; margin-right: 6px; }
.scroll { overflow-x: auto; }
@media print { body { max-width: none; padding: 0; } }
"""


PLURALS = {"gpu": "GPUs", "nic": "NICs", "nvswitch": "NVSwitches", "fabric_bridge": "bridges", "nvme": "NVMe"}


class Verification(TypedDict):
    """The comparison of one VM, as verify-vms stores it."""

    vm: str
    comparison: Comparison


def _add(parent: ET.Element, tag: str, text: str = "", **attributes: str) -> ET.Element:
    element = ET.SubElement(parent, tag, {name.rstrip("_"): value for name, value in attributes.items()})
    element.text = text or None
    return element


def _table(parent: ET.Element, columns: Sequence[str]) -> ET.Element:
    """A table with its head; returns the body."""
    table = _add(_add(parent, "div", class_="scroll"), "table")
    head = _add(_add(table, "thead"), "tr")
    for column in columns:
        _add(head, "th", column)
    return _add(table, "tbody")


def _named(function: PciFunction | None, bdf: str) -> str:
    """``GPU M2 23:00.0``: what a reader knows the device by."""
    if function is None:
        return short_bdf(bdf)
    module = f" M{function['module_id']}" if function["module_id"] is not None else ""
    return f"{kind_name(function)}{module} {short_bdf(bdf)}"


def _tiles(body: ET.Element, topology: Topology, domains: Sequence[Allocation], owners: Owners) -> None:
    tiles = _add(body, "ul", class_="tiles")

    def tile(value: str, what: str) -> None:
        item = _add(tiles, "li")
        _add(item, "b", value).tail = what

    for role, name in ROLE_NAMES.items():
        devices = [f for f in topology["pci"] if f["role"] == role and f["physfn"] is None]
        if devices:
            free = sum(owners.of_device(function).kind == "free" for function in devices)
            tile(f"{len(devices)}", f"{PLURALS[role] if len(devices) > 1 else name}, {free} free")
    tile(f"{len(domains)}", f"VM{'' if len(domains) == 1 else 's'}")
    tile(f"{sum(len(core['threads']) for core in topology['cores'])}", "logical CPUs")
    tile(gib(sum(node["memory_bytes"] or 0 for node in topology["numa_nodes"])), "memory")


def _tenants(
    body: ET.Element,
    topology: Topology,
    domains: Sequence[Allocation],
    verified: Mapping[str, Comparison],
    owners: Owners,
) -> None:
    _add(body, "h2", "Tenants")
    if not domains:
        _add(body, "p", "No VM is defined on this host.")
        return
    functions = {function["bdf"]: function for function in topology["pci"]}
    rows = _table(body, ["VM", "state", "devices", "CPUs (vCPUs | emulator)", "memory", "NVLink partition", "topology"])
    for domain in sorted(domains, key=lambda domain: domain["name"]):
        row = _add(rows, "tr")
        owner = owners.vms[domain["name"]]
        name = _add(row, "td")
        _add(name, "span", class_="swatch", style=f"background:{owner.fill};border-color:{owner.line}").tail = domain[
            "name"
        ]
        _add(row, "td", domain["state"])
        roles = [functions[bdf]["role"] if bdf in functions else None for bdf in domain["hostdevs"]]
        counted = [f"{roles.count(role)} {label}" for role, label in ROLE_NAMES.items() if role in roles]
        modules = sorted(
            module
            for bdf in domain["hostdevs"]
            if bdf in functions and (module := functions[bdf]["module_id"]) is not None
        )
        devices = ", ".join(counted) or "none"
        _add(row, "td", devices + (f" (modules {', '.join(map(str, modules))})" if modules else ""))
        _add(row, "td", f"{domain['cpus'] or 'float'} | {domain['emulator_cpus'] or 'float'}", class_="mono")
        parts = [f"node {node}: {gib(size)}" for node, size in sorted(domain["memory_by_node"].items())]
        _add(row, "td", ", ".join(parts) or gib(domain["memory_bytes"]))
        partition = (domain["metadata"] or {}).get("partition")
        _add(row, "td", "-" if partition is None else str(partition))
        if domain["name"] not in verified:
            _add(row, "td", "not compared")
        elif verified[domain["name"]]["equal"]:
            _add(row, "td", "as on the host", class_="good")
        else:
            _add(row, "td", "differs", class_="bad")


def _comparison(body: ET.Element, vm: str, result: Comparison, functions: Mapping[str, PciFunction]) -> None:
    _add(body, "h3", vm)
    counted = f"{result['devices']} devices, {result['pairs']} pairs: "
    if result["equal"]:
        _add(body, "p", counted + "every path and every NUMA node is what the host has.", class_="good")
    else:
        _add(body, "p", counted + "the guest does not see what the host has.", class_="bad")
    _add(body, "p", "; ".join(fidelity_text(result)))
    reasons = [cause["cause"] for cause in result["causes"]]
    reasons += [*result["identity_errors"], *result["node_map_errors"]]
    reasons += [
        f"{_named(functions.get(gone['bdf']), gone['bdf'])} is missing in the {gone['side']}"
        for gone in result["missing"]
    ]
    reasons += [
        f"{_named(functions.get(wrong['bdf']), wrong['bdf'])} is on the guest's node {wrong['guest_node']}, "
        f"expected {wrong['expected_guest_node']} for the host's node {wrong['host_node']}"
        for wrong in result["node_differences"]
    ]
    if reasons:
        reasons_list = _add(body, "ul")
        for reason in reasons:
            _add(reasons_list, "li", reason, class_="bad")
    _matrix(body, result, functions)


def _matrix(body: ET.Element, result: Comparison, functions: Mapping[str, PciFunction]) -> None:
    """Host and guest in one matrix: an equal cell shows the class, another one both."""
    matrix = result["matrix"]
    table = _add(_add(body, "div", class_="scroll"), "table", class_="matrix")
    head = _add(_add(table, "thead"), "tr")
    _add(head, "th")
    for bdf in matrix["order"]:
        _add(head, "th", short_bdf(bdf), class_="mono")
    rows = _add(table, "tbody")
    for bdf, host_row, guest_row in zip(matrix["order"], matrix["host"], matrix["guest"], strict=True):
        row = _add(rows, "tr")
        _add(row, "th", _named(functions.get(bdf), bdf))
        for other, host, guest in zip(matrix["order"], host_row, guest_row, strict=True):
            if host != guest:
                _add(row, "td", f"{host} → {guest}", class_="other", title="host → guest")
            else:
                _add(row, "td", host, class_="self" if other == bdf else "same")


def _host(body: ET.Element, topology: Topology) -> None:
    _add(body, "h2", "Host")
    host, iommu = topology["host"], topology["iommu"]
    facts = {
        "operating system": f"{host['os_id'] or 'unknown'} {host['os_version'] or ''}",
        "kernel": f"{host['kernel']} ({host['arch']}, {host['firmware'] or 'unknown firmware'})",
        "command line": host["cmdline"],
        "CPU": f"{host['cpu_model_name'] or host['cpu_vendor'] or 'unknown'}",
        "virtualization": host["virtualization"] or "off",
        "IOMMU": f"{iommu['kind'] or 'none'}, {'' if iommu['active'] else 'not '}active, {iommu['groups']} groups",
    }
    listing = _add(body, "dl")
    for what, value in facts.items():
        _add(listing, "dt", what)
        _add(listing, "dd", value, class_="mono")


def _devices(body: ET.Element, topology: Topology, owners: Owners) -> None:
    _add(body, "h2", "Devices")
    rows = _table(body, ["device", "ids", "NUMA node", "IOMMU group", "link", "driver", "owner"])
    for function in topology["pci"]:
        if function["kind"] != "endpoint" or not (function["role"] or function["in_use"]):
            continue
        row, link = _add(rows, "tr"), function["link"]
        speed = (
            f"{link['max_gtps']:g} GT/s x{link['max_width']}" if link["max_gtps"] and link["max_width"] else "unknown"
        )
        owner = owners.of_device(function)
        _add(row, "td", _named(function, function["bdf"]))
        _add(row, "td", f"{function['vendor']}:{function['device']}", class_="mono")
        for value in (function["numa_node"], function["iommu_group"]):
            _add(row, "td", "unknown" if value is None else str(value))
        _add(row, "td", speed)
        _add(row, "td", function["driver"] or "none")
        _add(row, "td", "; ".join(function["in_use"]) or owner.name)


def report(
    topology: Topology,
    domains: Sequence[Allocation],
    verifications: Sequence[Verification],
    title: str,
    notes: Sequence[str] = (),
) -> str:
    """The page as text.

    :param domains: what ``vm_info`` returns.
    :param verifications: one comparison per VM, newest last; those of VMs that are gone are left out.
    :param notes: sentences that a reader must know first.
    """
    owners = Owners(domains)
    functions = {function["bdf"]: function for function in topology["pci"]}
    page = ET.Element("html", {"lang": "en"})
    head = _add(page, "head")
    _add(head, "meta", charset="utf-8")
    _add(head, "meta", name="viewport", content="width=device-width, initial-scale=1")
    _add(head, "title", title)
    _add(head, "style", STYLE)
    body = _add(page, "body")
    _add(body, "h1", title)
    for note in notes:
        _add(body, "p", note, class_="note")
    _tiles(body, topology, domains, owners)
    _add(body, "div", class_="scroll").append(draw_host(topology, domains))
    there = {domain["name"] for domain in domains}
    verified = {entry["vm"]: entry["comparison"] for entry in verifications if entry["vm"] in there}
    _tenants(body, topology, domains, verified, owners)
    if verified:
        _add(body, "h2", "What the guests' kernels see")
        _add(
            body,
            "p",
            "Path classes between passed-through devices, as nvidia-smi topo -m names them: PIX one switch, PXB "
            "several switches, PHB the host bridge, NODE the NUMA node, SYS across nodes. A green cell is equal on "
            "host and guest, a red one shows host → guest.",
        )
        for vm, comparison in sorted(verified.items()):
            _comparison(body, vm, comparison, functions)
    _host(body, topology)
    _devices(body, topology, owners)
    return "<!DOCTYPE html>\n" + ET.tostring(page, encoding="unicode", method="html") + "\n"
