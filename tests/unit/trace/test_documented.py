# SPDX-License-Identifier: MIT
"""docs/trace.md says what the code does: layout, events, limits."""

from __future__ import annotations

import re
import struct
from pathlib import Path

from emulator.machine.tracing import MAX_FEEDS
from emulator.trace.feed import DEFAULT_LIMIT, MAX_LIMIT, MIN_LIMIT, QUEUE_BYTES
from emulator.trace.record import FORMAT_VERSION, HEADER, Direction, Event, Kind
from tests.unit.trace.shark import capture, tshark


def test_layout_events_and_limits(checkout: Path) -> None:
    text = (checkout / "docs/trace.md").read_text()
    words = " ".join(text.split())
    rows = re.findall(r"^\| (\d+) \| (\d+) \| (.*) \|$", text, re.MULTILINE)
    fields = [struct.calcsize(code) for code in HEADER.format.removeprefix("<")]
    assert [int(size) for _, size, _ in rows] == fields
    assert [int(at) for at, _, _ in rows] == [sum(fields[:index]) for index in range(len(fields))]
    assert f"format version: {FORMAT_VERSION}" in rows[0][2]
    assert all(f"{kind.value} {kind.name.lower()}" in rows[1][2] for kind in Kind)
    assert rows[2][2] == "direction: 0 none, 1 from the guest, 2 to the guest"
    assert list(Direction) == [0, 1, 2]
    for event in Event:
        assert not event or f"{event.value} {event.name}" in words
    assert f"{MIN_LIMIT} to {MAX_LIMIT:,}, by default {DEFAULT_LIMIT:,}" in words
    assert f"a queue of {QUEUE_BYTES >> 20} MiB" in words
    assert f"at most {MAX_FEEDS} readers" in words


def test_the_filters_are_filters(checkout: Path, tmp_path: Path) -> None:
    text = (checkout / "docs/trace.md").read_text()
    table = text.partition("| filter | shows |")[2].partition("\n\n")[0]
    filters = re.findall("`(vmbus[^`]*)`", table)
    assert len(filters) >= 9
    (tmp_path / "t").write_bytes(capture([]))
    for found in filters:
        # tshark refuses a filter with a field that it does not know, or that cannot be compared so.
        tshark(tmp_path / "t", "-Y", found.replace("\\|", "|"))
