# SPDX-License-Identifier: MIT
"""Reserved channels, for crash dumps: answers go to the VP and SINT that each message names."""

from __future__ import annotations

import pytest

from emulator.bus import SendMessage
from emulator.model import guest as model
from emulator.wire.version import Version
from tests.unit.bus.rig import Rig, key, offer
from tests.unit.bus.test_save import transfer


def listen(rig: Rig) -> list[tuple[int, int, int]]:
    """Record VP, SINT and type of each message from now on."""
    heard: list[tuple[int, int, int]] = []

    def deliver(effect: SendMessage) -> None:
        heard.append((effect.vp, effect.sint, effect.payload[0]))

    rig.deliver = deliver
    return heard


def open_reserved(rig: Rig) -> None:
    gpadl = rig.guest.make_gpadl(1, 8)
    rig.guest.post(model.OPEN_RESERVED, model.u32(1, 3, 5, gpadl.gpadl_id, 2))


CLOSE = model.u32(1, 1, 6)


def test_a_reserved_channel_opens_and_closes(slow: Rig) -> None:
    slow.connected(1)
    heard = listen(slow)
    slow.guest.post(model.OPEN_RESERVED, model.u32(1, 3, 5, 0xBAD, 2))
    assert heard == [(3, 5, model.OPEN_RESULT)]
    slow.deliver = slow._deliver
    gpadl = slow.guest.make_gpadl(1, 8)
    heard = listen(slow)
    slow.guest.post(model.OPEN_RESERVED, model.u32(1, 3, 5, gpadl.gpadl_id, 2))
    opening = slow.owners[key(1)].opening
    assert opening is not None
    # The guest signals where its offer said.
    assert (opening.target_vp, opening.target_sint, opening.connection_id) == (3, 5, 0x2001)
    slow.open_result(key(1))
    assert heard == [(3, 5, model.OPEN_RESULT)]
    slow.guest.post(model.CLOSE_CHANNEL, model.u32(1))
    assert "opened as a reserved one" in slow.errors[-1]
    slow.guest.post(model.CLOSE_RESERVED, CLOSE)
    assert len(heard) == 1
    slow.close_done(key(1))
    assert heard[1:] == [(1, 6, model.CLOSE_RESERVED_RESPONSE)]


@pytest.mark.parametrize("closed", ["before", "after", "when it is over"])
def test_a_reserved_channel_is_closed_without_a_connection(slow: Rig, closed: str) -> None:
    slow.connected(1)
    open_reserved(slow)
    heard = listen(slow)
    slow.open_result(key(1))
    heard.clear()
    if closed == "before":
        slow.guest.post(model.CLOSE_RESERVED, CLOSE)
    slow.guest.post(model.UNLOAD)
    if closed == "after":
        slow.guest.post(model.CLOSE_RESERVED, CLOSE)
    # Not before the owner has let go of the rings, over a restore as well.
    assert heard == []
    transfer(slow, [offer(1)])
    slow.answer_all()
    if closed == "when it is over":
        slow.answer_all()
        slow.guest.post(model.CLOSE_RESERVED, CLOSE)
    slow.answer_all()
    assert sorted(heard) == [(0, 2, model.UNLOAD_COMPLETE), (1, 6, model.CLOSE_RESERVED_RESPONSE)]


@pytest.mark.parametrize("way", ["contact", "reset", "rescind"])
def test_a_close_that_was_owed(slow: Rig, way: str) -> None:
    slow.connected(1)
    open_reserved(slow)
    heard = listen(slow)
    slow.open_result(key(1))
    slow.guest.post(model.CLOSE_RESERVED, CLOSE)
    heard.clear()
    match way:
        case "contact":
            slow.guest.contact()
        case "reset":
            slow.reset()
        case "rescind":
            slow.rescind(key(1))
    for _ in range(3):
        slow.answer_all()
    # Another kernel does not hear what the old one waited for.
    answer = (1, 6, model.CLOSE_RESERVED_RESPONSE)
    expected = {
        "contact": [(0, 2, model.VERSION_RESPONSE)],
        "reset": [],
        "rescind": [answer, (0, 2, model.RESCIND)],
    }
    assert heard == expected[way]


def test_reserved_is_not_ordinary(rig: Rig) -> None:
    rig.connected(1)
    rig.opened(1)
    mark = len(rig.guest.heard)
    rig.guest.post(model.CLOSE_RESERVED, CLOSE)
    rig.guest.post(model.OPEN_RESERVED, model.u32(1, 0, 16, 0, 2))
    rig.guest.post(model.CLOSE_RESERVED, model.u32(1, 0, 0))
    assert rig.guest.since(mark) == []
    assert [
        next(t for t in ("not opened as", "SINT 16", "SINT 0") if t in e) for e in rig.errors
    ] == ["not opened as", "SINT 16", "SINT 0"]
    assert rig.guest.channels[1].is_open


def test_before_4_0_no_channel_is_reserved(rig: Rig) -> None:
    rig.offer(offer(1))
    rig.guest.connect(Version.WIN8_1)
    rig.guest.post(model.OPEN_RESERVED, bytes(20))
    assert rig.errors == ["OPEN_RESERVED_CHANNEL is not part of version 3.0"]


def test_a_reserved_open_that_waits_for_a_close_is_closed(slow: Rig) -> None:
    slow.connected(1)
    slow.opened(1)
    slow.open_result(key(1))
    slow.guest.close_channel(1)
    open_reserved(slow)
    heard = listen(slow)
    slow.guest.post(model.CLOSE_RESERVED, CLOSE)
    transfer(slow, [offer(1)])
    slow.close_done(key(1))
    assert heard == [(1, 6, model.CLOSE_RESERVED_RESPONSE)]
    assert slow.owners[key(1)].opening is None
    assert slow.errors == []
