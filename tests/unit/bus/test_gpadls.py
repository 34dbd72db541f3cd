# SPDX-License-Identifier: MIT
"""GPADLs: pieces, ranges, quotas, teardown."""

from __future__ import annotations

import pytest

from emulator.bus import BusConfig, GpadlCreated, GuestError, SendMessage
from emulator.model import guest as model
from emulator.wire.packet import GpaRange
from tests.unit.bus.rig import Rig, key

REFUSED = 0x8000FFFF


# A header message has room for 27 u64s of range data, the first of them the range's own.
@pytest.mark.parametrize("pages", [1, 25, 26, 27, 53, 54, 55, 500, 8190])
def test_pieces(rig: Rig, pages: int) -> None:
    rig.connected(1)
    gpadl = rig.guest.make_gpadl(1, pages)
    assert gpadl.state == "created"
    assert rig.owners[key(1)].gpadls == {
        gpadl.gpadl_id: (GpaRange(pages * 4096, 0, tuple(gpadl.pfns)),)
    }
    rig.guest.teardown(gpadl)
    assert rig.bus.sharing.table.pages == 0
    assert rig.errors == []


def test_several_ranges(rig: Rig) -> None:
    rig.connected(1)
    ranges = [
        model.u32(4096, 0) + model.u64(5),
        model.u32(10, 4090) + model.u64(9, 7),
        model.u32(1, 4095) + model.u64(2**52 - 1),
        model.u32(40 * 4096, 0) + model.u64(*range(100, 140)),
    ]
    gpadl = rig.guest.gpadl_begin(1, 0, ranges=ranges)
    while gpadl.unsent:
        assert rig.owners[key(1)].gpadls == {}
        rig.guest.gpadl_go_on(gpadl, 8)
    assert rig.owners[key(1)].gpadls[gpadl.gpadl_id] == (
        GpaRange(4096, 0, (5,)),
        GpaRange(10, 4090, (9, 7)),
        GpaRange(1, 4095, (2**52 - 1,)),
        GpaRange(40 * 4096, 0, tuple(range(100, 140))),
    )


@pytest.mark.parametrize(
    ("length", "count", "data"),
    [
        (0, 0, b""),
        (0, 1, b""),
        (16, 0, model.u32(4096, 0) + model.u64(1)),
        (12, 1, model.u32(4096, 0) + model.u64(1)),
        (16, 2, model.u32(4096, 0) + model.u64(1)),
        (8, 1, model.u32(0, 0)),
        (8, 1, model.u32(4096, 0)),
        (16, 1, model.u32(0, 0) + model.u64(1)),
        (16, 1, model.u32(4097, 0) + model.u64(1)),
        (16, 1, model.u32(4096, 1) + model.u64(1)),
        (16, 1, model.u32(1, 4096) + model.u64(1)),
        (16, 1, model.u32(0xFFFFFFFF, 0xFFFFFFFF) + model.u64(1)),
        (24, 1, model.u32(4096, 0) + model.u64(1, 2)),
        (32, 2, model.u32(4096, 0) + model.u64(1) + model.u32(4097, 0) + model.u64(2)),
    ],
)
def test_ranges_that_are_wrong_are_refused(rig: Rig, length: int, count: int, data: bytes) -> None:
    rig.connected(1)
    header = model.u32(model.GPADL_HEADER, 0, 1, 77) + model.u16(length, count) + data
    rig.guest.channels[1].gpadls[77] = model.GuestGpadl(77, 1, [], b"", "created?")
    rig.apply(lambda bus: bus.guest_message(4, header))
    assert (rig.guest.last.type, rig.guest.last["status"]) == (model.GPADL_CREATED, REFUSED)
    assert len(rig.errors) == 1
    assert len(rig.bus.sharing.table) == 0
    assert rig.bus.sharing.table.pages == 0
    # The id is free.
    rig.guest.gpadl_begin(1, 1, gpadl_id=77)
    assert rig.guest.last["status"] == 0


def test_wrong_ranges_are_found_with_the_last_body(rig: Rig) -> None:
    rig.connected(1)
    bad = model.u32(4096 * 99, 0) + model.u64(*range(40))
    gpadl = rig.guest.gpadl_begin(1, 0, ranges=[bad])
    assert rig.errors == []
    rig.guest.gpadl_go_on(gpadl)
    assert rig.guest.last["status"] == REFUSED
    rig.guest.make_gpadl(1, 40)
    assert rig.guest.last["status"] == 0


def test_surplus_hurts_nobody(rig: Rig) -> None:
    rig.connected(1)
    gpadl = rig.guest.gpadl_begin(1, 30)
    piece, gpadl.unsent, gpadl.state = gpadl.unsent, b"", "created?"
    surplus = model.u32(model.GPADL_BODY, 0, 0, gpadl.gpadl_id)
    rig.apply(lambda bus: bus.guest_message(4, surplus + piece + bytes(64)))
    assert gpadl.state == "created"
    kept = rig.bus.sharing.table.find(1, gpadl.gpadl_id)
    assert kept is not None
    assert len(kept.data) == 8 + 30 * 8
    # A body too many (this one stops QEMU's own bus), and one for a GPADL that never was.
    rig.apply(lambda bus: bus.guest_message(4, surplus + bytes(216)))
    rig.apply(lambda bus: bus.guest_message(4, model.u32(model.GPADL_BODY, 0, 0, 999)))
    assert ["not being received" in error for error in rig.errors] == [True, True]
    assert rig.owners[key(1)].gpadls[gpadl.gpadl_id][0].pfns == tuple(gpadl.pfns)
    rig.guest.open_channel(1, gpadl.gpadl_id)
    assert rig.guest.channels[1].is_open


def test_two_gpadls_are_received_at_once(rig: Rig) -> None:
    rig.connected(1, 2)
    first, second = rig.guest.gpadl_begin(1, 100), rig.guest.gpadl_begin(2, 100)
    while first.unsent:
        rig.guest.gpadl_go_on(first)
        rig.guest.gpadl_go_on(second)
    assert rig.owners[key(1)].gpadls[first.gpadl_id][0].pfns == tuple(first.pfns)
    assert rig.owners[key(2)].gpadls[second.gpadl_id][0].pfns == tuple(second.pfns)


def test_an_id_is_the_channels_own(rig: Rig) -> None:
    rig.connected(1, 2)
    first = rig.guest.gpadl_begin(1, 2, gpadl_id=5)
    rig.guest.gpadl_begin(2, 2, gpadl_id=5)
    assert [rig.owners[key(n)].gpadls.keys() for n in (1, 2)] == [{5}, {5}]
    rig.guest.teardown(first)
    assert [rig.owners[key(n)].gpadls.keys() for n in (1, 2)] == [set(), {5}]


def _refused(rig: Rig) -> list[str]:
    """Take a refusal out of the bus before it confuses the model guest; return the reason."""
    reason, refusal = rig.bus.take_effects()
    assert isinstance(refusal, SendMessage)
    assert refusal.payload[16:20] == model.u32(REFUSED)
    return [reason.text] if isinstance(reason, GuestError) else []


def test_an_id_in_use_is_refused_and_the_first_one_lives(rig: Rig) -> None:
    rig.connected(1, 2)
    data = model.u32(4096, 0) + model.u64(9)
    header = model.u32(model.GPADL_HEADER, 0, 1, 5) + model.u16(16, 1) + data
    rig.guest.gpadl_begin(1, 2, gpadl_id=5)
    rig.bus.guest_message(4, header)
    assert _refused(rig) == ["channel 1, GPADL 0x5: it exists already"]
    # While one is being received its id is taken on every channel: bodies name no channel.
    half = rig.guest.gpadl_begin(2, 100, gpadl_id=6)
    rig.bus.guest_message(4, header[:12] + model.u32(6) + header[16:])
    assert _refused(rig) == ["channel 1, GPADL 0x6: one with this id is still being received"]
    while half.unsent:
        rig.guest.gpadl_go_on(half)
    assert half.state == "created"
    assert rig.owners[key(1)].gpadls.keys() == {5}


def test_a_gpadl_for_no_channel_is_refused(rig: Rig) -> None:
    rig.connected(1)
    rig.guest.channels[9] = model.GuestChannel(rig.guest.channels[1].offer)
    rig.guest.gpadl_begin(9, 2)
    assert rig.guest.last["status"] == REFUSED
    assert "not offered" in rig.errors[0]


# Quotas.


def test_gpadls_of_a_channel_are_limited() -> None:
    rig = Rig(BusConfig(max_gpadls_per_channel=3)).connected(1, 2)
    made = [rig.guest.make_gpadl(1, 1) for _ in range(3)]
    rig.guest.make_gpadl(1, 1)
    assert rig.guest.last["status"] == REFUSED
    assert "3 GPADLs already" in rig.errors[0]
    rig.guest.make_gpadl(2, 1)
    assert rig.guest.last["status"] == 0
    rig.guest.teardown(made[0])
    rig.guest.make_gpadl(1, 1)
    assert rig.guest.last["status"] == 0
    rig.close()


def test_pages_are_limited_when_they_are_announced() -> None:
    # A range costs one u64 beside its pages, which are counted as well.
    rig = Rig(BusConfig(max_pages=101)).connected(1, 2)
    half = rig.guest.gpadl_begin(1, 100)
    rig.guest.make_gpadl(2, 1)
    assert rig.guest.last["status"] == REFUSED
    assert "101 pages" in rig.errors[0]
    while half.unsent:
        rig.guest.gpadl_go_on(half)
    assert half.state == "created"
    rig.guest.teardown(half)
    rig.guest.make_gpadl(2, 100)
    assert rig.guest.last["status"] == 0
    rig.close()


def test_an_announcement_costs_the_host_nothing() -> None:
    rig = Rig(BusConfig(max_pages=10**9, max_gpadls_per_channel=10**6)).connected(1)
    for gpadl_id in range(1000):
        header = model.u32(model.GPADL_HEADER, 0, 1, gpadl_id) + model.u16(65528, 1)
        rig.bus.guest_message(4, header)
    assert rig.bus.take_effects() == []
    assert sum(len(gpadl.data) for gpadl in rig.bus.sharing.table) == 0
    rig.close()


def test_quota_comes_back_with_every_end(slow: Rig) -> None:
    slow.connected(1, 2, 3)
    table = slow.bus.sharing.table
    slow.guest.make_gpadl(1, 50)
    slow.guest.gpadl_begin(1, 50)
    slow.rescind(key(1))
    slow.guest.release(1)
    assert (len(table), table.pages) == (0, 0)
    gpadl = slow.guest.make_gpadl(2, 50)
    slow.guest.gpadl_begin(2, 50)
    slow.guest.release(2)
    slow.release(key(2), gpadl.gpadl_id)
    assert (len(table), table.pages) == (0, 0)
    gpadl = slow.guest.make_gpadl(3, 50)
    slow.guest.gpadl_begin(3, 50)
    slow.reset()
    slow.release(key(3), gpadl.gpadl_id)
    assert (len(table), table.pages) == (0, 0)


# Teardown.


def test_the_guest_gets_its_pages_back_after_the_owner_let_go(slow: Rig) -> None:
    slow.connected(1)
    gpadl = slow.guest.make_gpadl(1, 3)
    slow.guest.teardown(gpadl)
    assert gpadl.state == "torndown?"
    assert slow.owners[key(1)].releasing == [gpadl.gpadl_id]
    # Once more is the guest's fault, and changes nothing.
    slow.guest.post(model.GPADL_TEARDOWN, model.u32(1, gpadl.gpadl_id))
    assert "tearing down" in slow.errors[0]
    slow.release(key(1), gpadl.gpadl_id)
    assert slow.guest.last.type == model.GPADL_TORNDOWN
    slow.apply(lambda bus: bus.gpadl_released(key(1), gpadl.gpadl_id))
    assert len(slow.guest.heard) == slow.guest.heard.index(slow.guest.last) + 1


def test_close_and_teardown_in_one_breath(slow: Rig) -> None:
    slow.connected(1)
    ring = slow.opened(1)
    slow.open_result(key(1))
    slow.guest.close_channel(1)
    slow.guest.teardown(ring)
    assert slow.owners[key(1)].releasing == []
    slow.close_done(key(1))
    assert slow.owners[key(1)].releasing == [ring.gpadl_id]
    slow.release(key(1), ring.gpadl_id)
    assert slow.guest.channels[1].gpadls == {}


def test_a_ring_that_is_not_closed_is_torn_down_with_the_close(slow: Rig) -> None:
    slow.connected(1)
    ring = slow.opened(1)
    slow.open_result(key(1))
    slow.guest.teardown(ring)
    assert slow.owners[key(1)].releasing == []
    slow.guest.close_channel(1)
    slow.close_done(key(1))
    slow.release(key(1), ring.gpadl_id)
    assert slow.guest.last.type == model.GPADL_TORNDOWN


def test_what_is_not_there_is_not_torn_down(slow: Rig) -> None:
    slow.connected(1, 2)
    gpadl = slow.guest.make_gpadl(1, 3)
    half = slow.guest.gpadl_begin(1, 100)
    mark = len(slow.guest.heard)
    for channel_id, gpadl_id in ((1, 999), (2, gpadl.gpadl_id), (9, gpadl.gpadl_id)):
        slow.guest.post(model.GPADL_TEARDOWN, model.u32(channel_id, gpadl_id))
    slow.guest.post(model.GPADL_TEARDOWN, model.u32(1, half.gpadl_id))
    assert len(slow.errors) == 4
    assert slow.guest.since(mark) == []
    assert slow.owners[key(1)].releasing == []


def test_the_owner_learns_of_gpadls_before_it_opens(slow: Rig) -> None:
    slow.connected(1)
    slow.hold = True
    gpadl = slow.guest.make_gpadl(1, 8)
    slow.guest.open_channel(1, gpadl.gpadl_id)
    effects = slow.bus.take_effects()
    assert isinstance(effects[0], GpadlCreated)
    assert effects[0].key == key(1)


def test_several_ranges_in_many_bodies(rig: Rig) -> None:
    rig.connected(1)
    # Longer than a message each, so that each border of two ranges is within a body.
    pages = [list(range(100 * n, 100 * n + 50 + n)) for n in range(1, 5)]
    ranges = [model.u32(len(pfns) * 4096 - 8, 8) + model.u64(*pfns) for pfns in pages]
    gpadl = rig.guest.gpadl_begin(1, 1, ranges=ranges)
    bodies = 0
    while gpadl.unsent:
        assert gpadl.state == "sending"
        rig.guest.gpadl_go_on(gpadl)
        bodies += 1
    assert bodies == 7
    assert gpadl.state == "created"
    found = rig.owners[key(1)].gpadls[gpadl.gpadl_id]
    assert [list(r.pfns) for r in found] == pages
    assert {(r.offset, r.length) for r in found} == {(8, len(p) * 4096 - 8) for p in pages}
