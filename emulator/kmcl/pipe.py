# SPDX-License-Identifier: MIT
"""Pipe mode: payloads with a header of 8 bytes, whose length is the message's, not the ring's.

A channel with VMBUS_CHANNEL_INIT_FLAG_IS_PIPE has no transactions and no external data. Layout
(u32 type, u32 size), little endian; types: 1 data; 2 partial, written by a reader that has taken a
part (low 16 bits the size, high 16 the bytes taken); 3 to 5 are defined and used by nobody.
"""

from __future__ import annotations

import struct
from typing import Final

PIPE_HEADER_SIZE: Final = 8
"""Bytes."""
MAXIMUM_PIPE_PAYLOAD: Final = 16_384
"""Bytes of one message."""

_HEADER = struct.Struct("<II")
_DATA: Final = 1
_PARTIAL: Final = 2


class PipeError(Exception):
    """The guest wrote into a pipe's ring what is no message of a pipe."""


def frame(message: bytes) -> bytes:
    """Return the payload of the packet that carries ``message``."""
    return _HEADER.pack(_DATA, len(message)) + message


def unframe(payload: bytes) -> bytes:
    """Return the message, or what is left of one that was read in part; raises PipeError."""
    if len(payload) < PIPE_HEADER_SIZE:
        raise PipeError(f"{len(payload)} bytes are too few for a pipe header")
    kind, size = _HEADER.unpack_from(payload)
    taken = 0
    if kind == _PARTIAL:
        size, taken = size & 0xFFFF, size >> 16
    elif kind != _DATA:
        raise PipeError(f"pipe packet type {kind}, which carries no data")
    room = len(payload) - PIPE_HEADER_SIZE
    if size > min(room, MAXIMUM_PIPE_PAYLOAD) or taken > size:
        raise PipeError(f"a pipe message of {size} bytes, {taken} of them read, in {room}")
    return payload[PIPE_HEADER_SIZE + taken : PIPE_HEADER_SIZE + size]
