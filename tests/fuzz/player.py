# SPDX-License-Identifier: MIT
"""Plays episodes against a QEMU, and checks what has to hold whatever a backend does."""

from __future__ import annotations

import contextlib
import os
import select
import socket
import struct
from collections import Counter
from collections.abc import Iterator
from typing import Any, Final

from qemu.qmp import ExecuteError

from tests.fuzz import actions as a
from tests.fuzz import protocol as p
from tests.fuzz.backend import Connection, Memory
from tests.fuzz.descriptors import GOOD, made
from tests.fuzz.target import Failure, Target

UNUSED_ID: Final = 0xFFFF_FFF0
"""An id that no episode registers: to ask for its removal is a question without an effect."""

_COUNTERS: Final = (
    *("epoch", "connections", "disconnects", "guest-messages-sent", "guest-messages-refused"),
    *("posts-accepted", "posts-delivered", "signals", "interrupts-raised"),
)
"""What only grows, whatever happens."""
_KEPT: Final = 64
_GROWTH_KIB: Final = 96 * 1024
_TICK_EVERY: Final = 8
_TICKS_OF_A_BOOT: Final = 2
"""The first may have been on its way when the machine was reset."""
_PATIENT_TRIES: Final = 3


class Player:
    """Plays episodes one after the other against one QEMU."""

    def __init__(self, target: Target, memory: Memory) -> None:
        self.target = target
        self.memory = memory
        self.answer = a.Answer()
        self._connection: Connection | None = None
        self._eventfds: list[int] = []
        self._base: Counter[str] = Counter()
        self._base_kib = 0
        self._info: dict[str, Any] = {}
        self._epoch = 0
        self._mark = 0
        self._booting = False
        """Since a reset, or a load of what may have been saved after one, the guest has not run."""

    @property
    def connection(self) -> Connection:
        """The connection that is open, or was last."""
        assert self._connection is not None, "an episode begins with a connection"
        return self._connection

    async def begin(self) -> None:
        """Do everything once, and take what QEMU needs for it as the base to compare with."""
        await self.connect(a.Connect())
        await self.target.tick()
        commands: tuple[a.Command, ...] = ("stop", "migrate", "cont", "savevm", "loadvm")
        for command in commands:
            await self.order(a.Order(command))
        await self.well_formed()
        await self._check_info()
        self._base = self.target.descriptors()
        self._base_kib = self.target.memory_kib()

    async def end(self) -> None:
        """Close what is open."""
        if self._connection is not None:
            await self._connection.leave()
        while self._eventfds:
            os.close(self._eventfds.pop())

    async def play(self, episode: a.Episode) -> None:
        """Play one episode; raises :class:`Failure`."""
        self._mark = self.target.log_size()
        for action in episode.actions:
            await self._act(action)
            if self._connection is not None and self._connection.fault is not None:
                raise self._connection.fault
        await self.well_formed()
        await self._check_info()
        await self._check_descriptors()
        if self._base_kib and (kib := self.target.memory_kib()) > self._base_kib + _GROWTH_KIB:
            raise Failure(f"QEMU's memory grew from {self._base_kib} to {kib} KiB")
        if episode.number % _TICK_EVERY == 0:
            await self.target.tick()
            self.memory.seen["guest ticked"] += 1
            if self.target.guest.doorbell is not None:
                await self._both_ways(self.target.guest.doorbell)

    # What has to hold after each episode.

    async def well_formed(self) -> None:
        """Be a good backend for a moment: everything has to work again."""
        self.target.limit_files(None)
        self.answer = a.Answer()
        await self.order(a.Order("cont"))
        await self.connect(a.Connect())
        before = self.connection.epoch
        asks: list[a.Ask] = [
            a.Ask(p.ADD_INTERRUPT, p.words(1, 0, 2, 1).hex(), ("eventfd",)),
            a.Ask(p.DEL_INTERRUPT, p.words(1).hex()),
            a.Ask(p.ADD_DOORBELL, p.words(0x2001).hex(), ("eventfd",)),
            a.Ask(p.DEL_DOORBELL, p.words(0x2001).hex()),
            a.Ask(p.POST_MESSAGE, p.words(999, 2, 1, 0).hex(), statuses=(2,)),
        ]
        for ask in asks:
            await self._ask(ask)
        if self.connection.fault is not None:
            raise self.connection.fault
        if self._booting:
            # Firmware resets the machine once more: not in an episode that reckons without it.
            for _ in range(_TICKS_OF_A_BOOT):
                await self.target.tick()
            await self.barrier()
            self._booting = False
        if self.connection.epoch != before:
            self.memory.seen["reset during a good conversation"] += 1
        while self._eventfds:
            os.close(self._eventfds.pop())

    async def _both_ways(self, doorbell: int) -> None:
        """The guest's messages and signals have to arrive, and so has a message to the guest."""
        credits_before = self.memory.seen["credits"]
        status: int | None = None
        async with self.target.deadline("a signal and a message of the guest, and a post to it"):
            epoch = -1
            while not (self._eventfds and select.select((self._eventfds[-1],), (), (), 0)[0]):
                if epoch != self.connection.epoch:
                    # Also after a reset, which forgets it.
                    epoch = self._epoch = self.connection.epoch
                    await self._ask(a.Ask(p.ADD_DOORBELL, p.words(doorbell).hex(), ("eventfd",)))
                await self.target.qmp("query-status")
            while self.memory.seen["credits"] == credits_before:
                await self.target.qmp("query-status")
            # 1: the guest has just been reset, and has no SIM page yet; None: it is reset now.
            body = p.words(self.target.guest.smp - 1, 2, 1, 4) + b"post"
            while status in (None, 1):
                status = await self._request(p.POST_MESSAGE, body, ())
                if self.connection.closed.is_set():
                    break
        if status != 0:
            raise Failure(f"a post to a guest that takes messages got status {status}")
        self.memory.seen["guest rang, posted and took a message"] += 1
        await self._request(p.DEL_DOORBELL, p.words(doorbell), ())
        while self._eventfds:
            os.close(self._eventfds.pop())

    async def _check_info(self) -> None:
        """What the device says of itself has to fit a good backend that has registered nothing."""
        # Firmware resets the machine once more after a reset: the device may be waiting for the
        # answer to that.
        async with self.target.deadline("the device to be connected"):
            while not (info := await self.target.info())["connected"]:
                await self.barrier()
        registered = (info["doorbells"], info["interrupts"], info["posts-outstanding"])
        if any(registered):
            raise Failure(f"after a good conversation the device says {info}")
        if info["guest-messages-outstanding"] > p.GUEST_WINDOW:
            raise Failure(f"more guest messages outstanding than there may be: {info}")
        if info["connections"] != info["disconnects"] + 1:
            raise Failure(f"one connection is open, but the device says {info}")
        fallen = [key for key in _COUNTERS if info[key] < self._info.get(key, 0)]
        if fallen:
            raise Failure(f"{fallen} have fallen, from {self._info} to {info}")
        self._info = info

    async def _check_descriptors(self) -> None:
        more = self.target.descriptors() - self._base
        try:
            async with self.target.deadline("QEMU to close the descriptors of an episode"):
                while self._base and more:
                    # Doorbells are closed by RCU, when no vCPU can be looking at them. Under TCG
                    # one that never sleeps and gets no interrupt is looking until it is stopped.
                    await self.target.qmp("stop")
                    await self.target.qmp("cont")
                    more = self.target.descriptors() - self._base
        except Failure as failure:
            raise Failure(f"{failure}; too many: {dict(more)}") from None

    # Actions.

    async def _act(self, action: a.Action) -> None:
        match action:
            case a.Connect():
                await self.connect(action)
            case a.Send():
                await self._send(action)
            case a.Ask():
                await self._ask(action)
            case a.Refused():
                await self._refused(action)
            case a.Served():
                await self.barrier()
                for kind in action.kinds:
                    self.memory.seen[f"served: {p.BACKEND[kind].name}"] += 1
            case a.Read():
                self.connection.read(action.on)
            case a.Flood():
                await self._flood(action)
            case a.Answer():
                self.answer = action
                if self._connection is not None:
                    self._connection.answer = action
            case a.Fire():
                self._fire(action)
            case a.Close():
                await self._close(action)
            case a.Storm():
                await self._storm(action)
            case a.Order():
                await self.order(action)
            case a.Reported():
                await self._reported(action)
            case a.Limit():
                self.target.limit_files(action.spare)
            case a.Tick():
                await self.target.tick()

    async def connect(self, action: a.Connect) -> None:
        """Take the next connection, up to its RESET or up to a good handshake."""
        if self._connection is not None:
            await self._connection.leave()
            if self._connection.fault is not None:
                raise self._connection.fault
        while True:
            sock = await self.target.accept()
            connection = Connection(sock, self.memory, self.answer, self.target.guest.smp)
            self._connection = connection
            async with self.target.deadline("RESET"):
                await connection.opened.wait()
            if connection.reset.is_set():
                break
            # QEMU had no descriptors to share the guest's memory with, and is to try again.
            await connection.leave()
            if connection.fault is not None:
                raise connection.fault
            if "out of file descriptors" not in self.target.log(self._mark):
                raise Failure("QEMU ended a connection before RESET, and does not say why")
        if not action.ready:
            return
        connection.handshaken()
        async with connection.lock:
            data = p.hello_reply(features=action.features) + p.frame(p.MEM_TABLE_DONE, p.words(0))
            data += p.frame(p.RESET_DONE, p.words(connection.epoch))
            await self._write(connection, data, [])
        await self.barrier()
        for kind in (p.HELLO_REPLY, p.MEM_TABLE_DONE, p.RESET_DONE):
            self.memory.seen[f"served: {p.BACKEND[kind].name}"] += 1

    async def barrier(self) -> None:
        """Return when QEMU has taken everything that was sent."""
        while True:
            status = await self._request(p.DEL_INTERRUPT, p.words(UNUSED_ID), ())
            if status == 3:
                self._epoch = self.connection.epoch
                return
            if self.connection.fault is not None:
                raise self.connection.fault
            if self.connection.closed.is_set():
                raise Failure(f"QEMU ended a good conversation: {self.connection.error!r}")
            if status is not None:
                raise Failure(f"DEL_INTERRUPT of an unused id got status {status}")

    async def _request(self, kind: int, body: bytes, fds: tuple[str, ...]) -> int | None:
        connection = self.connection
        # Else a request could overtake RESET_DONE, and be dropped.
        await connection.answered()
        cookie, answer = connection.expect()
        async with connection.lock:
            with self._made(fds) as numbers:
                await self._write(connection, p.frame(kind, body, cookie=cookie), numbers)
        async with self.target.deadline(f"the answer to {p.BACKEND[kind].name}"):
            if connection.closed.is_set():
                return None
            return await answer

    async def register(self, body: bytes, eventfd: int) -> None:
        """Register an interrupt with a certain eventfd."""
        connection = self.connection
        cookie, answer = connection.expect()
        async with connection.lock:
            await self._write(connection, p.frame(p.ADD_INTERRUPT, body, cookie=cookie), [eventfd])
        async with self.target.deadline("the answer to ADD_INTERRUPT"):
            if (status := await answer) != 0:
                raise Failure(f"ADD_INTERRUPT got status {status}")

    async def _ask(self, action: a.Ask) -> None:
        body = bytearray.fromhex(action.body)
        for _ in range(action.times):
            epoch = self.connection.epoch
            status = await self._request(action.kind, bytes(body), action.fds)
            name = p.BACKEND[action.kind].name
            if status is None and self.connection.epoch == epoch:
                raise Failure(f"no answer to {name}; QEMU said {self.connection.error!r}")
            if self.connection.epoch != self._epoch:
                # Of what was registered before a reset, nothing is left. Firmware makes one more.
                continue
            if status is not None and status not in action.statuses:
                raise Failure(f"{name} got status {status} instead of {action.statuses}")
            if status is not None:
                self.memory.seen[f"served: {name}"] += 1
            first = (struct.unpack_from("<I", body)[0] + action.step) & 0xFFFF_FFFF
            struct.pack_into("<I", body, 0, first)

    async def _send(self, action: a.Send) -> None:
        connection = self.connection
        data = bytearray.fromhex("".join(action.pieces))
        for _ in range(action.times):
            start = 0
            async with connection.lock:
                # Under the lock: an answer to a later reset must not come before this one.
                if action.epoch_at is not None:
                    epoch = (connection.epoch + action.epoch_plus) & 0xFFFF_FFFF
                    struct.pack_into("<I", data, action.epoch_at, epoch)
                with self._made(action.fds) as numbers:
                    for index, piece in enumerate(action.pieces):
                        end = start + len(piece) // 2
                        fds = numbers if index == action.fds_at else []
                        if not await self._write(connection, bytes(data[start:end]), fds):
                            return
                        start = end

    async def _write(self, connection: Connection, data: bytes, fds: list[int]) -> bool:
        """Write; False if the connection has ended, or QEMU takes no more as it is not read."""
        tries = 0
        while data:
            try:
                done = socket.send_fds(connection.sock, [data], fds)
            except BlockingIOError:
                # QEMU takes up to half a MiB of answers, and then no more requests.
                await self.target.qmp("query-status")
                tries += 1
                if tries > _PATIENT_TRIES and not connection.reads:
                    return False
                continue
            except OSError:
                return False
            data, fds, tries = data[done:], [], 0
        return True

    async def _flood(self, action: a.Flood) -> None:
        data = bytes.fromhex(action.data)
        count = max(1, 16_384 // len(data))
        async with self.connection.lock:
            for _ in range(0, action.times, count):
                if not await self._write(self.connection, data * count, []):
                    self.memory.seen["flood stopped by QEMU"] += 1
                    return

    async def _refused(self, action: a.Refused) -> None:
        async with self.target.deadline(f"QEMU to refuse {action.reason}"):
            await self.connection.closed.wait()
        error = self.connection.error
        if error is None or not p.REFUSALS[action.reason].search(error):
            raise Failure(f"refused with {error!r} instead of {action.reason}")
        if not p.REFUSALS[action.reason].search(self.target.log(self._mark)):
            raise Failure(f"QEMU's log does not tell of {action.reason}")
        async with self.target.deadline(f"the device to name {action.reason} by QMP"):
            while True:
                info = await self.target.info()
                # Two: the one before this, and this. A QEMU without descriptors goes on to fail.
                later = info["disconnects"] > self._info["disconnects"] + 2
                if later or p.REFUSALS[action.reason].search(info.get("disconnect-reason", "")):
                    break
        self.memory.seen[f"refused: {action.reason}"] += 1

    async def _reported(self, action: a.Reported) -> None:
        async with self.target.deadline(f"QEMU to report {action.failure}"):
            while not p.FAILURES[action.failure].search(self.target.log(self._mark)):
                await self.target.qmp("query-status")
        self.memory.seen[f"failed: {action.failure}"] += 1

    def _fire(self, action: a.Fire) -> None:
        for index in range(action.times):
            if not self._eventfds:
                return
            fd = self._eventfds[(action.which + index) % len(self._eventfds)]
            # QEMU's chardev makes what it receives blocking, and a full eventfd would block.
            if select.select((), (fd,), (), 0)[1]:
                os.eventfd_write(fd, 1)

    async def _close(self, action: a.Close) -> None:
        if action.how == "close":
            await self.connection.leave()
        else:
            with contextlib.suppress(OSError):
                self.connection.sock.shutdown(socket.SHUT_WR)

    async def _storm(self, action: a.Storm) -> None:
        await self.connection.leave()
        for _ in range(action.times):
            sock = await self.target.accept()
            with contextlib.suppress(OSError):
                sock.send(bytes.fromhex(action.data))
            sock.close()

    async def order(self, action: a.Order) -> None:
        """Give a QMP command, and count how it failed if it did."""
        failure = ""
        match action.command:
            case "stop":
                await self.target.qmp("stop")
            case "cont":
                await self.target.qmp("cont")
            case "system_reset":
                await self._reset()
            case "migrate":
                failure = await self.target.migrate()
            case "savevm" | "loadvm":
                self._booting |= action.command == "loadvm"
                failure = await self.target.hmp(f"{action.command} fuzz")
                if action.command == "loadvm" and failure:
                    # The machine is half of one and half of the other. QEMU ends if it is to be
                    # migrated now: it has no way from the run state restore-vm to finish-migrate.
                    await self._reset()
                    await self.target.qmp("cont")
        self.memory.seen[f"QMP: {action.command}"] += not failure
        failure += self.target.log(self._mark) if failure else ""
        for key, pattern in p.FAILURES.items():
            if pattern.search(failure):
                self.memory.seen[f"failed: {key}"] += 1
        if action.failure and not p.FAILURES[action.failure].search(failure):
            raise Failure(f"{action.command}: {failure!r} instead of {action.failure}")

    async def _reset(self) -> None:
        self._booting = True
        with self.target.qmp_client.listener("RESET") as events:
            try:
                await self.target.qmp("system_reset")
            except ExecuteError as error:
                raise Failure(f"system_reset: {error}") from error
            async with self.target.deadline("RESET of the machine"):
                await events.get()

    @contextlib.contextmanager
    def _made(self, kinds: tuple[str, ...]) -> Iterator[list[int]]:
        with made(kinds) as fds:
            for kind, fd in zip(kinds, fds, strict=True):
                if kind in GOOD and len(self._eventfds) < _KEPT:
                    self._eventfds.append(os.dup(fd))
            yield fds
