# SPDX-License-Identifier: MIT
"""The beginning and the end of a connection."""

from __future__ import annotations

import pytest

from emulator.bus import (
    BusConfig,
    BusConnected,
    BusDisconnected,
    BusHost,
    GuestError,
    Offer,
    SendMessage,
)
from emulator.bus.pages import SignalPages
from emulator.model import guest as model
from emulator.wire.version import Version
from tests.unit.bus.rig import Rig, key, offer

OLD = [Version.V1, Version.WIN7]


@pytest.mark.parametrize("version", Version)
def test_a_version_is_negotiated(rig: Rig, version: Version) -> None:
    rig.offer(offer(1))
    rig.guest.connect(version)
    assert rig.guest.connected
    assert len(rig.guest.channels) == 1
    assert BusConnected(version) in rig.others
    assert rig.errors == []


@pytest.mark.parametrize("version", [0x60001, 0x50004, 0x10000, 0, 0xFFFFFFFF])
def test_another_version_is_refused(rig: Rig, version: int) -> None:
    rig.guest.contact(version)
    assert rig.guest.last["supported"] == 0
    assert not rig.guest.connected
    # One too new is no fault: that is how guests find out.
    assert ["0.13 to 6.0 are" in error for error in rig.errors] == [True] * (version < 0x0D)
    rig.guest.request_offers()
    assert "without a connection" in rig.errors[-1]


def test_a_guest_steps_down_until_it_is_understood() -> None:
    rig = Rig(BusConfig(max_version=Version.WIN10))
    for version in reversed(Version):
        rig.guest.contact(version)
        if rig.guest.connected:
            break
    assert rig.guest.version == Version.WIN10
    rig.close()


@pytest.mark.parametrize(
    ("version", "vp", "sint", "expected"),
    [
        # Before 3.0 the VP is not honoured, before 5.0 the SINT is not named. The model guest
        # checks where each message arrives.
        (Version.WIN8, 3, 2, (0, 2)),
        (Version.WIN8_1, 3, 2, (3, 2)),
        (Version.WIN10, 1, 5, (1, 2)),
        (Version.WIN10_RS3_1, 1, 5, (1, 5)),
        (Version.IRON, 2, 15, (2, 15)),
    ],
)
def test_messages_go_where_the_guest_wants_them(
    rig: Rig, version: Version, vp: int, sint: int, expected: tuple[int, int]
) -> None:
    rig.offer(offer(1))
    rig.guest.connect(version, vp=vp, sint=sint)
    assert rig.guest.target == expected
    assert rig.guest.channels
    rig.opened(1)
    rings = rig.owners[key(1)].rings
    assert rings is not None
    assert rings.target_sint == expected[1]
    assert rings.connection_id == expected[1] * 0x1000 + 1


def test_from_5_0_the_guest_is_told_the_port_it_used(rig: Rig) -> None:
    rig.guest.contact(port=1)
    assert rig.guest.connected
    assert rig.guest.last["word"] == 1
    rig.guest.contact(port=4)
    assert rig.guest.last["word"] == 4
    rig.guest.contact(Version.WIN10_RS3_0)
    assert rig.guest.last["word"] == Version.WIN10_RS3_0


def test_a_contact_with_a_client_id_is_a_contact(rig: Rig) -> None:
    rig.guest.contact(client_id=bytes(16))
    assert rig.guest.connected


@pytest.mark.parametrize(
    ("sint", "vtl", "monitors", "text"),
    [
        (0, 0, (0, 0), "SINT 0"),
        (16, 0, (0, 0), "SINT 16"),
        (2, 2, (0, 0), "VTL 2"),
        (2, 0, (0x1000, 0), "one monitor page"),
        (2, 0, (0, 0x1000), "one monitor page"),
    ],
)
def test_a_contact_that_cannot_work_fails(
    rig: Rig, sint: int, vtl: int, monitors: tuple[int, int], text: str
) -> None:
    rig.guest.contact(sint=sint, vtl=vtl, monitors=monitors)
    assert (rig.guest.last["supported"], rig.guest.last["state"]) == (1, 2)
    assert not rig.guest.connected
    assert text in rig.errors[0]


def test_no_monitor_pages_are_fine(rig: Rig) -> None:
    rig.guest.contact(monitors=(0, 0))
    assert rig.guest.connected


def test_offers_come_once(rig: Rig) -> None:
    rig.connected(1, 2)
    assert rig.guest.since(1) == [
        model.OFFER_CHANNEL,
        model.OFFER_CHANNEL,
        model.ALL_OFFERS_DELIVERED,
    ]
    rig.guest.request_offers()
    assert rig.errors == ["offers were requested already"]
    rig.offer(offer(3))
    assert rig.guest.last.type == model.OFFER_CHANNEL


def test_nothing_is_offered_before_it_is_asked_for(rig: Rig) -> None:
    rig.offer(offer(1))
    rig.guest.contact()
    rig.offer(offer(2))
    assert rig.guest.channels == {}
    rig.guest.request_offers()
    assert list(rig.guest.channels) == [1, 2]


@pytest.mark.parametrize("way", ["unload", "contact", "refused contact", "reset"])
def test_a_connection_ends_when_the_owners_have_let_go(slow: Rig, way: str) -> None:
    slow.connected(1, 2)
    ring = slow.opened(1)
    other = slow.guest.make_gpadl(1, 3)
    slow.open_result(key(1))
    closed = slow.guest.make_gpadl(2, 3)
    mark = len(slow.guest.heard)
    match way:
        case "unload":
            slow.guest.unload()
        case "contact":
            slow.guest.contact()
        case "refused contact":
            slow.guest.contact(0x60001)
        case "reset":
            slow.reset()
    assert isinstance(slow.others[-1], BusDisconnected)
    slow.release(key(2), closed.gpadl_id)
    assert slow.owners[key(1)].closing
    assert slow.owners[key(1)].releasing == []
    slow.close_done(key(1))
    slow.release(key(1), other.gpadl_id)
    assert slow.guest.since(mark) == []
    # While it lasts nothing is understood but a contact.
    slow.apply(lambda bus: bus.guest_message(4, model.u32(model.REQUEST_OFFERS, 0)))
    assert "without a connection" in slow.errors[-1]
    slow.release(key(1), ring.gpadl_id)
    expected = {
        "unload": [model.UNLOAD_COMPLETE],
        "contact": [model.VERSION_RESPONSE],
        "refused contact": [model.VERSION_RESPONSE],
        "reset": [],
    }
    assert slow.guest.since(mark) == expected[way]
    # The next kernel starts from nothing, with the same ids.
    slow.automatic = True
    slow.guest.connect()
    assert list(slow.guest.channels) == [1, 2]
    slow.opened(1)
    assert slow.guest.channels[1].is_open


def test_the_last_contact_counts(slow: Rig) -> None:
    slow.connected(1)
    slow.opened(1)
    slow.guest.unload()
    slow.guest.contact(0x60001)
    slow.guest.contact(Version.WIN10, vp=1)
    mark = len(slow.guest.heard)
    slow.open_result(key(1), ok=False)
    slow.answer_all()
    assert slow.guest.since(mark) == [model.VERSION_RESPONSE]
    assert slow.guest.connected


def test_a_reset_forgets_the_answer_that_was_owed(slow: Rig) -> None:
    slow.connected(1)
    slow.opened(1)
    slow.guest.contact()
    slow.reset()
    slow.reset()
    mark = len(slow.guest.heard)
    slow.open_result(key(1))
    slow.answer_all()
    slow.answer_all()
    assert slow.guest.since(mark) == []
    assert slow.owners[key(1)].holds_nothing
    slow.guest.connect()
    assert list(slow.guest.channels) == [1]


@pytest.mark.parametrize("way", ["contact", "reset"])
def test_a_guest_that_is_gone_hears_nothing(slow: Rig, way: str) -> None:
    slow.connected(1)
    slow.opened(1)
    slow.open_result(key(1))
    gpadl = slow.guest.make_gpadl(1, 3)
    slow.guest.teardown(gpadl)
    if way == "contact":
        slow.guest.contact()
    else:
        slow.reset()
    mark = len(slow.guest.heard)
    slow.release(key(1), gpadl.gpadl_id)
    assert slow.guest.since(mark) == []
    slow.answer_all()
    slow.answer_all()
    assert slow.guest.since(mark) == ([model.VERSION_RESPONSE] if way == "contact" else [])


def test_a_reset_without_a_guest_does_nothing(rig: Rig) -> None:
    rig.offer(offer(1))
    rig.reset()
    assert rig.others == []
    assert rig.errors == []


def test_guest_reboots(rig: Rig) -> None:
    rig.connected(1, 2)
    for _ in range(3):
        rig.opened(1)
        assert rig.guest.channels[1].is_open
        rig.reset()
        rig.guest.connect()
    for _ in range(3):
        rig.opened(2)
        rig.guest.unload()
        rig.guest.connect()
    assert rig.errors == []
    assert list(rig.guest.channels) == [1, 2]


def test_versions_this_host_cannot_speak_cannot_be_configured() -> None:
    with pytest.raises(ValueError, match=r"0\.13 to 6\.0"):
        BusConfig(min_version=Version.WIN8, max_version=Version.WIN7)
    with pytest.raises(ValueError, match="restored"):
        BusConfig(min_version=Version.WIN8, max_restored_version=Version.WIN7)


def test_a_guest_of_a_host_before_this_one_may_leave() -> None:
    bus = BusHost(BusConfig())
    bus.guest_message(4, model.u32(model.GPADL_TEARDOWN, 0, 7, 0xE1E10))
    bus.guest_message(4, model.u32(model.UNLOAD, 0))
    bus.guest_message(4, model.u32(model.REQUEST_OFFERS, 0))
    effects = bus.take_effects()
    sent = [effect for effect in effects if isinstance(effect, SendMessage)]
    assert [(effect.vp, effect.sint) for effect in sent] == [(0, 2), (0, 2)]
    assert sent[0].payload == model.u32(model.GPADL_TORNDOWN, 0, 0xE1E10)
    assert sent[1].payload == model.u32(model.UNLOAD_COMPLETE, 0)
    errors = [effect.text for effect in effects if isinstance(effect, GuestError)]
    assert ["without a connection" in error for error in errors] == [True] * 3


# Below 2.4: one event flag and one event connection for all channels, and an interrupt page.


@pytest.mark.parametrize("version", OLD)
def test_below_2_4_there_is_an_interrupt_page(rig: Rig, version: Version) -> None:
    rig.offer(offer(1))
    rig.guest.contact(version, interrupt_page=0x7000)
    assert rig.guest.last["word"] == version
    assert rig.bus.pages == SignalPages(interrupt=0x7000, monitor=0x2000)
    rig.guest.request_offers()
    # "Prior to win8, incoming channel interrupts would only be delivered on cpu 0": the field of
    # the target VP was for something else.
    ring = rig.guest.make_gpadl(1, 8)
    rig.guest.open_channel(1, ring.gpadl_id, target_vp=0xABCD)
    rings = rig.owners[key(1)].rings
    assert rings is not None
    assert (rings.target_vp, rings.target_sint, rings.connection_id) == (0, 2, 0x2001)
    rig.guest.contact(Version.WIN8, interrupt_page=0x7000)
    assert rig.bus.pages == SignalPages(monitor=0x2000)
    rig.guest.request_offers()
    rig.guest.open_channel(1, rig.guest.make_gpadl(1, 8).gpadl_id, target_vp=3)
    rings = rig.owners[key(1)].rings
    assert rings is not None
    assert rings.target_vp == 3
    rig.guest.unload()
    assert rig.bus.pages == SignalPages()
    assert rig.errors == []


def test_below_2_4_a_refusal_has_no_state(rig: Rig) -> None:
    rig.guest.contact(Version.WIN7, monitors=(0x1000, 0))
    assert (rig.guest.last["supported"], rig.guest.last["state"]) == (0, 0)
    assert "one monitor page" in rig.errors[0]
    assert rig.bus.pages == SignalPages()


@pytest.mark.parametrize("version", OLD)
def test_at_0_13_an_unload_has_no_answer(slow: Rig, version: Version) -> None:
    slow.offer(offer(1))
    slow.guest.connect(version)
    slow.guest.make_gpadl(1, 3)
    mark = len(slow.guest.heard)
    slow.guest.unload()
    slow.answer_all()
    assert slow.guest.since(mark) == ([] if version == Version.V1 else [model.UNLOAD_COMPLETE])
    slow.guest.connect(version)
    assert list(slow.guest.channels) == [1]
    assert slow.errors == []


def test_below_2_4_channels_without_a_bit_are_not_offered(rig: Rig) -> None:
    for number in range(1, 301):
        rig.offer(Offer(key(number)))
    rig.guest.connect(Version.WIN7)
    assert list(rig.guest.channels) == list(range(1, 256))
    assert rig.guest.last.type == model.ALL_OFFERS_DELIVERED
    assert rig.errors == [
        "45 channels are not offered: a guest of this VMBus version hears of channels up to 255"
    ]
    rig.offer(Offer(key(301)))
    rig.rescind(key(300))
    assert len(rig.guest.channels) == 255
    assert len(rig.errors) == 2
    rig.guest.connect(Version.WIN8)
    assert len(rig.guest.channels) == 300


@pytest.mark.parametrize("gpa", [0, 0x7008, 0x9000])
def test_a_page_that_is_not_the_guests_memory(gpa: int) -> None:
    rig = Rig()
    rig.bus = BusHost(BusConfig(), is_ram=lambda page: page < 0x9000)
    rig.guest.contact(Version.V1, interrupt_page=gpa)
    assert rig.guest.last["supported"] == 0
    assert f"interrupt page is at {gpa:#x}" in rig.errors[0]
    # From 2.4 on the page is no page, and monitor pages are nothing that a guest cannot do without.
    rig.guest.contact(Version.WIN10, interrupt_page=gpa, monitors=(gpa or 0x7008, 0x2000))
    assert rig.guest.connected
    assert "monitor page is at" in rig.errors[1]
    assert rig.bus.pages == SignalPages()
    rig.close()


def test_a_contact_from_a_second_sint(rig: Rig) -> None:
    rig.connected(1)
    rig.opened(1)
    # The model guest listens on the SINT of its last contact, and on that only.
    rig.guest.connect(sint=5)
    assert rig.guest.target == (0, 5)
    assert rig.guest.channels[1].offer["connection_id"] == 0x5001
    rig.opened(1)
    rings = rig.owners[key(1)].rings
    assert rings is not None
    assert (rings.target_sint, rings.connection_id) == (5, 0x5001)
    assert rig.errors == []
