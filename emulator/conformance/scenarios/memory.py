# SPDX-License-Identifier: MIT
"""F. External data and GPADLs."""

from __future__ import annotations

from emulator.conformance.bus_rig import BusRig
from emulator.conformance.rig import Rig
from emulator.conformance.scenarios.support import (
    chunks,
    ends_well,
    guest_reads,
    paused,
    refused,
)
from emulator.conformance.suite import Section, expect, same, scenario
from emulator.kmcl import ExternalDataPending, IncomingPacket
from emulator.memory import page_view
from emulator.model.ring import build_packet, transfer_header
from emulator.wire.ntstatus import NtStatus

_EXTERNAL = "VmbChannelPacketGetExternalData"
_HANDLE = 0xE1E10


@scenario(
    53,
    Section.MEMORY,
    "a GPA-direct request under way when Pause comes",
    expected="completed or cancelled first; its views end with it; the guest gets a completion",
    basis="D",
    source=f"{_EXTERNAL}, VmbChannelPacketComplete",
)
def _under_way() -> str:
    rig = Rig(answer=False).running()
    rig.vsp.drain_in_suspend = False
    rig.guest.external(5, (100, 8, [1]))
    rig.ring()
    (packet,) = rig.vsp.held
    (view,) = packet.external_data()
    view[:4] = b"data"
    over: list[bool] = []
    rig.channel.pause(lambda: over.append(True))
    expect(not over, "Pause is over while the request is under way")
    packet.complete(b"done")
    expect(bool(over), "Pause is not over after the request")
    try:
        view[0]
    except ValueError:
        pass
    else:
        expect(False, "the view can still be used")
    same(bytes(rig.port.ram[4096 + 8 : 4096 + 12]), b"data", "the guest's page")
    rig.restored(chunks(rig))
    rig.channel.start()
    same(guest_reads(rig), [5], "completions")
    return "Pause waits; the view has ended with the completion"


@scenario(
    54,
    Section.MEMORY,
    "GetExternalData has returned PENDING when Pause comes",
    expected="delivered and completed, or left in the ring; never lost",
    basis="I",
    source=_EXTERNAL,
    specified=False,
)
def _pending() -> str:
    rig = Rig(answer=False).running()
    rig.port.ram_is_there = False
    calls: list[str] = []

    def process(packet: IncomingPacket) -> None:
        try:
            packet.external_data()
        except ExternalDataPending:
            calls.append("pending")
            return
        calls.append("data")
        packet.complete(b"done")

    rig.vsp.on_packet = process
    rig.guest.external(5, (100, 8, [1]))
    rig.ring()
    same(calls, ["pending"], "calls")
    over: list[bool] = []
    rig.channel.pause(lambda: over.append(True))
    expect(not over, "Pause is over with the request pending")
    rig.port.take_turn()
    same(calls, ["pending", "pending"], "calls while the memory is not there")
    rig.port.ram_is_there = True
    rig.port.take_turn()
    expect(bool(over), "Pause is not over after the request")
    same(calls[-1], "data", "the last call")
    rig.restored(chunks(rig))
    rig.channel.start()
    same(guest_reads(rig), [5], "completions")
    return "delivered once more and completed before EvtSuspend"


@scenario(
    55,
    Section.MEMORY,
    "GetExternalData after the restore, of a request that was unread",
    expected="success, with the guest's pages; READ_ONLY is honoured as a hint",
    basis="DI",
    source=_EXTERNAL,
)
def _unread() -> str:
    rig = paused(Rig().running())
    rig.port.ram[4096:4100] = b"page"
    ram = rig.port.ram
    rig.guest.external(5, (4, 0, [1]))
    pieces = chunks(rig)
    rig.new_process(answer=False)
    rig.port.ram = ram
    rig.channel.enable()
    for piece in pieces:
        rig.channel.restore_from_buffer(piece)
    rig.channel.start()
    (packet,) = rig.vsp.held
    (view,) = packet.external_data(read_only=True)
    same(bytes(view), b"page", "the data")
    expect(view.readonly, "a view for reading only can be written")
    packet.complete()
    same(guest_reads(rig), [5], "completions")
    return "the guest's page, read-only"


@scenario(
    56,
    Section.MEMORY,
    "a GPADL that the server has mapped at the save",
    expected="the VSP unmaps; afterwards the handle maps again, once; a teardown waits for unmap",
    basis="DI",
    source="VmbChannelMapGpadl, VmbChannelDeleteGpadl",
)
def _mapped() -> str:
    rig = Rig().running()

    pages = {_HANDLE: page_view([memoryview(bytearray(4096))])}
    rig.port.gpadls = pages
    refused(lambda: rig.channel.map_gpadl(1), NtStatus.INVALID_PARAMETER)
    refused(lambda: rig.channel.unmap_gpadl(_HANDLE), NtStatus.INVALID_PARAMETER)
    rig.channel.map_gpadl(_HANDLE)
    refused(lambda: rig.channel.map_gpadl(_HANDLE), NtStatus.INVALID_DEVICE_STATE)
    paused(rig)
    rig.channel.unmap_gpadl(_HANDLE)
    rig.restored(chunks(rig))
    rig.port.gpadls = pages
    rig.channel.map_gpadl(_HANDLE)
    released: list[bool] = []
    rig.channel.gpadls.torn_down(_HANDLE, lambda: released.append(True))
    expect(not released, "the guest got its pages back while they were mapped")
    rig.channel.unmap_gpadl(_HANDLE)
    expect(bool(released), "the guest did not get its pages back after the unmap")
    # A VSP that forgets: the guest must not wait for ever.
    rig.channel.map_gpadl(_HANDLE)
    rig.channel.gpadls.torn_down(_HANDLE, lambda: released.append(True))
    ends_well(rig)
    same(len(released), 2, "pages given back when the channel has ended")
    return "one mapping at a time; the teardown waits for it, at most to the channel's end"


@scenario(
    57,
    Section.MEMORY,
    "a GPADL in creation, or in teardown, at the save",
    expected="told again; one that was accepted and cannot be restored is fatal",
    basis="C",
    source="OpenVMM, vmbus_server",
)
def _half_made() -> str:
    rig = BusRig()
    channel = rig.connected()
    begun = rig.guest.gpadl_begin(channel, 60)
    rig.renew()
    while begun.unsent:
        rig.guest.gpadl_go_on(begun)
    same(begun.state, "created", "the GPADL whose bodies came after the restore")
    rig.release_gpadls = False
    rig.guest.teardown(begun)
    rig.renew()
    same(rig.asked, ["GPADL teardown"], "what is asked after the restore")
    rig.finish_teardown(channel, begun.gpadl_id)
    same(rig.guest.channels[channel].gpadls, {}, "GPADLs that the guest still has")
    rig.close()
    return "the half-received one goes on; the teardown is asked for again"


@scenario(
    58,
    Section.MEMORY,
    "transfer-page packets outstanding (receive buffers of a network VSP)",
    expected="late completions of the guest are accepted; buffers are not used again before",
    basis="C",
    source="OpenVMM netvsp, NDIS VMQ live migration",
)
def _transfer_pages() -> str:
    # What the VSP sends is a transaction with offsets into a GPADL as its bytes.
    rig = Rig().running()
    for number in range(3):
        rig.send(f"buffer {number}", wait=True)
    packets = rig.guest.take_all()
    rig.guest.complete(packets[1].transaction_id)
    rig.ring()
    paused(rig)
    rig.restored(chunks(rig))
    outstanding = {each.save_buffer.rstrip(b"\0").decode() for each in rig.vsp.restored}
    same(outstanding, {"buffer 0", "buffer 2"}, "buffers that must not be used")
    rig.channel.start()
    for packet in (packets[2], packets[0]):
        rig.guest.complete(packet.transaction_id)
    rig.ring()
    same([context for context, _, _ in rig.vsp.completed], ["buffer 2", "buffer 0"], "given back")
    # From a guest, they are for nobody.
    rig.guest.put(build_packet(7, 9, b"", header=transfer_header(1, (8, 0))))
    rig.ring()
    same(len(rig.vsp.faults), 1, "faults")
    ends_well(rig)
    return "two late completions accepted; a guest's own transfer packet is refused"
