# SPDX-License-Identifier: MIT
"""The VMBus host's state out of a snapshot, for people and tests: found, checked, decoded.

In a snapshot the state lies inside QEMU's migration stream (docs/vmbus-user.md section 6). A stream
has no table of contents, and RAM in it has whatever size it has, so the section is searched for: by
the header that QEMU gives it, and believed if length and CRC-32 fit.
"""

from __future__ import annotations

import mmap
import struct
import zlib
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

import msgspec

from emulator.kmcl import DecodedStream, StreamError, decode_stream
from emulator.kmcl.save import SavedCompletion
from emulator.link import StateRefused
from emulator.machine import hoststate, statefile
from emulator.machine.hoststate import HostState
from emulator.machine.snapshot import STATE, SnapshotError

_SECTION: Final = b"\x0avmbus-user"
"""The section's name in a stream, with its length before it."""
_HEAD: Final = struct.Struct(">IIII")
"""Instance id, version of the section, then its fields: length and CRC-32 of the state."""
_SECTION_VERSION: Final = 1


def read_state(path: Path) -> bytes:
    """Return the host's state in a snapshot's folder, a migration stream, or a backend's own file.

    Raises :class:`SnapshotError`.
    """
    file = path / STATE if path.is_dir() else path
    try:
        with file.open("rb") as opened:
            begins = opened.read(len(statefile.MAGIC))
            if begins == statefile.MAGIC:
                return statefile.read(path) or b""
            if not begins:
                raise SnapshotError(f"{file} is empty")
            with mmap.mmap(opened.fileno(), 0, access=mmap.ACCESS_READ) as data:
                return _find(data, file)
    except OSError as error:
        raise SnapshotError(f"{file}: {error.strerror}") from error
    except statefile.StateFileError as error:
        raise SnapshotError(str(error)) from error


def _find(data: mmap.mmap, file: Path) -> bytes:
    damaged = False
    # From the end: devices come after RAM, which may have such bytes in it as well.
    position = data.rfind(_SECTION)
    while position >= 0:
        start = position + len(_SECTION)
        if start + _HEAD.size <= len(data):
            _, version, size, crc = _HEAD.unpack_from(data, start)
            state = data[start + _HEAD.size : start + _HEAD.size + size]
            if version == _SECTION_VERSION and len(state) == size and zlib.crc32(state) == crc:
                return state
            damaged |= version == _SECTION_VERSION
        position = data.rfind(_SECTION, 0, position)
    if damaged:
        raise SnapshotError(f"{file}: the VMBus host's state in it is damaged")
    raise SnapshotError(f"{file} has no state of a VMBus host in it: not of a machine with one?")


def decode_state(state: bytes) -> HostState:
    """Decode a host's state; raises :class:`SnapshotError`."""
    try:
        return hoststate.decode(state)
    except StateRefused as error:
        raise SnapshotError(str(error)) from error


def decode_channels(state: HostState) -> dict[str, dict[str, DecodedStream | StreamError]]:
    """Return each device's channels, decoded; an error stands where a stream is none."""
    found: dict[str, dict[str, DecodedStream | StreamError]] = {}
    for device in state.devices:
        found[device.name] = {}
        for role, pieces in device.channels.items():
            try:
                found[device.name][role] = decode_stream(pieces)
            except StreamError as error:
                found[device.name][role] = error
    return found


@dataclass(frozen=True)
class InUse:
    """What a saved channel has under way: what it is, its transaction, its bytes if it has any."""

    what: str
    transaction_id: int | None
    payload: int | None


@dataclass(frozen=True)
class ChannelSummary:
    """A saved channel for people. ``error`` is why it cannot be read."""

    size: int
    in_use: tuple[InUse, ...] = ()
    faults: tuple[str, ...] = ()
    error: str = ""


def summaries(state: HostState) -> dict[str, dict[str, ChannelSummary]]:
    """Return what each device's channels have under way."""
    streams = decode_channels(state)
    return {
        device.name: {
            role: _summary(sum(map(len, pieces)), streams[device.name][role])
            for role, pieces in device.channels.items()
        }
        for device in state.devices
    }


def _summary(size: int, stream: DecodedStream | StreamError) -> ChannelSummary:
    if isinstance(stream, StreamError):
        return ChannelSummary(size, error=str(stream))
    rows = [
        InUse("in the ring, not answered", record.transaction_id, None)
        for record, _ in stream.in_ring
    ]
    for item in stream.queue:
        if isinstance(item, SavedCompletion):
            what = "completion, waits for room"
            rows.append(InUse(what, item.transaction_id, len(item.payload)))
        else:
            record = item[0]
            what = "queued, asks for a completion" if record.waits else "queued"
            number = record.transaction_id if record.waits else None
            rows.append(InUse(what, number, len(record.payload)))
    return ChannelSummary(size, tuple(rows), tuple(fault.text for fault in stream.channel.faults))


def as_builtins(state: HostState) -> Any:
    """Return all of it as what JSON has: bytes in hex, channels decoded."""
    shown = msgspec.to_builtins(state, enc_hook=str, builtin_types=(bytes,))
    for device in shown["devices"]:
        device["channels"] = {}
    for name, channels in decode_channels(state).items():
        (device,) = (each for each in shown["devices"] if each["name"] == name)
        for role, stream in channels.items():
            device["channels"][role] = (
                {"error": str(stream)}
                if isinstance(stream, StreamError)
                else msgspec.to_builtins(stream, builtin_types=(bytes,))
            )
    return _hex(shown)


def _hex(value: Any) -> Any:
    if isinstance(value, bytes):
        return value.hex()
    if isinstance(value, dict):
        return {str(key): _hex(each) for key, each in value.items()}
    if isinstance(value, list | tuple):
        return [_hex(each) for each in value]
    return value
