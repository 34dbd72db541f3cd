# SPDX-License-Identifier: MIT
"""Volume shadow copy: the guest's file systems are frozen for a snapshot of its disks, and thawed.

Linux: drivers/hv/hv_snapshot.c hands each request to a daemon (hv_vss_daemon), which freezes every
mounted file system that is on a block device.

A frozen guest is thawed, whatever happens to who froze it: a freeze is for so many seconds only;
one whose asker has gone is undone as soon as it is answered; and a guest that is frozen in a
snapshot is thawed when that is restored, since who froze it is in another process.
"""

from __future__ import annotations

import asyncio
import logging
import struct
import uuid
from dataclasses import astuple, dataclass
from enum import IntEnum
from typing import Any, ClassVar, Final, Self

import msgspec

from emulator.devices.base import Command
from emulator.devices.ic.base import Answer, IcDevice, IcError, Request
from emulator.devices.ic.layout import (
    IcStatus,
    IcType,
    IcVersion,
    MalformedIc,
    status_name,
)

log = logging.getLogger(__name__)

FREEZE_PATIENCE: Final = 900.0
"""Seconds that a guest's freeze may take (Linux: VSS_FREEZE_TIMEOUT)."""
PATIENCE: Final = 60.0
"""Seconds for any other request."""
LEASE: Final = 60.0
"""Seconds that a guest stays frozen unless it is said otherwise."""
MAX_LEASE: Final = 600.0
RETRY: Final = 5.0
"""Seconds until a guest that could not be thawed is asked again."""


class VssOp(IntEnum):
    """``enum hv_vss_op``; those from FREEZE on need version 5.0."""

    CREATE = 0
    DELETE = 1
    HOT_BACKUP = 2
    GET_DM_INFO = 3
    BU_COMPLETE = 4
    FREEZE = 5
    THAW = 6
    AUTO_RECOVER = 7


@dataclass(frozen=True, slots=True)
class VssMessage:
    """``struct hv_vss_msg``, 12 bytes; ``flags`` is in some answers."""

    op: VssOp
    flags: int = 0

    LAYOUT: ClassVar[struct.Struct] = struct.Struct("<B7xI")

    def pack(self) -> bytes:
        """Encode 12 bytes."""
        data: bytes = self.LAYOUT.pack(*astuple(self))
        return data

    @classmethod
    def parse(cls, body: bytes) -> Self:
        """Decode at least 12 bytes; raises :class:`MalformedIc`."""
        op, flags = cls.LAYOUT.unpack_from(body)
        try:
            return cls(VssOp(op), flags)
        except ValueError as error:
            raise MalformedIc(f"operation {op}") from error


class VssState(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """What is the service's own in a snapshot."""

    frozen: bool


class VssDevice(IcDevice):
    """The backup service."""

    kind: ClassVar[str] = "vss"
    interface = uuid.UUID("35fa2e29-ea23-4236-96ae-3a6ebacba440")
    instance = uuid.UUID("2450ee40-33bf-4fbd-892e-9fb06e9214cf")
    ic_type = IcType.VSS
    versions = (IcVersion(7, 0), IcVersion(6, 0), IcVersion(5, 0), IcVersion(4, 0))

    _frozen = False
    _thaw_due = False
    _lease = LEASE

    def ready(self) -> None:
        """Thaw what was frozen in a snapshot, or should have been thawed while nothing ran."""
        if self.take_restored():
            flight = self._flight_op()
            self._thaw_due |= self._frozen or flight is VssOp.FREEZE
        self._thaw_if_due()

    def gone(self) -> None:
        """Forget: a guest whose driver has gone is not frozen by us."""
        self._frozen = self._thaw_due = False

    def elapsed(self, name: str) -> None:
        """Thaw: who froze the guest has had its time."""
        if self._frozen:
            log.warning("%s: the guest is still frozen; thawing it", self.name)
        self._thaw_due = True
        self._thaw_if_due()

    def _flight_op(self) -> VssOp | None:
        return VssOp(self._flight.body[0]) if self._flight else None

    def _thaw_if_due(self) -> None:
        if not self._thaw_due or not self.is_ready or self._flight is not None:
            return
        self._thaw_due = False
        if self._frozen:
            self.start_timer("thaw", RETRY)
            self.post(Request("thaw", VssMessage(VssOp.THAW).pack()), first=True)

    def answered(self, request: Request, answer: Answer) -> None:
        """Keep account of whether the guest is frozen."""
        good = answer.status == IcStatus.OK
        match VssOp(request.body[0]):
            case VssOp.FREEZE if good:
                self._frozen = True
                self.start_timer("thaw", self._lease)
                if id(request) not in self._futures:
                    self._thaw_due = True
            case VssOp.THAW if good:
                self._frozen = False
                self.stop_timer("thaw")
            case VssOp.HOT_BACKUP | VssOp.GET_DM_INFO if good:
                if len(answer.body) < VssMessage.LAYOUT.size:
                    raise MalformedIc(f"{request.what}: an answer of {len(answer.body)} bytes")
                VssMessage.parse(answer.body)
            case _:
                pass
        self._thaw_if_due()

    def save_service(self) -> bytes:
        """Encode whether the guest is frozen."""
        return msgspec.msgpack.encode(VssState(self._frozen))

    def restore_service(self, data: bytes) -> None:
        """Take over."""
        self._frozen = msgspec.msgpack.decode(data, type=VssState).frozen

    def commands(self) -> dict[str, Command]:
        """``freeze`` (lease: seconds), ``thaw``, ``negotiated``, ``status``."""
        return {
            "freeze": self._freeze,
            "thaw": self._thaw,
            "negotiated": self.negotiated,
            "status": self._status,
        }

    async def _status(self, _: dict[str, Any]) -> dict[str, Any]:
        return self.about() | {"frozen": self._frozen}

    def _require_freeze(self) -> None:
        self.require_ready()
        assert self.version is not None
        if self.version < (5, 0):
            raise IcError(f"the guest speaks version {self.version}; freezing came with 5.0")

    async def _freeze(self, arguments: dict[str, Any]) -> dict[str, Any]:
        self._require_freeze()
        lease = float(arguments.get("lease", LEASE))
        if not 0 < lease <= MAX_LEASE:
            raise IcError(f"a guest is frozen for more than 0 and at most {MAX_LEASE:g} s")
        if self._frozen:
            raise IcError("the guest is frozen already")
        check = await self.ask(Request("hot backup", VssMessage(VssOp.HOT_BACKUP).pack()), PATIENCE)
        if check.status != IcStatus.OK:
            raise IcError(f"the guest cannot be backed up: {status_name(check.status)}")
        self._lease = lease
        freeze = Request("freeze", VssMessage(VssOp.FREEZE).pack())
        try:
            answer = await self.ask(freeze, FREEZE_PATIENCE)
        except asyncio.CancelledError:
            # Answered in the same turn of the loop in which its asker went.
            self._thaw_due = self._frozen
            self._thaw_if_due()
            raise
        if answer.status != IcStatus.OK:
            raise IcError(f"the guest could not be frozen: {status_name(answer.status)}")
        return {"frozen": True, "lease": lease}

    async def _thaw(self, _: dict[str, Any]) -> dict[str, Any]:
        self._require_freeze()
        was = self._frozen
        answer = await self.ask(Request("thaw", VssMessage(VssOp.THAW).pack()), PATIENCE)
        if answer.status != IcStatus.OK:
            raise IcError(f"the guest could not be thawed: {status_name(answer.status)}")
        return {"was_frozen": was}
