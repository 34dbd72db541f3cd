# SPDX-License-Identifier: MIT
"""The C functions for plain packets, against the codec in Python and against bad arguments."""

from __future__ import annotations

import mmap
import os
import subprocess
import sys
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from emulator.memory import PageView, _native
from emulator.memory._pure import PurePageView
from emulator.ring import _native as plain
from emulator.ring.plain import plain_packets
from emulator.wire.packet import PacketType, encode_packet, encode_trailer

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
