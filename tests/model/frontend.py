# SPDX-License-Identifier: MIT
"""A model of QEMU's side of vmbus-user, written from docs/vmbus-user.md, not from the code."""

from __future__ import annotations

import asyncio
import os
import socket
import struct
import zlib
from dataclasses import dataclass

HELLO, MEM_TABLE, RESET, RESUME, STOP, GUEST_MESSAGE, POST_STATUS = range(1, 8)
SAVE_STATE, LOAD_STATE, REPLY, ERROR, CODE_MAP = range(8, 13)
HELLO_REPLY, MEM_TABLE_DONE, RESET_DONE, POST_MESSAGE, GUEST_MESSAGE_DONE = range(64, 69)
ADD_DOORBELL, DEL_DOORBELL, ADD_INTERRUPT, DEL_INTERRUPT, INVALIDATE_CODE = range(69, 74)

_FDS = {ADD_DOORBELL: 1, ADD_INTERRUPT: 1}


@dataclass(frozen=True)
class Got:
    """One message of the backend."""

    type: int
    cookie: int
    body: bytes
    fds: tuple[int, ...] = ()

    @property
    def words(self) -> tuple[int, ...]:
        """The body as u32 words."""
        return struct.unpack(f"<{len(self.body) // 4}I", self.body[: len(self.body) // 4 * 4])


class ModelFrontend:
    """One connection; ``backend_socket`` goes to the code under test."""

    def __init__(self, ram_size: int = 16 * 1024 * 1024, post_window: int = 4) -> None:
        self._sock, self.backend_socket = socket.socketpair(socket.AF_UNIX, socket.SOCK_STREAM)
        self._sock.setblocking(False)
        self._buffer = b""
        self._fds: list[int] = []
        self._queue: list[Got] = []
        self.ram_size = ram_size
        self.post_window = post_window
        self.ram = os.memfd_create("model-ram")
        os.ftruncate(self.ram, ram_size)
        self.epoch = 0
        self.features = 1

    def close_socket(self) -> None:
        self._sock.close()

    def close(self) -> None:
        self._sock.close()
        os.close(self.ram)
        for fd in self._fds:
            os.close(fd)

    def send_raw(self, data: bytes, fds: tuple[int, ...] = ()) -> None:
        socket.send_fds(self._sock, [data], list(fds))

    def send(
        self, kind: int, body: bytes = b"", cookie: int = 0, fds: tuple[int, ...] = ()
    ) -> None:
        self.send_raw(struct.pack("<IIII", kind, 1, len(body), cookie) + body, fds)

    def hello(self) -> None:
        self.send(HELLO, struct.pack("<IIQII", 1, 2, self.features, 8, self.post_window))
        self.mem_table((0, self.ram_size, 0, self.ram))
        self.reset()

    def mem_table(self, *regions: tuple[int, int, int, int]) -> None:
        """Send a table of (gpa, size, fd_offset, fd)."""
        table = struct.pack("<II", len(regions), 0)
        table += b"".join(struct.pack("<QQQ", *region[:3]) for region in regions)
        self.send(MEM_TABLE, table, fds=tuple(region[3] for region in regions))

    def reset(self) -> None:
        self.epoch += 1
        self.send(RESET, struct.pack("<I", self.epoch))

    def guest_message(self, payload: bytes, connection_id: int = 4) -> None:
        body = struct.pack("<IIII", connection_id, 1, 0, len(payload)) + payload
        self.send(GUEST_MESSAGE, body)

    def status(self, kind: int, cookie: int, status: int = 0) -> None:
        self.send(kind, struct.pack("<I", status), cookie)

    async def read(self) -> Got:
        """Return the next message of the backend; raises EOFError when it has closed."""
        loop = asyncio.get_running_loop()
        while not self._queue:
            readable = asyncio.Event()
            loop.add_reader(self._sock, readable.set)
            await readable.wait()
            loop.remove_reader(self._sock)
            data, fds, _, _ = socket.recv_fds(self._sock, 65536, 16)
            if not data:
                raise EOFError
            self._buffer += data
            self._fds += fds
            self._split()
        return self._queue.pop(0)

    async def expect(self, kind: int) -> Got:
        got = await self.read()
        assert got.type == kind, got
        return got

    async def handshake(self) -> None:
        self.hello()
        for kind in (HELLO_REPLY, MEM_TABLE_DONE, RESET_DONE):
            await self.expect(kind)

    def _split(self) -> None:
        while len(self._buffer) >= 16:
            kind, flags, size, cookie = struct.unpack_from("<IIII", self._buffer)
            assert flags == 1
            if len(self._buffer) < 16 + size:
                return
            body, self._buffer = self._buffer[16 : 16 + size], self._buffer[16 + size :]
            count = _FDS.get(kind, 0)
            fds, self._fds = tuple(self._fds[:count]), self._fds[count:]
            assert len(fds) == count
            self._queue.append(Got(kind, cookie, body, fds))

    async def stop(self) -> bytes:
        """Stop the backend; returns what it answers."""
        answer, end = os.pipe()
        self.send(STOP, fds=(end,))
        os.close(end)
        await _readable(answer)
        stopped = os.read(answer, 2)
        os.close(answer)
        assert stopped, "the pipe was closed without an answer"
        return stopped

    def code_map(self, *first: int, size: int) -> None:
        """Send a map of ``size`` bytes with the bytes of the regions' first pages."""
        fd = os.memfd_create("code")
        os.ftruncate(fd, size)
        body = struct.pack(f"<II{len(first)}Q", len(first), 0, *first)
        self.send(CODE_MAP, body, fds=(fd,))
        os.close(fd)

    async def save(self, max_size: int = 1 << 20) -> tuple[int, bytes, str]:
        """Return status, state and text of a SAVE_STATE; checks size and CRC as QEMU does."""
        memfd = os.memfd_create("state")
        status, size, crc, text = await self._ask(SAVE_STATE, struct.pack("<Q", max_size), memfd)
        state = os.pread(memfd, 1 << 24, 0)
        os.close(memfd)
        if status == 0:
            assert (len(state), zlib.crc32(state)) == (size, crc)
        return status, state, text

    async def load(self, state: bytes) -> tuple[int, str]:
        memfd = os.memfd_create("state")
        os.write(memfd, state)
        status, _, _, text = await self._ask(LOAD_STATE, struct.pack("<Q", len(state)), memfd)
        os.close(memfd)
        return status, text

    async def _ask(self, kind: int, body: bytes, memfd: int) -> tuple[int, int, int, str]:
        read_end, write_end = os.pipe()
        self.send(kind, body, fds=(memfd, write_end))
        os.close(write_end)
        await _readable(read_end)
        data = os.read(read_end, 8192)
        os.close(read_end)
        status, text_size, size, crc, reserved = struct.unpack_from("<IIQII", data)
        assert reserved == 0
        assert len(data) == 24 + text_size
        return status, size, crc, data[24:].decode()


async def _readable(fd: int) -> None:
    loop = asyncio.get_running_loop()
    event = asyncio.Event()
    loop.add_reader(fd, event.set)
    await event.wait()
    loop.remove_reader(fd)
