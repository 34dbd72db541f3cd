# SPDX-License-Identifier: MIT
"""Wire structures of the integration services: sizes, and that what is packed is what is parsed."""

from __future__ import annotations

import contextlib

import pytest
from hypothesis import given
from hypothesis import strategies as st

from emulator.devices.ic import fcopy, heartbeat, kvp_layout, shutdown, timesync, vss
from emulator.devices.ic.layout import (
    Header,
    IcFlags,
    IcVersion,
    MalformedIc,
    Negotiation,
    message,
)

u8, u16, u32, u64 = (st.integers(0, (1 << bits) - 1) for bits in (8, 16, 32, 64))
version = st.builds(IcVersion, u16, u16)


def text(units: int) -> st.SearchStrategy[str]:
    alphabet = st.characters(exclude_characters="\0", codec="utf-16-le")
    return st.text(alphabet, max_size=units // 2 - 1)


@given(version, u16, version, u32, u8, st.sampled_from([3, 5, 7]), st.binary(max_size=300))
def test_header(
    frame: IcVersion,
    kind: int,
    message_version: IcVersion,
    status: int,
    ident: int,
    flags: int,
    body: bytes,
) -> None:
    header = Header(frame, kind, message_version, len(body), status, ident, IcFlags(flags))
    data = message(header, body)
    assert len(data) == 20 + len(body)
    assert Header.parse(data + bytes(5)) == (header, body)


@given(st.lists(version, max_size=50), st.lists(version, max_size=50))
def test_negotiation(frames: list[IcVersion], versions: list[IcVersion]) -> None:
    negotiation = Negotiation(tuple(frames), tuple(versions))
    data = negotiation.pack()
    assert len(data) == 8 + 4 * len(frames + versions)
    assert Negotiation.parse(data) == negotiation
    if versions:
        with pytest.raises(MalformedIc):
            Negotiation.parse(data[:-1])


@given(st.binary(max_size=64))
def test_parsers_raise_nothing_else(data: bytes) -> None:
    for parse in (Header.parse, Negotiation.parse):
        with contextlib.suppress(MalformedIc):
            parse(data)


@given(u64, u32)
def test_beat(number: int, state: int) -> None:
    beat = heartbeat.Beat(number, state)
    assert len(beat.pack()) == 40
    assert heartbeat.Beat.parse(beat.pack()) == beat


@given(u32, u32, st.integers(0, 7), text(1024))
def test_shutdown(reason: int, timeout: int, flags: int, words: str) -> None:
    found = shutdown.Shutdown(reason, timeout, shutdown.ShutdownFlags(flags), words)
    assert len(found.pack()) == 2060
    assert shutdown.Shutdown.parse(found.pack()) == found


@given(u64, u64, u64, st.integers(0, 3), u8, u8)
def test_time(host: int, other: int, trip: int, flags: int, leap: int, stratum: int) -> None:
    old = timesync.TimeMessage(host, other, trip, timesync.TimeFlags(flags))
    new = timesync.TimeMessageV4(host, other, timesync.TimeFlags(flags), leap, stratum)
    assert (len(old.pack()), len(new.pack())) == (28, 24)
    assert timesync.TimeMessage.parse(old.pack()) == old
    assert timesync.TimeMessageV4.parse(new.pack()) == new


pairs = st.one_of(
    st.builds(
        kvp_layout.Pair,
        text(256),
        text(1024),
        st.sampled_from([kvp_layout.ValueType.SZ, kvp_layout.ValueType.EXPAND_SZ]),
    ),
    st.builds(kvp_layout.Pair, text(256), u32, st.just(kvp_layout.ValueType.DWORD)),
    st.builds(kvp_layout.Pair, text(256), u64, st.just(kvp_layout.ValueType.QWORD)),
)
pools = st.sampled_from(kvp_layout.Pool)


@given(pairs, pools, u32)
def test_kvp(pair: kvp_layout.Pair, pool: kvp_layout.Pool, index: int) -> None:
    assert len(pair.pack()) == 2572
    assert kvp_layout.Pair.parse(pair.pack()) == pair
    for op in (kvp_layout.KvpOp.GET, kvp_layout.KvpOp.SET):
        found = kvp_layout.KeyMessage(op, pool, pair)
        assert len(found.pack()) == 2576
        assert kvp_layout.KeyMessage.parse(found.pack()) == found
    one = kvp_layout.EnumerateMessage(pool, index, pair)
    assert len(one.pack()) == 2580
    assert kvp_layout.EnumerateMessage.parse(one.pack()) == one
    assert len(kvp_layout.KeyMessage(kvp_layout.KvpOp.DELETE, pool, pair).pack()) == 520


@given(text(128), st.integers(0, 3), st.booleans(), text(1024), text(512))
def test_addresses(adapter: str, family: int, dhcp: bool, words: str, gateways: str) -> None:
    op = kvp_layout.KvpOp.SET_IP
    found = kvp_layout.IpMessage(op, adapter, family, dhcp, words, words, gateways, words)
    assert len(found.pack()) == 7428
    assert kvp_layout.IpMessage.parse(found.pack()) == found


def test_what_does_not_fit() -> None:
    for pair, reason in (
        (kvp_layout.Pair("k" * 256), "the key is too long"),
        (kvp_layout.Pair("k", "v" * 1024), "the value is too long"),
        (kvp_layout.Pair("k", "a\0b"), "a NUL"),
        (kvp_layout.Pair("k", 1 << 32, kvp_layout.ValueType.DWORD), "no DWORD"),
    ):
        with pytest.raises(ValueError, match=reason):
            pair.pack()


@given(st.sampled_from(vss.VssOp), u32)
def test_vss(op: vss.VssOp, flags: int) -> None:
    found = vss.VssMessage(op, flags)
    assert len(found.pack()) == 12
    assert vss.VssMessage.parse(found.pack()) == found


@given(text(260), text(260), st.integers(0, 3), u64, st.binary(max_size=6144))
def test_fcopy(name: str, folder: str, flags: int, size: int, data: bytes) -> None:
    start = fcopy.Start(name, folder, fcopy.CopyFlags(flags), size)
    assert len(start.pack()) == 1088
    assert fcopy.Start.parse(start.pack()) == start
    write = fcopy.Write(size, data)
    assert len(write.pack()) == 6196
    assert fcopy.Write.parse(write.pack()) == write
