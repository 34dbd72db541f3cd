# SPDX-License-Identifier: MIT
"""The life cycle: each transition of emulator/kmcl/states.py, and which callbacks it runs."""

from __future__ import annotations

from collections.abc import Callable

import pytest

from emulator.conformance.rig import INSTANCE, INTERFACE, Port, Rig, nothing
from emulator.kmcl import (
    Connection,
    IncomingPacket,
    KmclError,
    Queue,
    Run,
    ServerChannel,
    ServerInitFlags,
    StateChangeCallbacks,
)
from emulator.model.driver import request
from emulator.wire.ntstatus import NtStatus

UP = ["opened", "started", "post_started"]


def where(channel: ServerChannel) -> tuple[Connection, Run, Queue]:
    return channel.connection, channel.run, channel.queue


def test_t1_a_new_channel_is_disabled() -> None:
    assert where(ServerChannel(Port())) == (Connection.DISABLED, Run.STOPPED, Queue.OFF)


SETTERS: dict[str, Callable[[ServerChannel], None]] = {
    "name": lambda channel: channel.init_set_friendly_name("x"),
    "interface": lambda channel: channel.init_set_target_interface_id(INTERFACE, INSTANCE),
    "offer data": lambda channel: channel.init_set_user_defined(b"x"),
    "flags": lambda channel: channel.server_init_set_flags(0),
    "mmio": lambda channel: channel.server_init_set_mmio_megabytes(1, 0),
    "packet size": lambda channel: channel.init_set_maximum_packet_size(8),
    "packet count": lambda channel: channel.init_set_maximum_packet_count(8),
    "external data": lambda channel: channel.init_set_maximum_external_data(8, 1),
    "state": lambda channel: channel.init_set_state_change_callbacks(StateChangeCallbacks()),
    "process": lambda channel: channel.init_set_process_packet_callbacks(lambda _, __: None),
}


@pytest.mark.parametrize("setter", SETTERS.values(), ids=SETTERS)
def test_t2_setters_work_while_disabled_and_at_no_other_time(
    setter: Callable[[ServerChannel], None],
) -> None:
    setter(ServerChannel(Port()))
    rig = Rig()
    rig.channel.enable()
    with pytest.raises(KmclError) as caught:
        setter(rig.channel)
    assert caught.value.status is NtStatus.INVALID_PARAMETER_1


@pytest.mark.parametrize(
    ("setter", "status"),
    [
        (lambda channel: channel.init_set_maximum_packet_size(0), NtStatus.INVALID_PARAMETER_2),
        (lambda channel: channel.init_set_maximum_packet_count(0), NtStatus.INVALID_PARAMETER_2),
        (
            lambda channel: channel.init_set_maximum_external_data(0, 1),
            NtStatus.INVALID_PARAMETER_2,
        ),
        (
            lambda channel: channel.init_set_maximum_external_data(1, 0),
            NtStatus.INVALID_PARAMETER_3,
        ),
        (
            lambda channel: channel.server_init_set_mmio_megabytes(0, 0),
            NtStatus.INVALID_PARAMETER_2,
        ),
        (lambda channel: channel.server_init_set_flags(0x20), NtStatus.INVALID_PARAMETER_2),
        (lambda channel: channel.server_init_set_flags(0x1), NtStatus.NOT_SUPPORTED),
        (lambda channel: channel.init_set_user_defined(bytes(121)), NtStatus.INVALID_PARAMETER_2),
        (lambda channel: channel.set_transaction_quota(0), NtStatus.INVALID_PARAMETER),
    ],
)
def test_t2_bad_arguments_are_refused(
    setter: Callable[[ServerChannel], None], status: NtStatus
) -> None:
    with pytest.raises(KmclError) as caught:
        setter(ServerChannel(Port()))
    assert caught.value.status is status


def test_t2_the_name_can_be_set_once() -> None:
    rig = Rig()
    with pytest.raises(KmclError, match="named already"):
        rig.channel.init_set_friendly_name("again")
    assert rig.channel.friendly_name == "test"


def test_t3_enable_offers_and_does_not_start() -> None:
    rig = Rig()
    rig.channel.init_set_user_defined(b"data")
    rig.channel.server_init_set_flags(ServerInitFlags.ENUMERATE_DEVICE_INTERFACE)
    rig.channel.server_init_set_mmio_megabytes(8, 16)
    rig.channel.enable()
    assert where(rig.channel) == (Connection.ENABLED, Run.STOPPED, Queue.OFF)
    (offer,) = rig.port.offers
    assert (offer.interface, offer.instance, offer.user_defined) == (INTERFACE, INSTANCE, b"data")
    assert (offer.flags, offer.mmio_megabytes, offer.mmio_megabytes_optional) == (1, 8, 16)
    with pytest.raises(KmclError, match="enabled already"):
        rig.channel.enable()


def test_t3_a_channel_without_identity_or_process_callback_is_not_offered() -> None:
    channel = ServerChannel(Port())
    with pytest.raises(KmclError, match="process packet callback"):
        channel.enable()
    channel.init_set_process_packet_callbacks(lambda _, __: None)
    with pytest.raises(KmclError, match="interface id"):
        channel.enable()
    assert channel.connection is Connection.DISABLED


def test_t3_an_offer_that_the_provider_refuses_leaves_the_channel_disabled() -> None:
    rig = Rig()

    def refuse(_: ServerChannel) -> None:
        raise RuntimeError("no more channels")

    rig.port.at_offer = refuse
    with pytest.raises(RuntimeError):
        rig.channel.enable()
    assert rig.channel.connection is Connection.DISABLED


def test_t4_open_without_start_runs_opened_only() -> None:
    rig = Rig()
    rig.channel.enable()
    assert rig.open() is NtStatus.SUCCESS
    assert rig.vsp.trace == ["opened"]
    assert where(rig.channel) == (Connection.OPEN, Run.STOPPED, Queue.OFF)


def test_t4_a_failing_opened_rolls_back_and_the_guest_can_try_again() -> None:
    rig = Rig()
    rig.channel.enable()
    rig.channel.start()
    rig.vsp.open_status = NtStatus.INSUFFICIENT_RESOURCES
    assert rig.open() is NtStatus.INSUFFICIENT_RESOURCES
    assert rig.vsp.trace == ["opened"]
    assert where(rig.channel) == (Connection.ENABLED, Run.STARTED, Queue.OFF)
    rig.guest.request(1, b"early")
    rig.ring()
    assert rig.vsp.received == []
    rig.vsp.open_status = NtStatus.SUCCESS
    assert rig.open() is NtStatus.SUCCESS
    assert rig.vsp.trace[1:4] == UP


def test_t4_an_open_of_a_channel_that_has_a_peer_or_no_offer_fails() -> None:
    rig = Rig()
    assert rig.open() is NtStatus.INVALID_DEVICE_STATE
    rig.running()
    assert rig.open() is NtStatus.INVALID_DEVICE_STATE


def test_t4_a_ring_with_impossible_indices_fails_the_open() -> None:
    rig = Rig()
    rig.channel.enable()
    rig.guest.up.control[0] = 3
    assert rig.open() is NtStatus.DATA_ERROR
    assert rig.vsp.trace == []


@pytest.mark.parametrize("start_first", [True, False])
def test_t5_started_then_post_started_in_either_order_of_open_and_start(start_first: bool) -> None:
    rig = Rig()
    rig.channel.enable()
    rig.guest.request(1, b"waiting")
    for step in (rig.channel.start, rig.open) if start_first else (rig.open, rig.channel.start):
        step()
    assert rig.vsp.trace == [*UP, "packet"]
    assert where(rig.channel) == (Connection.OPEN, Run.STARTED, Queue.ON)


def test_t5_a_second_start_does_nothing() -> None:
    rig = Rig().running()
    rig.channel.start()
    assert rig.vsp.trace == UP


def test_t6_scenario_35_pause_waits_for_the_packets_that_the_vsp_holds() -> None:
    rig = Rig(answer=False).running()
    rig.vsp.drain_in_suspend = False
    rig.guest.put(*[request(n) for n in (1, 2)])
    rig.ring()
    ended: list[bool] = []
    rig.channel.pause(lambda: ended.append(True))
    assert rig.vsp.trace[-1] == "suspend"
    assert rig.channel.queue is Queue.DRAINING
    rig.guest.request(3, b"late")
    rig.channel.port_interrupt()
    rig.vsp.held.pop().complete()
    assert not ended
    rig.vsp.held.pop().complete()
    assert ended == [True]
    assert where(rig.channel) == (Connection.OPEN, Run.PAUSED, Queue.OFF)
    assert len(rig.vsp.received) == 2, "the late request is still in the ring"
    assert [packet.transaction_id for packet in rig.guest.take_all()] == [2, 1]


def test_t6_completions_still_go_out_while_the_channel_drains() -> None:
    rig = Rig(answer=False).running()
    rig.vsp.drain_in_suspend = False
    rig.guest.put(request(1), request(2))
    rig.ring()
    filled = rig.fill()
    ended: list[bool] = []
    rig.channel.pause(lambda: ended.append(True))
    rig.vsp.held.pop(0).complete()
    assert rig.channel.stats().queued_completions == 1
    assert len(rig.guest.take_all()) == len(filled) - 1
    rig.ring()
    assert [packet.transaction_id for packet in rig.guest.take_all()] == [0, 1]
    assert not ended


def test_t6_packets_completed_inside_suspend_end_the_pause_after_it() -> None:
    rig = Rig(answer=False).running()
    rig.guest.request(1)
    rig.ring()
    order: list[str] = []
    rig.vsp.hooks["suspend"] = lambda _: order.append("suspend")
    rig.channel.pause(lambda: order.append("done"))
    assert order == ["suspend", "done"]


def test_t6_two_pauses_suspend_once_and_both_end() -> None:
    rig = Rig(answer=False).running()
    rig.vsp.drain_in_suspend = False
    rig.guest.request(1)
    rig.ring()
    ends: list[int] = []
    rig.channel.pause(lambda: ends.append(1))
    rig.channel.pause(lambda: ends.append(2))
    rig.vsp.drain()
    rig.channel.pause(lambda: ends.append(3))
    assert ends == [1, 2, 3]
    assert rig.vsp.trace.count("suspend") == 1


def test_t6_pausing_from_a_process_callback_stops_after_that_packet() -> None:
    rig = Rig().running()
    ended: list[bool] = []

    def pause_then_complete(packet: IncomingPacket) -> None:
        rig.channel.pause(lambda: ended.append(True))
        assert not ended
        packet.complete()

    rig.vsp.on_packet = pause_then_complete
    rig.guest.put(request(1), request(2))
    rig.ring()
    assert ended == [True]
    assert len(rig.vsp.received) == 1
    assert rig.channel.stats().unread_requests == 1


def test_t6_scenario_36_pause_while_disabled_is_remembered() -> None:
    rig = Rig()
    assert rig.pause()
    rig.channel.enable()
    rig.open()
    assert rig.vsp.trace == ["opened"]
    assert where(rig.channel) == (Connection.OPEN, Run.PAUSED, Queue.OFF)
    rig.channel.start()
    assert rig.vsp.trace == UP


def test_t7_start_after_pause_reads_what_came_meanwhile() -> None:
    rig = Rig().running()
    assert rig.pause()
    rig.guest.request(1, b"meanwhile")
    rig.channel.start()
    assert rig.vsp.trace == [*UP, "suspend", "started", "post_started", "packet"]


def test_t7_a_start_during_the_drain_takes_effect_after_it() -> None:
    rig = Rig(answer=False).running()
    rig.vsp.drain_in_suspend = False
    rig.guest.request(1)
    rig.ring()
    order: list[str] = []
    rig.vsp.hooks["started"] = lambda _: order.append("started")
    rig.channel.pause(lambda: order.append("paused"))
    rig.channel.start()
    assert order == []
    rig.vsp.drain()
    assert order == ["paused", "started"]
    assert rig.channel.queue is Queue.ON


def test_t8_close_drains_then_closed_and_the_offer_stands() -> None:
    rig = Rig(answer=False).running()
    rig.vsp.drain_in_suspend = False
    rig.guest.request(1)
    rig.ring()
    closed: list[bool] = []
    rig.channel.port_closed(lambda: closed.append(True))
    assert (rig.channel.connection, rig.vsp.trace[-1]) == (Connection.CLOSING, "suspend")
    assert not closed
    rig.vsp.drain()
    assert closed == [True]
    assert rig.vsp.trace[-1] == "closed"
    assert where(rig.channel) == (Connection.ENABLED, Run.STARTED, Queue.OFF)
    assert not rig.port.revoking
    rig.guest.reopen()
    rig.open()
    assert rig.vsp.trace[-3:] == UP


def test_t8_close_of_a_paused_channel_does_not_suspend_again() -> None:
    rig = Rig().running()
    rig.pause()
    rig.channel.port_closed(nothing)
    assert rig.vsp.trace == [*UP, "suspend", "closed"]
    assert where(rig.channel) == (Connection.ENABLED, Run.PAUSED, Queue.OFF)


def test_t8_close_while_a_pause_drains_ends_both() -> None:
    rig = Rig(answer=False).running()
    rig.vsp.drain_in_suspend = False
    rig.guest.request(1)
    rig.ring()
    order: list[str] = []
    rig.channel.pause(lambda: order.append("paused"))
    rig.channel.port_closed(lambda: order.append("closed"))
    rig.vsp.drain()
    assert order == ["paused", "closed"]
    assert rig.vsp.trace.count("suspend") == 1


def test_t8_outgoing_packets_end_before_closed() -> None:
    rig = Rig().running()
    rig.send("in ring", wait=True)
    rig.fill()
    rig.send("queued", wait=True)
    before = len(rig.vsp.completed)
    rig.vsp.hooks["closed"] = lambda channel: rig.vsp.completed.append(
        ("closed", NtStatus(0), None)
    )
    rig.channel.port_closed(nothing)
    ended = rig.vsp.completed[before:]
    assert [name for name, _, _ in ended] == ["in ring", ended[1][0], "queued", "closed"]
    assert {status for _, status, _ in ended[:-1]} == {NtStatus.DEVICE_REMOVED}
    assert rig.channel.stats().awaiting_completion == 0


def test_t8_sends_in_and_after_closed_wait_for_the_next_open() -> None:
    rig = Rig().running()
    rig.vsp.hooks["closed"] = lambda _: (rig.send("in closed"), None)[1]
    rig.channel.port_closed(nothing)
    rig.send("after closed")
    assert rig.channel.stats().queued_no_wait == 2
    rig.guest.reopen()
    rig.open()
    assert [p.payload[:9] for p in rig.guest.take_all()] == [b"in closed", b"after clo"]


def test_t9_disable_drains_closes_revokes_then_is_done() -> None:
    rig = Rig(answer=False).running()
    rig.vsp.drain_in_suspend = False
    rig.port.hold_revoke = True
    rig.guest.request(1)
    rig.ring()
    done: list[int] = []
    rig.channel.disable(lambda: done.append(1))
    rig.channel.disable(lambda: done.append(2))
    assert rig.vsp.trace[-1] == "suspend"
    rig.vsp.drain()
    assert rig.vsp.trace[-1] == "closed"
    assert rig.channel.connection is Connection.REVOKING
    assert done == []
    assert rig.open() is NtStatus.INVALID_DEVICE_STATE
    rig.port.finish_revoke()
    assert done == [1, 2]
    assert where(rig.channel) == (Connection.DISABLED, Run.STOPPED, Queue.OFF)


def test_t9_disable_without_a_peer_revokes_at_once() -> None:
    rig = Rig()
    rig.channel.enable()
    rig.send("never opened")
    done: list[bool] = []
    rig.channel.disable(lambda: done.append(True))
    assert done == [True]
    assert rig.vsp.completed == [("never opened", NtStatus.DEVICE_REMOVED, None)]
    assert rig.vsp.trace == []


def test_t9_disable_during_a_close_revokes_after_it_even_if_the_guest_opens_at_once() -> None:
    rig = Rig(answer=False).running()
    rig.vsp.drain_in_suspend = False
    rig.guest.request(1)
    rig.ring()
    reopened: list[NtStatus] = []
    rig.channel.port_closed(lambda: reopened.append(rig.open()))
    rig.channel.disable(nothing)
    rig.vsp.drain()
    assert reopened == [NtStatus.INVALID_DEVICE_STATE]
    assert rig.channel.connection is Connection.DISABLED


def test_t9_a_disabled_channel_can_be_enabled_again() -> None:
    rig = Rig().running()
    rig.channel.disable(nothing)
    rig.guest.reopen()
    rig.running()
    rig.guest.request(1, b"again")
    rig.ring()
    assert rig.vsp.received == [b"again\0\0\0"]


def test_t11_cleanup_needs_disabled_and_is_the_end() -> None:
    rig = Rig()
    rig.channel.enable()
    with pytest.raises(KmclError, match="disable it"):
        rig.channel.cleanup()
    rig.channel.disable(nothing)
    rig.channel.cleanup()
    for call in (
        rig.channel.enable,
        rig.channel.start,
        rig.channel.cleanup,
        lambda: rig.channel.pause(nothing),
    ):
        with pytest.raises(KmclError):
            call()


def test_start_needs_an_enabled_channel() -> None:
    with pytest.raises(KmclError, match="must be enabled"):
        Rig().channel.start()


@pytest.mark.parametrize("callback", ["opened", "started", "post_started", "suspend", "closed"])
@pytest.mark.parametrize("call", ["start", "pause", "disable", "close"])
def test_scenario_37_axes_cannot_be_moved_inside_a_state_callback(callback: str, call: str) -> None:
    rig = Rig()
    errors: list[KmclError] = []

    def move(channel: ServerChannel) -> None:
        calls: dict[str, Callable[[], None]] = {
            "start": channel.start,
            "pause": lambda: channel.pause(nothing),
            "disable": lambda: channel.disable(nothing),
            "close": lambda: channel.port_closed(nothing),
        }
        with pytest.raises(KmclError, match="inside EvtChannel") as caught:
            calls[call]()
        errors.append(caught.value)

    rig.vsp.hooks[callback] = move
    rig.running()
    rig.pause()
    rig.channel.port_closed(nothing)
    assert [error.status for error in errors] == [NtStatus.INVALID_DEVICE_STATE]
    assert rig.vsp.trace == [*UP, "suspend", "closed"]


@pytest.mark.parametrize("paused", [True, False], ids=["paused", "in suspend"])
def test_scenario_38_sends_after_suspend_are_refused(paused: bool) -> None:
    rig = Rig().running()
    refused: list[NtStatus] = []

    def try_to_send(_: ServerChannel) -> None:
        with pytest.raises(KmclError, match="EvtSuspend") as caught:
            rig.send("late")
        refused.append(caught.value.status)

    if not paused:
        rig.vsp.hooks["suspend"] = try_to_send
    rig.pause()
    if paused:
        try_to_send(rig.channel)
    assert refused == [NtStatus.INVALID_DEVICE_STATE]
    rig.vsp.hooks["started"] = lambda _: (rig.send("in started"), None)[1]
    rig.channel.start()
    assert [p.payload[:10] for p in rig.guest.take_all()] == [b"in started"]


def test_sends_on_a_disabled_channel_are_refused() -> None:
    with pytest.raises(KmclError, match="disabled"):
        Rig().send("early")


def test_sends_before_start_are_queued_and_leave_in_order() -> None:
    rig = Rig()
    rig.channel.enable()
    rig.send("offered")
    rig.open()
    rig.send("opened")
    assert rig.guest.take_all() == []
    rig.channel.start()
    assert [p.payload[:7] for p in rig.guest.take_all()] == [b"offered", b"opened\0"]


def test_an_exception_of_the_vsp_in_started_leaves_a_channel_that_can_start_again() -> None:
    rig = Rig()
    rig.channel.enable()
    rig.open()

    def fail(_: ServerChannel) -> None:
        raise RuntimeError("a bug")

    rig.vsp.hooks["started"] = fail
    with pytest.raises(RuntimeError):
        rig.channel.start()
    del rig.vsp.hooks["started"]
    rig.channel.start()
    assert rig.channel.queue is Queue.ON
