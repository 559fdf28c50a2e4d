# Copyright: the topovirt.kvm authors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""GRUB with a generated grub.cfg, as on Debian and its children: a drop-in of ours, and grub.cfg made anew.

The drop-in is a piece of shell that grub-mkconfig reads last, so it can take words away, too: nobody's file is edited.
"""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Dict, List, Sequence

from ansible_collections.topovirt.kvm.plugins.module_utils._host.cmdline.arguments import name_of
from ansible_collections.topovirt.kvm.plugins.module_utils._host.cmdline.edit import Edit, Editor, Entries
from ansible_collections.topovirt.kvm.plugins.module_utils._host.cmdline.grub import Grub

DROP_IN = "etc/default/grub.d/topovirt-cmdline.cfg"
_TOOL = "usr/sbin/update-grub"

_EDIT = "# edit: "

# Words are parted at spaces, also inside quotes: only whole words are taken away, and the rest is put together again.
# grub-mkconfig runs under "set -e".
_TEXT = """\
# Written by the Ansible collection topovirt.kvm; removed by topovirt.kvm.kernel_cmdline with state: restored.
{edit}
topovirt_without() {{
    for topovirt_word in $1; do
        case "$topovirt_word" in
{patterns}            *) printf '%s ' "$topovirt_word" ;;
        esac
    done
}}
set -f
GRUB_CMDLINE_LINUX="$(topovirt_without "$GRUB_CMDLINE_LINUX"){words}"
GRUB_CMDLINE_LINUX_DEFAULT="$(topovirt_without "$GRUB_CMDLINE_LINUX_DEFAULT")"
set +f
unset -f topovirt_without
"""


class GrubDefaults(Editor):
    name = "grub_defaults"
    generated = "boot/grub/grub.cfg"

    @staticmethod
    def found(root: Path) -> bool:
        return Grub.found(root) and (root / _TOOL).exists()

    def entries(self) -> Entries:
        return {entry.id: entry.arguments for entry in Grub(self.root, self.run).entries()}

    def texts(self, edit: Edit) -> Dict[str, str]:
        """The drop-in with this edit after those that it has."""
        return {DROP_IN: drop_in(_edit_of(self.read(DROP_IN) or "").then(edit))}

    def regenerate(self) -> None:
        self.command(["update-grub"])


def drop_in(edit: Edit) -> str:
    """The piece of shell that makes this edit of whatever is set before it."""
    patterns = [_pattern(word) for word in edit.absent]
    patterns += [_pattern(name) for name in _names(edit.present)]
    lines = "".join(f"            {pattern}) ;;\n" for pattern in patterns)
    text = f"{_EDIT}{json.dumps({'absent': edit.absent, 'present': edit.present}, sort_keys=True)}"
    return _TEXT.format(edit=text, patterns=lines, words=" ".join(edit.present).replace('"', '\\"'))


def _edit_of(text: str) -> Edit:
    """What a drop-in of ours says; no edit for anything else."""
    line = next((line for line in text.splitlines() if line.startswith(_EDIT)), None)
    if line is None:
        return Edit()
    words = json.loads(line[len(_EDIT) :])
    return Edit(tuple(words["present"]), tuple(words["absent"]))


def _names(words: Sequence[str]) -> List[str]:
    return list(dict.fromkeys(name_of(word) for word in words))


def _pattern(word: str) -> str:
    """Shell patterns for a name with any value, or for exactly one value."""
    name, equals, value = word.replace('"', "").partition("=")
    spelt = "[-_]".join(f"'{part}'" if part else "" for part in re.split("[-_]", name))
    return f"{spelt}'={value}'" if equals else f"{spelt}|{spelt}=*"
