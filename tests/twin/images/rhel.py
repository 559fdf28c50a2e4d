# Copyright: the topovirt.kvm authors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""The image of an emulated server that looks like Red Hat Enterprise Linux and is made of Debian's packages.

Debian's kernel, systemd and libraries below RHEL's names, package manager, boot entries and daemons; what is RHEL's
shape and what is not is in docs/what-is-emulated.md. Written into ``work``: as by host.py.
"""

from __future__ import annotations

import json
import re
import shutil
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

from tests.twin.images import disk, process, rhel_boot, rhel_packages, rpm_spec, server, store
from tests.twin.images import mirror as debian
from tests.twin.images.shapes import Rhel

HERE = Path(__file__).parent / "rhel"
DEBIAN_DEFAULT_GRUB = Path(__file__).parent / "host/files/etc/default/grub"
LAYOUT = disk.SEPARATE_BOOT
PLATFORM_PYTHON = "usr/libexec/platform-python"
DEBIAN_PYTHON = re.compile(rb"#! ?/usr/bin/(?:env )?python3(?:\.\d+)?((?: .*)?)\n")
SITE_PACKAGES = "usr/lib/python3/dist-packages"

#: The first GRUB that reads boot loader entries as Red Hat's does (command blscfg).
GRUB_SUITE, GRUB_PACKAGE = "forky", "grub-efi-amd64-bin"
#: The last Debian with the Python of RHEL 9.
OLD_SUITE = "bullseye"
OLD_PYTHON = "3.9"
OLD_PACKAGES = ("python3.9-minimal", "libpython3.9-minimal", "libpython3.9-stdlib", "python3-libvirt")
#: What that Python needs and the image's own suite has no more.
OLD_LIBRARIES = ("libcrypto.so.1.1", "libssl.so.1.1", "libffi.so.7*", "libmpdec.so.*")
BINDING = "python3-libvirt"
#: Come with the binding and are replaced by ours.
REPLACED = {"libvirt0", "libvirt-common"}


def state(mirror: debian.Mirror, release: Rhel) -> str:
    """Digest of the mirror's versions that go into the image."""
    versions = mirror.versions(GRUB_SUITE, [GRUB_PACKAGE])
    if release.python == OLD_PYTHON:
        versions |= mirror.versions(OLD_SUITE, OLD_PACKAGES)
    return store.digest([mirror.state(), *(f"{name}={version}" for name, version in sorted(versions.items()))])


def build(
    work: Path,
    mirror: debian.Mirror,
    release: Rhel,
    drivers: Path,
    libvirt: Path,
    qemu_img: Sequence[str],
    log: Callable[[str], None],
) -> None:
    """Make the image.

    :param drivers: as in ``server.add_drivers``.
    :param libvirt: folder of ``modular_libvirt.build``.
    :raises BakeError: a step failed, or the drivers are for another kernel.
    """
    log("RHEL-shaped image: packages")
    own_python = release.python is None
    wanted = [*rhel_packages.SOURCES, *([BINDING] if own_python else [])]
    tree = server.bootstrap(work, mirror, server.names(HERE / "packages.txt"), wanted, [HERE / "early"])
    grub = extract(work, mirror, "grub", GRUB_SUITE, [GRUB_PACKAGE])
    if not own_python:
        old = extract(work, mirror, "python", OLD_SUITE, OLD_PACKAGES)
        add_old_python(old, tree)
    else:
        old = None
    kernel = server.add_drivers(tree, drivers)
    installed = debian.installed(tree)

    log("RHEL-shaped image: repository")
    rpm = work / "rpm"
    versions = fill_payload(work, rpm / "payload", libvirt, old)
    versions[rhel_packages.KERNEL] = kernel.replace("-", "_")
    versions[rhel_packages.DISTRIBUTION] = release.version
    packages = rhel_packages.all_packages(kernel, release.major, own_python)
    (rpm / "all.spec").write_text(rpm_spec.spec(packages, versions, f"1.el{release.major}"))

    log("RHEL-shaped image: disguise, initramfs, boot loader")
    for path in scripts(tree):
        use_platform_python(path)
    bake = server.add_files(tree, work, HERE / "files")
    python = tree / PLATFORM_PYTHON
    python.parent.mkdir(exist_ok=True)
    python.symlink_to("../bin/python3.13")
    write_texts(tree, release, kernel)
    shutil.copy(HERE / "customize.sh", bake)
    shutil.copytree(grub / "usr/lib/grub/x86_64-efi", bake / "grub-modules")
    (bake / "early.cfg").write_text(rhel_boot.EARLY_CONFIGURATION)
    (bake / "entry.conf").write_text(entry_text(release, kernel))
    (bake / "preinstalled").write_text("\n".join([*rhel_packages.BASE_NAMES, *release.installed]) + "\n")
    environment = {
        "ROOT_DEVICE": disk.device(disk.ROOT, LAYOUT),
        "ROOT_UUID": disk.ROOT_UUID,
        "ROOT_PARTUUID": disk.ROOT_PARTUUID,
        "GRUB_MODULES": " ".join(rhel_boot.GRUB_MODULES),
    }
    process.chroot(tree, ["bash", "/bake/customize.sh", kernel], work / "log", environment, share=rpm)
    loader = work / "grubx64.efi"
    shutil.move(bake / "grubx64.efi", loader)
    shutil.rmtree(bake)

    log("RHEL-shaped image: disk")
    loaders = {"EFI/BOOT/BOOTX64.EFI": loader, "EFI/redhat/grubx64.efi": loader}
    disk.make(tree, loaders, work / "disk.qcow2", server.SIZE_BYTES, qemu_img, work, LAYOUT)
    (work / "packages.json").write_text(json.dumps({"host": installed, "repository": versions, "kernel": kernel}))
    for part in ("tree", "downloads", "early", "rpm", "grub", "python"):
        shutil.rmtree(work / part, ignore_errors=True)


def extract(work: Path, mirror: debian.Mirror, name: str, suite: str, packages: Sequence[str]) -> Path:
    """Packages of another suite, unpacked. That suite may be so old or so new that its mirrored index has expired."""
    tree = work / name
    lenient = 'Acquire::Check-Valid-Until \\"false\\";'
    hook = f'mkdir -p "$1/etc/apt/apt.conf.d" && echo "{lenient}" > "$1/etc/apt/apt.conf.d/50expired"'
    mirror.bootstrap(tree, "extract", packages, work / "log", suites=(suite,), hooks=[("setup", hook)])
    return tree


def add_old_python(old: Path, tree: Path) -> None:
    """Python 3.9 beside the image's own, with a site of its own and as ``python3``."""
    name = f"python{OLD_PYTHON}"
    shutil.copy2(old / "usr/bin" / name, tree / "usr/bin" / name)
    shutil.copytree(old / "usr/lib" / name, tree / "usr/lib" / name, symlinks=True, dirs_exist_ok=True)
    libraries = Path("usr/lib/x86_64-linux-gnu")
    for pattern in OLD_LIBRARIES:
        for library in (old / libraries).glob(pattern):
            shutil.copy2(library, tree / libraries / library.name, follow_symlinks=False)
    site = tree / "usr/lib" / name / "site.py"
    text = site.read_text()
    if '"python3",' not in text:
        raise process.BakeError(f"{site} names no folder of Debian's packages; teach tests/twin/images/rhel.py.")
    # Debian's packages are for its own Python.
    site.write_text(text.replace('"python3",', f'"{name}",').replace('"dist-packages"', '"site-packages"'))
    (tree / "usr/lib" / name / "site-packages").mkdir()
    for link in ("python3", "python"):
        (tree / "usr/bin" / link).unlink(missing_ok=True)
        (tree / "usr/bin" / link).symlink_to(name)


def fill_payload(work: Path, payload: Path, libvirt: Path, old: Path | None) -> dict[str, str]:
    """The files of all packages as they will lie on the server; returns the versions of what they are from.

    :raises BakeError: Debian's packages need one more that the table does not know.
    """
    payload.mkdir(parents=True)
    log, versions, unknown = work / "log", {}, []
    known = {*rhel_packages.SOURCES, *rhel_packages.PARTS}
    for deb in sorted((work / "downloads").glob("*.deb")):
        name, version = process.output(["dpkg-deb", "-f", deb, "Package", "Version"]).split("\n")[:2]
        name, version = name.partition(": ")[2], version.partition(": ")[2]
        if name in known or name == BINDING:
            process.run(["dpkg-deb", "-x", deb, payload], log)
            versions[name] = rpm_spec.upstream(version)
        elif name not in REPLACED:
            unknown.append(name)
    if unknown:
        raise process.BakeError(
            f"Packages without a place in the RHEL-shaped image: {', '.join(unknown)}. Add libraries to "
            "tests/twin/images/rhel/packages.txt, the others to rhel_packages.py."
        )
    if old is not None:
        site = payload / f"usr/lib/python{OLD_PYTHON}/site-packages"
        site.mkdir(parents=True)
        for file in (old / SITE_PACKAGES).glob("libvirt*"):
            (shutil.copytree if file.is_dir() else shutil.copy2)(file, site / file.name)
        versions[BINDING] = "7.0.0"
    shutil.copytree(libvirt / "tree", payload, symlinks=True, dirs_exist_ok=True)
    versions[rhel_packages.LIBVIRT] = json.loads((libvirt / "packages.json").read_text())["modular libvirt"]
    rhel_packages.shape(payload)
    server.lay(HERE / "payload", payload)
    grubby = payload / "usr/sbin/grubby"
    shutil.copyfile(server.STANDINS / "grubby", grubby)
    grubby.chmod(0o755)
    for path in scripts(payload):
        use_platform_python(path)
    return versions


def scripts(tree: Path) -> Iterator[Path]:
    """Programs of a tree where programs lie."""
    for folder in ("usr/bin", "usr/sbin", "usr/libexec"):
        yield from (path for path in (tree / folder).rglob("*") if path.is_file() and not path.is_symlink())


def use_platform_python(path: Path) -> None:
    """Let a program of Debian run with the Python that Debian's packages are for, whatever ``python3`` is."""
    with path.open("rb") as file:
        first = file.readline(80)
    found = DEBIAN_PYTHON.match(first)
    if found is None:
        return
    mode, rest = path.stat().st_mode, path.read_bytes()[len(first) :]
    path.write_bytes(b"#!/" + PLATFORM_PYTHON.encode() + found[1] + b"\n" + rest)
    path.chmod(mode)


def arguments() -> str:
    """What the kernel is told besides its root."""
    return rhel_boot.extras(DEBIAN_DEFAULT_GRUB.read_text())


def entry_text(release: Rhel, kernel: str) -> str:
    """The entry of the only kernel."""
    return rhel_boot.entry(release, kernel, arguments(), "tuned" in release.installed)


def write_texts(tree: Path, release: Rhel, kernel: str) -> None:
    """Identity and boot configuration."""
    for path in ("etc/debian_version", "etc/os-release", "etc/issue", "etc/issue.net", "etc/lsb-release"):
        (tree / path).unlink(missing_ok=True)
    for script in (tree / "etc/grub.d").iterdir():
        script.unlink()
    server.lay(HERE / "grub.d", tree / "etc/grub.d")
    texts = {
        "usr/lib/os-release": rhel_boot.os_release(release),
        "etc/redhat-release": rhel_boot.redhat_release(release),
        "etc/default/grub": rhel_boot.default_grub(arguments()),
        "etc/kernel/cmdline": rhel_boot.command_line(arguments()) + "\n",
        "etc/fstab": rhel_boot.fstab(LAYOUT),
    }
    for name, text in texts.items():
        (tree / name).parent.mkdir(parents=True, exist_ok=True)
        (tree / name).write_text(text)
    (tree / "etc/os-release").symlink_to("../usr/lib/os-release")
    (tree / "etc/system-release").symlink_to("redhat-release")
