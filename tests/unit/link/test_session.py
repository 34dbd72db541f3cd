# SPDX-License-Identifier: MIT
"""The session against a model frontend: handshake, credits, epochs, stop, save, load, bad input."""

from __future__ import annotations

import asyncio
import os
import struct
from collections.abc import AsyncIterator, Callable

import pytest
import pytest_asyncio
from hypothesis import given
from hypothesis import strategies as st

from emulator.link import Post, ProtocolError, Region, Session, StateRefused, Status
from tests.model import frontend as fe
from tests.model.frontend import ModelFrontend

pytestmark = pytest.mark.asyncio


class Handler:
    """Records what the session asks of the host."""

    def __init__(self) -> None:
        self.regions: tuple[Region, ...] = ()
        self.events: list[object] = []
        self.state = b"the state"
        self.refuse = ""
        self.stop_done: Callable[[], None] | None = None
        self.hold_stop = False
        self.held = asyncio.Event()
        self.lost: asyncio.Future[Exception | None] = asyncio.get_running_loop().create_future()

    def memory_changed(self, regions: tuple[Region, ...], fds: list[int]) -> None:
        if self.refuse:
            raise ValueError(self.refuse)
        assert [os.fstat(fd).st_size for fd in fds] == [region.size for region in regions]
        self.regions = regions
        self.events.append("memory")

    def code_map_changed(self, first: tuple[int, ...], fd: int) -> None:
        if self.refuse:
            raise ValueError(self.refuse)
        self.events.append(("code map", first, os.fstat(fd).st_size))

    def reset(self) -> None:
        self.events.append("reset")

    def guest_message(self, connection_id: int, vp_index: int, payload: bytes) -> None:
        self.events.append((connection_id, payload))

    def post_delivered(self) -> None:
        self.events.append("delivered")

    def resumed(self) -> None:
        self.events.append("resumed")

    def stopping(self, done: Callable[[], None]) -> None:
        self.events.append("stopping")
        if self.hold_stop:
            self.stop_done = done
            self.held.set()
        else:
            done()

    def save(self) -> bytes:
        if self.refuse:
            raise StateRefused(self.refuse)
        return self.state

    def load(self, state: bytes) -> None:
        if self.refuse:
            raise StateRefused(self.refuse)
        self.state = state

    def loaded(self) -> None:
        self.events.append("loaded")

    def connection_lost(self, error: Exception | None) -> None:
        self.lost.set_result(error)


class Rig:
    """A session between a model frontend and a recording handler."""

    def __init__(self) -> None:
        self.frontend = ModelFrontend()
        self.handler = Handler()
        self.session = Session(self.frontend.backend_socket, self.handler)


@pytest_asyncio.fixture
async def rig() -> AsyncIterator[Rig]:
    rig = Rig()
    yield rig
    rig.session.close()
    rig.frontend.close()


async def test_handshake_maps_memory_and_acknowledges_each_epoch(rig: Rig) -> None:
    rig.frontend.hello()
    reply = await rig.frontend.expect(fe.HELLO_REPLY)
    assert struct.unpack("<IIQ", reply.body) == (1, 0, 1)
    assert (await rig.frontend.expect(fe.MEM_TABLE_DONE)).words == (0,)
    assert (await rig.frontend.expect(fe.RESET_DONE)).words == (1,)
    rig.frontend.reset()
    assert (await rig.frontend.expect(fe.RESET_DONE)).words == (2,)
    assert rig.handler.regions == (Region(0, rig.frontend.ram_size, 0),)
    assert rig.handler.events == ["memory", "reset", "reset"]


@pytest.mark.parametrize(("offered", "taken"), [(1, 1), (2, 2), (3, 3), (0xFF, 3)])
async def test_of_the_features_offered_those_that_are_known_are_taken(
    rig: Rig, offered: int, taken: int
) -> None:
    rig.frontend.features = offered
    rig.frontend.hello()
    reply = await rig.frontend.expect(fe.HELLO_REPLY)
    assert struct.unpack("<IIQ", reply.body) == (1, 0, taken)


async def test_the_map_of_code_is_handed_over_with_the_memory_it_is_for(rig: Rig) -> None:
    await rig.frontend.handshake()
    rig.frontend.code_map(0x40, size=0x2000)
    rig.frontend.reset()
    await rig.frontend.expect(fe.RESET_DONE)
    assert ("code map", (0x40,), 0x2000) in rig.handler.events


async def test_a_map_of_code_that_does_not_fit_ends_the_connection(rig: Rig) -> None:
    await rig.frontend.handshake()
    rig.handler.refuse = "it is too short"
    rig.frontend.code_map(0, size=1)
    assert "too short" in str(await rig.handler.lost)


async def test_pages_with_code_are_named_and_the_answer_is_waited_for(rig: Rig) -> None:
    await rig.frontend.handshake()
    rig.frontend.send(fe.RESUME)
    rig.frontend.guest_message(b"first")
    rig.frontend.reset()
    await rig.frontend.expect(fe.RESET_DONE)
    # The answers are there already; what comes before them is delivered afterwards, in order.
    rig.frontend.guest_message(b"second")
    rig.frontend.status(fe.REPLY, 1)
    rig.frontend.guest_message(b"third")
    rig.frontend.status(fe.REPLY, 2)
    stretches = [(number, number + 1) for number in range(70)]
    rig.session.invalidate_code(stretches)
    assert (4, b"second") not in rig.handler.events
    asked = [await rig.frontend.expect(fe.INVALIDATE_CODE) for _ in range(2)]
    assert [got.cookie for got in asked] == [1, 2]
    assert [pair for got in asked for pair in struct.iter_unpack("<QQ", got.body)] == stretches
    assert len(asked[0].body) == 64 * 16
    rig.frontend.reset()
    await rig.frontend.expect(fe.RESET_DONE)
    assert rig.handler.events[-3:] == [(4, b"second"), (4, b"third"), "reset"]


async def test_a_stop_that_crosses_the_question_is_told_in_its_answer(rig: Rig) -> None:
    await rig.frontend.handshake()
    rig.frontend.send(fe.RESUME)
    rig.frontend.reset()
    await rig.frontend.expect(fe.RESET_DONE)
    stop = asyncio.create_task(rig.frontend.stop())
    await asyncio.sleep(0)
    rig.session.invalidate_code([(1, 1)])
    assert await stop == b"\2"
    await rig.frontend.expect(fe.INVALIDATE_CODE)
    # The late answer is to nobody; the next stop knows nothing of it.
    rig.frontend.status(fe.REPLY, 1)
    rig.frontend.send(fe.RESUME)
    assert await rig.frontend.stop() == b"\1"


async def test_while_stopping_qemu_is_told_and_not_asked(rig: Rig) -> None:
    await rig.frontend.handshake()
    rig.frontend.send(fe.RESUME)
    rig.handler.hold_stop = True
    stop = asyncio.create_task(rig.frontend.stop())
    await rig.handler.held.wait()
    rig.session.invalidate_code([(1, 1)])
    assert rig.handler.stop_done is not None
    rig.handler.stop_done()
    assert await stop == b"\2"


async def test_a_frontend_that_goes_away_meanwhile_is_noticed(rig: Rig) -> None:
    await rig.frontend.handshake()
    rig.frontend.send(fe.RESUME)
    rig.frontend.reset()
    await rig.frontend.expect(fe.RESET_DONE)
    rig.frontend.close_socket()
    rig.session.invalidate_code([(1, 1)])
    await rig.handler.lost


def _dimm(size: int) -> int:
    fd = os.memfd_create("dimm")
    os.ftruncate(fd, size)
    return fd


async def test_memory_comes_and_goes_while_the_guest_runs(rig: Rig) -> None:
    await rig.frontend.handshake()
    rig.frontend.send(fe.RESUME)
    ram = (0, rig.frontend.ram_size, 0, rig.frontend.ram)
    dimm = _dimm(8192)
    rig.frontend.mem_table(ram, (1 << 32, 8192, 0, dimm))
    assert (await rig.frontend.expect(fe.MEM_TABLE_DONE)).words == (0,)
    assert rig.handler.regions[1] == Region(1 << 32, 8192, 0)
    rig.frontend.mem_table(ram)
    assert (await rig.frontend.expect(fe.MEM_TABLE_DONE)).words == (0,)
    assert rig.handler.regions == (Region(*ram[:3]),)
    assert rig.handler.events == ["memory", "reset", "resumed", "memory", "memory"]
    os.close(dimm)


async def test_as_many_regions_as_the_protocol_allows(rig: Rig) -> None:
    await rig.frontend.handshake()
    dimms = [_dimm(4096) for _ in range(65)]
    table = [(number << 20, 4096, 0, fd) for number, fd in enumerate(dimms)]
    rig.frontend.mem_table(*table[:64])
    assert (await rig.frontend.expect(fe.MEM_TABLE_DONE)).words == (0,)
    assert len(rig.handler.regions) == 64
    rig.frontend.mem_table(*table)
    assert isinstance(await rig.handler.lost, ProtocolError)
    for fd in dimms:
        os.close(fd)


async def test_memory_that_cannot_be_mapped_is_said_and_ends_the_connection(rig: Rig) -> None:
    await rig.frontend.handshake()
    rig.handler.refuse = "no such thing"
    rig.frontend.mem_table((0, rig.frontend.ram_size, 0, rig.frontend.ram))
    assert isinstance(await rig.handler.lost, ProtocolError)


async def test_a_table_that_waits_is_taken_ahead_of_what_came_before_it(rig: Rig) -> None:
    await rig.frontend.handshake()
    dimm = _dimm(4096)
    assert not rig.session.refresh_memory()
    # Nothing is read in between: a doorbell that overtakes the socket looks like this.
    rig.frontend.guest_message(b"first")
    rig.frontend.mem_table((1 << 32, 4096, 0, dimm))
    rig.frontend.guest_message(b"last")
    assert rig.session.refresh_memory()
    assert rig.handler.events == ["memory", "reset", "memory"]
    assert rig.handler.regions == (Region(1 << 32, 4096, 0),)
    rig.frontend.reset()
    assert (await rig.frontend.expect(fe.MEM_TABLE_DONE)).words == (0,)
    await rig.frontend.expect(fe.RESET_DONE)
    assert rig.handler.events[3:] == [(4, b"first"), (4, b"last"), "reset"]
    os.close(dimm)


async def test_the_end_of_the_connection_is_not_told_while_memory_is_looked_for(rig: Rig) -> None:
    await rig.frontend.handshake()
    rig.frontend.guest_message(b"first")
    rig.frontend._sock.close()
    assert not rig.session.refresh_memory()
    assert not rig.session.refresh_memory()
    assert not rig.handler.lost.done()
    assert await rig.handler.lost is None
    assert rig.handler.events[-1] == (4, b"first")


async def test_guest_messages_arrive_and_are_credited(rig: Rig) -> None:
    await rig.frontend.handshake()
    rig.frontend.guest_message(b"payload")
    rig.frontend.guest_message(b"", connection_id=1)
    rig.frontend.reset()
    await rig.frontend.expect(fe.RESET_DONE)
    assert rig.handler.events[2:] == [(4, b"payload"), (1, b""), "reset"]
    rig.session.credit(2)
    assert (await rig.frontend.expect(fe.GUEST_MESSAGE_DONE)).words == (2,)


async def test_posts_wait_for_resume_and_keep_to_the_window(rig: Rig) -> None:
    await rig.frontend.handshake()
    for number in range(6):
        rig.session.post(Post(0, 2, bytes([number])))
    rig.frontend.send(fe.RESUME)
    first = [await rig.frontend.expect(fe.POST_MESSAGE) for _ in range(4)]
    assert [got.body for got in first] == [
        struct.pack("<IIII", 0, 2, 1, 1) + bytes([number]) for number in range(4)
    ]
    assert len(rig.session.posts) == 6
    rig.frontend.status(fe.POST_STATUS, first[0].cookie)
    fifth = await rig.frontend.expect(fe.POST_MESSAGE)
    assert fifth.body[-1] == 4
    assert [post.payload[0] for post in rig.session.posts] == [1, 2, 3, 4, 5]


async def test_a_reset_forgets_posts_of_the_old_epoch(rig: Rig) -> None:
    await rig.frontend.handshake()
    rig.frontend.send(fe.RESUME)
    rig.session.post(Post(0, 2, b"x"))
    rig.frontend.reset()
    while (await rig.frontend.read()).type != fe.RESET_DONE:
        pass
    assert rig.session.posts == ()


async def test_nothing_is_posted_while_stopped(rig: Rig) -> None:
    await rig.frontend.handshake()
    rig.frontend.send(fe.RESUME)
    await rig.frontend.stop()
    rig.session.post(Post(0, 2, b"x"))
    rig.session.credit()
    await rig.frontend.expect(fe.GUEST_MESSAGE_DONE)
    rig.frontend.send(fe.RESUME)
    await rig.frontend.expect(fe.POST_MESSAGE)


async def test_stop_is_answered_only_when_the_host_has_drained(rig: Rig) -> None:
    await rig.frontend.handshake()
    rig.handler.hold_stop = True
    stopping = asyncio.create_task(rig.frontend.stop())
    rig.frontend.reset()
    # The reset comes behind the stop: when it is answered, the stop has been read and not answered.
    await rig.frontend.expect(fe.RESET_DONE)
    assert not stopping.done()
    assert rig.handler.stop_done is not None
    rig.handler.stop_done()
    await stopping


async def test_save_and_load(rig: Rig) -> None:
    await rig.frontend.handshake()
    assert await rig.frontend.save() == (0, b"the state", "")
    assert await rig.frontend.load(b"another") == (0, "")
    assert rig.handler.state == b"another"
    assert rig.handler.events[-1] == "loaded"


async def test_a_refused_state_comes_back_as_text(rig: Rig) -> None:
    await rig.frontend.handshake()
    rig.handler.refuse = "not of this machine"
    assert (await rig.frontend.save())[0::2] == (1, "not of this machine")
    assert await rig.frontend.load(b"x") == (1, "not of this machine")
    assert "loaded" not in rig.handler.events


async def test_a_state_over_the_frontends_limit_is_refused(rig: Rig) -> None:
    await rig.frontend.handshake()
    status, _, text = await rig.frontend.save(max_size=4)
    assert status == 1
    assert "max-state-size" in text


async def test_a_doorbell_registration_is_confirmed(rig: Rig) -> None:
    await rig.frontend.handshake()
    eventfd = os.eventfd(0)
    confirmed: asyncio.Future[Status] = asyncio.get_running_loop().create_future()
    rig.session.add_doorbell(0x2001, eventfd, confirmed.set_result)
    os.close(eventfd)
    got = await rig.frontend.expect(fe.ADD_DOORBELL)
    assert got.words == (0x2001,)
    os.eventfd_write(got.fds[0], 1)
    os.close(got.fds[0])
    rig.frontend.status(fe.REPLY, got.cookie)
    assert await confirmed is Status.DONE


async def test_an_interrupt_registration_carries_its_target(rig: Rig) -> None:
    await rig.frontend.handshake()
    eventfd = os.eventfd(0)
    rig.session.add_interrupt(7, 1, 2, 7, eventfd)
    os.close(eventfd)
    got = await rig.frontend.expect(fe.ADD_INTERRUPT)
    assert got.words == (7, 1, 2, 7)
    os.close(got.fds[0])
    rig.session.del_interrupt(7)
    assert (await rig.frontend.expect(fe.DEL_INTERRUPT)).words == (7,)


@pytest.mark.parametrize(
    "raw",
    [
        struct.pack("<IIII", 99, 1, 0, 0),
        struct.pack("<IIII", fe.POST_MESSAGE, 1, 0, 0),
        struct.pack("<IIII", fe.RESET, 2, 4, 0),
        struct.pack("<IIII", fe.RESET, 0x101, 4, 0),
        struct.pack("<IIII", fe.RESET, 1, 1 << 20, 0),
        struct.pack("<IIII", fe.RESET, 1, 3, 0) + b"abc",
        struct.pack("<IIII", fe.RESUME, 1, 4, 0) + b"abcd",
        struct.pack("<IIII", fe.STOP, 1, 0, 0),
        struct.pack("<IIII", fe.GUEST_MESSAGE, 1, 20, 0)
        + struct.pack("<IIII", 1, 1, 0, 5)
        + b"1234",
        struct.pack("<IIII", fe.ERROR, 1, 3, 0) + b"why",
    ],
)
async def test_malformed_input_ends_the_connection_with_a_reason(rig: Rig, raw: bytes) -> None:
    await rig.frontend.handshake()
    rig.frontend.send_raw(raw)
    error = await rig.handler.lost
    assert isinstance(error, ProtocolError)
    assert str(error)


async def test_messages_before_hello_are_refused(rig: Rig) -> None:
    rig.frontend.send(fe.RESUME)
    assert isinstance(await rig.handler.lost, ProtocolError)


async def test_the_end_of_the_connection_is_told(rig: Rig) -> None:
    await rig.frontend.handshake()
    rig.frontend._sock.close()
    assert await rig.handler.lost is None


async def test_an_end_in_mid_message_is_an_error(rig: Rig) -> None:
    await rig.frontend.handshake()
    rig.frontend.send_raw(struct.pack("<II", fe.RESET, 1))
    rig.frontend._sock.close()
    assert isinstance(await rig.handler.lost, ProtocolError)


@given(st.lists(st.binary(max_size=300), max_size=6))
async def test_random_bytes_never_do_more_than_end_the_connection(chunks: list[bytes]) -> None:
    rig = Rig()
    await rig.frontend.handshake()
    for chunk in chunks:
        try:
            rig.frontend.send_raw(chunk or b"\0")
        except OSError:
            break
    rig.frontend._sock.close()
    await rig.handler.lost
    rig.session.close()
    rig.frontend.close()


@given(st.integers(1, 80))
async def test_messages_may_arrive_in_pieces_of_any_size(size: int) -> None:
    rig = Rig()
    await rig.frontend.handshake()
    stream = b"".join(
        struct.pack("<IIII", fe.GUEST_MESSAGE, 1, 16 + number, 0)
        + struct.pack("<IIII", 1, 1, 0, number)
        + bytes(number)
        for number in range(5)
    )
    for start in range(0, len(stream), size):
        rig.frontend.send_raw(stream[start : start + size])
    rig.frontend.reset()
    await rig.frontend.expect(fe.RESET_DONE)
    assert rig.handler.events[2:7] == [(1, bytes(number)) for number in range(5)]
    rig.session.close()
    rig.frontend.close()
