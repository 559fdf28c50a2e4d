# Copyright: the topovirt.kvm authors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Writes what ``host_state`` and ``host_journal`` return, whole, while an operator's playbook runs: a JSON object per
line in the file that ``TOPOVIRT_RESULTS`` names. What Ansible prints of a task is for people.
"""

from __future__ import annotations

import json
import os
from typing import Any

from ansible.plugins.callback import CallbackBase

DOCUMENTATION = """
name: host_results
type: notification
short_description: Results of modules that change hosts, as JSON
description: For tests only.
"""

MODULES = ("topovirt.kvm.host_state", "topovirt.kvm.host_journal")


class CallbackModule(CallbackBase):
    CALLBACK_VERSION = 2.0
    CALLBACK_TYPE = "notification"
    CALLBACK_NAME = "host_results"
    CALLBACK_NEEDS_ENABLED = True

    def v2_runner_on_ok(self, result: Any) -> None:
        if result._task.action not in MODULES:
            return
        found = {key: value for key, value in result._result.items() if not key.startswith("_")}
        found["module"] = result._task.action.rpartition(".")[2]
        with open(os.environ["TOPOVIRT_RESULTS"], "a", encoding="utf-8") as file:
            file.write(json.dumps(found) + "\n")
