# SPDX-License-Identifier: MIT
"""pcapng as written is what Wireshark's tools read, and what they write is read."""

from __future__ import annotations

import contextlib
import struct
import subprocess
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from emulator.trace import pcapng
from emulator.trace.pcapng import Captured, Counts, NotPcapng, Reader

START = pcapng.section("test") + pcapng.interface("vm")


def read(data: bytes) -> list[Captured | Counts]:
    reader = Reader()
    found = reader.feed(data)
    reader.finish()
    return found


def test_golden_bytes() -> None:
    """From the draft: block type, total length, body padded to 4, total length again."""
    assert pcapng.section("ab").hex(" ", 4) == (
        "0a0d0d0a 28000000 4d3c2b1a 01000000 ffffffff ffffffff 04000200 61620000 00000000 28000000"
    )
    assert pcapng.interface("vm").hex(" ", 4) == (
        "01000000 28000000 93000000 00000000 02000200 766d0000 09000100 09000000 00000000 28000000"
    )
    assert pcapng.packet(0, 0x1_0000_0002, b"abcde", 7, flags=2, dropped=3).hex(" ", 4) == (
        "06000000 40000000 00000000 01000000 02000000 05000000 07000000 61626364 65000000"
        " 02000400 02000000 04000800 03000000 00000000 00000000 40000000"
    )
    assert pcapng.packet(0, 2, b"abcd", 4).hex(" ", 4) == (
        "06000000 24000000 00000000 00000000 02000000 04000000 04000000 61626364 24000000"
    )
    assert pcapng.statistics(0, 2, received=9, dropped=4).hex(" ", 4) == (
        "05000000 34000000 00000000 00000000 02000000 04000800 09000000 00000000"
        " 05000800 04000000 00000000 00000000 34000000"
    )


@given(
    st.lists(
        st.tuples(
            st.integers(0, 2**63), st.binary(max_size=50), st.integers(0, 100), st.integers(0, 2)
        ),
        max_size=8,
    ),
    st.integers(1, 40),
)
def test_what_is_written_is_read_in_pieces_of_any_size(
    packets: list[tuple[int, bytes, int, int]], piece: int
) -> None:
    data = START + b"".join(
        pcapng.packet(0, time_ns, body, len(body) + more, flags=flags, dropped=more)
        for time_ns, body, more, flags in packets
    )
    data += pcapng.statistics(0, 1, received=5, dropped=2)
    reader = Reader()
    found: list[Captured | Counts] = []
    for at in range(0, len(data), piece):
        found += reader.feed(data[at : at + piece])
    reader.finish()
    assert found == [
        *(
            Captured(0, pcapng.LINKTYPE_USER0, time_ns, body, len(body) + more, more)
            for time_ns, body, more, _ in packets
        ),
        Counts(5, 2),
    ]


def test_wiresharks_tools_read_and_write_it(tmp_path: Path) -> None:
    packets = [
        pcapng.packet(0, 1_700_000_000_123_456_789 + number, bytes([number]) * number, number)
        for number in range(1, 9)
    ]
    counts = pcapng.statistics(0, 5, received=9, dropped=1)
    (tmp_path / "in").write_bytes(START + b"".join(packets) + counts)
    subprocess.run(
        ["mergecap", "-F", "pcapng", "-w", tmp_path / "out", tmp_path / "in"], check=True
    )
    found = [item for item in read((tmp_path / "out").read_bytes()) if isinstance(item, Captured)]
    assert [item.data for item in found] == [bytes([number]) * number for number in range(1, 9)]
    assert found[0].time_ns == 1_700_000_000_123_456_790
    info = subprocess.run(
        ["capinfos", "-M", tmp_path / "in"], check=True, capture_output=True, text=True
    ).stdout
    assert "USER 0" in info
    assert "nanoseconds (9)" in info
    assert "Name = vm" in info


def test_the_other_byte_order_microseconds_and_a_second_section() -> None:
    def block(kind: int, body: bytes) -> bytes:
        return struct.pack(">II", kind, 12 + len(body)) + body + struct.pack(">I", 12 + len(body))

    section = block(0x0A0D0D0A, struct.pack(">IHHq", 0x1A2B3C4D, 1, 0, -1))
    ethernet = block(1, struct.pack(">HHI", 1, 0, 0))
    ours = block(1, struct.pack(">HHI", 147, 0, 0))
    packet = struct.pack(">III", 0, 5, 4) + struct.pack(">I", 4) + b"abc\0"
    packets = [block(6, struct.pack(">I", number) + packet) for number in (0, 1)]
    unknown = block(0x0BAD, b"1234")
    data = START + section + ethernet + ours + unknown + b"".join(packets)
    foreign, found = read(data)
    assert isinstance(foreign, Captured)
    assert isinstance(found, Captured)
    assert (foreign.link_type, found.link_type) == (1, 147)
    assert found.time_ns == 5 * 1000
    assert (found.data, found.length) == (b"abc\0"[:4], 4)


@pytest.mark.parametrize(
    ("data", "words"),
    [
        (b"", "cut"),
        (START[:-1], "cut"),
        (b"\xd4\xc3\xb2\xa1" + bytes(20), "does not begin"),
        (pcapng.section("x")[:8] + bytes(30), "byte-order"),
        (START + struct.pack("<III", 6, 13, 0), "13 bytes"),
        (START + struct.pack("<III", 6, 1 << 30, 0), "1073741824 bytes"),
        (START + struct.pack("<IIII", 6, 16, 0, 20), "differ"),
        (START + struct.pack("<IIII", 6, 16, 0, 16), "a packet of 4 bytes"),
        (START + pcapng.packet(1, 0, b"", 0), "interface 1"),
        (START + struct.pack("<IIIIIIIII", 6, 36, 0, 0, 0, 9, 9, 0, 36), "9 bytes of packet"),
        (START + struct.pack("<IIIIII", 1, 24, 147, 0, 0x00FF0009, 24), "does not fit"),
    ],
)
def test_damage_is_named(data: bytes, words: str) -> None:
    with pytest.raises(NotPcapng, match=words):
        read(data)


@given(st.data())
def test_no_bytes_do_worse_than_that(data: st.DataObject) -> None:
    whole = bytearray(START + pcapng.packet(0, 1, b"abc", 9, dropped=1))
    whole += pcapng.statistics(0, 1, received=1, dropped=1)
    for _ in range(data.draw(st.integers(1, 4))):
        whole[data.draw(st.integers(0, len(whole) - 1))] = data.draw(st.integers(0, 255))
    with contextlib.suppress(NotPcapng):
        read(bytes(whole))
