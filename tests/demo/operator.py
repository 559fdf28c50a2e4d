# Copyright: the topovirt.kvm authors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""An operator's workplace: the installed collection, an inventory with its variables, and ansible-playbook.

Everything here is what the owner of a real server would write and type. The emulated server enters only as the
address in the inventory, as the guest's images, and as settings of the requests (``FOR_EMULATION``).
"""

from __future__ import annotations

import os
import re
import subprocess
import textwrap
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml

from tests.tools import collection, manifest, progress, workspace
from tests.twin.lifecycle import Server

# What a request for a real server never carries. QEMU inside the emulated server would map every 256 GiB BAR through an
# emulated IOMMU, which takes minutes; and guests that end an interrupt without leaving the CPU hang, see steady.py.
FOR_EMULATION: dict[str, Any] = {"hostdev_properties": {"x-no-mmap": True}, "pv_eoi": False}

# The test guest's command line. One CPU until its own init brings up the others, for fewer interrupts while its kernel
# looks for devices; and quiet, because a character on the console costs two exits from the guest.
GUEST_CMDLINE = "console=ttyS0 quiet mitigations=off maxcpus=1"

NOTES = [
    "Emulated: the server with its PCI devices, CPU, NUMA nodes and IOMMU. The devices are inert; their drivers nvidia "
    "and mlx5_core and the tool nvidia-smi are stand-ins.",
    "Stand-in: the activation of NVLink partitions. No Fabric Manager runs and no NVLink exists.",
    "Real: firmware, GRUB, kernel, sysfs, vfio-pci, huge pages, TuneD, libvirt, QEMU and KVM on the host, and the "
    "guests' kernels.",
]


CONFIGURATION = """\
[defaults]
inject_facts_as_vars = false
timeout = 120
callback_result_format = yaml
[connection]
pipelining = true
"""


TOKEN = re.compile(r"\btopovirt=[0-9A-Za-z-]+")
# A failed task or item: what follows the arrow, up to the next line that is not indented.
FAILED = re.compile(r"^(?:fatal|failed): \[.*?=> ?(.*\n(?:[ \t]+.*\n|\n(?=[ \t]))*)", re.MULTILINE)


class Failure(Exception):
    """A phase that did not do what it must; the text is one sentence for the user."""


@dataclass(frozen=True)
class Played:
    """What one run of ansible-playbook did."""

    status: int
    changed: int
    text: str
    log: Path

    @property
    def reason(self) -> str:
        """Why it failed, in the words of the task that failed."""
        return failure_message(self.text)


def failure_message(text: str) -> str:
    """The message of the last failed task, from Ansible's output in YAML; one line."""
    found = FAILED.findall(text)
    if not found:
        errors = [line for line in text.splitlines() if line.startswith(("ERROR!", "[ERROR]"))]
        return errors[-1] if errors else "it failed without naming a task"
    try:
        result = yaml.safe_load(textwrap.dedent(found[-1])) or {}
    except yaml.YAMLError:
        result = {"msg": found[-1]}
    message = str(result.get("msg") or "a task failed without a message")
    if result.get("stderr"):
        message += f": {result['stderr']}"
    return " ".join(message.split())


def changed_tasks(text: str) -> int:
    """The sum of ``changed=`` in the recap.

    :raises Failure: there is no recap.
    """
    found = re.findall(r"^\S+\s+: ok=\d+\s+changed=(\d+)", text, re.MULTILINE)
    if not found:
        raise Failure("ansible-playbook ended without a recap")
    return sum(map(int, found))


def changes(text: str) -> dict[str, str]:
    """The tasks that changed something, or would in check mode: name -> diff, for output of ``--diff``.

    The id of a conversion is drawn anew by each run, so it is left out of the diffs.
    """
    found: dict[str, str] = {}
    task, diff = "", list[str]()
    for line in text.splitlines():
        if line.startswith(("TASK [", "RUNNING HANDLER [")):
            task, diff = line[line.index("[") + 1 : line.rindex("]")], []
        elif line.startswith("changed: ["):
            found[task] = "\n".join(diff)
        else:
            diff.append(TOKEN.sub("topovirt=ID", line))
    return found


class Operator:
    """Runs playbooks against one server.

    :param folder: the workplace.
    :param collections: where the collection is installed; default: in the workplace, see :meth:`install`.
    :param user: whom Ansible logs in as, who may sudo.
    """

    def __init__(self, server: Server, folder: Path, collections: Path | None = None, user: str = "ops") -> None:
        self.server = server
        self.folder = folder
        self.user = user
        self.collections = collections or folder / "collections"
        self.reports = folder / "report"
        self.logs = folder / "log"
        self.environment: dict[str, str] = {}  # of every run, besides the usual

    def install(self) -> str:
        """Build the collection and install it as from a file; returns its version."""
        tarball = collection.build(self.folder / "dist", self.logs / "build.log")
        collection.install(tarball, self.collections, self.logs / "install.log")
        return tarball.name.removesuffix(".tar.gz")

    def write_inventory(self, variables: Mapping[str, Any]) -> Path:
        """Inventory and group variables of the running server, and the operator's ansible.cfg."""
        inventory = self.folder / "inventory"
        self.server.inventory(inventory / "hosts.yml", self.user)
        write_yaml(inventory / "group_vars/gpu_hosts.yml", variables)
        (self.folder / "ansible.cfg").write_text(CONFIGURATION, encoding="utf-8")
        return inventory

    def images(self) -> dict[str, Any]:
        """The test guest as a source to boot from."""
        return {"test-guest": {**self.server.status()["guest"], "cmdline": GUEST_CMDLINE}}

    def play(
        self,
        name: str,
        playbook: str,
        *arguments: str,
        variables: Mapping[str, Any] | None = None,
        beat: Callable[[float, Path], None] | None = None,
    ) -> Played:
        """Run a playbook to its end; its failure is the caller's to judge.

        :param name: of the log.
        :param playbook: of the installed collection, or a file (``.yml``) of the workplace.
        :param variables: extra variables of this run.
        """
        log = self.logs / f"{name}.log"
        command = [str(workspace.VENV / "bin/ansible-playbook"), "-i", str(self.folder / "inventory")]
        if variables:
            extra = self.folder / f"vars/{name}.yml"
            write_yaml(extra, variables)
            command += ["-e", f"@{extra}"]
        command += [playbook if playbook.endswith(".yml") else f"topovirt.kvm.{playbook}", *arguments]
        env = workspace.environment(os.environ, self.collections) | self.environment
        env["ANSIBLE_CONFIG"] = str(self.folder / "ansible.cfg")
        status = progress.run_logged(
            command, log, env, self.folder, on_beat=(lambda seconds: beat(seconds, log)) if beat else None
        )
        text = log.read_text(encoding="utf-8", errors="replace")
        return Played(status, changed_tasks(text) if status == 0 else 0, text, log)

    def must_play(
        self,
        name: str,
        playbook: str,
        *arguments: str,
        variables: Mapping[str, Any] | None = None,
        beat: Callable[[float, Path], None] | None = None,
    ) -> Played:
        """Like :meth:`play`.

        :raises Failure: the playbook failed; says why and where its log is.
        """
        played = self.play(name, playbook, *arguments, variables=variables, beat=beat)
        if played.status:
            raise Failure(f"{playbook}: {played.reason}\n    log: {os.path.relpath(played.log, workspace.ROOT)}")
        return played


def record(server: Server) -> dict[str, Any]:
    """Everything that the way back must restore, see tests/tools/manifest.py."""
    try:
        return manifest.take(server.ssh_command())
    except subprocess.CalledProcessError as error:
        raise Failure(f"the host's files, packages and units cannot be recorded: {error}") from error


def management_nic(server: Server) -> str:
    """Address of the card over which the operator reaches the server."""
    command = (
        "basename $(readlink -f /sys/class/net/$(ip -o route get 10.0.2.2 | sed 's/.* dev \\([^ ]*\\).*/\\1/')/device)"
    )
    return server.copy_from(command).decode().strip()


def write_yaml(path: Path, content: Mapping[str, Any]) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("---\n" + yaml.safe_dump(dict(content), sort_keys=False), encoding="utf-8")
