# SPDX-License-Identifier: MIT
"""What version 6.0 adds: features, signal parameters, new monitor pages, a pause."""

from __future__ import annotations

from collections.abc import Iterator
from uuid import UUID

import msgspec
import pytest

from emulator.bus import BusConfig, BusHost, BusState
from emulator.bus.restoring import RestoreMismatch
from emulator.model import guest as model
from emulator.wire.version import FeatureFlags as F
from emulator.wire.version import Version
from tests.unit.bus.rig import Rig, key, offer
from tests.unit.bus.test_save import transfer

ASKED = 0x2F
CLIENT = bytes(range(16))


@pytest.fixture
def rig() -> Iterator[Rig]:
    """A bus with two channels, and a guest of version 6.0 with everything it can get."""
    rig = Rig(BusConfig(max_held_messages=8))
    rig.offer(offer(1))
    rig.offer(offer(2))
    rig.guest.contact(Version.COPPER, features=ASKED, client_id=CLIENT)
    rig.guest.request_offers()
    yield rig
    rig.close()


def test_features_are_granted_if_asked_for(rig: Rig) -> None:
    assert rig.guest.features == ASKED
    for bit in range(32):
        rig.guest.contact(Version.COPPER, features=1 << bit, client_id=CLIENT)
        assert rig.guest.connected
        assert rig.guest.features == (1 << bit) & ASKED
        assert rig.bus.features == F(rig.guest.features)
    # The confidential bit, monitor pages of the host, pinning: never.
    rig.guest.contact(Version.COPPER, features=0xFFFFFFFF, client_id=CLIENT)
    assert rig.guest.features == ASKED


def test_before_6_0_there_are_no_features(rig: Rig) -> None:
    rig.guest.contact(Version.IRON, features=ASKED, client_id=CLIENT)
    assert len(rig.guest.last.body) == 8
    assert rig.bus.features == F.NONE


def test_the_client_id_is_that_of_the_longer_contact(rig: Rig) -> None:
    assert rig.bus.contact is not None
    assert rig.bus.contact.client_id == UUID(bytes_le=CLIENT)
    rig.guest.contact(Version.COPPER, features=ASKED)
    assert rig.guest.features == ASKED & ~0x08
    rig.guest.contact(Version.COPPER, features=0, client_id=CLIENT)
    assert rig.bus.contact.client_id == UUID(int=0)


@pytest.mark.parametrize("feature", [0x01, 0x02, 0x03, 0])
def test_signal_parameters_count_only_with_their_feature(rig: Rig, feature: int) -> None:
    rig.guest.contact(Version.COPPER, features=feature)
    rig.guest.request_offers()
    gpadl = rig.guest.make_gpadl(1, 8)
    # Redirection (bit 0) has no other place to go to here.
    rig.guest.open_channel(1, gpadl.gpadl_id, signal=(0x1234, 77, 1))
    rings = rig.owners[key(1)].rings
    assert rings is not None
    chosen = (rings.connection_id, rings.event_flag, rings.target_sint)
    assert chosen == ((0x1234, 77, 2) if feature & 1 else (0x2001, 1, 2))


@pytest.mark.parametrize(
    ("connection_id", "event_flag", "text"),
    [
        (0, 5, "not an event connection"),
        (1, 5, "not an event connection"),
        (2, 5, "not an event connection"),
        (4, 5, "not an event connection"),
        (0x0100_0000, 5, "not an event connection"),
        (0x3001, 0, "event flag 0"),
        (0x3001, 2048, "event flag 2048"),
        (0x3002, 5, "channel 2 has connection 0x3002"),
    ],
)
def test_signal_parameters_are_checked(
    rig: Rig, connection_id: int, event_flag: int, text: str
) -> None:
    other = rig.guest.make_gpadl(2, 8)
    rig.guest.open_channel(2, other.gpadl_id, signal=(0x3002, 9, 0))
    gpadl = rig.guest.make_gpadl(1, 8)
    rig.guest.open_channel(1, gpadl.gpadl_id, signal=(connection_id, event_flag, 0))
    assert rig.guest.last["status"] == 0x8000FFFF
    assert text in rig.errors[0]
    rig.guest.open_channel(1, gpadl.gpadl_id, signal=(0x00FF_FFFF, 2047, 0))
    assert rig.guest.channels[1].is_open
    assert rig.guest.channels[2].is_open


def test_signal_parameters_are_restored(rig: Rig) -> None:
    gpadl = rig.guest.make_gpadl(1, 8)
    rig.guest.open_channel(1, gpadl.gpadl_id, signal=(0x1234, 77, 0))
    rings = rig.owners[key(1)].rings
    data = msgspec.msgpack.encode(rig.bus.save())
    fresh = BusHost(rig.config)
    restored = fresh.restore(msgspec.msgpack.decode(data, type=BusState))
    assert restored[0].open == rings
    transfer(rig, [offer(1), offer(2)])
    assert rig.bus.features == F(ASKED)
    # The next open of another channel is compared with what was restored.
    other = rig.guest.make_gpadl(2, 8)
    rig.guest.open_channel(2, other.gpadl_id, signal=(0x1234, 78, 0))
    assert "channel 1 has connection 0x1234" in rig.errors[0]


@pytest.mark.parametrize(
    ("pages", "state", "kept"),
    [
        ((0x5000, 0x6000), 0, (0x5000, 0x6000)),
        ((0, 0), 0, None),
        ((0x5000, 0), 2, (0x1000, 0x2000)),
        ((0x5000, 0x6001), 2, (0x1000, 0x2000)),
    ],
)
def test_monitor_pages_change(
    rig: Rig, pages: tuple[int, int], state: int, kept: tuple[int, int] | None
) -> None:
    rig.guest.post(model.MODIFY_CONNECTION, model.u64(*pages))
    assert (rig.guest.last.type, rig.guest.last["state"]) == (
        model.MODIFY_CONNECTION_RESPONSE,
        state,
    )
    transfer(rig, [offer(1), offer(2)])
    assert rig.bus.contact is not None
    assert rig.bus.contact.monitor_pages == kept
    assert len(rig.errors) == (state != 0)


@pytest.mark.parametrize("kind", [model.MODIFY_CONNECTION, model.PAUSE, model.RESUME])
def test_a_message_of_a_feature_that_was_not_granted_is_refused(rig: Rig, kind: int) -> None:
    rig.guest.contact(Version.COPPER, features=0)
    mark = len(rig.guest.heard)
    rig.guest.post(kind, bytes(16))
    assert rig.guest.since(mark) == []
    assert "a feature that was not negotiated" in rig.errors[0]


@pytest.mark.parametrize("restored", [False, True])
def test_messages_wait_while_the_connection_is_paused(rig: Rig, restored: bool) -> None:
    rig.guest.pause()
    assert rig.guest.paused
    mark = len(rig.guest.heard)
    rig.offer(offer(3))
    rig.rescind(key(2))
    if restored:
        assert transfer(rig, [offer(1), offer(3)]) == []
    assert rig.guest.since(mark) == []
    rig.guest.resume()
    assert rig.guest.since(mark) == [model.OFFER_CHANNEL, model.RESCIND]
    rig.opened(1)
    assert rig.guest.channels[1].is_open
    assert rig.errors == []


def test_what_waits_is_bounded(rig: Rig) -> None:
    rig.guest.pause()
    for _ in range(20):
        rig.guest.post(model.MODIFY_CONNECTION, model.u64(0, 0))
    assert len(rig.errors) == 12
    assert "while 8 messages wait" in rig.errors[0]
    mark = len(rig.guest.heard)
    rig.guest.resume()
    assert rig.guest.since(mark) == [model.MODIFY_CONNECTION_RESPONSE] * 8


@pytest.mark.parametrize("way", ["unload", "contact", "reset"])
def test_a_pause_ends_with_its_connection(rig: Rig, way: str) -> None:
    rig.guest.pause()
    rig.offer(offer(3))
    mark = len(rig.guest.heard)
    match way:
        case "unload":
            rig.guest.unload()
            assert rig.guest.since(mark) == [model.UNLOAD_COMPLETE]
        case "contact":
            rig.guest.contact()
            assert rig.guest.since(mark) == [model.VERSION_RESPONSE]
        case "reset":
            rig.reset()
            assert rig.guest.since(mark) == []
    rig.guest.connect()
    assert list(rig.guest.channels) == [1, 2, 3]


def test_a_pause_or_resume_out_of_turn_is_the_guests_fault(rig: Rig) -> None:
    rig.guest.post(model.RESUME)
    rig.guest.pause()
    rig.guest.post(model.PAUSE)
    assert rig.errors == [
        "the connection is to be resumed and is not paused",
        "the connection is paused already",
    ]


@pytest.mark.parametrize(
    ("change", "text"),
    [
        ({"features": 0x10}, "never grants"),
        ({"version": 0x50003}, "never grants"),
        ({"features": 0x0F}, "cannot have paused"),
        ({"interrupt_page": 0x1000}, "version and the interrupt page"),
        ({"version": Version.WIN7, "features": 0}, "version and the interrupt page"),
        ({"monitor_pages": (0x1000, 0)}, "monitor page is at 0x0"),
    ],
)
def test_a_state_that_contradicts_its_features_is_refused(
    rig: Rig, change: dict[str, object], text: str
) -> None:
    rig.guest.pause()
    saved = rig.bus.save()
    assert saved.contact is not None
    contact = msgspec.structs.replace(saved.contact, **change)
    with pytest.raises(RestoreMismatch, match=text):
        BusHost(rig.config).restore(msgspec.structs.replace(saved, contact=contact))
