# SPDX-License-Identifier: MIT
"""The message table of docs/vmbus-user.md, as data: what the fuzz generates from and must reach.

Written from the document and not from ``emulator.link``, so that an error there is not repeated.
"""

from __future__ import annotations

import re
import struct
from dataclasses import dataclass
from typing import Final

VERSION: Final = 1
MAX_BODY: Final = 65_536
MAX_PAYLOAD: Final = 240
GUEST_WINDOW: Final = 128
POST_WINDOW: Final = 128
MAX_REGISTRATIONS: Final = 2_048
RESULT: Final = struct.Struct("<IIQII")
"""A result of SAVE_STATE or LOAD_STATE: status, text_size, size, crc32, reserved."""

(
    HELLO,
    MEM_TABLE,
    RESET,
    RESUME,
    STOP,
    GUEST_MESSAGE,
    POST_STATUS,
    SAVE_STATE,
    LOAD_STATE,
    REPLY,
    ERROR,
) = range(1, 12)
(
    HELLO_REPLY,
    MEM_TABLE_DONE,
    RESET_DONE,
    POST_MESSAGE,
    GUEST_MESSAGE_DONE,
    ADD_DOORBELL,
    DEL_DOORBELL,
    ADD_INTERRUPT,
    DEL_INTERRUPT,
) = range(64, 73)


@dataclass(frozen=True, slots=True)
class Shape:
    """What the document says of one message type: its name, its sizes in bytes, its descriptors."""

    name: str
    smallest: int
    largest: int
    fds: int = 0


FRONTEND: Final = {
    HELLO: Shape("HELLO", 24, 24),
    MEM_TABLE: Shape("MEM_TABLE", 32, 8 + 64 * 24, fds=-1),  # one for each region
    RESET: Shape("RESET", 4, 4),
    RESUME: Shape("RESUME", 0, 0),
    STOP: Shape("STOP", 0, 0, fds=1),
    GUEST_MESSAGE: Shape("GUEST_MESSAGE", 16, 16 + MAX_PAYLOAD),
    POST_STATUS: Shape("POST_STATUS", 4, 4),
    SAVE_STATE: Shape("SAVE_STATE", 8, 8, fds=2),
    LOAD_STATE: Shape("LOAD_STATE", 8, 8, fds=2),
    REPLY: Shape("REPLY", 4, 4),
    ERROR: Shape("ERROR", 0, MAX_BODY),
}
BACKEND: Final = {
    HELLO_REPLY: Shape("HELLO_REPLY", 16, 16),
    MEM_TABLE_DONE: Shape("MEM_TABLE_DONE", 4, 4),
    RESET_DONE: Shape("RESET_DONE", 4, 4),
    POST_MESSAGE: Shape("POST_MESSAGE", 16, 16 + MAX_PAYLOAD),
    GUEST_MESSAGE_DONE: Shape("GUEST_MESSAGE_DONE", 4, 4),
    ADD_DOORBELL: Shape("ADD_DOORBELL", 4, 4, fds=1),
    DEL_DOORBELL: Shape("DEL_DOORBELL", 4, 4),
    ADD_INTERRUPT: Shape("ADD_INTERRUPT", 16, 16, fds=1),
    DEL_INTERRUPT: Shape("DEL_INTERRUPT", 4, 4),
}

REFUSALS: Final = {
    key: re.compile(pattern)
    for key, pattern in {
        "version": r"message of protocol version \d+ instead of 1",
        "flags": r"reserved flags 0x",
        "type": r"unknown message type",
        "size": r"message of type \d+ has a body of \d+ bytes",
        "fds": r"message of type \d+ came with \d+ file descriptors instead of",
        "second HELLO_REPLY": r"second HELLO_REPLY",
        "HELLO_REPLY version": r"HELLO_REPLY with version",
        "HELLO_REPLY features": r"HELLO_REPLY with features that were not offered",
        "second MEM_TABLE_DONE": r"MEM_TABLE_DONE without a MEM_TABLE",
        "MEM_TABLE status": r"could not map the memory",
        "credits": r"GUEST_MESSAGE_DONE for \d+ of \d+ messages",
        "post size": r"POST_MESSAGE has a payload of \d+ bytes, but says \d+",
        "post type": r"POST_MESSAGE with the type of an empty slot",
        "post window": r"more than \d+ POST_MESSAGE without a status",
        "not an eventfd": r"not an eventfd",
    }.items()
}
"""Why the device ends a connection, as ERROR and QEMU's log tell it."""

FAILURES: Final = {
    key: re.compile(pattern)
    for key, pattern in {
        "stop timeout": r"has not stopped within \d+ ms",
        "stop given up": r"closed the pipe, without having stopped",
        "gone": r"the backend is gone",
        "save: running": r"the machine is running|cannot be migrated while the machine is running",
        "save: no backend": r"no backend is connected",
        "save: no feature": r"the backend cannot save its state",
        "save: not stopped": r"the backend has not stopped; ",
        "state: timeout": r"has not answered within \d+ ms",
        "state: no result": r"has not given a result",
        "state: malformed": r"the result of the backend is malformed",
        "state: refused": r"the backend refuses: ",
        "save: size": r"has announced \d+ bytes of state and written \d+",
        "save: too large": r"max-state-size is",
        "save: CRC": r"does not have the CRC",
        "load: failed": r"cannot load the state",
    }.items()
}
"""What goes wrong without ending the connection, as QMP or QEMU's log tell it."""

GOALS: Final[frozenset[str]] = frozenset(
    [f"from QEMU: {shape.name}" for shape in FRONTEND.values()]
    + [f"served: {shape.name}" for shape in BACKEND.values()]
    + [f"refused: {key}" for key in REFUSALS]
    + [f"failed: {key}" for key in FAILURES]
    + [f"REPLY status {status}" for status in (0, 2, 3, 4)]
    + [f"POST_STATUS status {status}" for status in (0, 1, 2, 5)]
    + ["guest ticked", "guest rang, posted and took a message", "flood stopped by QEMU"]
    + [f"QMP: {what}" for what in ("stop", "cont", "system_reset", "migrate", "savevm", "loadvm")]
)
"""What a run has to have seen happen. REPLY with status 1 needs QEMU itself to fail."""


def frame(
    kind: int, body: bytes = b"", *, flags: int = VERSION, size: int | None = None, cookie: int = 0
) -> bytes:
    """Return one message of a backend, right or wrong."""
    return struct.pack("<IIII", kind, flags, len(body) if size is None else size, cookie) + body


def words(*values: int) -> bytes:
    """Return u32 words."""
    return struct.pack(f"<{len(values)}I", *values)


def hello_reply(version: int = VERSION, reserved: int = 0, features: int = 1) -> bytes:
    """Return a HELLO_REPLY; features bit 0 is STATE."""
    return frame(HELLO_REPLY, struct.pack("<IIQ", version, reserved, features))


def post(
    vp_index: int, sint: int, kind: int, payload: bytes, *, says: int | None = None, cookie: int = 0
) -> bytes:
    """Return a POST_MESSAGE that says it has ``says`` bytes of payload."""
    size = len(payload) if says is None else says
    return frame(POST_MESSAGE, words(vp_index, sint, kind, size) + payload, cookie=cookie)
