# SPDX-License-Identifier: MIT
# What _native.c offers; the doc strings are there.
from collections.abc import Iterable

from typing_extensions import Buffer

from emulator.memory import PageView
from emulator.ring.plain import PacketAhead

def read_plain(
    view: PageView, released: int, out_offset: int, in_offset: int, /
) -> tuple[int, int, int, bytes, int, int] | None: ...
def read_ahead(
    view: PageView, released: int, out_offset: int, in_offset: int, limit: int, /
) -> tuple[list[PacketAhead], int] | None: ...
def write_plain(
    view: PageView,
    in_offset: int,
    packet_type: int,
    flags: int,
    transaction_id: int,
    payload: Buffer,
    /,
) -> int: ...
def write_completions(
    view: PageView, in_offset: int, room: int, queue: Iterable[object], /
) -> tuple[int, int]: ...
def drain(
    up: PageView,
    released: int,
    out_offset: int,
    in_offset: int,
    down: PageView,
    down_in_offset: int,
    room: int,
    limit: int,
    /,
) -> tuple[int, int, int, int, int]: ...
def publish(view: PageView, in_offset: int, /) -> int: ...
def release(view: PageView, out_offset: int, /) -> int: ...
def unmask(view: PageView, /) -> int: ...
