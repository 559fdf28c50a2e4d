# Copyright: the topovirt.kvm authors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""libvirt as Red Hat configures it, with a daemon per driver, which no Debian package has.

Built from the source archive that Debian's libvirt package is made of, in a tree with a compiler that is thrown away.
Written into ``work``: ``tree`` (what ``meson install`` made), ``packages.json``, ``log``.
"""

from __future__ import annotations

import json
import shutil
from pathlib import Path

from tests.twin.images import mirror as debian
from tests.twin.images import process

#: Compiler, meson, and the headers of what the options below name.
PACKAGES = (
    *("meson", "ninja-build", "gcc", "libc6-dev", "pkgconf", "python3", "xz-utils", "gettext", "perl", "rpcsvc-proto"),
    *("libglib2.0-dev", "libxml2-dev", "libxml2-utils", "xsltproc", "libgnutls28-dev", "libtirpc-dev", "libjson-c-dev"),
    *("libnl-3-dev", "libnl-route-3-dev", "libudev-dev", "libpciaccess-dev", "libnuma-dev", "libcap-ng-dev"),
    *("libselinux1-dev", "libsasl2-dev", "libacl1-dev", "libattr1-dev"),
)
#: A choice from the options of libvirt.spec for RHEL. Libraries stay where Debian's loader looks for them.
OPTIONS = (
    *("--prefix=/usr", "--libdir=lib/x86_64-linux-gnu", "--libexecdir=libexec", "--sbindir=sbin", "--sysconfdir=/etc"),
    *("--localstatedir=/var", "--buildtype=plain", "-Drunstatedir=/run", "-Dauto_features=disabled"),
    *(f"-D{name}=disabled" for name in ("docs", "tests")),
    *("-Dinit_script=systemd", "-Dqemu_user=qemu", "-Dqemu_group=qemu"),
    *(f"-Ddriver_{name}=enabled" for name in ("qemu", "remote", "libvirtd", "network", "secrets", "interface")),
    *(f"-D{name}=enabled" for name in ("udev", "pciaccess", "libnl", "json_c", "storage_fs", "storage_dir")),
    *(f"-D{name}=enabled" for name in ("selinux", "sasl", "numactl", "capng", "attr", "polkit", "host_validate")),
)
# libvirt's storage driver calls libselinux, but only links it when more of its backends are on.
BUILD = (
    "mkdir /libvirt && tar -xJf /mnt/libvirt_*.orig.tar.xz --strip-components=1 -C /libvirt && cd /libvirt && "
    'CFLAGS=-O1 LDFLAGS="-Wl,--no-as-needed -lselinux -Wl,--as-needed" meson setup build "$@" && ninja -C build && '
    "DESTDIR=/out meson install -C build --strip --no-rebuild && cp build/meson-info/intro-projectinfo.json /mnt"
)


def build(work: Path, mirror: debian.Mirror) -> None:
    """Build and install into ``work/tree``.

    :raises BakeError: a step failed.
    """
    root, log, source = work / "root", work / "log", work / "source"
    source.mkdir()
    line = f"deb-src [signed-by={process.KEYRING}] {mirror.uri} {debian.SUITE} main"
    fetch = f'cd {source} && APT_CONFIG="$MMDEBSTRAP_APT_CONFIG" apt-get -o APT::Sandbox::User=root --tar-only source'
    mirror.bootstrap(
        root,
        "minbase",
        PACKAGES,
        log,
        hooks=[
            ("setup", f'echo "{line}" > "$1/etc/apt/sources.list.d/source.list"'),
            ("customize", f"{fetch} libvirt"),
        ],
    )
    process.chroot(root, ["sh", "-c", BUILD, "sh", *OPTIONS], log, share=source)
    version = json.loads((source / "intro-projectinfo.json").read_text())["version"]
    shutil.move(root / "out", work / "tree")
    for part in (root, source):
        shutil.rmtree(part)
    (work / "packages.json").write_text(json.dumps({"modular libvirt": version}))
