# SPDX-License-Identifier: MIT
"""The storage VSP with a model guest: initialisation, requests, sub-channels, resets."""

from __future__ import annotations

import asyncio
import struct
from pathlib import Path
from typing import Any

import pytest

from emulator.devices.storage import backend as backends
from emulator.devices.storage.rawfile import RawFile
from emulator.model.driver import GPA_DIRECT
from emulator.model.ring import build_packet, gpa_direct_header
from tests.unit.devices.storage.rig import (
    BEGIN,
    CREATE_SUBS,
    END,
    ENUMERATE_BUS,
    INVALID_DEVICE_STATE,
    PAGE,
    QUERY_PROPERTIES,
    QUERY_VERSION,
    RESET_BUS,
    RESET_LUN,
    Lane,
    Rig,
    cdb10,
    cdb16,
)

pytestmark = pytest.mark.asyncio

READ_10, WRITE_10, READ_16, WRITE_16, SYNC = 0x28, 0x2A, 0x88, 0x8A, 0x35
MIB = 1 << 20


@pytest.fixture
def disk(tmp_path: Path) -> Path:
    path = tmp_path / "disk.img"
    path.write_bytes(bytes(range(256)) * (MIB // 256))
    return path


def content(path: Path) -> bytes:
    return path.read_bytes()


def lun(path: Path, **more: Any) -> dict[str, Any]:
    return {"path": str(path), **more}


class Gate:
    """Holds every request of raw files until it is opened."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.held: list[tuple[Any, ...]] = []
        self.open = False
        write = RawFile.write

        def held(file: RawFile, *args: Any) -> None:
            if self.open:
                write(file, *args)
            else:
                self.held.append((write, file, *args))

        monkeypatch.setattr(RawFile, "write", held)
        monkeypatch.setattr(RawFile, "write_now", lambda *_: False)

    def let_go(self) -> None:
        self.open = True
        held, self.held = self.held, []
        for call, *args in held:
            call(*args)


@pytest.fixture
def gate(monkeypatch: pytest.MonkeyPatch) -> Gate:
    return Gate(monkeypatch)


async def test_a_guest_initialises_and_writes_and_reads(disk: Path) -> None:
    rig = await Rig({"luns": [lun(disk)]}).start().initialise()
    data = bytes(reversed(range(256))) * 16
    assert (await rig.command(cdb10(WRITE_10, 16, 8), out=data, offset=512)).good
    found = await rig.command(cdb16(READ_16, 16, 8), room=4096)
    assert found.good
    assert found.transferred == 4096
    assert found.data == data
    assert (await rig.command(cdb10(SYNC))).good
    assert content(disk)[16 * 512 : 24 * 512] == data
    rig.device.close()


@pytest.mark.parametrize("version", [0x0200, 0x0402, 0x0501, 0x0600, 0x0602])
async def test_every_version_is_negotiated(disk: Path, version: int) -> None:
    rig = Rig({"luns": [lun(disk)]}).start()
    size = 64 if version >= 0x0501 else 48
    assert (await rig.say(BEGIN, size=size))[0] == 0
    assert (await rig.say(QUERY_VERSION, struct.pack("<H", version), size=size))[0] == 0
    _, body = await rig.say(QUERY_PROPERTIES, size=size)
    _, subs, _, flags, most, _ = struct.unpack_from("<IHHIIQ", body)
    assert most == 0x40000
    assert (flags, subs) == ((1, 16) if version >= 0x0501 else (0, 0))
    assert (await rig.say(END, size=size))[0] == 0
    assert (await rig.device.commands()["negotiated"]({}))["version"] == {
        0x0200: "2.0",
        0x0402: "4.2",
        0x0501: "5.1",
        0x0600: "6.0",
        0x0602: "6.2",
    }[version]


async def test_a_version_that_is_not_known_can_be_followed_by_an_older_one(disk: Path) -> None:
    rig = Rig({"luns": [lun(disk)], "max_version": "6.0"}).start()
    await rig.say(BEGIN)
    for version in (0x0603, 0x0602, 0x0601):
        status, _ = await rig.say(QUERY_VERSION, struct.pack("<H", version))
        assert status == 0xC0000059
    assert (await rig.say(QUERY_VERSION, struct.pack("<H", 0x0600)))[0] == 0


async def test_what_comes_out_of_order_is_refused(disk: Path) -> None:
    rig = Rig({"luns": [lun(disk)]}).start()
    for operation in (END, QUERY_PROPERTIES, QUERY_VERSION, CREATE_SUBS, 2, 11, 12, 14, 77):
        assert (await rig.say(operation))[0] == INVALID_DEVICE_STATE
    assert (await rig.command(bytes(6))).status == INVALID_DEVICE_STATE
    await rig.initialise()
    for operation in (BEGIN, END, QUERY_PROPERTIES, QUERY_VERSION):
        assert (await rig.say(operation))[0] == INVALID_DEVICE_STATE
    assert (await rig.command(bytes(6))).good


@pytest.mark.parametrize("after_end", [False, True])
async def test_sub_channels_carry_requests(disk: Path, after_end: bool) -> None:
    rig = Rig({"luns": [lun(disk)], "sub_channels": 3}).start()
    await rig.say(BEGIN)
    await rig.say(QUERY_VERSION, struct.pack("<H", 0x0602))
    await rig.say(QUERY_PROPERTIES)
    if after_end:
        await rig.say(END)
    assert (await rig.say(CREATE_SUBS, struct.pack("<H", 4)))[0] == 0xC000000D
    assert (await rig.say(CREATE_SUBS, struct.pack("<H", 0)))[0] == 0xC000000D
    assert (await rig.say(CREATE_SUBS, struct.pack("<H", 2)))[0] == 0
    assert (await rig.say(CREATE_SUBS, struct.pack("<H", 2)))[0] == INVALID_DEVICE_STATE
    if not after_end:
        await rig.say(END)
    assert [offer.subchannel_index for offer in rig.port.offers] == [0, 1, 2]
    for index in (1, 2):
        rig.lanes.append(Lane(rig, index))
        rig.lanes[index].open()
        assert (await rig.say(BEGIN, lane=index))[0] == INVALID_DEVICE_STATE
        found = await rig.command(cdb10(READ_10, 0, 1), room=512, lane=index)
        assert found.data == content(disk)[:512]
    again = await rig.restored()
    for index in (0, 1, 2):
        assert (await again.command(cdb10(READ_10, 0, 1), room=512, lane=index)).good
    again.device.close()


async def test_a_guest_that_reopens_begins_anew(disk: Path) -> None:
    rig = await Rig({"luns": [lun(disk)]}).start().initialise()
    await rig.say(CREATE_SUBS, struct.pack("<H", 1))
    closed = asyncio.Event()
    rig.port.channels[0].port_closed(closed.set)
    await closed.wait()
    rig.lanes = [Lane(rig, 0)]
    rig.lanes[0].open()
    assert (await rig.command(bytes(6))).status == INVALID_DEVICE_STATE
    await rig.initialise(0x0501)
    assert (await rig.command(bytes(6))).good


async def test_nobody_is_at_a_lun_that_is_not_there(disk: Path) -> None:
    rig = await Rig({"luns": [lun(disk, lun=3)]}).start().initialise()
    for where, status in (
        ({"lun": 0}, 0x20),
        ({"lun": 200}, 0x20),
        # Linux would take away LUN 3 of path 0 if it were told INVALID_LUN.
        ({"lun": 3, "path": 1}, 0x21),
    ):
        found = await rig.command(bytes([0x12, 0, 0, 0, 36, 0]), room=36, **where)
        assert (found.srb_status, found.status) == (status, 0xC00000C0)
        assert (len(found.data), found.data[0]) == (36, 0x7F)
        assert (await rig.command(bytes(6), **where)).srb_status == status
        report = bytes([0xA0, 0, 0, 0, 0, 0, 0, 0, 1, 0, 0, 0])
        listed = await rig.command(report, room=256, **where)
        assert listed.good
        assert listed.data[:4] == (0 if "path" in where else 8).to_bytes(4, "big")
    assert (await rig.command(bytes(6), lun=3)).good


async def test_a_buffer_of_another_length_is_over_or_underrun(disk: Path) -> None:
    rig = await Rig({"luns": [lun(disk)]}).start().initialise()
    # More room than data: all the data, and how much that was.
    found = await rig.command(cdb10(READ_10, 2, 1), room=4096)
    assert (found.good, found.transferred) == (True, 512)
    # Less room than data.
    found = await rig.command(cdb10(READ_10, 2, 4), room=512)
    assert (found.srb_status, found.status, found.transferred) == (0x12, 0x80000005, 512)
    # A transfer length below that of the ranges counts.
    found = await rig.command(cdb10(READ_10, 2, 2), room=1024, transfer=512)
    assert (found.srb_status, found.transferred) == (0x12, 512)
    # A write that is not whole is not done at all.
    before = content(disk)
    found = await rig.command(cdb10(WRITE_10, 0, 4), out=bytes(512))
    assert (found.srb_status, found.transferred) == (0x12, 0)
    assert (await rig.command(cdb10(WRITE_10, 0, 4))).srb_status == 0x12
    assert (await rig.command(cdb10(WRITE_10, 0, 1), room=512)).srb_status == 0x12
    assert content(disk) == before
    rig.device.close()


async def test_a_buffer_that_is_no_memory_is_an_error_and_the_channel_goes_on(disk: Path) -> None:
    rig = await Rig({"luns": [lun(disk)]}).start().initialise()
    srb = struct.pack(
        "<HBBBBBBBBBBI16s", 52, 0, 0, 0, 0, 0, 0, 10, 20, 1, 0, PAGE, cdb10(READ_10, 0, 8)
    )
    payload = (struct.pack("<III", 3, 1, 0) + srb).ljust(64, b"\0")
    header = gpa_direct_header((PAGE, 0, [1 << 30]))
    rig.lanes[0].ends.put(build_packet(GPA_DIRECT, 999, payload, header=header, flags=1))
    found = rig.result(await rig.answer(999), [])
    assert (found.srb_status, found.status) == (0x06, 0xC0000185)
    assert (await rig.command(bytes(6))).good


async def test_a_command_that_is_too_short_is_refused(disk: Path) -> None:
    rig = await Rig({"luns": [lun(disk)]}).start().initialise()
    for cdb in (b"", bytes(5), b"\x28" + bytes(8), b"\x88" + bytes(14)):
        assert (await rig.command(cdb)).srb_status == 0x06
    assert (await rig.command(b"\xc1")).sense_codes == (5, 0x20, 0)


async def test_a_packet_that_is_too_short_stops_the_channel(disk: Path) -> None:
    rig = await Rig({"luns": [lun(disk)]}).start().initialise()
    assert rig.lanes[0].ends.request(5, bytes(8))
    assert "no VSTOR header" in str(rig.port.channels[0].fault)


async def test_a_reset_waits_for_what_is_under_way_and_later_writes_wait_for_it(
    disk: Path, gate: Gate
) -> None:
    rig = await Rig({"luns": [lun(disk)]}).start().initialise()
    old, _ = rig.begin(cdb10(WRITE_10, 0, 1), out=b"o" * 512)
    reset = 0
    for operation in (RESET_LUN, RESET_BUS):
        reset = next(rig._ids)
        rig.lanes[0].ends.request(reset, struct.pack("<III", operation, 1, 0) + bytes(52))
    new, _ = rig.begin(cdb10(WRITE_10, 0, 1), out=b"n" * 512)
    other, _ = rig.begin(cdb10(READ_10, 8, 1), room=512)
    assert not any(rig.answered(number) for number in (old, reset, new, other))
    assert len(gate.held) == 1
    gate.let_go()
    assert struct.unpack_from("<I", await rig.answer(old), 8)[0] == 0
    assert struct.unpack_from("<I", await rig.answer(reset), 8)[0] == 0
    # The first command after the reset is told of it, and not carried out.
    first = rig.result(await rig.answer(new), [])
    assert first.sense_codes == (6, 0x29, 3)
    await rig.answer(other)
    assert (await rig.command(cdb10(WRITE_10, 0, 1), out=b"n" * 512)).good
    assert content(disk)[:512] == b"n" * 512
    rig.device.close()


async def test_a_lun_is_pulled_when_what_is_under_way_has_ended(disk: Path, gate: Gate) -> None:
    rig = await Rig({"luns": [lun(disk), lun(disk, lun=1)]}).start().initialise()
    write, _ = rig.begin(cdb10(WRITE_10, 0, 1), out=b"w" * 512)
    reset = next(rig._ids)
    rig.lanes[0].ends.request(reset, struct.pack("<III", RESET_LUN, 1, 0) + bytes(52))
    # The first of them is told of the reset.
    behind = [rig.begin(cdb10(READ_10, 0, 1), room=512)[0] for _ in range(2)]
    device: Any = rig.device
    pulled = asyncio.Event()
    device.controller.pull(0, pulled.set)
    assert (await rig.command(cdb10(READ_10, 0, 1), room=512)).srb_status == 0x20
    assert (await rig.command(cdb10(READ_10, 0, 1), room=512, lun=1)).good
    assert not pulled.is_set()
    gate.let_go()
    assert rig.result(await rig.answer(write), []).good
    assert rig.result(await rig.answer(behind[0]), []).sense_codes == (6, 0x29, 3)
    assert rig.result(await rig.answer(behind[1]), []).srb_status == 0x20
    await pulled.wait()
    assert content(disk)[:512] == b"w" * 512
    rig.device.close()


async def test_a_pause_waits_for_the_disk_and_says_for_what(
    disk: Path, gate: Gate, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("emulator.devices.storage.device.SLOW_SECONDS", 0)
    rig = await Rig({"luns": [lun(disk)]}).start().initialise()
    number, _ = rig.begin(cdb10(WRITE_10, 2, 1), out=b"w" * 512)
    drained = rig.pause()
    assert not drained.is_set()
    (held,) = rig.device.pause_waits_for()
    assert held.endswith(": LUN 0: WRITE_10 of 512 bytes at 1024")
    told = asyncio.Event()
    asyncio.get_running_loop().call_later(0, told.set)
    await told.wait()
    assert "the stop waits for LUN 0: WRITE_10 of 512 bytes at 1024" in caplog.text
    # The guest runs on, and its write is answered.
    rig.device.resume()
    gate.let_go()
    assert rig.result(await rig.answer(number), []).good
    assert (await rig.command(bytes(6))).good
    rig.device.close()


async def test_a_restore_keeps_what_was_agreed_and_executes_nothing_twice(
    disk: Path, gate: Gate
) -> None:
    rig = await Rig({"luns": [lun(disk)]}).start().initialise(0x0600)
    numbers = [rig.begin(cdb10(WRITE_10, n, 1), out=bytes([n]) * 512)[0] for n in range(1, 9)]
    drained = rig.pause()
    unread = [rig.begin(cdb10(WRITE_10, n, 1), out=bytes([n]) * 512)[0] for n in range(9, 12)]
    assert not drained.is_set()
    assert len(gate.held) == len(numbers)
    gate.let_go()
    await drained.wait()
    found = content(disk)
    assert all(found[n * 512 : n * 512 + 512] == bytes([n]) * 512 for n in range(1, 9))
    assert found[9 * 512 : 10 * 512] != bytes([9]) * 512
    again = await rig.restored()
    for number in (*numbers, *unread):
        assert again.result(await again.answer(number), []).good
    found = content(disk)
    assert all(found[n * 512 : n * 512 + 512] == bytes([n]) * 512 for n in range(1, 12))
    assert (await again.device.commands()["negotiated"]({}))["version"] == "6.0"
    again.device.close()


async def test_a_lun_that_is_plugged_pulled_or_resized_is_told(disk: Path, tmp_path: Path) -> None:
    rig = await Rig({"luns": [lun(disk)]}).start().initialise()
    commands = rig.device.commands()
    other = tmp_path / "other.img"
    other.write_bytes(bytes(2 * MIB))
    await commands["attach"]({"lun": 7, "path": str(other)})
    assert rig.answered(0) is False
    assert rig.notices == [ENUMERATE_BUS]
    found = await rig.command(bytes([0xA0, 0, 0, 0, 0, 0, 0, 0, 1, 0, 0, 0]), room=256)
    assert found.data[:4] == (16).to_bytes(4, "big")
    assert [found.data[8 + 1], found.data[16 + 1]] == [0, 7]
    with other.open("r+b") as file:
        file.truncate(3 * MIB)
    assert (await commands["resize"]({"lun": 7}))["size"] == 3 * MIB
    assert (await rig.command(bytes(6), lun=7)).sense_codes == (6, 0x2A, 9)
    found = await rig.command(cdb10(0x25), room=8, lun=7)
    assert int.from_bytes(found.data[:4], "big") == 3 * MIB // 512 - 1
    # What was plugged while the guest ran is there after a restore, too.
    again = await rig.restored()
    assert (await again.command(cdb10(READ_10, 3 * MIB // 512 - 1, 1), room=512, lun=7)).good
    await again.device.commands()["detach"]({"lun": 7})
    assert (await again.command(bytes(6), lun=7)).srb_status == 0x20
    assert again.notices == [ENUMERATE_BUS] * 3
    last = await again.restored()
    assert (await last.command(bytes(6), lun=7)).srb_status == 0x20
    last.device.close()


async def test_a_fault_of_the_disk_is_a_medium_error(
    disk: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    rig = await Rig({"luns": [lun(disk)]}).start().initialise()

    def broken(*args: Any) -> None:
        asyncio.get_running_loop().call_soon(args[-1], OSError(5, "Input/output error"))

    monkeypatch.setattr(RawFile, "write", broken)
    monkeypatch.setattr(RawFile, "write_now", lambda *_: False)
    monkeypatch.setattr(RawFile, "read", broken)
    monkeypatch.setattr(RawFile, "read_now", lambda *_: False)
    for how in ({"out": bytes(512)}, {"out": bytes(512), "offset": 100}):
        assert (await rig.command(cdb10(WRITE_10, 0, 1), **how)).sense_codes == (3, 0x0C, 0)
    assert (await rig.command(cdb10(READ_10, 0, 1), room=512)).sense_codes == (3, 0x11, 0)
    assert (await rig.command(cdb10(READ_10, 0, 1), room=1024)).sense_codes == (3, 0x11, 0)
    rig.device.close()


async def test_the_null_backend_keeps_nothing() -> None:
    rig = await Rig({"luns": [{"null_size": 1 << 40}]}).start().initialise()
    assert (await rig.command(cdb16(WRITE_16, (1 << 31) - 8, 8), out=bytes(4096))).good
    found = await rig.command(cdb16(READ_16, 8, 8), room=4096)
    assert found.data == b"\xee" * 4096
    for cdb in (cdb10(SYNC), cdb10(WRITE_10, 0, 1, 0x08)):
        how: dict[str, Any] = {"out": bytes(512)} if cdb[0] == WRITE_10 else {}
        assert (await rig.command(cdb, **how)).good
    assert isinstance(rig.device.controller.luns[0].backend, backends.NullBackend)  # type: ignore[attr-defined]
