# SPDX-License-Identifier: MIT
"""Save and restore callbacks of the probe that misbehave on request.

What KMCL makes of a VSP that fails is part of what the conformance suite checks
(docs/conformance.md, scenarios 20 to 22 and 29 to 32), and a guest must not notice more of it than
a save or a restore that is refused.
"""

from __future__ import annotations

from enum import StrEnum
from typing import Final

import msgspec

from emulator.devices.probe.options import RestoreTrial
from emulator.devices.probe.state import PacketContext
from emulator.kmcl import OutgoingPacket, RestoredPacket, SavedPacket
from emulator.wire.ntstatus import NtStatus

_LARGE: Final = 100_000
_THIRD: Final = 3


class SaveTrial(StrEnum):
    """What EvtSavePacket does in the next save; after that it is itself again."""

    FAIL = "fail"
    """The second call for a packet fails with UNSUCCESSFUL."""
    GROW = "grow"
    """Each call needs more than the one before has announced."""
    LARGE = "large"
    """The state of each packet is 100,000 bytes longer than it has to be."""


class Trials:
    """Stands between the callbacks and what they should do."""

    def __init__(self, restoring: RestoreTrial | None) -> None:
        """Misbehave in every restore as ``restoring`` says; in no save yet."""
        self._restoring = restoring
        self._restored = 0
        self.saving: SaveTrial | None = None
        self.calls = 0
        """Calls of EvtSavePacket since the last command ``trial``."""

    def begin(self, trial: SaveTrial | None) -> None:
        """Misbehave from now on in saves, or stop that."""
        self.saving, self.calls = trial, 0

    def save(self, context: PacketContext, size: int) -> SavedPacket:
        """Answer EvtSavePacket, called with ``size`` bytes, for a packet of this state."""
        self.calls += 1
        if self.saving is SaveTrial.LARGE:
            context = msgspec.structs.replace(context, padding=bytes(_LARGE))
        blob = msgspec.msgpack.encode(context)
        match self.saving:
            case SaveTrial.FAIL if size:
                return SavedPacket(NtStatus.UNSUCCESSFUL, b"", 0)
            case SaveTrial.GROW:
                return SavedPacket(NtStatus.BUFFER_TOO_SMALL, b"", max(size, len(blob)) + 8)
            case SaveTrial.FAIL | SaveTrial.LARGE | None:
                pass
        if size < len(blob):
            return SavedPacket(NtStatus.BUFFER_TOO_SMALL, b"", len(blob))
        return SavedPacket(NtStatus.SUCCESS, blob, len(blob))

    def restore(self, packet: OutgoingPacket, restored: RestoredPacket) -> NtStatus:
        """Call VmbPacketRestore as EvtRestorePacket does; returns what that has to return.

        A packet that was not restored is freed.
        """
        self._restored += 1
        status = NtStatus.UNSUCCESSFUL
        match self._restoring:
            case RestoreTrial.ALLOCATE:
                status = NtStatus.INSUFFICIENT_RESOURCES
            case RestoreTrial.LIB_BUFFER:
                status = packet.restore(restored.lib_buffer[:-1])
            case RestoreTrial.NOT_RESTORED:
                packet.free()
                return NtStatus.SUCCESS
            case RestoreTrial.THIRD if self._restored >= _THIRD:
                pass
            case RestoreTrial.THIRD | None:
                status = packet.restore(restored.lib_buffer)
        if not status.is_success:
            packet.free()
        return status
