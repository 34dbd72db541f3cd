# SPDX-License-Identifier: MIT
"""The device against a backend that does not keep to docs/vmbus-user.md: QEMU refuses and lives."""

from __future__ import annotations

import asyncio
import contextlib
import os
import random
import socket
import struct
from collections.abc import AsyncIterator
from pathlib import Path

import pytest
import pytest_asyncio
from qemu.qmp import QMPClient

from emulator.machine.config import Accel
from emulator.machine.process import Child
from emulator.machine.qemu import Sockets, command_line
from emulator.machine.sockets import listen
from tests.e2e.conftest import ConfigMaker
from tests.model import frontend as fe

pytestmark = [pytest.mark.asyncio, pytest.mark.e2e]

PATIENCE = 60


def frame(kind: int, body: bytes = b"", *, flags: int = 1, size: int | None = None) -> bytes:
    """One message of a backend, right or wrong."""
    return struct.pack("<IIII", kind, flags, len(body) if size is None else size, 7) + body


def words(*values: int) -> bytes:
    return struct.pack(f"<{len(values)}I", *values)


HELLO_REPLY = frame(fe.HELLO_REPLY, struct.pack("<IIQ", 1, 0, 1))
MEM_TABLE_DONE = frame(fe.MEM_TABLE_DONE, words(0))


class Rig:
    """A QEMU whose vmbus-user connects to the test, again and again."""

    def __init__(self, child: Child, qmp: QMPClient, listener: socket.socket) -> None:
        self.child = child
        self.qmp = qmp
        self._listener = listener

    async def accept(self) -> tuple[socket.socket, int]:
        """Take the next connection up to its RESET; returns the socket and the epoch."""
        loop = asyncio.get_running_loop()
        sock, _ = await loop.sock_accept(self._listener)
        sock.setblocking(False)
        kind = 0
        body = b""
        while kind != fe.RESET:
            header = await self._exactly(sock, 16)
            kind, _, size, _ = struct.unpack("<IIII", header)
            body = await self._exactly(sock, size)
        epoch: int
        (epoch,) = struct.unpack("<I", body)
        return sock, epoch

    async def ready(self) -> socket.socket:
        """Take the next connection and answer it as a good backend does."""
        sock, epoch = await self.accept()
        await self.send(sock, HELLO_REPLY + MEM_TABLE_DONE + frame(fe.RESET_DONE, words(epoch)))
        return sock

    async def send(self, sock: socket.socket, data: bytes, fds: tuple[int, ...] = ()) -> None:
        if fds:
            socket.send_fds(sock, [data], list(fds))
        else:
            await asyncio.get_running_loop().sock_sendall(sock, data)

    async def end(self, sock: socket.socket) -> list[tuple[int, bytes]]:
        """Return what QEMU still says until it closes the connection."""
        data = b""
        loop = asyncio.get_running_loop()
        with contextlib.suppress(ConnectionError):
            while piece := await loop.sock_recv(sock, 65536):
                data += piece
        sock.close()
        said: list[tuple[int, bytes]] = []
        while len(data) >= 16:
            kind, _, size, _ = struct.unpack_from("<IIII", data)
            said.append((kind, data[16 : 16 + size]))
            data = data[16 + size :]
        return said

    async def _exactly(self, sock: socket.socket, count: int) -> bytes:
        data = b""
        while len(data) < count:
            piece = await asyncio.get_running_loop().sock_recv(sock, count - len(data))
            assert piece, "QEMU closed the connection"
            data += piece
        return data

    async def alive(self) -> bool:
        status = await self.qmp.execute("query-status")
        return isinstance(status, dict) and not self.child.ended.done()

    async def info(self) -> dict[str, object]:
        info = await self._property("info")
        assert isinstance(info, dict)
        return info

    async def connected(self) -> object:
        return await self._property("connected")

    async def _property(self, name: str) -> object:
        devices = await self.qmp.execute("qom-list", {"path": "/machine/peripheral-anon"})
        assert isinstance(devices, list)
        (child,) = [device["name"] for device in devices if device["type"] == "child<vmbus-user>"]
        path = f"/machine/peripheral-anon/{child}"
        return await self.qmp.execute("qom-get", {"path": path, "property": name})


@pytest_asyncio.fixture
async def rig(make_config: ConfigMaker, qemu: Path, tmp_path: Path) -> AsyncIterator[Rig]:
    # Names of sockets are short; those of test folders are not.
    folder = Path(os.path.relpath(tmp_path))  # noqa: ASYNC240 - reads no disk
    sockets = Sockets.under(folder)
    args = command_line(qemu, make_config(), sockets, accel=Accel.TCG, incoming=False)
    args = [arg.replace("vmbus.sock", "vmbus.sock,reconnect-ms=20") for arg in args]
    console = listen(sockets.console)
    listener = listen(sockets.vmbus)
    listener.setblocking(False)
    qmp = QMPClient("test")
    await qmp.start_server(str(sockets.qmp))
    # Without a guest: it is the device that is looked at.
    child = await Child.start("QEMU", [*args, "-S"], tmp_path / "qemu.log")
    async with asyncio.timeout(PATIENCE):
        await qmp.accept()
        yield Rig(child, qmp, listener)
    await qmp.disconnect()
    await child.kill()
    listener.close()
    console.close()


WRONG: list[tuple[str, bytes, int]] = [
    ("an unknown type", frame(99), 0),
    ("a type of the frontend", frame(fe.RESET, words(1)), 0),
    ("another protocol version", frame(fe.RESET_DONE, words(1), flags=2), 0),
    ("a reserved header flag", frame(fe.RESET_DONE, words(1), flags=0x101), 0),
    ("a body over the limit", frame(fe.RESET_DONE, size=1 << 17), 0),
    ("a body too short", frame(fe.RESET_DONE, b"abc"), 0),
    ("a body too long", frame(fe.RESET_DONE, words(1, 2)), 0),
    ("a second HELLO_REPLY", HELLO_REPLY, 0),
    ("credits that were not used", frame(fe.GUEST_MESSAGE_DONE, words(1)), 0),
    ("a post with a wrong size", frame(fe.POST_MESSAGE, words(0, 2, 1, 9)), 0),
    ("a post over the limit", frame(fe.POST_MESSAGE, words(0, 2, 1, 241) + bytes(241)), 0),
    ("a doorbell without a descriptor", frame(fe.ADD_DOORBELL, words(0x2001)), 0),
    ("a doorbell with two", frame(fe.ADD_DOORBELL, words(0x2001)), 2),
    ("a descriptor nobody asked for", frame(fe.DEL_DOORBELL, words(0x2001)), 1),
]


async def test_each_wrong_message_is_refused_with_a_reason_and_qemu_lives(rig: Rig) -> None:
    for what, data, fds in WRONG:
        sock = await rig.ready()
        eventfds = tuple(os.eventfd(0) for _ in range(fds))
        await rig.send(sock, data, eventfds)
        said = await rig.end(sock)
        for eventfd in eventfds:
            os.close(eventfd)
        assert said[-1][0] == fe.ERROR, what
        assert said[-1][1].decode(), what
        assert await rig.alive(), what


async def test_wrong_targets_are_answered_and_harm_nothing(rig: Rig) -> None:
    sock = await rig.ready()
    eventfd = os.eventfd(0)
    for body, status in (
        (words(1, 99, 2, 1), 2),
        (words(1, 0, 16, 1), 2),
        (words(1, 0, 2, 2048), 2),
        (words(1, 0, 2, 2047), 0),
        (words(1, 0, 2, 1), 0),
    ):
        await rig.send(sock, frame(fe.ADD_INTERRUPT, body), (eventfd,))
        assert await _answer(rig, sock, fe.REPLY) == status
    for status in (0, 3):
        await rig.send(sock, frame(fe.ADD_DOORBELL, words(0x2001)), (eventfd,))
        assert await _answer(rig, sock, fe.REPLY) == status
    for kind in (fe.DEL_DOORBELL, fe.DEL_INTERRUPT):
        ident = 0x2001 if kind == fe.DEL_DOORBELL else 1
        for status in (0, 3):
            await rig.send(sock, frame(kind, words(ident)))
            assert await _answer(rig, sock, fe.REPLY) == status
    await rig.send(sock, frame(fe.POST_MESSAGE, words(99, 2, 1, 0)))
    assert await _answer(rig, sock, fe.POST_STATUS) == 2
    os.close(eventfd)
    sock.close()
    assert await rig.alive()


async def test_connected_tells_whether_a_backend_has_answered(rig: Rig) -> None:
    sock, epoch = await rig.accept()
    assert await rig.connected() is False
    await rig.send(sock, HELLO_REPLY + MEM_TABLE_DONE + frame(fe.RESET_DONE, words(epoch)))
    # A request is answered only after what was sent before it.
    await rig.send(sock, frame(fe.DEL_INTERRUPT, words(1)))
    assert await _answer(rig, sock, fe.REPLY) == 3
    assert await rig.connected() is True
    sock.close()


async def test_info_counts_what_is_registered_and_keeps_why_a_backend_went(rig: Rig) -> None:
    sock = await rig.ready()
    eventfds = [os.eventfd(0) for _ in range(3)]
    for number, eventfd in enumerate(eventfds):
        await rig.send(sock, frame(fe.ADD_DOORBELL, words(0x2001 + number)), (eventfd,))
        assert await _answer(rig, sock, fe.REPLY) == 0
    await rig.send(sock, frame(fe.ADD_INTERRUPT, words(1, 0, 2, 1)), (eventfds[0],))
    assert await _answer(rig, sock, fe.REPLY) == 0
    # Stopped, the machine delivers nothing: the post waits.
    await rig.send(sock, frame(fe.POST_MESSAGE, words(0, 2, 1, 0)))
    await rig.send(sock, frame(fe.DEL_INTERRUPT, words(9)))
    assert await _answer(rig, sock, fe.REPLY) == 3
    info = await rig.info()
    assert (info["doorbells"], info["interrupts"], info["signals"]) == (3, 1, 0)
    assert (info["posts-accepted"], info["posts-outstanding"]) == (1, 1)
    assert (info["connections"], info["disconnects"]) == (1, 0)
    await rig.send(sock, frame(99))
    (kind, text) = (await rig.end(sock))[-1]
    assert kind == fe.ERROR
    sock = await rig.ready()
    info = await rig.info()
    assert info["disconnect-reason"] == text.decode()
    assert (info["doorbells"], info["interrupts"], info["posts-outstanding"]) == (0, 0, 0)
    assert (info["connections"], info["disconnects"]) == (2, 1)
    sock.close()
    for eventfd in eventfds:
        os.close(eventfd)


async def test_a_backend_that_closes_in_mid_message_is_forgotten(rig: Rig) -> None:
    for cut in (1, 8, 16, 20):
        sock = await rig.ready()
        await rig.send(sock, frame(fe.POST_MESSAGE, words(0, 2, 1, 8) + bytes(8))[:cut])
        sock.close()
    sock = await rig.ready()
    sock.close()
    assert await rig.alive()


async def test_a_backend_that_comes_to_a_running_machine_is_resumed_at_once(rig: Rig) -> None:
    sock, epoch = await rig.accept()
    await rig.qmp.execute("cont")
    header = struct.unpack("<IIII", await rig._exactly(sock, 16))
    assert header[0] == fe.RESUME
    for _ in range(3):
        sock.close()
        before = epoch
        # HELLO, MEM_TABLE and RESET were read by accept(); RESUME does not wait for the answers.
        sock, epoch = await rig.accept()
        assert epoch > before
        header = struct.unpack("<IIII", await rig._exactly(sock, 16))
        assert header[0] == fe.RESUME
        status = await rig.qmp.execute("query-status")
        assert isinstance(status, dict)
        assert status["status"] == "running"
    sock.close()


async def test_random_messages_never_take_qemu_down(rig: Rig) -> None:
    rng = random.Random(2026)
    for _ in range(60):
        sock = await rig.ready()
        with contextlib.suppress(ConnectionError):
            for _ in range(rng.randrange(1, 20)):
                kind = rng.choice([*range(64, 73), rng.randrange(256)])
                size = rng.choice([0, 4, 8, 16, 20, rng.randrange(300)])
                body = bytes(rng.choice([0, 1, 2, 255]) for _ in range(size))
                fds = tuple(os.eventfd(0) for _ in range(rng.choice([0, 0, 1, 1, 2])))
                try:
                    await rig.send(sock, frame(kind, body), fds)
                finally:
                    for fd in fds:
                        os.close(fd)
        sock.close()
        assert await rig.alive()
    # And it still serves a good one.
    sock = await rig.ready()
    await rig.send(sock, frame(fe.DEL_INTERRUPT, words(1)))
    assert await _answer(rig, sock, fe.REPLY) == 3
    sock.close()


async def _answer(rig: Rig, sock: socket.socket, kind: int) -> int:
    header = await rig._exactly(sock, 16)
    got, _, size, cookie = struct.unpack("<IIII", header)
    assert (got, size, cookie) == (kind, 4, 7)
    status: int
    (status,) = struct.unpack("<I", await rig._exactly(sock, 4))
    return status
