# SPDX-License-Identifier: MIT
"""Save and restore a channel, with every status compared with the documented one."""

from __future__ import annotations

import random
from collections.abc import Callable, Iterable

from emulator.conformance.ledger import Symptom, Violation
from emulator.kmcl import ServerChannel
from emulator.wire.ntstatus import NtStatus


def save(channel: ServerChannel, sizes: int) -> list[bytes]:
    """Save a paused channel into buffers whose sizes are drawn from the seed ``sizes``.

    Raises :class:`Violation` for a status that is not the documented one.
    """
    size = buffer_sizes(sizes)
    _expect("VmbChannelSaveBegin", channel.save_begin(), NtStatus.SUCCESS)
    pieces: list[bytes] = []
    needed = 0
    while True:
        given = max(size(), needed)
        result = channel.save_continue(given)
        if len(result.data) > given:
            raise Violation(Symptom.STATUS, "SaveContinue filled more than its buffer")
        if result.data:
            pieces.append(result.data)
        if result.status is NtStatus.SUCCESS:
            break
        more = NtStatus.BUFFER_OVERFLOW if result.data else NtStatus.BUFFER_TOO_SMALL
        _expect("VmbChannelSaveContinue", result.status, more)
        if not result.data and result.bytes_required <= given:
            raise Violation(Symptom.STATUS, "SaveContinue needs no more than it was given")
        needed = 0 if result.data else result.bytes_required
    channel.save_end()
    return pieces


def restore(channel: ServerChannel, pieces: list[bytes]) -> None:
    """Restore what :func:`save` returned; raises :class:`Violation` as it does."""
    for left, piece in zip(range(len(pieces) - 1, -1, -1), pieces, strict=True):
        status = channel.restore_from_buffer(piece)
        more = NtStatus.MORE_PROCESSING_REQUIRED if left else NtStatus.SUCCESS
        _expect(f"RestoreFromBuffer ({channel.restore_failure})", status, more)


def _expect(what: str, status: NtStatus, expected: NtStatus) -> None:
    if status is not expected:
        raise Violation(Symptom.STATUS, f"{what}: {status.name}, not {expected.name}")


def buffer_sizes(seed: int) -> Callable[[], int]:
    """Return a source of buffer sizes for a save: always 0 for the seed 0."""
    if not seed:
        return lambda: 0
    rng = random.Random(f"sizes {seed}")
    return lambda: rng.choice([0, rng.randrange(100), rng.randrange(3000), 1 << 20])


def damage(chunks: Iterable[bytes], rng: random.Random) -> list[bytes]:
    """Damage a stream that has a buffer a chunk: drop, double, cut or change one."""
    pieces = list(chunks)
    victim = rng.randrange(len(pieces))
    match rng.randrange(5):
        case 0:
            # Without its last chunk a stream is not refused but goes on for ever.
            del pieces[min(victim, len(pieces) - 2)]
        case 1:
            pieces.insert(victim, pieces[victim])
            if victim == len(pieces) - 2:
                # What comes after the last chunk is another restore's; here it is one buffer.
                pieces[victim:] = [pieces[victim] * 2]
        case 2:
            pieces[victim] = pieces[victim][: rng.randrange(len(pieces[victim]))]
        case 3:
            pieces[victim] += b"surplus"
        case _:
            changed = bytearray(pieces[victim])
            changed[rng.randrange(len(changed))] ^= 1 << rng.randrange(8)
            pieces[victim] = bytes(changed)
    return pieces
