# SPDX-License-Identifier: MIT
"""Codec of the vmbus-user protocol: one dataclass a message, one table for all of them.

docs/vmbus-user.md is the specification; section numbers below are its. Nothing here touches a
socket: bytes in, dataclasses out, and back. The number of file descriptors a message carries is
part of the table, so that the transport can pair descriptors with messages without knowing their
meaning.
"""

from __future__ import annotations

import struct
from collections.abc import Callable
from dataclasses import dataclass
from enum import IntEnum, IntFlag
from typing import Final, TypeVar

PROTOCOL_VERSION: Final = 1
HEADER_SIZE: Final = 16
MAX_BODY: Final = 65_536
MAX_MESSAGE_PAYLOAD: Final = 240
MAX_REGIONS: Final = 64
MAX_RESULT_TEXT: Final = 4_096
MAX_CODE_RANGES: Final = 64

_HEADER = struct.Struct("<IIII")
_U32 = struct.Struct("<I")
_U64 = struct.Struct("<Q")
_HELLO = struct.Struct("<IIQII")
_REGION = struct.Struct("<QQQ")
_MESSAGE = struct.Struct("<IIII")
_HELLO_REPLY = struct.Struct("<IIQ")
_INTERRUPT = struct.Struct("<IIII")
_CODE_RANGE = struct.Struct("<QQ")
_RESULT = struct.Struct("<IIQII")


class ProtocolError(Exception):
    """The frontend sent something section 1 or 3 does not allow; the connection must be closed."""


class Type(IntEnum):
    """Message types (sections 3.1 and 3.2)."""

    HELLO = 1
    MEM_TABLE = 2
    RESET = 3
    RESUME = 4
    STOP = 5
    GUEST_MESSAGE = 6
    POST_STATUS = 7
    SAVE_STATE = 8
    LOAD_STATE = 9
    REPLY = 10
    ERROR = 11
    CODE_MAP = 12
    HELLO_REPLY = 64
    MEM_TABLE_DONE = 65
    RESET_DONE = 66
    POST_MESSAGE = 67
    GUEST_MESSAGE_DONE = 68
    ADD_DOORBELL = 69
    DEL_DOORBELL = 70
    ADD_INTERRUPT = 71
    DEL_INTERRUPT = 72
    INVALIDATE_CODE = 73


class Status(IntEnum):
    """Status values (section 4)."""

    DONE = 0
    FAILED = 1
    NO_SUCH_TARGET = 2
    IN_USE = 3
    NO_ROOM = 4
    DROPPED_BY_RESET = 5


class Feature(IntFlag):
    """Feature bits (section 5)."""

    NONE = 0
    STATE = 1
    CODE_MAP = 2


FEATURES: Final = Feature.STATE | Feature.CODE_MAP
"""What this backend takes of what a frontend offers."""


@dataclass(frozen=True, slots=True)
class Region:
    """One region of guest RAM: ``size`` bytes at ``gpa``, at ``fd_offset`` of its descriptor."""

    gpa: int
    size: int
    fd_offset: int


@dataclass(frozen=True, slots=True)
class Hello:
    """First message of the frontend; windows count messages without an answer."""

    version: int
    vcpus: int
    features: Feature
    guest_window: int
    post_window: int


@dataclass(frozen=True, slots=True)
class MemTable:
    """All of the guest's memory, in ascending order; one descriptor a region."""

    regions: tuple[Region, ...]


@dataclass(frozen=True, slots=True)
class Reset:
    """The machine was reset; a new epoch begins."""

    epoch: int


@dataclass(frozen=True, slots=True)
class Resume:
    """The virtual CPUs are about to run."""


@dataclass(frozen=True, slots=True)
class Stop:
    """The virtual CPUs have stopped; one eventfd for the answer."""


@dataclass(frozen=True, slots=True)
class FromGuest:
    """``GUEST_MESSAGE``: what the guest gave to HvPostMessage (TLFS, HvCallPostMessage)."""

    connection_id: int
    message_type: int
    vp_index: int
    payload: bytes


@dataclass(frozen=True, slots=True)
class PostStatus:
    """What became of the POST_MESSAGE with this cookie."""

    cookie: int
    status: Status


@dataclass(frozen=True, slots=True)
class SaveState:
    """Write the state to the memfd, the result to the pipe; at most ``max_size`` bytes."""

    max_size: int


@dataclass(frozen=True, slots=True)
class LoadState:
    """Read ``size`` bytes of state from the memfd, write the result to the pipe."""

    size: int


@dataclass(frozen=True, slots=True)
class Reply:
    """Answer to the request with this cookie."""

    cookie: int
    status: Status


@dataclass(frozen=True, slots=True)
class Error:
    """Why the frontend closes the connection."""

    text: str


@dataclass(frozen=True, slots=True)
class CodeMap:
    """A map of the pages that hold translated code: the byte of each region's first page."""

    first: tuple[int, ...]


FrontendMessage = (
    Hello
    | MemTable
    | Reset
    | Resume
    | Stop
    | FromGuest
    | PostStatus
    | SaveState
    | LoadState
    | Reply
    | Error
    | CodeMap
)


@dataclass(frozen=True, slots=True)
class HelloReply:
    """The backend's version and the subset of features it takes."""

    features: Feature
    version: int = PROTOCOL_VERSION


@dataclass(frozen=True, slots=True)
class MemTableDone:
    """The table has been mapped (or could not be)."""

    status: Status


@dataclass(frozen=True, slots=True)
class ResetDone:
    """Everything of earlier epochs has been forgotten."""

    epoch: int


@dataclass(frozen=True, slots=True)
class PostMessage:
    """Put a message into the SIM slot of (``vp_index``, ``sint``)."""

    cookie: int
    vp_index: int
    sint: int
    message_type: int
    payload: bytes


@dataclass(frozen=True, slots=True)
class GuestMessageDone:
    """Give back ``count`` credits for guest messages."""

    count: int


@dataclass(frozen=True, slots=True)
class AddDoorbell:
    """HvSignalEvent on ``connection_id`` writes the eventfd."""

    cookie: int
    connection_id: int


@dataclass(frozen=True, slots=True)
class DelDoorbell:
    """Forget a doorbell."""

    cookie: int
    connection_id: int


@dataclass(frozen=True, slots=True)
class AddInterrupt:
    """A write to the eventfd sets event ``flag`` of (``vp_index``, ``sint``)."""

    cookie: int
    id: int
    vp_index: int
    sint: int
    flag: int


@dataclass(frozen=True, slots=True)
class DelInterrupt:
    """Forget an interrupt."""

    cookie: int
    id: int


@dataclass(frozen=True, slots=True)
class InvalidateCode:
    """Drop what has been translated of these pages: (index in the map, pages) of each stretch."""

    cookie: int
    ranges: tuple[tuple[int, int], ...]


BackendMessage = (
    HelloReply
    | MemTableDone
    | ResetDone
    | PostMessage
    | GuestMessageDone
    | AddDoorbell
    | DelDoorbell
    | AddInterrupt
    | DelInterrupt
    | InvalidateCode
)


@dataclass(frozen=True, slots=True)
class Header:
    """The 16 bytes before every body (section 1)."""

    type: Type
    size: int
    cookie: int


def pack(message: BackendMessage) -> bytes:
    """Encode a message to the frontend, header included."""
    match message:
        case HelloReply():
            body = _HELLO_REPLY.pack(message.version, 0, message.features)
            return _frame(Type.HELLO_REPLY, 0, body)
        case MemTableDone():
            return _frame(Type.MEM_TABLE_DONE, 0, _U32.pack(message.status))
        case ResetDone():
            return _frame(Type.RESET_DONE, 0, _U32.pack(message.epoch))
        case PostMessage():
            body = _MESSAGE.pack(
                message.vp_index, message.sint, message.message_type, len(message.payload)
            )
            return _frame(Type.POST_MESSAGE, message.cookie, body + message.payload)
        case GuestMessageDone():
            return _frame(Type.GUEST_MESSAGE_DONE, 0, _U32.pack(message.count))
        case AddDoorbell():
            return _frame(Type.ADD_DOORBELL, message.cookie, _U32.pack(message.connection_id))
        case DelDoorbell():
            return _frame(Type.DEL_DOORBELL, message.cookie, _U32.pack(message.connection_id))
        case AddInterrupt():
            body = _INTERRUPT.pack(message.id, message.vp_index, message.sint, message.flag)
            return _frame(Type.ADD_INTERRUPT, message.cookie, body)
        case DelInterrupt():
            return _frame(Type.DEL_INTERRUPT, message.cookie, _U32.pack(message.id))
        case InvalidateCode():
            body = b"".join(_CODE_RANGE.pack(*stretch) for stretch in message.ranges)
            return _frame(Type.INVALIDATE_CODE, message.cookie, body)


def _frame(kind: Type, cookie: int, body: bytes) -> bytes:
    return _HEADER.pack(kind, PROTOCOL_VERSION, len(body), cookie) + body


def parse_header(data: bytes | memoryview) -> Header:
    """Decode 16 bytes; raises :class:`ProtocolError` for what section 1 forbids."""
    kind, flags, size, cookie = _HEADER.unpack(data)
    if flags & 0xFF != PROTOCOL_VERSION:
        raise ProtocolError(
            f"the frontend speaks vmbus-user version {flags & 0xFF}, this backend version "
            f"{PROTOCOL_VERSION}; build QEMU from this project's qemu-patches"
        )
    if flags >> 8:
        raise ProtocolError(f"reserved header flags are set: {flags:#x}")
    if size > MAX_BODY:
        raise ProtocolError(f"a body of {size} bytes exceeds {MAX_BODY}")
    if kind not in _PARSERS:
        raise ProtocolError(f"message type {kind} is not one a frontend sends")
    return Header(Type(kind), size, cookie)


_FDS: Final = {Type.STOP: 1, Type.SAVE_STATE: 2, Type.LOAD_STATE: 2, Type.CODE_MAP: 1}


def fd_count(header: Header, body: bytes) -> int:
    """How many descriptors travel with this message (section 3.1)."""
    if header.type is Type.MEM_TABLE:
        return min(_U32.unpack_from(body)[0], MAX_REGIONS) if len(body) >= 4 else 0
    return _FDS.get(header.type, 0)


def parse(header: Header, body: bytes) -> FrontendMessage:
    """Decode one message of the frontend; raises :class:`ProtocolError` when it is malformed."""
    try:
        return _PARSERS[header.type](header, body)
    except (struct.error, ValueError) as error:
        raise ProtocolError(
            f"malformed {header.type.name} of {len(body)} bytes: {error}"
        ) from error


def _parse_hello(_: Header, body: bytes) -> FrontendMessage:
    version, vcpus, features, guest_window, post_window = _HELLO.unpack(body)
    if version != PROTOCOL_VERSION:
        raise ValueError(f"version {version} is not {PROTOCOL_VERSION}")
    if not (vcpus and guest_window and post_window):
        raise ValueError("vcpus and windows must not be 0")
    return Hello(version, vcpus, Feature(features & FEATURES), guest_window, post_window)


def _parse_mem_table(_: Header, body: bytes) -> FrontendMessage:
    count, reserved = struct.unpack_from("<II", body)
    if reserved or not 1 <= count <= MAX_REGIONS or len(body) != 8 + count * _REGION.size:
        raise ValueError(f"{count} regions do not fit the size")
    regions = tuple(Region(*fields) for fields in _REGION.iter_unpack(body[8:]))
    end = 0
    for region in regions:
        if region.gpa < end or not region.size:
            raise ValueError("regions overlap or are not in ascending order")
        end = region.gpa + region.size
    return MemTable(regions)


def _parse_code_map(_: Header, body: bytes) -> FrontendMessage:
    count, reserved = struct.unpack_from("<II", body)
    if reserved or not 1 <= count <= MAX_REGIONS or len(body) != 8 + count * _U64.size:
        raise ValueError(f"{count} regions do not fit the size")
    return CodeMap(tuple(first for (first,) in _U64.iter_unpack(body[8:])))


def _parse_guest_message(_: Header, body: bytes) -> FrontendMessage:
    connection_id, message_type, vp_index, size = _MESSAGE.unpack_from(body)
    payload = body[_MESSAGE.size :]
    if size != len(payload) or size > MAX_MESSAGE_PAYLOAD:
        raise ValueError(f"payload size {size} does not match the body")
    return FromGuest(connection_id, message_type, vp_index, payload)


def _parse_empty(body: bytes, message: _M) -> _M:
    if body:
        raise ValueError("this message has no body")
    return message


def _u32(body: bytes) -> int:
    value: int
    (value,) = _U32.unpack(body)
    return value


def _u64(body: bytes) -> int:
    value: int
    (value,) = _U64.unpack(body)
    return value


_M = TypeVar("_M", bound=FrontendMessage)
_Parser = Callable[[Header, bytes], FrontendMessage]

_PARSERS: Final[dict[int, _Parser]] = {
    Type.HELLO: _parse_hello,
    Type.MEM_TABLE: _parse_mem_table,
    Type.RESET: lambda _, body: Reset(_u32(body)),
    Type.RESUME: lambda _, body: _parse_empty(body, Resume()),
    Type.STOP: lambda _, body: _parse_empty(body, Stop()),
    Type.GUEST_MESSAGE: _parse_guest_message,
    Type.POST_STATUS: lambda header, body: PostStatus(header.cookie, Status(_u32(body))),
    Type.SAVE_STATE: lambda _, body: SaveState(_u64(body)),
    Type.LOAD_STATE: lambda _, body: LoadState(_u64(body)),
    Type.REPLY: lambda header, body: Reply(header.cookie, Status(_u32(body))),
    Type.CODE_MAP: _parse_code_map,
    Type.ERROR: lambda _, body: Error(body.decode("utf-8", "replace")),
}


def pack_result(*, size: int = 0, crc32: int = 0, error: str = "") -> bytes:
    """Encode the result of SAVE_STATE or LOAD_STATE (section 6); a text means failure."""
    text = error.encode()[:MAX_RESULT_TEXT]
    return _RESULT.pack(1 if error else 0, len(text), size, crc32, 0) + text
