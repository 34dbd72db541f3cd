# SPDX-License-Identifier: MIT
"""Offers, open and close, rescind in every state, and what crosses on the way."""

from __future__ import annotations

from collections.abc import Callable

import pytest

from emulator.bus import BusConfig, BusHost, ChannelReleased, ChannelState, Offer, OfferKey
from emulator.model import guest as model
from emulator.wire.version import Version
from tests.unit.bus.rig import INTERFACE, Rig, key, offer


def state(rig: Rig, number: int = 1) -> ChannelState | None:
    channel = rig.bus.table.table.get(key(number))
    return channel.state if channel is not None else None


def test_an_offer_says_what_the_owner_said(rig: Rig) -> None:
    rig.offer(Offer(key(7, 3), b"abc", flags=0x2001, mmio_megabytes=8, mmio_megabytes_optional=9))
    rig.connected()
    heard = rig.guest.channels[1].offer
    assert heard.raw("interface_id") == INTERFACE.bytes_le
    assert heard.raw("instance_id") == key(7).instance.bytes_le
    assert heard.raw("user_defined") == b"abc".ljust(120, b"\0")
    assert (heard["flags"], heard["subchannel_index"]) == (0x2001, 3)
    assert (heard["mmio_megabytes"], heard["mmio_megabytes_optional"]) == (8, 9)


def test_a_channel_opens_and_closes(rig: Rig) -> None:
    rig.connected(1)
    ring = rig.guest.make_gpadl(1, 300)
    rig.guest.open_channel(1, ring.gpadl_id, split=100, target_vp=2, user_data=b"hello")
    rings = rig.owners[key(1)].rings
    assert rings is not None
    assert rings.ring_pfns == tuple(ring.pfns)
    assert (rings.downstream_page_offset, rings.target_vp, rings.target_sint) == (100, 2, 2)
    assert (rings.channel_id, rings.connection_id, rings.event_flag) == (1, 0x2001, 1)
    assert rings.user_data == b"hello".ljust(120, b"\0")
    assert rig.guest.channels[1].is_open
    rig.guest.close_channel(1)
    rig.guest.teardown(ring)
    assert rig.owners[key(1)].holds_nothing
    assert rig.guest.channels[1].gpadls == {}
    assert rig.errors == []


def test_a_channel_may_be_without_interrupt(rig: Rig) -> None:
    rig.connected(1)
    ring = rig.guest.make_gpadl(1, 4)
    rig.guest.open_channel(1, ring.gpadl_id, target_vp=model.NO_VP)
    rings = rig.owners[key(1)].rings
    assert rings is not None
    assert rings.target_vp is None


def test_the_owner_may_refuse(slow: Rig) -> None:
    slow.connected(1)
    ring = slow.opened(1)
    slow.open_result(key(1), ok=False)
    assert not slow.guest.channels[1].is_open
    assert slow.guest.last["status"] == 0x8000FFFF
    # The ring is the guest's to use again.
    slow.guest.open_channel(1, ring.gpadl_id)
    slow.open_result(key(1))
    assert slow.guest.channels[1].is_open


def test_a_ring_torn_down_while_it_opens_is_given_back_when_that_fails(slow: Rig) -> None:
    slow.connected(1)
    ring = slow.opened(1)
    slow.guest.teardown(ring)
    assert slow.owners[key(1)].releasing == []
    slow.open_result(key(1), ok=False)
    slow.release(key(1), ring.gpadl_id)
    assert slow.guest.last.type == model.GPADL_TORNDOWN


@pytest.mark.parametrize("split", [0, 1, 7, 8, 9, 0xFFFFFFFF])
def test_a_ring_without_room_is_refused(rig: Rig, split: int) -> None:
    rig.connected(1)
    ring = rig.guest.make_gpadl(1, 8)
    rig.guest.open_channel(1, ring.gpadl_id, split=split)
    assert rig.guest.last["status"] == 0x8000FFFF
    assert f"split at page {split}" in rig.errors[0]
    rig.guest.open_channel(1, ring.gpadl_id, split=6)
    assert rig.guest.channels[1].is_open


def test_a_ring_of_parts_of_pages_is_refused(rig: Rig) -> None:
    rig.connected(1)
    for length, offset, pages in ((8 * 4096, 8, 9), (8 * 4096 - 8, 0, 8)):
        pfns = rig.guest.allocate(pages)
        part = model.u32(length, offset) + model.u64(*pfns)
        gpadl = rig.guest.gpadl_begin(1, 0, ranges=[part])
        assert rig.guest.last["status"] == 0
        rig.guest.open_channel(1, gpadl.gpadl_id)
        assert rig.guest.last["status"] == 0x8000FFFF
        assert "whole pages" in rig.errors[-1]


def test_a_ring_of_another_channel_is_refused(rig: Rig) -> None:
    rig.connected(1, 2)
    ring = rig.guest.make_gpadl(2, 8)
    rig.guest.open_channel(1, ring.gpadl_id)
    assert rig.guest.last["status"] == 0x8000FFFF
    assert rig.owners[key(1)].holds_nothing
    assert "is not there" in rig.errors[0]


def test_a_channel_that_is_open_is_not_opened(slow: Rig) -> None:
    slow.connected(1)
    ring = slow.opened(1)
    slow.guest.open_channel(1, ring.gpadl_id)
    assert slow.guest.last["status"] == 0x8000FFFF
    slow.open_result(key(1))
    assert slow.guest.channels[1].is_open
    slow.guest.open_channel(1, ring.gpadl_id)
    assert slow.guest.last["status"] == 0x8000FFFF
    assert slow.guest.channels[1].is_open
    assert len(slow.errors) == 2


def test_close_then_open_at_once(slow: Rig) -> None:
    slow.connected(1)
    ring = slow.opened(1)
    slow.open_result(key(1))
    slow.guest.close_channel(1)
    slow.guest.open_channel(1, ring.gpadl_id, split=4)
    assert state(slow) is ChannelState.CLOSING_REOPEN
    assert slow.owners[key(1)].opening is None
    slow.close_done(key(1))
    opening = slow.owners[key(1)].opening
    assert opening is not None
    assert opening.downstream_page_offset == 4
    slow.open_result(key(1))
    assert slow.guest.channels[1].is_open


def test_close_open_and_close_at_once(slow: Rig) -> None:
    slow.connected(1)
    ring = slow.opened(1)
    slow.open_result(key(1))
    slow.guest.close_channel(1)
    slow.guest.open_channel(1, ring.gpadl_id)
    slow.guest.close_channel(1)
    slow.guest.teardown(ring)
    slow.close_done(key(1))
    slow.release(key(1), ring.gpadl_id)
    assert state(slow) is ChannelState.CLOSED
    assert slow.guest.last.type == model.GPADL_TORNDOWN
    assert slow.errors == []


def test_a_ring_torn_down_before_it_is_opened_again(slow: Rig) -> None:
    slow.connected(1)
    ring = slow.opened(1)
    slow.open_result(key(1))
    slow.guest.close_channel(1)
    slow.guest.open_channel(1, ring.gpadl_id)
    slow.guest.teardown(ring)
    slow.close_done(key(1))
    assert slow.guest.last.type == model.OPEN_RESULT
    assert slow.guest.last["status"] == 0x8000FFFF
    slow.release(key(1), ring.gpadl_id)
    assert slow.guest.last.type == model.GPADL_TORNDOWN


@pytest.mark.parametrize("ok", [True, False])
def test_closed_before_the_owner_answered(slow: Rig, ok: bool) -> None:
    slow.connected(1)
    ring = slow.opened(1)
    slow.guest.close_channel(1)
    slow.guest.teardown(ring)
    mark = len(slow.guest.heard)
    slow.open_result(key(1), ok=ok)
    assert slow.owners[key(1)].closing is ok
    if ok:
        slow.close_done(key(1))
    slow.release(key(1), ring.gpadl_id)
    assert slow.guest.since(mark) == [model.GPADL_TORNDOWN]


@pytest.mark.parametrize("closed", [0, 1])
def test_a_close_out_of_turn_is_the_guests_fault(slow: Rig, closed: int) -> None:
    slow.connected(1)
    if closed:
        slow.opened(1)
        slow.open_result(key(1))
        slow.guest.close_channel(1)
    slow.guest.close_channel(1)
    assert "is to be closed and is" in slow.errors[0]


# Modify.


def test_a_channel_moves(rig: Rig) -> None:
    rig.connected(1)
    rig.opened(1)
    rig.guest.modify(1, 3)
    assert rig.owners[key(1)].moved == [3]
    assert rig.guest.last.type == model.MODIFY_CHANNEL_RESPONSE
    assert rig.guest.last["status"] == 0
    saved = rig.bus.save().channels[0].open
    assert saved is not None
    assert saved.target_vp == 3


def test_before_5_3_a_move_has_no_answer(rig: Rig) -> None:
    rig.offer(offer(1))
    rig.guest.connect(Version.WIN10_RS5)
    rig.opened(1)
    mark = len(rig.guest.heard)
    rig.guest.modify(1, 3)
    rig.guest.modify(9, 3)
    assert rig.owners[key(1)].moved == [3]
    assert rig.guest.since(mark) == []
    assert len(rig.errors) == 1


def test_before_4_1_there_is_no_move(rig: Rig) -> None:
    rig.offer(offer(1))
    rig.guest.connect(Version.WIN10)
    rig.opened(1)
    rig.guest.modify(1, 3)
    assert rig.owners[key(1)].moved == []
    assert "not part of version 4.0" in rig.errors[0]


def test_a_move_that_cannot_be_is_refused(slow: Rig) -> None:
    slow.connected(1)
    slow.guest.modify(1, 1)
    assert slow.guest.last["status"] == 0x8000FFFF
    slow.opened(1)
    slow.guest.modify(1, 1)
    assert slow.guest.last["status"] == 0x8000FFFF
    slow.open_result(key(1))
    slow.guest.modify(1, model.NO_VP)
    assert slow.guest.last["status"] == 0x8000FFFF
    slow.guest.modify(2000, 1)
    assert slow.guest.last["status"] == 0x8000FFFF
    assert len(slow.errors) == 4
    assert slow.owners[key(1)].moved == []


def test_a_vp_that_is_not_there_is_refused(rig: Rig) -> None:
    rig.bus = BusHost(BusConfig(), is_vp=lambda vp: vp < 4)
    rig.connected(1)
    ring = rig.guest.make_gpadl(1, 8)
    rig.guest.open_channel(1, ring.gpadl_id, target_vp=4)
    assert rig.guest.last["status"] == 0x8000FFFF
    assert rig.owners[key(1)].rings is None
    rig.guest.open_channel(1, ring.gpadl_id, target_vp=3)
    assert rig.guest.channels[1].is_open
    rig.guest.modify(1, 4)
    assert rig.guest.last["status"] == 0x8000FFFF
    rig.guest.modify(1, 0)
    assert rig.guest.last["status"] == 0
    assert rig.owners[key(1)].moved == [0]
    assert ["VP 4" in error for error in rig.errors] == [True, True]


# Rescind, in every state that a channel can be in.


def _closed(rig: Rig) -> None:
    rig.guest.make_gpadl(1, 3)


def _opening(rig: Rig) -> None:
    rig.opened(1)


def _opening_close(rig: Rig) -> None:
    rig.opened(1)
    rig.guest.close_channel(1)


def _open(rig: Rig) -> None:
    rig.opened(1)
    rig.open_result(key(1))


def _closing(rig: Rig) -> None:
    _open(rig)
    rig.guest.close_channel(1)
    rig.guest.teardown(next(iter(rig.guest.channels[1].gpadls.values())))


def _closing_reopen(rig: Rig) -> None:
    _open(rig)
    rig.guest.close_channel(1)
    rig.guest.open_channel(1, next(iter(rig.guest.channels[1].gpadls)))


def _tearing_down(rig: Rig) -> None:
    rig.guest.teardown(rig.guest.make_gpadl(1, 3))


KNOWN: dict[str, tuple[Callable[[Rig], None], ChannelState, list[int]]] = {
    "closed": (_closed, ChannelState.CLOSED, []),
    "opening": (_opening, ChannelState.OPENING, [model.OPEN_RESULT]),
    "opening close": (_opening_close, ChannelState.OPENING_CLOSE, []),
    "open": (_open, ChannelState.OPEN, []),
    "closing": (_closing, ChannelState.CLOSING, [model.GPADL_TORNDOWN]),
    "closing reopen": (_closing_reopen, ChannelState.CLOSING_REOPEN, [model.OPEN_RESULT]),
    "tearing down": (_tearing_down, ChannelState.CLOSED, [model.GPADL_TORNDOWN]),
}


@pytest.mark.parametrize("reoffer", ["never", "before the release", "after the release"])
@pytest.mark.parametrize("name", KNOWN)
def test_rescind(slow: Rig, name: str, reoffer: str) -> None:
    prepare, expected, answers = KNOWN[name]
    slow.connected(1, 2)
    prepare(slow)
    assert state(slow) is expected
    mark = len(slow.guest.heard)
    slow.rescind(key(1))
    assert slow.guest.since(mark) == [*answers, model.RESCIND]
    if reoffer == "before the release":
        slow.offer(offer(1))
        assert state(slow) is ChannelState.REOFFERED
    else:
        assert state(slow) is ChannelState.REVOKED
    # The guest gives back what it has, as Linux does, and lets go.
    for gpadl in list(slow.guest.channels[1].gpadls.values()):
        slow.guest.teardown(gpadl)
        assert slow.guest.last.type == model.GPADL_TORNDOWN
    slow.guest.close_channel(1)
    mark = len(slow.guest.heard)
    slow.guest.release(1)
    assert ChannelReleased(key(1)) in slow.others
    if reoffer == "after the release":
        assert state(slow) is None
        slow.offer(offer(1))
    assert slow.guest.since(mark) == ([] if reoffer == "never" else [model.OFFER_CHANNEL])
    assert len(slow.bus.sharing.table) == 0
    assert slow.errors == []
    # The other channel never noticed.
    slow.opened(2)
    slow.open_result(key(2))
    assert slow.guest.channels[2].is_open
    if reoffer != "never":
        slow.opened(1)
        slow.open_result(key(1))
        assert slow.guest.channels[1].is_open


def _released(rig: Rig) -> None:
    gpadl = rig.guest.make_gpadl(1, 3)
    rig.guest.release(1)
    assert rig.owners[key(1)].releasing == [gpadl.gpadl_id]


def _opening_release(rig: Rig) -> None:
    _opening_close(rig)
    rig.guest.release(1)


def _closing_release(rig: Rig) -> None:
    _open(rig)
    rig.guest.close_channel(1)
    rig.guest.release(1)


UNKNOWN: dict[ChannelState, Callable[[Rig], None]] = {
    ChannelState.RELEASED: _released,
    ChannelState.OPENING_RELEASE: _opening_release,
    ChannelState.CLOSING_RELEASE: _closing_release,
}


@pytest.mark.parametrize("expected", UNKNOWN)
def test_rescind_after_the_guest_has_let_go(slow: Rig, expected: ChannelState) -> None:
    slow.connected(1, 2)
    UNKNOWN[expected](slow)
    assert state(slow) is expected
    mark = len(slow.guest.heard)
    slow.rescind(key(1))
    # The owner has let go of everything, and the guest has nothing to be told.
    assert slow.guest.since(mark) == []
    assert state(slow) is None
    assert len(slow.bus.sharing.table) == 0
    slow.offer(offer(1))
    slow.opened(1)
    slow.open_result(key(1))
    assert slow.guest.channels[1].is_open
    assert slow.errors == []


def test_every_state_is_rescinded_in_a_test() -> None:
    tried = {expected for _, expected, _ in KNOWN.values()} | set(UNKNOWN)
    # Of a channel that is revoked: test_a_reoffer_can_be_taken_back_and_made_again.
    assert tried | {ChannelState.REVOKED, ChannelState.REOFFERED} == set(ChannelState)


@pytest.mark.parametrize("name", KNOWN)
def test_rescind_without_a_guest(slow: Rig, name: str) -> None:
    prepare, _, _ = KNOWN[name]
    slow.connected(1)
    prepare(slow)
    slow.guest.unload()
    if slow.guest.connected:
        mark = len(slow.guest.heard)
        slow.rescind(key(1))
        assert slow.guest.since(mark) == [model.UNLOAD_COMPLETE]
    else:
        slow.rescind(key(1))
    assert state(slow) is None
    assert len(slow.bus.sharing.table) == 0
    slow.offer(offer(1))
    slow.guest.connect()
    assert list(slow.guest.channels) == [1]


@pytest.mark.parametrize("reoffered", [False, True])
def test_a_guest_that_unloads_instead_of_releasing(slow: Rig, reoffered: bool) -> None:
    slow.connected(1)
    _open(slow)
    slow.rescind(key(1))
    if reoffered:
        slow.offer(offer(1))
    slow.guest.unload()
    assert slow.guest.last.type == model.UNLOAD_COMPLETE
    slow.guest.connect()
    assert list(slow.guest.channels) == ([1] if reoffered else [])


def test_a_reoffer_can_be_taken_back_and_made_again(slow: Rig) -> None:
    slow.connected(1)
    slow.rescind(key(1))
    slow.offer(offer(1))
    slow.rescind(key(1))
    assert state(slow) is ChannelState.REVOKED
    slow.offer(Offer(key(1), b"new"))
    slow.guest.release(1)
    assert slow.guest.channels[1].offer.raw("user_defined")[:3] == b"new"


# What the guest sent before it saw the rescind.


def test_what_crosses_a_rescind(slow: Rig) -> None:
    slow.connected(1)
    early = slow.guest.make_gpadl(1, 8)
    half = slow.guest.gpadl_begin(1, 100)
    slow.hold = True
    slow.rescind(key(1))
    late = slow.guest.make_gpadl(1, 8)
    while half.unsent:
        slow.guest.gpadl_go_on(half)
    slow.guest.teardown(early)
    slow.guest.open_channel(1, late.gpadl_id)
    slow.guest.modify(1, 0)
    mark = len(slow.guest.heard)
    slow.pump()
    # GPADLs succeed: Linux does not cope with a failure. An open is not answered, as Hyper-V does.
    assert slow.guest.since(mark) == [
        model.RESCIND,
        model.GPADL_CREATED,
        model.GPADL_CREATED,
        model.GPADL_TORNDOWN,
        model.MODIFY_CHANNEL_RESPONSE,
    ]
    assert [gpadl.state for gpadl in slow.guest.channels[1].gpadls.values()] == ["created"] * 2
    slow.guest.release(1)
    assert len(slow.bus.sharing.table) == 0


def test_an_answer_of_the_owner_that_comes_after_its_rescind(slow: Rig) -> None:
    slow.connected(1)
    _opening(slow)
    slow.rescind(key(1))
    mark = len(slow.guest.heard)
    slow.apply(lambda bus: bus.open_result(key(1), True))
    slow.apply(lambda bus: bus.close_done(key(1)))
    slow.apply(lambda bus: bus.gpadl_released(key(1), 5))
    assert slow.guest.since(mark) == []
    assert state(slow) is ChannelState.REVOKED


# The guest lets go unasked, as Linux does with Hyper-V sockets.


def test_a_channel_released_without_a_rescind(slow: Rig) -> None:
    slow.connected(1)
    ring = slow.opened(1)
    slow.open_result(key(1))
    slow.guest.close_channel(1)
    slow.guest.release(1)
    assert state(slow) is ChannelState.CLOSING_RELEASE
    mark = len(slow.guest.heard)
    slow.close_done(key(1))
    slow.release(key(1), ring.gpadl_id)
    assert state(slow) is ChannelState.RELEASED
    # It comes back with the next connection, or when the owner offers it anew.
    assert slow.guest.since(mark) == []
    slow.rescind(key(1))
    slow.offer(offer(1))
    assert slow.guest.since(mark) == [model.OFFER_CHANNEL]
    slow.guest.release(1)
    slow.guest.unload()
    slow.guest.connect()
    assert list(slow.guest.channels) == [1]


@pytest.mark.parametrize("name", ["opening", "open", "closing reopen"])
def test_a_channel_in_use_is_not_released(slow: Rig, name: str) -> None:
    slow.connected(1)
    KNOWN[name][0](slow)
    before = state(slow)
    slow.apply(lambda bus: bus.guest_message(4, model.u32(model.RELID_RELEASED, 0, 1)))
    assert "is to be released and is" in slow.errors[0]
    assert state(slow) is before


@pytest.mark.parametrize("ok", [True, False])
def test_a_channel_released_before_the_owner_answered(slow: Rig, ok: bool) -> None:
    slow.connected(1)
    ring = slow.opened(1)
    slow.guest.close_channel(1)
    slow.guest.release(1)
    mark = len(slow.guest.heard)
    slow.open_result(key(1), ok=ok)
    if ok:
        slow.close_done(key(1))
    slow.release(key(1), ring.gpadl_id)
    assert state(slow) is ChannelState.RELEASED
    assert slow.guest.since(mark) == []


# Channel ids.


def test_ids_stay_for_the_life_of_the_machine(rig: Rig) -> None:
    rig.connected(1, 2, 3)
    rig.rescind(key(2))
    rig.guest.release(2)
    rig.offer(offer(4))
    rig.reset()
    rig.offer(offer(2))
    rig.guest.connect()
    ids = {
        channel.offer.raw("instance_id"): channel_id
        for channel_id, channel in rig.guest.channels.items()
    }
    assert ids == {key(n).instance.bytes_le: n for n in (1, 2, 3, 4)}


def test_ids_run_out_only_when_all_are_in_use(rig: Rig) -> None:
    for number in range(1, 2048):
        rig.bus.offer(Offer(key(number)))
    with pytest.raises(ValueError, match="2047 channel ids"):
        rig.bus.offer(Offer(key(5000)))
    rig.bus.rescind(key(77))
    rig.bus.offer(Offer(key(5000)))
    assert rig.id_of(key(5000)) == 77
    rig.pump()
    rig.guest.connect()
    assert len(rig.guest.channels) == 2047


# What owners do wrong.


def test_owners_are_told_what_they_do_wrong(slow: Rig) -> None:
    bus = slow.connected(1).bus
    wrong: list[tuple[Callable[[], None], str]] = [
        (lambda: bus.offer(offer(1)), "offered already"),
        (lambda: bus.offer(Offer(key(2), bytes(121))), "121 bytes"),
        (lambda: bus.rescind(key(2)), "is not offered"),
        (lambda: bus.open_result(key(1), True), "nobody asked to open"),
        (lambda: bus.close_done(key(1)), "nobody asked to close"),
    ]
    for call, text in wrong:
        with pytest.raises(ValueError, match=text):
            call()
    slow.rescind(key(1))
    with pytest.raises(ValueError, match="is not offered"):
        bus.rescind(key(1))
    assert OfferKey(INTERFACE, key(2).instance) not in bus.table.ids


def test_status_for_people(rig: Rig) -> None:
    rig.connected(1)
    rig.offer(offer(2, 1))
    assert rig.bus.channels() == [
        f"1 {INTERFACE}:{key(1).instance} closed",
        f"2 {INTERFACE}:{key(2).instance} sub 1 closed",
    ]
    assert rig.bus.offers() == [offer(1), offer(2, 1)]
