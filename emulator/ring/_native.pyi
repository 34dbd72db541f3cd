# SPDX-License-Identifier: MIT
# What _native.c offers; the doc strings are there.
from typing_extensions import Buffer

from emulator.memory import PageView

def read_plain(
    view: PageView, released: int, out_offset: int, in_offset: int, /
) -> tuple[int, int, int, bytes, int, int] | None: ...
def write_plain(
    view: PageView,
    in_offset: int,
    packet_type: int,
    flags: int,
    transaction_id: int,
    payload: Buffer,
    /,
) -> int: ...
def publish(view: PageView, in_offset: int, /) -> int: ...
