# SPDX-License-Identifier: MIT
"""Heartbeat: the guest answers a number every two seconds, or it is not well.

Linux: drivers/hv/hv_util.c, ``heartbeat_onchannelcallback``: it answers the number plus one.
"""

from __future__ import annotations

import struct
import uuid
from dataclasses import astuple, dataclass
from typing import Any, ClassVar, Final, Self

import msgspec

from emulator.devices.base import Command
from emulator.devices.ic.base import Answer, IcDevice, Request
from emulator.devices.ic.layout import IcType, IcVersion, MalformedIc

PERIOD: Final = 2.0
"""Seconds between two beats, as Hyper-V has it."""
LOST_AFTER: Final = 5
"""Periods without an answer until the guest counts as lost."""

_M64: Final = 0xFFFF_FFFF_FFFF_FFFF


@dataclass(frozen=True, slots=True)
class Beat:
    """``struct heartbeat_msg_data``, 40 bytes.

    The first of the 32 bytes that Linux reserves are the state of the guest's applications.
    """

    sequence: int
    application_state: int = 0

    LAYOUT: ClassVar[struct.Struct] = struct.Struct("<QI28x")

    def pack(self) -> bytes:
        """Encode 40 bytes."""
        data: bytes = self.LAYOUT.pack(*astuple(self))
        return data

    @classmethod
    def parse(cls, body: bytes) -> Self:
        """Decode at least 40 bytes."""
        return cls(*cls.LAYOUT.unpack_from(body))


class HeartbeatState(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """What is the service's own in a snapshot."""

    sequence: int
    beats: int
    application_state: int


class HeartbeatDevice(IcDevice):
    """The heartbeat service."""

    kind: ClassVar[str] = "heartbeat"
    interface = uuid.UUID("57164f39-9115-4e78-ab55-382f3bd5422d")
    instance = uuid.UUID("fd149e91-82e0-4a7d-afa6-2a4166cbd7c0")
    ic_type = IcType.HEARTBEAT
    versions = (IcVersion(3, 0), IcVersion(1, 0))

    _sequence = 0
    _beats = 0
    _missed = 0
    _application_state = 0

    def ready(self) -> None:
        """Begin to beat; a restore or a pause is not the guest's silence."""
        self.elapsed("beat")
        self._missed = 0

    def suspended(self) -> None:
        """Count no silence of a guest that does not run."""
        self.stop_timer("beat")

    def gone(self) -> None:
        """Start anew with the next guest."""
        self._sequence = self._beats = self._missed = self._application_state = 0

    def elapsed(self, name: str) -> None:
        """Beat, or count that the last beat was not answered."""
        self.start_timer(name, PERIOD)
        if self.busy:
            self._missed += 1
            return
        self._sequence = self._sequence + 1 & _M64
        beat = Beat(self._sequence)
        self.post(Request(f"beat {beat.sequence}", beat.pack(), Beat.LAYOUT.size))

    def answered(self, request: Request, answer: Answer) -> None:
        """Take a beat of the guest's."""
        sent, beat = Beat.parse(request.body), Beat.parse(answer.body)
        if beat.sequence != sent.sequence + 1 & _M64:
            raise MalformedIc(f"beat {sent.sequence} was answered with {beat.sequence}")
        self._beats += 1
        self._missed = 0
        self._application_state = beat.application_state

    def save_service(self) -> bytes:
        """Encode the count."""
        return msgspec.msgpack.encode(
            HeartbeatState(self._sequence, self._beats, self._application_state)
        )

    def restore_service(self, data: bytes) -> None:
        """Take over the count."""
        state = msgspec.msgpack.decode(data, type=HeartbeatState)
        self._sequence, self._beats = state.sequence, state.beats
        self._application_state = state.application_state

    def commands(self) -> dict[str, Command]:
        """``status``: the guest's health; ``wait``: the same after the next beat."""
        return {"status": self._status, "wait": self._wait}

    async def _status(self, _: dict[str, Any]) -> dict[str, Any]:
        if self.version is None:
            health = "no contact"
        else:
            beating = "ok" if self._beats else "no beat yet"
            health = "lost" if self._missed >= LOST_AFTER else beating
        return self.about() | {
            "health": health,
            "beats": self._beats,
            "application_state": self._application_state,
        }

    async def _wait(self, arguments: dict[str, Any]) -> dict[str, Any]:
        before = self._beats
        while self._beats == before:
            await self.news()
            self.require_ready()
        return await self._status(arguments)
