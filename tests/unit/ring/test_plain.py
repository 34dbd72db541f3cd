# SPDX-License-Identifier: MIT
"""The C functions for plain packets, against the codec in Python and against bad arguments."""

from __future__ import annotations

import mmap
import os
import subprocess
import sys
from collections import deque
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from emulator.memory import PageView, _native, page_view
from emulator.memory._pure import PurePageView
from emulator.ring import _native as plain
from emulator.ring.plain import PacketAhead, plain_packets
from emulator.wire.packet import (
    GpaRange,
    MalformedPacket,
    PacketType,
    decode_body,
    decode_descriptor,
    encode_packet,
    encode_trailer,
    spanned_pages,
)

SIZE = 8192


def scattered() -> PageView:
    memory = memoryview(mmap.mmap(-1, 6 * 4096))
    return _native.PageView([memory[n * 4096 : (n + 1) * 4096] for n in (4, 0, 2)])


@given(
    st.integers(0, SIZE // 8 - 1),
    st.sampled_from([PacketType.IN_BAND, PacketType.CANCEL, PacketType.COMPLETION]),
    st.integers(0, 1),
    st.integers(0, (1 << 64) - 1),
    st.binary(max_size=5000),
)
def test_what_is_written_is_what_python_encodes_and_is_read_back(
    start8: int, kind: PacketType, flags: int, transaction_id: int, payload: bytes
) -> None:
    view, start = scattered(), start8 * 8
    end = plain.write_plain(view, start, kind, flags, transaction_id, payload)
    expected = encode_packet(kind, transaction_id, payload, flags=flags) + encode_trailer(start)
    assert end == (start + len(expected)) % SIZE
    around = view.read(4096, SIZE) * 2
    assert around[start : start + len(expected)] == expected
    padded = payload + bytes(-len(payload) % 8)
    found = plain.read_plain(view, start, start, end)
    assert found == (kind, flags, transaction_id, padded, end, end)
    # Without the `in` of before, it is loaded.
    view.store_u32(0, end)
    assert plain.read_plain(view, start, start, start) == found


@pytest.mark.parametrize(
    "word",
    [SIZE, SIZE + 8, 0xFFFF_FFF8, 12, 1, 8],
    ids=["size", "beyond", "wild", "unaligned", "odd", "backwards"],
)
def test_a_bad_write_index_is_left_to_python(word: int) -> None:
    view = scattered()
    view.store_u32(0, word)
    # Released at 0, read up to 64: an `in` of 8 has gone backwards.
    assert plain.read_plain(view, 0, 64, 64) is None


@pytest.mark.parametrize(
    ("args", "words"),
    [
        ((0, 0), "expected 4"),
        ((0, 0, 4), "no offset"),
        ((0, SIZE, 0), "no offset"),
        ((-8, 0, 0), "no offset"),
    ],
)
def test_read_refuses_bad_arguments(args: tuple[int, ...], words: str) -> None:
    with pytest.raises((TypeError, ValueError), match=words):
        plain.read_plain(scattered(), *args)


def test_write_refuses_what_is_not_plain_or_does_not_fit() -> None:
    view = scattered()
    for kind in (PacketType.GPA_DIRECT, PacketType.TRANSFER_PAGES, 0):
        with pytest.raises(ValueError, match="plain"):
            plain.write_plain(view, 0, kind, 0, 1, b"")
    with pytest.raises(ValueError, match="flags"):
        plain.write_plain(view, 0, 6, 2, 1, b"")
    with pytest.raises(ValueError, match="payload"):
        plain.write_plain(view, 0, 6, 0, 1, bytes(SIZE - 24))
    with pytest.raises(OverflowError):
        plain.write_plain(view, 0, 6, 0, 1 << 64, b"")
    with pytest.raises(OverflowError):
        plain.write_plain(view, 0, 6, 0, -1, b"")
    with pytest.raises(TypeError):
        plain.write_plain(view, 0, 6, 0, 1, "text")  # type: ignore[arg-type]
    with pytest.raises(TypeError):
        plain.publish(view)  # type: ignore[call-arg]
    assert not any(view.read(0, len(view)))


def test_publish_stores_before_it_looks() -> None:
    view = scattered()
    view.store_u32(4, 0x123)
    assert plain.publish(view, 64) == 0x123
    assert view.load_u32(0) == 64
    view.store_u32(8, 1)
    assert plain.publish(view, 72) == -1
    assert view.load_u32(0) == 72


def test_only_views_in_c_with_a_data_page_will_do() -> None:
    pure = PurePageView([memoryview(bytearray(8192))])
    assert plain_packets(pure) is None
    assert plain_packets(scattered()) is plain
    with pytest.raises(TypeError, match="PageView"):
        plain.publish(pure, 0)
    with pytest.raises(ValueError, match="no data page"):
        plain.publish(_native.PageView([memoryview(bytearray(4096))]), 0)


def test_the_ring_works_without_the_extension() -> None:
    code = (
        "import sys; sys.modules['emulator.ring._native'] = None\n"
        "from emulator.memory import page_view\n"
        "from emulator.ring import IncomingRing, OutgoingRing\n"
        "view = page_view([memoryview(bytearray(8192))])\n"
        "out, into = OutgoingRing(view), IncomingRing(view)\n"
        "out.init_at_open(); into.attach()\n"
        "out.write(6, 7, b'payload!'); assert out.publish()\n"
        "assert into.read().payload == b'payload!'\n"
    )
    environment = {**os.environ, "PYTHONPATH": str(Path(__file__).parents[3])}
    subprocess.run([sys.executable, "-c", code], check=True, env=environment)


PACKETS = st.lists(
    st.tuples(
        st.sampled_from([PacketType.IN_BAND, PacketType.CANCEL, PacketType.COMPLETION]),
        st.integers(0, 1),
        st.integers(0, (1 << 64) - 1),
        st.binary(max_size=300),
    ),
    max_size=20,
)


@given(st.integers(0, SIZE // 8 - 1), PACKETS, st.integers(0, 25), st.booleans())
def test_reading_ahead_is_reading_one_by_one(
    start8: int, packets: list[tuple[PacketType, int, int, bytes]], limit: int, spoilt: bool
) -> None:
    view, start = scattered(), start8 * 8
    end = start
    for packet in packets:
        end = plain.write_plain(view, end, *packet)
    expected: list[PacketAhead] = []
    out = start
    while (found := plain.read_plain(view, start, out, end)) is not None and len(expected) < limit:
        expected.append((*found[:5], None))
        out = found[4]
    if spoilt:
        # A packet with two ranges behind them: it is for Python.
        two = (GpaRange(1, 0, (1,)), GpaRange(1, 0, (1,)))
        packet_bytes = encode_packet(PacketType.GPA_DIRECT, 1, b"", ranges=two)
        end = put(view, end, packet_bytes)
    view.store_u32(0, end)
    for known in (end, start):
        answer = plain.read_ahead(view, start, start, known, limit)
        if start == end:
            assert answer is None
        else:
            assert answer == (expected, end)


RANGES = st.builds(
    lambda length, offset, base: GpaRange(
        length, offset, tuple(range(base, base + spanned_pages(offset, length)))
    ),
    st.integers(1, 5 * 4096),
    st.integers(0, 4095),
    st.integers(0, 2**52),
)


def put(view: PageView, start: int, packet: bytes) -> int:
    """Write a packet and its trailer; return the offset after it."""
    for at, byte in enumerate(packet + encode_trailer(start)):
        view.write(4096 + (start + at) % SIZE, bytes([byte]))
    return (start + len(packet) + 8) % SIZE


@given(
    st.integers(0, SIZE // 8 - 1),
    st.lists(RANGES, min_size=1, max_size=2),
    st.binary(max_size=80),
    st.lists(st.tuples(st.integers(0, 47), st.integers(0, 255)), max_size=2),
)
def test_a_packet_with_one_range_is_read_ahead_as_python_reads_it(
    start8: int, ranges: list[GpaRange], payload: bytes, spoilt: list[tuple[int, int]]
) -> None:
    packet = bytearray(encode_packet(PacketType.GPA_DIRECT, 7, payload, flags=1, ranges=ranges))
    for at, byte in spoilt:
        if at < len(packet):
            packet[at] = byte
    view, start = scattered(), start8 * 8
    end = put(view, start, bytes(packet))
    view.store_u32(0, end)
    answer = plain.read_ahead(view, start, start, end, 1)
    assert answer is not None
    (found, known) = answer
    assert known == end
    try:
        descriptor = decode_descriptor(bytes(packet[:16]), len(packet) + 8)
        expected = decode_body(descriptor, bytes(packet[16 : descriptor.length]))
    except MalformedPacket:
        assert found == []
        return
    if len(expected.ranges) == 1 and expected.type is PacketType.GPA_DIRECT:
        next_out = (start + descriptor.length + 8) % SIZE
        head = (expected.type, expected.flags, expected.transaction_id, expected.payload)
        assert found == [(*head, next_out, expected.ranges[0])]
    elif found:
        assert found[0][5] is None


def test_a_range_of_many_pages_is_for_python() -> None:
    view = page_view([memoryview(mmap.mmap(-1, 5 * 4096))])
    for pages, ours in ((256, True), (300, False)):
        packet = encode_packet(
            PacketType.GPA_DIRECT, 1, b"", ranges=[GpaRange(pages * 4096, 0, tuple(range(pages)))]
        )
        view.write(4096, packet + encode_trailer(0))
        answer = plain.read_ahead(view, 0, 0, len(packet) + 8, 1)
        assert answer is not None
        assert bool(answer[0]) is ours


@pytest.mark.parametrize("word", [SIZE, 0xFFFF_FFF8, 12, 8])
def test_reading_ahead_leaves_a_bad_write_index_to_python(word: int) -> None:
    view = scattered()
    view.store_u32(0, word)
    assert plain.read_ahead(view, 0, 64, 64, 10) == ([], 64)
    other = scattered()
    drained = plain.drain(view, 0, 64, 64, other, 0, 1000, 10)
    assert drained == (0, 0, 64, 64, 0)


COMPLETIONS = st.lists(
    st.tuples(st.integers(0, (1 << 64) - 1), st.binary(max_size=300)), max_size=20
)


@given(st.integers(0, SIZE // 8 - 1), COMPLETIONS, st.integers(-8, SIZE - 8))
def test_many_completions_are_written_as_one_by_one(
    start8: int, completions: list[tuple[int, bytes]], room: int
) -> None:
    one, many, position = scattered(), scattered(), start8 * 8
    fitted, left = 0, room
    for transaction_id, payload in completions:
        left -= 24 + (len(payload) + 7 & ~7)
        if left < 0:
            break
        position = plain.write_plain(
            one, position, PacketType.COMPLETION, 0, transaction_id, payload
        )
        fitted += 1
    answer = plain.write_completions(many, start8 * 8, room, deque(completions))
    assert answer == (fitted, position)
    assert many.read(0, len(many)) == one.read(0, len(one))


def test_completions_end_before_anything_else() -> None:
    view = scattered()
    assert plain.write_completions(view, 0, 100, [(1, b""), "packet", (2, b"")])[0] == 1
    assert plain.write_completions(view, 0, 100, [(1,)])[0] == 0
    for bad in ((1, "text"), (1 << 64, b""), (-1, b"")):
        with pytest.raises((TypeError, OverflowError)):
            plain.write_completions(view, 0, 100, [bad])
    with pytest.raises(ValueError, match="cannot be free"):
        plain.write_completions(view, 0, SIZE, [])
    with pytest.raises(TypeError):
        plain.write_completions(view, 0, 100, None)  # type: ignore[arg-type]


@given(
    st.integers(0, SIZE // 8 - 1),
    st.integers(0, SIZE // 8 - 1),
    PACKETS,
    st.integers(0, 500),
    st.integers(0, 25),
)
def test_draining_is_reading_and_completing(
    start8: int,
    down8: int,
    packets: list[tuple[PacketType, int, int, bytes]],
    room: int,
    limit: int,
) -> None:
    view, start = scattered(), start8 * 8
    end = start
    for packet in packets:
        end = plain.write_plain(view, end, *packet)
    view.store_u32(0, end)
    by_hand, position, left = scattered(), down8 * 8, room
    out, count, payload_bytes = start, 0, 0
    while count < limit and (found := plain.read_plain(view, start, out, end)) is not None:
        kind, flags, transaction_id, payload, next_out, _ = found
        if kind != PacketType.IN_BAND or (flags and left < 24):
            break
        if flags:
            position = plain.write_plain(
                by_hand, position, PacketType.COMPLETION, 0, transaction_id, b""
            )
            left -= 24
        out, count, payload_bytes = next_out, count + 1, payload_bytes + len(payload)
    down = scattered()
    answer = plain.drain(view, start, start, end, down, down8 * 8, room, limit)
    assert answer == (count, payload_bytes, out, end, position)
    assert down.read(0, len(down)) == by_hand.read(0, len(by_hand))


def test_the_calls_for_many_refuse_bad_arguments() -> None:
    view = scattered()
    for arguments in [(0, 0, 0), (0, 0, 4, 1), (0, SIZE, 0, 1), (0, 0, 0, "one")]:
        with pytest.raises((TypeError, ValueError)):
            plain.read_ahead(view, *arguments)  # type: ignore[arg-type]
    for more in [(view, 0, SIZE, 1), (view, 4, 8, 1), (view, 0, 8, None), (None, 0, 8, 1)]:
        with pytest.raises((TypeError, ValueError)):
            plain.drain(view, 0, 0, 0, *more)  # type: ignore[arg-type]
    with pytest.raises(ValueError, match="no offset"):
        plain.release(view, SIZE)
    with pytest.raises(TypeError, match="PageView"):
        plain.unmask(PurePageView([memoryview(bytearray(8192))]))
    assert not any(view.read(0, len(view)))


def test_release_and_unmask_store_before_they_look() -> None:
    view = scattered()
    view.store_u32(12, 0x123)
    assert plain.release(view, 64) == 0x123
    assert view.load_u32(4) == 64
    view.store_u32(8, 1)
    view.store_u32(0, 0xFFFF_FFFF)
    assert plain.unmask(view) == 0xFFFF_FFFF
    assert view.load_u32(8) == 0
