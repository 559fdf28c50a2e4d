# Copyright: the topovirt.kvm authors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""The server made of files as Red Hat's family has it: rpm, dracut, and GRUB with a file for each boot entry.

Written, as its base, from what those programs document; it shares nothing with the code that it judges.
"""

from __future__ import annotations

import re
import shutil
from pathlib import Path
from typing import Any, ClassVar

from ansible_collections.topovirt.kvm.tests.unit.plugins.module_utils._host.fake_host import (
    ARGUMENTS,
    KERNEL,
    FakeHost,
    block,
    variables,
)

OLD_ENTRY = f"{'a' * 32}-{KERNEL}"
ENTRY_FILE = f"boot/loader/entries/{OLD_ENTRY}.conf"
GRUB2_CFG = """\
if [ -f ${config_directory}/grubenv ]; then
  load_env -f ${config_directory}/grubenv
fi
if [ "${next_entry}" ] ; then
   set default="${next_entry}"
   set next_entry=
   save_env next_entry
   set boot_once=true
else
   set default="${saved_entry}"
fi
insmod blscfg
blscfg
"""
ENTRY = f"""\
title Red Hat Enterprise Linux ({KERNEL}) 9.6 (Plow)
version {KERNEL}
linux /vmlinuz-{KERNEL}
initrd /initramfs-{KERNEL}.img $tuned_initrd
options {ARGUMENTS} $tuned_params
grub_users $grub_users
grub_arg --unrestricted
grub_class rhel
"""
RED_HAT_WANTED: dict[str, Any] = {
    "packages": ["qemu-kvm", "libvirt-daemon-kvm", "tuned"],
    "services": ["virtqemud.socket"],
    "cmdline": ["mitigations=auto"],
}


class FakeRedHat(FakeHost):
    """The same devices below another distribution."""

    wanted = RED_HAT_WANTED
    initial: ClassVar[dict[str, str]] = {"bash": "0:5.1-9.el9", "grub2-efi-x64": "1:2.06-80.el9"}
    user, daemon = "qemu", "virtqemud.socket"

    def distribution(self) -> dict[str, str]:
        return {
            "boot/grub2/grub.cfg": GRUB2_CFG,
            "boot/grub2/grubenv": block({"saved_entry": OLD_ENTRY, "kernelopts": "root=UUID=aa-bb"}).decode(),
            ENTRY_FILE: ENTRY,
            f"boot/initramfs-{KERNEL}.img": "initramfs" * 4000,
            "etc/dracut.conf.d/01-dist.conf": 'hostonly="yes"\n',
            "usr/bin/dracut": "#!/bin/bash\n",
        }

    def boot_loader(self) -> tuple[str, str, str]:
        env = self.root / "boot/grub2/grubenv"
        there = variables(env.read_bytes())
        once = there.get("next_entry", "")
        if once:
            env.write_bytes(block({**there, "next_entry": ""}))
        chosen = self.root / f"boot/loader/entries/{once or there.get('saved_entry', '')}.conf"
        if not chosen.exists():  # GRUB's first entry: the last by name, roughly
            chosen = max((self.root / "boot/loader/entries").glob("*.conf"))
        keys = dict(line.split(" ", 1) for line in chosen.read_text().splitlines())
        filled = {
            key: re.sub(r"\$(\w+)", lambda m: there.get(str(m.group(1)), ""), value) for key, value in keys.items()
        }
        arguments = " ".join(filled["options"].split())
        return f"boot{filled['linux']}", arguments, f"boot{filled['initrd'].split()[0]}"

    def run(self, words: list[str]) -> tuple[int, str, str]:
        program, *rest = words
        if program == "rpm":
            self.log.append(words)
            return self._rpm(rest)
        if program == "dracut":
            self.log.append(words)
            return self._dracut(rest)
        assert program not in ("dpkg", "dpkg-query", "mkinitramfs", "grub-editenv"), words
        return super().run(words)

    def _rpm(self, rest: list[str]) -> tuple[int, str, str]:
        if rest[0] == "-qa":
            form = rest[2].replace("\\n", "\n").replace("%{ARCH}", "x86_64")
            form = form.replace("%{EPOCHNUM}:%{VERSION}-%{RELEASE}", "%{EVR}")
            return 0, "".join(form.replace("%{NAME}", n).replace("%{EVR}", v) for n, v in self.installed.items()), ""
        if rest == ["-qal"]:
            names = [f"/usr/share/{name}/file" for name in self.installed if name != "bash"]
            return 0, "\n".join(["/bin/bash", "(contains no files)", *names, ""]), ""
        assert rest[0] == "--erase", rest
        names = [word for word in rest[1:] if word != "--test"]
        for name in names if "--test" not in rest else []:
            self.installed.pop(name)
            shutil.rmtree(self.root / f"usr/share/{name}")
            if name == "libvirt-daemon-kvm":
                (self.root / "etc/libvirt/virtqemud.conf").unlink()
                self.units.pop("virtqemud.socket")
            if name == "tuned":
                self.units.pop("tuned.service")
        self._write_database()
        return 0, "", ""

    def _dracut(self, rest: list[str]) -> tuple[int, str, str]:
        image = Path(rest[-1])
        assert rest[rest.index("--kver") + 1] == KERNEL
        assert "vfio_pci" in rest[rest.index("--add-drivers") + 1].split()
        source, target = rest[rest.index("--include") + 1 : rest.index("--include") + 3]
        assert target == "/"
        texts = [path.read_text() for path in sorted(Path(source).rglob("*")) if path.is_file()]
        image.write_text("".join(texts))
        return 0, "", ""

    def install(self, *names: str) -> None:
        for name in (*names, *(["libvirt-libs"] if names else [])):
            if name in self.installed:
                continue
            self.installed[name] = "0:1.0-1.el9"
            self.write(f"usr/share/{name}/file", name)
        if "libvirt-daemon-kvm" in names:
            self._append("etc/passwd", "qemu:x:64055:107::/:/sbin/nologin\n")
            self._append("etc/shadow", "qemu:!:2::::::\n")
            self._append("etc/group", "qemu:x:107:\n")
            self.write("etc/libvirt/virtqemud.conf", "# configuration\n")
            self.write("var/lib/libvirt/qemu/state", "made by a daemon")
            (self.root / "var/lib/libvirt/images").mkdir()
            self.link("etc/systemd/system/sockets.target.wants/virtqemud.socket", "/usr/lib/x/virtqemud.socket")
            self.units["virtqemud.socket"] = {"enabled": "enabled", "active": False}
        if "tuned" in names:
            self.write("etc/tuned/active_profile", "throughput-performance\n")
            self.write("etc/tuned/profile_mode", "auto\n")
            (self.root / "usr/lib/tuned").mkdir(parents=True, exist_ok=True)
            self.units["tuned.service"] = {"enabled": "enabled", "active": True}
        self._write_database()

    def _write_database(self) -> None:
        self.write("usr/lib/sysimage/rpm/rpmdb.sqlite", "".join(self.installed))

    def entries_of_ours(self) -> int:
        return len(list((self.root / "boot/loader/entries").glob("topovirt-*.conf")))
