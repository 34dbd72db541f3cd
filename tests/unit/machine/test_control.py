# SPDX-License-Identifier: MIT
"""The control socket: results, errors, several commands at once, and the end of the backend."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import pytest
import pytest_asyncio

from emulator.machine.control import ControlClient, ControlError, ControlServer
from emulator.machine.sockets import listen

pytestmark = pytest.mark.asyncio


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


async def test_results_come_back(rig: Rig) -> None:
    assert await rig.call("echo", number=1, text="ü") == {"number": 1, "text": "ü"}


async def test_a_slow_command_does_not_hold_up_a_fast_one(rig: Rig) -> None:
    slow = asyncio.create_task(rig.call("wait"))
    assert await rig.call("echo") == {}
    assert not slow.done()
    rig.gate.set()
    assert await slow == "waited"


async def test_errors_come_back_as_text(rig: Rig) -> None:
    with pytest.raises(ControlError, match="there is no command 'nothing'"):
        await rig.call("nothing")


async def test_a_bug_in_a_command_does_not_end_the_server(
    rig: Rig, caplog: pytest.LogCaptureFixture
) -> None:
    with pytest.raises(ControlError, match="internal error"):
        await rig.call("bug")
    assert "command failed" in caplog.text
    assert await rig.call("echo") == {}


async def test_garbage_is_answered_with_an_error(rig: Rig) -> None:
    assert rig.client is not None
    rig.client._writer.write(b"not json\n")
    assert await rig.call("echo") == {}


async def test_waiting_calls_fail_when_the_client_closes(rig: Rig) -> None:
    slow = asyncio.create_task(rig.call("wait"))
    assert await rig.call("echo") == {}
    assert rig.client is not None
    await rig.client.close()
    with pytest.raises(ControlError, match="ended"):
        await slow
    with pytest.raises(ControlError, match="ended"):
        await rig.call("echo")
