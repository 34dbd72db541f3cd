# SPDX-License-Identifier: MIT
"""C. The restore API."""

from __future__ import annotations

import struct
from collections.abc import Callable

from emulator.conformance.rig import Rig
from emulator.conformance.scenarios.support import (
    MORE,
    SUCCESS,
    all_answered,
    busy,
    chunks,
    ends_well,
    guest_answers,
    names_in_use,
    paused,
)
from emulator.conformance.suite import Section, expect, same, scenario
from emulator.kmcl import KmclError, RestoredPacket, ServerChannel
from emulator.wire.ntstatus import NtStatus

_SOURCE = "VmbChannelRestoreFromBuffer"
_CALLBACK = "EVT_VMB_CHANNEL_RESTORE_PACKET"


def _saved() -> tuple[Rig, list[bytes], list[str]]:
    rig = paused(busy())
    names = names_in_use(rig)
    return rig, chunks(rig), names


def _renewed(rig: Rig) -> Rig:
    """Make the channel of a new process, enabled and restored open."""
    rig.new_process()
    rig.channel.enable()
    return rig


def _feed(rig: Rig, pieces: list[bytes]) -> NtStatus:
    status = MORE
    for piece in pieces:
        status = rig.channel.restore_from_buffer(piece)
        if status is not MORE:
            break
    return status


def _refused(rig: Rig, pieces: list[bytes]) -> NtStatus:
    """Feed a bad stream: it must fail, leave a channel that cannot start, and be cleaned up."""
    _renewed(rig)
    status = _feed(rig, pieces)
    expect(status not in (SUCCESS, MORE), f"it was taken: {status.name}")
    expect(bool(rig.channel.restore_failure), "no reason is given")
    try:
        rig.channel.start()
    except KmclError:
        pass
    else:
        expect(False, "a channel that was restored in part was started")
    ends_well(rig)
    return status


@scenario(
    23,
    Section.RESTORE,
    "the whole stream in one buffer",
    expected="SUCCESS",
    basis="D",
    source=_SOURCE,
)
def _one_buffer() -> str:
    rig, pieces, names = _saved()
    _renewed(rig)
    same(_feed(rig, [b"".join(pieces)]), SUCCESS, "RestoreFromBuffer")
    rig.channel.start()
    guest_answers(rig)
    all_answered(rig, names)
    return f"{len(pieces)} chunks at once"


@scenario(
    24,
    Section.RESTORE,
    "chunk by chunk",
    expected="MORE_PROCESSING_REQUIRED (which fails NT_SUCCESS) for all but the last, then SUCCESS",
    basis="D",
    source=_SOURCE,
)
def _chunk_by_chunk() -> str:
    rig, pieces, names = _saved()
    _renewed(rig)
    statuses = [rig.channel.restore_from_buffer(piece) for piece in pieces]
    same(statuses, [MORE] * (len(pieces) - 1) + [SUCCESS], "the statuses")
    expect(not MORE.is_success, "MORE_PROCESSING_REQUIRED passes NT_SUCCESS")
    rig.channel.start()
    guest_answers(rig)
    all_answered(rig, names)
    return f"{len(pieces)} calls"


@scenario(
    25,
    Section.RESTORE,
    "a buffer that ends inside a chunk",
    expected="failure, and no restore in part",
    basis="DI",
    source=_SOURCE,
)
def _cut() -> str:
    statuses: set[str] = set()
    rig, pieces, _ = _saved()
    whole = b"".join(pieces)
    ends = {sum(map(len, pieces[:count])) for count in range(len(pieces) + 1)}
    for cut in range(1, len(whole), 37):
        if cut not in ends:
            statuses.add(_refused(rig, [whole[:cut]]).name)
    return f"refused at every 37th byte: {', '.join(sorted(statuses))}"


@scenario(
    26,
    Section.RESTORE,
    "chunks reordered, doubled, missing, followed by garbage, of another version, of huge length",
    expected="failure; no memory outside is touched; the channel can be disabled and cleaned up",
    basis="I",
    source=_SOURCE,
)
def _mangled() -> str:
    rig, pieces, _ = _saved()
    second = pieces[1]

    def patched(offset: int, value: bytes) -> bytes:
        return second[:offset] + value + second[offset + len(value) :]

    cases: dict[str, list[bytes]] = {
        "reordered": [pieces[0], pieces[2], pieces[1], *pieces[3:]],
        "doubled": [pieces[0], pieces[1], *pieces[1:]],
        "missing": [pieces[0], *pieces[2:]],
        "first missing": pieces[1:],
        "garbage behind": [*pieces[:-1], pieces[-1] + b"garbage"],
        "bad magic": [pieces[0], patched(0, b"XXXX"), *pieces[2:]],
        "version": [pieces[0], patched(4, struct.pack("<H", 99)), *pieces[2:]],
        "huge": [pieces[0], patched(8, struct.pack("<I", 0xFFFF_FFF0)), *pieces[2:]],
        "empty": [b""],
    }
    seen = {name: _refused(rig, stream).name for name, stream in cases.items()}
    return "; ".join(f"{name}: {status}" for name, status in seen.items())


@scenario(
    27,
    Section.RESTORE,
    "one more RestoreFromBuffer after SUCCESS",
    expected="failure (its status is not specified)",
    basis="I",
    source=_SOURCE,
)
def _once_more() -> str:
    rig, pieces, names = _saved()
    rig.restored(pieces)
    status = rig.channel.restore_from_buffer(pieces[-1])
    expect(not status.is_success and status is not MORE, f"it was taken: {status.name}")
    rig.channel.start()
    guest_answers(rig)
    all_answered(rig, names)
    return f"{status.name}; the restored channel goes on"


@scenario(
    28,
    Section.RESTORE,
    "EvtRestorePacket allocates and calls VmbPacketRestore",
    expected="it gets LibBuf as it was saved, and SaveBuf byte for byte as the VSP wrote it",
    basis="D",
    source=_CALLBACK,
)
def _callback() -> str:
    rig, pieces, names = _saved()
    rig.restored(pieces)
    back = [each.save_buffer.rstrip(b"\0").decode() for each in rig.vsp.restored]
    same(back, names, "what comes back")
    expect(all(each.lib_buffer for each in rig.vsp.restored), "an empty LibBuf")
    return f"{len(names)} packets"


def _with_callback(
    callback: Callable[[Rig, ServerChannel, RestoredPacket, int], NtStatus],
) -> tuple[Rig, NtStatus]:
    rig, pieces, _ = _saved()
    _renewed(rig)
    calls = 0

    def hook(channel: ServerChannel, restored: RestoredPacket) -> NtStatus:
        nonlocal calls
        calls += 1
        return callback(rig, channel, restored, calls)

    rig.vsp.restore_hook = hook
    return rig, _feed(rig, pieces)


@scenario(
    29,
    Section.RESTORE,
    "VmbPacketAllocate fails in EvtRestorePacket",
    expected="the VSP returns a failure, and RestoreFromBuffer fails",
    basis="DI",
    source="VmbPacketAllocate",
)
def _no_packet() -> str:
    rig, status = _with_callback(lambda *_: NtStatus.INSUFFICIENT_RESOURCES)
    same(status, NtStatus.INSUFFICIENT_RESOURCES, "RestoreFromBuffer")
    ends_well(rig)
    return "RestoreFromBuffer returns the callback's status"


@scenario(
    30,
    Section.RESTORE,
    "VmbPacketRestore with a LibBuf of the wrong size or content",
    expected="a failure; the packet stays the VSP's, which frees it",
    basis="DI",
    source="VmbPacketRestore",
)
def _wrong_buffer() -> str:
    seen: list[str] = []

    def callback(_: Rig, channel: ServerChannel, restored: RestoredPacket, __: int) -> NtStatus:
        packet = channel.packet_allocate()
        lib = restored.lib_buffer
        flipped = bytes([lib[0] ^ 1]) + lib[1:]
        other = lib[:-1] + bytes([lib[-1] ^ 1])
        status = SUCCESS
        for wrong in (b"", lib[:-1], lib + b"\0", flipped, other):
            status = packet.restore(wrong)
            seen.append(status.name)
            expect(not status.is_success, "a damaged LibBuf was taken")
        packet.free()
        return status

    rig, status = _with_callback(callback)
    expect(status not in (SUCCESS, MORE), "RestoreFromBuffer went on")
    ends_well(rig)
    return ", ".join(sorted(set(seen)))


@scenario(
    31,
    Section.RESTORE,
    "EvtRestorePacket succeeds without having restored the packet",
    expected="not specified; the guest's completion must not find itself without an owner",
    basis="I",
    source=_CALLBACK,
    specified=False,
)
def _forgotten() -> str:
    rig, status = _with_callback(lambda *_: SUCCESS)
    expect(status not in (SUCCESS, MORE), "the packet was lost in silence")
    ends_well(rig)
    return f"RestoreFromBuffer returns {status.name}"


@scenario(
    32,
    Section.RESTORE,
    "EvtRestorePacket fails for one packet of several",
    expected="RestoreFromBuffer fails; the packets before are reclaimed at Disable",
    basis="I",
    source=_CALLBACK,
)
def _third_fails() -> str:
    def callback(rig: Rig, channel: ServerChannel, restored: RestoredPacket, call: int) -> NtStatus:
        if call == 3:
            return NtStatus.UNSUCCESSFUL
        rig.vsp.restore_hook, hook = None, rig.vsp.restore_hook
        status = rig.vsp.restore_packet(channel, restored)
        rig.vsp.restore_hook = hook
        return status

    rig, status = _with_callback(callback)
    same(status, NtStatus.UNSUCCESSFUL, "RestoreFromBuffer")
    ends_well(rig)
    same(
        [status for _, status, _ in rig.vsp.completed],
        [NtStatus.DEVICE_REMOVED] * 2,
        "how the first two ended",
    )
    return "the two before end with DEVICE_REMOVED; nothing is left"


@scenario(
    33,
    Section.RESTORE,
    "into a channel with a smaller MaximumPacketSize or MaximumPacketCount",
    expected="failure",
    basis="I",
    source=_SOURCE,
)
def _too_small() -> str:
    rig, pieces, _ = _saved()
    seen: list[str] = []
    for which in ("size", "count"):
        rig.new_process()
        if which == "size":
            rig.channel.init_set_maximum_packet_size(8)
        else:
            rig.channel.init_set_maximum_packet_count(2)
        rig.channel.enable()
        status = _feed(rig, pieces)
        expect(status not in (SUCCESS, MORE), f"it was taken: {status.name}")
        seen.append(rig.channel.restore_failure or "no reason")
        ends_well(rig)
    return "; ".join(seen)


@scenario(
    34,
    Section.RESTORE,
    "on a channel that was started already, or is not enabled",
    expected="not specified; recorded",
    basis="I",
    source=_SOURCE,
    specified=False,
)
def _wrong_state() -> str:
    rig, pieces, _ = _saved()
    rig.new_process()
    disabled = rig.channel.restore_from_buffer(pieces[0])
    rig.channel.enable()
    rig.channel.start()
    started = rig.channel.restore_from_buffer(pieces[0])
    for status in (disabled, started):
        expect(status not in (SUCCESS, MORE), f"it was taken: {status.name}")
    ends_well(rig)
    return f"Disabled: {disabled.name}; started: {started.name}"
