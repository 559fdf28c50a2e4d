# Copyright: the topovirt.kvm authors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Kernel arguments of every boot entry, on each kind of boot configuration.

The programs are doubles, written from what the real ones document; they share nothing with the code.
"""

from __future__ import annotations

import subprocess
from pathlib import Path
from typing import Any

import pytest
from ansible_collections.topovirt.kvm.plugins.module_utils._errors import TopovirtError
from ansible_collections.topovirt.kvm.plugins.module_utils._host.journal import Journal
from ansible_collections.topovirt.kvm.plugins.module_utils._host.places import FACES
from ansible_collections.topovirt.kvm.plugins.module_utils._host.runner import describe
from ansible_collections.topovirt.kvm.tests.unit.plugins.module_utils._host.cut import Cut
from ansible_collections.topovirt.kvm.tests.unit.plugins.module_utils._host.fake_host import KERNEL, Crash, FakeHost

ENTRIES = "boot/loader/entries"
NEW, OLD, RESCUE = (f"{ENTRIES}/abc-{name}.conf" for name in ("5.14.0-503", "5.14.0-427", "0-rescue"))
ENTRY = """\
title Red Hat Enterprise Linux ({name}) 9.6 (Plow)
version {name}
linux /vmlinuz-{name}
initrd /initramfs-{name}.img $tuned_initrd
{options}
grub_users $grub_users
"""
DEFAULTS = """\
# mine
GRUB_TIMEOUT=5
GRUB_CMDLINE_LINUX="crashkernel=1G iommu=off dyndbg=\\"file x.c +p\\""
GRUB_ENABLE_BLSCFG=true
"""
FIRST = ["root=UUID=aa", "ro", "vfio-pciXids=1", "iommu=pt", "intel_iommu=on"]
WISH: dict[str, Any] = {"present": ["iommu=pt", "intel_iommu=on"], "absent": ["quiet", "console=tty1"]}


class Rhel(FakeHost):
    """Entry files under GRUB; grubby on request."""

    def __init__(self, root: Path, grubby: bool) -> None:
        super().__init__(root)
        for path, options in (
            (NEW, "options root=UUID=aa ro quiet console=tty1 console=ttyS0 $tuned_params"),
            (OLD, f"options root=UUID=aa ro{' ' if grubby else chr(10) + 'options '}iommu=on quiet"),
            (RESCUE, "options root=UUID=aa ro intel_iommu=on iommu=pt"),
        ):
            self.write(path, ENTRY.format(name=path.split("abc-")[1][:-5], options=options))
        self.write("boot/grub2/grub.cfg", "blscfg\n")
        self.write("etc/kernel/cmdline", "root=UUID=aa ro quiet\n")
        self.write("etc/default/grub", DEFAULTS)
        self.wrong: str | None = None
        if grubby:
            self.write("usr/sbin/grubby", "#!/bin/bash\n")
            self.programs["grubby"] = self.grubby

    def grubby(self, options: list[str]) -> tuple[int, str, str]:
        """grubby(8): arguments replace those of their name; it also keeps /etc/kernel/cmdline, and other spaces."""
        assert options[0] == "--update-kernel=ALL"
        given = dict(option[2:].split("=", 1) for option in options[1:])
        for path in sorted((self.root / ENTRIES).glob("*.conf")):
            lines = path.read_text().splitlines()
            words = [word for line in lines if line.startswith("options ") for word in line.split()[1:]]
            words = self._edited(words, given)
            kept = [line for line in lines if not line.startswith("options ")]
            path.write_text("\n".join([*kept[:4], f"options {' '.join(words)}", *kept[4:]]) + "\n")
            if self.wrong == "half":
                return 1, "", "grubby: out of luck"
        if self.wrong == "silent":
            (self.root / OLD).write_text(ENTRY.format(name="x", options="options ro"))
        kernel = self.root / "etc/kernel/cmdline"
        inherited = kernel.read_text().split() if kernel.exists() else (self.root / "proc/cmdline").read_text().split()
        kernel.write_text("  ".join(self._edited(inherited, given)) + "\n")
        return 0, "", ""

    @staticmethod
    def _edited(words: list[str], given: dict[str, str]) -> list[str]:
        gone, new = given.get("remove-args", "").split(), given.get("args", "").split()
        names = {word.split("=")[0] for word in new}
        words = [w for w in words if w not in gone and not ("=" in w and w.split("=")[0] in gone)]
        return [w for w in words if w.split("=")[0] not in names] + new


class Debian(FakeHost):
    """grub.cfg is made of shell variables, by a real shell."""

    def __init__(self, root: Path) -> None:
        super().__init__(root)
        self.write("usr/sbin/update-grub", "#!/bin/sh\n")
        self.write("etc/default/grub", 'GRUB_CMDLINE_LINUX_DEFAULT="quiet splash"\nGRUB_CMDLINE_LINUX="console=tty1"\n')
        (self.root / "etc/default/grub.d").mkdir()
        self.write(
            "etc/default/grub.d/50-cloud.cfg", 'GRUB_CMDLINE_LINUX="$GRUB_CMDLINE_LINUX iommu=on vfio-pciXids=1"\n'
        )
        self.kernels = [KERNEL, "6.1.0-old"]
        self.programs["update-grub"] = self.update_grub
        self.wrong = False
        self.root_words = "root=UUID=aa ro"
        assert self.update_grub([])[0] == 0

    def update_grub(self, _options: list[str]) -> tuple[int, str, str]:
        if self.wrong:
            (self.root / "boot/grub/grub.cfg").write_text("half of it")
            return 1, "", "no space left on device"
        script = """
            set -e
            . ./etc/default/grub
            for x in ./etc/default/grub.d/*.cfg; do . "$x"; done
            printf '%s\\n%s\\n' "$GRUB_CMDLINE_LINUX" "$GRUB_CMDLINE_LINUX_DEFAULT"
        """
        made = subprocess.run(["sh", "-c", script], cwd=self.root, capture_output=True, text=True, check=True)
        assert not made.stderr
        always, usually = made.stdout.splitlines()
        text = "set default=0\n"
        for kernel in self.kernels:
            for kind, more in (("simple", usually), ("recovery", "single")):
                text += f"menuentry '{kernel} {kind}' $menuentry_id_option '{kernel}-{kind}' {{\n"
                text += f"\tlinux\t/boot/vmlinuz-{kernel} {self.root_words} {always} {more}\n\tinitrd\t/i\n}}\n"
        text += "menuentry 'Memory test' --id memtest {\n\tlinux16\t/boot/memtest86+x64.bin quiet\n}\n"
        text += "menuentry 'Other system' --id 'osprober-gnulinux-1' {\n\tlinux\t/vmlinuz root=/dev/sdb1 quiet\n}\n"
        text += "menuentry 'Firmware' --id uefi-firmware {\n\tfwsetup\n}\n"
        (self.root / "boot/grub/grub.cfg").write_text(text)
        return 0, "", ""


@pytest.fixture(params=["grubby", "files"])
def rhel(tmp_path: Path, request: pytest.FixtureRequest) -> Rhel:
    return Rhel(tmp_path, request.param == "grubby")


@pytest.fixture
def debian(tmp_path: Path) -> Debian:
    return Debian(tmp_path)


def words(host: FakeHost, path: str) -> list[str]:
    lines = (host.root / path).read_text().splitlines()
    return [word for line in lines if line.startswith("options ") for word in line.split()[1:]]


def menu(host: FakeHost) -> dict[str, list[str]]:
    """Kernel command lines of grub.cfg by title."""
    found, title = {}, ""
    for line in (host.root / "boot/grub/grub.cfg").read_text().splitlines():
        if line.startswith("menuentry"):
            title = line.split("'")[1]
        elif line.strip().startswith("linux"):
            found[title] = line.split()[2:]
    return found


# --- entry files --------------------------------------------------------------------------------------------------


def test_every_entry_has_the_words_and_nothing_else_changes(rhel: Rhel) -> None:
    done = rhel.face("kernel_cmdline", **WISH).present(check=False)
    assert words(rhel, NEW) == ["root=UUID=aa", "ro", "console=ttyS0", "$tuned_params", "iommu=pt", "intel_iommu=on"]
    assert words(rhel, OLD) == ["root=UUID=aa", "ro", "iommu=pt", "intel_iommu=on"]
    assert sorted(words(rhel, RESCUE)) == ["intel_iommu=on", "iommu=pt", "ro", "root=UUID=aa"]
    for path in (NEW, OLD, RESCUE):
        other = [line for line in (rhel.root / path).read_text().splitlines() if not line.startswith("options")]
        assert other == [line for line in ENTRY.format(name=path[24:-5], options="").splitlines() if line]
    assert (rhel.root / "etc/kernel/cmdline").read_text().split() == [
        "root=UUID=aa",
        "ro",
        "iommu=pt",
        "intel_iommu=on",
    ]
    assert (rhel.root / "etc/default/grub").read_text() == DEFAULTS.replace(
        'iommu=off dyndbg=\\"file x.c +p\\"', 'dyndbg=\\"file x.c +p\\" iommu=pt intel_iommu=on'
    )
    assert done.reboot_required
    assert done.results["backend"] == "bls"
    assert {entry["id"]: entry["before"] for entry in done.results["entries"]}[OLD] == [
        "root=UUID=aa",
        "ro",
        "iommu=on",
        "quiet",
    ]
    assert {entry["id"]: entry["after"] for entry in done.results["entries"]}[OLD] == words(rhel, OLD)


def test_check_mode_predicts_and_a_second_run_changes_nothing(rhel: Rhel) -> None:
    before = rhel.snapshot()
    predicted = rhel.face("kernel_cmdline", **WISH).present(check=True)
    assert rhel.snapshot() == before
    assert not [words for words in rhel.log if words[0] == "grubby"]
    done = rhel.face("kernel_cmdline", **WISH).present(check=False)
    assert [describe(c) for c in done.plan] == [describe(c) for c in predicted.plan]
    assert done.results == predicted.results
    after = rhel.snapshot()
    touched = {path for path in after if after[path] != before.get(path) and not path.startswith("var/lib/topovirt")}
    assert touched == {change.what for change in done.plan}
    rhel.log.clear()
    again = rhel.face("kernel_cmdline", **WISH).present(check=False)
    assert (again.changed, again.plan, again.reboot_required) == (False, [], True)
    assert rhel.snapshot() == after
    assert not [words for words in rhel.log if words[0] == "grubby"]


def test_every_byte_comes_back(rhel: Rhel) -> None:
    before = rhel.snapshot()
    rhel.face("kernel_cmdline", **WISH).present(check=False)
    rhel.face("kernel_cmdline", present=["mitigations=auto"]).present(check=False)
    done = rhel.face("kernel_cmdline").restored(check=False)
    assert (done.kept, done.journal) == ([], "none")
    assert rhel.snapshot() == before


def test_files_that_were_not_there_are_not_left_behind(rhel: Rhel) -> None:
    (rhel.root / "etc/kernel/cmdline").unlink()
    before = rhel.snapshot()
    done = rhel.face("kernel_cmdline", **WISH).present(check=False)
    assert "etc/kernel/cmdline" not in {change.what for change in done.plan}
    assert not (rhel.root / "etc/kernel/cmdline").exists()
    rhel.face("kernel_cmdline").restored(check=False)
    assert rhel.snapshot() == before


def test_words_of_others_survive_the_way_back(rhel: Rhel) -> None:
    rhel.face("kernel_cmdline", **WISH).present(check=False)
    path = rhel.root / NEW
    path.write_text(path.read_text().replace("console=ttyS0", "console=ttyS1 mitigations=off"))
    later = f"{ENTRIES}/abc-6.0.conf"  # a kernel that came meanwhile
    rhel.write(later, ENTRY.format(name="6.0", options="options root=UUID=aa ro iommu=pt intel_iommu=on"))
    (rhel.root / OLD).unlink()
    predicted = rhel.face("kernel_cmdline").restored(check=True)
    done = rhel.face("kernel_cmdline").restored(check=False)
    assert done.kept == predicted.kept
    assert sorted(done.kept) == [
        f"file /{OLD}: gone meanwhile, so that stays",
        f"file /{NEW}: changed by somebody meanwhile, so that stays, less what is ours",
    ]
    assert sorted(words(rhel, NEW)) == sorted(
        ["root=UUID=aa", "ro", "console=ttyS1", "mitigations=off", "$tuned_params", "quiet", "console=tty1"]
    )
    assert "iommu=pt" not in words(rhel, later)
    assert {change.what for change in predicted.plan} >= {later, NEW}
    assert not (rhel.root / OLD).exists()


@pytest.mark.parametrize("wrong", ["half", "silent"])
def test_a_grubby_that_fails_or_does_something_else_changes_nothing(tmp_path: Path, wrong: str) -> None:
    host = Rhel(tmp_path, grubby=True)
    before, host.wrong = host.snapshot(), wrong
    with pytest.raises(TopovirtError, match="Everything is as it was before") as failure:
        host.face("kernel_cmdline", **WISH).present(check=False)
    assert {"half": "status 1: grubby: out of luck", "silent": f"boot entry {OLD}: lacks"}[wrong] in str(failure.value)
    assert host.snapshot() == before


def test_a_value_with_spaces_is_not_given_to_grubby(tmp_path: Path) -> None:
    host = Rhel(tmp_path, grubby=True)
    host.face("kernel_cmdline", present=['dyndbg="file y.c +p"']).present(check=False)
    assert 'dyndbg="file y.c +p"' in (host.root / NEW).read_text()
    assert not [words for words in host.log if words[0] == "grubby"]


def test_an_entry_with_several_lines_is_not_given_to_grubby(tmp_path: Path) -> None:
    host = Rhel(tmp_path, grubby=True)
    host.write(OLD, ENTRY.format(name="x", options="options ro\noptions quiet"))
    host.face("kernel_cmdline", present=["a=1"]).present(check=False)
    assert words(host, OLD) == ["ro", "quiet", "a=1"]
    assert not [words for words in host.log if words[0] == "grubby"]


def test_several_values_of_a_name_are_not_given_to_grubby(tmp_path: Path) -> None:
    host = Rhel(tmp_path, grubby=True)
    consoles = ["console=tty0", "console=ttyS1"]
    host.face("kernel_cmdline", present=consoles).present(check=False)
    assert [word for word in words(host, NEW) if word.startswith("console=")] == consoles
    assert not [words for words in host.log if words[0] == "grubby"]


def test_words_behind_a_variable_of_grub_are_named(tmp_path: Path) -> None:
    host = Rhel(tmp_path, grubby=False)
    host.write(OLD, ENTRY.format(name="x", options="options $kernelopts"))
    block = "# GRUB Environment Block\nkernelopts=root=UUID=aa ro quiet iommu=on\n"
    host.write("boot/grub2/grubenv", block.ljust(1024, "#"))
    with pytest.raises(TopovirtError, match="takes quiet iommu=on from the variable kernelopts"):
        host.face("kernel_cmdline", **WISH).present(check=True)
    host.face("kernel_cmdline", present=["mitigations=auto"]).present(check=False)
    assert words(host, OLD) == ["$kernelopts", "mitigations=auto"]


# --- GRUB's defaults ----------------------------------------------------------------------------------------------


def test_a_drop_in_adds_and_takes_away_and_nobodys_file_is_edited(debian: Debian) -> None:
    before = debian.snapshot()
    done = debian.face("kernel_cmdline", **WISH).present(check=False)
    found = menu(debian)
    assert found[f"{KERNEL} simple"] == [*FIRST, "splash"]
    assert found["6.1.0-old recovery"] == [
        "root=UUID=aa",
        "ro",
        "vfio-pciXids=1",
        "iommu=pt",
        "intel_iommu=on",
        "single",
    ]
    assert found["Other system"] == ["root=/dev/sdb1", "quiet"]
    assert [entry["id"] for entry in done.results["entries"]] == [
        f"{kernel}-{kind}" for kernel in debian.kernels for kind in ("simple", "recovery")
    ]
    for path in ("etc/default/grub", "etc/default/grub.d/50-cloud.cfg"):
        assert debian.snapshot()[path] == before[path]
    again = debian.face("kernel_cmdline", **WISH).present(check=False)
    assert not again.changed
    debian.face("kernel_cmdline").restored(check=False)
    assert debian.snapshot() == before


def test_a_later_wish_keeps_the_earlier_ones(debian: Debian) -> None:
    before = debian.snapshot()
    debian.face("kernel_cmdline", **WISH).present(check=False)
    debian.face("kernel_cmdline", present=["iommu=strict", "quiet"], absent=["splash"]).present(check=False)
    line = menu(debian)[f"{KERNEL} simple"]
    assert line == ["root=UUID=aa", "ro", "vfio-pciXids=1", "intel_iommu=on", "iommu=strict", "quiet"]
    debian.face("kernel_cmdline").restored(check=False)
    assert debian.snapshot() == before


def test_a_word_that_goes_again_does_not_bring_back_what_it_displaced(debian: Debian) -> None:
    """A file of somebody else says iommu=on all the time."""
    debian.face("kernel_cmdline", present=["iommu=pt"]).present(check=False)
    predicted = debian.face("kernel_cmdline", absent=["iommu=pt"]).present(check=True)
    done = debian.face("kernel_cmdline", absent=["iommu=pt"]).present(check=False)
    assert done.results == predicted.results
    assert not [word for word in menu(debian)[f"{KERNEL} simple"] if word.startswith("iommu=")]
    debian.face("kernel_cmdline", present=["iommu=soft"]).present(check=False)
    assert [word for word in menu(debian)[f"{KERNEL} simple"] if word.startswith("iommu=")] == ["iommu=soft"]


def test_names_in_the_drop_in_are_no_patterns(debian: Debian) -> None:
    alike = ["vfio-pci.ids", "con*", "vfio_pciXids=[0-9]"]
    debian.face("kernel_cmdline", present=["a=1"], absent=alike).present(check=False)
    assert {"vfio-pciXids=1", "console=tty1"} <= set(menu(debian)[f"{KERNEL} simple"])
    debian.face("kernel_cmdline", absent=["vfio_pciXids"]).present(check=False)
    assert "vfio-pciXids=1" not in menu(debian)[f"{KERNEL} simple"]


def test_a_kernel_that_came_meanwhile_stays_in_the_menu(debian: Debian) -> None:
    debian.face("kernel_cmdline", **WISH).present(check=False)
    debian.kernels.append("7.0")
    debian.update_grub([])
    assert "iommu=pt" in menu(debian)["7.0 simple"]
    debian.face("kernel_cmdline").restored(check=False)
    assert menu(debian)["7.0 simple"] == [
        "root=UUID=aa",
        "ro",
        "console=tty1",
        "iommu=on",
        "vfio-pciXids=1",
        "quiet",
        "splash",
    ]


def test_a_failing_update_grub_changes_nothing(debian: Debian) -> None:
    before, debian.wrong = debian.snapshot(), True
    with pytest.raises(TopovirtError, match=r"no space left on device\. Everything is as it was before"):
        debian.face("kernel_cmdline", **WISH).present(check=False)
    assert debian.snapshot() == before
    debian.wrong = False
    debian.face("kernel_cmdline", **WISH).present(check=False)
    first, debian.wrong = debian.snapshot(), True
    with pytest.raises(TopovirtError, match="no space left on device"):
        debian.face("kernel_cmdline", present=["a=1"]).present(check=False)
    journal = "var/lib/topovirt/faces/kernel_cmdline/journal/records.jsonl"
    assert {**debian.snapshot(), journal: None} == {**first, journal: None}


def test_an_update_grub_that_loses_words_changes_nothing(debian: Debian) -> None:
    before, debian.root_words = debian.snapshot(), "root=UUID=bb ro"
    with pytest.raises(TopovirtError, match=f"boot entry {KERNEL}-simple: lacks root=UUID=aa and has root=UUID=bb"):
        debian.face("kernel_cmdline", **WISH).present(check=False)
    assert debian.snapshot() == before


def test_a_word_that_another_program_writes_is_named(debian: Debian) -> None:
    before = debian.snapshot()
    with pytest.raises(TopovirtError) as failure:
        debian.face("kernel_cmdline", absent=["ro"]).present(check=False)
    assert f"boot entry {KERNEL}-simple: has ro" in failure.value.message
    assert debian.snapshot() == before


@pytest.mark.parametrize("after", [False, True], ids=["before", "after"])
@pytest.mark.parametrize("kind", ["rhel", "debian"])
def test_a_run_cut_anywhere_is_finished_or_undone(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, kind: str, after: bool
) -> None:
    def make(name: str) -> FakeHost:
        return Debian(tmp_path / name) if kind == "debian" else Rhel(tmp_path / name, grubby=True)

    full = make("full")
    pristine = full.snapshot()
    full.face("kernel_cmdline", **WISH).present(check=False)
    points = len(Journal(full.root, FACES / "kernel_cmdline").records)
    assert points > 5
    for point in range(1, points + 1):
        for finish in (True, False):
            host = make(f"{point}-{finish}")
            with monkeypatch.context() as patch:
                Cut(patch, after).left = point
                with pytest.raises(Crash):
                    host.face("kernel_cmdline", **WISH).present(check=False)
            if finish:
                host.face("kernel_cmdline", **WISH).present(check=False)
            host.face("kernel_cmdline").restored(check=False)
            assert host.snapshot() == pristine, (point, finish)


# --- recorded kinds -----------------------------------------------------------------------------------------------


def test_systemd_boot_entries_are_edited(tmp_path: Path) -> None:
    host = FakeHost(tmp_path)
    (host.root / "boot/grub/grub.cfg").unlink()
    host.write("boot/EFI/systemd/systemd-bootx64.efi", "MZ")
    host.write("boot/loader/entries/m-6.12.conf", "title      Debian\noptions    root=UUID=aa quiet\nlinux /l\n")
    host.write("etc/kernel/cmdline", "root=UUID=aa quiet")
    before = host.snapshot()
    done = host.face("kernel_cmdline", **WISH).present(check=False)
    assert done.results["backend"] == "systemd_boot"
    entry = (host.root / "boot/loader/entries/m-6.12.conf").read_text()
    assert entry == "title      Debian\noptions    root=UUID=aa iommu=pt intel_iommu=on\nlinux /l\n"
    assert (host.root / "etc/kernel/cmdline").read_text() == "root=UUID=aa iommu=pt intel_iommu=on\n"
    host.face("kernel_cmdline").restored(check=False)
    assert host.snapshot() == before
    host.write("boot/EFI/Linux/image.efi", "MZ")
    with pytest.raises(TopovirtError, match=r"/boot/EFI/Linux/image\.efi has its command line built in"):
        host.face("kernel_cmdline", **WISH).present(check=True)


class Ostree(FakeHost):
    def __init__(self, root: Path) -> None:
        super().__init__(root)
        self.write("run/ostree-booted", "")
        self.write("usr/bin/rpm-ostree", "")
        self.write(NEW, ENTRY.format(name="x", options="options ro"))
        self.arguments = ["root=UUID=aa", "quiet", "iommu=on"]
        self.wrong = False
        self.programs["rpm-ostree"] = self.rpm_ostree

    def rpm_ostree(self, options: list[str]) -> tuple[int, str, str]:
        assert options[0] == "kargs"
        if self.wrong and options[1:]:
            return 1, "", "error: Transaction in progress"
        for option in options[1:]:
            name, _equals, word = option.partition("=")
            if name == "--append-if-missing" and word not in self.arguments:
                self.arguments.append(word)
            elif name == "--delete-if-present" and word in self.arguments:
                self.arguments.remove(word)
        return 0, f"{' '.join(self.arguments)}\n", ""


def test_arguments_of_the_next_deployment(tmp_path: Path) -> None:
    host = Ostree(tmp_path)
    before = host.snapshot()
    done = host.face("kernel_cmdline", **WISH).present(check=False)
    assert done.results["backend"] == "ostree"
    assert [(change.kind, change.before) for change in done.plan] == [
        ("arguments", ["root=UUID=aa", "quiet", "iommu=on"])
    ]
    assert host.arguments == ["root=UUID=aa", "iommu=pt", "intel_iommu=on"]
    assert not host.face("kernel_cmdline", **WISH).present(check=False).changed
    host.arguments.append("mine=1")
    host.face("kernel_cmdline").restored(check=False)
    assert sorted(host.arguments) == ["iommu=on", "mine=1", "quiet", "root=UUID=aa"]
    assert host.snapshot() == before
    host.wrong = True
    with pytest.raises(TopovirtError, match=r"Transaction in progress\. Everything is as it was before"):
        host.face("kernel_cmdline", **WISH).present(check=False)


def test_an_image_of_bootc_is_told_what_belongs_into_it(tmp_path: Path) -> None:
    host = Ostree(tmp_path)
    (host.root / "usr/bin/rpm-ostree").unlink()
    with pytest.raises(TopovirtError) as refusal:
        host.face("kernel_cmdline", **WISH).present(check=True)
    assert '/usr/lib/bootc/kargs.d/50-topovirt.toml with kargs = ["iommu=pt", "intel_iommu=on"]' in str(refusal.value)
    assert "take quiet console=tty1 out of" in str(refusal.value)


def test_a_backend_that_was_chosen_is_remembered(tmp_path: Path) -> None:
    host = Rhel(tmp_path, grubby=False)
    host.write("boot/EFI/systemd/systemd-bootx64.efi", "MZ")
    before = host.snapshot()
    done = host.face("kernel_cmdline", **WISH, backend="systemd_boot").present(check=False)
    assert done.results["backend"] == "systemd_boot"
    assert (host.root / "etc/default/grub").read_text() == DEFAULTS
    with pytest.raises(TopovirtError, match="backend bls: an earlier run changed this host by systemd_boot"):
        host.face("kernel_cmdline", **WISH, backend="bls").present(check=False)
    assert not host.face("kernel_cmdline", **WISH).present(check=False).changed
    host.face("kernel_cmdline").restored(check=False)
    assert host.snapshot() == before


# --- the rest -----------------------------------------------------------------------------------------------------


def test_the_running_kernel_is_told_apart_from_the_next_one(tmp_path: Path) -> None:
    host = Rhel(tmp_path, grubby=False)
    host.write("proc/cmdline", "BOOT_IMAGE=/vmlinuz ro iommu=on quiet\n")
    results = host.face("kernel_cmdline", **WISH).present(check=False).results
    assert results["running_differs"]
    assert results["running_missing"] == ["iommu=pt", "intel_iommu=on"]
    assert results["running_extra"] == ["iommu=on", "quiet"]
    host.write("proc/cmdline", "BOOT_IMAGE=/vmlinuz ro intel_iommu=on iommu=pt\n")
    done = host.face("kernel_cmdline", present=["intel_iommu=on"], absent=["quiet"]).present(check=False)
    assert (done.results["running_differs"], done.reboot_required) == (False, False)
    assert host.face("kernel_cmdline").restored(check=True).reboot_required


@pytest.mark.parametrize(
    ("options", "complaint"),
    [
        ({}, "neither present nor absent names an argument"),
        ({"present": ["a b"]}, "'a b' is not one argument"),
        ({"present": ["quiet"], "absent": ["quiet"]}, "quiet is wanted present and, by quiet, absent"),
        ({"present": ["a=1"], "backend": "lilo"}, "Backend 'lilo' is none of auto, ostree, bootc, bls"),
        (
            {"present": ["a=1"], "backend": "systemd_boot"},
            "not have a boot configuration systemd_boot; found: bls",
        ),
    ],
)
def test_bad_input_is_refused_before_any_change(tmp_path: Path, options: dict[str, Any], complaint: str) -> None:
    host = Rhel(tmp_path, grubby=True)
    before = host.snapshot()
    with pytest.raises(TopovirtError) as refusal:
        host.face("kernel_cmdline", **(options or {"present": []})).present(check=False)
    assert complaint in str(refusal.value)
    assert host.snapshot() == before


def test_a_host_without_any_of_these_is_refused(tmp_path: Path) -> None:
    host = FakeHost(tmp_path)
    with pytest.raises(TopovirtError, match="can change; found: none"):
        host.face("kernel_cmdline", present=["a=1"]).present(check=True)
