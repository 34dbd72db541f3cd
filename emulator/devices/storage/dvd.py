# SPDX-License-Identifier: MIT
"""A DVD drive: the multimedia commands that guests need to read a disc (MMC-6). No I/O.

The disc has one session with one data track. It can be taken out and another put in while the
guest runs; it learns of it by a unit attention and by GET EVENT STATUS NOTIFICATION, which Windows
and Linux poll.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import ClassVar, Final

from emulator.devices.storage import inquiry, modes
from emulator.devices.storage.inquiry import Identity
from emulator.devices.storage.scsi import (
    DVD_BLOCK,
    CheckCondition,
    Extent,
    Op,
    Sense,
    extent_10,
    extent_12,
)
from emulator.devices.storage.steps import Check, Read, Reply, Step
from emulator.devices.storage.unit import DataOut, LogicalUnit

_DATA_TRACK: Final = 0x14
_LEAD_OUT: Final = 0xAA
_MSF_OFFSET: Final = 150
_CD_LIMIT_BLOCKS: Final = 405_000
"""90 minutes: what is longer is no CD, but a DVD."""
_PROFILE_CD: Final = 0x0008
_PROFILE_DVD: Final = 0x0010
_MEDIA_CLASS: Final = 4
_FEATURES: Final = {
    # Feature code: (version << 2 | persistent << 1 | current, data), MMC-6 section 5.3.
    0x0001: (0x0B, bytes((0, 0, 0, 1, 0x01, 0, 0, 0))),  # core, over SCSI, with DBE
    0x0002: (0x07, bytes((0x02, 0, 0, 0))),  # morphing: events are told
    0x0003: (0x03, bytes((0x29, 0, 0, 0))),  # removable medium: a tray, can be locked and ejected
    0x0010: (0x01, DVD_BLOCK.to_bytes(4, "big") + bytes((0, 1, 0, 0))),  # random readable
    0x001D: (0x01, b""),  # multi-read
    0x001E: (0x09, bytes(4)),  # CD read
    0x001F: (0x01, b""),  # DVD read
}


class Event:
    """Codes of media events."""

    NONE = 0
    EJECT_REQUEST = 1
    NEW_MEDIA = 2
    MEDIA_REMOVAL = 3


class Dvd(LogicalUnit):
    """A drive; ``size`` is that of its disc in bytes, None without one."""

    device_type: ClassVar[int] = inquiry.DVD_TYPE
    removable: ClassVar[bool] = True
    vpd_pages = (0x00, 0x80, 0x83)

    def __init__(
        self,
        identity: Identity,
        luns: Callable[[], list[int]],
        size: int | None,
        eject: Callable[[], None],
    ) -> None:
        super().__init__(identity, luns)
        self._size = size
        self._eject = eject
        self.event = Event.NONE
        self._pages = modes.dvd_pages()
        self._handlers |= {
            Op.READ_10: self._read,
            Op.READ_12: self._read,
            Op.VERIFY_10: self._verify,
            Op.READ_CAPACITY_10: self._read_capacity,
            Op.READ_TOC: self._read_toc,
            Op.GET_CONFIGURATION: self._get_configuration,
            Op.GET_EVENT_STATUS_NOTIFICATION: self._get_event_status,
            Op.READ_DISC_INFORMATION: self._read_disc_information,
            Op.READ_DVD_STRUCTURE: self._read_dvd_structure,
            Op.MECHANISM_STATUS: self._mechanism_status,
            Op.MODE_SENSE_6: self._mode_sense,
            Op.MODE_SENSE_10: self._mode_sense,
            Op.SYNCHRONIZE_CACHE_10: self._nothing_to_do,
        }

    @property
    def ready(self) -> bool:
        """Whether there is a disc."""
        return self._size is not None

    @property
    def blocks(self) -> int:
        """Blocks of the disc; 0 without one."""
        return (self._size or 0) // DVD_BLOCK

    def settle(self) -> None:
        """Leave every command to :meth:`execute`: what counts here is not speed."""

    def vpd(self, page: int) -> bytes | None:
        """See :class:`LogicalUnit`: there are no pages but the common ones."""
        return None

    def insert(self, size: int) -> None:
        """Put a disc in, in place of what was there."""
        self._size = size
        self.event = Event.NEW_MEDIA
        self.attention(Sense.MEDIUM_CHANGED)

    def remove(self) -> None:
        """Take the disc out."""
        self._size = None
        self.event = Event.MEDIA_REMOVAL

    def ask_for_eject(self) -> None:
        """Press the button: the guest decides, if it has locked the tray."""
        self.event = Event.EJECT_REQUEST

    def load_or_eject(self, *, load: bool) -> None:
        """See :class:`LogicalUnit`; what was ejected cannot be loaded again by the guest."""
        if load:
            return
        if self.removal_prevented:
            raise CheckCondition(Sense.REMOVAL_PREVENTED)
        if self._size is not None:
            self.remove()
            self._eject()

    def _range(self, extent: Extent) -> tuple[int, int]:
        self.need_medium()
        if extent.lba + extent.blocks > self.blocks:
            raise CheckCondition(Sense.OUT_OF_RANGE)
        return extent.lba * DVD_BLOCK, extent.blocks * DVD_BLOCK

    def _read(self, cdb: bytes, _: DataOut) -> Step:
        offset, length = self._range(extent_12(cdb) if cdb[0] == Op.READ_12 else extent_10(cdb))
        return Read(offset, length) if length else Reply()

    def _verify(self, cdb: bytes, _: DataOut) -> Step:
        if cdb[1] & 0x06:
            raise CheckCondition(Sense.INVALID_FIELD)
        offset, length = self._range(extent_10(cdb))
        return Check(offset, length) if length else Reply()

    def _read_capacity(self, _: bytes, __: DataOut) -> Step:
        self.need_medium()
        return Reply(max(self.blocks - 1, 0).to_bytes(4, "big") + DVD_BLOCK.to_bytes(4, "big"))

    def _nothing_to_do(self, _: bytes, __: DataOut) -> Step:
        self.need_medium()
        return Reply()

    def _read_toc(self, cdb: bytes, _: DataOut) -> Step:
        self.need_medium()
        msf = bool(cdb[1] & 2)
        start = cdb[6]
        match cdb[2] & 0x0F or cdb[9] >> 6:
            case 0:
                if start > 1 and start != _LEAD_OUT:
                    raise CheckCondition(Sense.INVALID_FIELD)
                entries = b"" if start == _LEAD_OUT else self._track(1, 0, msf)
                entries += self._track(_LEAD_OUT, self.blocks, msf)
            case 1:
                entries = self._track(1, 0, msf)
            case _:
                raise CheckCondition(Sense.INVALID_FIELD)
        data = (2 + len(entries)).to_bytes(2, "big") + bytes((1, 1)) + entries
        return Reply(data[: int.from_bytes(cdb[7:9], "big")])

    @staticmethod
    def _track(number: int, lba: int, msf: bool) -> bytes:
        if msf:
            seconds, frames = divmod(lba + _MSF_OFFSET, 75)
            minutes, seconds = divmod(seconds, 60)
            address = bytes((0, min(minutes, 255), seconds, frames))
        else:
            address = lba.to_bytes(4, "big")
        return bytes((0, _DATA_TRACK, number, 0)) + address

    def _get_configuration(self, cdb: bytes, _: DataOut) -> Step:
        first = int.from_bytes(cdb[2:4], "big")
        profile = 0
        if self.ready:
            profile = _PROFILE_DVD if self.blocks > _CD_LIMIT_BLOCKS else _PROFILE_CD
        profiles = b"".join(
            number.to_bytes(2, "big") + bytes((number == profile, 0))
            for number in (_PROFILE_DVD, _PROFILE_CD)
        )
        features = {0x0000: (0x03, profiles), **_FEATURES}
        match cdb[1] & 3:
            case 0:
                chosen = [code for code in features if code >= first]
            case 1:
                chosen = [
                    code for code, (bits, _) in features.items() if bits & 1 and code >= first
                ]
            case 2:
                chosen = [code for code in features if code == first]
            case _:
                raise CheckCondition(Sense.INVALID_FIELD)
        body = b"".join(
            code.to_bytes(2, "big")
            + bytes((features[code][0], len(features[code][1])))
            + features[code][1]
            for code in chosen
        )
        data = (4 + len(body)).to_bytes(4, "big") + bytes(2) + profile.to_bytes(2, "big") + body
        return Reply(data[: int.from_bytes(cdb[7:9], "big")])

    def _get_event_status(self, cdb: bytes, _: DataOut) -> Step:
        if not cdb[1] & 1:
            # Only polling: there is no way to hold the command until something happens.
            raise CheckCondition(Sense.INVALID_FIELD)
        supported = 1 << _MEDIA_CLASS
        allocated = int.from_bytes(cdb[7:9], "big")
        if not cdb[4] & supported:
            return Reply(bytes((0, 2, 0x80, supported))[:allocated])
        present = 0x02 if self.ready else 0
        data = bytes((0, 6, _MEDIA_CLASS, supported, self.event, present, 0, 0))
        if allocated > 4:
            self.event = Event.NONE
        return Reply(data[:allocated])

    def _read_disc_information(self, cdb: bytes, _: DataOut) -> Step:
        self.need_medium()
        # Complete disc, complete last session; one session, one track.
        data = bytes((0, 32, 0x0E, 1, 1, 1, 1, 0x20)) + bytes(26)
        return Reply(data[: int.from_bytes(cdb[7:9], "big")])

    def _read_dvd_structure(self, cdb: bytes, _: DataOut) -> Step:
        self.need_medium()
        if cdb[7] != 0 or self.blocks <= _CD_LIMIT_BLOCKS:
            raise CheckCondition(Sense.INVALID_FIELD)
        # Physical format: DVD-ROM of one layer, whose data begin at 30000h.
        layer = bytes((0x01, 0x02, 0x01, 0x00)) + (0x30000).to_bytes(4, "big")
        layer += (0x30000 + self.blocks - 1).to_bytes(4, "big") + bytes(2048 - 12)
        data = (2 + len(layer)).to_bytes(2, "big") + bytes(2) + layer
        return Reply(data[: int.from_bytes(cdb[8:10], "big")])

    def _mechanism_status(self, cdb: bytes, _: DataOut) -> Step:
        return Reply(bytes(8)[: int.from_bytes(cdb[8:10], "big")])

    def _mode_sense(self, cdb: bytes, _: DataOut) -> Step:
        return Reply(modes.sense(cdb, self._pages, 0, None))
