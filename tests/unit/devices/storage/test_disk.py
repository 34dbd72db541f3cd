# SPDX-License-Identifier: MIT
"""The SCSI engine of disks: what each command becomes, and the sense of what is refused."""

from __future__ import annotations

import contextlib
import struct
import uuid

import pytest
from hypothesis import given
from hypothesis import strategies as st

from emulator.devices.storage.disk import Disk, Features
from emulator.devices.storage.inquiry import Identity
from emulator.devices.storage.scsi import CheckCondition, ReservationConflict, Sense
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
from tests.unit.devices.storage.rig import cdb10, cdb16

BLOCKS = 1 << 33
ID = uuid.UUID("11223344-5566-7788-99aa-bbccddeeff00")


def disk(**features: object) -> Disk:
    given: dict[str, object] = {"size": BLOCKS * 512, "discard": True, "discard_zeroes": True}
    identity = Identity(ID, "Virtual Disk", "SN1")
    return Disk(identity, lambda: [0, 5, 63], Features(**(given | features)))  # type: ignore[arg-type]


def do(unit: Disk, cdb: bytes, out: bytes = b"", nexus: str = "a") -> Step:
    return unit.execute(nexus, cdb, lambda most: out[:most])


def data(unit: Disk, cdb: bytes) -> bytes:
    step = do(unit, cdb)
    assert isinstance(step, Reply)
    return step.data


def refused(unit: Disk, cdb: bytes, out: bytes = b"") -> Sense:
    with pytest.raises(CheckCondition) as caught:
        do(unit, cdb, out)
    return caught.value.sense


def is_quick(unit: Disk) -> bool:
    return unit.quick


def cdb12(opcode: int, lba: int, blocks: int) -> bytes:
    return struct.pack(">BBIIBB", opcode, 0, lba, blocks, 0, 0)


@given(st.integers(0, 2**21 - 1), st.integers(0, 255))
def test_six_byte_transfers(lba: int, blocks: int) -> None:
    tail = lba.to_bytes(3, "big") + bytes((blocks, 0))
    length = (blocks or 256) * 512
    assert do(disk(), b"\x08" + tail) == Read(lba * 512, length)
    assert do(disk(), b"\x0a" + tail) == Write(lba * 512, length)


@given(st.integers(0, 2**32 - 1), st.integers(1, 2**16 - 1), st.booleans())
def test_longer_transfers(lba: int, blocks: int, fua: bool) -> None:
    flags = 0x08 if fua else 0
    offset, length = lba * 512, blocks * 512
    unit = disk()
    assert do(unit, cdb10(0x28, lba, blocks)) == Read(offset, length)
    assert do(unit, cdb12(0xA8, lba, blocks)) == Read(offset, length)
    assert do(unit, cdb16(0x88, lba, blocks)) == Read(offset, length)
    assert do(unit, cdb10(0x2A, lba, blocks, flags)) == Write(offset, length, fua)
    assert do(unit, cdb12(0xAA, lba, blocks)) == Write(offset, length)
    assert do(unit, cdb16(0x8A, lba, blocks, flags)) == Write(offset, length, fua)
    assert do(unit, cdb10(0x2E, lba, blocks)) == Write(offset, length, True)
    assert do(unit, cdb10(0x2F, lba, blocks)) == Check(offset, length)


@pytest.mark.parametrize("opcode", [0x88, 0x8A, 0x8F])
def test_the_end_of_the_disk(opcode: int) -> None:
    unit = disk()
    assert not isinstance(do(unit, cdb16(opcode, BLOCKS - 1, 1)), Reply)
    assert do(unit, cdb16(opcode, BLOCKS, 0)) == Reply()
    for lba, blocks in ((BLOCKS, 1), (BLOCKS - 1, 2), (2**64 - 1, 1), (BLOCKS + 1, 0)):
        assert refused(unit, cdb16(opcode, lba, blocks)) is Sense.OUT_OF_RANGE


def test_protection_information_is_refused() -> None:
    assert refused(disk(), cdb10(0x28, 0, 1, 0x20)) is Sense.INVALID_FIELD
    assert refused(disk(), cdb16(0x8A, 0, 1, 0x20)) is Sense.INVALID_FIELD


def test_capacity() -> None:
    assert data(disk(), cdb10(0x25)) == bytes.fromhex("ffffffff00000200")
    assert data(disk(size=1 << 20), cdb10(0x25)) == struct.pack(">II", 2047, 512)
    long = data(disk(), bytes([0x9E, 0x10]) + bytes(8) + (32).to_bytes(4, "big") + bytes(2))
    assert struct.unpack(">QIBBBB16x", long) == (BLOCKS - 1, 512, 0, 3, 0xC0, 0)
    assert refused(disk(), bytes([0x9E, 0x11]) + bytes(14)) is Sense.INVALID_FIELD


def test_inquiry() -> None:
    unit = disk()
    standard = data(unit, bytes([0x12, 0, 0, 0, 255, 0]))
    assert standard[0] == 0
    assert standard[8:32] == b"Msft    Virtual Disk    "
    assert standard[4] + 5 == len(standard) == 36
    assert data(unit, bytes([0x12, 0, 0, 0, 5, 0])) == standard[:5]
    pages = data(unit, bytes([0x12, 1, 0, 0, 255, 0]))
    assert pages == bytes([0, 0, 0, 6, 0x00, 0x80, 0x83, 0xB0, 0xB1, 0xB2])
    for page in pages[4:]:
        found = data(unit, bytes([0x12, 1, page, 0, 255, 0]))
        assert found[:2] == bytes([0, page])
        assert len(found) == 4 + int.from_bytes(found[2:4], "big")
    assert data(unit, bytes([0x12, 1, 0x80, 0, 255, 0]))[4:] == b"SN1"
    ids = data(unit, bytes([0x12, 1, 0x83, 0, 255, 0]))[4:]
    assert ids[:12] == bytes([1, 3, 0, 8, 0x31]) + ID.bytes[1:8]
    assert ids[12:16] == bytes([2, 1, 0, 40])
    assert ids[16:] == b"Msft    " + ID.hex.encode()
    limits = data(unit, bytes([0x12, 1, 0xB0, 0, 255, 0]))
    assert int.from_bytes(limits[8:12], "big") == 0x40000 // 512
    assert data(unit, bytes([0x12, 1, 0xB1, 0, 255, 0]))[4:6] == b"\0\1"
    assert data(unit, bytes([0x12, 1, 0xB2, 0, 255, 0]))[5] == 0xE4
    assert data(disk(discard=False), bytes([0x12, 1, 0xB2, 0, 255, 0]))[5] == 0
    assert refused(unit, bytes([0x12, 0, 0x80, 0, 255, 0])) is Sense.INVALID_FIELD
    assert refused(unit, bytes([0x12, 1, 0xC0, 0, 255, 0])) is Sense.INVALID_FIELD


def test_report_luns() -> None:
    found = data(disk(), bytes([0xA0, 0, 0, 0, 0, 0, 0, 0, 1, 0, 0, 0]))
    assert found == struct.pack(">I4xQQQ", 24, 0, 5 << 48, 63 << 48)
    assert refused(disk(), bytes([0xA0] + [0] * 11)) is Sense.INVALID_FIELD


def test_mode_sense() -> None:
    unit = disk(read_only=True)
    short = data(unit, bytes([0x1A, 0, 0x3F, 0, 255, 0]))
    assert short[0] == len(short) - 1
    assert short[2] == 0x90
    long = data(unit, bytes([0x5A, 0x08, 0x08, 0, 0, 0, 0, 1, 0, 0]))
    assert long[:8] == bytes([0, 26, 0, 0x90, 0, 0, 0, 0])
    assert long[8:11] == bytes([0x08, 18, 0x04])
    assert data(disk(), bytes([0x1A, 8, 0x08, 0, 255, 0]))[2] == 0x10
    # Nothing is changeable, nothing is saved, and there is no page 2.
    assert data(unit, bytes([0x1A, 8, 0x48, 0, 255, 0]))[6:] == bytes(18)
    assert refused(unit, bytes([0x1A, 0, 0xC8, 0, 255, 0])) is Sense.SAVING_NOT_SUPPORTED
    assert refused(unit, bytes([0x1A, 0, 0x02, 0, 255, 0])) is Sense.INVALID_FIELD


def test_mode_select_takes_what_is_so_already() -> None:
    unit = disk()
    page = data(unit, bytes([0x1A, 8, 0x08, 0, 255, 0]))[4:]
    assert do(unit, bytes([0x15, 0x10, 0, 0, 24, 0]), bytes(4) + page) == Reply()
    changed = bytes(4) + page[:2] + b"\0" + page[3:]
    assert refused(unit, bytes([0x15, 0x10, 0, 0, 24, 0]), changed) is Sense.INVALID_PARAMETERS
    assert refused(unit, bytes([0x15, 0x10, 0, 0, 24, 0]), bytes(4) + page[:9]) is (
        Sense.INVALID_PARAMETERS
    )
    assert refused(unit, bytes([0x15, 0x11, 0, 0, 24, 0]), bytes(24)) is Sense.INVALID_FIELD


@given(st.binary(max_size=64))
def test_mode_select_survives_anything(out: bytes) -> None:
    with contextlib.suppress(CheckCondition):
        assert do(disk(), bytes([0x55, 0x10, 0, 0, 0, 0, 0, 0, 64, 0]), out) == Reply()


def unmap(*ranges: tuple[int, int]) -> tuple[bytes, bytes]:
    body = b"".join(struct.pack(">QI4x", *each) for each in ranges)
    out = struct.pack(">HH4x", 6 + len(body), len(body)) + body
    return struct.pack(">BB5xHx", 0x42, 0, len(out)), out


def test_unmap() -> None:
    assert do(disk(), *unmap((8, 16), (0, 0), (64, 1))) == Unmap(((4096, 8192), (32768, 512)))
    assert do(disk(), *unmap()) == Reply()
    assert do(disk(), bytes([0x42] + [0] * 9)) == Reply()
    assert refused(disk(), *unmap((BLOCKS, 1))) is Sense.OUT_OF_RANGE
    assert refused(disk(), *unmap((0, 0x400001))) is Sense.INVALID_PARAMETERS
    assert refused(disk(), *unmap(*[(0, 1)] * 257)) is Sense.INVALID_PARAMETERS
    assert refused(disk(discard=False), *unmap((0, 1))) is Sense.INVALID_OPCODE
    assert refused(disk(read_only=True), *unmap((0, 1))) is Sense.WRITE_PROTECTED
    cdb, out = unmap((0, 1))
    assert refused(disk(), cdb, out[:-1]) is Sense.PARAMETER_LENGTH
    assert refused(disk(), cdb, out[:7]) is Sense.PARAMETER_LENGTH


def test_write_same() -> None:
    unit = disk()
    assert do(unit, cdb16(0x93, 8, 4), bytes(512)) == Zero(4096, 2048, False)
    assert do(unit, cdb16(0x93, 8, 4, 0x08), bytes(512)) == Zero(4096, 2048, True)
    assert do(unit, cdb16(0x93, 8, 4, 0x09)) == Zero(4096, 2048, True)
    assert do(unit, cdb10(0x41, 8, 4), b"x" * 512) == Fill(4096, 2048, b"x" * 512)
    assert refused(unit, cdb16(0x93, 0, 0), bytes(512)) is Sense.INVALID_FIELD
    assert refused(unit, cdb16(0x93, 0, 0x8001), bytes(512)) is Sense.INVALID_FIELD
    assert refused(unit, cdb16(0x93, 0, 1), bytes(511)) is Sense.PARAMETER_LENGTH
    assert refused(unit, cdb16(0x93, BLOCKS, 1), bytes(512)) is Sense.OUT_OF_RANGE
    assert refused(disk(discard=False), cdb16(0x93, 0, 1, 8), bytes(512)) is Sense.INVALID_FIELD


def test_verify_and_flush() -> None:
    unit = disk()
    assert do(unit, cdb10(0x2F, 1, 2)) == Check(512, 1024)
    assert do(unit, cdb10(0x2F, 1, 1, 0x02), b"v" * 512) == Compare(512, b"v" * 512)
    assert refused(unit, cdb10(0x2F, 1, 1, 0x02), b"v") is Sense.PARAMETER_LENGTH
    assert refused(unit, cdb10(0x2F, 1, 1, 0x06), b"v") is Sense.INVALID_FIELD
    assert do(unit, cdb10(0x35)) == Flush()
    assert do(unit, cdb16(0x91, 0, 100)) == Flush()
    assert refused(unit, cdb16(0x91, BLOCKS, 1)) is Sense.OUT_OF_RANGE


@pytest.mark.parametrize("cdb", [cdb10(0x2A, 0, 1), cdb16(0x8A, 0, 1), cdb10(0x2E, 0, 1)])
def test_a_read_only_disk_is_write_protected(cdb: bytes) -> None:
    assert refused(disk(read_only=True), cdb, bytes(512)) is Sense.WRITE_PROTECTED


def test_a_stopped_disk_is_not_ready_until_it_is_started() -> None:
    unit = disk()
    assert do(unit, bytes([0x1B, 0, 0, 0, 0, 0])) == Reply()
    assert not is_quick(unit)
    assert refused(unit, bytes(6)) is Sense.STOPPED
    assert refused(unit, cdb10(0x28, 0, 1)) is Sense.STOPPED
    assert do(unit, bytes([0x1B, 0, 0, 0, 1, 0])) == Reply()
    assert is_quick(unit)
    assert do(unit, bytes(6)) == Reply()
    assert refused(unit, bytes([0x1B, 0, 0, 0, 2, 0])) is Sense.INVALID_FIELD


def test_an_attention_is_told_once_and_not_to_those_who_may_not_be_held_up() -> None:
    unit = disk()
    unit.resize(Features(1 << 20))
    unit.attention(Sense.CAPACITY_CHANGED)
    assert not is_quick(unit)
    assert len(data(unit, bytes([0x12, 0, 0, 0, 36, 0]))) == 36
    assert refused(unit, cdb10(0x28, 0, 1)) is Sense.CAPACITY_CHANGED
    assert is_quick(unit)
    assert do(unit, cdb10(0x28, 2047, 1)) == Read(2047 * 512, 512)
    unit.reset()
    sense = data(unit, bytes([0x03, 0, 0, 0, 18, 0]))
    assert (sense[0], sense[2], sense[12], sense[13]) == (0x70, 6, 0x29, 3)
    assert data(unit, bytes([0x03, 1, 0, 0, 18, 0])) == bytes([0x72, 0, 0, 0, 0, 0, 0, 0])


@given(st.binary(min_size=16, max_size=16), st.binary(max_size=600), st.booleans())
def test_no_command_breaks_the_engine(cdb: bytes, out: bytes, read_only: bool) -> None:
    unit = disk(size=1 << 20, read_only=read_only)
    try:
        step = do(unit, cdb, out)
    except (CheckCondition, ReservationConflict):
        return
    match step:
        case Read() | Write() | Check() | Zero() | Fill():
            assert 0 <= step.offset < step.offset + step.length <= 1 << 20
            assert not (read_only and isinstance(step, Write | Zero | Fill))
        case Unmap():
            assert not read_only
            assert all(offset + length <= 1 << 20 for offset, length in step.ranges)
        case Compare():
            assert step.offset + len(step.data) <= 1 << 20
        case Reply() | Flush():
            pass


def reserve(action: int, kind: int = 0) -> bytes:
    return bytes([0x5F, action, kind, 0, 0, 0, 0, 0, 24, 0])


def keys(key: int, new: int = 0, flags: int = 0) -> bytes:
    return struct.pack(">QQ4xB3x", key, new, flags)


def test_reservations_of_two_initiators() -> None:
    unit = disk()
    for nexus, key in (("a", 1), ("b", 2)):
        assert do(unit, reserve(0), keys(0, key), nexus) == Reply()
    with pytest.raises(ReservationConflict):
        do(unit, reserve(0), keys(7, 9), "a")
    assert do(unit, reserve(1, 1), keys(1), "a") == Reply()
    assert not is_quick(unit)
    # Write exclusive: the other may read and not write.
    assert isinstance(do(unit, cdb10(0x28, 0, 1), nexus="b"), Read)
    with pytest.raises(ReservationConflict):
        do(unit, cdb10(0x2A, 0, 1), bytes(512), "b")
    with pytest.raises(ReservationConflict):
        do(unit, reserve(1, 1), keys(2), "b")
    assert isinstance(do(unit, cdb10(0x2A, 0, 1), bytes(512), "a"), Write)
    held = data(unit, bytes([0x5E, 1, 0, 0, 0, 0, 0, 1, 0, 0]))
    assert held == struct.pack(">IIQ4xBBH", 2, 16, 1, 0, 1, 0)
    listed = data(unit, bytes([0x5E, 0, 0, 0, 0, 0, 0, 1, 0, 0]))
    assert listed == struct.pack(">IIQQ", 2, 16, 1, 2)
    # The other takes it over, for registrants only; the first is none any more.
    assert do(unit, reserve(4, 6), keys(2, 1), "b") == Reply()
    with pytest.raises(ReservationConflict):
        do(unit, cdb10(0x28, 0, 1), nexus="a")
    assert do(unit, reserve(2, 6), keys(2), "b") == Reply()
    assert is_quick(unit)
    saved = unit.reservations.saved()
    other = disk()
    other.reservations.restore(saved)
    assert other.reservations.saved() == saved
    assert do(unit, reserve(3), keys(2), "b") == Reply()
    assert data(unit, bytes([0x5E, 0, 0, 0, 0, 0, 0, 1, 0, 0]))[4:] == bytes(4)


def test_what_reservations_refuse() -> None:
    unit = disk()
    assert refused(unit, reserve(0), keys(0, 1)[:-1]) is Sense.PARAMETER_LENGTH
    assert refused(unit, reserve(0), keys(0, 1, 0x01)) is Sense.INVALID_PARAMETERS
    assert refused(unit, reserve(9), keys(0, 1)) is Sense.INVALID_FIELD
    do(unit, reserve(0), keys(0, 1))
    assert refused(unit, reserve(1, 2), keys(1)) is Sense.INVALID_FIELD
    assert refused(unit, bytes([0x5E, 7, 0, 0, 0, 0, 0, 1, 0, 0])) is Sense.INVALID_FIELD
    do(unit, reserve(1, 3), keys(1))
    assert refused(unit, reserve(2, 1), keys(1)) is Sense.INVALID_RELEASE
