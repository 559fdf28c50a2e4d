# Copyright: the topovirt.kvm authors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""The devices of an emulated server: one process that answers QEMU's vfio-user clients for every inert endpoint.

Run as ``python -m tests.twin.device_server DESCRIPTION DIRECTORY``: it listens on DIRECTORY/<endpoint name>, prints
``ready`` and serves until it is killed. An endpoint is a configuration space (``config_space.py``) and BARs that read
zero and swallow writes. The protocol is QEMU's "vfio-user Protocol Specification"
(https://www.qemu.org/docs/master/interop/vfio-user.html); little-endian, a 16-byte header before each message. It has
no DMA and raises no interrupts, so QEMU's DMA mappings are acknowledged and their file descriptors closed.
"""

from __future__ import annotations

import json
import os
import selectors
import socket
import struct
import sys
from pathlib import Path

from tests.twin.config_space import SIZE as CONFIG_SIZE
from tests.twin.config_space import ConfigSpace
from tests.twin.description import Endpoint, load

HEADER = struct.Struct("<HHIII")  # message id, command, size with header, flags, error number
REGION = struct.Struct("<QII")  # offset, region, count
INFO = struct.Struct("<IIII")
REGION_INFO = struct.Struct("<IIIIQQ")

VERSION, DMA_MAP, DMA_UNMAP, DEVICE_INFO, REGION_GET_INFO = 1, 2, 3, 4, 5
IRQ_INFO, SET_IRQS, REGION_READ, REGION_WRITE, RESET = 7, 8, 9, 10, 13

TYPE_MASK, TYPE_COMMAND, FLAG_REPLY, FLAG_NO_REPLY, FLAG_ERROR = 0xF, 0, 1, 0x10, 0x20
ENOTSUP = 95

DEVICE_FLAGS = 0x3  # can be reset, is a PCI device
REGION_COUNT = 9  # six BARs, expansion ROM, configuration space, VGA
CONFIG_REGION = 7
REGION_READ_WRITE = 0x3
IRQ_KINDS = 5

# QEMU 11.1 accepts this version alone. Limits: file descriptors in one message, bytes in one transfer.
PROTOCOL_VERSION = (0, 0)
CAPABILITIES = {"capabilities": {"max_msg_fds": 8, "max_data_xfer_size": 1 << 20}}
RECEIVE_BYTES = 1 << 16
RECEIVE_FDS = 16


class Device:
    """Answers the commands for one endpoint; knows nothing of sockets."""

    def __init__(self, endpoint: Endpoint, multifunction: bool) -> None:
        self.config = ConfigSpace(endpoint, multifunction)
        self.bars = endpoint.kind.bars

    def answer(self, command: int, payload: bytes) -> bytes | None:
        """The payload of the reply, ``None`` for a command that is not supported."""
        if command == REGION_READ:
            offset, region, count = REGION.unpack_from(payload)
            data = self.config.read(offset, count) if region == CONFIG_REGION else bytes(count)
            return payload[: REGION.size] + data
        if command == REGION_WRITE:
            offset, region, count = REGION.unpack_from(payload)
            if region == CONFIG_REGION:
                self.config.write(offset, payload[REGION.size : REGION.size + count])
            return payload[: REGION.size]
        if command == VERSION:
            return struct.pack("<HH", *PROTOCOL_VERSION) + json.dumps(CAPABILITIES).encode() + b"\0"
        if command == DEVICE_INFO:
            return INFO.pack(INFO.size, DEVICE_FLAGS, REGION_COUNT, IRQ_KINDS)
        if command == REGION_GET_INFO:
            index = REGION_INFO.unpack_from(payload)[2]
            size = CONFIG_SIZE if index == CONFIG_REGION else self.bars.get(index, 0)
            return REGION_INFO.pack(REGION_INFO.size, REGION_READ_WRITE if size else 0, index, 0, size, 0)
        if command == IRQ_INFO:
            return INFO.pack(INFO.size, 0, INFO.unpack_from(payload)[2], 0)
        if command == RESET:
            self.config.reset()
            return b""
        if command == DMA_UNMAP:
            return payload
        if command in (DMA_MAP, SET_IRQS):
            return b""
        return None


class Connection:
    """Cuts the byte stream of one client into messages and sends the replies."""

    def __init__(self, client: socket.socket, device: Device) -> None:
        self.client = client
        self.device = device
        self.buffer = bytearray()

    def serve(self) -> bool:
        """Handle what has arrived; false when the client has gone."""
        try:
            data, descriptors, _flags, _address = socket.recv_fds(self.client, RECEIVE_BYTES, RECEIVE_FDS)
            for descriptor in descriptors:
                os.close(descriptor)
            if not data:
                return False
            self.buffer += data
            while len(self.buffer) >= HEADER.size:
                size = HEADER.unpack_from(self.buffer)[2]
                if size < HEADER.size:
                    return False
                if len(self.buffer) < size:
                    break
                message = bytes(self.buffer[:size])
                del self.buffer[:size]
                self.handle(message)
        except OSError:
            return False
        return True

    def handle(self, message: bytes) -> None:
        identifier, command, _size, flags, _error = HEADER.unpack_from(message)
        if flags & TYPE_MASK != TYPE_COMMAND:
            return
        payload = self.device.answer(command, message[HEADER.size :])
        if flags & FLAG_NO_REPLY:
            return
        if payload is None:
            reply = HEADER.pack(identifier, command, HEADER.size, FLAG_REPLY | FLAG_ERROR, ENOTSUP)
        else:
            reply = HEADER.pack(identifier, command, HEADER.size + len(payload), FLAG_REPLY, 0) + payload
        self.client.sendall(reply)


def listen(devices: dict[str, Device], directory: Path) -> selectors.BaseSelector:
    """Open one listening socket per device, named as the device. A relative directory keeps the path short."""
    selector = selectors.DefaultSelector()
    for name, device in devices.items():
        path = directory / name
        path.unlink(missing_ok=True)
        listener = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        listener.bind(str(path))
        listener.listen(1)
        selector.register(listener, selectors.EVENT_READ, device)
    return selector


def serve(selector: selectors.BaseSelector) -> None:
    """Answer for ever."""
    while True:
        for key, _events in selector.select():
            if isinstance(key.data, Connection):
                if not key.data.serve():
                    selector.unregister(key.fileobj)
                    key.data.client.close()
            else:
                assert isinstance(key.fileobj, socket.socket)
                client, _address = key.fileobj.accept()
                selector.register(client, selectors.EVENT_READ, Connection(client, key.data))


def devices_of(machine_name: str) -> dict[str, Device]:
    """A device for each inert endpoint of the description."""
    return {
        device.name: Device(device, multifunction=len(slot.devices) > 1)
        for slot in load(machine_name).slots()
        for device in slot.devices
        if isinstance(device, Endpoint)
    }


def main() -> None:
    selector = listen(devices_of(sys.argv[1]), Path(sys.argv[2]))
    print("ready", flush=True)
    serve(selector)


if __name__ == "__main__":
    main()
