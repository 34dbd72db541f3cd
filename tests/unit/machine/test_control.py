# SPDX-License-Identifier: MIT
"""The control socket: results, errors, several commands at once, and the end of the backend."""

from __future__ import annotations

import asyncio
import os
import subprocess
import sys
import tempfile
from collections.abc import AsyncIterator, Iterator
from pathlib import Path
from typing import Any

import pytest
import pytest_asyncio

from emulator.machine.control import ControlClient, ControlError, ControlServer, Stream
from emulator.machine.sockets import listen


class Rig:
    """A client and a server whose commands the test defines."""

    def __init__(self) -> None:
        self.gate = asyncio.Event()
        self.server: asyncio.Server | None = None
        self.client: ControlClient | None = None

    async def run(self, command: str, args: dict[str, Any]) -> Any:
        match command:
            case "echo":
                return args
            case "wait":
                await self.gate.wait()
                return "waited"
            case "bug":
                raise RuntimeError("a bug")
            case _:
                raise ControlError(f"there is no command {command!r}")

    async def call(self, command: str, **args: Any) -> Any:
        assert self.client is not None
        return await self.client.call(command, **args)


@pytest_asyncio.fixture
async def rig(tmp_path: Path) -> AsyncIterator[Rig]:
    rig = Rig()
    rig.server = await ControlServer(rig.run).listen(listen(tmp_path / "control"))
    rig.client = await ControlClient.connect(tmp_path / "control")
    yield rig
    await rig.client.close()
    rig.server.close()


@pytest.mark.asyncio
async def test_results_come_back(rig: Rig) -> None:
    assert await rig.call("echo", number=1, text="ü") == {"number": 1, "text": "ü"}


@pytest.mark.asyncio
async def test_a_slow_command_does_not_hold_up_a_fast_one(rig: Rig) -> None:
    slow = asyncio.create_task(rig.call("wait"))
    assert await rig.call("echo") == {}
    assert not slow.done()
    rig.gate.set()
    assert await slow == "waited"


@pytest.mark.asyncio
async def test_errors_come_back_as_text(rig: Rig) -> None:
    with pytest.raises(ControlError, match="there is no command 'nothing'"):
        await rig.call("nothing")


@pytest.mark.asyncio
async def test_a_bug_in_a_command_does_not_end_the_server(
    rig: Rig, caplog: pytest.LogCaptureFixture
) -> None:
    with pytest.raises(ControlError, match="internal error"):
        await rig.call("bug")
    assert "command failed" in caplog.text
    assert await rig.call("echo") == {}


@pytest.mark.asyncio
async def test_garbage_is_answered_with_an_error(rig: Rig) -> None:
    assert rig.client is not None
    rig.client._writer.write(b"not json\n")
    assert await rig.call("echo") == {}


@pytest.mark.asyncio
async def test_waiting_calls_fail_when_the_client_closes(rig: Rig) -> None:
    slow = asyncio.create_task(rig.call("wait"))
    assert await rig.call("echo") == {}
    assert rig.client is not None
    await rig.client.close()
    with pytest.raises(ControlError, match="ended"):
        await slow
    with pytest.raises(ControlError, match="ended"):
        await rig.call("echo")


@pytest.mark.asyncio
async def test_another_user_gets_no_answer(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    rig = Rig()
    server = ControlServer(rig.run, owner=os.geteuid() + 1)
    async with await server.listen(listen(tmp_path / "control")):
        client = await ControlClient.connect(tmp_path / "control")
        with pytest.raises(ControlError, match="ended"):
            await client.call("echo")
        await client.close()
    assert f"only user {os.geteuid() + 1} may" in caplog.text


STRANGER = """
import os, socket, sys
os.setuid(65534)
with socket.socket(socket.AF_UNIX) as sock:
    sock.connect(sys.argv[1])
    try:
        sock.sendall(b'{"id": 1, "command": "echo"}\\n')
        print("got", sock.recv(100))
    except ConnectionError:
        print("got", b"")
"""


@pytest.fixture
def open_path() -> Iterator[Path]:
    """Return a path in a folder that everybody may enter, which pytest's are not."""
    path = Path(tempfile.gettempdir()) / f"vmbus-test-{os.getpid()}"
    yield path
    path.unlink(missing_ok=True)


@pytest.mark.asyncio
@pytest.mark.skipif(os.geteuid() != 0, reason="only root can become another user")
async def test_a_process_of_another_user_is_refused_although_the_file_lets_it_in(
    open_path: Path,
) -> None:
    sock = listen(open_path)
    os.chmod(open_path, 0o666)
    async with await ControlServer(Rig().run).listen(sock):
        child = await asyncio.create_subprocess_exec(
            sys.executable, "-c", STRANGER, str(open_path), stdout=subprocess.PIPE
        )
        out, _ = await child.communicate()
    assert out == b"got b''\n"


def test_a_control_socket_is_for_its_owner_from_the_first_moment(tmp_path: Path) -> None:
    before = os.umask(0)
    try:
        with listen(tmp_path / "control", 0o600):
            assert (tmp_path / "control").stat().st_mode & 0o777 == 0o600
    finally:
        os.umask(before)


def test_a_file_that_is_no_socket_is_not_replaced(tmp_path: Path) -> None:
    (tmp_path / "precious").write_text("data")
    with pytest.raises(FileExistsError, match="not a socket"):
        listen(tmp_path / "precious")
    assert (tmp_path / "precious").read_text() == "data"


@pytest.mark.asyncio
async def test_a_command_that_streams_has_the_connection_and_the_last_word(tmp_path: Path) -> None:
    async def pour(writer: asyncio.StreamWriter) -> None:
        try:
            writer.write(b"first")
            await asyncio.Event().wait()
        finally:
            writer.write(b" and last")

    async def run(command: str, args: dict[str, Any]) -> Any:
        return Stream({"streams": command}, pour)

    server = await ControlServer(run).listen(listen(tmp_path / "control"))
    reader, writer = await asyncio.open_unix_connection(tmp_path / "control")
    writer.write(b'{"id": 3, "command": "pour"}\n')
    assert await reader.readline() == b'{"id":3,"result":{"streams":"pour"}}\n'
    assert await reader.readexactly(5) == b"first"
    writer.write_eof()
    assert await reader.read() == b" and last"
    writer.close()
    await writer.wait_closed()
    server.close()
