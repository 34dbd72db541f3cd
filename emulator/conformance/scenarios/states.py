# SPDX-License-Identifier: MIT
"""D. States and callbacks around save and restore."""

from __future__ import annotations

from emulator.conformance.bus_rig import BusRig
from emulator.conformance.rig import INTERFACE, Rig
from emulator.conformance.scenarios.support import (
    all_answered,
    busy,
    chunks,
    ends_well,
    guest_answers,
    names_in_use,
    paused,
    refused,
)
from emulator.conformance.suite import Section, expect, same, scenario
from emulator.kmcl import Connection, Run, ServerChannel
from emulator.wire.ntstatus import NtStatus

_MODEL = "the header's state model"


@scenario(
    35,
    Section.STATES,
    "Pause on an Active channel whose VSP holds packets",
    expected="EvtSuspend once; Pause is over when all are completed; no packet comes afterwards",
    basis="D",
    source="VmbChannelPause, EVT_VMB_CHANNEL_SUSPEND",
)
def _pause_waits() -> str:
    rig = Rig(answer=False).running()
    rig.vsp.drain_in_suspend = False
    for number in range(3):
        rig.guest.request(number, b"request")
    rig.ring()
    same(len(rig.vsp.held), 3, "packets held")
    over: list[bool] = []
    rig.channel.pause(lambda: over.append(True))
    same(rig.vsp.trace.count("suspend"), 1, "calls of EvtSuspend")
    rig.guest.request(9, b"late")
    rig.channel.port_interrupt()
    for left in (2, 1, 0):
        expect(not over, f"Pause is over with {left + 1} packets held")
        rig.vsp.held.pop(0).complete(b"done")
    expect(bool(over), "Pause is not over with nothing held")
    same(len(rig.vsp.received), 3, "packets delivered")
    same(rig.vsp.trace.count("suspend"), 1, "calls of EvtSuspend")
    return "3 held; over with the third completion"


@scenario(
    36,
    Section.STATES,
    "Pause on a Disabled channel, then Enable and open",
    expected="it comes up paused: no EvtStarted before Start",
    basis="D",
    source="VmbChannelPause",
)
def _paused_at_enable() -> str:
    rig = Rig()
    rig.channel.pause(lambda: None)
    rig.channel.enable()
    rig.open()
    same(rig.vsp.trace, ["opened"], "callbacks before Start")
    rig.channel.start()
    same(rig.vsp.trace, ["opened", "started", "post_started"], "callbacks")
    return "EvtOpened; EvtStarted and EvtPostStarted after Start"


@scenario(
    37,
    Section.STATES,
    "Pause and Start from inside a state callback",
    expected="forbidden; a checker says so",
    basis="D",
    source="VmbChannelPause, VmbChannelStart",
)
def _not_in_callbacks() -> str:
    seen: list[str] = []

    def misuse(channel: ServerChannel) -> None:
        for call in (channel.start, lambda: channel.pause(lambda: None)):
            refused(call, NtStatus.INVALID_DEVICE_STATE)
            seen.append("refused")

    rig = Rig()
    names = ("opened", "started", "post_started", "suspend", "closed")
    rig.vsp.hooks = dict.fromkeys(names, misuse)
    rig.running()
    ends_well(rig)
    same(len(seen), 2 * len(names), "calls refused")
    return f"refused in each of {', '.join(names)}"


@scenario(
    38,
    Section.STATES,
    "the VSP sends after EvtSuspend",
    expected="a violation of the contract; a checker says so",
    basis="D",
    source="EVT_VMB_CHANNEL_SUSPEND",
)
def _send_after_suspend() -> str:
    rig = Rig().running()
    paused(rig)
    packet = rig.channel.packet_allocate()
    text = refused(lambda: packet.send(b"late"), NtStatus.INVALID_DEVICE_STATE)
    packet.free()
    ends_well(rig)
    return text


@scenario(
    39,
    Section.STATES,
    "Start after a restore",
    expected="EvtStarted, then incoming packets, then EvtPostStarted; the order is exact",
    basis="D",
    source="VmbChannelStart",
)
def _start_order() -> str:
    rig = paused(busy())
    rig.guest.request(7, b"unread")
    rig.restored(chunks(rig))
    queue_in: dict[str, str] = {}
    for name in ("started", "post_started"):
        rig.vsp.hooks[name] = lambda channel, name=name: queue_in.update(  # type: ignore[misc]
            {name: channel.queue.value}
        )
    rig.channel.start()
    same(rig.vsp.trace[0], "started", "the first callback")
    same(sorted(rig.vsp.trace), ["packet", "post_started", "started"], "the callbacks")
    same(queue_in, {"started": "starting", "post_started": "on"}, "the incoming queue")
    return " ".join(rig.vsp.trace)


@scenario(
    40,
    Section.STATES,
    "EvtOpened on a channel that is restored open",
    expected="recorded whether it runs; where it fails, there is no traffic",
    basis="ID",
    source="EVT_VMB_CHANNEL_OPENED",
    specified=False,
)
def _opened_on_restore() -> str:
    rig = paused(busy())
    rig.restored(chunks(rig))
    rig.channel.start()
    fails = Rig()
    fails.vsp.open_status = NtStatus.UNSUCCESSFUL
    fails.channel.enable()
    fails.channel.start()
    expect(not fails.open().is_success, "the guest's open succeeded")
    same(fails.channel.connection, Connection.ENABLED, "the state after a failed EvtOpened")
    ran = "runs" if "opened" in rig.vsp.trace else "does not run"
    return f"it {ran} on restore; where it fails, the open fails and nothing flows"


class _Family:
    """A primary with sub-channels, on rings of their own."""

    def __init__(self, count: int) -> None:
        self.primary = Rig()
        self.subs = [Rig() for _ in range(count)]
        for index, rig in enumerate(self.subs, 1):
            rig.channel.init_set_primary_channel(self.primary.channel, index)

    def all(self) -> list[Rig]:
        return [self.primary, *self.subs]


@scenario(
    41,
    Section.STATES,
    "a primary and sub-channels: pause and save the primary",
    expected="subs pause with it, have streams of their own, and cannot be enabled before it opens",
    basis="DC",
    source="VmbChannelInitSetPrimaryChannel",
)
def _subchannels() -> str:
    family = _Family(2)
    refused(family.subs[0].channel.enable, NtStatus.INVALID_DEVICE_STATE)
    family.primary.running()
    for rig in family.subs:
        rig.running()
        rig.send("sub", wait=True)
    same([rig.port.offers[0].subchannel_index for rig in family.subs], [1, 2], "indices")
    same({rig.port.offers[0].interface for rig in family.subs}, {INTERFACE}, "the interface")
    paused(family.primary)
    same({rig.channel.run for rig in family.all()}, {Run.PAUSED}, "how they run")
    streams = [chunks(rig) for rig in family.all()]
    expect(len({b"".join(stream) for stream in streams}) == 3, "streams are the same")
    # A new process: the sub-channels are given to the new primary.
    family.primary.restored(streams[0])
    for index, rig in enumerate(family.subs, 1):
        rig.new_process()
        rig.channel.init_set_primary_channel(family.primary.channel, index)
        rig.channel.enable()
        for piece in streams[index]:
            rig.channel.restore_from_buffer(piece)
    family.primary.channel.start()
    same({rig.channel.run for rig in family.all()}, {Run.STARTED}, "how they run")
    for rig in family.subs:
        guest_answers(rig)
        all_answered(rig, ["sub"])
    over: list[bool] = []
    family.primary.channel.port_closed(lambda: over.append(True))
    expect(bool(over), "the guest's close of the primary is not answered")
    same({rig.channel.connection for rig in family.subs}, {Connection.DISABLED}, "subs after it")
    return "2 subs: paused, saved, restored and started with the primary; Disabled at its close"


@scenario(
    42,
    Section.STATES,
    "save while offered, opening, open, closing, closing and opened again",
    expected="offered: closed; opening: OpenResult success after the restore; closing: told again",
    basis="C",
    source="OpenVMM, vmbus_server: SavedOpenState",
)
def _phases() -> str:
    seen: list[str] = []
    for phase in ("offered", "opening", "open", "closing", "closing and opened again"):
        rig = BusRig()
        channel = rig.connected()
        if phase != "offered":
            rig.ask_open(channel)
        if phase not in ("offered", "opening"):
            rig.answer_open(channel)
        if phase.startswith("closing"):
            rig.guest.close_channel(channel)
        if phase.endswith("again"):
            rig.ask_open(channel, reuse=True)
        rig.renew()
        asked = list(rig.asked)
        if phase == "opening":
            expect(rig.guest.channels[channel].is_open, "no OpenResult after the restore")
        if phase.startswith("closing"):
            same(asked.count("close"), 1, "closes told after the restore")
            rig.finish_close(channel)
        if phase.endswith("again"):
            rig.answer_open(channel)
            expect(rig.guest.channels[channel].is_open, "the second open is not answered")
        seen.append(f"{phase}: {', '.join(asked) or 'nothing asked'}")
        rig.close()
    return "; ".join(seen)


@scenario(
    43,
    Section.STATES,
    "Pause while a negotiation of EvtPostStarted waits",
    expected="no dead-lock; the negotiation goes on, or is saved by the VSP",
    basis="I",
    source="EVT_VMB_CHANNEL_POST_STARTED",
)
def _negotiating() -> str:
    rig = Rig()
    rig.vsp.hooks["post_started"] = lambda _: None
    rig.running()
    rig.send("negotiate", wait=True)
    names = names_in_use(rig)
    paused(rig)
    rig.restored(chunks(rig))
    rig.channel.start()
    guest_answers(rig)
    all_answered(rig, names)
    ends_well(rig)
    return "the question is an outgoing packet: saved, restored, answered"
