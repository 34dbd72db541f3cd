# SPDX-License-Identifier: MIT
"""A disk: the block commands (SBC-3). Commands in, steps out; no I/O.

READ and WRITE are where the time goes, so the VSP decodes those of an ordinary disk by itself
(:attr:`LogicalUnit.quick`); what it decodes and what stands here is held together by a test.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import ClassVar, Final, NamedTuple

from emulator.devices.storage import inquiry, modes
from emulator.devices.storage.inquiry import Identity
from emulator.devices.storage.protocol import MAX_TRANSFER
from emulator.devices.storage.scsi import (
    BLOCK,
    CheckCondition,
    Extent,
    Op,
    Sense,
    extent_6,
    extent_10,
    extent_12,
    extent_16,
)
from emulator.devices.storage.steps import (
    Check,
    Compare,
    Fill,
    Flush,
    Read,
    Reply,
    Step,
    Unmap,
    Write,
    Zero,
)
from emulator.devices.storage.unit import DataOut, LogicalUnit

_FUA: Final = 0x08
_BYTCHK: Final = 0x06
_READ_CAPACITY_16: Final = 0x10
_UNMAP_BIT: Final = 0x08
_ANCHOR_BIT: Final = 0x10
_NDOB: Final = 0x01
_UNMAP_HEAD: Final = 8
_UNMAP_ENTRY: Final = 16

_EXTENT: Final[dict[int, Callable[[bytes], Extent]]] = {6: extent_6, 10: extent_10, 12: extent_12}


class Features(NamedTuple):
    """What the medium behind a disk can do."""

    size: int
    """Bytes; what is beyond the last whole block is not there."""
    read_only: bool = False
    discard: bool = False
    discard_zeroes: bool = False
    """What was discarded reads as zeroes."""


def _extent(cdb: bytes) -> Extent:
    return _EXTENT.get((6, 10, 10, 0, 16, 12)[cdb[0] >> 5], extent_16)(cdb)


class Disk(LogicalUnit):
    """A direct-access block device of 512-byte blocks."""

    device_type: ClassVar[int] = inquiry.DISK_TYPE
    removable: ClassVar[bool] = False
    vpd_pages = (0x00, 0x80, 0x83, 0xB0, 0xB1, 0xB2)

    def __init__(
        self, identity: Identity, luns: Callable[[], list[int]], features: Features
    ) -> None:
        super().__init__(identity, luns)
        self.features = features
        self.blocks = features.size // BLOCK
        self._pages = modes.disk_pages(write_cache=True)
        for opcode in (Op.READ_6, Op.READ_10, Op.READ_12, Op.READ_16):
            self._handlers[opcode] = self._read
        for opcode in (Op.WRITE_6, Op.WRITE_10, Op.WRITE_12, Op.WRITE_16):
            self._handlers[opcode] = self._write
        for opcode in (Op.VERIFY_10, Op.VERIFY_12, Op.VERIFY_16):
            self._handlers[opcode] = self._verify
        self._handlers |= {
            Op.WRITE_AND_VERIFY_10: self._write,
            Op.WRITE_AND_VERIFY_16: self._write,
            Op.READ_CAPACITY_10: self._read_capacity_10,
            Op.SERVICE_ACTION_IN_16: self._service_action_in,
            Op.SYNCHRONIZE_CACHE_10: self._synchronize,
            Op.SYNCHRONIZE_CACHE_16: self._synchronize,
            Op.MODE_SENSE_6: self._mode_sense,
            Op.MODE_SENSE_10: self._mode_sense,
            Op.MODE_SELECT_6: self._mode_select,
            Op.MODE_SELECT_10: self._mode_select,
            Op.UNMAP: self._unmap,
            Op.WRITE_SAME_10: self._write_same,
            Op.WRITE_SAME_16: self._write_same,
        }
        self.settle()

    @property
    def ready(self) -> bool:
        """A disk's medium is always there."""
        return True

    def settle(self) -> None:
        """See :class:`LogicalUnit`."""
        self.quick = not (self.attentions or self.reservations.any or self.stopped)

    def resize(self, features: Features) -> None:
        """Take up another size; the guest is told at its next command."""
        self.features = features
        self.blocks = features.size // BLOCK
        self.attention(Sense.CAPACITY_CHANGED)

    def vpd(self, page: int) -> bytes | None:
        """See :class:`LogicalUnit`."""
        unmap = self.features.discard and not self.features.read_only
        match page:
            case inquiry.LIMITS_PAGE:
                return inquiry.limits_page(MAX_TRANSFER, unmap=unmap)
            case inquiry.CHARACTERISTICS_PAGE:
                return inquiry.characteristics_page()
            case inquiry.PROVISIONING_PAGE:
                return inquiry.provisioning_page(unmap=unmap, zeroes=self.features.discard_zeroes)
            case _:
                return None

    def _range(self, extent: Extent) -> tuple[int, int]:
        """Return offset and length in bytes; raises :class:`CheckCondition`."""
        self.need_medium()
        if extent.lba + extent.blocks > self.blocks:
            raise CheckCondition(Sense.OUT_OF_RANGE)
        return extent.lba * BLOCK, extent.blocks * BLOCK

    def _writable(self) -> None:
        if self.features.read_only:
            raise CheckCondition(Sense.WRITE_PROTECTED)

    def _read(self, cdb: bytes, _: DataOut) -> Step:
        if len(cdb) > 6 and cdb[1] >> 5:
            # RDPROTECT: there is no protection information on this medium.
            raise CheckCondition(Sense.INVALID_FIELD)
        offset, length = self._range(_extent(cdb))
        return Read(offset, length) if length else Reply()

    def _write(self, cdb: bytes, _: DataOut) -> Step:
        if len(cdb) > 6 and cdb[1] >> 5:
            raise CheckCondition(Sense.INVALID_FIELD)
        self._writable()
        offset, length = self._range(_extent(cdb))
        verified = cdb[0] in (Op.WRITE_AND_VERIFY_10, Op.WRITE_AND_VERIFY_16)
        fua = len(cdb) > 6 and bool(cdb[1] & _FUA)
        return Write(offset, length, fua or verified) if length else Reply()

    def _verify(self, cdb: bytes, data_out: DataOut) -> Step:
        offset, length = self._range(_extent(cdb))
        match (cdb[1] & _BYTCHK) >> 1:
            case 0:
                return Check(offset, length) if length else Reply()
            case 1:
                if length > MAX_TRANSFER:
                    raise CheckCondition(Sense.INVALID_FIELD)
                data = data_out(length)
                if len(data) != length:
                    raise CheckCondition(Sense.PARAMETER_LENGTH)
                return Compare(offset, data) if length else Reply()
            case _:
                raise CheckCondition(Sense.INVALID_FIELD)

    def _read_capacity_10(self, cdb: bytes, _: DataOut) -> Step:
        last = max(self.blocks - 1, 0)
        return Reply(min(last, 0xFFFFFFFF).to_bytes(4, "big") + BLOCK.to_bytes(4, "big"))

    def _service_action_in(self, cdb: bytes, _: DataOut) -> Step:
        if cdb[1] & 0x1F != _READ_CAPACITY_16:
            raise CheckCondition(Sense.INVALID_FIELD)
        provisioning = 0
        if self.features.discard and not self.features.read_only:
            provisioning = 0x80 | (0x40 if self.features.discard_zeroes else 0)
        data = max(self.blocks - 1, 0).to_bytes(8, "big") + BLOCK.to_bytes(4, "big")
        # 2**3 logical blocks to a physical one of 4096 bytes.
        data += bytes((0, 3, provisioning, 0)) + bytes(16)
        return Reply(data[: int.from_bytes(cdb[10:14], "big")])

    def _synchronize(self, cdb: bytes, _: DataOut) -> Step:
        self.need_medium()
        extent = extent_10(cdb) if cdb[0] == Op.SYNCHRONIZE_CACHE_10 else extent_16(cdb)
        if extent.lba + extent.blocks > self.blocks:
            raise CheckCondition(Sense.OUT_OF_RANGE)
        return Flush()

    def _mode_sense(self, cdb: bytes, _: DataOut) -> Step:
        parameter = modes.DPO_FUA | (modes.WRITE_PROTECT if self.features.read_only else 0)
        return Reply(modes.sense(cdb, self._pages, parameter, (self.blocks, BLOCK)))

    def _mode_select(self, cdb: bytes, data_out: DataOut) -> Step:
        length = cdb[4] if cdb[0] == Op.MODE_SELECT_6 else int.from_bytes(cdb[7:9], "big")
        if not cdb[1] & 0x10 or cdb[1] & 0x01:
            # Neither pages of a vendor's form nor saved ones.
            raise CheckCondition(Sense.INVALID_FIELD)
        modes.select(cdb, data_out(length), self._pages)
        return Reply()

    def _unmap(self, cdb: bytes, data_out: DataOut) -> Step:
        if not self.features.discard:
            raise CheckCondition(Sense.INVALID_OPCODE)
        self._writable()
        self.need_medium()
        if cdb[1] & 1:
            raise CheckCondition(Sense.INVALID_FIELD)
        length = int.from_bytes(cdb[7:9], "big")
        if not length:
            return Reply()
        data = data_out(length)
        if len(data) < _UNMAP_HEAD:
            raise CheckCondition(Sense.PARAMETER_LENGTH)
        size = int.from_bytes(data[2:4], "big")
        if size > len(data) - _UNMAP_HEAD:
            raise CheckCondition(Sense.PARAMETER_LENGTH)
        count = size // _UNMAP_ENTRY
        if count > inquiry.MAX_UNMAP_RANGES:
            raise CheckCondition(Sense.INVALID_PARAMETERS)
        ranges: list[tuple[int, int]] = []
        total = 0
        for start in range(_UNMAP_HEAD, _UNMAP_HEAD + count * _UNMAP_ENTRY, _UNMAP_ENTRY):
            entry = data[start : start + _UNMAP_ENTRY]
            extent = Extent(int.from_bytes(entry[:8], "big"), int.from_bytes(entry[8:12], "big"))
            total += extent.blocks
            offset, span = self._range(extent)
            if span:
                ranges.append((offset, span))
        if total > inquiry.MAX_UNMAP_BLOCKS:
            raise CheckCondition(Sense.INVALID_PARAMETERS)
        return Unmap(tuple(ranges)) if ranges else Reply()

    def _write_same(self, cdb: bytes, data_out: DataOut) -> Step:
        self._writable()
        long = cdb[0] == Op.WRITE_SAME_16
        unmap = bool(cdb[1] & _UNMAP_BIT)
        if cdb[1] >> 5 or cdb[1] & _ANCHOR_BIT or (unmap and not self.features.discard):
            raise CheckCondition(Sense.INVALID_FIELD)
        extent = extent_16(cdb) if long else extent_10(cdb)
        if not 0 < extent.blocks <= inquiry.MAX_SAME_BLOCKS:
            raise CheckCondition(Sense.INVALID_FIELD)
        offset, length = self._range(extent)
        block = bytes(BLOCK) if long and cdb[1] & _NDOB else data_out(BLOCK)
        if len(block) != BLOCK:
            raise CheckCondition(Sense.PARAMETER_LENGTH)
        if any(block):
            return Fill(offset, length, block)
        return Zero(offset, length, unmap)
