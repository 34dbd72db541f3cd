# SPDX-License-Identifier: MIT
"""Runs tshark with our dissector on records. scripts/setup installs it: without it tests fail."""

from __future__ import annotations

import json
import subprocess
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from emulator.trace import pcapng
from emulator.trace.dissector import PATH
from emulator.trace.record import Record

BEGAN = 1_700_000_000_123_456_789
"""When the traces of the tests begin, in ns: a time that no double has exactly."""

Frame = dict[str, list[str]]
"""The fields of one frame: each name with all its values, as text."""


def capture(records: Sequence[Record | bytes], limit: int = 1 << 20) -> bytes:
    """Return a file with these records, each cut to ``limit`` bytes."""
    blocks = [pcapng.section("test"), pcapng.interface("vm")]
    for number, record in enumerate(records):
        data = record if isinstance(record, bytes) else record.pack()
        flags = 0 if isinstance(record, bytes) else record.direction
        blocks.append(
            pcapng.packet(0, BEGAN + number * 1_000_000, data[:limit], len(data), flags=flags)
        )
    return b"".join(blocks)


def tshark(path: Path, *arguments: str) -> str:
    """Return what tshark prints of a file with the dissector loaded."""
    result = subprocess.run(
        ["tshark", "-X", f"lua_script:{PATH}", "-r", str(path), *arguments],
        capture_output=True,
        encoding="utf-8",
        errors="replace",
        check=False,
        timeout=120,
    )
    assert result.returncode == 0, result.stderr
    assert "Lua" not in result.stderr, result.stderr
    return result.stdout


def dissected(path: Path, *arguments: str) -> list[Frame]:
    """Return the fields of each frame; fails if the script raised an error on any of them."""
    text = tshark(path, "-T", "json", "--no-duplicate-keys", *arguments)
    found = [_flat(frame["_source"]["layers"]) for frame in json.loads(text)]
    for frame in found:
        assert "_ws.lua.error" not in frame, frame
        # Wireshark's own word for bytes beyond the end; beside it ours says what is wrong.
        assert "_ws.malformed" not in frame or "vmbus.malformed" in frame, frame
    return found


def _flat(layers: Any) -> Frame:
    found: Frame = {}

    def walk(value: Any) -> None:
        if isinstance(value, dict):
            for name, inner in value.items():
                if isinstance(inner, dict):
                    # An item with children: `NAME` has its value, `NAME_tree` the children.
                    walk(inner)
                elif isinstance(inner, list):
                    for one in inner:
                        if isinstance(one, dict):
                            walk(one)
                        else:
                            found.setdefault(name, []).append(one)
                else:
                    found.setdefault(name, []).append(inner)

    walk(layers)
    return found
