# Copyright: the topovirt.kvm authors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""The emulated servers on the command line: ``python -m tests.twin --help``."""

from __future__ import annotations

import argparse
import os
import signal
import sys
import tempfile
from pathlib import Path

import yaml

from tests.twin import description, recorded
from tests.twin.images import shapes
from tests.twin.images.process import BakeError
from tests.twin.lifecycle import DEFAULT_MACHINE, Server, TwinError
from tests.twin.supervisor import RUNNING


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="python -m tests.twin", description="Emulated GPU servers.")
    commands = parser.add_subparsers(dest="command", required=True)

    def add(name: str, text: str) -> argparse.ArgumentParser:
        command = commands.add_parser(name, help=text, description=text)
        if name != "record":
            command.add_argument(
                "machine",
                nargs="?",
                help=f"one of: {', '.join(description.names())} (default: the one that runs, else {DEFAULT_MACHINE})",
            )
            command.add_argument(
                "--variant", choices=sorted(description.VARIANTS), help="the same machine, set up differently"
            )
            command.add_argument(
                "--os", choices=shapes.NAMES, help=f"the distribution on its disk (default {shapes.DEBIAN})"
            )
            command.add_argument(
                "--dir", type=Path, help="where overlay, logs and state lie (default .work/twin/MACHINE[-VARIANT][-OS])"
            )
        return command

    up = add("up", "boot a server and return when it answers over SSH")
    up.add_argument("--keep", action="store_true", help="keep it running until 'down', whoever dies")
    up.add_argument(
        "--owner", type=int, metavar="PID", help="end it when this process dies (default: the caller of this command)"
    )
    add("down", "end a server; its logs stay")
    add("status", "say whether a server runs; exit status 1 when not")
    ssh = add("ssh", "log in, or run what follows '--'")
    ssh.add_argument("--user", default="root", help="root or ops, who may sudo (default root)")
    inventory = add("inventory", "print an Ansible inventory of the running server")
    inventory.add_argument("--user", default="root", help="the user that Ansible logs in as (default root)")
    inventory.add_argument("--output", type=Path, help="write it to this file instead")
    agree = add("agree", "compare the recorded tree with the booted kernel, attribute by attribute")
    agree.add_argument("--boot", action="store_true", help="boot the server for it, and end it afterwards")
    record = add("record", "write the tree of /sys and /proc that the server's kernel shows")
    record.add_argument("machine", help=f"one of: {', '.join(description.names())}")
    record.add_argument("directory", type=Path, help="new or empty directory")
    record.add_argument("--variant", choices=sorted(description.VARIANTS))
    record.add_argument(
        "--scale", choices=description.SCALES, default="boot", help="CPUs and memory as booted, or as sold"
    )
    record.add_argument(
        "--drivers", choices=recorded.DRIVERS, default="native", help="who holds the passthrough devices"
    )
    describe = commands.add_parser("describe", help="print the description of a machine from its capture")
    describe.add_argument("capture", type=Path, help="archive of topology_capture, or the directory of its tree")
    describe.add_argument("name", help="of the new machine")
    return parser


def _describe(capture: Path, name: str) -> None:
    # This needs the collection itself; other commands run without it on Python's path.
    from ansible_collections.topovirt.kvm.plugins.module_utils._errors import TopovirtError
    from ansible_collections.topovirt.kvm.plugins.module_utils._topology.capture import unpack
    from ansible_collections.topovirt.kvm.plugins.module_utils._topology.reader import read_topology

    from tests.twin.from_topology import describe

    with tempfile.TemporaryDirectory() as folder:
        tree = capture
        try:
            if not capture.is_dir():
                tree = Path(folder)
                unpack(capture.read_bytes(), tree)
            data, left_out = describe(read_topology(tree), name)
        except (TopovirtError, OSError) as error:
            raise TwinError(f"{capture}: {error}") from None
    description.parse(data)
    print(yaml.safe_dump(data, sort_keys=False, default_flow_style=None, width=120), end="")
    for line in left_out:
        print(line, file=sys.stderr)


def _run(arguments: argparse.Namespace, remote: list[str]) -> int:
    if arguments.command == "record":
        machine = description.load(arguments.machine, arguments.variant)
        recorded.record(machine, arguments.directory, arguments.scale, arguments.drivers)
        return 0
    if arguments.command == "describe":
        _describe(arguments.capture, arguments.name)
        return 0
    server = _server(arguments)
    if arguments.command == "up":
        server.up(None if arguments.keep else arguments.owner or os.getppid())
        print(f"log in with: python -m tests.twin ssh{f' --dir {arguments.dir}' if arguments.dir else ''}")
    elif arguments.command == "down":
        server.down()
    elif arguments.command == "status":
        state = server.status()
        for key, value in state.items():
            print(f"{key}: {value}")
        return 0 if state["status"] == RUNNING else 1
    elif arguments.command == "ssh":
        words = server.ssh_command(arguments.user)
        os.execvp(words[0], [*words, *remote])
    elif arguments.command == "inventory":
        if arguments.output:
            server.inventory(arguments.output, arguments.user)
        else:
            print(server.inventory_text(arguments.user), end="")
    elif arguments.boot:
        server.up(os.getpid())
        try:
            return _agree(server)
        finally:
            server.down()
    else:
        return _agree(server)
    return 0


def _server(arguments: argparse.Namespace) -> Server:
    """The server that is named, or else the one that runs."""
    named = (arguments.machine, arguments.dir, arguments.variant, arguments.os)
    if all(name is None for name in named) and arguments.command != "up":
        there = (
            Server(name, variant, os=shape)
            for name in description.names()
            for variant in (None, *description.VARIANTS)
            for shape in shapes.NAMES
        )
        running = next((server for server in there if server.status()["status"] == RUNNING), None)
        if running is not None:
            return running
    return Server(
        arguments.machine or DEFAULT_MACHINE, arguments.variant, arguments.dir, os=arguments.os or shapes.DEBIAN
    )


def _agree(server: Server) -> int:
    # Like _describe, it needs the collection itself.
    from tests.bench import on_server

    return on_server.agree(server)


def main() -> int:
    words = sys.argv[1:]
    remote: list[str] = []
    if words[:1] == ["ssh"] and "--" in words:
        words, remote = words[: words.index("--")], words[words.index("--") + 1 :]
    arguments = _parser().parse_args(words)
    try:
        status = _run(arguments, remote)
        sys.stdout.flush()
        return status
    except BrokenPipeError:
        # Whoever read has seen enough; Python must not complain of it once more while it ends.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 128 + signal.SIGPIPE
    except (TwinError, BakeError, description.DescriptionError) as error:
        print(f"error: {error}", file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        return 130


if __name__ == "__main__":
    sys.exit(main())
