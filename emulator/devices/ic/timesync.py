# SPDX-License-Identifier: MIT
"""Time synchronisation: the guest is told the time, to set its clock by or to steer it by.

Linux: drivers/hv/hv_util.c, ``timesync_onchannelcallback``. A message with the sync flag sets the
guest's clock; a sample is for a daemon that steers (chrony, by /dev/ptp_hyperv).
"""

from __future__ import annotations

import struct
import uuid
from dataclasses import astuple, dataclass
from enum import IntFlag
from typing import Any, ClassVar, Final, Self

import msgspec

from emulator.devices.base import Command
from emulator.devices.ic.base import Answer, IcDevice, Request
from emulator.devices.ic.layout import IcType, IcVersion

PERIOD: Final = 5.0
"""Seconds between two samples."""

V4: Final = IcVersion(4, 0)


class TimeFlags(IntFlag):
    """ICTIMESYNCFLAG_*."""

    SYNC = 1
    SAMPLE = 2


@dataclass(frozen=True, slots=True)
class TimeMessage:
    """``struct ictimesync_data``, 28 bytes with its padding: before 4.0. Times in 100 ns."""

    host: int
    guest: int
    round_trip: int
    flags: TimeFlags

    LAYOUT: ClassVar[struct.Struct] = struct.Struct("<QQQB3x")

    def pack(self) -> bytes:
        """Encode 28 bytes."""
        data: bytes = self.LAYOUT.pack(*astuple(self))
        return data

    @classmethod
    def parse(cls, body: bytes) -> Self:
        """Decode at least 28 bytes."""
        host, guest, trip, flags = cls.LAYOUT.unpack_from(body)
        return cls(host, guest, trip, TimeFlags(flags))


@dataclass(frozen=True, slots=True)
class TimeMessageV4:
    """``struct ictimesync_ref_data``, 24 bytes with its padding: from 4.0. Times in 100 ns."""

    host: int
    reference: int
    flags: TimeFlags
    leap: int = 0
    stratum: int = 0

    LAYOUT: ClassVar[struct.Struct] = struct.Struct("<QQBBB5x")

    def pack(self) -> bytes:
        """Encode 24 bytes."""
        data: bytes = self.LAYOUT.pack(*astuple(self))
        return data

    @classmethod
    def parse(cls, body: bytes) -> Self:
        """Decode at least 24 bytes."""
        host, reference, flags, leap, stratum = cls.LAYOUT.unpack_from(body)
        return cls(host, reference, TimeFlags(flags), leap, stratum)


class TimesyncState(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """What is the service's own in a snapshot."""

    syncs: int
    samples: int


class TimesyncDevice(IcDevice):
    """The time synchronisation service."""

    kind: ClassVar[str] = "timesync"
    interface = uuid.UUID("9527e630-d0ae-497b-adce-e80ab0175caf")
    instance = uuid.UUID("2dd1ce17-079e-403c-b352-a1921ee207ee")
    ic_type = IcType.TIMESYNC
    versions = (V4, IcVersion(3, 0), IcVersion(1, 0))

    _syncs = 0
    _samples = 0
    _sync_due = False

    def offered_versions(self) -> tuple[IcVersion, ...]:
        """Leave 4.0 out if the clock does not know the guest's reference counter.

        A guest adds to the time of a 4.0 message what its counter has gained since; a false counter
        would put its clock wrong by all of the guest's uptime.
        """
        known = self._clock.reference() is not None
        return self.versions if known else tuple(each for each in self.versions if each != V4)

    def ready(self) -> None:
        """Set the guest's clock: it has just begun, or stood still for a pause or in a snapshot."""
        self._sync_due = True
        self.elapsed("sample")

    def suspended(self) -> None:
        """Send nothing to a guest that does not run."""
        self.stop_timer("sample")

    def gone(self) -> None:
        """Start anew with the next guest."""
        self._syncs = self._samples = 0
        self._sync_due = False

    def elapsed(self, name: str) -> None:
        """Send the time, unless the guest has not even answered the last."""
        self.start_timer(name, PERIOD)
        if not self.busy:
            self._post_time()

    def _post_time(self) -> None:
        flags = TimeFlags.SYNC if self._sync_due else TimeFlags.SAMPLE
        self._sync_due = False
        host, reference = self._clock.wall(), self._clock.reference()
        if self.version == V4:
            body = TimeMessageV4(host, reference or 0, flags).pack()
        else:
            body = TimeMessage(host, 0, 0, flags).pack()
        self.post(Request(flags.name or "time", body))

    def answered(self, request: Request, answer: Answer) -> None:
        """Count; send the synchronisation that had to wait, with the time that it is by now."""
        if request.what == TimeFlags.SYNC.name:
            self._syncs += 1
        else:
            self._samples += 1
        if self._sync_due and self.is_ready:
            self._post_time()

    def save_service(self) -> bytes:
        """Encode the counts."""
        return msgspec.msgpack.encode(TimesyncState(self._syncs, self._samples))

    def restore_service(self, data: bytes) -> None:
        """Take over the counts."""
        state = msgspec.msgpack.decode(data, type=TimesyncState)
        self._syncs, self._samples = state.syncs, state.samples

    def commands(self) -> dict[str, Command]:
        """``sync``: set the guest's clock now, and wait until it has been told; ``status``."""
        return {"sync": self._sync, "status": self._status}

    async def _status(self, _: dict[str, Any]) -> dict[str, Any]:
        return self.about() | {"syncs": self._syncs, "samples": self._samples}

    async def _sync(self, arguments: dict[str, Any]) -> dict[str, Any]:
        self.require_ready()
        goal = self._syncs + 1
        self._sync_due = True
        if not self.busy and self.is_ready:
            self._post_time()
        while self._syncs < goal:
            await self.news()
            self.require_ready()
        return await self._status(arguments)
