# Copyright: the topovirt.kvm authors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Questions to a QEMU that no libvirt runs: its monitor, and the agent of its guest. Both speak JSON, line by line."""

from __future__ import annotations

import itertools
import json
import socket
from collections.abc import Callable
from pathlib import Path
from typing import Any

from ansible_collections.topovirt.kvm.plugins.module_utils._topology.guest import AgentSilent

ANSWER_TIMEOUT_S = 20.0
_CHUNK = 1 << 16


class Line:
    """One connection."""

    def __init__(self, path: Path) -> None:
        self._socket = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        self._socket.settimeout(ANSWER_TIMEOUT_S)
        self._socket.connect(str(path))
        self._rest = b""

    def close(self) -> None:
        self._socket.close()

    def send(self, message: dict[str, Any]) -> None:
        self._socket.sendall(json.dumps(message).encode() + b"\n")

    def receive(self, wanted: Callable[[dict[str, Any]], bool]) -> dict[str, Any]:
        """The next message that is wanted; others are dropped.

        :raises OSError: none came in time, or the other side went.
        """
        while True:
            line, newline, rest = self._rest.partition(b"\n")
            if not newline:
                data = self._socket.recv(_CHUNK)
                if not data:
                    raise ConnectionError("the other side closed the connection")
                self._rest += data
                continue
            self._rest = rest
            if line.strip() and wanted(message := json.loads(line)):
                return dict(message)


def ask_monitor(path: Path, command: str) -> Any:
    """The result of a monitor command (QMP).

    :raises OSError: no answer.
    """
    line = Line(path)
    try:
        line.receive(lambda message: "QMP" in message)
        for execute in ("qmp_capabilities", command):
            line.send({"execute": execute})
            answer = line.receive(lambda message: "return" in message or "error" in message)
        return answer["return"]
    finally:
        line.close()


class Agent:
    """The guest agent: call it with a command, get its result."""

    def __init__(self, path: Path) -> None:
        self._path = path
        self._numbers = itertools.count(1)

    def __call__(self, command: dict[str, Any]) -> Any:
        """:raises AgentSilent: no answer in time."""
        try:
            line = Line(self._path)
            try:
                # Answers to what was asked before and given up come first.
                number = next(self._numbers)
                line.send({"execute": "guest-sync", "arguments": {"id": number}})
                line.receive(lambda message: message.get("return") == number)
                line.send(command)
                answer = line.receive(lambda message: "return" in message or "error" in message)
            finally:
                line.close()
        except (OSError, ValueError) as error:
            raise AgentSilent(str(error)) from None
        if "error" in answer:
            raise RuntimeError(f"the guest agent refused {command['execute']}: {answer['error']}")
        return answer["return"]
