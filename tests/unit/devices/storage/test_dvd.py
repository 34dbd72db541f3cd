# SPDX-License-Identifier: MIT
"""DVD drives: the multimedia commands, and a disc that comes and goes."""

from __future__ import annotations

import struct
from pathlib import Path

import pytest

from tests.unit.devices.storage.rig import Rig, cdb10

pytestmark = pytest.mark.asyncio

BLOCKS = 300
TUR, EJECT, LOAD = bytes(6), bytes([0x1B, 0, 0, 0, 2, 0]), bytes([0x1B, 0, 0, 0, 3, 0])
POLL = bytes([0x4A, 1, 0, 0, 0x10, 0, 0, 0, 8, 0])


@pytest.fixture
def iso(tmp_path: Path) -> Path:
    path = tmp_path / "disc.iso"
    path.write_bytes(bytes(range(256)) * 8 * BLOCKS)
    return path


async def drive(path: Path | None) -> Rig:
    lun = {"medium": "dvd"} | ({"path": str(path)} if path else {})
    return await Rig({"luns": [lun]}).start().initialise()


async def test_a_disc_is_read(iso: Path) -> None:
    rig = await drive(iso)
    assert (await rig.command(bytes([0x12, 0, 0, 0, 36, 0]), room=36)).data[:2] == b"\x05\x80"
    assert (await rig.command(TUR)).good
    capacity = (await rig.command(cdb10(0x25), room=8)).data
    assert struct.unpack(">II", capacity) == (BLOCKS - 1, 2048)
    found = await rig.command(cdb10(0x28, 7, 2), room=4096)
    assert found.good
    assert found.data == (bytes(range(256)) * 8) * 2
    read_12 = struct.pack(">BBIIBB", 0xA8, 0, 0, 1, 0, 0)
    assert (await rig.command(read_12, room=2048)).good
    assert (await rig.command(cdb10(0x28, BLOCKS - 1, 2), room=4096)).sense_codes == (5, 0x21, 0)
    assert (await rig.command(cdb10(0x2A, 0, 1), out=bytes(2048))).sense_codes == (5, 0x20, 0)
    rig.device.close()


async def test_contents_configuration_and_modes(iso: Path) -> None:
    rig = await drive(iso)
    toc = (await rig.command(bytes([0x43, 0, 0, 0, 0, 0, 0, 0, 100, 0]), room=100)).data
    assert toc == struct.pack(
        ">HBB BBBBI BBBBI", 18, 1, 1, 0, 0x14, 1, 0, 0, 0, 0x14, 0xAA, 0, BLOCKS
    )
    msf = (await rig.command(bytes([0x43, 2, 0, 0, 0, 0, 0, 0, 100, 0]), room=100)).data
    assert msf[8:12] == bytes([0, 0, 2, 0])
    assert msf[16:20] == bytes([0, 0, 6, 0])
    session = (await rig.command(bytes([0x43, 0, 1, 0, 0, 0, 0, 0, 100, 0]), room=100)).data
    assert session[:4] == bytes([0, 10, 1, 1])
    assert (await rig.command(bytes([0x43, 0, 5, 0, 0, 0, 0, 0, 9, 0]), room=9)).sense_codes == (
        5,
        0x24,
        0,
    )
    found = (await rig.command(bytes([0x46, 0, 0, 0, 0, 0, 0, 1, 0, 0]), room=256)).data
    assert int.from_bytes(found[:4], "big") == len(found) - 4
    assert found[6:8] == b"\x00\x08"
    page = (await rig.command(bytes([0x5A, 8, 0x2A, 0, 0, 0, 0, 0, 64, 0]), room=64)).data
    assert page[8] == 0x2A
    assert len(page) == 8 + 2 + page[9]
    information = (await rig.command(cdb10(0x51, 0, 34), room=34)).data
    assert information[2] & 3 == 2
    rig.device.close()


async def test_the_guest_locks_and_ejects(iso: Path) -> None:
    rig = await drive(iso)
    commands = rig.device.commands()
    assert (await rig.command(bytes([0x1E, 0, 0, 0, 1, 0]))).good
    assert (await rig.command(EJECT)).sense_codes == (5, 0x53, 2)
    assert await commands["eject"]({}) == {"ejected": False}
    event = (await rig.command(POLL, room=8)).data
    assert event == bytes([0, 6, 4, 0x10, 1, 2, 0, 0])
    # Over a restore, too.
    rig = await rig.restored()
    assert (await rig.command(EJECT)).sense_codes == (5, 0x53, 2)
    assert (await rig.command(bytes([0x1E, 0, 0, 0, 0, 0]))).good
    assert (await rig.command(EJECT)).good
    assert (await rig.command(TUR)).sense_codes == (2, 0x3A, 0)
    assert (await rig.command(cdb10(0x28, 0, 1), room=2048)).sense_codes == (2, 0x3A, 0)
    assert (await rig.command(POLL, room=8)).data[4:6] == bytes([3, 0])
    assert (await rig.command(LOAD)).good
    assert (await rig.command(TUR)).sense_codes == (2, 0x3A, 0)
    # The disc that was taken out is out in a restored machine.
    rig = await rig.restored()
    assert (await rig.command(TUR)).sense_codes == (2, 0x3A, 0)
    commands = rig.device.commands()
    await commands["insert"]({"path": str(iso)})
    assert (await rig.command(POLL, room=8)).sense_codes == (6, 0x28, 0)
    assert (await rig.command(POLL, room=8)).data[4:6] == bytes([2, 2])
    assert (await rig.command(cdb10(0x28, 0, 1), room=2048)).good
    assert await commands["eject"]({"force": True}) == {"ejected": True}
    rig.device.close()


async def test_events_are_only_polled() -> None:
    rig = await drive(None)
    assert (await rig.command(bytes([0x4A, 0, *POLL[2:]]), room=8)).sense_codes == (5, 0x24, 0)
    other = bytes([0x4A, 1, 0, 0, 0x02, 0, 0, 0, 8, 0])
    assert (await rig.command(other, room=8)).data == bytes([0, 2, 0x80, 0x10])
    assert (await rig.command(bytes([0x03, 0, 0, 0, 18, 0]), room=18)).data[2] == 2
