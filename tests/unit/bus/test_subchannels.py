# SPDX-License-Identifier: MIT
"""Sub-channels live for one opening of their device, and go before their primary."""

from __future__ import annotations

import pytest

from emulator.bus import BusHost, ChannelClosing, ChannelState, RestoreMismatch, SubchannelOrphaned
from emulator.model import guest as model
from tests.unit.bus.rig import Rig, key, offer
from tests.unit.bus.test_save import transfer


def opened(rig: Rig) -> list[int]:
    """Open a device of a primary and two sub-channels; returns their channel ids in order."""
    rig.connected(1, 2)
    ids = []
    for sub in (0, 1, 2):
        which = key(1, sub)
        if sub:
            rig.offer(offer(1, sub))
        channel_id = rig.id_of(which)
        ring = rig.guest.make_gpadl(channel_id, 8)
        rig.guest.open_channel(channel_id, ring.gpadl_id)
        rig.open_result(which)
        ids.append(channel_id)
    assert all(rig.guest.channels[channel_id].is_open for channel_id in ids)
    return ids


def orphaned(rig: Rig) -> list[int]:
    return [which.subchannel_index for which, owner in rig.owners.items() if owner.orphaned]


def rescinds(rig: Rig, mark: int) -> list[int]:
    return [heard["channel_id"] for heard in rig.guest.heard[mark:] if heard.type == model.RESCIND]


def test_sub_channels_are_rescinded_when_their_primary_closes(slow: Rig) -> None:
    primary, *subs = opened(slow)
    slow.hold = True
    slow.guest.close_channel(primary)
    effects = slow.bus.take_effects()
    # The last first, and all of them before the primary.
    assert effects == [
        SubchannelOrphaned(key(1, 2)),
        SubchannelOrphaned(key(1, 1)),
        ChannelClosing(key(1)),
    ]
    slow.hold = False
    for effect in effects:
        slow.carry_out(effect)
    mark = len(slow.guest.heard)
    slow.rescind(key(1, 2))
    slow.rescind(key(1, 1))
    slow.close_done(key(1))
    assert rescinds(slow, mark) == subs[::-1]
    assert len(slow.bus.channels()) == 4
    for channel_id in subs:
        slow.guest.release(channel_id)
    assert len(slow.bus.channels()) == 2
    # The device opens again, and has sub-channels again.
    ring = next(iter(slow.guest.channels[primary].gpadls))
    slow.guest.open_channel(primary, ring)
    slow.open_result(key(1))
    slow.offer(offer(1, 1))
    assert subs[0] in slow.guest.channels
    assert orphaned(slow) == []
    assert slow.errors == []


def test_a_sub_channel_that_closes_takes_nobody_with_it(slow: Rig) -> None:
    primary, first, second = opened(slow)
    slow.guest.close_channel(first)
    assert orphaned(slow) == []
    slow.close_done(key(1, 1))
    assert slow.guest.channels[primary].is_open
    assert slow.guest.channels[second].is_open


def test_a_primary_with_sub_channels_is_not_rescinded(slow: Rig) -> None:
    opened(slow)
    mark = len(slow.guest.heard)
    with pytest.raises(ValueError, match="sub 2; rescind that first"):
        slow.bus.rescind(key(1))
    assert slow.bus.subchannels(key(1)) == [key(1, 2), key(1, 1)]
    for sub in (2, 1, 0):
        slow.rescind(key(1, sub))
    assert rescinds(slow, mark) == [slow.id_of(key(1, sub)) for sub in (2, 1, 0)]
    assert slow.bus.subchannels(key(1)) == []


@pytest.mark.parametrize("way", ["unload", "contact", "reset"])
def test_the_next_guest_has_no_sub_channels(slow: Rig, way: str) -> None:
    opened(slow)
    match way:
        case "unload":
            slow.guest.unload()
        case "contact":
            slow.guest.contact()
        case "reset":
            slow.reset()
    assert orphaned(slow) == [1, 2]
    while any(owner.pages for owner in slow.owners.values()):
        slow.answer_all()
    slow.guest.connect()
    assert sorted(slow.guest.channels) == [1, 2]
    assert slow.errors == []


def test_a_restore_asks_again(slow: Rig) -> None:
    primary, *_ = opened(slow)
    slow.guest.close_channel(primary)
    assert orphaned(slow) == [1, 2]
    slow.rescind(key(1, 2))
    effects = transfer(slow, [offer(1), offer(1, 1), offer(2)])
    assert [effect for effect in effects if isinstance(effect, SubchannelOrphaned)] == [
        SubchannelOrphaned(key(1, 1))
    ]
    slow.rescind(key(1, 1))
    slow.close_done(key(1))
    assert slow.bus.table.table[key(1)].state is ChannelState.CLOSED


def test_a_sub_channel_is_not_restored_without_its_primary(slow: Rig) -> None:
    opened(slow)
    bus = BusHost(slow.config)
    bus.restore(slow.bus.save())
    bus.offer(offer(1, 1))
    with pytest.raises(RestoreMismatch, match="sub 1 is offered without its primary"):
        bus.finish_restore()


def test_a_sub_channel_that_outlived_its_primary_is_restored(slow: Rig) -> None:
    # Found by fuzzing: the primary is rescinded, and the guest has not let go of it.
    slow.connected(1)
    slow.rescind(key(1))
    slow.offer(offer(1, 1))
    assert transfer(slow, [offer(1, 1)]) == []
    slow.guest.release(1)
    assert list(slow.guest.channels) == [2]
