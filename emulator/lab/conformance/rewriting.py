# SPDX-License-Identifier: MIT
"""A snapshot with another state of the VMBus host in it, whole in every other respect.

QEMU and the manifest vouch for what they are given, so whatever is wrong with the new state is left
for the backend to find.
"""

from __future__ import annotations

import zlib
from collections.abc import Callable
from pathlib import Path
from typing import Final

import msgspec

from emulator.conformance.suite import Mismatch
from emulator.machine.hoststate import HostState
from emulator.machine.savedstate import decode_state, read_state
from emulator.machine.snapshot import MANIFEST, STATE, file_entry, read_manifest

_WORD: Final = 4


def rewritten(source: Path, target: Path, change: Callable[[HostState], None]) -> Path:
    """Write ``target``, the snapshot ``source`` with its host's state changed; returns it.

    In the stream the state has its length and its CRC-32 before it, big-endian
    (docs/vmbus-user.md section 6). Raises SnapshotError for a source that is no snapshot.
    """
    old = read_state(source)
    state = decode_state(old)
    change(state)
    new = msgspec.msgpack.encode(state)
    stream = (source / STATE).read_bytes()
    start = stream.rfind(old)
    head = stream[start - 2 * _WORD : start]
    if head != _head(old):
        raise Mismatch(f"{source}: the state is not where its section says it is")
    target.mkdir()
    (target / STATE).write_bytes(
        stream[: start - 2 * _WORD] + _head(new) + new + stream[start + len(old) :]
    )
    manifest = read_manifest(source)
    manifest = msgspec.structs.replace(manifest, files={STATE: file_entry(target / STATE)})
    (target / MANIFEST).write_bytes(msgspec.json.encode(manifest.sealed()))
    return target


def _head(state: bytes) -> bytes:
    return len(state).to_bytes(_WORD, "big") + zlib.crc32(state).to_bytes(_WORD, "big")
