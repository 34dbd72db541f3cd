# SPDX-License-Identifier: MIT
"""What every VSP has in common: its channels' life with the machine, and its saved state.

A device is made of KMCL server channels and nothing lower. The host powers it on, pauses it when
the virtual CPUs stop, resumes it when they run, saves it while it is paused, and restores it into
a device made anew from the same configuration. A device saves its channels with the KMCL calls a
Windows VSP uses (VmbChannelSaveBegin and so on) and beside them whatever is its own.
"""

from __future__ import annotations

import uuid
from abc import ABC, abstractmethod
from collections.abc import Awaitable, Callable, Mapping
from typing import Any, ClassVar, Final, Self

import msgspec

from emulator.kmcl import ChannelPort, ServerChannel
from emulator.kmcl.countdown import countdown
from emulator.wire.ntstatus import NtStatus

_SAVE_BUFFER: Final = 65_536


class DeviceState(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """A device in a snapshot: whose it is, its channels' KMCL streams, and what is its own."""

    name: str
    kind: str
    version: int
    channels: dict[str, list[bytes]]
    own: bytes


class DeviceStateError(Exception):
    """A device cannot be saved now, or the snapshot does not fit the device."""


Command = Callable[[dict[str, Any]], Awaitable[Any]]
"""A device's command for a person or a test: arguments in, JSON-able result out."""


class Device(ABC):
    """One VSP. A subclass makes its channels in ``__init__`` and leaves them Disabled."""

    kind: ClassVar[str]
    state_version: ClassVar[int] = 1

    def __init__(self, name: str, vm: str, port: ChannelPort) -> None:
        """Make the device ``name`` of the machine ``vm``; it offers its channels through ``port``.

        The names make the instance GUIDs: they must be the same in every run of the machine,
        because Windows keys a device's installation by its instance GUID and both Windows and
        Linux match offers by it when they wake from hibernation.
        """
        self.name = name
        self._vm = vm
        self._port = port
        self.channels: dict[str, ServerChannel] = {}
        self.save_buffer = _SAVE_BUFFER
        """Bytes of the buffer that SaveContinue gets, from 0; it gets more when it must have it."""

    @classmethod
    def make(cls, name: str, vm: str, port: ChannelPort, options: Mapping[str, Any]) -> Self:
        """Make a device of this kind from the options in the machine's configuration.

        A kind that has options overrides this. Raises :class:`DeviceStateError` for bad ones.
        """
        if options:
            raise DeviceStateError(
                f"device {name}: a {cls.kind} has no options; remove {', '.join(sorted(options))}"
            )
        return cls(name, vm, port)

    def close(self) -> None:  # noqa: B027
        """Let go of what is not the guest's: files, threads. The device is of no use afterwards."""

    def instance_guid(self, role: str) -> uuid.UUID:
        """Return the instance GUID of the channel ``role``: stable over runs, distinct per VM."""
        return uuid.uuid5(uuid.NAMESPACE_OID, f"vmbus:{self._vm}:{self.name}:{role}")

    def power_on(self) -> None:
        """Offer the channels; they do not run before :meth:`resume`."""
        for channel in self.channels.values():
            channel.enable()

    def resume(self) -> None:
        """Run the channels: the virtual CPUs run."""
        for channel in self.channels.values():
            channel.start()

    def pause(self, done: Callable[[], None]) -> None:
        """Pause all channels; ``done`` is called when each has drained its incoming packets."""
        paused = countdown(len(self.channels), done)
        for channel in self.channels.values():
            channel.pause(paused)

    def pause_waits_for(self) -> list[str]:
        """Name the packets that keep :meth:`pause` from its end."""
        return [
            f"{self.name}/{role}: {what}"
            for role, channel in self.channels.items()
            for what in channel.pause_waits_for()
        ]

    def save(self) -> DeviceState:
        """Save a paused device; raises :class:`DeviceStateError` if a channel cannot be saved."""
        return DeviceState(
            name=self.name,
            kind=self.kind,
            version=self.state_version,
            channels={
                role: save_channel(channel, self.save_buffer)
                for role, channel in self.channels.items()
            },
            own=self.save_own(),
        )

    def restore(self, state: DeviceState) -> None:
        """Restore a device that has just been made: enable its channels, then fill them.

        Raises :class:`DeviceStateError`; the device is of no use afterwards.
        """
        if (state.kind, state.version) != (self.kind, self.state_version):
            raise DeviceStateError(
                f"device {self.name}: the snapshot holds a {state.kind} of version "
                f"{state.version}, this machine a {self.kind} of version {self.state_version}"
            )
        if state.channels.keys() != self.channels.keys():
            raise DeviceStateError(
                f"device {self.name}: the snapshot has the channels {sorted(state.channels)}, "
                f"this machine {sorted(self.channels)}"
            )
        self.restore_own(state.own)
        for role, channel in self.channels.items():
            channel.enable()
            if channel.force_new_channel:
                continue
            restore_channel(f"{self.name}/{role}", channel, state.channels[role])

    @abstractmethod
    def save_own(self) -> bytes:
        """Encode what is the device's own."""

    @abstractmethod
    def restore_own(self, data: bytes) -> None:
        """Decode :meth:`save_own`; raises :class:`DeviceStateError`."""

    def commands(self) -> Mapping[str, Command]:
        """Name the device's commands."""
        return {}


def save_channel(channel: ServerChannel, buffer: int = _SAVE_BUFFER) -> list[bytes]:
    """Run the VmbChannelSaveBegin/Continue/End loop; returns the pieces in order.

    ``buffer`` is what SaveContinue is given in bytes, where it does not have to have more.
    """
    pieces: list[bytes] = []
    status = channel.save_begin()
    if not status.is_success:
        raise DeviceStateError(f"SaveBegin failed: {status.name}")
    try:
        size = buffer
        # Whether it has what it asked for: a callback that asks for ever more is not followed.
        grown = False
        while True:
            result = channel.save_continue(size)
            if result.data:
                pieces.append(bytes(result.data))
            match result.status:
                case NtStatus.SUCCESS:
                    return pieces
                case NtStatus.BUFFER_OVERFLOW:
                    size = max(buffer, result.bytes_required)
                case NtStatus.BUFFER_TOO_SMALL if size < result.bytes_required and not grown:
                    size = result.bytes_required
                    grown = True
                    continue
                case _:
                    raise DeviceStateError(f"SaveContinue failed: {result.status.name}")
            grown = False
    finally:
        channel.save_end()


def restore_channel(what: str, channel: ServerChannel, pieces: list[bytes]) -> None:
    """Feed the pieces of :func:`save_channel` to VmbChannelRestoreFromBuffer."""
    status = NtStatus.MORE_PROCESSING_REQUIRED
    for piece in pieces:
        if status is NtStatus.SUCCESS:
            raise DeviceStateError(f"{what}: the snapshot goes on after the end of the channel")
        status = channel.restore_from_buffer(piece)
        if status not in (NtStatus.SUCCESS, NtStatus.MORE_PROCESSING_REQUIRED):
            why = channel.restore_failure
            raise DeviceStateError(
                f"{what}: the channel could not be restored: {status.name}"
                + (f": {why}" if why else "")
            )
    if status is not NtStatus.SUCCESS:
        raise DeviceStateError(f"{what}: the snapshot ends before the end of the channel")
