# SPDX-License-Identifier: MIT
"""Transfers between files and guest memory: whole, in order, in place."""

from __future__ import annotations

import os
from collections.abc import Sequence
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from emulator.memory import transfer
from emulator.memory.transfer import ShortFile, read_into, write_from


def cut(memory: memoryview, sizes: Sequence[int]) -> list[memoryview]:
    """Cut memory into pieces of these sizes, every other byte range left out."""
    pieces, position = [], 0
    for size in sizes:
        pieces.append(memory[position : position + size])
        position += size + 3
    return pieces


def memory_for(sizes: Sequence[int]) -> memoryview:
    return memoryview(bytearray(sum(sizes) + 3 * len(sizes)))


@given(
    sizes=st.lists(st.integers(0, 40), max_size=12),
    offset=st.integers(0, 50),
    most=st.integers(1, 4),
    shares=st.lists(st.integers(1, 30), max_size=30),
)
def test_there_and_back_in_portions(
    sizes: list[int], offset: int, most: int, shares: list[int]
) -> None:
    fd = os.memfd_create("transfer")
    try:
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(transfer, "_MOST", most)
            portions(patch, shares, most)
            source = memory_for(sizes)
            source[:] = os.urandom(len(source))
            total = sum(sizes)
            assert write_from(fd, cut(source, sizes), offset) == total
            assert os.pread(fd, total + 1, offset) == b"".join(cut(source, sizes))

            target = memory_for(sizes)
            assert read_into(fd, cut(target, sizes), offset) == total
            assert cut(target, sizes) == cut(source, sizes)
            gaps = bytearray(target)
            for piece in cut(memoryview(gaps), sizes):
                piece[:] = bytes(len(piece))
            assert not any(gaps), "between the pieces nothing was written"
    finally:
        os.close(fd)


def portions(patch: pytest.MonkeyPatch, shares: list[int], most: int) -> None:
    """Let the calls transfer as little as they may, and mind how many pieces they are given."""
    left = list(shares)
    real_read, real_write = os.preadv, os.pwritev

    def share(pieces: Sequence[memoryview]) -> list[memoryview]:
        assert 0 < len(pieces) <= most
        if not left:
            return list(pieces)
        wanted, taken = left.pop(), []
        for piece in pieces:
            taken.append(piece[:wanted])
            wanted -= len(taken[-1])
        return [piece for piece in taken if len(piece)]

    def read(fd: int, pieces: Sequence[memoryview], offset: int) -> int:
        return real_read(fd, share(pieces), offset)

    def write(fd: int, pieces: Sequence[memoryview], offset: int, flags: int) -> int:
        return real_write(fd, share(pieces), offset, flags)

    patch.setattr(os, "preadv", read)
    patch.setattr(os, "pwritev", write)


def test_a_file_that_ends_early_says_where() -> None:
    fd = os.memfd_create("short")
    try:
        os.write(fd, b"0123456789")
        memory = memoryview(bytearray(16))
        with pytest.raises(ShortFile, match="ends at byte 10, 10 bytes too early") as caught:
            read_into(fd, [memory[:8], memory[8:]], 4)
        assert (caught.value.offset, caught.value.missing) == (10, 10)
        assert bytes(memory[:6]) == b"456789"
    finally:
        os.close(fd)


def test_more_pieces_than_one_call_takes(tmp_path: Path) -> None:
    memory = memoryview(bytearray(os.urandom(3 * 5000)))
    pieces = [memory[3 * n : 3 * n + 3] for n in range(5000)]
    fd = os.open(tmp_path / "disk", os.O_RDWR | os.O_CREAT)
    try:
        assert write_from(fd, pieces, 0, os.RWF_DSYNC) == len(memory)
        back = memoryview(bytearray(len(memory)))
        assert read_into(fd, [back[3 * n : 3 * n + 3] for n in range(5000)], 0) == len(memory)
        assert back == memory
    finally:
        os.close(fd)


def test_nothing_is_nothing(tmp_path: Path) -> None:
    fd = os.open(tmp_path / "empty", os.O_RDWR | os.O_CREAT)
    try:
        assert read_into(fd, [memoryview(b"")], 0) == 0
        assert write_from(fd, [], 7) == 0
    finally:
        os.close(fd)


def test_what_the_system_refuses_is_raised(tmp_path: Path) -> None:
    (tmp_path / "disk").write_bytes(b"x" * 10)
    fd = os.open(tmp_path / "disk", os.O_RDONLY)
    try:
        with pytest.raises(OSError, match="Bad file descriptor"):
            write_from(fd, [memoryview(b"abc")], 0)
    finally:
        os.close(fd)
