# SPDX-License-Identifier: MIT
"""Raw files: what is written is there, on stable storage when it is said to be."""

from __future__ import annotations

import asyncio
import errno
import mmap
import os
import random
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from emulator.devices.storage.backend import BackendError
from emulator.devices.storage.rawfile import RawFile

pytestmark = pytest.mark.asyncio

SIZE = 1 << 20


async def finish(call: Callable[..., None], *args: Any) -> None:
    """Make an asynchronous call of a backend; raises what it ends with."""
    ended: asyncio.Future[OSError | None] = asyncio.get_running_loop().create_future()
    call(*args, ended.set_result)
    assert not ended.done(), "`done` may not be called from within"
    async with asyncio.timeout(30):
        if (error := await ended) is not None:
            raise error


def buffer(size: int, skip: int = 0) -> memoryview:
    """Return memory that begins ``skip`` bytes into a page."""
    return memoryview(mmap.mmap(-1, skip + size))[skip:]


@pytest.fixture
def path(tmp_path: Path) -> Path:
    path = tmp_path / "disk.img"
    path.write_bytes(random.Random(1).randbytes(SIZE))
    return path


def opened(path: Path, direct: bool, **more: Any) -> RawFile:
    try:
        return RawFile(path, read_only=more.pop("read_only", False), direct=direct, **more)
    except BackendError as error:
        pytest.skip(f"no O_DIRECT where the tests keep their files: {error}")


def content(path: Path) -> bytes:
    return path.read_bytes()


@pytest.mark.parametrize("direct", [False, True])
async def test_any_offset_length_and_alignment(path: Path, direct: bool) -> None:
    file, expected = opened(path, direct), bytearray(content(path))
    dice = random.Random(2)
    for _ in range(60):
        unit = dice.choice((512, 4096))
        offset = dice.randrange(0, SIZE // unit - 40) * unit
        sizes = [dice.randrange(1, 9) * unit for _ in range(dice.randrange(1, 4))]
        pieces = [buffer(size, dice.choice((0, 0, 512, 8))) for size in sizes]
        for piece in pieces:
            piece[:] = dice.randbytes(piece.nbytes)
        await finish(file.write, pieces, offset, dice.random() < 0.3)
        data = b"".join(pieces)
        expected[offset : offset + len(data)] = data
        found = [buffer(size, dice.choice((0, 512, 24))) for size in sizes]
        await finish(file.read, found, offset)
        assert b"".join(found) == data
    last = [buffer(512)]
    await finish(file.read, last, SIZE - 512)
    assert bytes(last[0]) == expected[-512:]
    file.close()
    assert content(path) == expected


async def test_what_is_cached_is_read_at_once(path: Path) -> None:
    file = opened(path, False)
    data = content(path)
    pieces = [buffer(512), buffer(4096)]
    # Some file systems have no reads that do not wait.
    if file.read_now(pieces, 512, 4608):
        assert b"".join(pieces) == data[512:5120]
    assert not file.read_now([buffer(4096)], SIZE - 512, 4096)
    file.close()


async def test_a_file_that_is_too_short_is_an_error(path: Path) -> None:
    for direct in (False, True):
        file = opened(path, direct)
        with pytest.raises(OSError, match="ends at byte") as caught:
            await finish(file.read, [buffer(4096)], SIZE - 512)
        assert caught.value.errno == errno.EIO
        file.close()


async def test_discard_and_zeroes(path: Path) -> None:
    file, expected = opened(path, False), bytearray(content(path))
    before = os.stat(path).st_blocks
    await finish(file.unmap, [(4096, 65536), (131072, 4096)])
    expected[4096 : 4096 + 65536] = bytes(65536)
    expected[131072 : 131072 + 4096] = bytes(4096)
    await finish(file.zero, SIZE - 1024, 512, False)
    expected[SIZE - 1024 : SIZE - 512] = bytes(512)
    file.close()
    assert content(path) == expected
    assert os.stat(path).st_blocks < before
    assert os.stat(path).st_size == SIZE


async def test_zeroes_are_written_where_the_file_system_has_no_call_for_them(
    path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(*_: object) -> None:
        raise OSError(errno.EOPNOTSUPP, "Operation not supported")

    monkeypatch.setattr("emulator.devices.storage.rawfile._fallocate", refuse)
    file = opened(path, False)
    await finish(file.zero, 512, SIZE - 1024, True)
    file.close()
    assert not any(content(path)[512:-512])
    assert any(content(path)[:512])


async def test_flush_and_fua_are_over_when_the_kernel_says_so(
    path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    calls: list[str] = []
    fdatasync, pwritev = os.fdatasync, os.pwritev

    def sync(fd: int) -> None:
        fdatasync(fd)
        calls.append("synced")

    def write(fd: int, pieces: Any, offset: int, flags: int = 0) -> int:
        done = pwritev(fd, pieces, offset, flags)
        calls.append("written through" if flags & os.RWF_DSYNC else "written")
        return done

    monkeypatch.setattr(os, "fdatasync", sync)
    monkeypatch.setattr(os, "pwritev", write)
    file = opened(path, False)
    for call, args, last in (
        (file.write, ([buffer(512)], 0, False), "written"),
        (file.flush, (), "synced"),
        (file.write, ([buffer(512)], 0, True), "written through"),
    ):
        await finish(call, *args)
        assert calls[-1] == last
    file.close()


async def test_an_error_of_a_flush_is_told(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def broken(_: int) -> None:
        raise OSError(errno.EIO, "Input/output error")

    file = opened(path, False)
    monkeypatch.setattr(os, "fdatasync", broken)
    with pytest.raises(OSError, match="Input/output"):
        await finish(file.flush)
    file.close()


async def test_what_cannot_be_opened_is_one_line(tmp_path: Path) -> None:
    for bad, text in ((tmp_path, "directory"), (tmp_path / "gone", "No such file")):
        with pytest.raises(BackendError, match=text):
            RawFile(bad, read_only=False)
    with pytest.raises(BackendError, match="neither a file nor a block device"):
        RawFile(Path("/dev/null"), read_only=False)


async def test_many_at_a_time(path: Path) -> None:
    file = opened(path, False)
    async with asyncio.TaskGroup() as group:
        for number in range(200):
            piece = buffer(512)
            piece[:] = bytes([number]) * 512
            group.create_task(finish(file.write, [piece], number * 512, False))
    file.close()
    found = content(path)
    assert all(found[n * 512] == n == found[n * 512 + 511] for n in range(200))


async def test_calls_under_way_can_be_waited_for(
    path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    go_on = threading.Event()
    fdatasync = os.fdatasync

    def slow(fd: int) -> None:
        go_on.wait()
        fdatasync(fd)

    monkeypatch.setattr(os, "fdatasync", slow)
    file = opened(path, False)
    assert file.let_go_of_memory(0)
    flush = asyncio.create_task(finish(file.flush))
    while not file._workers._under_way:
        turn = asyncio.Event()
        asyncio.get_running_loop().call_soon(turn.set)
        await turn.wait()
    assert not file.let_go_of_memory(0)
    go_on.set()
    assert file.let_go_of_memory(30)
    assert not file._workers._under_way
    await flush
    file.close()
