# SPDX-License-Identifier: MIT
"""A. Registration and the save API."""

from __future__ import annotations

from typing import Any

from emulator.conformance.rig import Rig
from emulator.conformance.scenarios.support import (
    SUCCESS,
    all_answered,
    busy,
    chunks,
    ends_well,
    guest_answers,
    in_use,
    names_in_use,
    paused,
    refused,
)
from emulator.conformance.suite import Section, expect, same, scenario
from emulator.kmcl import RestoredPacket, SavedPacket, ServerChannel
from emulator.model import driver
from emulator.wire.ntstatus import NtStatus

_SETTER = "VmbServerChannelInitSetSaveRestorePacketCallbacks"
_CONTINUE = "VmbChannelSaveContinue"


@scenario(
    1,
    Section.API,
    "register save and restore callbacks while Disabled",
    expected="success; they are used by later saves and restores",
    basis="D",
    source=_SETTER,
)
def _registered() -> str:
    rig = paused(busy())
    wanted = in_use(rig)
    pieces = chunks(rig)
    same(len({context for context, _ in rig.vsp.save_calls}), wanted, "packets asked about")
    rig.restored(pieces)
    same(len(rig.vsp.restored), wanted, "packets given back")
    ends_well(rig)
    return f"{wanted} packets saved and restored by the callbacks"


@scenario(
    2,
    Section.API,
    "register after Enable",
    expected="INVALID_PARAMETER_1; the earlier registration stays",
    basis="D",
    source=_SETTER,
)
def _registered_late() -> str:
    rig = busy()

    def wrong(*_: Any) -> Any:
        raise AssertionError("the later registration was used")

    text = refused(
        lambda: rig.channel.init_set_save_restore_packet_callbacks(wrong, wrong),
        NtStatus.INVALID_PARAMETER_1,
    )
    paused(rig)
    expect(bool(chunks(rig)) and bool(rig.vsp.save_calls), "the earlier callback was not used")
    return text


@scenario(
    3,
    Section.API,
    "register legacy and then Ex, and the other way round",
    expected="only the latest pair is called; Ex gets its context as second argument",
    basis="D",
    source=f"{_SETTER}Ex (interface V5)",
)
def _registered_twice() -> str:
    seen: list[str] = []

    def save(_: ServerChannel, __: object, size: int) -> SavedPacket:
        seen.append("legacy")
        return SavedPacket(SUCCESS)

    def save_ex(_: ServerChannel, context: object, __: object, size: int) -> SavedPacket:
        seen.append(f"ex {context}")
        return SavedPacket(SUCCESS)

    def restore(_: ServerChannel, __: RestoredPacket) -> NtStatus:
        return NtStatus.UNSUCCESSFUL

    def restore_ex(_: ServerChannel, __: object, ___: RestoredPacket) -> NtStatus:
        return NtStatus.UNSUCCESSFUL

    for last, wanted in (("ex", "ex context"), ("legacy", "legacy")):
        rig = Rig()
        seen.clear()
        for which in ("legacy", "ex") if last == "ex" else ("ex", "legacy"):
            if which == "ex":
                rig.channel.init_set_save_restore_packet_callbacks_ex(
                    "context", save_ex, restore_ex
                )
            else:
                rig.channel.init_set_save_restore_packet_callbacks(save, restore)
        rig.running().send("one", wait=True)
        paused(rig)
        chunks(rig)
        same(seen, [wanted], f"calls when {last} was registered last")
    return "the last pair, with its context"


@scenario(
    4,
    Section.API,
    "packets in use, no callbacks registered, save",
    expected="not specified: fails, or saves KMCL's own state only",
    basis="I",
    source="VmbChannelSaveBegin",
    specified=False,
)
def _no_callbacks() -> str:
    rig = Rig()
    rig.channel._save_packet = None
    rig.running().send("one", wait=True)
    paused(rig)
    status = rig.channel.save_begin()
    rig.channel.save_end()
    rig.channel.start()
    guest_answers(rig)
    all_answered(rig, ["one"])
    ends_well(rig)
    return f"SaveBegin returns {status.name}; the channel goes on"


@scenario(
    5,
    Section.API,
    "SaveBegin, SaveContinue with a large buffer, SaveEnd; nothing in use",
    expected="SUCCESS; BytesFilled at most the size; no packet callback",
    basis="DI",
    source=_CONTINUE,
)
def _nothing_in_use() -> str:
    rig = paused(Rig().running())
    same(rig.channel.save_begin(), SUCCESS, "SaveBegin")
    result = rig.channel.save_continue(1 << 16)
    rig.channel.save_end()
    same(result.status, SUCCESS, "SaveContinue")
    same(rig.vsp.save_calls, [], "calls of EvtSavePacket")
    expect(len(result.data) <= 1 << 16, "more bytes than the buffer has")
    return f"{len(result.data)} bytes"


@scenario(
    6,
    Section.API,
    "SaveContinue with a buffer of 0 bytes, or too small",
    expected="BUFFER_TOO_SMALL, BytesRequired larger than given, nothing consumed",
    basis="D",
    source=_CONTINUE,
)
def _too_small() -> str:
    rig = paused(busy())
    rig.channel.save_begin()
    first = rig.channel.save_continue(0)
    again = rig.channel.save_continue(first.bytes_required - 1)
    for result in (first, again):
        same(result.status, NtStatus.BUFFER_TOO_SMALL, "SaveContinue")
        same(result.data, b"", "bytes filled")
    same(again.bytes_required, first.bytes_required, "BytesRequired of the second try")
    fits = rig.channel.save_continue(first.bytes_required)
    expect(len(fits.data) == first.bytes_required, "no progress with BytesRequired")
    rig.channel.save_end()
    return f"BytesRequired {first.bytes_required}"


@scenario(
    7,
    Section.API,
    "SaveContinue with a medium buffer and several packets",
    expected="BUFFER_OVERFLOW (which fails NT_SUCCESS), BytesFilled > 0, SUCCESS in the end",
    basis="D",
    source=_CONTINUE,
)
def _medium() -> str:
    rig = paused(busy())
    rig.channel.save_begin()
    calls = 0
    size = 300
    while (result := rig.channel.save_continue(size)).status is not SUCCESS:
        same(result.status, NtStatus.BUFFER_OVERFLOW, "SaveContinue")
        expect(not result.status.is_success, "BUFFER_OVERFLOW passes NT_SUCCESS")
        expect(0 < len(result.data) <= size, "no progress")
        expect(result.bytes_required > 0, "no BytesRequired")
        size = max(300, result.bytes_required)
        calls += 1
    rig.channel.save_end()
    expect(calls > 1, "it was done in one go")
    return f"{calls + 1} calls"


@scenario(
    8,
    Section.API,
    "the same state saved with different buffer sizes",
    expected="both streams restore to the same",
    basis="I",
    source=_CONTINUE,
)
def _sizes() -> str:
    found: list[object] = []
    for size in (0, 200, 1 << 20):
        rig = paused(busy())
        rig.restored(rig.save(lambda size=size: size))  # type: ignore[misc]
        rig.channel.start()
        names = guest_answers(rig)
        found.append((names, [context for context, _, _ in rig.vsp.completed]))
        ends_well(rig)
    expect(all(each == found[0] for each in found), f"they differ: {found}")
    return "by chunks, by 200 bytes and in one piece: the same packets in the same order"


@scenario(
    9,
    Section.API,
    "SaveContinue without SaveBegin, SaveBegin twice, SaveEnd twice or alone",
    expected="not specified; must not harm the channel",
    basis="I",
    source="VmbChannelSaveBegin, VmbChannelSaveEnd",
    specified=False,
)
def _misordered() -> str:
    rig = paused(busy())
    alone = rig.channel.save_continue(1 << 16)
    rig.channel.save_end()
    rig.channel.save_begin()
    twice = rig.channel.save_begin()
    rig.channel.save_end()
    rig.channel.save_end()
    rig.channel.start()
    names = guest_answers(rig)
    all_answered(rig, names)
    ends_well(rig)
    return f"SaveContinue {alone.status.name}, second SaveBegin {twice.name}, SaveEnd ignored"


@scenario(
    10,
    Section.API,
    "SaveEnd before the end, then a full save",
    expected="the second save is complete and can be restored",
    basis="I",
    source="VmbChannelSaveEnd",
)
def _aborted() -> str:
    rig = paused(busy())
    names = names_in_use(rig)
    rig.channel.save_begin()
    rig.channel.save_continue(200)
    rig.channel.save_end()
    rig.restored(chunks(rig))
    rig.channel.start()
    guest_answers(rig)
    all_answered(rig, names)
    ends_well(rig)
    return f"{len(names)} packets after the restore"


@scenario(
    11,
    Section.API,
    "save on a client endpoint",
    expected="cannot be reached: the save functions are in the server's table only",
    basis="DI",
    source="KMCL_SERVER_ONLY_METHODS",
    specified=False,
)
def _client() -> str:
    names = [name for name in dir(driver.GuestEnds) if "save" in name or "restore" in name]
    same(names, [], "save functions of the guest's driver")
    return "the guest's half has no such function; the export's status is not known"


@scenario(
    12,
    Section.API,
    "save, then Start again without a restore (checkpoint)",
    expected="the channel goes on: queued packets in order, no completion twice",
    basis="I",
    source="VmbChannelSaveEnd, VmbChannelStart",
)
def _checkpoint() -> str:
    rig = busy()
    wanted = in_use(rig)
    paused(rig)
    chunks(rig)
    rig.channel.start()
    names = guest_answers(rig)
    all_answered(rig, names)
    order = [name for name in names if name.startswith(("asked", "queued"))]
    same(order, ["asked 1", "asked 2", "queued 1", "queued 2"], "the order")
    ends_well(rig)
    return f"{wanted} packets in use at the save, each ended once"
