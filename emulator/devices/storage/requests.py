# SPDX-License-Identifier: MIT
"""Requests of a guest, carried out on the LUNs of a controller; each is completed once.

READ and WRITE of whole blocks on an ordinary disk are decoded here and not by the engine, in a few
calls of Python; all others, and all that is unusual about one, go to the engine. A test holds the
two against each other.
"""

from __future__ import annotations

import logging
import struct
from typing import Final

from emulator.devices.storage import inquiry
from emulator.devices.storage.controller import Controller
from emulator.devices.storage.lun import ActiveLun, Outcome, first
from emulator.devices.storage.protocol import (
    DataIn,
    Operation,
    ScsiRequest,
    SrbStatus,
    VstorStatus,
    answer,
    srb_answer,
)
from emulator.devices.storage.scsi import BLOCK, Op, cdb_length
from emulator.devices.storage.steps import Read, Write
from emulator.devices.storage.unit import lun_list
from emulator.kmcl import IncomingPacket
from emulator.memory import GpaError

log = logging.getLogger(__name__)

_WORD = struct.Struct("<I")
# Of a request that may be quick: operation; path, target and LUN, in the high bytes of a word;
# direction, which is 1 for a READ and 0 for a WRITE; and the transfer length. Then, of its CDB:
# operation code, flags, first block and number of blocks.
_QUICK = struct.Struct("<I12xI2xBxI")
_BLOCKS_10 = struct.Struct(">BBIBH")
_BLOCKS_16 = struct.Struct(">BBQI")
_QUICK_SIZE: Final = 48
_CDB_AT: Final = 28
_CDB_END: Final = _CDB_AT + 16
_READS: Final = frozenset({int(Op.READ_10), int(Op.READ_16)})
_WRITES: Final = frozenset({int(Op.WRITE_10), int(Op.WRITE_16)})
_LONG: Final = int(Op.READ_16) & 0x80
_FUA: Final = 0x08
_PLAIN_FLAGS: Final = 0x18
"""FUA and DPO; any other flag is for the engine."""
_COMPLETE_IO: Final = _WORD.pack(Operation.COMPLETE_IO)
_EXECUTE_SRB: Final = int(Operation.EXECUTE_SRB)
_NO_ERROR: Final = bytes(4)
_SUCCESS: Final = bytes((SrbStatus.SUCCESS, 0))
_NO_SENSE: Final = bytes(1)


class Requests:
    """Carries out what comes on any channel of one controller."""

    def __init__(self, name: str, controller: Controller) -> None:
        self._name = name
        self._controller = controller
        self._quick: dict[int, ActiveLun] = {}
        self.know_luns()

    def know_luns(self) -> None:
        """Take note of which LUNs there are."""
        self._quick = {number << 24: active for number, active in self._controller.luns.items()}

    def quick(self, packet: IncomingPacket) -> bool:
        """Carry out a READ or WRITE; False, and nothing done, if it is none of the usual."""
        payload = packet.payload
        if len(payload) < _QUICK_SIZE:
            return False
        operation, address, direction, room = _QUICK.unpack_from(payload)
        active = self._quick.get(address)
        if operation != _EXECUTE_SRB or active is None or not active.unit.quick:
            return False
        opcode = payload[_CDB_AT]
        reads = opcode in _READS
        if not reads and opcode not in _WRITES:
            return False
        if opcode & _LONG:
            _, flags, lba, blocks = _BLOCKS_16.unpack_from(payload, _CDB_AT)
        else:
            _, flags, lba, _, blocks = _BLOCKS_10.unpack_from(payload, _CDB_AT)
        if room != blocks * BLOCK or direction != reads or not blocks or flags & ~_PLAIN_FLAGS:
            return False
        return self._transfer(packet, active, reads, flags & _FUA != 0, lba * BLOCK, room)

    def _transfer(
        self,
        packet: IncomingPacket,
        active: ActiveLun,
        reads: bool,
        fua: bool,
        offset: int,
        size: int,
    ) -> bool:
        backend = active.backend
        external = packet.external
        if (
            backend is None
            or active.fenced
            or offset + size > active.end
            or (not reads and backend.read_only)
            or len(external) != 1
            or external[0].length != size
        ):
            return False
        try:
            pieces = packet.external_data(read_only=not reads)
        except GpaError:
            return False
        payload = packet.payload
        if reads:
            if backend.read_now(pieces, offset, size):
                packet.complete(_done(payload))
                return True
            step: Read | Write = Read(offset, size)
        else:
            if not fua and backend.write_now(pieces, offset, size):
                packet.complete(_done(payload))
                return True
            step = Write(offset, size, fua)

        def done(error: OSError | None) -> None:
            if error is None:
                packet.complete(_done(payload))
            else:
                _complete(packet, ScsiRequest.parse(payload), active.failure(error, step))

        active.begin(payload[_CDB_AT:_CDB_END], step, pieces, done)
        return True

    def execute(self, packet: IncomingPacket) -> None:
        """Carry out an EXECUTE_SRB; raises :class:`MalformedVstor`."""
        srb = ScsiRequest.parse(packet.payload)
        cdb = srb.cdb
        if not cdb or len(cdb) < cdb_length(cdb[0]):
            _complete(packet, srb, Outcome(SrbStatus.INVALID_REQUEST))
            return
        try:
            pieces = packet.external_data() if packet.external else []
        except GpaError as error:
            log.warning("%s: the guest's buffer is no memory: %s", self._name, error)
            _complete(packet, srb, Outcome(SrbStatus.INVALID_REQUEST))
            return
        pieces = list(first(pieces, srb.transfer_length))
        data_in = srb.data_in == DataIn.READ
        here = self._is_here(srb)
        active = self._controller.luns.get(srb.lun) if here else None
        if active is None:
            nobody = SrbStatus.INVALID_LUN if here else SrbStatus.INVALID_TARGET_ID
            luns = self._controller.numbers() if here else []
            _complete(packet, srb, _nobody(cdb, pieces, data_in, luns, nobody))
            return
        active.execute(cdb, pieces, data_in, lambda outcome: _complete(packet, srb, outcome))

    def _is_here(self, srb: ScsiRequest) -> bool:
        return self._controller.anywhere or not (srb.path_id or srb.target_id)

    def reset(self, packet: IncomingPacket, operation: int) -> None:
        """Have what is under way end; only then is the reset over, and what comes later begun."""
        luns = list(self._controller.luns.values())
        if operation == Operation.RESET_LUN:
            srb = ScsiRequest.parse(packet.payload)
            found = self._controller.luns.get(srb.lun) if self._is_here(srb) else None
            if found is None:
                packet.complete(answer(packet.payload, VstorStatus.DEVICE_DOES_NOT_EXIST))
                return
            luns = [found]
        left = len(luns)

        def idle(active: ActiveLun) -> None:
            nonlocal left
            active.unit.reset()
            left -= 1
            if not left:
                packet.complete(answer(packet.payload, VstorStatus.SUCCESS))

        for active in luns:
            active.when_idle(lambda active=active: idle(active))  # type: ignore[misc]
        if not luns:
            packet.complete(answer(packet.payload, VstorStatus.SUCCESS))


def _complete(packet: IncomingPacket, srb: ScsiRequest, outcome: Outcome) -> None:
    packet.complete(srb_answer(packet.payload, srb, *outcome))


def _done(request: bytes) -> bytes:
    """Return the completion of a request that moved all it asked for."""
    return b"".join(
        (
            _COMPLETE_IO,
            request[4:8],
            _NO_ERROR,
            request[12:14],
            _SUCCESS,
            request[16:21],
            _NO_SENSE,
            request[22:64],
        )
    )


def _nobody(
    cdb: bytes, pieces: list[memoryview], data_in: bool, luns: list[int], status: SrbStatus
) -> Outcome:
    """Answer for a LUN where there is nothing; ``luns`` are those of its target.

    Windows is content with the SRB status. Linux takes every INQUIRY for good (storvsc_drv.c,
    storvsc_on_io_completion), so its data must say that nobody is there. Then it asks each LUN 0,
    of up to 8 paths with 2 targets, for the LUNs there are. Told INVALID_LUN on any path, it
    removes the LUN of that number on path 0 (storvsc_remove_lun): that is for LUNs of our target.
    """
    data = b""
    if cdb[0] == Op.INQUIRY and not cdb[1] & 1:
        data = inquiry.no_unit()[: int.from_bytes(cdb[3:5], "big")]
    elif cdb[0] == Op.REPORT_LUNS:
        data = lun_list(luns)[: int.from_bytes(cdb[6:10], "big")]
        status = SrbStatus.SUCCESS
    moved = 0
    for piece in first(pieces if data_in else [], len(data)):
        piece[:] = data[moved : moved + piece.nbytes]
        moved += piece.nbytes
    return Outcome(status, 0, moved)
