# Copyright: the topovirt.kvm authors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""GRUB 2 with a generated grub.cfg: our entries live in custom.cfg, which grub.cfg sources."""

from __future__ import annotations

import re
from dataclasses import replace
from pathlib import Path
from typing import Dict, List, NamedTuple, Optional, Tuple

from ansible_collections.topovirt.kvm.plugins.module_utils._errors import TopovirtError
from ansible_collections.topovirt.kvm.plugins.module_utils._host.cmdline.arguments import split
from ansible_collections.topovirt.kvm.plugins.module_utils._host.cmdline.loader import BootLoader, Entry
from ansible_collections.topovirt.kvm.plugins.module_utils._host.places import Run

_DIRECTORY = "boot/grub"
_BEGIN = "# >>> topovirt: written by the Ansible collection topovirt.kvm, removed by its way back"
_END = "# <<< topovirt"
_ENV_BYTES = 1024  # an environment block has this size, always (GRUB manual, "The GRUB environment block")
_ENV_SIGNATURE = b"# GRUB Environment Block\n"
# GRUB can read, but not write, an environment block on these (its manual, same place).
_NO_WRITE = re.compile(r"^(btrfs|zfs|f2fs|cpiofs|newc|odc|romfs|squash4|tarfs)$")

# Commands that load a kernel.
_LOADS = (["linux"], ["linuxefi"], ["linux16"])


class _Menu(NamedTuple):
    title: str
    id: str
    options: Tuple[str, ...]
    body: Tuple[str, ...]
    children: Tuple[_Menu, ...]  # of a submenu
    is_submenu: bool


class Grub(BootLoader):
    entries_file = f"{_DIRECTORY}/custom.cfg"
    once_file = f"{_DIRECTORY}/grubenv"

    def __init__(self, root: Path, run: Run) -> None:
        self._root = root
        self._run = run

    @staticmethod
    def found(root: Path) -> bool:
        return (root / _DIRECTORY / "grub.cfg").is_file()

    def obstacles(self) -> List[str]:
        config, found = self._config(), []
        if "custom.cfg" not in config:
            found.append("grub.cfg does not source custom.cfg: restore /etc/grub.d/41_custom and run update-grub")
        if "next_entry" not in config:
            found.append("grub.cfg does not know next_entry, so that no entry can be booted once: run update-grub")
        env = self._root / self.once_file
        raw = env.read_bytes() if env.is_file() else None
        if raw is None:
            found.append("/boot/grub/grubenv is missing: run grub-editenv /boot/grub/grubenv create")
        elif len(raw) != _ENV_BYTES or not raw.startswith(_ENV_SIGNATURE):
            found.append("/boot/grub/grubenv is no environment block: run grub-editenv /boot/grub/grubenv create")
        fs_type, source = self._mount_of_boot()
        if _NO_WRITE.match(fs_type) or re.match(r"/dev/(md|dm-|mapper/)", source):
            found.append(
                f"/boot/grub lies on {fs_type} on {source}, where GRUB cannot take back that an entry is booted once: "
                f"put /boot on a plain partition"
            )
        return found

    def default_entry(self) -> Entry:
        config = self._config()
        return self._chosen(_parse(config), _default_of(config))

    def entries(self) -> List[Entry]:
        """Every entry of grub.cfg that boots a Linux kernel of this host."""
        found = []
        for menu in _flat(_parse(self._config())):
            if menu.id.startswith("osprober-") or not any(line.split()[:1] in _LOADS for line in menu.body):
                continue  # another system on the same machine, or none
            entry = _entry(menu)
            if not entry.kernel.rpartition("/")[2].startswith("memtest"):
                found.append(entry)
        return found

    def next_arguments(self) -> Tuple[str, ...]:
        """The kernel command line of the next boot: that of the entry to boot once, else of the default, with
        whatever custom.cfg adds and sets.

        :raises TopovirtError: no entry boots Linux.
        :raises OSError: a file cannot be read.
        """
        config, own = self._config(), self._root / self.entries_file
        custom = own.read_text(encoding="utf-8", errors="surrogateescape") if own.is_file() else ""
        choice = self.next_entry() or _default_of(custom) or _default_of(config)
        return self._chosen((*_parse(config), *_parse(custom)), choice).arguments

    def _chosen(self, menu: Tuple[_Menu, ...], choice: str) -> Entry:
        saved = self._environment().get("saved_entry", "")
        found = _select(menu, choice.replace("${saved_entry}", saved) or "0")
        if found is None or found.is_submenu:
            found = next((entry for entry in _flat(menu)), None)  # as GRUB: the first one
        if found is None:
            raise TopovirtError("/boot/grub/grub.cfg has no menu entry.", "Run update-grub.")
        return _entry(found)

    def initrd_path(self, entry: Entry, name: str) -> str:
        return f"{entry.kernel.rpartition('/')[0]}/{name}"

    def render(self, current: str, entries: List[Entry], default: Optional[Entry]) -> str:
        rest = self.without_ours(current)
        if rest and not rest.endswith("\n"):
            rest += "\n"
        lines = [_BEGIN]
        for entry in entries:
            options = " ".join(option for option in entry.options)
            lines.append(f"menuentry {_quote(entry.title)} {options} --id {_quote(entry.id)} {{".replace("  ", " "))
            lines += [f"\t{command}" for command in entry.body]
            lines.append(f"\tlinux\t{entry.kernel} {' '.join(entry.arguments)}")
            lines.append(f"\tinitrd\t{' '.join(entry.initrds)}")
            lines.append("}")
        if default is not None:
            # Not while another entry is to be booted once, and only while its files are there.
            lines.append('if [ -z "${boot_once}" ]; then')
            lines += [
                f"\t{command}" for command in default.body if re.match(r"insmod|search|set root|if |fi$|else$", command)
            ]
            files = " -a ".join(f"-f {path}" for path in (default.kernel, *default.initrds))
            lines += [f"\tif [ {files} ]; then", f"\t\tset default={_quote(default.id)}", "\tfi", "fi"]
        lines.append(_END)
        return rest + "\n".join(lines) + "\n"

    def without_ours(self, current: str) -> str:
        return re.sub(rf"^{re.escape(_BEGIN)}\n.*?^{re.escape(_END)}\n", "", current, flags=re.DOTALL | re.MULTILINE)

    def next_entry(self) -> str:
        return self._environment().get("next_entry", "")

    def set_next_entry(self, entry_id: str) -> None:
        env = str(self._root / self.once_file)
        words = ["set", f"next_entry={entry_id}"] if entry_id else ["unset", "next_entry"]
        status, _out, errors = self._run(["grub-editenv", env, *words])
        if status != 0 or self.next_entry() != entry_id:
            raise TopovirtError(f"grub-editenv could not change next_entry in {env}: {errors.strip()}")

    def _config(self) -> str:
        return (self._root / _DIRECTORY / "grub.cfg").read_text(encoding="utf-8", errors="surrogateescape")

    def _environment(self) -> Dict[str, str]:
        return environment(self._root / self.once_file)

    def _mount_of_boot(self) -> Tuple[str, str]:
        """File system type and source of what /boot/grub lies on."""
        best, found = -1, ("", "")
        try:
            lines = (self._root / "proc/self/mountinfo").read_text(encoding="utf-8", errors="replace").splitlines()
        except OSError:
            return found
        for line in lines:
            left, _separator, right = line.partition(" - ")
            point = left.split()[4]
            if point in ("/", "/boot", "/boot/grub") and len(point) >= best:
                best, found = len(point), (right.split()[0], right.split()[1])
        return found


def environment(path: Path) -> Dict[str, str]:
    """The variables of a GRUB environment block."""
    try:
        return variables(path.read_bytes())
    except OSError:
        return {}


def variables(raw: bytes) -> Dict[str, str]:
    """The variables of an environment block, by its bytes."""
    lines = raw[len(_ENV_SIGNATURE) :].decode("utf-8", "replace").splitlines()
    pairs = (line.partition("=") for line in lines if "=" in line and not line.startswith("#"))
    return {name: value for name, _equals, value in pairs}


def _default_of(config: str) -> str:
    """What a configuration sets as default when no entry is to be booted once; empty when nothing."""
    values = re.findall(r"""^\s*set default=["']?([^"'\n]*?)["']?\s*$""", config, re.MULTILINE)
    usual = [value for value in values if "next_entry" not in value]
    return usual[-1] if usual else ""


def _parse(config: str) -> Tuple[_Menu, ...]:
    """The menu of a generated grub.cfg: entries and submenus begin a line and end with a brace of their own."""
    lines = config.splitlines()

    def block(index: int) -> Tuple[List[_Menu], List[str], int]:
        children: List[_Menu] = []
        body: List[str] = []
        while index < len(lines):
            line = lines[index].strip()
            if line == "}":
                return children, body, index + 1
            head = re.match(r"(menuentry|submenu)\s+(.*)\{\s*$", line)
            if head:
                words = _words(head.group(2))
                inner, commands, index = block(index + 1)
                children.append(_menu(words, commands, inner, head.group(1) == "submenu"))
                continue
            if re.match(r"function\s.*\{\s*$", line):
                _inner, _commands, index = block(index + 1)
                continue
            body.append(line)
            index += 1
        return children, body, index

    return tuple(block(0)[0])


def _menu(words: List[str], body: List[str], children: List[_Menu], is_submenu: bool) -> _Menu:
    title, rest = (words[0] if words else ""), words[1:]
    identity, options, index = title, [], 0
    while index < len(rest):
        if rest[index] in ("--id", "$menuentry_id_option", "${menuentry_id_option}") and index + 1 < len(rest):
            identity = rest[index + 1]
            index += 2
        else:
            options.append(rest[index])
            index += 1
    return _Menu(title, identity, tuple(options), tuple(line for line in body if line), tuple(children), is_submenu)


def _words(text: str) -> List[str]:
    """Words of a GRUB command; quotes are taken off."""
    found = re.findall(r"""'([^']*)'|"((?:[^"\\]|\\.)*)"|(\S+)""", text)
    return [single or double or plain for single, double, plain in found]


def _select(menu: Tuple[_Menu, ...], choice: str) -> Optional[_Menu]:
    """The entry that a default of GRUB names: number, id or title, and ``>`` between levels."""
    level: Tuple[_Menu, ...] = menu
    found: Optional[_Menu] = None
    for part in choice.split(">"):
        found = None
        if part.isdecimal():
            found = level[int(part)] if int(part) < len(level) else None
        else:
            found = next((entry for entry in level if part in (entry.id, entry.title)), None)
        if found is None:
            return None
        level = found.children
    return found


def _flat(menu: Tuple[_Menu, ...]) -> List[_Menu]:
    found: List[_Menu] = []
    for entry in menu:
        found += _flat(entry.children) if entry.is_submenu else [entry]
    return found


def _entry(menu: _Menu) -> Entry:
    kernel: List[str] = []
    initrds: List[str] = []
    body: List[str] = []
    for line in menu.body:
        command, _blank, rest = line.replace("\t", " ").partition(" ")
        if [command] in _LOADS:
            kernel = list(split(rest))
        elif command in ("initrd", "initrdefi", "initrd16"):
            initrds = rest.split()
        elif command not in ("echo", "savedefault"):  # the latter would write our entry into the environment block
            body.append(line)
    if not kernel:
        raise TopovirtError(
            f"The default boot entry {menu.title!r} loads no Linux kernel.", "Make a Linux entry the default first."
        )
    return Entry(menu.id, menu.title, kernel[0], tuple(initrds), tuple(kernel[1:]), menu.options, tuple(body))


def _quote(text: str) -> str:
    return "'" + text.replace("'", "'\\''") + "'"


def same_entry(one: Optional[Entry], other: Optional[Entry]) -> bool:
    """Whether two entries boot the same, whatever they are called."""
    if one is None or other is None:
        return one is other
    return replace(one, id="", title="") == replace(other, id="", title="")
