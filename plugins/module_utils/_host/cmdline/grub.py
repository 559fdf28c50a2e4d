# Copyright: the topovirt.kvm authors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""GRUB 2 with a generated grub.cfg: our entries live in custom.cfg, which grub.cfg sources."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Dict, List, NamedTuple, Optional, Tuple

from ansible_collections.topovirt.kvm.plugins.module_utils._errors import TopovirtError
from ansible_collections.topovirt.kvm.plugins.module_utils._host.cmdline.arguments import split
from ansible_collections.topovirt.kvm.plugins.module_utils._host.cmdline.environment import EnvironmentBlock
from ansible_collections.topovirt.kvm.plugins.module_utils._host.cmdline.loader import BootLoader, Entry
from ansible_collections.topovirt.kvm.plugins.module_utils._host.places import Run

_DIRECTORY = "boot/grub"
_BEGIN = "# >>> topovirt: written by the Ansible collection topovirt.kvm, removed by its way back"
_END = "# <<< topovirt"

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
    shared_file = f"{_DIRECTORY}/custom.cfg"

    def __init__(self, root: Path, run: Run) -> None:
        super().__init__(root, EnvironmentBlock(root, run, f"{_DIRECTORY}/grubenv", "grub-editenv"))

    @staticmethod
    def found(root: Path) -> bool:
        return (root / _DIRECTORY / "grub.cfg").is_file()

    def obstacles(self) -> List[str]:
        config, found = self._config(), []
        if "custom.cfg" not in config:
            found.append("grub.cfg does not source custom.cfg: restore /etc/grub.d/41_custom and run update-grub")
        if "next_entry" not in config:
            found.append("grub.cfg does not know next_entry, so that no entry can be booted once: run update-grub")
        return [*found, *self.environment.obstacles()]

    def default_entry(self, before: str) -> Entry:
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
        """That of the entry to boot once, else of the default, with whatever custom.cfg adds and sets."""
        config, custom = self._config(), self._custom()
        choice = self.environment.next_entry() or _default_of(custom) or _default_of(config)
        return self._chosen((*_parse(config), *_parse(custom)), choice).arguments

    def _chosen(self, menu: Tuple[_Menu, ...], choice: str) -> Entry:
        saved = self.environment.get("saved_entry")
        found = _select(menu, choice.replace("${saved_entry}", saved) or "0")
        if found is None or found.is_submenu:
            found = next((entry for entry in _flat(menu)), None)  # as GRUB: the first one
        if found is None:
            raise TopovirtError("/boot/grub/grub.cfg has no menu entry.", "Run update-grub.")
        return _entry(found)

    def files(self, entries: List[Entry], default: Optional[Entry]) -> Dict[str, str]:
        rest = self.without_ours(self._custom())
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
        return {self.shared_file: rest + "\n".join(lines) + "\n"}

    def without_ours(self, current: str) -> str:
        return re.sub(rf"^{re.escape(_BEGIN)}\n.*?^{re.escape(_END)}\n", "", current, flags=re.DOTALL | re.MULTILINE)

    def _config(self) -> str:
        return (self._root / _DIRECTORY / "grub.cfg").read_text(encoding="utf-8", errors="surrogateescape")

    def _custom(self) -> str:
        path = self._root / self.shared_file
        return path.read_text(encoding="utf-8", errors="surrogateescape") if path.is_file() else ""


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
