# SPDX-License-Identifier: MIT
"""Save and restore at every point of the life of a channel, and snapshots that do not fit."""

from __future__ import annotations

import re
from collections.abc import Callable
from typing import Any

import msgspec
import pytest

from emulator.bus import (
    BusConfig,
    BusHost,
    BusState,
    ChannelClosing,
    ChannelState,
    Effect,
    GpadlCreated,
    GpadlTearingDown,
    Offer,
    RestoredChannel,
    RestoreMismatch,
    SendMessage,
)
from emulator.model import guest as model
from emulator.wire.version import Version
from tests.unit.bus.rig import Rig, key, offer


def transfer(rig: Rig, offers: list[Offer], config: BusConfig | None = None) -> list[Effect]:
    """Carry the bus over to a fresh one through bytes, and offer; returns what that one wants."""
    data = msgspec.msgpack.encode(rig.bus.save())
    rig.bus = BusHost(config or rig.config)
    rig.bus.restore(msgspec.msgpack.decode(data, type=BusState))
    for what in offers:
        rig.bus.offer(what)
    assert rig.bus.take_effects() == []
    rig.bus.finish_restore()
    return rig.bus.take_effects()


def messages(effects: list[Effect]) -> list[int]:
    return [effect.payload[0] for effect in effects if isinstance(effect, SendMessage)]


def take(rig: Rig, effects: list[Effect]) -> None:
    """Give messages to the guest; questions were asked before, and the owners remember them."""
    for effect in effects:
        if isinstance(effect, SendMessage):
            rig.carry_out(effect)


# A channel in each state.


def test_a_plain_restore_shows_the_guest_nothing(rig: Rig) -> None:
    rig.connected(1, 2)
    ring = rig.opened(1)
    other = rig.guest.make_gpadl(1, 30)
    rings = rig.owners[key(1)].rings
    state = rig.bus.save()
    fresh = BusHost(rig.config)
    assert fresh.restore(state) == [
        RestoredChannel(key(1), rings),
        RestoredChannel(key(2), None),
    ]
    effects = transfer(rig, [offer(2), offer(1)])
    assert effects == [
        GpadlCreated(key(1), gpadl.gpadl_id, rig.owners[key(1)].gpadls[gpadl.gpadl_id])
        for gpadl in (ring, other)
    ]
    # Life goes on.
    assert rig.bus.save() == state
    rig.guest.modify(1, 1)
    rig.guest.close_channel(1)
    rig.guest.teardown(ring)
    rig.guest.teardown(other)
    rig.opened(2)
    assert rig.guest.channels[2].is_open
    assert rig.owners[key(1)].holds_nothing
    assert rig.errors == []


def test_before_there_was_a_guest(rig: Rig) -> None:
    rig.offer(offer(1))
    assert transfer(rig, [offer(1)]) == []
    rig.guest.connect()
    assert list(rig.guest.channels) == [1]


def test_between_contact_and_request_offers(rig: Rig) -> None:
    rig.offer(offer(1))
    rig.guest.contact(Version.WIN8_1, vp=3)
    assert transfer(rig, [offer(1), offer(2)]) == []
    rig.guest.request_offers()
    assert list(rig.guest.channels) == [1, 2]


def test_a_half_received_gpadl(rig: Rig) -> None:
    rig.connected(1, 2)
    first, second = rig.guest.gpadl_begin(1, 100), rig.guest.gpadl_begin(2, 100)
    rig.guest.gpadl_go_on(first)
    assert transfer(rig, [offer(1), offer(2)]) == []
    while second.unsent:
        rig.guest.gpadl_go_on(second)
        take(rig, transfer(rig, [offer(1), offer(2)]))
    while first.unsent:
        rig.guest.gpadl_go_on(first)
    assert (first.state, second.state) == ("created", "created")
    assert rig.owners[key(1)].gpadls[first.gpadl_id][0].pfns == tuple(first.pfns)
    assert rig.owners[key(2)].gpadls[second.gpadl_id][0].pfns == tuple(second.pfns)


def test_a_half_received_gpadl_with_the_id_of_a_whole_one_of_another_channel(rig: Rig) -> None:
    rig.connected(1, 2)
    # The table lists channel 1 first, and with it what is not whole before what is.
    rig.guest.make_gpadl(1, 4)
    rig.guest.gpadl_begin(2, 4, gpadl_id=0x77)
    half = rig.guest.gpadl_begin(1, 100, gpadl_id=0x77)
    assert [saved.gpadl_id for saved in rig.bus.save().gpadls][1:] == [0x77, 0x77]
    transfer(rig, [offer(1), offer(2)])
    while half.unsent:
        rig.guest.gpadl_go_on(half)
    assert half.state == "created"
    assert not rig.errors


def test_opening_is_restored_open_and_the_guest_is_told(slow: Rig) -> None:
    slow.connected(1)
    slow.opened(1)
    effects = transfer(slow, [offer(1)])
    assert messages(effects) == [model.OPEN_RESULT]
    take(slow, effects)
    assert slow.guest.channels[1].is_open
    with pytest.raises(ValueError, match="nobody asked"):
        slow.bus.open_result(key(1), True)


def test_opening_to_be_closed_is_closed_after_the_restore(slow: Rig) -> None:
    slow.connected(1)
    ring = slow.opened(1)
    slow.guest.close_channel(1)
    slow.guest.teardown(ring)
    effects = transfer(slow, [offer(1)])
    assert messages(effects) == []
    assert ChannelClosing(key(1)) in effects
    assert slow.owners[key(1)].opening is not None
    slow.owners[key(1)].opening, slow.owners[key(1)].closing = None, True
    slow.close_done(key(1))
    slow.release(key(1), ring.gpadl_id)
    assert slow.guest.last.type == model.GPADL_TORNDOWN


@pytest.mark.parametrize("reopen", [False, True])
def test_a_close_is_asked_again(slow: Rig, reopen: bool) -> None:
    slow.connected(1)
    ring = slow.opened(1)
    slow.open_result(key(1))
    slow.guest.close_channel(1)
    if reopen:
        slow.guest.open_channel(1, ring.gpadl_id, split=4)
    effects = transfer(slow, [offer(1)])
    assert effects[-1] == ChannelClosing(key(1))
    assert messages(effects) == []
    slow.close_done(key(1))
    opening = slow.owners[key(1)].opening
    if reopen:
        assert opening is not None
        assert opening.downstream_page_offset == 4
        slow.open_result(key(1))
    else:
        assert opening is None
    assert slow.guest.channels[1].is_open is reopen


def test_a_teardown_is_asked_again(slow: Rig) -> None:
    slow.connected(1)
    gpadl = slow.guest.make_gpadl(1, 3)
    slow.guest.teardown(gpadl)
    assert transfer(slow, [offer(1)]) == [GpadlTearingDown(key(1), gpadl.gpadl_id)]
    slow.release(key(1), gpadl.gpadl_id)
    assert slow.guest.last.type == model.GPADL_TORNDOWN


@pytest.mark.parametrize("way", ["unload", "contact", "reset"])
@pytest.mark.parametrize("opened", [False, True])
def test_a_connection_that_is_ending(slow: Rig, way: str, opened: bool) -> None:
    slow.connected(1)
    ring = slow.opened(1)
    if opened:
        slow.open_result(key(1))
    match way:
        case "unload":
            slow.guest.unload()
        case "contact":
            slow.guest.contact(Version.WIN10, vp=1)
        case "reset":
            slow.reset()
    mark = len(slow.guest.heard)
    effects = transfer(slow, [offer(1)])
    assert effects[-1] == ChannelClosing(key(1))
    if not opened:
        slow.owners[key(1)].opening, slow.owners[key(1)].closing = None, True
    slow.close_done(key(1))
    assert slow.bus.table.table[key(1)].state is ChannelState.RELEASED
    assert transfer(slow, [offer(1)]) == [GpadlTearingDown(key(1), ring.gpadl_id)]
    assert slow.guest.since(mark) == []
    slow.release(key(1), ring.gpadl_id)
    expected = {"unload": [model.UNLOAD_COMPLETE], "contact": [model.VERSION_RESPONSE], "reset": []}
    assert slow.guest.since(mark) == expected[way]
    slow.guest.connect()
    assert list(slow.guest.channels) == [1]


def test_a_reset_while_a_contact_waits(slow: Rig) -> None:
    slow.connected(1)
    slow.opened(1)
    slow.guest.contact()
    slow.reset()
    assert slow.bus.save().next_contact is None
    assert ChannelClosing(key(1)) in transfer(slow, [offer(1)])


def test_a_channel_that_the_guest_released(slow: Rig) -> None:
    slow.connected(1)
    gpadl = slow.guest.make_gpadl(1, 3)
    slow.guest.release(1)
    # It is not told of it again until it connects again.
    assert transfer(slow, [offer(1)]) == [GpadlTearingDown(key(1), gpadl.gpadl_id)]
    slow.release(key(1), gpadl.gpadl_id)
    slow.guest.unload()
    slow.guest.connect()
    assert list(slow.guest.channels) == [1]


# Channels that come and go with the restore.


def test_what_nobody_claims_is_rescinded_sub_channels_first(slow: Rig) -> None:
    for sub in (0, 1, 2):
        slow.offer(offer(1, sub))
    slow.connected(2)
    slow.opened(1)
    slow.open_result(key(1))
    effects = transfer(slow, [offer(2)])
    assert messages(effects) == [model.RESCIND] * 3
    rescinded = [
        int.from_bytes(e.payload[8:12], "little") for e in effects if isinstance(e, SendMessage)
    ]
    assert rescinded == [slow.id_of(key(1, sub)) for sub in (2, 1, 0)]
    assert len(effects) == 3
    slow.owners = {key(2): slow.owners[key(2)]}
    take(slow, effects)
    slow.guest.release(1)
    slow.offer(offer(1))
    assert slow.guest.channels[1].offer["subchannel_index"] == 0


def test_what_is_new_is_offered_if_the_guest_has_asked(rig: Rig) -> None:
    rig.connected(1)
    effects = transfer(rig, [offer(3), offer(1), offer(2)])
    assert messages(effects) == [model.OFFER_CHANNEL] * 2
    take(rig, effects)
    assert list(rig.guest.channels) == [1, 2, 3]


def test_what_has_changed_is_rescinded_and_offered(slow: Rig) -> None:
    slow.connected(1, 2, 3)
    gpadl = slow.opened(1)
    slow.open_result(key(1))
    slow.guest.release(3)
    state = slow.bus.save()
    slow.bus = BusHost(slow.config)
    slow.bus.restore(state)
    assert slow.bus.has_changed(Offer(key(1), b"other"))
    assert not slow.bus.has_changed(offer(1))
    assert not slow.bus.has_changed(Offer(key(3), b"the guest does not know it"))
    slow.bus.offer(Offer(key(1), b"other"), anew=True)
    slow.bus.offer(offer(2))
    slow.bus.offer(Offer(key(3), b"other"), anew=True)
    slow.bus.offer(offer(4), anew=True)
    assert slow.bus.take_effects() == []
    slow.bus.finish_restore()
    effects = slow.bus.take_effects()
    # What the guest had let go of is told of again: it is another channel now.
    assert messages(effects) == [model.RESCIND, model.OFFER_CHANNEL, model.OFFER_CHANNEL]
    take(slow, effects)
    slow.owners[key(1)].rings = None
    slow.owners[key(1)].gpadls.clear()
    slow.guest.teardown(gpadl)
    slow.guest.close_channel(1)
    slow.guest.release(1)
    said = {n: c.offer.raw("user_defined")[:5] for n, c in slow.guest.channels.items()}
    assert said == {1: b"other", 2: b"\2" * 5, 3: b"other", 4: b"\4" * 5}
    assert slow.errors == []


def test_rescinded_and_offered_again_during_the_restore(slow: Rig) -> None:
    slow.connected(1)
    slow.opened(1)
    slow.open_result(key(1))
    state = slow.bus.save()
    slow.bus = BusHost(slow.config)
    slow.bus.restore(state)
    with pytest.raises(ValueError, match="is not offered"):
        slow.bus.rescind(key(1))
    slow.bus.offer(offer(1))
    slow.bus.rescind(key(1))
    slow.bus.offer(Offer(key(1), b"other"))
    slow.bus.offer(offer(5))
    slow.bus.rescind(key(5))
    slow.bus.finish_restore()
    effects = slow.bus.take_effects()
    assert messages(effects) == [model.RESCIND]
    assert len(effects) == 1
    del slow.owners[key(1)]
    take(slow, effects)
    slow.guest.release(1)
    assert slow.guest.channels[1].offer.raw("user_defined")[:5] == b"other"


@pytest.mark.parametrize("reoffered", [False, True])
@pytest.mark.parametrize("claimed", [False, True])
def test_a_channel_that_was_revoked(slow: Rig, reoffered: bool, claimed: bool) -> None:
    slow.connected(1)
    gpadl = slow.guest.make_gpadl(1, 3)
    slow.rescind(key(1))
    if reoffered:
        slow.offer(offer(1))
    # An offer that the guest has not seen may differ.
    assert transfer(slow, [Offer(key(1), b"other")] if claimed else []) == []
    slow.owners.clear()
    slow.guest.teardown(gpadl)
    assert slow.guest.last.type == model.GPADL_TORNDOWN
    slow.guest.release(1)
    assert list(slow.guest.channels) == ([1] if claimed else [])


def test_a_new_channel_never_gets_the_id_of_one_that_waits_for_its_claim(rig: Rig) -> None:
    rig.connected(1)
    take(rig, transfer(rig, [offer(2), offer(1)]))
    assert (rig.id_of(key(1)), rig.id_of(key(2))) == (1, 2)


# Snapshots that do not fit.


def _state(slow: Rig) -> Any:
    """A state with something of everything, as what the decoder of a snapshot sees."""
    slow.connected(1, 2, 3, 4)
    for number in (1, 2):
        slow.opened(number)
        slow.open_result(key(number))
    slow.guest.close_channel(2)
    slow.guest.open_channel(2, next(iter(slow.guest.channels[2].gpadls)))
    slow.guest.gpadl_begin(3, 50)
    slow.rescind(key(4))
    return msgspec.to_builtins(slow.bus.save())


def _set(*path: str | int, to: Any) -> Callable[[Any], None]:
    def change(state: Any) -> None:
        for step in path[:-1]:
            state = state[step]
        state[path[-1]] = to

    return change


WRONG: dict[str, tuple[Callable[[Any], None], str]] = {
    "version": (_set("version", to=2), "bus state version 2, not 1"),
    "newer protocol": (_set("contact", "version", to=0x60001), "guest speaks VMBus 6.1"),
    "unknown protocol": (_set("contact", "version", to=0x50004), "guest speaks VMBus 5.4"),
    "refused contact": (_set("contact", "verdict", to="failed"), "connection that was refused"),
    "no contact": (_set("contact", to=None), "guest knows channels without a connection"),
    "owed": (_set("ending", to="version response"), "owed to the guest contradicts"),
    "ids twice": (lambda s: s["ids"].append(s["ids"][0]), "channel ids contradicts"),
    "no id": (lambda s: s["ids"].pop(), "has no id"),
    "channel twice": (lambda s: s["channels"].append(s["channels"][0]), "there twice"),
    "closed with rings": (_set("channels", 0, "state", to="closed"), "contradict the state closed"),
    "open without rings": (_set("channels", 0, "open", to=None), "contradict the state open"),
    "reopen": (_set("channels", 1, "reopen", to=None), "rings contradict the state closing, to"),
    "no ring": (lambda s: s["gpadls"].pop(0), "of its rings is not there"),
    "split": (
        _set("channels", 0, "open", "downstream_page_offset", to=7),
        "rings do not fit GPADL",
    ),
    "gpadl twice": (lambda s: s["gpadls"].append(s["gpadls"][0]), "it exists already"),
    "gpadl of nobody": (_set("gpadls", 2, "channel_id", to=99), "channel 99, which does not"),
    "gpadl short": (_set("gpadls", 0, "data", to=b""), "accepted with 0 of 72 bytes"),
    "gpadl phase": (_set("gpadls", 2, "phase", to="accepted"), "accepted with 216 of 408 bytes"),
    "gpadl garbage": (_set("gpadls", 0, "data", to=b"\xff" * 72), "does not fit its pages"),
}


@pytest.mark.parametrize("name", WRONG)
def test_a_state_that_contradicts_itself(slow: Rig, name: str) -> None:
    change, text = WRONG[name]
    state = _state(slow)
    for gpadl in state["gpadls"]:
        gpadl["data"] = msgspec.convert(gpadl["data"], bytes)
    for channel in state["channels"]:
        for place in (channel["offer"], channel["open"], channel["reopen"]):
            for field in {"user_defined", "user_data"} & set(place or ()):
                place[field] = msgspec.convert(place[field], bytes)
    BusHost(slow.config).restore(msgspec.convert(state, BusState))
    change(state)
    with pytest.raises(RestoreMismatch, match=re.escape(text)):
        BusHost(slow.config).restore(msgspec.convert(state, BusState))


@pytest.mark.parametrize(
    "change",
    [
        _set("surprise", to=1),
        _set("contact", "sint", to=16),
        _set("contact", "vp", to=-1),
        _set("contact", "vp", to=2**32),
        _set("channels", 0, "state", to="sleeping"),
        _set("channels", 0, "key", "subchannel_index", to=65536),
        _set("channels", 0, "open", "target_vp", to=2**32),
        _set("gpadls", 0, "length", to=65536),
    ],
)
def test_a_state_that_is_no_state_is_not_decoded(slow: Rig, change: Callable[[Any], None]) -> None:
    state = _state(slow)
    change(state)
    with pytest.raises(msgspec.ValidationError):
        msgspec.convert(state, BusState)


def test_quotas_hold_for_snapshots(rig: Rig) -> None:
    rig.connected(1)
    rig.guest.make_gpadl(1, 30)
    rig.guest.make_gpadl(1, 30)
    state = rig.bus.save()
    for config, text in (
        (BusConfig(max_pages=61), "61 pages"),
        (BusConfig(max_gpadls_per_channel=1), "1 GPADLs already"),
    ):
        with pytest.raises(RestoreMismatch, match=text):
            BusHost(config).restore(state)


def test_all_mismatches_are_told_at_once(rig: Rig) -> None:
    rig.connected(1, 2, 3, 4)
    bus = BusHost(rig.config)
    bus.restore(rig.bus.save())
    bus.offer(offer(1))
    bus.offer(Offer(key(2), bytes([2]) * 8, flags=1, mmio_megabytes=1, mmio_megabytes_optional=1))
    bus.offer(Offer(key(3), b"\3", flags=0))
    # Trailing zeros are what the guest sees anyway.
    bus.offer(Offer(key(4), bytes([4]) * 8 + bytes(8), flags=1))
    with pytest.raises(RestoreMismatch) as caught:
        bus.finish_restore()
    assert caught.value.problems == [
        f"{key(2)} is offered with other MMIO, optional MMIO than the guest knows",
        f"{key(3)} is offered with other data, flags than the guest knows",
    ]


def test_the_version_limits_of_connect_and_restore_differ(rig: Rig) -> None:
    rig.connected(1)
    state = rig.bus.save()
    rolled_back = BusConfig(max_version=Version.WIN10)
    transfer(rig, [offer(1)], rolled_back)
    rig.guest.modify(1, 0)
    rig.guest.contact(Version.IRON)
    assert rig.guest.last["supported"] == 0
    strict = BusConfig(max_version=Version.WIN10, max_restored_version=Version.WIN10)
    with pytest.raises(RestoreMismatch, match=r"speaks VMBus 5\.3, .* allows 0\.13 to 4\.0"):
        BusHost(strict).restore(state)


def test_misuse(rig: Rig) -> None:
    rig.connected(1)
    state = rig.bus.save()
    with pytest.raises(ValueError, match="fresh"):
        rig.bus.restore(state)
    with pytest.raises(ValueError, match="no restore"):
        rig.bus.finish_restore()
    bus = BusHost(rig.config)
    bus.restore(state)
    with pytest.raises(ValueError, match="fresh"):
        bus.restore(state)
    with pytest.raises(ValueError, match="finish the restore"):
        bus.save()
    bus.offer(offer(1))
    with pytest.raises(ValueError, match="offered already"):
        bus.offer(offer(1))
    bus.finish_restore()
    bus.guest_message(4, b"")
    with pytest.raises(ValueError, match="take the effects"):
        bus.save()
