# SPDX-License-Identifier: MIT
"""Every call in every state: it works or is refused with a status, and harms nothing.

Whatever was called, the channel can be disabled and cleaned up afterwards, and its packets have
ended.
"""

from __future__ import annotations

from collections.abc import Callable

import pytest

from emulator.conformance.rig import INSTANCE, INTERFACE, Rig, nothing
from emulator.kmcl import Connection, KmclError, Queue, Restore, ServerChannel, StateChangeCallbacks
from emulator.memory import page_view
from emulator.wire.ntstatus import NtStatus
from tests.unit.kmcl.scenes import busy

HANDLE = 0xE1E10


def _enabled() -> Rig:
    rig = Rig()
    rig.channel.enable()
    return rig


def _open() -> Rig:
    rig = _enabled()
    assert rig.open().is_success
    return rig


def _paused() -> Rig:
    rig = busy()
    assert rig.pause()
    return rig


def _draining() -> Rig:
    rig = Rig(answer=False).running()
    rig.vsp.drain_in_suspend = False
    rig.guest.request(1)
    rig.ring()
    assert not rig.pause()
    return rig


def _closing() -> Rig:
    rig = _draining()
    rig.channel.port_closed(nothing)
    return rig


def _revoking() -> Rig:
    rig = Rig().running()
    rig.port.hold_revoke = True
    rig.channel.disable(nothing)
    return rig


def _saving() -> Rig:
    rig = _paused()
    assert rig.channel.save_begin().is_success
    assert rig.channel.save_continue(200).data
    return rig


def _restoring() -> Rig:
    rig = _paused()
    pieces = rig.save(lambda: 0)
    rig.new_process()
    rig.channel.enable()
    for piece in pieces[:3]:
        assert rig.channel.restore_from_buffer(piece) is NtStatus.MORE_PROCESSING_REQUIRED
    return rig


def _restore_failed() -> Rig:
    rig = _restoring()
    assert rig.channel.restore_from_buffer(b"garbage") is NtStatus.DATA_ERROR
    return rig


def _cleaned_up() -> Rig:
    rig = Rig()
    rig.channel.cleanup()
    return rig


STATES: dict[str, Callable[[], Rig]] = {
    "disabled": Rig,
    "enabled": _enabled,
    "open": _open,
    "running": lambda: busy(),
    "paused": _paused,
    "draining": _draining,
    "closing": _closing,
    "revoking": _revoking,
    "saving": _saving,
    "restoring": _restoring,
    "restore failed": _restore_failed,
    "cleaned up": _cleaned_up,
}

Call = Callable[[ServerChannel], object]

SETTERS: dict[str, Call] = {
    "name": lambda c: c.init_set_friendly_name("again"),
    "ids": lambda c: c.init_set_target_interface_id(INTERFACE, INSTANCE),
    "offer data": lambda c: c.init_set_user_defined(b"x"),
    "server flags": lambda c: c.server_init_set_flags(0),
    "flags": lambda c: c.init_set_flags(0),
    "VTL": lambda c: c.server_init_set_target_vtl(0),
    "bounce buffer": lambda c: c.init_set_bounce_buffer_sizes(0, 0, 0),
    "MMIO": lambda c: c.server_init_set_mmio_megabytes(1, 0),
    "packet size": lambda c: c.init_set_maximum_packet_size(4096),
    "packet count": lambda c: c.init_set_maximum_packet_count(100),
    "external data": lambda c: c.init_set_maximum_external_data(4096, 4),
    "state callbacks": lambda c: c.init_set_state_change_callbacks(StateChangeCallbacks()),
    "drain": lambda c: c.init_set_drain(lambda channel, packets, size: None),
    "primary": lambda c: c.init_set_primary_channel(Rig().channel, 1),
    "process callbacks": lambda c: c.init_set_process_packet_callbacks(lambda channel, p: None),
    "save callbacks": lambda c: c.init_set_save_restore_packet_callbacks(
        Rig().vsp.save_packet, Rig().vsp.restore_packet
    ),
}

CALLS: dict[str, Call] = {
    "enable": lambda c: c.enable(),
    "disable": lambda c: c.disable(nothing),
    "start": lambda c: c.start(),
    "pause": lambda c: c.pause(nothing),
    "cleanup": lambda c: c.cleanup(),
    "send": lambda c: _sent(c, wait=False),
    "send and wait": lambda c: _sent(c, wait=True),
    "synchronous": lambda c: c.send_synchronous_request(b"x"),
    "synchronous, waiting": lambda c: c.send_synchronous_request(b"x", timeout=1),
    "quota": lambda c: c.set_transaction_quota(1),
    "quota of nothing": lambda c: c.set_transaction_quota(0),
    "passive": lambda c: c.set_incoming_processing_at_passive(True),
    "instance": lambda c: c.get_interface_instance(),
    "map": lambda c: c.map_gpadl(HANDLE),
    "map nothing": lambda c: c.map_gpadl(1),
    "unmap nothing": lambda c: c.unmap_gpadl(HANDLE),
    "save begin": lambda c: c.save_begin(),
    "save continue": lambda c: c.save_continue(1 << 16).status,
    "save end": lambda c: c.save_end(),
    "restore": lambda c: c.restore_from_buffer(b"garbage"),
    "restore nothing": lambda c: c.restore_from_buffer(b""),
    "restore a packet": lambda c: _restored(c),
    "peer closes": lambda c: c.port_closed(nothing),
    "doorbell": lambda c: c.port_doorbell(),
    "interrupt": lambda c: c.port_interrupt(),
}


def _sent(channel: ServerChannel, *, wait: bool) -> None:
    packet = channel.packet_allocate()
    try:
        packet.send(b"misuse", wait_for_completion=wait)
    except KmclError:
        packet.free()
        raise


def _restored(channel: ServerChannel) -> NtStatus:
    packet = channel.packet_allocate()
    status = packet.restore(b"garbage")
    packet.free()
    return status


def put_away(rig: Rig) -> None:
    channel = rig.channel
    ended: list[bool] = []
    channel.disable(lambda: ended.append(True))
    for packet in list(channel.traffic.held):
        packet.complete()
    while rig.port.revoking:
        rig.port.finish_revoke()
    assert ended
    assert (channel.queue, channel.packets_alive, len(channel.traffic.queue)) == (Queue.OFF, 0, 0)
    assert not channel.traffic.table
    if channel.connection is not Connection.CLEANED_UP:
        channel.cleanup()


@pytest.mark.parametrize("call", CALLS)
@pytest.mark.parametrize("state", STATES)
def test_a_call_works_or_is_refused_with_a_status(state: str, call: str) -> None:
    rig = STATES[state]()
    rig.port.gpadls[HANDLE] = page_view([memoryview(bytearray(4096))])
    channel = rig.channel
    before = channel.connection, channel.run, channel.queue, channel.packets_alive
    refusal: KmclError | None = None
    try:
        CALLS[call](channel)
    except KmclError as error:
        refusal = error
    if refusal is not None:
        assert not refusal.status.is_success
        assert refusal.text.startswith("test: ")
        now = channel.connection, channel.run, channel.queue, channel.packets_alive
        assert now == before, "a refused call has changed the channel"
    put_away(rig)


@pytest.mark.parametrize("setter", SETTERS)
@pytest.mark.parametrize("state", STATES)
def test_a_setter_works_on_a_disabled_channel_only(state: str, setter: str) -> None:
    rig = STATES[state]()
    if state == "disabled":
        if setter != "name":
            SETTERS[setter](rig.channel)
    else:
        with pytest.raises(KmclError) as caught:
            SETTERS[setter](rig.channel)
        assert caught.value.status is NtStatus.INVALID_PARAMETER_1
    put_away(rig)


FORBIDDEN = ("start", "pause", "enable", "disable", "peer closes")


@pytest.mark.parametrize("callback", ["opened", "started", "post_started", "suspend", "closed"])
def test_what_moves_an_axis_is_refused_in_every_state_callback(callback: str) -> None:
    rig = Rig()
    statuses: list[NtStatus] = []

    def misuse(channel: ServerChannel) -> None:
        for call in FORBIDDEN:
            with pytest.raises(KmclError) as caught:
                CALLS[call](channel)
            statuses.append(caught.value.status)

    rig.vsp.hooks[callback] = misuse
    rig.running()
    rig.pause()
    put_away(rig)
    assert statuses == [NtStatus.INVALID_DEVICE_STATE] * len(FORBIDDEN)


def test_nothing_can_be_sent_from_suspend_to_started() -> None:
    rig = _draining()
    for _ in range(2):
        for call in ("send", "send and wait"):
            with pytest.raises(KmclError) as caught:
                CALLS[call](rig.channel)
            assert caught.value.status is NtStatus.INVALID_DEVICE_STATE
        assert rig.channel.send_synchronous_request(b"x") is not NtStatus.SUCCESS
        rig.vsp.drain()
    rig.vsp.hooks["started"] = lambda channel: _sent(channel, wait=False)
    rig.channel.start()
    assert any(packet.payload.startswith(b"misuse") for packet in rig.guest.take_all())


def test_a_restore_that_failed_stays_failed_and_says_why() -> None:
    rig = _restore_failed()
    for _ in range(2):
        assert rig.channel.restore_from_buffer(b"more") is NtStatus.INVALID_DEVICE_STATE
        assert rig.channel.restore_state is Restore.FAILED
        assert rig.channel.restore_failure
    put_away(rig)
