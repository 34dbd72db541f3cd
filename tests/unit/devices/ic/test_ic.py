# SPDX-License-Identifier: MIT
"""The integration services with a model guest: negotiation, requests, saving, bad guests."""

from __future__ import annotations

import asyncio
import random
import struct
from pathlib import Path
from typing import Any

import pytest

from emulator.devices import DeviceStateError
from emulator.devices.ic import (
    FcopyDevice,
    HeartbeatDevice,
    KvpDevice,
    ShutdownDevice,
    TimesyncDevice,
    VssDevice,
)
from emulator.devices.ic.base import IcDevice
from emulator.devices.ic.consistent import frozen
from tests.unit.devices.ic.rig import FakeClock, IcRig, turns

pytestmark = pytest.mark.asyncio

Version = tuple[int, int]

OFFERED: dict[type[IcDevice], list[Version]] = {
    HeartbeatDevice: [(3, 0), (1, 0)],
    ShutdownDevice: [(3, 2), (3, 1), (3, 0), (1, 0)],
    TimesyncDevice: [(4, 0), (3, 0), (1, 0)],
    KvpDevice: [(5, 0), (4, 0), (3, 0)],
    VssDevice: [(7, 0), (6, 0), (5, 0), (4, 0)],
    FcopyDevice: [(1, 1)],
}


def begin(kind: type[IcDevice], version: Version, clock: FakeClock | None = None) -> IcRig:
    rig = IcRig(kind, clock).start()
    rig.negotiate(version)
    return rig


def command(rig: IcRig, verb: str, **arguments: Any) -> asyncio.Task[Any]:
    async def run() -> Any:
        return await rig.device.commands()[verb](arguments)

    return asyncio.create_task(run())


@pytest.mark.parametrize("kind", OFFERED)
async def test_negotiates_every_version(kind: type[IcDevice]) -> None:
    for version in OFFERED[kind]:
        for framework in ((3, 0), (1, 0)):
            rig = IcRig(kind).start()
            asked = rig.negotiate(version, framework)
            words = struct.unpack_from("<HHI", asked.body)
            assert words == (2, len(OFFERED[kind]), 0)
            pairs = list(struct.iter_unpack("<HH", asked.body[8:]))
            assert pairs == [(3, 0), (1, 0), *OFFERED[kind]]
            assert rig.device.version == version
            assert rig.device.framework == framework
            assert rig.device.about()["state"] == "ready"
            for message in rig.asked():
                assert (message.framework, message.version) == (framework, version)
                assert message.type == kind.ic_type


@pytest.mark.parametrize("kind", OFFERED)
async def test_a_guest_may_take_no_version(kind: type[IcDevice]) -> None:
    rig = IcRig(kind).start()
    rig.negotiate(None)
    assert rig.device.about()["state"] == "no common version"
    assert not rig.device.fault
    assert rig.asked() == []
    with pytest.raises(DeviceStateError, match="none of the versions"):
        rig.device.require_ready()


@pytest.mark.parametrize("kind", OFFERED)
async def test_the_negotiation_survives_a_save_and_is_not_repeated(kind: type[IcDevice]) -> None:
    rig = IcRig(kind).start()
    # The request is in the ring, unanswered.
    rig = rig.restored()
    rig.negotiate(OFFERED[kind][0])
    assert rig.device.version == OFFERED[kind][0]
    rig = rig.restored()
    assert rig.device.version == OFFERED[kind][0]
    assert all(message.type != 0 for message in rig.asked())
    assert rig.port.revoked == 0


async def test_another_guest_is_negotiated_with_anew() -> None:
    rig = begin(ShutdownDevice, (3, 0))
    closed: list[bool] = []
    rig.channel.port_closed(lambda: closed.append(True))
    assert rig.device.version is None
    rig.guest.reopen()
    rig.open()
    rig.negotiate((3, 2))
    assert rig.device.version == (3, 2)


@pytest.mark.parametrize(
    ("raw", "reason"),
    [
        (struct.pack("<II", 1, 4) + bytes(4), "a message of 4 bytes"),
        (struct.pack("<II", 1, 20) + bytes(10) + b"\xff\xff" + bytes(8), "the header says 65535"),
        (struct.pack("<II", 9, 20) + bytes(20), "pipe packet type 9"),
    ],
)
async def test_a_message_that_is_none_fails_the_channel(raw: bytes, reason: str) -> None:
    rig = IcRig(ShutdownDevice).start()
    rig.asked()
    rig.send(raw)
    assert reason in rig.device.fault
    with pytest.raises(DeviceStateError, match="has failed"):
        rig.device.require_ready()


@pytest.mark.parametrize("version", [(9, 9), (3, 3)])
async def test_a_version_that_was_not_offered_fails_the_channel(version: Version) -> None:
    rig = IcRig(ShutdownDevice).start()
    rig.negotiate(version)
    assert "not offered" in rig.device.fault


async def test_an_answer_that_nobody_waits_for_fails_the_channel() -> None:
    rig = begin(ShutdownDevice, (3, 2))
    task = command(rig, "shutdown")
    await turns()
    asked = rig.one()
    rig.send(asked.answer())
    await task
    rig.send(asked.answer())
    assert "nothing was asked" in rig.device.fault


async def test_a_failed_channel_fails_what_waits() -> None:
    rig = begin(ShutdownDevice, (3, 2))
    task = command(rig, "shutdown")
    await turns()
    rig.send(rig.one().answer(flags=3))
    with pytest.raises(DeviceStateError, match="not an answer"):
        await task


async def test_heartbeat_beats_is_lost_and_comes_back() -> None:
    rig = begin(HeartbeatDevice, (3, 0))
    for number in (1, 2, 3):
        asked = rig.one()
        assert len(asked.body) == 40
        assert struct.unpack_from("<Q", asked.body) == (number,)
        rig.send(asked.answer(body=struct.pack("<QI28x", number + 1, 7)))
        rig.clock.advance(2)
    status = await rig.device.commands()["status"]({})
    assert (status["health"], status["beats"], status["application_state"]) == ("ok", 3, 7)
    rig.clock.advance(60)
    assert (await rig.device.commands()["status"]({}))["health"] == "lost"
    # A silent guest is not sent more: one beat is in the ring.
    asked = rig.one()
    rig.send(asked.answer(body=struct.pack("<Q32x", 5)))
    assert (await rig.device.commands()["status"]({}))["health"] == "ok"


async def test_a_wrong_beat_fails_the_channel() -> None:
    rig = begin(HeartbeatDevice, (3, 0))
    rig.send(rig.one().answer())
    assert "beat 1 was answered with 1" in rig.device.fault


async def test_a_beat_in_flight_is_answered_after_a_restore() -> None:
    rig = begin(HeartbeatDevice, (3, 0)).restored()
    asked = rig.one()
    rig.send(asked.answer(body=struct.pack("<Q32x", 2)))
    assert (await rig.device.commands()["status"]({}))["beats"] == 1
    rig.clock.advance(2)
    assert struct.unpack_from("<Q", rig.one().body) == (2,)


@pytest.mark.parametrize(
    ("action", "flags", "since"), [("off", 0, 0), ("reboot", 2, 1), ("hibernate", 4, 2)]
)
async def test_shutdown_asks_what_the_version_has(action: str, flags: int, since: int) -> None:
    for minor in range(3):
        rig = begin(ShutdownDevice, (3, minor))
        task = command(rig, "shutdown", action=action, force=True, timeout=9, message="bye")
        await turns()
        if minor < since:
            with pytest.raises(DeviceStateError, match=f"came with 3.{since}"):
                await task
            assert rig.asked() == []
            continue
        asked = rig.one()
        assert len(asked.body) == 2060
        assert struct.unpack_from("<III", asked.body) == (0x8000_0000, 9, flags | 1)
        assert asked.body[12:20] == "bye\0".encode("utf-16-le")
        rig.send(asked.answer())
        assert await task == {"action": action}


async def test_a_shutdown_that_is_refused_or_not_answered() -> None:
    rig = begin(ShutdownDevice, (3, 2))
    task = command(rig, "shutdown")
    await turns()
    rig.send(rig.one().answer(status=0x80004005))
    with pytest.raises(DeviceStateError, match=r"refused.*FAIL"):
        await task
    task = command(rig, "shutdown")
    await turns()
    rig.clock.advance(31)
    with pytest.raises(DeviceStateError, match="did not answer within 30 s"):
        await task
    # The next waits for that answer and is not mistaken for it.
    late = rig.one()
    task = command(rig, "shutdown", action="reboot")
    await turns()
    assert rig.asked() == []
    rig.send(late.answer(status=0x80004005))
    assert not task.done()
    rig.send(rig.one().answer())
    assert await task == {"action": "reboot"}


async def test_time_is_set_once_and_then_sampled() -> None:
    rig = begin(TimesyncDevice, (4, 0))
    for flags in (1, 2, 2):
        asked = rig.one()
        assert len(asked.body) == 24
        host, reference, found = struct.unpack_from("<QQB", asked.body)
        assert (host, reference, found) == (rig.clock.wall(), rig.clock.reference(), flags)
        rig.send(asked.answer())
        rig.clock.advance(5)
    rig = rig.restored()
    rig.clock.advance(3)
    sample = rig.one()
    assert sample.body[16] == 2, "in flight at the save"
    rig.send(sample.answer())
    asked = rig.one()
    assert asked.body[16] == 1
    assert struct.unpack_from("<Q", asked.body) == (rig.clock.wall(),)


async def test_time_without_a_reference_counter_is_that_of_older_versions() -> None:
    rig = IcRig(TimesyncDevice, FakeClock(reference=False)).start()
    asked = rig.negotiate((3, 0))
    assert list(struct.iter_unpack("<HH", asked.body[8:])) == [(3, 0), (1, 0), (3, 0), (1, 0)]
    asked = rig.one()
    assert len(asked.body) == 28
    assert struct.unpack_from("<QQQB", asked.body) == (rig.clock.wall(), 0, 0, 1)
    rig.send(asked.answer())
    task = command(rig, "sync")
    await turns()
    asked = rig.one()
    assert asked.body[24] == 1
    rig.send(asked.answer())
    assert (await task)["syncs"] == 2


def kvp_value(key: str, value: str) -> bytes:
    name, text = (f"{each}\0".encode("utf-16-le") for each in (key, value))
    sizes = struct.pack("<III", 1, len(name), len(text))
    return sizes + name.ljust(512, b"\0") + text.ljust(2048, b"\0")


async def test_kvp_gets_sets_deletes_and_lists() -> None:
    rig = begin(KvpDevice, (5, 0))
    task = command(rig, "set", key="colour", value="grün")
    await turns()
    asked = rig.one()
    assert asked.body == bytes([1, 0, 0, 0]) + kvp_value("colour", "grün")
    rig.send(asked.answer())
    assert await task is None

    task = command(rig, "get", key="shape")
    await turns()
    asked = rig.one()
    assert asked.body[:2] == bytes([0, 1])
    rig.send(asked.answer(body=asked.body[:4] + kvp_value("shape", "round")))
    assert await task == "round"

    # Linux answers GET with an empty value; only a list has it.
    task = command(rig, "get", key="shape")
    await turns()
    asked = rig.one()
    rig.send(asked.answer(body=asked.body[:4] + kvp_value("shape", "")))
    await turns()
    asked = rig.one()
    assert asked.body[0] == 3
    rig.send(asked.answer(body=asked.body[:8] + kvp_value("shape", "square")))
    await turns()
    rig.send(rig.one().answer(status=0x80070103))
    assert await task == "square"

    task = command(rig, "delete", key="colour")
    await turns()
    asked = rig.one()
    assert (len(asked.body), asked.body[:2]) == (520, bytes([2, 0]))
    assert struct.unpack_from("<I", asked.body, 4) == (14,)
    rig.send(asked.answer(status=0x80070103))
    with pytest.raises(DeviceStateError, match="there is no colour"):
        await task

    task = command(rig, "list")
    for index in range(3):
        await turns()
        asked = rig.one()
        assert asked.body[:2] == bytes([3, 1])
        assert struct.unpack_from("<I", asked.body, 4) == (index,)
        pair = kvp_value(f"key{index}", str(index))
        last = 0x80070103 if index == 2 else 0
        rig.send(asked.answer(status=last, body=asked.body[:8] + pair))
    assert await task == {"key0": "0", "key1": "1"}


async def test_kvp_addresses() -> None:
    rig = begin(KvpDevice, (3, 0))
    with pytest.raises(DeviceStateError, match=r"came with 4.0"):
        await command(rig, "ip", mac="00:11")
    rig = begin(KvpDevice, (4, 0))
    task = command(rig, "ip", mac="00:11")
    await turns()
    asked = rig.one()
    assert (len(asked.body), asked.body[0]) == (7428, 4)
    body = bytearray(asked.body)
    body[259] = 1
    addresses = "10.0.0.5;fe80::1".encode("utf-16-le")
    body[260 : 260 + len(addresses)] = addresses
    rig.send(asked.answer(body=bytes(body)))
    found = await task
    assert (found["dhcp"], found["addresses"]) == (True, ["10.0.0.5", "fe80::1"])


async def test_kvp_refuses_sizes_that_lie() -> None:
    rig = begin(KvpDevice, (5, 0))
    task = command(rig, "get", key="k")
    await turns()
    asked = rig.one()
    bad = bytearray(kvp_value("k", "v"))
    struct.pack_into("<I", bad, 8, 1 << 31)
    rig.send(asked.answer(body=asked.body[:4] + bytes(bad)))
    with pytest.raises(DeviceStateError, match="bytes of key"):
        await task
    rig = begin(KvpDevice, (5, 0))
    task = command(rig, "get", key="k")
    await turns()
    rig.send(rig.one().answer(body=bytes(4)))
    with pytest.raises(DeviceStateError, match="an answer of 4 bytes"):
        await task


async def test_a_kvp_request_in_flight_at_a_save_is_not_sent_twice() -> None:
    rig = begin(KvpDevice, (5, 0))
    tasks = [command(rig, "set", key=key, value="1") for key in "ab"]
    await turns()
    other = rig.restored()
    first = other.one()
    assert first.body[16:18] == b"a\0"
    other.send(first.answer())
    second = other.one()
    assert second.body[16:18] == b"b\0"
    other.send(second.answer())
    assert other.asked() == []
    assert not other.device.busy
    for task in tasks:
        task.cancel()


async def freeze(rig: IcRig, **arguments: Any) -> asyncio.Task[Any]:
    task = command(rig, "freeze", **arguments)
    await turns()
    check = rig.one()
    assert (len(check.body), check.body[0]) == (12, 2)
    rig.send(check.answer(body=check.body[:8] + struct.pack("<I", 5)))
    await turns()
    return task


async def test_vss_freezes_and_thaws() -> None:
    rig = begin(VssDevice, (5, 0))
    task = await freeze(rig)
    asked = rig.one()
    assert asked.body[0] == 5
    rig.send(asked.answer())
    assert (await task)["frozen"]
    task = command(rig, "thaw")
    await turns()
    asked = rig.one()
    assert asked.body[0] == 6
    rig.send(asked.answer())
    assert await task == {"was_frozen": True}
    rig.clock.advance(1000)
    assert rig.asked() == []


async def test_vss_thaws_when_the_lease_is_over_and_tries_again() -> None:
    rig = begin(VssDevice, (6, 0))
    task = await freeze(rig, lease=10)
    rig.send(rig.one().answer())
    await task
    rig.clock.advance(9)
    assert rig.asked() == []
    rig.clock.advance(1)
    asked = rig.one()
    assert asked.body[0] == 6
    rig.send(asked.answer(status=0x80004005))
    rig.clock.advance(5)
    asked = rig.one()
    assert asked.body[0] == 6
    rig.send(asked.answer())
    rig.clock.advance(100)
    assert rig.asked() == []


async def test_vss_undoes_a_freeze_whose_asker_has_gone() -> None:
    rig = begin(VssDevice, (7, 0))
    task = await freeze(rig)
    asked = rig.one()
    task.cancel()
    await turns()
    rig.send(asked.answer())
    thaw = rig.one()
    assert thaw.body[0] == 6
    rig.send(thaw.answer())
    assert not (await rig.device.commands()["status"]({}))["frozen"]


@pytest.mark.parametrize("answered", [True, False])
async def test_vss_thaws_what_was_frozen_in_a_snapshot(answered: bool) -> None:
    rig = begin(VssDevice, (5, 0))
    task = await freeze(rig)
    asked = rig.one()
    if answered:
        rig.send(asked.answer())
        await task
    other = rig.restored()
    task.cancel()
    if not answered:
        assert other.asked() == []
        other.send(asked.answer())
    thaw = other.one()
    assert thaw.body[0] == 6
    other.send(thaw.answer())
    assert not (await other.device.commands()["status"]({}))["frozen"]


async def test_vss_of_an_old_guest_cannot_freeze() -> None:
    rig = begin(VssDevice, (4, 0))
    with pytest.raises(DeviceStateError, match=r"came with 5.0"):
        await command(rig, "freeze")


async def test_frozen_thaws_whatever_happens() -> None:
    calls: list[str] = []
    was = True

    async def call(name: str, **_: Any) -> Any:
        calls.append(name)
        return {"was_frozen": was}

    async with frozen(call):
        calls.append("saved")
    with pytest.raises(ZeroDivisionError):
        async with frozen(call):
            raise ZeroDivisionError
    assert calls == ["vss.freeze", "saved", "vss.thaw", "vss.freeze", "vss.thaw"]
    was = False
    with pytest.raises(TimeoutError, match="before the end"):
        async with frozen(call):
            pass


async def test_fcopy_copies_over_a_restore(tmp_path: Path) -> None:
    source = tmp_path / "file"
    content = bytes(range(251)) * 60
    source.write_bytes(content)
    rig = begin(FcopyDevice, (1, 1))
    assert await command(
        rig, "copy", source=str(source), dest="/tmp/x/file", overwrite=True, create_path=True
    ) == {"size": len(content)}
    asked = rig.one()
    assert len(asked.body) == 1088
    assert struct.unpack_from("<I", asked.body) == (0,)
    assert asked.body[36:46] == "file\0".encode("utf-16-le")
    assert asked.body[556:572] == "/tmp/x/\0".encode("utf-16-le")
    assert struct.unpack_from("<IQ", asked.body, 1076) == (3, len(content))
    rig.send(asked.answer())
    got = b""
    while (asked := rig.one()).body[0] == 1:
        assert len(asked.body) == 6200 - 4
        offset, size = struct.unpack_from("<QI", asked.body, 40)
        assert offset == len(got)
        got += asked.body[52 : 52 + size]
        if offset:
            rig.send(asked.answer())
            continue
        # Once read and not answered, when the process changes.
        rig = rig.restored()
        rig.send(asked.answer())
    assert asked.body[0] == 2
    rig.send(asked.answer())
    assert got == content
    assert await command(rig, "wait") == {"size": len(content)}


async def test_fcopy_that_fails(tmp_path: Path) -> None:
    source = tmp_path / "file"
    source.write_bytes(bytes(9000))
    rig = begin(FcopyDevice, (1, 1))
    for bad, dest in ((tmp_path / "none", "/x/y"), (source, "y"), (tmp_path, "/x/y")):
        with pytest.raises(DeviceStateError):
            await command(rig, "copy", source=str(bad), dest=dest)
    await command(rig, "copy", source=str(source), dest="/x/y")
    rig.send(rig.one().answer(status=0x80070050))
    with pytest.raises(DeviceStateError, match="ALREADY_EXISTS"):
        await command(rig, "wait")
    assert rig.asked() == []
    # A source that changes over a restore is not copied half and half.
    await command(rig, "copy", source=str(source), dest="/x/y")
    rig.send(rig.one().answer())
    source.write_bytes(bytes(9001))
    rig = rig.restored()
    rig.send(rig.one().answer())
    assert rig.one().body[0] == 3
    with pytest.raises(DeviceStateError, match="changed"):
        await command(rig, "wait")


async def test_a_failed_channel_is_left_alone_until_the_guest_opens_it_again() -> None:
    rig = begin(ShutdownDevice, (3, 2))
    rig.send(struct.pack("<II", 1, 4) + bytes(4))
    assert rig.device.fault
    rig = rig.restored()
    assert rig.asked() == []
    assert rig.device.about()["state"] == "failed"
    rig.channel.port_closed(lambda: None)
    rig.guest.reopen()
    rig.open()
    rig.negotiate((3, 2))
    assert rig.device.about()["state"] == "ready"


@pytest.mark.parametrize("kind", OFFERED)
@pytest.mark.parametrize("negotiated", [False, True])
async def test_no_bytes_of_a_guest_do_worse_than_to_fail_its_channel(
    kind: type[IcDevice], negotiated: bool
) -> None:
    dice = random.Random(f"{kind.kind} {negotiated}")
    for _ in range(100):
        rig = IcRig(kind).start()
        tasks: list[asyncio.Task[Any]] = []
        if negotiated:
            rig.negotiate(OFFERED[kind][0])
            if kind is KvpDevice:
                tasks = [command(rig, "list"), command(rig, "ip", mac="x")]
                await turns()
        asked = rig.asked()
        if asked and dice.random() < 0.8:
            raw = bytearray(asked[-1].answer(status=dice.choice([0, 0, 1 << 31])))
            for _ in range(dice.choice([0, 1, 1, 3])):
                raw[dice.randrange(dice.choice([28, len(raw)]))] = dice.randrange(256)
            del raw[len(raw) - dice.choice([0, 0, dice.randrange(len(raw))]) :]
        else:
            raw = bytearray(dice.randbytes(dice.randrange(80)))
        rig.send(bytes(raw))
        rig.clock.advance(30)
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
        assert len(rig.asked()) <= 2
        status = await rig.device.commands()["status"]({})
        assert (status["state"] == "failed") == bool(status["fault"])
