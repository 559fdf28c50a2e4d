# Copyright: the topovirt.kvm authors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""All images of the emulated server: baked when their inputs or the archive's packages changed, else from the cache."""

from __future__ import annotations

import functools
import json
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from tests.twin.images import guest, host, libvirt_tree, modular_libvirt, process, qemu_tree, rhel, shapes, store
from tests.twin.images import mirror as debian
from tests.twin.standins import build as standins

TWIN = Path(__file__).parents[1]
#: Files of ours, relative to tests/twin, that go into every image.
COMMON = ("images/mirror.py",)
#: Those that go into the disk of every server.
SERVER = (
    *("images/server", "images/server.py", "images/disk.py", "images/modules.py"),
    *("standins/nvidia-smi", "standins/fmpm"),
)
RHEL = (
    *("images/rhel", "images/rhel.py", "images/rhel_boot.py", "images/rhel_packages.py", "images/rpm_spec.py"),
    *("images/host/files/etc/default/grub", "images/shapes.py", "standins/grubby"),
)


@dataclass(frozen=True)
class Images:
    """Where everything lies that an emulated server boots from. All of it is read-only."""

    #: Tree with QEMU >= 10.1; ``/`` where the system's own is used. See qemu_tree.py for how to run it.
    qemu_root: Path
    #: qcow2; put an overlay over it.
    host_disk: Path
    ovmf_code: Path
    #: Template of the firmware's variables; copy it per run.
    ovmf_vars: Path
    #: Private key of root and ops on the server, mode 0600.
    ssh_key: Path
    guest_kernel: Path
    guest_initrd: Path
    #: Baked versions: ``qemu``, ``kernel``, and package -> version below ``host``, ``repository``, ``guest``.
    packages: dict[str, Any]


@dataclass(frozen=True)
class GuestImages:
    """What judges and boots a guest without an emulated server. All of it is read-only."""

    #: As in :class:`Images`.
    qemu_root: Path
    ovmf_code: Path
    ovmf_vars: Path
    guest_kernel: Path
    guest_initrd: Path
    #: Tree with libvirt; see libvirt_tree.py.
    libvirt_root: Path
    #: Baked versions: ``qemu``, ``libvirt``, and package -> version below ``guest``.
    packages: dict[str, Any]


class Baker:
    """One call's view of the cache and the mirror."""

    def __init__(self, cache: Path, log: Callable[[str], None]) -> None:
        self.cache = cache / "images"
        self.log = log
        self._mirror: debian.Mirror | None = None
        self._mirror_error: process.BakeError | None = None

    def mirror(self) -> debian.Mirror:
        """The mirror, asked once.

        :raises BakeError: none answers.
        """
        if self._mirror_error is not None:
            raise self._mirror_error
        if self._mirror is None:
            try:
                self._mirror = debian.Mirror.of_this_machine()
            except process.BakeError as error:
                self._mirror_error = error
                raise
        return self._mirror

    def ensure(
        self,
        image: str,
        files: Sequence[str],
        extra: Sequence[str],
        state: Callable[[debian.Mirror], str],
        build: Callable[[Path, debian.Mirror], None],
    ) -> Path:
        """The folder of an image, made now if need be.

        :param files: files and folders of ours that go into it, relative to tests/twin.
        :param extra: further inputs, such as the keys of other images.
        :param state: digest of the mirror's versions that matter.
        :raises BakeError: the bake failed, or there is neither a mirror nor an image of these inputs.
        """
        inputs = store.digest([store.digest_of_files(TWIN, (*COMMON, *files)), *extra])
        try:
            versions = state(self.mirror())
        except process.BakeError as error:
            found = store.find(self.cache, image, inputs, None)
            if found is None:
                raise
            self.log(f"{image}: the mirror does not answer, using {found.name} ({error})")
            return found
        found = store.find(self.cache, image, inputs, versions)
        if found is None:
            process.require_tools()
            start = time.monotonic()
            self.log(f"{image}: baking")
            mirror = self.mirror()
            found = store.publish(self.cache, image, f"{inputs}-{versions}", lambda work: build(work, mirror))
            self.log(f"{image}: baked in {time.monotonic() - start:.0f} s")
        store.prune(self.cache, image, found)
        return found

    def qemu(self) -> Path:
        """The private QEMU tree's folder."""
        return self.ensure(
            "qemu",
            ["images/qemu_tree.py"],
            [],
            lambda mirror: store.digest(
                f"{k}={v}" for k, v in sorted(mirror.versions(debian.BACKPORTS, qemu_tree.PACKAGES).items())
            ),
            qemu_tree.build,
        )

    def guest(self) -> Path:
        """The folder of the guest's kernel and initramfs."""
        return self.ensure(
            "guest", ["images/guest", "images/guest.py", "images/modules.py"], [], debian.Mirror.state, guest.build
        )

    def libvirt(self) -> Path:
        """The folder of the tree with libvirt."""
        return self.ensure("libvirt", ["images/libvirt_tree.py"], [], debian.Mirror.state, libvirt_tree.build)

    def debian(self, drivers: Path, qemu_img: Sequence[str]) -> Path:
        """The folder of the server's disk with Debian on it."""
        return self.ensure(
            "host",
            ["images/host", "images/host.py", "images/repository.py", *SERVER],
            [drivers.name],
            debian.Mirror.state,
            lambda work, mirror: host.build(work, mirror, drivers, qemu_img, self.log),
        )

    def rhel(self, shape: str, drivers: Path, qemu_img: Sequence[str]) -> Path:
        """The folder of the server's disk in the shape of a release of RHEL."""
        release = shapes.RHEL[shape]
        libvirt = self.ensure(
            "modular-libvirt", ["images/modular_libvirt.py"], [], debian.Mirror.state, modular_libvirt.build
        )
        return self.ensure(
            shape,
            [*RHEL, *SERVER],
            [drivers.name, libvirt.name],
            lambda mirror: rhel.state(mirror, release),
            lambda work, mirror: rhel.build(work, mirror, release, drivers, libvirt, qemu_img, self.log),
        )


def _packages(*folders: Path) -> dict[str, Any]:
    total: dict[str, Any] = {}
    for folder in folders:
        total.update(json.loads((folder / "packages.json").read_text()))
    return total


def _qemu_root(tree: Path) -> Path:
    return qemu_tree.SYSTEM if qemu_tree.system_is_enough() else tree


def ensure_libvirt(cache: Path, log: Callable[[str], None]) -> Path:
    """The tree with libvirt alone, made now if need be.

    :raises BakeError: as :func:`ensure_images`.
    """
    baker = Baker(cache.resolve(), log)
    with store.lock(baker.cache, log):
        return baker.libvirt() / "tree"


def ensure_guest_images(cache: Path, log: Callable[[str], None]) -> GuestImages:
    """What :func:`ensure_images` does, for guests that need no server.

    :raises BakeError: as there.
    """
    baker = Baker(cache.resolve(), log)
    with store.lock(baker.cache, log):
        tree, small, libvirt = baker.qemu(), baker.guest(), baker.libvirt()
    firmware = tree / "tree"
    return GuestImages(
        qemu_root=_qemu_root(firmware),
        ovmf_code=firmware / qemu_tree.OVMF_CODE,
        ovmf_vars=firmware / qemu_tree.OVMF_VARS,
        guest_kernel=small / "vmlinuz",
        guest_initrd=small / "initrd",
        libvirt_root=libvirt / "tree",
        packages=_packages(tree, small, libvirt),
    )


def ensure_images(cache: Path, log: Callable[[str], None], shape: str = shapes.DEBIAN) -> Images:
    """Bake what is missing and say where everything lies. Safe to call from several processes at once.

    :param cache: folder that outlives checkouts.
    :param shape: the distribution on the server's disk, one of ``shapes.NAMES``; no other one is baked.
    :param log: told what runs now and how long it took.
    :raises BakeError: names what is missing, or which step failed with its last output.
    """
    baker = Baker(cache.resolve(), log)
    with store.lock(baker.cache, log):
        tree = baker.qemu()
        firmware = tree / "tree"
        root = _qemu_root(firmware)
        drivers = baker.ensure(
            "standins",
            ["standins/build.py", "standins/driver"],
            [standins.table()],
            debian.Mirror.state,
            standins.build,
        )
        small = baker.guest()
        qemu_img = qemu_tree.tool(firmware, "qemu-img")
        make = baker.debian if shape == shapes.DEBIAN else functools.partial(baker.rhel, shape)
        server = make(drivers, qemu_img)
    return Images(
        qemu_root=root,
        host_disk=server / "disk.qcow2",
        ovmf_code=firmware / qemu_tree.OVMF_CODE,
        ovmf_vars=firmware / qemu_tree.OVMF_VARS,
        ssh_key=server / "key",
        guest_kernel=small / "vmlinuz",
        guest_initrd=small / "initrd",
        packages=_packages(tree, small, server),
    )
