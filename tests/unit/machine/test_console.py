# SPDX-License-Identifier: MIT
"""The console: lines are found wherever reads cut them, and the end is told."""

from __future__ import annotations

import asyncio
from pathlib import Path

import pytest

from emulator.machine.console import Console, ConsoleClosed

pytestmark = pytest.mark.asyncio


async def test_lines_are_found_across_reads_and_kept_in_the_log(tmp_path: Path) -> None:
    console = Console(tmp_path / "log")
    await console.listen(tmp_path / "sock")
    _, writer = await asyncio.open_unix_connection(tmp_path / "sock")
    waiting = asyncio.create_task(console.wait_for(r"tick (\d+)"))
    for piece in (b"boot\r\nti", b"ck 4", b"2\r\nrest"):
        writer.write(piece)
        await writer.drain()
    assert (await waiting)[1] == "42"
    writer.close()
    with pytest.raises(ConsoleClosed, match="tick 42"):
        await console.wait_for("never")
    assert console.lines == ["boot", "tick 42"]
    assert (tmp_path / "log").read_bytes() == b"boot\r\ntick 42\r\nrest"
    await console.close()


async def test_a_wait_may_start_at_a_later_line(tmp_path: Path) -> None:
    console = Console(tmp_path / "log")
    await console.listen(tmp_path / "sock")
    _, writer = await asyncio.open_unix_connection(tmp_path / "sock")
    writer.write(b"ready 1\nready 2\n")
    assert (await console.wait_for(r"ready (\d)"))[1] == "1"
    assert (await console.wait_for(r"ready (\d)", start=1))[1] == "2"
    writer.close()
    await console.close()
