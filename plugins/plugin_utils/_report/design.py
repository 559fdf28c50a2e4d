# Copyright: the topovirt.kvm authors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""VMs designed for a machine that need not be there: what would be placed, defined and seen. Pure.

Nothing runs, so every figure here is planned, none is measured.
"""

from __future__ import annotations

import json
import xml.etree.ElementTree as ET
from collections.abc import Mapping, Sequence
from typing import Any, TypedDict

from ansible_collections.topovirt.kvm.plugins.module_utils._errors import TopovirtError
from ansible_collections.topovirt.kvm.plugins.module_utils._libvirt.domains import parse_domain
from ansible_collections.topovirt.kvm.plugins.module_utils._topology.compare import compare
from ansible_collections.topovirt.kvm.plugins.module_utils._topology.model import ROLES, Topology
from ansible_collections.topovirt.kvm.plugins.plugin_utils._guest.expected import expected_guest
from ansible_collections.topovirt.kvm.plugins.plugin_utils._placement.plan import make_plan
from ansible_collections.topovirt.kvm.plugins.plugin_utils._report.guest_svg import draw_guest
from ansible_collections.topovirt.kvm.plugins.plugin_utils._report.svg import draw_host
from ansible_collections.topovirt.kvm.plugins.plugin_utils._vms.requests import resolve

SCHEMA = 1
# No VM's name begins so.
HOST_PICTURE = "_host.svg"
# Stands for the image of a VM that names none, or one of which nothing else is known.
ASSUMED_IMAGE = {"disk": "assumed"}
# A capture leaves out what speaks of a host's users (mounts, routes, open files).
NOTE = (
    "Planned, not measured: no guest was booted. What the host itself uses is known as far as the recording tells it."
)


class Design(TypedDict):
    plan: dict[str, Any]  # plan.json
    files: dict[str, str]  # name -> text, plan.json included


def _requests(
    vms: Sequence[Mapping[str, Any]], images: Mapping[str, Any], base: str
) -> tuple[list[dict[str, Any]], list[str]]:
    """Requests for the plan, and the VMs whose image was assumed to be a disk."""
    named = [item if "boot" in item else {"image": "assumed", **item} for item in vms]
    assumed = {str(item["image"]): ASSUMED_IMAGE for item in named if "image" in item and item["image"] not in images}
    requests = resolve(named, {**images, **assumed}, base)["requests"]
    return requests, [str(item.get("name")) for item in named if item.get("image") in assumed]


def _text(picture: ET.Element) -> str:
    return ET.tostring(picture, encoding="unicode") + "\n"


def _as_json(data: Mapping[str, Any]) -> str:
    return json.dumps(data, indent=2, sort_keys=True) + "\n"


def _spec(vm: Mapping[str, Any], topology: Topology, assumed: bool) -> tuple[dict[str, Any], str]:
    """Specification and picture of one placed VM."""
    guest = expected_guest(vm["layout"], topology)
    comparison = compare(topology, guest["guest_topology"], guest["identity"], guest["node_map"], guest["cpu_map"])
    figures = {"paths": comparison["fidelity"]["paths"], "siblings": comparison["fidelity"]["siblings"]}
    figures["L3"] = comparison["fidelity"]["l3"]
    told = " · ".join(f"{what} {one['equal']} of {one['pairs']}" for what, one in figures.items() if one is not None)
    spec = {
        "schema": SCHEMA,
        "name": vm["name"],
        "basis": "planned",
        "boot_assumed": assumed,
        "placement": vm["placement"],
        "layout": vm["layout"],
        "explanation": vm["explanation"],
        "fidelity": comparison["fidelity"],
        "causes": comparison["causes"],
        "cpu_differences": comparison["cpu_differences"],
        "warnings": vm["warnings"],
    }
    picture = draw_guest(vm["name"], topology, vm["layout"], guest, f"pairs equal: {told}")
    return spec, _text(picture)


def _summary(vm: Mapping[str, Any], spec: Mapping[str, Any], files: Sequence[str]) -> dict[str, Any]:
    placement, layout = vm["placement"], vm["layout"]
    roles = [device["role"] or "other" for device in placement["devices"]]
    return {
        "name": vm["name"],
        "nodes": placement["nodes"],
        "devices": {role: roles.count(role) for role in (*ROLES, "other") if role in roles},
        "vcpus": len(layout["vcpu_pins"]),
        "memory_bytes": sum(cell["memory_bytes"] for cell in layout["cells"]),
        "partition": None if placement["partition"] is None else placement["partition"]["id"],
        "fidelity": spec["fidelity"],
        "boot_assumed": spec["boot_assumed"],
        "warnings": vm["warnings"],
        "files": list(files),
    }


def design(
    topology: Topology,
    vms: Sequence[Mapping[str, Any]],
    fabric_model: str = "none",
    policy: Mapping[str, Any] | None = None,
    images: Mapping[str, Any] | None = None,
    name: str = "host",
) -> Design:
    """Plan VMs for a machine as it would be after its conversion, with no VM on it.

    :param vms: what ``gpu_vms`` says. An image that is not among ``images``, or none, is assumed to be a disk.
    :param name: the host's, which makes UUIDs the ones that it would give.
    :raises TopovirtError: for a list, a model or a policy that is wrong in itself. What does not fit is refused in
        ``plan`` with its reasons.
    """
    if not vms:
        raise TopovirtError(
            "gpu_vms is empty: there is nothing to plan.", "List the VMs that you want, as for deploy-vms."
        )
    requests, assumed = _requests(vms, images or {}, "/")
    made = make_plan(requests, topology, [], fabric_model, name, policy, "unconverted", explain=True, partial=True)
    placed = made["vms"]
    files: dict[str, str] = {}
    summaries = []
    for vm in placed:
        spec, picture = _spec(vm, topology, vm["name"] in assumed)
        own = {
            f"{vm['name']}.spec.json": _as_json(spec),
            f"{vm['name']}.domain.xml": vm["domain_xml"],
            f"{vm['name']}.nccl.xml": vm["nccl_xml"],
            f"{vm['name']}.svg": picture,
        }
        files.update(own)
        summaries.append(_summary(vm, spec, list(own)))
    tenants = [parse_domain(vm["domain_xml"]) for vm in placed]
    files[HOST_PICTURE] = _text(draw_host(topology, tenants))
    plan = {
        "schema": SCHEMA,
        "basis": "planned",
        "host": name,
        "picture": HOST_PICTURE,
        "fabric_model": fabric_model,
        "placed": summaries,
        "refused": made["refused"],
        "still_fits": {"gpus": made["still_fits"]},
        "notes": [NOTE],
    }
    return Design(plan=plan, files={**files, "plan.json": _as_json(plan)})
