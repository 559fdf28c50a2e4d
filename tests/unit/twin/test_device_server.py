# Copyright: the topovirt.kvm authors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""The device server over real sockets, spoken to as QEMU's client does."""

from __future__ import annotations

import json
import os
import socket
import struct
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.twin import device_server

CONFIG = 7


class Client:
    def __init__(self, path: Path) -> None:
        self.socket = socket.socket(socket.AF_UNIX)
        self.socket.settimeout(10)
        self.socket.connect(str(path))
        self.count = 0

    def send(self, command: int, payload: bytes = b"", flags: int = 0) -> None:
        self.count += 1
        self.socket.sendall(struct.pack("<HHIII", self.count, command, 16 + len(payload), flags, 0) + payload)

    def receive(self) -> tuple[int, int, bytes]:
        head = self.exactly(16)
        identifier, _command, size, flags, error = struct.unpack("<HHIII", head)
        assert identifier == self.count
        return flags, error, self.exactly(size - 16)

    def exactly(self, count: int) -> bytes:
        data = b""
        while len(data) < count:
            piece = self.socket.recv(count - len(data))
            assert piece
            data += piece
        return data

    def call(self, command: int, payload: bytes = b"") -> bytes:
        self.send(command, payload)
        flags, error, data = self.receive()
        assert (flags & 0x2F, error) == (1, 0)
        return data

    def read(self, region: int, offset: int, count: int) -> bytes:
        return self.call(9, struct.pack("<QII", offset, region, count))[16:]

    def write(self, region: int, offset: int, data: bytes) -> None:
        self.call(10, struct.pack("<QII", offset, region, len(data)) + data)


@pytest.fixture(scope="module")
def sockets(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    directory = tmp_path_factory.mktemp("devices")
    selector = device_server.listen(device_server.devices_of("hgx-h200"), directory)
    threading.Thread(target=device_server.serve, args=(selector,), daemon=True).start()
    yield directory


def test_one_socket_per_inert_endpoint(sockets: Path) -> None:
    assert len(list(sockets.iterdir())) == 20


def test_version_and_info(sockets: Path) -> None:
    client = Client(sockets / "gpu0")
    offer = struct.pack("<HH", 0, 0) + b'{"capabilities": {}}\0'
    reply = client.call(1, offer)
    assert struct.unpack_from("<HH", reply) == (0, 0)
    assert json.loads(reply[4:].rstrip(b"\0"))["capabilities"]["max_msg_fds"] > 0
    _size, flags, regions, _irqs = struct.unpack("<IIII", client.call(4, struct.pack("<IIII", 16, 0, 0, 0)))
    assert (flags, regions) == (3, 9)


def test_region_sizes_are_those_of_the_bars(sockets: Path) -> None:
    client = Client(sockets / "gpu1")
    sizes = {}
    for region in range(9):
        reply = client.call(5, struct.pack("<IIIIQQ", 32, 0, region, 0, 0, 0))
        sizes[region] = struct.unpack("<IIIIQQ", reply)[4]
    assert sizes == {0: 16 << 20, 1: 0, 2: 256 << 30, 3: 0, 4: 32 << 20, 5: 0, 6: 0, 7: 4096, 8: 0}


def test_configuration_space_and_reset(sockets: Path) -> None:
    client = Client(sockets / "nic0")
    assert client.read(CONFIG, 0, 4) == struct.pack("<HH", 0x15B3, 0x1021)
    client.write(CONFIG, 4, b"\x06\x00")
    assert client.read(CONFIG, 4, 2) == b"\x06\x00"
    client.call(13)
    assert client.read(CONFIG, 4, 2) == b"\x00\x00"


def test_bars_read_zero_and_swallow_writes(sockets: Path) -> None:
    client = Client(sockets / "gpu2")
    client.write(2, 1 << 37, b"\xaa" * 8)
    assert client.read(2, 1 << 37, 8) == bytes(8)


def test_posted_writes_get_no_reply(sockets: Path) -> None:
    client = Client(sockets / "nic1")
    client.send(10, struct.pack("<QII", 4, CONFIG, 2) + b"\x06\x00", flags=0x10)
    assert client.read(CONFIG, 4, 2) == b"\x06\x00"


def test_dma_mappings_are_acknowledged_and_their_files_closed(sockets: Path) -> None:
    client = Client(sockets / "nic2")
    before = len(os.listdir("/proc/self/fd"))
    payload = struct.pack("<IIQQQ", 32, 3, 0, 0, 1 << 30)
    for _ in range(20):
        client.count += 1
        head = struct.pack("<HHIII", client.count, 2, 16 + len(payload), 0, 0)
        with open(os.devnull, "rb") as file:
            socket.send_fds(client.socket, [head + payload], [file.fileno()])
        assert client.receive()[:2] == (1, 0)
    # Connections of earlier tests may end meanwhile; what counts is that 20 descriptors do not pile up.
    assert len(os.listdir("/proc/self/fd")) < before + 10


def test_an_unknown_command_is_refused_and_the_next_one_answered(sockets: Path) -> None:
    client = Client(sockets / "nic3")
    client.send(99)
    flags, error, _data = client.receive()
    assert (flags, error) == (0x21, 95)
    assert client.read(CONFIG, 0, 2) == struct.pack("<H", 0x15B3)


def test_messages_may_arrive_in_pieces_and_together(sockets: Path) -> None:
    client = Client(sockets / "nic4")
    message = struct.pack("<HHIII", 1, 9, 32, 0, 0) + struct.pack("<QII", 0, CONFIG, 2)
    for position in range(0, len(message), 5):
        client.socket.sendall(message[position : position + 5])
    client.count = 1
    assert client.receive()[2][16:] == struct.pack("<H", 0x15B3)
    client.socket.sendall(message + message)
    assert client.receive() == client.receive()


def test_a_client_may_come_again(sockets: Path) -> None:
    for _ in range(3):
        client = Client(sockets / "nic5")
        assert client.read(CONFIG, 0, 2) == struct.pack("<H", 0x15B3)
        client.socket.close()


def test_nonsense_ends_the_connection_and_not_the_server(sockets: Path) -> None:
    client = Client(sockets / "nic6")
    client.socket.sendall(struct.pack("<HHIII", 1, 9, 3, 0, 0))
    assert client.socket.recv(1) == b""
    assert Client(sockets / "nic6").read(CONFIG, 0, 2) == struct.pack("<H", 0x15B3)
