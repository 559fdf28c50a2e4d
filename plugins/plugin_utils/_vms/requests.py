# Copyright: the topovirt.kvm authors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""What an operator writes about VMs and images -> what the modules need. Pure.

An operator names an image; a plan needs paths on the host, the host needs the files, and a VM with a disk needs an
overlay of its own. What the request asks of the machine (GPUs, memory ...) is not looked at: the plan checks that.
"""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from typing import Any, TypedDict

from ansible_collections.topovirt.kvm.plugins.module_utils._errors import TopovirtError
from ansible_collections.topovirt.kvm.plugins.module_utils._libvirt.domains import chosen_names
from ansible_collections.topovirt.kvm.plugins.module_utils._libvirt.images import DIRECTORY

STATES = ("running", "defined", "stopped")
# Keys of an item that are for us; all others are the request.
_OWN_KEYS = ("image", "state", "disk")
_KERNEL_KEYS = {"kernel", "initrd", "cmdline"}
_DISK_KEYS = {"disk", "format"}
_FORMATS = ("qcow2", "raw")


class ImageFile(TypedDict, total=False):
    """A file that the host needs: parameters of ``vm_image``, or ``src``, a file of the controller."""

    name: str
    dest: str
    src: str
    path: str
    url: str
    checksum: str


class Overlay(TypedDict):
    """Parameters of ``vm_image`` for the disk of one VM."""

    name: str
    backing: str
    backing_format: str
    size: str | None


class Vm(TypedDict):
    name: str
    state: str
    disks: list[str]


class Wanted(TypedDict):
    requests: list[dict[str, Any]]  # for vm_plan
    vms: list[Vm]
    files: list[ImageFile]
    overlays: list[Overlay]


def _file(where: str, name: str, source: Any, base: str, problems: list[str]) -> ImageFile:
    made: ImageFile = {"name": name, "dest": f"{DIRECTORY}/{name}"}
    if isinstance(source, str) and source:
        source = {"src": source}
    if not isinstance(source, Mapping):
        problems.append(f"{where}: {source!r} is neither a path nor one of src, path and url.")
        return made
    given = [key for key in ("src", "path", "url") if source.get(key)]
    unknown = sorted(set(source) - {"src", "path", "url", "checksum"})
    if len(given) != 1 or unknown:
        problems.append(
            f"{where}: expected exactly one of src (on the controller), path (on the host) and url, and a checksum"
            f" where wanted, not {', '.join(sorted(source)) or 'nothing'}."
        )
        return made
    if given == ["url"] and not source.get("checksum"):
        problems.append(f"{where}: {source['url']} needs a checksum (sha256:...).")
    if given == ["src"]:
        made["src"] = os.path.normpath(os.path.join(base, source["src"]))
        return made
    if given == ["path"]:
        made["path"] = source["path"]
    else:
        made["url"] = source["url"]
    if source.get("checksum"):
        made["checksum"] = source["checksum"]
    return made


class _Images:
    """Images by name; those that are asked for are collected."""

    def __init__(self, images: Mapping[str, Any], base: str, problems: list[str]) -> None:
        self.images = images
        self.base = base
        self.problems = problems
        self.files: dict[str, ImageFile] = {}
        self.overlays: list[Overlay] = []

    def _take(self, image: str, part: str, source: Any) -> str:
        name = f"images/{image}/{part}"
        if name not in self.files:
            self.files[name] = _file(f"Image '{image}', {part}", name, source, self.base, self.problems)
        return self.files[name]["dest"]

    def boot(self, vm: str, image: str, size: str | None) -> tuple[dict[str, Any], list[str]]:
        """What the VM boots from, and the disks that are its own."""
        entry = self.images.get(image)
        if entry is None:
            known = ", ".join(sorted(self.images)) or "none"
            self.problems.append(f"VM '{vm}': the image '{image}' does not exist, known images: {known}.")
            return {}, []
        keys = set(entry) if isinstance(entry, Mapping) else set()
        if "kernel" in keys and keys <= _KERNEL_KEYS:
            boot = {key: self._take(image, key, entry[key]) for key in ("kernel", "initrd") if key in entry}
            return boot | ({"cmdline": entry["cmdline"]} if "cmdline" in entry else {}), []
        if "disk" in keys and keys <= _DISK_KEYS and entry.get("format", "qcow2") in _FORMATS:
            image_format = entry.get("format", "qcow2")
            backing = self._take(image, f"disk.{image_format}", entry["disk"]).removeprefix(f"{DIRECTORY}/")
            name = f"vms/{vm}/root.qcow2"
            self.overlays.append({"name": name, "backing": backing, "backing_format": image_format, "size": size})
            return {"disk": {"path": f"{DIRECTORY}/{name}", "format": "qcow2"}}, [f"{DIRECTORY}/{name}"]
        self.problems.append(
            f"Image '{image}': expected kernel, initrd and cmdline, or disk and format (qcow2 or raw), "
            f"not {', '.join(sorted(keys)) or repr(entry)}."
        )
        return {}, []


def resolve(vms: Sequence[Mapping[str, Any]], images: Mapping[str, Any], base: str, names: Any = "") -> Wanted:
    """Requests, files and overlays of a list of VMs.

    :param vms: requests with ``image`` (or ``boot``), ``state`` and ``disk`` (size of the VM's own disk, or
        "auto" for the image's) beside what the plan takes.
    :param images: name -> ``{kernel, initrd, cmdline}`` or ``{disk, format}``; each source is a path on the controller,
        or a mapping with one of ``src``, ``path`` (on the host) and ``url``, and ``checksum``.
    :param base: directory of the controller that relative paths start from.
    :param names: only these VMs, as a list or with commas between the names; empty or "all" for all.
    :raises TopovirtError: one error that names every problem.
    """
    problems: list[str] = []
    catalogue = _Images(images, base, problems)
    requests: list[dict[str, Any]] = []
    found: list[Vm] = []
    chosen = chosen_names(names.split(",") if isinstance(names, str) else names)
    there = [str(item.get("name")) for item in vms]
    problems += [
        f"VM '{name}' is not in the list of VMs: {', '.join(there) or 'it is empty'}."
        for name in chosen
        if name not in there
    ]
    for item, name in zip(vms, there, strict=True):
        if chosen and name not in chosen:
            continue
        request = {key: value for key, value in item.items() if key not in _OWN_KEYS}
        disks: list[str] = []
        if ("image" in item) == ("boot" in item):
            problems.append(
                f"VM '{name}': expected either image (a name of gpu_vm_images) or boot (paths on the host)."
            )
        elif "image" in item:
            size = item.get("disk", "auto")
            request["boot"], disks = catalogue.boot(name, str(item["image"]), None if size == "auto" else size)
        state = item.get("state", "running")
        if state not in STATES:
            problems.append(f"VM '{name}': state is '{state}', expected one of {', '.join(STATES)}.")
        requests.append(request)
        found.append({"name": name, "state": state, "disks": disks})
    if problems:
        raise TopovirtError(" ".join(problems), "Nothing was changed.")
    return {
        "requests": requests,
        "vms": found,
        "files": list(catalogue.files.values()),
        "overlays": catalogue.overlays,
    }
