# SPDX-License-Identifier: MIT
"""The backend's side of one vmbus-user connection: handshake, credits, epochs, stop, save and load.

The session keeps the promises of docs/vmbus-user.md so that the VMBus host above it need not know
them: a post is kept until the frontend says that it is in the guest's SIM page, and is part of the
saved state until then; nothing of an old epoch is sent into a new one; guest messages are credited
only when the host has taken them. What the host must do comes as calls on :class:`SessionHandler`.
"""

from __future__ import annotations

import contextlib
import logging
import os
import select
import socket
import zlib
from collections import deque
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Final, Protocol, assert_never

import msgspec

from emulator.link.protocol import (
    MAX_CODE_RANGES,
    AddDoorbell,
    AddInterrupt,
    CodeMap,
    DelDoorbell,
    DelInterrupt,
    Error,
    FromGuest,
    FrontendMessage,
    GuestMessageDone,
    Hello,
    HelloReply,
    InvalidateCode,
    LoadState,
    MemTable,
    MemTableDone,
    PostMessage,
    PostStatus,
    ProtocolError,
    Region,
    Reply,
    Reset,
    ResetDone,
    Resume,
    SaveState,
    Status,
    Stop,
    pack_result,
)
from emulator.link.transport import Transport, close_fds

log = logging.getLogger(__name__)

_STOPPED: Final = b"\1"
_CODE_WRITTEN: Final = b"\2"
_CODE_SECONDS: Final = 5.0
"""QEMU's main loop answers within a millisecond, unless something is badly wrong with it."""

HV_MESSAGE_TYPE_VMBUS: Final = 1
"""HvMessage type of every VMBus message to a guest (vmbus-constants: SynIC plumbing)."""


class Post(msgspec.Struct, frozen=True, array_like=True):
    """A message for the guest that is not yet in its SIM page; part of the saved state."""

    vp_index: int
    sint: int
    payload: bytes


class StateRefused(Exception):
    """The host cannot save now, or cannot take the state offered; the text goes to the frontend."""


class SessionHandler(Protocol):
    """The VMBus host as the session sees it."""

    def memory_changed(self, regions: tuple[Region, ...], fds: list[int]) -> None:
        """Take a new table of the guest's memory, all of it; may come while the guest runs.

        The descriptors are closed by the session after the call. Raises OSError or ValueError if a
        region cannot be mapped; the connection ends then.
        """

    def code_map_changed(self, first: tuple[int, ...], fd: int) -> None:
        """Take the map of translated code for the table of memory that came before.

        ``first`` are the bytes of the regions' first pages. The descriptor is closed by the session
        after the call. Raises OSError or ValueError if it cannot be used; the connection ends then.
        """

    def reset(self) -> None:
        """Forget the guest: the machine was reset."""

    def guest_message(self, connection_id: int, vp_index: int, payload: bytes) -> None:
        """Take one HvPostMessage payload; credit it later with :meth:`Session.credit`."""

    def post_delivered(self) -> None:
        """There is room for one more post than before."""

    def resumed(self) -> None:
        """The virtual CPUs run from now on."""

    def stopping(self, done: Callable[[], None]) -> None:
        """Leave guest memory alone, then call ``done``."""

    def save(self) -> bytes:
        """Return the whole state, opaque here; raises :class:`StateRefused`."""

    def load(self, state: bytes) -> None:
        """Take a state of :meth:`save`; raises :class:`StateRefused`, changing nothing."""

    def loaded(self) -> None:
        """The frontend has the answer to the load: register doorbells and interrupts now."""

    def connection_lost(self, error: Exception | None) -> None:
        """The frontend is gone; ``None`` when it closed the connection in order."""


@dataclass(slots=True)
class _Request:
    """A request to the frontend that waits for its REPLY."""

    what: str
    done: Callable[[Status], None] | None


class Session:
    """One connection. Made when a frontend connects; gone with it."""

    def __init__(self, sock: socket.socket, handler: SessionHandler) -> None:
        """Serve ``sock``, a connected stream socket that the session takes over."""
        self._handler = handler
        self._transport = Transport(sock, self)
        self._cookie = 0
        self._post_window = 0
        self._vcpus = 0
        self._epoch: int | None = None
        self._running = False
        self._sent: dict[int, Post] = {}
        self._waiting: deque[Post] = deque()
        self._requests: dict[int, _Request] = {}
        self._code_written = False

    @property
    def vcpus(self) -> int:
        """Number of virtual CPUs the frontend named; 0 before its HELLO."""
        return self._vcpus

    @property
    def posts(self) -> tuple[Post, ...]:
        """All posts that are not known to be in the guest's SIM page, in order."""
        return (*self._sent.values(), *self._waiting)

    def close(self) -> None:
        """Close the connection."""
        self._transport.close()

    # Towards the frontend.

    def post(self, post: Post) -> None:
        """Queue a message for the guest; it is sent as the window and the guest allow."""
        self._waiting.append(post)
        self._pump_posts()

    def credit(self, count: int = 1) -> None:
        """Give ``count`` credits for guest messages back to the frontend."""
        self._transport.send(GuestMessageDone(count))

    def add_doorbell(
        self, connection_id: int, eventfd: int, done: Callable[[Status], None]
    ) -> None:
        """Register ``eventfd`` for HvSignalEvent on ``connection_id``.

        ``done`` gets the status; look at the ring then, for a signal before it is lost.
        """
        self._request(
            AddDoorbell(self._next_cookie(), connection_id),
            f"doorbell {connection_id:#x}",
            done,
            eventfd,
        )

    def del_doorbell(self, connection_id: int) -> None:
        """Forget a doorbell."""
        self._request(
            DelDoorbell(self._next_cookie(), connection_id), f"doorbell {connection_id:#x}"
        )

    def add_interrupt(self, ident: int, vp_index: int, sint: int, flag: int, eventfd: int) -> None:
        """Let a write to ``eventfd`` set event ``flag`` (1..2047) of (``vp_index``, ``sint``)."""
        self._request(
            AddInterrupt(self._next_cookie(), ident, vp_index, sint, flag),
            f"interrupt {ident}",
            None,
            eventfd,
        )

    def del_interrupt(self, ident: int) -> None:
        """Forget an interrupt."""
        self._request(DelInterrupt(self._next_cookie(), ident), f"interrupt {ident}")

    def invalidate_code(self, stretches: Sequence[tuple[int, int]]) -> None:
        """Have QEMU drop what it has translated of pages that were written, and wait for that.

        The stretches are (index in the map, pages). The event loop stands still meanwhile: the
        guest must not learn of the write before. While the virtual CPUs are being stopped QEMU does
        not read; the answer to its STOP tells it then.
        """
        for start in range(0, len(stretches), MAX_CODE_RANGES):
            batch = tuple(stretches[start : start + MAX_CODE_RANGES])
            if not self._running:
                self._code_written = True
                return
            cookie = self._next_cookie()
            self._transport.send(InvalidateCode(cookie, batch))

            def wanted(message: FrontendMessage, cookie: int = cookie) -> bool:
                match message:
                    case Reply():
                        return message.cookie == cookie
                    case _:
                        return isinstance(message, Stop)

            if isinstance(self._transport.wait_for(wanted, _CODE_SECONDS), Stop):
                self._code_written = True
                return

    def _request(
        self,
        message: AddDoorbell | DelDoorbell | AddInterrupt | DelInterrupt,
        what: str,
        done: Callable[[Status], None] | None = None,
        eventfd: int | None = None,
    ) -> None:
        self._requests[message.cookie] = _Request(what, done)
        if eventfd is None:
            self._transport.send(message)
        else:
            # The channel may close and its eventfd with it while the message waits to be sent.
            fd = os.dup(eventfd)
            self._transport.send(message, (fd,), lambda: os.close(fd))

    def _next_cookie(self) -> int:
        self._cookie = (self._cookie + 1) & 0xFFFF_FFFF or 1
        return self._cookie

    def _pump_posts(self) -> None:
        if not self._running or self._epoch is None:
            return
        while self._waiting and len(self._sent) < self._post_window:
            post = self._waiting.popleft()
            cookie = self._next_cookie()
            self._sent[cookie] = post
            self._transport.send(
                PostMessage(cookie, post.vp_index, post.sint, HV_MESSAGE_TYPE_VMBUS, post.payload)
            )

    def refresh_memory(self) -> bool:
        """Look for a table of memory that waits on the socket; returns whether there was one.

        A doorbell and the socket are two ways: a guest may use memory that was plugged before the
        event loop has come to the table that names it. So ask here before memory is refused.
        """
        return self._transport.deliver_early(MemTable, CodeMap)

    # From the frontend.

    def message_received(self, message: FrontendMessage, fds: list[int]) -> None:
        """Handle one message (called by the transport)."""
        if self._vcpus == 0 and not isinstance(message, Hello | Error):
            close_fds(fds)
            raise ProtocolError(f"{type(message).__name__} before HELLO")
        match message:
            case Hello():
                self._vcpus = message.vcpus
                self._post_window = message.post_window
                self._transport.send(HelloReply(message.features))
            case MemTable():
                self._map(message, fds)
            case Reset():
                self._reset(message.epoch)
            case Resume():
                self._running = True
                self._handler.resumed()
                self._pump_posts()
            case Stop():
                self._stop(fds[0])
            case FromGuest():
                self._handler.guest_message(
                    message.connection_id, message.vp_index, message.payload
                )
            case PostStatus():
                self._posted(message)
            case SaveState():
                self._save(message.max_size, *fds)
            case LoadState():
                self._load(message.size, *fds)
            case Reply():
                self._replied(message)
            case CodeMap():
                self._map_code(message, fds)
            case Error():
                raise ProtocolError(f"QEMU refused what this backend sent: {message.text}")
            case _:
                assert_never(message)

    def connection_lost(self, error: Exception | None) -> None:
        """Tell the handler (called by the transport)."""
        self._running = False
        self._handler.connection_lost(error)

    def _map(self, table: MemTable, fds: list[int]) -> None:
        try:
            self._handler.memory_changed(table.regions, fds)
        except (OSError, ValueError) as error:
            self._transport.send(MemTableDone(Status.FAILED))
            raise ProtocolError(f"cannot map the guest's memory: {error}") from error
        finally:
            close_fds(fds)
        self._transport.send(MemTableDone(Status.DONE))

    def _map_code(self, message: CodeMap, fds: list[int]) -> None:
        try:
            self._handler.code_map_changed(message.first, fds[0])
        except (OSError, ValueError) as error:
            raise ProtocolError(f"cannot use the map of code: {error}") from error
        finally:
            close_fds(fds)

    def _reset(self, epoch: int) -> None:
        self._epoch = epoch
        self._sent.clear()
        self._waiting.clear()
        self._requests.clear()
        self._handler.reset()
        self._transport.send(ResetDone(epoch))

    def _stop(self, pipe: int) -> None:
        self._running = False
        # No post may follow the answer, and some may wait for the end of this batch.
        self._transport.flush()

        def stopped() -> None:
            # A frontend that no longer waits has closed its end.
            with contextlib.suppress(BrokenPipeError):
                os.write(pipe, _CODE_WRITTEN if self._code_written else _STOPPED)
            self._code_written = False
            os.close(pipe)

        self._handler.stopping(stopped)

    def _posted(self, status: PostStatus) -> None:
        post = self._sent.pop(status.cookie, None)
        if post is None:
            return
        match status.status:
            case Status.DONE | Status.DROPPED_BY_RESET:
                pass
            case Status.NO_SUCH_TARGET | Status.FAILED | Status.IN_USE | Status.NO_ROOM:
                log.warning(
                    "a message for VP %d SINT %d could not be delivered (%s): the guest named a "
                    "VP or SINT it does not have",
                    post.vp_index,
                    post.sint,
                    status.status.name,
                )
            case _:
                assert_never(status.status)
        self._pump_posts()
        self._handler.post_delivered()

    def _replied(self, reply: Reply) -> None:
        request = self._requests.pop(reply.cookie, None)
        if request is None:
            return
        if reply.status is not Status.DONE:
            log.error("QEMU could not serve %s: %s", request.what, reply.status.name)
        if request.done is not None:
            request.done(reply.status)

    def _save(self, max_size: int, memfd: int, pipe: int) -> None:
        try:
            state = self._handler.save()
            if len(state) > max_size:
                raise StateRefused(
                    f"the state has {len(state)} bytes, QEMU takes {max_size}; raise "
                    "max-state-size of vmbus-user"
                )
            view = memoryview(state)
            while view:
                view = view[os.write(memfd, view) :]
            result = pack_result(size=len(state), crc32=zlib.crc32(state))
        except (StateRefused, OSError) as error:
            result = pack_result(error=str(error))
        self._answer(result, memfd, pipe)

    def _load(self, size: int, memfd: int, pipe: int) -> None:
        try:
            state = os.pread(memfd, size, 0)
            if len(state) != size:
                raise StateRefused(f"the state has {len(state)} bytes instead of {size}")
            self._handler.load(state)
            result = pack_result()
        except (StateRefused, OSError) as error:
            result = pack_result(error=str(error))
            self._answer(result, memfd, pipe)
            return
        self._answer(result, memfd, pipe)
        self._handler.loaded()

    @staticmethod
    def _answer(result: bytes, memfd: int, pipe: int) -> None:
        try:
            # A frontend that has given up waiting has closed its end: there is nobody to tell.
            if select.select([], [pipe], [], 0)[1]:
                os.write(pipe, result)
        except OSError as error:
            log.warning("QEMU did not wait for the result: %s", error)
        finally:
            os.close(memfd)
            os.close(pipe)
