# SPDX-License-Identifier: MIT
"""The host behind a model frontend: state is taken whole or not at all, guests wait their turn."""

from __future__ import annotations

import asyncio
import logging
import struct
from collections.abc import AsyncIterator

import msgspec
import pytest
import pytest_asyncio

from emulator.conformance.rig import Rig as KmclRig
from emulator.link import Session, StateRefused
from emulator.machine import draining
from emulator.machine.config import DeviceConfig, HostConfig
from emulator.machine.host import VmbusHost
from tests.model import frontend as fe
from tests.model.frontend import ModelFrontend

pytestmark = pytest.mark.asyncio

CONFIG = HostConfig("vm", (DeviceConfig("probe", "probe"),))
VERSION_5_3 = 0x00050003


class Rig:
    """A host of its own for each frontend."""

    def __init__(self, config: HostConfig = CONFIG) -> None:
        self.host = VmbusHost(config)
        self.frontend = ModelFrontend(post_window=1)
        self.session = Session(self.frontend.backend_socket, self.host)
        self.host.attach(self.session)

    def close(self) -> None:
        self.session.close()
        self.frontend.close()


@pytest_asyncio.fixture
async def rig() -> AsyncIterator[Rig]:
    rig = Rig()
    await rig.frontend.handshake()
    yield rig
    rig.close()


def contact(version: int = VERSION_5_3) -> bytes:
    """An InitiateContact on SINT 2 of VP 0."""
    return struct.pack("<IIIIQQQ", 14, 0, version, 0, 2, 0, 0)


REQUEST_OFFERS = struct.pack("<II", 3, 0)


async def test_a_guest_is_answered_on_its_sint(rig: Rig) -> None:
    rig.frontend.send(fe.RESUME)
    rig.frontend.guest_message(contact())
    # The answer first: the guest waits for it.
    post = await rig.frontend.expect(fe.POST_MESSAGE)
    assert (await rig.frontend.expect(fe.GUEST_MESSAGE_DONE)).words == (1,)
    vp, sint, kind, size = post.words[:4]
    assert (vp, sint, kind, size) == (0, 2, 1, 16)
    # VersionResponse: supported, state 0, and the connection id to post on.
    assert struct.unpack("<IIBBHI", post.body[16:]) == (15, 0, 1, 0, 0, 4)


async def test_answers_owed_survive_a_save_in_order(rig: Rig) -> None:
    rig.frontend.send(fe.RESUME)
    rig.frontend.guest_message(contact())
    rig.frontend.guest_message(REQUEST_OFFERS)
    # Nothing is delivered: the window is one, and the first post has no status.
    for _ in range(2):
        while (await rig.frontend.read()).type != fe.GUEST_MESSAGE_DONE:
            pass
    await rig.frontend.stop()
    status, state, text = await rig.frontend.save()
    assert (status, text) == (0, "")
    other = Rig()
    await other.frontend.handshake()
    assert await other.frontend.load(state) == (0, "")
    other.frontend.send(fe.RESUME)
    types = []
    for _ in range(4):
        post = await other.frontend.expect(fe.POST_MESSAGE)
        types.append(post.words[4])
        other.frontend.status(fe.POST_STATUS, post.cookie)
    # VersionResponse, two offers, AllOffersDelivered: each once, none for the second time.
    assert types == [15, 1, 1, 4]
    other.close()


async def test_a_guest_that_never_reads_is_not_heard_for_ever(rig: Rig) -> None:
    rig.frontend.send(fe.RESUME)
    sent = 200
    for _ in range(sent):
        rig.frontend.guest_message(contact())
    rig.frontend.reset()
    credits = 0
    while (got := await rig.frontend.read()).type != fe.RESET_DONE:
        credits += got.type == fe.GUEST_MESSAGE_DONE
    assert credits < sent / 2


async def test_guest_messages_not_yet_heard_are_saved_and_not_credited_twice(rig: Rig) -> None:
    rig.frontend.send(fe.RESUME)
    for _ in range(100):
        rig.frontend.guest_message(contact())
    await rig.frontend.stop()
    _, state, _ = await rig.frontend.save()
    other = Rig()
    await other.frontend.handshake()
    assert await other.frontend.load(state) == (0, "")
    other.frontend.send(fe.RESUME)
    for _ in range(100):
        # One answer for each of the hundred; a credit would be for a message it never sent.
        post = await other.frontend.expect(fe.POST_MESSAGE)
        other.frontend.status(fe.POST_STATUS, post.cookie)
    other.frontend.guest_message(contact())
    await other.frontend.expect(fe.POST_MESSAGE)
    await other.frontend.expect(fe.GUEST_MESSAGE_DONE)
    other.close()


@pytest.mark.parametrize(
    "state", [b"", b"\x80", b"garbage" * 20, msgspec.msgpack.encode({"a": 1}), b"\x81\xa1\xff\x00"]
)
async def test_a_state_that_is_none_is_refused(rig: Rig, state: bytes) -> None:
    status, text = await rig.frontend.load(state)
    assert status == 1
    assert "cannot be read" in text


async def test_a_state_of_another_machine_is_refused_with_all_differences(rig: Rig) -> None:
    _, state, _ = await rig.frontend.save()
    other = Rig(HostConfig("elsewhere", (DeviceConfig("second", "probe"),)))
    await other.frontend.handshake()
    status, text = await other.frontend.load(state)
    assert status == 1
    for words in ("'vm', not 'elsewhere'", "device probe", "device second"):
        assert words in text
    # It goes on as before: the refused state has changed nothing.
    other.frontend.send(fe.RESUME)
    other.frontend.guest_message(contact())
    await other.frontend.expect(fe.POST_MESSAGE)
    await other.frontend.expect(fe.GUEST_MESSAGE_DONE)
    other.close()


async def test_every_flipped_byte_is_refused_or_harmless(rig: Rig) -> None:
    _, state, _ = await rig.frontend.save()
    for where in range(len(state)):
        bad = bytearray(state)
        bad[where] ^= 0x55
        status, text = await rig.frontend.load(bytes(bad))
        assert status in (0, 1)
        assert bool(text) == (status == 1)


async def test_a_save_before_the_devices_are_at_rest_names_the_packets(rig: Rig) -> None:
    kmcl = KmclRig(answer=False).running()
    kmcl.vsp.drain_in_suspend = False
    for number in range(1, 11):
        kmcl.guest.request(number)
    kmcl.ring()
    rig.host.resumed()
    (device,) = rig.host.devices.values()
    device.channels = {"data": kmcl.channel}
    over: list[bool] = []
    rig.host.stopping(lambda: over.append(True))
    held = "probe/data: request 0x{:x} of the guest, which the VSP holds"
    with pytest.raises(StateRefused, match="not come to rest: ") as caught:
        rig.host.save()
    assert str(caught.value).endswith(
        ", ".join(held.format(number) for number in range(1, 9)) + ", and 2 more"
    )
    assert not over
    kmcl.vsp.drain()
    assert over
    assert rig.host.save()


async def test_a_stop_that_takes_long_is_told_with_the_packets(
    rig: Rig, monkeypatch: pytest.MonkeyPatch
) -> None:
    kmcl = KmclRig(answer=False).running()
    kmcl.vsp.drain_in_suspend = False
    kmcl.guest.request(7)
    kmcl.ring()
    rig.host.resumed()
    (device,) = rig.host.devices.values()
    device.channels = {"data": kmcl.channel}
    told: asyncio.Future[str] = asyncio.get_running_loop().create_future()

    class Heard(logging.Handler):
        def emit(self, record: logging.LogRecord) -> None:
            told.set_result(record.getMessage())

    logger, heard = logging.getLogger("emulator.machine.host"), Heard(logging.WARNING)
    logger.addHandler(heard)
    monkeypatch.setattr(draining, "TELL_SECONDS", 0.0)
    try:
        rig.host.stopping(lambda: None)
        text = await asyncio.wait_for(told, 10)
    finally:
        logger.removeHandler(heard)
    held = "probe/data: request 0x7 of the guest, which the VSP holds"
    assert text.endswith(f"the machine has not stopped within 0 s; it waits for {held}")
    kmcl.vsp.drain()


async def test_a_stop_that_is_over_is_not_told(
    rig: Rig, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(draining, "TELL_SECONDS", 0.0)
    rig.host.resumed()
    over: list[bool] = []
    rig.host.stopping(lambda: over.append(True))
    assert over
    turned = asyncio.Event()
    asyncio.get_running_loop().call_later(0.0, turned.set)
    await turned.wait()
    assert "has not stopped" not in caplog.text
