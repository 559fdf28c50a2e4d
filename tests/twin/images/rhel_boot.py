# Copyright: the topovirt.kvm authors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""How a RHEL-shaped server boots and who it says it is, as texts of files. Pure."""

from __future__ import annotations

import re
from collections.abc import Sequence

from tests.twin.images import disk
from tests.twin.images.shapes import Rhel

PRODUCT = "Red Hat Enterprise Linux"
#: Modules of GRUB in the loader: Red Hat's reads none from /boot either.
GRUB_MODULES = (
    *("part_gpt", "fat", "ext2", "search", "search_fs_uuid", "configfile", "normal", "linux", "loadenv", "test"),
    *("echo", "blsuki", "true", "sleep", "minicmd", "reboot", "halt", "regexp", "ls", "cat"),
)
#: Runs in the loader before any file is read.
EARLY_CONFIGURATION = (
    f"search --no-floppy --fs-uuid --set=root {disk.BOOT_UUID}\nset prefix=($root)/grub2\nconfigfile $prefix/grub.cfg\n"
)


def extras(default_grub: str) -> str:
    """The arguments that every emulated server boots with, from Debian's /etc/default/grub."""
    found = dict(re.findall(r'^(GRUB_CMDLINE_LINUX(?:_DEFAULT)?)="(.*)"$', default_grub, re.MULTILINE))
    return f"{found['GRUB_CMDLINE_LINUX']} {found['GRUB_CMDLINE_LINUX_DEFAULT']}"


def default_grub(arguments: str) -> str:
    """/etc/default/grub as Red Hat's installer writes it."""
    return (
        "GRUB_TIMEOUT=0\n"
        "GRUB_DISTRIBUTOR=\"$(sed 's, release .*$,,g' /etc/system-release)\"\n"
        "GRUB_DEFAULT=saved\n"
        "GRUB_DISABLE_SUBMENU=true\n"
        'GRUB_TERMINAL_OUTPUT="console"\n'
        f'GRUB_CMDLINE_LINUX="{arguments}"\n'
        'GRUB_DISABLE_RECOVERY="true"\n'
        "GRUB_ENABLE_BLSCFG=true\n"
    )


def command_line(arguments: str) -> str:
    """/etc/kernel/cmdline: what a new kernel's entry gets."""
    return f"root=UUID={disk.ROOT_UUID} ro {arguments}"


def entry(release: Rhel, kernel: str, arguments: str, variables: bool) -> str:
    """A boot loader entry as Red Hat's kernel-install writes it.

    :param variables: whether TuneD has added its variables.
    """
    initrd, options = f"/initramfs-{kernel}.img", command_line(arguments)
    if variables:
        initrd, options = f"{initrd} $tuned_initrd", f"{options} $tuned_params"
    return (
        f"title {PRODUCT} ({kernel}) {release.version} ({release.codename})\n"
        f"version {kernel}\n"
        f"linux /vmlinuz-{kernel}\n"
        f"initrd {initrd}\n"
        f"options {options}\n"
        "grub_users $grub_users\n"
        "grub_arg --unrestricted\n"
        "grub_class rhel\n"
    )


def fstab(layout: Sequence[disk.Partition]) -> str:
    """/etc/fstab."""
    uuids = {name: system.uuid for name, system in disk.FILE_SYSTEMS.items()}
    lines = [f"UUID={uuids['root']} / ext4 defaults 0 0"]
    if disk.BOOT in layout:
        lines.append(f"UUID={uuids['boot']} /boot ext4 defaults 0 0")
    return "\n".join([*lines, f"UUID={disk.ESP_UUID} /boot/efi vfat umask=0077,shortname=winnt,nofail 0 0"]) + "\n"


def os_release(release: Rhel) -> str:
    """/usr/lib/os-release."""
    pairs = {
        "NAME": PRODUCT,
        "VERSION": f"{release.version} ({release.codename})",
        "ID": "rhel",
        "ID_LIKE": "fedora" if release.major < 10 else "centos fedora",
        "VERSION_ID": release.version,
        "PLATFORM_ID": f"platform:el{release.major}",
        "PRETTY_NAME": f"{PRODUCT} {release.version} ({release.codename})",
        "CPE_NAME": f"cpe:/o:redhat:enterprise_linux:{release.major}::baseos",
        "VARIANT": "emulated server made of Debian packages",
        "REDHAT_BUGZILLA_PRODUCT": f"{PRODUCT} {release.major}",
        "REDHAT_SUPPORT_PRODUCT_VERSION": release.version,
    }
    return "".join(f'{key}="{value}"\n' for key, value in pairs.items())


def redhat_release(release: Rhel) -> str:
    """/etc/redhat-release."""
    return f"{PRODUCT} release {release.version} ({release.codename})\n"
