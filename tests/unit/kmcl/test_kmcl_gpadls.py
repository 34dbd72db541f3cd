# SPDX-License-Identifier: MIT
"""Mapped GPADLs: for reading only, or for both."""

from __future__ import annotations

import pytest

from emulator.conformance.rig import PAGE, Rig
from emulator.memory import ReadOnlyMemory, page_view
from emulator.ring import OutgoingRing

HANDLE = 0xE1E10


def mapped_rig() -> tuple[Rig, memoryview]:
    rig = Rig().running()
    memory = memoryview(bytearray(2 * PAGE))
    rig.port.gpadls[HANDLE] = page_view([memory])
    return rig, memory


def test_a_mapping_for_reading_refuses_writes_and_names_the_gpadl() -> None:
    rig, memory = mapped_rig()
    view = rig.channel.map_gpadl(HANDLE, read_only=True)
    memory[5:9] = b"seen"
    assert view.read(5, 4) == b"seen"
    with pytest.raises(ReadOnlyMemory, match="test: GPADL 0xe1e10 is mapped for reading only"):
        view.write(0, b"x")
    # Nor is there a way round it: a ring, say, that is made on the view.
    with pytest.raises(ReadOnlyMemory):
        OutgoingRing(view).init_at_open()
    assert bytes(memory) == bytes(5) + b"seen" + bytes(2 * PAGE - 9)


def test_the_same_gpadl_can_be_mapped_for_writing_afterwards() -> None:
    rig, memory = mapped_rig()
    rig.channel.map_gpadl(HANDLE, read_only=True)
    rig.channel.unmap_gpadl(HANDLE)
    rig.channel.map_gpadl(HANDLE).write(3, b"written")
    assert bytes(memory[3:10]) == b"written"
