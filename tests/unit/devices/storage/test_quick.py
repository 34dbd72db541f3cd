# SPDX-License-Identifier: MIT
"""READ and WRITE as the VSP decodes them by itself, against the engine."""

from __future__ import annotations

import asyncio
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from emulator.devices.storage.requests import Requests
from emulator.devices.storage.scsi import Sense
from tests.unit.devices.storage.rig import Result, Rig, cdb10, cdb16

SIZE = 64 * 512

COMMANDS = st.tuples(
    st.sampled_from([0x28, 0x2A, 0x88, 0x8A, 0xA8, 0x2E]),
    st.integers(0, 70) | st.sampled_from([0xFFFFFFFF]),
    st.integers(0, 9),
    st.sampled_from([0, 0x08, 0x10, 0x18, 0x02, 0x20]),
    st.integers(0, 9),
    st.sampled_from([0, 512, 100]),
    st.booleans(),
    st.sampled_from([0, 1, 2]),
)


async def _run(path: str, read_only: bool, commands: list[Any]) -> tuple[list[Result], bytes]:
    rig = await Rig({"luns": [{"path": path, "read_only": read_only}]}).start().initialise()
    results = []
    for opcode, lba, blocks, flags, room, offset, swapped, attention in commands:
        cdb = (cdb16 if opcode & 0x80 and opcode != 0xA8 else cdb10)(opcode, lba, blocks, flags)
        if opcode == 0xA8:
            cdb = cdb10(opcode, lba, 0, flags)[:6] + blocks.to_bytes(4, "big") + bytes(2)
        reads = (opcode in (0x28, 0x88, 0xA8)) != swapped
        data = bytes([lba & 0xFF, blocks, room]) * 171
        how: dict[str, Any] = {"offset": offset}
        if room:
            how |= {"room": room * 512} if reads else {"out": (data * room)[: room * 512]}
        if attention == 1:
            device: Any = rig.device
            device.controller.luns[0].unit.attention(Sense.CAPACITY_CHANGED)
        results.append(await rig.command(cdb, **how))
    rig.device.close()
    with open(path, "rb") as file:  # noqa: ASYNC230
        return results, file.read()


@settings(max_examples=60, deadline=None)
@given(st.lists(COMMANDS, max_size=12), st.booleans())
def test_the_quick_way_does_what_the_engine_does(
    tmp_path_factory: pytest.TempPathFactory, commands: list[Any], read_only: bool
) -> None:
    folder = tmp_path_factory.mktemp("quick")
    outcomes = []
    for quick in (True, False):
        path = folder / f"{quick}.img"
        path.write_bytes(bytes(range(256)) * (SIZE // 256))
        with pytest.MonkeyPatch.context() as patch:
            if not quick:
                patch.setattr(Requests, "quick", lambda *_: False)
            outcomes.append(asyncio.run(_run(str(path), read_only, commands)))
    assert outcomes[0] == outcomes[1]
