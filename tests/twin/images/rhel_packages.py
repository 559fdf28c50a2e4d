# Copyright: the topovirt.kvm authors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""The packages of the RHEL-shaped servers: names, division and dependencies as on RHEL, files of Debian's and our own.

Which package owns which file of libvirt follows libvirt.spec. Dependencies that nothing here needs are left out.
"""

from __future__ import annotations

import shutil
from pathlib import Path

from tests.twin.images.rpm_spec import Package

LIBRARIES = "/usr/lib/x86_64-linux-gnu"
UNITS = "/usr/lib/systemd/system"
#: Versions by what they belong to: this one and Debian's packages.
LIBVIRT = "libvirt"
KERNEL = "kernel"
DISTRIBUTION = "distribution"

#: Debian packages whose files the packages below carry.
SOURCES = (
    *("qemu-system-x86", "qemu-utils", "ovmf", "seabios", "ipxe-qemu", "tuned", "virt-what", "hwloc-nox", "numactl"),
    *("mdevctl", "dnsmasq-base", "iptables"),
)
#: Their parts.
PARTS = ("qemu-system-common", "qemu-system-data")
#: What of those files no package of RHEL has, or what only Debian needs.
DROPPED = (
    *("etc/NetworkManager", "etc/default", "etc/dnsmasq.d*", "etc/init.d", "etc/qemu-if*", "run"),
    *("etc/logrotate.d/libvirtd.libxl", "etc/logrotate.d/libvirtd.lxc", "usr/bin/kvm*", "usr/bin/qemu-system-*"),
    *("usr/bin/qemu-pr-helper", "usr/bin/qemu-vmsr-helper", "usr/include", "usr/lib/qemu", "usr/lib/resolvconf"),
    *("usr/lib/systemd/system/qemu-*", "usr/lib/x86_64-linux-gnu/libvirt*.so", "usr/lib/x86_64-linux-gnu/pkgconfig"),
    *("usr/sbin/*-apply", "usr/share/OVMF", "usr/share/ovmf", "usr/share/qemu/OVMF.fd", "var/lib/misc"),
    *(
        f"usr/share/{name}"
        for name in ("applications", "apport", "augeas", "bash-completion", "bug", "doc", "doc-base")
    ),
    *(f"usr/share/{name}" for name in ("icons", "info", "lintian", "locale", "man", "metainfo", "python3")),
)
#: Where RHEL has a file of Debian's.
MOVED = {
    "usr/bin/qemu-system-x86_64": "usr/libexec/qemu-kvm",
    "usr/lib/qemu/qemu-bridge-helper": "usr/libexec/qemu-bridge-helper",
    "usr/share/OVMF/OVMF_CODE_4M.fd": "usr/share/edk2/ovmf/OVMF_CODE.fd",
    "usr/share/OVMF/OVMF_CODE_4M.secboot.fd": "usr/share/edk2/ovmf/OVMF_CODE.secboot.fd",
    "usr/share/OVMF/OVMF_VARS_4M.fd": "usr/share/edk2/ovmf/OVMF_VARS.fd",
    "usr/share/OVMF/OVMF_VARS_4M.ms.fd": "usr/share/edk2/ovmf/OVMF_VARS.secboot.fd",
}
#: libvirt changes these files, so its packages own copies, and the files themselves only when they are removed.
COPIED = {
    "etc/libvirt/qemu/networks/*.xml": "usr/share/libvirt/networks",
    "etc/libvirt/nwfilter/*.xml": "usr/share/libvirt/nwfilter",
}
#: Debian's choice among the front ends of the packet filter is made by update-alternatives, RHEL's by links.
PACKET_FILTERS = ("iptables", "ip6tables", "ebtables", "arptables")
#: Texts in the files, by pattern: what stands there, what RHEL has.
REPLACED = (
    (f"{UNITS[1:]}/*virt*.service", "/etc/default/", "/etc/sysconfig/"),
    ("usr/libexec/libvirt-guests.sh", "/etc/default/", "/etc/sysconfig/"),
    ("usr/share/qemu/firmware/*.json", "OVMF_CODE_4M.ms.fd", "OVMF_CODE_4M.secboot.fd"),
    *(("usr/share/qemu/firmware/*.json", f"/{old}", f"/{new}") for old, new in MOVED.items() if "OVMF" in old),
    (
        "usr/lib/python3/dist-packages/tuned/consts.py",
        'GRUB2_CFG_FILES = ["/boot/grub/grub.cfg"]',
        'GRUB2_CFG_FILES = ["/etc/grub2.cfg", "/etc/grub2-efi.cfg"]',
    ),
)


def _daemon(unit: str, *more: str) -> tuple[str, ...]:
    """The files of a daemon of libvirt."""
    return (
        f"%config(noreplace) /etc/libvirt/{unit}.conf",
        f"/usr/sbin/{unit}",
        f"{UNITS}/{unit}.service",
        f"{UNITS}/{unit}.socket",
        f"{UNITS}/{unit}-*.socket",
        *more,
    )


def _driver(name: str) -> str:
    return f"{LIBRARIES}/libvirt/connection-driver/libvirt_driver_{name}.so"


def _sockets(unit: str, *kinds: str) -> tuple[str, ...]:
    """The service first: when the presets enable it, its Also= enables the sockets."""
    return (f"{unit}.service", f"{unit}.socket", *(f"{unit}-{kind}.socket" for kind in kinds))


_COMMON = ("libvirt-libs", "libvirt-daemon-common")


def _driver_package(name: str, driver: str, *more: str, requires: tuple[str, ...] = ()) -> Package:
    unit = f"virt{driver}d"
    return Package(
        f"libvirt-daemon-driver-{name}",
        LIBVIRT,
        requires=(*_COMMON, *requires),
        files=_daemon(unit, _driver(driver), *more),
        units=_sockets(unit, "ro", "admin"),
    )


QEMU_ACCOUNT = """\
getent group kvm >/dev/null || groupadd -f -g 36 -r kvm
getent group qemu >/dev/null || groupadd -f -g 107 -r qemu
getent passwd qemu >/dev/null || useradd -r -u 107 -g qemu -G kvm -d / -s /sbin/nologin -c "qemu user" qemu"""

DEFAULT_NETWORK = """\
    if [ ! -e /etc/libvirt/qemu/networks/default.xml ]; then
        sed "s,</name>,</name>\\n  <uuid>$(cat /proc/sys/kernel/random/uuid)</uuid>," \\
            /usr/share/libvirt/networks/default.xml >/etc/libvirt/qemu/networks/default.xml
        chmod 0600 /etc/libvirt/qemu/networks/default.xml
        ln -s ../default.xml /etc/libvirt/qemu/networks/autostart/default.xml
    fi"""

#: systemd's own package reloads the manager whenever a package brought or took units.
RELOAD = "\n".join(
    f"%transfiletrigger{when} -n systemd -- {UNITS}\n[ ! -d /run/systemd/system ] || systemctl daemon-reload || :\n"
    for when in ("in", "postun")
)

_QEMU_DIRECTORIES = tuple(
    f"%dir %attr(0751, qemu, qemu) /var/lib/libvirt/qemu{folder}"
    for folder in ("", "/channel", "/channel/target", "/checkpoint", "/dump", "/nvram", "/ram", "/save", "/snapshot")
)

HYPERVISOR = (
    Package("qemu-kvm", "qemu-system-x86", epoch=17, requires=("qemu-kvm-core", "edk2-ovmf")),
    Package(
        "qemu-kvm-core",
        "qemu-system-x86",
        epoch=17,
        requires=("qemu-kvm-common", "qemu-img", "seabios-bin", "ipxe-roms-qemu"),
        files=("/usr/libexec/qemu-kvm", f"{LIBRARIES}/qemu"),
    ),
    Package(
        "qemu-kvm-common",
        "qemu-system-x86",
        epoch=17,
        pre=QEMU_ACCOUNT,
        files=(
            *("/usr/share/qemu", "/usr/libexec/qemu-bridge-helper", "%exclude /usr/share/qemu/firmware"),
            *("%exclude /usr/share/qemu/pxe-*.rom", "%exclude /usr/share/qemu/efi-*.rom"),
        ),
    ),
    Package("qemu-img", "qemu-system-x86", epoch=17, files=("/usr/bin/qemu-*",)),
    Package("edk2-ovmf", "ovmf", files=("/usr/share/edk2", "%dir /usr/share/qemu", "/usr/share/qemu/firmware")),
    Package("seabios-bin", "seabios", files=("/usr/share/seabios",)),
    Package(
        "ipxe-roms-qemu",
        "ipxe-qemu",
        files=("%dir /usr/share/qemu", "/usr/share/qemu/pxe-*.rom", "/usr/share/qemu/efi-*.rom"),
    ),
)

VIRTUALIZATION = (
    Package(
        "libvirt-libs",
        LIBVIRT,
        files=(
            "%dir %attr(0700, root, root) /etc/libvirt",
            "%config(noreplace) /etc/libvirt/libvirt.conf",
            "%config(noreplace) /etc/libvirt/libvirt-admin.conf",
            f"{LIBRARIES}/libvirt*.so.*",
            *("%dir /usr/share/libvirt", "/usr/share/libvirt/schemas", "/usr/share/libvirt/cpu_map"),
        ),
    ),
    Package(
        "libvirt-client",
        LIBVIRT,
        requires=("libvirt-libs",),
        files=tuple(f"/usr/bin/{name}" for name in ("virsh", "virt-xml-validate", "virt-pki-*")),
    ),
    Package("libvirt-client-qemu", LIBVIRT, requires=("libvirt-libs",), files=("/usr/bin/virt-qemu-[qs]*",)),
    Package(
        "libvirt-daemon-common",
        LIBVIRT,
        requires=("libvirt-libs", "dmidecode"),
        pre="getent group libvirt >/dev/null || groupadd -r libvirt",
        units=("libvirt-guests.service",),
        files=(
            *(f"{UNITS}/virt-guest-shutdown.target", f"{UNITS}/libvirt-guests.service"),
            "%config(noreplace) /etc/sasl2/libvirt.conf",
            "%dir /var/lib/libvirt",
            *(f"%dir %attr(0711, root, root) /var/lib/libvirt/{name}" for name in ("images", "filesystems", "boot")),
            "%dir %attr(0711, root, root) /var/cache/libvirt",
            f"%dir {LIBRARIES}/libvirt",
            *(f"%dir {LIBRARIES}/libvirt/{kind}" for kind in ("connection-driver", "storage-backend", "storage-file")),
            f"%dir {LIBRARIES}/libvirt/lock-driver",
            *("/usr/share/polkit-1/actions/org.libvirt.*.policy", "/usr/share/polkit-1/rules.d/50-libvirt.rules"),
            "/usr/lib/sysusers.d/libvirt.conf",
            "%dir %attr(0700, root, root) /var/log/libvirt",
            *("/usr/libexec/libvirt_iohelper", "/usr/libexec/libvirt-guests.sh"),
            *("/usr/bin/virt-ssh-helper", "/usr/bin/virt-host-validate", "/usr/bin/virt-admin"),
        ),
    ),
    Package(
        "libvirt-daemon-lock",
        LIBVIRT,
        requires=("libvirt-libs",),
        files=_daemon("virtlockd", "%config(noreplace) /etc/libvirt/qemu-lockd.conf"),
        units=_sockets("virtlockd", "admin"),
    ),
    Package(
        "libvirt-daemon-plugin-lockd",
        LIBVIRT,
        requires=(*_COMMON, "libvirt-daemon-lock"),
        files=(f"{LIBRARIES}/libvirt/lock-driver/lockd.so",),
    ),
    Package(
        "libvirt-daemon-log",
        LIBVIRT,
        requires=("libvirt-libs",),
        files=_daemon("virtlogd"),
        units=_sockets("virtlogd", "admin"),
    ),
    Package(
        "libvirt-daemon-proxy",
        LIBVIRT,
        requires=("libvirt-libs",),
        files=_daemon("virtproxyd"),
        units=_sockets("virtproxyd", "ro", "admin", "tls", "tcp"),
    ),
    Package(
        "libvirt-daemon",
        LIBVIRT,
        requires=(*_COMMON, *(f"libvirt-daemon-{name}" for name in ("lock", "plugin-lockd", "log", "proxy"))),
        files=_daemon("libvirtd", "%config(noreplace) /etc/logrotate.d/libvirtd"),
        units=_sockets("libvirtd", "ro", "admin", "tls", "tcp"),
    ),
    _driver_package("interface", "interface"),
    _driver_package(
        "network",
        "network",
        "%config(noreplace) /etc/libvirt/network.conf",
        "%dir %attr(0700, root, root) /etc/libvirt/qemu",
        "%dir %attr(0700, root, root) /etc/libvirt/qemu/networks",
        "%dir %attr(0700, root, root) /etc/libvirt/qemu/networks/autostart",
        "%dir %attr(0700, root, root) /var/lib/libvirt/network",
        "%dir /var/lib/libvirt/dnsmasq",
        "/usr/libexec/libvirt_leaseshelper",
        requires=("dnsmasq", "iptables"),
    ),
    _driver_package("nodedev", "nodedev", requires=("systemd", "mdevctl")),
    _driver_package(
        "nwfilter", "nwfilter", "%dir %attr(0700, root, root) /etc/libvirt/nwfilter", requires=("iptables",)
    ),
    _driver_package("secret", "secret", "%dir %attr(0700, root, root) /etc/libvirt/secrets"),
    _driver_package(
        "storage-core",
        "storage",
        "%dir %attr(0700, root, root) /etc/libvirt/storage",
        "%dir %attr(0700, root, root) /etc/libvirt/storage/autostart",
        f"{LIBRARIES}/libvirt/storage-backend/libvirt_storage_backend_fs.so",
        requires=("qemu-img",),
    ),
    Package("libvirt-daemon-driver-storage", LIBVIRT, requires=("libvirt-daemon-driver-storage-core",)),
    Package(
        "libvirt-daemon-driver-qemu",
        LIBVIRT,
        requires=(*_COMMON, "libvirt-daemon-log", "qemu-img"),
        pre=QEMU_ACCOUNT,
        files=_daemon(
            "virtqemud",
            _driver("qemu"),
            "%config(noreplace) /etc/libvirt/qemu.conf",
            "%config(noreplace) /etc/logrotate.d/libvirtd.qemu",
            "%dir %attr(0700, root, root) /etc/libvirt/qemu",
            "%dir %attr(0700, root, root) /etc/libvirt/qemu/autostart",
            "%dir %attr(0700, root, root) /var/log/libvirt/qemu",
            "%dir %attr(0750, root, root) /var/cache/libvirt/qemu",
            *_QEMU_DIRECTORIES,
            "%dir %attr(0711, root, root) /var/lib/libvirt/swtpm",
            *("/usr/bin/virt-qemu-run", "/usr/lib/sysusers.d/libvirt-qemu.conf"),
        ),
        units=_sockets("virtqemud", "ro", "admin"),
    ),
    Package(
        "libvirt-daemon-config-network",
        LIBVIRT,
        requires=("libvirt-daemon-driver-network",),
        post=DEFAULT_NETWORK,
        files=(
            "/usr/share/libvirt/networks",
            "%ghost /etc/libvirt/qemu/networks/default.xml",
            "%ghost /etc/libvirt/qemu/networks/autostart/default.xml",
        ),
    ),
    Package(
        "libvirt-daemon-config-nwfilter",
        LIBVIRT,
        requires=("libvirt-daemon-driver-nwfilter",),
        post="    cp -n /usr/share/libvirt/nwfilter/*.xml /etc/libvirt/nwfilter/",
        files=("/usr/share/libvirt/nwfilter", "%ghost /etc/libvirt/nwfilter/*.xml"),
    ),
    Package(
        "libvirt-daemon-kvm",
        LIBVIRT,
        requires=(
            *(f"libvirt-daemon-{name}" for name in ("common", "lock", "log", "plugin-lockd", "proxy")),
            *(f"libvirt-daemon-driver-{name}" for name in ("interface", "network", "nodedev", "nwfilter", "qemu")),
            *(f"libvirt-daemon-driver-{name}" for name in ("secret", "storage")),
            "qemu-kvm",
        ),
    ),
    Package(
        "libvirt",
        LIBVIRT,
        requires=(
            *("libvirt-daemon", "libvirt-daemon-config-network", "libvirt-daemon-config-nwfilter"),
            *("libvirt-client", "libvirt-libs"),
            *(f"libvirt-daemon-driver-{name}" for name in ("interface", "network", "nodedev", "nwfilter", "qemu")),
            *(f"libvirt-daemon-driver-{name}" for name in ("secret", "storage")),
        ),
    ),
)

TOOLS = (
    Package(
        "tuned",
        "tuned",
        requires=("virt-what", "systemd", "python3"),
        units=("tuned.service",),
        files=(
            *("/usr/lib/python3/dist-packages/tuned", "/usr/lib/kernel/install.d/92-tuned.install"),
            *("/usr/lib/tuned", "%exclude /usr/lib/tuned/profiles/cpu-partitioning*"),
            *(f"{UNITS}/tuned.service", "/usr/lib/tmpfiles.d/tuned.conf", "/usr/libexec/tuned"),
            *("/usr/sbin/tuned", "/usr/sbin/tuned-adm", "/usr/share/dbus-1/system.d/com.redhat.tuned.conf"),
            *("/usr/share/polkit-1/actions/com.redhat.tuned.policy", "%config(noreplace) /etc/modprobe.d/tuned.conf"),
            *("%config(noreplace) /etc/grub.d/00_tuned", "%dir /var/lib/tuned", "%dir /var/log/tuned"),
            *("%dir /etc/tuned", "%config(noreplace) /etc/tuned/*", "%exclude /etc/tuned/cpu-partitioning*"),
        ),
    ),
    Package(
        "tuned-profiles-cpu-partitioning",
        "tuned",
        requires=("tuned",),
        files=("/usr/lib/tuned/profiles/cpu-partitioning*", "%config(noreplace) /etc/tuned/cpu-partitioning*"),
    ),
    Package(
        "virt-what", "virt-what", requires=("dmidecode",), files=("/usr/sbin/virt-what*", "/usr/libexec/virt-what*")
    ),
    Package("hwloc", "hwloc-nox", files=("/usr/bin/hwloc-*", "/usr/bin/lstopo*", "/usr/sbin/hwloc-*")),
    Package("numactl", "numactl", files=("/usr/bin/memhog", "/usr/bin/mig*", "/usr/bin/numa*")),
    Package(
        "mdevctl", "mdevctl", files=("/usr/bin/mdevctl", "/usr/bin/lsmdev", "/usr/lib/udev/rules.d/60-mdevctl.rules")
    ),
    Package(
        "dnsmasq",
        "dnsmasq-base",
        files=("/usr/sbin/dnsmasq", "/usr/share/dbus-1/system.d/dnsmasq.conf", "/usr/share/dnsmasq-base"),
        pre="getent passwd dnsmasq >/dev/null || useradd -r -d /var/lib/dnsmasq -s /sbin/nologin dnsmasq",
    ),
    Package(
        "iptables-nft",
        "iptables",
        provides=("iptables", "ebtables"),
        files=(
            "/usr/sbin/*tables*",
            "/usr/sbin/nfnl_osf",
            "/usr/bin/iptables-xml",
            "/usr/share/iptables",
            f"{LIBRARIES}/xtables",
        ),
    ),
)


def binding(own_python: bool) -> Package:
    """libvirt's binding for the Python that Ansible's modules run with."""
    site = "python3/dist-packages" if own_python else "python3.9/site-packages"
    files = tuple(f"/usr/lib/{site}/{name}" for name in ("libvirt*", "__pycache__/libvirt*"))
    return Package("python3-libvirt", "python3-libvirt", requires=("libvirt-libs", "python3"), files=files)


def _base(release: str, major: int) -> tuple[Package, ...]:
    """Packages that only say that something is there: the tree has it, or nothing here needs it."""
    system = (f"system-release = {major}", f"system-release(releasever) = {major}")
    return (
        Package("redhat-release", DISTRIBUTION, provides=system),
        Package("bash", DISTRIBUTION, provides=("/bin/sh", "/usr/bin/sh", "/usr/bin/bash", "/bin/bash")),
        Package("kernel-core", KERNEL, provides=("kernel", f"kernel-uname-r = {release}")),
        Package("kernel-modules", KERNEL, provides=(f"kernel-modules-uname-r = {release}",)),
        Package("systemd", DISTRIBUTION, sections=RELOAD),
        Package("grubby", DISTRIBUTION, files=("/usr/sbin/grubby",)),
        *(Package(name, DISTRIBUTION) for name in ("dracut", "openssh-server", "python3", "pciutils", "dnf", "rpm")),
        *(
            Package(name, DISTRIBUTION)
            for name in ("grub2-tools-minimal", "grub2-efi-x64", "selinux-policy-targeted", "dmidecode")
        ),
    )


BASE_NAMES = tuple(package.name for package in _base("", 0))


def all_packages(release: str, major: int, own_python: bool) -> tuple[Package, ...]:
    """Every package of the repository.

    :param release: of the kernel.
    """
    return (*_base(release, major), *HYPERVISOR, *VIRTUALIZATION, binding(own_python), *TOOLS)


def shape(payload: Path) -> None:
    """Make of the unpacked files of Debian's packages what the packages above expect."""
    for old, new in MOVED.items():
        (payload / new).parent.mkdir(parents=True, exist_ok=True)
        (payload / old).rename(payload / new)
    for pattern, folder in COPIED.items():
        (payload / folder).mkdir(parents=True)
        for path in payload.glob(pattern):
            shutil.copy2(path, payload / folder)
    for pattern in DROPPED:
        for path in payload.glob(pattern):
            shutil.rmtree(path) if path.is_dir() and not path.is_symlink() else path.unlink()
    for pattern, text, replacement in REPLACED:
        for path in payload.glob(pattern):
            path.write_text(path.read_text().replace(text, replacement))
    for name in PACKET_FILTERS:
        for action in ("", "-save", "-restore"):
            (payload / f"usr/sbin/{name}{action}").symlink_to("xtables-nft-multi")
