# SPDX-License-Identifier: MIT
"""Disks behind an NBD server: one of ours that does what it likes, and QEMU's on a qcow2 image."""

from __future__ import annotations

import asyncio
import contextlib
import json
import random
import shutil
import socket
import struct
import subprocess
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from emulator.devices.storage.backend import BackendError
from emulator.devices.storage.nbd import NbdDisk, parse_uri
from tests.unit.devices.storage.rig import Rig, cdb10, cdb16
from tests.unit.devices.storage.test_rawfile import buffer, finish

pytestmark = pytest.mark.asyncio

SIZE = 1 << 20
_GONE = r"closed the connection|Broken pipe"
DAEMON = shutil.which("qemu-storage-daemon")


class Server:
    """An NBD server, each connection in a thread of its own; it answers in order."""

    def __init__(self, path: Path, *, flags: int = 0x6D, say: bytes = b"") -> None:
        self.uri = f"nbd+unix:///disk?socket={path}"
        self.content = bytearray(random.Random(3).randbytes(SIZE))
        self.requests: list[tuple[int, int, int, int]] = []
        self.errors: list[int] = []
        self.go_on = threading.Event()
        self.go_on.set()
        self.first = 1 << 20
        """Bytes of a reply that are sent before :attr:`rest` is set."""
        self.rest = threading.Event()
        self._flags, self._say = flags, say
        self._listening = socket.socket(socket.AF_UNIX)
        self._listening.bind(str(path))
        self._listening.listen()
        self.connection: socket.socket | None = None
        threading.Thread(target=self._serve, daemon=True).start()

    def _serve(self) -> None:
        with contextlib.suppress(OSError, EOFError):
            while True:
                self.connection, _ = self._listening.accept()
                threading.Thread(target=self._meet, args=(self.connection,), daemon=True).start()

    def _meet(self, peer: socket.socket) -> None:
        with peer, contextlib.suppress(OSError, EOFError):
            self._talk(peer)

    def _talk(self, peer: socket.socket) -> None:
        if self._say:
            peer.sendall(self._say)
            peer.shutdown(socket.SHUT_WR)
            while peer.recv(4096):
                pass
            return
        peer.sendall(b"NBDMAGICIHAVEOPT" + struct.pack(">H", 3))
        assert struct.unpack(">I", _get(peer, 4)) == (3,)
        magic, option, size = struct.unpack(">8sII", _get(peer, 16))
        assert (magic, option) == (b"IHAVEOPT", 7)
        name = _get(peer, size)
        reply = struct.pack(">QI", 0x3E889045565A9, 7)
        if name[4:8] != b"disk":
            peer.sendall(reply + struct.pack(">II", 0x80000006, 9) + b"not there")
            return
        info = struct.pack(">HQH", 0, SIZE, self._flags)
        peer.sendall(reply + struct.pack(">II", 3, 12) + info)
        # Something that the client need not know, then its end.
        peer.sendall(reply + struct.pack(">IIH", 3, 2, 99) + reply + struct.pack(">II", 1, 0))
        while True:
            magic, flags, kind, handle, offset, size = struct.unpack(">4sHHQQI", _get(peer, 28))
            assert magic == b"\x25\x60\x95\x13"
            data = _get(peer, size) if kind == 1 else b""
            self.go_on.wait()
            self.requests.append((kind, flags, offset, size))
            if kind == 2:
                return
            error = self.errors.pop(0) if self.errors else 0
            found = b""
            if not error and kind == 0:
                found = bytes(self.content[offset : offset + size])
            elif not error and kind in (1, 4, 6):
                self.content[offset : offset + size] = data or bytes(size)
            reply = struct.pack(">IIQ", 0x67446698, error, handle) + found
            peer.sendall(reply[: self.first])
            if len(reply) > self.first:
                self.rest.wait()
                peer.sendall(reply[self.first :])

    def close(self) -> None:
        self.go_on.set()
        self.rest.set()
        self._listening.shutdown(socket.SHUT_RDWR)
        self._listening.close()


def _get(peer: socket.socket, size: int) -> bytes:
    data = b""
    while len(data) < size:
        if not (more := peer.recv(size - len(data))):
            raise EOFError
        data += more
    return data


@pytest.fixture
def serve(tmp_path: Path) -> Iterator[Callable[..., Server]]:
    servers: list[Server] = []

    def make(**how: object) -> Server:
        servers.append(Server(tmp_path / f"nbd{len(servers)}", **how))  # type: ignore[arg-type]
        return servers[-1]

    yield make
    for server in servers:
        server.close()


async def test_requests_as_the_protocol_has_them(serve: Callable[..., Server]) -> None:
    server = serve()
    disk = NbdDisk(server.uri, read_only=False)
    assert (disk.size, disk.discard) == (SIZE, True)
    expected = bytearray(server.content)
    pieces = [buffer(512), buffer(200_000), buffer(8)]
    await finish(disk.read, pieces, 4096)
    assert b"".join(pieces) == expected[4096 : 4096 + 200_520]
    pieces[1][:] = bytes(200_000)
    await finish(disk.write, pieces, 8192, True)
    await finish(disk.flush)
    await finish(disk.unmap, [(0, 512), (65536, 1024)])
    await finish(disk.zero, 1024, 512, True)
    await finish(disk.zero, 2048, 512, False)
    disk.close()
    expected[8192 : 8192 + 200_520] = b"".join(pieces)
    for offset, length in ((0, 512), (65536, 1024), (1024, 512), (2048, 512)):
        expected[offset : offset + length] = bytes(length)
    assert server.content == expected
    assert server.requests[1:7] == [
        (1, 1, 8192, 200_520),
        (3, 0, 0, 0),
        (4, 0, 0, 512),
        (4, 0, 65536, 1024),
        (6, 0, 1024, 512),
        (6, 2, 2048, 512),
    ]


async def test_a_server_without_fua_or_zeroes(serve: Callable[..., Server]) -> None:
    server = serve(flags=0x05)
    disk = NbdDisk(server.uri, read_only=False)
    assert not disk.discard
    await finish(disk.write, [buffer(512)], 0, True)
    await finish(disk.zero, 512, 1024, False)
    assert server.requests == [(1, 0, 0, 512), (3, 0, 0, 0), (1, 0, 512, 1024)]
    disk.close()


async def test_errors_are_told_and_the_rest_goes_on(serve: Callable[..., Server]) -> None:
    server = serve()
    disk = NbdDisk(server.uri, read_only=False)
    server.errors = [28, 5]
    with pytest.raises(OSError, match="No space left"):
        await finish(disk.write, [buffer(512)], 0, False)
    with pytest.raises(OSError, match="Input/output"):
        await finish(disk.read, [buffer(512)], 0)
    await finish(disk.read, [buffer(512)], 0)
    disk.close()


async def test_a_server_that_dies_fails_what_is_under_way_and_all_that_comes(
    serve: Callable[..., Server],
) -> None:
    server = serve()
    disk = NbdDisk(server.uri, read_only=False)
    await finish(disk.flush)
    server.go_on.clear()
    under_way = [asyncio.create_task(finish(disk.read, [buffer(512)], 0)) for _ in range(3)]
    assert server.connection is not None
    flush = asyncio.create_task(finish(disk.flush))
    asyncio.get_running_loop().call_soon(server.connection.shutdown, socket.SHUT_RDWR)
    for task in (*under_way, flush):
        with pytest.raises(OSError, match=_GONE):
            await task
    with pytest.raises(OSError, match=_GONE):
        await finish(disk.flush)
    disk.close()


async def test_what_is_no_reply_ends_the_connection(serve: Callable[..., Server]) -> None:
    server = serve()
    disk = NbdDisk(server.uri, read_only=False)
    await finish(disk.flush)
    assert server.connection is not None
    server.connection.sendall(struct.pack(">IIQ", 0x67446698, 0, 12345))
    with pytest.raises(OSError, match="no reply"):
        await finish(disk.read, [buffer(4096)], 0)
    disk.close()


@pytest.mark.parametrize(
    ("how", "text"),
    [
        ({"say": b"HTTP/1.1 400 Bad Request\r\n"}, "no NBD server"),
        ({"say": b"NBDMAGIC"}, "closed the connection"),
        ({"say": b"NBDMAGICIHAVEOPT\0\0"}, "too old"),
        ({"say": b"NBDMAGICIHAVEOPT\0\3" + bytes(20)}, "nonsense"),
        ({"flags": 0x07}, "the export is read-only; set read_only"),
        ({"flags": 0x01}, "has no flush"),
    ],
)
async def test_a_bad_handshake_is_one_line(
    serve: Callable[..., Server], how: dict[str, object], text: str
) -> None:
    server = serve(**how)
    with pytest.raises(BackendError, match=text) as caught:
        NbdDisk(server.uri, read_only=False)
    assert str(caught.value).startswith(server.uri)


async def test_an_export_that_is_not_there(serve: Callable[..., Server]) -> None:
    server = serve()
    with pytest.raises(BackendError, match="refuses the export 'other': not there"):
        NbdDisk(server.uri.replace("disk", "other"), read_only=False)


async def test_uris() -> None:
    assert parse_uri("nbd+unix:///a%20b?socket=/run/x") == ("/run/x", "a b")
    assert parse_uri("nbd+unix:///?socket=/run/x") == ("/run/x", "")
    for bad in ("nbd:///x?socket=/y", "nbd+unix:///x", "nbd+unix://host/x?socket=/y", "disk.img"):
        with pytest.raises(ValueError, match="not of the form"):
            parse_uri(bad)


async def test_a_pause_names_what_a_server_does_not_answer(serve: Callable[..., Server]) -> None:
    server = serve()
    rig = await Rig({"luns": [{"nbd": server.uri}]}).start().initialise()
    server.go_on.clear()
    number, _ = rig.begin(cdb10(0x2A, 8, 1), out=b"x" * 512)
    drained = rig.pause()
    (held,) = rig.device.pause_waits_for()
    assert held.endswith(": LUN 0: WRITE_10 of 512 bytes at 4096")
    rig.device.resume()
    server.go_on.set()
    assert rig.result(await rig.answer(number), []).good
    assert drained.is_set()
    again = await rig.restored()
    assert (await again.command(cdb10(0x28, 8, 1), room=512)).data == b"x" * 512
    assert [kind for kind, *_ in server.requests].count(1) == 1
    again.device.close()


@pytest.mark.parametrize("half", [False, True])
async def test_a_channel_that_closes_has_its_memory_to_itself(
    serve: Callable[..., Server], half: bool
) -> None:
    server = serve()
    rig = await Rig({"luns": [{"nbd": server.uri}]}).start().initialise()
    before = bytes(server.content[:4096])
    server.go_on.clear()
    _, read = rig.begin(cdb10(0x28, 8, 128), room=65536)
    out = b"w" * 65536
    _, written = rig.begin(cdb10(0x2A, 1024, 128), out=out)
    if half:
        # A part of the data has come already.
        device: Any = rig.device
        disk = device.controller.luns[0].backend
        server.first = 5000
        server.go_on.set()
        while disk._answered is None or len(disk._wanted) == 0:
            await _turn()
    closed = asyncio.Event()
    rig.port.channels[0].port_closed(closed.set)
    had = [bytes(piece) for piece in read]
    for piece in written:
        piece[:] = bytes(piece.nbytes)
    server.go_on.set()
    server.rest.set()
    await closed.wait()
    assert [bytes(piece) for piece in read] == had
    assert server.content[1024 * 512 : 1024 * 512 + 65536] == out
    assert server.content[:4096] == before
    rig.device.close()


async def _turn() -> None:
    """Let the event loop have one turn."""
    turn = asyncio.Event()
    asyncio.get_running_loop().call_soon(turn.set)
    await turn.wait()


@pytest.mark.skipif(DAEMON is None, reason="no qemu-storage-daemon here")
async def test_qcow2_by_qemus_own_block_layer(tmp_path: Path) -> None:
    assert DAEMON is not None
    image, sock = tmp_path / "disk.qcow2", tmp_path / "nbd"
    create = {"driver": "qcow2", "file": "file0", "size": 8 << 20}
    image.touch()
    node = f"driver=file,node-name=file0,filename={image},discard=unmap"
    with _daemon(DAEMON, tmp_path, "--blockdev", node) as talk:
        talk("blockdev-create", {"job-id": "j", "options": create})
        talk(
            "blockdev-add",
            {"driver": "qcow2", "node-name": "disk", "file": "file0", "discard": "unmap"},
        )
        talk("nbd-server-start", {"addr": {"type": "unix", "data": {"path": str(sock)}}})
        export = {"type": "nbd", "id": "e", "node-name": "disk", "writable": True}
        talk("block-export-add", export)
        uri = f"nbd+unix:///disk?socket={sock}"
        rig = await Rig({"luns": [{"nbd": uri}]}).start().initialise()
        capacity = (await rig.command(cdb10(0x25), room=8)).data
        assert struct.unpack(">II", capacity) == ((8 << 20) // 512 - 1, 512)
        data = random.Random(4).randbytes(65536)
        assert (await rig.command(cdb10(0x2A, 100, 128), out=data)).good
        assert (await rig.command(cdb10(0x2A, 1000, 8, 0x08), out=data[:4096])).good
        assert (await rig.command(cdb10(0x35))).good
        found = await rig.command(cdb10(0x28, 100, 128), room=65536)
        assert found.data == data
        assert (await rig.command(cdb16(0x93, 96, 256, 8), out=bytes(512))).good
        zeroes = await rig.command(cdb10(0x28, 100, 128), room=65536)
        assert zeroes.data == bytes(65536)
        rig = await rig.restored()
        assert (await rig.command(cdb10(0x28, 1000, 8), room=4096)).data == data[:4096]
        rig.device.close()
    head = _first(image, 4)
    assert head == b"QFI\xfb"


def _first(path: Path, size: int) -> bytes:
    return path.read_bytes()[:size]


@contextlib.contextmanager
def _daemon(
    program: str, folder: Path, *args: str
) -> Iterator[Callable[[str, dict[str, object]], None]]:
    """Run qemu-storage-daemon and talk QMP to it."""
    path = folder / "qmp"
    listening = socket.socket(socket.AF_UNIX)
    listening.bind(str(path))
    listening.listen()
    listening.settimeout(30)
    process = subprocess.Popen(
        [program, *args, "--chardev", f"socket,path={path},id=qmp", "--monitor", "chardev=qmp"]
    )
    try:
        peer, _ = listening.accept()
        peer.settimeout(30)
        lines = peer.makefile("rw")
        lines.readline()

        def talk(command: str, arguments: dict[str, object]) -> None:
            lines.write(json.dumps({"execute": command, "arguments": arguments}) + "\n")
            lines.flush()
            ended = command != "blockdev-create"
            answered = False
            while not (answered and ended):
                said = json.loads(lines.readline())
                assert "error" not in said, said
                answered |= "return" in said
                ended |= said.get("data", {}).get("status") == "concluded"

        talk("qmp_capabilities", {})
        yield talk
        lines.close()
        peer.close()
    finally:
        process.kill()
        process.wait()
        listening.close()
