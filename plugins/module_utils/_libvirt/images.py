# Copyright: the topovirt.kvm authors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Boot sources of VMs on the host: kernels, initial RAM disks, disk images, and overlays over those."""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
import shutil
import stat
from pathlib import Path
from typing import IO, Any, Callable, ContextManager, Dict, NamedTuple, Optional

from ansible_collections.topovirt.kvm.plugins.module_utils._errors import TopovirtError
from ansible_collections.topovirt.kvm.plugins.module_utils._host.places import Run
from ansible_collections.topovirt.kvm.plugins.module_utils._libvirt.files import below, make_directories

# libvirt's own image directory: its user and, where there is one, its security label may read here.
DIRECTORY = "/var/lib/libvirt/images/topovirt"
_SUFFIX = ".topovirt-new"
_BLOCK = 1 << 20

Fetch = Callable[[str], ContextManager[IO[bytes]]]


class Image(NamedTuple):
    """A wanted image; exactly one of ``src``, ``path``, ``url`` and ``backing`` says where it comes from."""

    name: str  # relative to DIRECTORY
    src: Optional[str] = None  # on the controller: the host can only tell whether it has to be sent
    path: Optional[str] = None  # absolute, on the host
    url: Optional[str] = None
    checksum: Optional[str] = None  # "sha256:<hex>"
    backing: Optional[str] = None  # name of the image that an overlay is made over
    backing_format: str = "qcow2"
    size: Optional[str] = None  # of an overlay, as qemu-img takes it; None for that of the backing image
    mode: int = 0o644

    @property
    def destination(self) -> str:
        return f"{DIRECTORY}/{self.name}"


def file_digest(place: Path, algorithm: str = "sha256") -> str:
    digest = hashlib.new(algorithm)
    with place.open("rb") as stream:
        for block in iter(lambda: stream.read(_BLOCK), b""):
            digest.update(block)
    return digest.hexdigest()


def _check(image: Image) -> None:
    problems = []
    if os.path.isabs(image.name) or os.path.normpath(image.name) != image.name or image.name.startswith(".."):
        problems.append(f"the name '{image.name}' is not a path below {DIRECTORY}")
    if image.checksum is not None:
        kind, _colon, value = image.checksum.partition(":")
        if kind != "sha256" or len(value) != 64 or set(value.lower()) - set("0123456789abcdef"):
            problems.append(f"the checksum '{image.checksum}' is not of the form sha256:<64 hex digits>")
    if image.path is None and image.backing is None and image.checksum is None:
        problems.append(
            f"{image.url or image.src} has no checksum, so what arrives could not be told from what was meant"
        )
    if image.path is not None and not os.path.isabs(image.path):
        problems.append(f"the path '{image.path}' is not absolute")
    if problems:
        raise TopovirtError(f"Image '{image.name}': {'; '.join(problems)}.")


def _matches(place: Path, image: Image) -> bool:
    return image.checksum is None or file_digest(place) == image.checksum.partition(":")[2].lower()


def _needs_content(root: Path, image: Image) -> bool:
    destination = below(root, image.destination)
    if image.path is not None:
        source = below(root, image.path)
        if not source.is_file():
            raise TopovirtError(f"Image '{image.name}': {image.path} does not exist on the host or is no file.")
        if not _matches(source, image):
            raise TopovirtError(f"Image '{image.name}': {image.path} has another checksum than {image.checksum}.")
        if not destination.is_file():
            return True
        # The copy keeps the time of its source, so that large images need not be read again.
        return (destination.stat().st_size, destination.stat().st_mtime_ns) != (
            source.stat().st_size,
            source.stat().st_mtime_ns,
        )
    return not destination.is_file() or not _matches(destination, image)


def _fill(root: Path, image: Image, place: Path, fetch: Fetch) -> None:
    if image.path is not None:
        source = below(root, image.path)
        shutil.copyfile(source, place)
        os.utime(place, ns=(source.stat().st_atime_ns, source.stat().st_mtime_ns))
        return
    with fetch(image.url or "") as stream, place.open("wb") as target:
        shutil.copyfileobj(stream, target, _BLOCK)
    if not _matches(place, image):
        raise TopovirtError(
            f"Image '{image.name}': what {image.url} sent has the checksum sha256:{file_digest(place)}, "
            f"expected {image.checksum}.",
            "Nothing was kept.",
        )


def _overlay_needed(root: Path, image: Image, run: Run) -> bool:
    """Whether the overlay is missing. One that exists holds a VM's data and is never made again."""
    destination = below(root, image.destination)
    if not destination.exists():
        return True
    status, output, errors = run(["qemu-img", "info", "--force-share", "--output=json", str(destination)])
    if status != 0:
        raise TopovirtError(f"Image '{image.name}': qemu-img cannot read it: {errors.strip()}.")
    backing = json.loads(output).get("backing-filename")
    wanted = f"{DIRECTORY}/{image.backing}"
    if backing != wanted:
        raise TopovirtError(
            f"Image '{image.name}' lies over {backing or 'no other image'}, wanted is {wanted}.",
            "It holds the data of a VM and is not replaced. Delete the VM first, its image goes with it.",
        )
    return False


def _make_overlay(root: Path, image: Image, place: Path, run: Run) -> None:
    backing = f"{DIRECTORY}/{image.backing}"
    if not below(root, backing).is_file():
        raise TopovirtError(f"Image '{image.name}': the image {backing} below it does not exist on the host.")
    command = ["qemu-img", "create", "-q", "-f", "qcow2", "-F", image.backing_format, "-b", backing, str(place)]
    status, output, errors = run(command + ([image.size] if image.size else []))
    if status != 0:
        raise TopovirtError(f"Image '{image.name}' cannot be made: {(errors or output).strip()}.")


def ensure_image(root: Path, image: Image, fetch: Fetch, run: Run, check_mode: bool) -> Dict[str, Any]:
    """Make one image present, whole or not at all.

    :returns: ``changed``, ``path``, ``actions``, and ``send``: the content of ``src`` is needed; nothing was done yet.
    :raises TopovirtError: when its source does not exist or is not what was meant.
    """
    _check(image)
    destination = below(root, image.destination)
    overlay = image.backing is not None
    fill = _overlay_needed(root, image, run) if overlay else _needs_content(root, image)
    actions = [f"{'create' if overlay else 'write'} {image.destination}"] if fill else []
    # QEMU's user owns an overlay while the VM runs; its mode is left alone.
    if not fill and not overlay and stat.S_IMODE(destination.stat().st_mode) != image.mode:
        actions.append(f"set mode of {image.destination} to {image.mode:04o}")
    send = fill and image.src is not None
    if actions and not check_mode and not send:
        try:
            if fill:
                _replace(root, image, destination, fetch, run)
            if not overlay:
                os.chmod(destination, image.mode)
        except OSError as error:
            raise TopovirtError(f"Image '{image.name}' cannot be written: {error}.") from None
    return {"changed": bool(actions), "path": image.destination, "actions": actions, "send": send}


def _replace(root: Path, image: Image, destination: Path, fetch: Fetch, run: Run) -> None:
    make_directories(destination.parent)
    new = destination.with_name(destination.name + _SUFFIX)
    try:
        if image.backing is not None:
            _make_overlay(root, image, new, run)
        else:
            _fill(root, image, new, fetch)
        descriptor = os.open(new, os.O_RDONLY | os.O_CLOEXEC)
        try:
            os.fsync(descriptor)
        finally:
            os.close(descriptor)
        os.replace(new, destination)
    finally:
        with contextlib.suppress(FileNotFoundError):
            os.unlink(new)
