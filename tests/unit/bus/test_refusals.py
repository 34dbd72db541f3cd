# SPDX-License-Identifier: MIT
"""Messages that this host does not serve, and bytes that are no messages."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from emulator.bus import BusConfig, BusHost, GuestError, SendMessage
from emulator.model import guest as model
from emulator.wire.version import Version
from tests.unit.bus.rig import Rig, key, offer

IDS = bytes(range(32))


@pytest.mark.parametrize("size", [32, 40, 48, 60])
@pytest.mark.parametrize("version", [v for v in Version if v >= Version.WIN10_RS3_0], ids=str)
def test_a_hyper_v_socket_is_refused(rig: Rig, version: Version, size: int) -> None:
    """With a silo id (5.2), without, and with bytes that are neither."""
    rig.guest.connect(version)
    rig.guest.post(model.TL_CONNECT_REQUEST, IDS.ljust(size, b"\xee"))
    heard = rig.guest.last
    assert heard.type == model.TL_CONNECT_RESULT
    assert (heard.raw("endpoint_id"), heard.raw("service_id")) == (IDS[:16], IDS[16:])
    assert heard["status"] == 0xC0000236
    assert "nothing listens" in rig.errors[0]


def test_at_4_0_a_socket_cannot_be_refused(rig: Rig) -> None:
    rig.guest.connect(Version.WIN10)
    mark = len(rig.guest.heard)
    rig.guest.post(model.TL_CONNECT_REQUEST, IDS)
    assert rig.guest.since(mark) == []
    assert "nothing listens" in rig.errors[0]


def test_before_4_0_there_are_no_sockets(rig: Rig) -> None:
    rig.guest.connect(Version.WIN8_1)
    mark = len(rig.guest.heard)
    rig.guest.post(model.TL_CONNECT_REQUEST, IDS)
    assert rig.guest.since(mark) == []
    assert "TL_CONNECT_REQUEST is not part of version 3.0" in rig.errors[0]


@pytest.mark.parametrize(
    ("kind", "body", "text"),
    [
        (25, 16, "MODIFY_CONNECTION is not part of version 5.3"),
        (27, 0, "PAUSE is not part of version 5.3"),
        (29, 0, "RESUME is not part of version 5.3"),
        (1, 188, "not a message of this direction"),
        (30, 0, "not a message of this direction"),
        (5, 139, "OPEN_CHANNEL needs 140 bytes"),
        (21, 31, "TL_CONNECT_REQUEST needs 32 bytes"),
        (22, 7, "MODIFY_CHANNEL needs 8 bytes"),
    ],
)
def test_what_is_not_served_is_recorded(rig: Rig, kind: int, body: int, text: str) -> None:
    rig.connected(1)
    mark = len(rig.guest.heard)
    rig.guest.post(kind, bytes(body))
    assert rig.guest.since(mark) == []
    assert len(rig.errors) == 1
    assert text in rig.errors[0]
    rig.opened(1)
    assert rig.guest.channels[1].is_open


def test_another_connection_is_not_a_message_port(rig: Rig) -> None:
    rig.connected(1)
    rig.apply(lambda bus: bus.guest_message(3, model.u32(model.UNLOAD, 0)))
    assert rig.errors == ["a message on connection 3"]
    assert rig.guest.connected


# Any bytes: random ones, and ones that get far because they are nearly right.

_words = st.one_of(st.integers(0, 3), st.sampled_from([5, 0xE1E10, 2**32 - 1, 2047, 2048]))
_nearly = st.builds(
    lambda kind, words, tail: model.u32(kind, 0, *words) + tail,
    st.integers(0, 30),
    st.lists(_words, max_size=6),
    st.one_of(
        st.binary(max_size=24),
        st.binary(min_size=120, max_size=210),
        st.builds(
            lambda length, count, pfns: model.u16(length, count) + model.u64(*pfns),
            st.sampled_from([0, 8, 16, 24, 256, 65528, 65535]),
            st.integers(0, 3),
            st.lists(st.integers(0, 2**64 - 1), max_size=27),
        ),
    ),
)
_contact = st.builds(
    lambda version, vp, info, monitors: (
        model.u32(14, 0, version, vp) + info.ljust(8, b"\0") + model.u64(*monitors)
    ),
    st.sampled_from([*Version, 0]),
    _words,
    st.binary(max_size=8),
    st.tuples(st.integers(0, 1), st.integers(0, 1)),
)
_steps = st.one_of(
    st.tuples(st.sampled_from([0, 1, 4]), st.one_of(st.binary(max_size=260), _nearly, _contact)),
    st.sampled_from(["answer", "save", "rescind", "offer", "reset"]),
)


@given(st.lists(_steps, max_size=60))
def test_no_bytes_of_the_guest_raise(steps: list[tuple[int, bytes] | str]) -> None:
    config = BusConfig(max_gpadls_per_channel=4, max_pages=64, max_held_messages=16)
    rig = Rig(config, automatic=False, pages=64)
    # The model guest minds the rules and is of no use here: messages are only counted.
    delivered: list[SendMessage] = []
    deliver, rig.deliver = rig.deliver, delivered.append
    for number in (1, 2, 3):
        rig.offer(offer(number))
    rig.bus.guest_message(4, model.u32(14, 0, 0x50003, 0, 2, 0) + bytes(16))
    rig.bus.guest_message(4, model.u32(3, 0))
    rig.pump()
    for step in steps:
        match step:
            case "answer":
                rig.answer_all()
            case "save":
                saved = rig.bus.save()
                fresh = BusHost(config)
                fresh.restore(saved)
            case "rescind" if key(3) in rig.owners:
                rig.rescind(key(3))
            case "offer" if key(3) not in rig.owners:
                rig.offer(offer(3))
            case "reset":
                rig.apply(lambda bus: bus.reset())
            case (connection_id, payload):
                before = len(rig.errors) + len(delivered)
                rig.bus.guest_message(connection_id, payload)
                effects = rig.bus.take_effects()
                # One message has a handful of consequences, whatever it says.
                assert len(effects) <= 3 * (3 + 12)
                for effect in effects:
                    rig.carry_out(effect)
                assert len(rig.errors) + len(delivered) >= before
            case _:
                pass
        assert rig.bus.sharing.table.pages <= 64
        assert len(rig.bus.sharing.table) <= 3 * 4
    # Whatever it did: a reset brings everything back.
    rig.apply(lambda bus: bus.reset())
    for _ in range(3):
        rig.answer_all()
    assert len(rig.bus.sharing.table) == 0
    assert all(owner.holds_nothing for owner in rig.owners.values())
    rig.deliver = deliver
    rig.guest.connect()
    assert len(rig.guest.channels) == len(rig.owners)
    rig.close()


@given(st.lists(st.one_of(st.binary(max_size=260), _nearly), max_size=30))
def test_one_channel_does_not_harm_another(payloads: list[bytes]) -> None:
    rig = Rig(pages=64).connected(1, 2)
    ring = rig.opened(2)
    rings = rig.owners[key(2)].rings
    for payload in payloads:
        # Nothing that ends the connection, and nothing that names channel 2 (or the GPADLs of it).
        kind = int.from_bytes(payload[:4], "little")
        if kind in (model.INITIATE_CONTACT, model.UNLOAD) or payload[8:12] == model.u32(2):
            continue
        rig.bus.guest_message(4, payload)
        for effect in rig.bus.take_effects():
            if not isinstance(effect, SendMessage | GuestError):
                assert getattr(effect, "key", None) == key(1)
    assert rig.owners[key(2)].rings is rings
    assert rig.guest.channels[2].is_open
    rig.guest.close_channel(2)
    rig.guest.teardown(ring)
    assert rig.guest.channels[2].gpadls == {}
    rig.close()
