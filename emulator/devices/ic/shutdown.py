# SPDX-License-Identifier: MIT
"""Shutdown: the guest is asked to power off, to restart, or to hibernate.

Linux: drivers/hv/hv_util.c, ``shutdown_onchannelcallback``; restart came with version 3.1,
hibernation with 3.2. The guest answers first and goes down then.
"""

from __future__ import annotations

import struct
import uuid
from dataclasses import dataclass
from enum import IntFlag
from typing import Any, ClassVar, Final, Self

from emulator.devices.base import Command
from emulator.devices.ic.base import IcDevice, IcError, Request
from emulator.devices.ic.layout import (
    IcStatus,
    IcType,
    IcVersion,
    from_utf16,
    status_name,
    utf16,
)

PLANNED: Final = 0x8000_0000
"""The reason code of a shutdown that somebody asked for (SHTDN_REASON_FLAG_PLANNED)."""

PATIENCE: Final = 30.0
"""Seconds that the guest has to say whether it will."""

_MESSAGE_UNITS: Final = 1024


class ShutdownFlags(IntFlag):
    """``flags`` of the message."""

    FORCE = 1
    RESTART = 2
    HIBERNATE = 4


ACTIONS: Final = {
    "off": (ShutdownFlags(0), IcVersion(1, 0)),
    "reboot": (ShutdownFlags.RESTART, IcVersion(3, 1)),
    "hibernate": (ShutdownFlags.HIBERNATE, IcVersion(3, 2)),
}
"""What can be asked: its flag, and the first version that has it."""


@dataclass(frozen=True, slots=True)
class Shutdown:
    """``struct shutdown_msg_data``, 2,060 bytes; the time-out is the guest's, in seconds."""

    reason: int
    timeout: int
    flags: ShutdownFlags
    message: str = ""

    LAYOUT: ClassVar[struct.Struct] = struct.Struct("<III2048s")

    def pack(self) -> bytes:
        """Encode; raises ValueError for a message that is too long."""
        text = utf16(self.message, _MESSAGE_UNITS, "the message")
        return self.LAYOUT.pack(self.reason, self.timeout, self.flags, text)

    @classmethod
    def parse(cls, body: bytes) -> Self:
        """Decode at least 2,060 bytes."""
        reason, timeout, flags, text = cls.LAYOUT.unpack_from(body)
        return cls(reason, timeout, ShutdownFlags(flags), from_utf16(text))


class ShutdownDevice(IcDevice):
    """The shutdown service."""

    kind: ClassVar[str] = "shutdown"
    interface = uuid.UUID("0e0b6031-5213-4934-818b-38d90ced39db")
    instance = uuid.UUID("b6650ff7-33bc-4840-8048-e0676786f393")
    ic_type = IcType.SHUTDOWN
    versions = (IcVersion(3, 2), IcVersion(3, 1), IcVersion(3, 0), IcVersion(1, 0))

    def save_service(self) -> bytes:
        """Return nothing: a shutdown in flight is the shared part's."""
        return b""

    def restore_service(self, data: bytes) -> None:
        """Take nothing."""

    def commands(self) -> dict[str, Command]:
        """``shutdown`` (action: off, reboot or hibernate; force; timeout; message), ``status``."""
        return {"shutdown": self._shutdown, "status": self._status, "negotiated": self.negotiated}

    async def _status(self, _: dict[str, Any]) -> dict[str, Any]:
        return self.about()

    async def _shutdown(self, arguments: dict[str, Any]) -> dict[str, Any]:
        action = str(arguments.get("action", "off"))
        if action not in ACTIONS:
            raise IcError(f"unknown action {action!r}; there are: {', '.join(ACTIONS)}")
        self.require_ready()
        flags, since = ACTIONS[action]
        assert self.version is not None
        if self.version < since:
            raise IcError(f"the guest speaks version {self.version}; {action} came with {since}")
        if arguments.get("force"):
            flags |= ShutdownFlags.FORCE
        seconds, text = int(arguments.get("timeout", 0)), str(arguments.get("message", ""))
        if not 0 <= seconds <= 0xFFFF_FFFF:
            raise IcError(f"a time-out of {seconds} s cannot be said")
        body = Shutdown(PLANNED, seconds, flags, text).pack()
        answer = await self.ask(Request(action, body), PATIENCE)
        if answer.status != IcStatus.OK:
            raise IcError(f"the guest refused: {action}: {status_name(answer.status)}")
        return {"action": action}
