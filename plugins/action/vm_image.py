# Copyright: the topovirt.kvm authors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Send a file of the controller to the host when the host does not have it; all else is the module's."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from ansible.errors import AnsibleActionFail, AnsibleError
from ansible.plugins.action import ActionBase
from ansible_collections.topovirt.kvm.plugins.module_utils._libvirt.images import file_digest

MODULE = "topovirt.kvm.vm_image"


class ActionModule(ActionBase):
    _supports_check_mode = True
    _supports_async = False

    def run(self, tmp: str | None = None, task_vars: dict[str, Any] | None = None) -> dict[str, Any]:
        result: dict[str, Any] = super().run(tmp, task_vars)
        arguments = dict(self._task.args)
        source = arguments.get("src")
        if source is None:
            result.update(self._execute_module(MODULE, module_args=arguments, task_vars=task_vars))
            return result
        local = self._local(str(source))
        checksum = f"sha256:{file_digest(local)}"
        if arguments.get("checksum") not in (None, checksum):
            raise AnsibleActionFail(
                f"Image '{arguments.get('name')}': {local} has {checksum}, expected is {arguments['checksum']}."
            )
        arguments["checksum"] = checksum
        answer = self._execute_module(MODULE, module_args=arguments, task_vars=task_vars)
        if answer.get("send") and not answer.get("failed") and not self._task.check_mode:
            answer = {**self._send(local, arguments, task_vars), "send": True}
        result.update(answer)
        return result

    def _local(self, source: str) -> Path:
        try:
            found = Path(self._find_needle("files", source))
        except AnsibleError:
            found = Path(source)
        if not found.is_file():
            raise AnsibleActionFail(
                f"Image '{self._task.args.get('name')}': {source} does not exist on the controller or is no file."
            )
        return found

    def _send(self, local: Path, arguments: dict[str, Any], task_vars: dict[str, Any] | None) -> dict[str, Any]:
        # Ansible removes the one temporary folder that the shell remembers when the task ends: a second one would stay.
        folder = self._connection._shell.tmpdir or self._make_tmp_path()
        remote = self._connection._shell.join_path(folder, "image")
        self._transfer_file(str(local), remote)
        self._fixup_perms2((folder, remote))
        sent = {key: value for key, value in arguments.items() if key != "src"}
        answer: dict[str, Any] = self._execute_module(MODULE, module_args={**sent, "path": remote}, task_vars=task_vars)
        return answer
