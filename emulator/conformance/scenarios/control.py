# SPDX-License-Identifier: MIT
"""G. The control plane and the guest's view."""

from __future__ import annotations

import dataclasses

from emulator.bus import BusConfig, RestoreMismatch
from emulator.conformance.bus_rig import BusRig, offer
from emulator.conformance.rig import Rig
from emulator.conformance.scenarios.support import (
    SUCCESS,
    busy,
    chunks,
    ends_well,
    names_in_use,
    paused,
    refused,
)
from emulator.conformance.suite import Mismatch, Section, expect, same, scenario
from emulator.kmcl import InitFlags, OfferParams, ServerInitFlags
from emulator.model.driver import request
from emulator.model.guest import ALL_OFFERS_DELIVERED, OFFER_CHANNEL, OPEN_RESULT, RESCIND
from emulator.wire.ntstatus import NtStatus
from emulator.wire.version import Version

_RESTORE = "OpenVMM, vmbus_server: restore and revoke_unclaimed_channels"


@scenario(
    59,
    Section.CONTROL,
    "a plain restore",
    expected="the guest sees no Rescind and no Offer; the relid stays",
    basis="IC",
    source=_RESTORE,
)
def _plain() -> str:
    rig = BusRig()
    channel = rig.connected()
    rig.open(channel)
    mark = len(rig.guest.heard)
    rig.renew()
    same(rig.guest.since(mark), [], "messages that the guest heard")
    expect(rig.guest.channels[channel].is_open, "the channel is not open")
    rig.close()
    return "no message at all"


@scenario(
    60,
    Section.CONTROL,
    "FORCE_NEW_CHANNEL",
    expected="Rescind, then a new Offer; nothing of the old instance is restored",
    basis="DC",
    source="VMBUS_SERVER_CHANNEL_INIT_FLAG_FORCE_NEW_CHANNEL",
)
def _force_new() -> str:
    kmcl = Rig()
    kmcl.channel.server_init_set_flags(ServerInitFlags.FORCE_NEW_CHANNEL)
    kmcl.channel.enable()
    params: OfferParams = kmcl.port.offers[0]
    expect(params.force_new, "the provider is not told")
    rig = BusRig()
    channel = rig.connected()
    rig.open(channel)
    mark = len(rig.guest.heard)
    # As a provider does that is told: it does not claim the channel, and offers it afterwards.
    rig.renew(offers=(), later=(offer(1),))
    same(rig.guest.since(mark), [RESCIND], "messages before the guest has let go")
    rig.guest.release(channel)
    same(rig.guest.since(mark), [RESCIND, OFFER_CHANNEL], "messages")
    rig.open(min(rig.guest.channels))
    rig.close()
    return "Rescind; the Offer when the guest has released the relid"


@scenario(
    61,
    Section.CONTROL,
    "a device that is absent on the target",
    expected="its channel is rescinded, and the guest releases the relid",
    basis="C",
    source=_RESTORE,
)
def _absent() -> str:
    rig = BusRig((1, 2))
    rig.connected()
    rig.open(max(rig.guest.channels))
    mark = len(rig.guest.heard)
    rig.renew((offer(1),))
    same(rig.guest.since(mark), [RESCIND], "messages")
    rig.guest.release(rig.guest.heard[-1]["channel_id"])
    same(len(rig.guest.channels), 1, "channels")
    same(rig.errors, [], "errors of the guest")
    rig.close()
    return "Rescind, and nothing else"


@scenario(
    62,
    Section.CONTROL,
    "a device that is new on the target",
    expected="offered only if the guest had asked for offers",
    basis="C",
    source="OpenVMM #1681",
)
def _added() -> str:
    for asked in (True, False):
        rig = BusRig()
        rig.guest.contact()
        if asked:
            rig.guest.request_offers()
        mark = len(rig.guest.heard)
        rig.renew((offer(1), offer(2)))
        same(rig.guest.since(mark), [OFFER_CHANNEL] if asked else [], "messages")
        if not asked:
            rig.guest.request_offers()
            same(len(rig.guest.channels), 2, "channels offered when it asks")
        rig.close()
    return "offered at once, or with the others when the guest asks"


@scenario(
    63,
    Section.CONTROL,
    "a request outstanding when the channel goes",
    expected="DEVICE_REMOVED",
    basis="D",
    source="VmbChannelSendSynchronousRequest",
)
def _removed() -> str:
    rig = Rig().running()
    same(rig.channel.send_synchronous_request(b"now"), SUCCESS, "with room")
    rig.send("one", wait=True)
    rig.fill()
    queued = names_in_use(rig)[1:]
    same(
        rig.channel.send_synchronous_request(bytes(1000)),
        NtStatus.BUFFER_OVERFLOW,
        "without room",
    )
    refused(
        lambda: rig.channel.send_synchronous_request(b"", timeout=1.0), NtStatus.INVALID_PARAMETER
    )
    rig.channel.disable(lambda: None)
    ended = [str(name) for name, status, _ in rig.vsp.completed if status is not SUCCESS]
    same(ended, ["one", *queued], "packets that ended without success")
    statuses = {status for _, status, _ in rig.vsp.completed} - {SUCCESS}
    same(statuses, {NtStatus.DEVICE_REMOVED}, "their statuses")
    same(rig.channel.send_synchronous_request(b"late"), NtStatus.DEVICE_REMOVED, "afterwards")
    return f"{len(ended)} packets end with DEVICE_REMOVED, before EvtClosed"


@scenario(
    64,
    Section.CONTROL,
    "a saved version above the target's maximum",
    expected="the restore is refused",
    basis="C",
    source="OpenVMM #3482",
)
def _newer() -> str:
    rig = BusRig()
    rig.connected(int(Version.IRON))
    try:
        rig.renew(config=dataclasses.replace(rig.config, max_restored_version=Version.WIN10))
    except RestoreMismatch as error:
        rig.close()
        return str(error)
    raise Mismatch("it was taken")


@scenario(
    65,
    Section.CONTROL,
    "a control message that was not delivered at the save",
    expected="delivered once after the restore",
    basis="C",
    source="OpenVMM, vmbus_server: pending messages",
)
def _undelivered() -> str:
    rig = BusRig()
    rig.guest.contact()
    rig.hold = True
    rig.guest.request_offers()
    waiting = len(rig.held)
    expect(waiting == 2, f"{waiting} messages are held back")
    rig.renew()
    rig.hold = False
    rig.deliver()
    same(rig.guest.since(1), [OFFER_CHANNEL, ALL_OFFERS_DELIVERED], "messages")
    rig.open(min(rig.guest.channels))
    same(rig.guest.since(3)[-1:], [OPEN_RESULT], "the last message")
    rig.close()
    return "Offer and AllOffersDelivered, once each"


@scenario(
    66,
    Section.CONTROL,
    "start without a restore",
    expected="nothing is revoked and nothing replayed",
    basis="C",
    source="OpenVMM #2879",
)
def _cold() -> str:
    rig = BusRig((1, 2))
    rig.connected()
    same(
        rig.guest.since(1),
        [OFFER_CHANNEL, OFFER_CHANNEL, ALL_OFFERS_DELIVERED],
        "messages after the contact",
    )
    same(rig.asked, [], "what the owners were asked")
    rig.close()
    return "offers, and nothing else"


@scenario(
    67,
    Section.CONTROL,
    "two save and restore cycles back to back, before the guest has reacted to the first",
    expected="stable; no offer twice",
    basis="C",
    source="OpenVMM #3649, #3955",
)
def _twice() -> str:
    rig = BusRig((1, 2))
    first = rig.connected()
    rig.open(first)
    mark = len(rig.guest.heard)
    rig.renew((offer(1),), later=(offer(2),))
    rig.renew((offer(1), offer(2)))
    heard = rig.guest.since(mark)
    same(heard, [RESCIND], "messages")
    rig.guest.release(rig.guest.heard[-1]["channel_id"])
    same(rig.guest.since(mark), [RESCIND, OFFER_CHANNEL], "messages after the release")
    expect(rig.guest.channels[first].is_open, "the other channel is not open")
    # And of a channel of KMCL's.
    channel = paused(busy())
    names = names_in_use(channel)
    for _ in range(2):
        channel.restored(chunks(channel))
    same(names_in_use(channel), names, "packets in use")
    rig.close()
    return "one Rescind, one Offer; the same packets in use"


@scenario(
    68,
    Section.CONTROL,
    "the guest resets or unloads between save and restore, or right after",
    expected="Suspend and Closed on the server, all drained, the offer can be used again",
    basis="DC",
    source="EVT_VMB_CHANNEL_CLOSED, Linux hv_vmbus",
)
def _unloads() -> str:
    rig = BusRig()
    channel = rig.connected()
    rig.open(channel)
    rig.renew()
    rig.guest.unload()
    rig.finish_close(channel)
    expect(not rig.guest.connected, "no UnloadComplete")
    channel = rig.connected()
    rig.open(channel)
    rig.close()
    kmcl = paused(busy())
    kmcl.restored(chunks(kmcl))
    kmcl.channel.start()
    kmcl.vsp.trace.clear()
    kmcl.channel.port_closed(lambda: None)
    same(kmcl.vsp.trace, ["suspend", "closed"], "callbacks")
    kmcl.guest.reopen()
    same(kmcl.open(), SUCCESS, "the next open")
    ends_well(kmcl)
    return "EvtSuspend, EvtClosed; opened again"


@scenario(
    69,
    Section.CONTROL,
    "the guest crashes after the restore and never completes",
    expected="the server retires what waits; Disable does not wait for the guest",
    basis="D",
    source="EVT_VMB_CHANNEL_SUSPEND, VmbChannelDisable",
)
def _crashes() -> str:
    rig = paused(busy())
    names = names_in_use(rig)
    rig.restored(chunks(rig))
    rig.channel.start()
    ends_well(rig)
    same(sorted(str(name) for name, _, _ in rig.vsp.completed), sorted(names), "packets ended")
    statuses = {status.name for _, status, _ in rig.vsp.completed}
    return f"{len(names)} packets end with {', '.join(sorted(statuses))}"


@scenario(
    70,
    Section.CONTROL,
    "a channel in pipe mode",
    expected="no transactions, so that only queued packets exist; a partial header stays",
    basis="DI",
    source="VMBUS_CHANNEL_INIT_FLAG_IS_PIPE",
)
def _pipe() -> str:
    def pipe(rig: Rig) -> Rig:
        rig.channel.init_set_flags(InitFlags.IS_PIPE)
        return rig

    rig = pipe(Rig()).running()
    packet = rig.channel.packet_allocate()
    refused(lambda: packet.send(b"x", wait_for_completion=True), NtStatus.INVALID_PARAMETER)
    refused(lambda: packet.send(bytes(16_385)), NtStatus.INVALID_BUFFER_SIZE)
    packet.free()
    rig.fill()
    queued = names_in_use(rig)
    paused(rig)
    # One message whole, one that was read in part: 2 of its 5 bytes.
    header = (1).to_bytes(4, "little") + (5).to_bytes(4, "little")
    rig.guest.put(request(1, header + b"hello"))
    partial = (2).to_bytes(4, "little") + (5 | 2 << 16).to_bytes(4, "little")
    rig.guest.put(request(2, partial + b"hello"))
    pieces = chunks(rig)
    rig.new_process()
    pipe(rig).channel.enable()
    for piece in pieces:
        rig.channel.restore_from_buffer(piece)
    same(names_in_use(rig), queued, "packets queued")
    rig.channel.start()
    same(rig.vsp.received, [b"hello", b"llo"], "messages delivered")
    read = rig.guest.take_all()
    expect(all(packet.payload[:4] == header[:4] for packet in read), "a packet without a header")
    rig.ring()
    read += rig.guest.take_all()
    same(names_in_use(rig), [], "packets still queued")
    rig.guest.put(request(3, b"\x09\0\0\0\0\0\0\0"))
    rig.ring()
    same(len(rig.vsp.faults), 1, "faults after a packet that is no message")
    ends_well(rig)
    return f"{len(queued)} queued, {len(read)} read; messages of 5 and of the last 3 bytes"


@scenario(
    71,
    Section.CONTROL,
    "a restore that fails, then a cold start of the same machine",
    expected="nothing is left of it",
    basis="I",
    source=_RESTORE,
)
def _fails_then_cold() -> str:
    rig = BusRig()
    rig.connected(int(Version.IRON))
    state = rig.saved()
    fresh = BusRig(config=BusConfig(max_restored_version=Version.WIN8))
    try:
        fresh.renew(state=state)
    except RestoreMismatch:
        pass
    else:
        raise Mismatch("it was taken")
    channel = fresh.connected()
    fresh.open(channel)
    kmcl = paused(busy())
    pieces = chunks(kmcl)
    kmcl.new_process()
    kmcl.channel.enable()
    kmcl.channel.restore_from_buffer(pieces[0])
    kmcl.channel.restore_from_buffer(b"garbage")
    kmcl.channel.disable(lambda: None)
    kmcl.port.at_offer = None
    kmcl.guest.reopen()
    kmcl.running()
    same(kmcl.channel.faults, (), "faults")
    same(names_in_use(kmcl), [], "packets in use")
    ends_well(kmcl)
    rig.close()
    fresh.close()
    return "the bus and the channel work as if there had been no restore"
