# SPDX-License-Identifier: MIT
"""The saved state of a VMBus host: what it is made of, and whether it is of this machine."""

from __future__ import annotations

from typing import Final

import msgspec

from emulator.bus import BusState
from emulator.devices import DeviceState
from emulator.link import Post, StateRefused
from emulator.machine.config import HostConfig

STATE_VERSION: Final = 1


class DeferredMessage(msgspec.Struct, frozen=True, array_like=True):
    """A guest message taken from the frontend that waits for room among the posts."""

    connection_id: int
    payload: bytes


class HostState(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """The whole VMBus host in a snapshot."""

    version: int
    vm: str
    bus: BusState
    posts: list[Post]
    deferred: list[DeferredMessage]
    devices: list[DeviceState]


def decode(state: bytes) -> HostState:
    """Decode a state; raises :class:`StateRefused`."""
    try:
        return msgspec.msgpack.decode(state, type=HostState)
    except (msgspec.DecodeError, UnicodeDecodeError) as error:
        raise StateRefused(f"the VMBus state cannot be read: {error}") from error


def check(saved: HostState, config: HostConfig) -> None:
    """Raise :class:`StateRefused` with every way in which ``saved`` is not of this machine."""
    problems: list[str] = []
    if saved.version != STATE_VERSION:
        problems.append(f"state version {saved.version}, not {STATE_VERSION}")
    if saved.vm != config.vm:
        problems.append(f"machine {saved.vm!r}, not {config.vm!r}")
    theirs = {device.name: device.kind for device in saved.devices}
    ours = {device.name: device.kind for device in config.devices}
    for name in sorted(theirs.keys() | ours.keys()):
        if not config.devices_may_differ and theirs.get(name) != ours.get(name):
            problems.append(
                f"device {name}: {theirs.get(name, 'absent')} in the snapshot, "
                f"{ours.get(name, 'absent')} here"
            )
    if problems:
        raise StateRefused("the snapshot is of another machine: " + "; ".join(problems))
