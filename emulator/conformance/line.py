# SPDX-License-Identifier: MIT
"""One channel of an explored run: the guest's half, the memory between, the host's half.

A run has a primary, and a sub-channel if it wants one. The guest's half, the memory and the books
outlive the host's processes; channel, provider and VSP are made anew by a restore.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, assert_never

from emulator.conformance.ledger import Ledger, Symptom, Violation
from emulator.conformance.rig import Port
from emulator.conformance.saving import restore, save
from emulator.conformance.server import Arena, Copy, Server
from emulator.conformance.steps import Setup, Signals
from emulator.conformance.walker import Guest
from emulator.kmcl import Connection, Queue, ServerChannel
from emulator.kmcl import Run as KmclRun
from emulator.kmcl.inferred import FailedQueue, UnopenedSave
from emulator.memory import page_view
from emulator.wire.ntstatus import NtStatus


@dataclass(frozen=True)
class Moment:
    """A channel at the moment of a save: what a machine goes back to when it is restored again."""

    memory: Copy
    ledger: dict[str, Any]
    signals: tuple[int, int]


class Line:
    """One channel; see the head of the file."""

    def __init__(
        self, arena: Arena, setup: Setup, boundary: Callable[[], None], primary: Line | None
    ) -> None:
        """Make the guest's half, and a process of the host; nothing is enabled."""
        arena.reset()
        self.arena = arena
        self.setup = setup
        self.primary = primary
        self.ledger = Ledger(
            ram=bytearray(arena.ram),
            pipe=setup.pipe,
            retired=NtStatus[setup.inferred.retired.name],
        )
        self.guest = Guest(self.ledger, self._ring_doorbell, arena.ram)
        self.doorbell = 0
        """Doorbells on their way."""
        self.quota = 1024
        self.ram_is_there = True
        self.paused = False
        """The VSP has paused it for itself."""
        self._boundary = boundary
        self._saved = 0
        self.new_process(hold=0)

    @property
    def live(self) -> bool:
        """Whether it is offered."""
        return self.channel.connection is not Connection.DISABLED

    # Processes.

    def new_process(self, *, hold: int) -> None:
        """Make channel, provider and VSP anew."""
        ledger = self.ledger
        restored = ledger.connected and not self.setup.force_new
        self.port = Port(self._interrupt, ram=self.arena.ram, ram_is_there=self.ram_is_there)
        self.server = Server(ledger, self.setup, self._boundary, hold=hold, restored_open=restored)
        self.channel = ServerChannel(self.port, self.setup.inferred)
        self.server.configure(self.channel)
        self.set_quota(self.quota)
        if self.primary is not None:
            self.channel.init_set_primary_channel(self.primary.channel, 1)
        if ledger.connected:
            self.port.at_offer = self._restored_by_the_provider
        if ledger.gpadl and not ledger.torn_down:
            self.port.gpadls[ledger.gpadl] = page_view([memoryview(self.arena.gpadl)])

    def _restored_by_the_provider(self, channel: ServerChannel) -> None:
        if not self.port.offers[-1].force_new:
            channel.port_restored(*self.arena.host_ends())

    def set_quota(self, quota: int) -> None:
        """Set the transaction quota, now and in processes to come."""
        self.quota = self.server.quota = quota
        self.channel.set_transaction_quota(quota)

    def set_ram(self, there: bool) -> None:
        """Have the memory of GPA-direct requests there or not, now and in processes to come."""
        self.ram_is_there = self.port.ram_is_there = there

    def _interrupt(self) -> None:
        self.guest.irq = max(self.guest.irq, 1)

    def _ring_doorbell(self) -> None:
        self.doorbell = max(self.doorbell, 1)

    # What happens.

    def doorbell_arrives(self, times: int) -> None:
        """Deliver a doorbell, ``times`` times."""
        self.doorbell = max(self.doorbell - 1, 0)
        stands_still = self.channel.queue is Queue.OFF
        before = self.arena.copy() if stands_still else None
        for _ in range(times):
            self.channel.port_interrupt()
        if stands_still and self.arena.copy() != before:
            raise Violation(Symptom.MEMORY, "guest memory was written while the channel is paused")

    def open(self, offset: int) -> None:
        """Open it, with the rings' indices at ``offset``."""
        self.guest.open(*self.arena.rings(), offset)
        self.ledger.opens()
        status = self.channel.port_opened(*self.arena.host_ends())
        if status is not NtStatus.SUCCESS:
            raise Violation(Symptom.STATUS, f"the open ended with {status.name}")
        self.check_runs()

    def has_closed(self) -> None:
        """Check that the channel has closed, and have the guest forget the connection."""
        if self.server.phase != "closed":
            raise Violation(Symptom.CALLBACK, "EvtClosed did not run")
        self.forget()

    def forget(self) -> None:
        """The connection is no more, and its memory is the guest's for something else."""
        ledger = self.ledger
        if ledger.torn_down:
            raise Violation(Symptom.LOST, "the guest did not get the pages of its GPADL back")
        self.guest.closed()
        self.take_gpadl_back()
        self.port.gpadls.clear()
        self.doorbell = 0
        self.arena.swap()

    def check_runs(self) -> None:
        """Check that what was started runs, unless a cut has paused it within the callbacks."""
        wanted = self.ledger.connected and self.channel.run is KmclRun.STARTED
        if wanted and self.server.phase != "running":
            raise Violation(
                Symptom.CALLBACK, f"the channel was started and the VSP is {self.server.phase}"
            )

    def check_paused(self) -> None:
        """Check that the pause of this process is over."""
        if self.server.phase not in ("closed", "opened", "suspended"):
            raise Violation(Symptom.CALLBACK, "EvtSuspend did not run")
        if self.channel.queue is not Queue.OFF:
            raise Violation(Symptom.STATUS, f"Pause is over and the queue {self.channel.queue}")

    def moves(self) -> bool:
        """Have one party do what it was signalled for; False if neither was."""
        guest = self.guest
        if self.doorbell:
            self.doorbell_arrives(1)
        elif self.port.take_turn():
            pass
        elif self.ledger.connected and (guest.irq or guest.scheduled):
            deque(guest.interrupt(), maxlen=0)
        elif self.ledger.connected and guest.owes:
            deque(guest.answer(2), maxlen=0)
        else:
            return False
        return True

    # The guest's GPADL.

    def make_gpadl(self) -> None:
        """Have the guest make a GPADL of a page."""
        ledger = self.ledger
        if ledger.gpadl or not ledger.connected:
            return
        ledger.gpadls_made += 1
        ledger.gpadl, ledger.gpadl_word = 0xE1E10 + ledger.gpadls_made, ledger.gpadls_made << 16
        self.arena.gpadl[:4] = ledger.gpadl_word.to_bytes(4, "little")
        self.port.gpadls[ledger.gpadl] = page_view([memoryview(self.arena.gpadl)])

    def tear_down(self) -> None:
        """Have the guest ask for the pages back."""
        if self.ledger.gpadl and not self.ledger.torn_down:
            self.ledger.torn_down = True
            del self.port.gpadls[self.ledger.gpadl]
            self._ask_for_gpadl()

    def _ask_for_gpadl(self) -> None:
        server = self.server

        def released() -> None:
            if server.view is not None:
                raise Violation(Symptom.MEMORY, "the guest got pages back that are mapped")
            if not self.ledger.torn_down:
                raise Violation(Symptom.TWICE, "the guest got its pages back twice")
            self.take_gpadl_back()

        self.channel.gpadls.torn_down(self.ledger.gpadl, released)

    def take_gpadl_back(self) -> None:
        """The guest uses the page for something else."""
        self.ledger.gpadl, self.ledger.torn_down, self.ledger.mapping = 0, False, ""
        self.arena.take_back()

    # Save and restore.

    def moment(self) -> Moment:
        """Copy what a machine can go back to."""
        return Moment(self.arena.copy(), self.ledger.snapshot(), (self.doorbell, self.guest.irq))

    def go_back(self, moment: Moment) -> None:
        """Have this be the moment again; the host's process is of no use afterwards."""
        self.arena.put_back(moment.memory)
        self.ledger.put_back(moment.ledger)
        self.doorbell, self.guest.irq = moment.signals

    def save(self, sizes: int) -> list[bytes] | None:
        """Save the channel; None if it is not open and that is refused."""
        refused = self.setup.inferred.unopened is UnopenedSave.REFUSED
        if refused and not self.ledger.connected:
            status = self.channel.save_begin()
            if status is not NtStatus.INVALID_DEVICE_STATE:
                raise Violation(Symptom.STATUS, f"SaveBegin of an unopened channel: {status.name}")
            return None
        stats = self.channel.stats()
        self._saved = stats.awaiting_completion + stats.queued_wait + stats.queued_no_wait
        return save(self.channel, sizes)

    def restore(self, pieces: list[bytes] | None, frozen: Copy) -> None:
        """Restore in a new process; nothing is started."""
        ledger = self.ledger
        self.new_process(hold=self.server.hold)
        self.channel.enable()
        if self.setup.force_new:
            self._offered_anew()
            return
        if pieces is None:
            ledger.abandoned()
            return
        if self.setup.inferred.failed_queue is FailedQueue.STARTS_AGAIN:
            ledger.failed = False
        restore(self.channel, pieces)
        self._check_restored()
        self.check_untouched(frozen)
        if ledger.torn_down:
            self._ask_for_gpadl()
        else:
            self.map_again()

    def map_again(self) -> None:
        """Have the VSP map what it had mapped before the save."""
        if self.ledger.mapping and self.server.view is None:
            self.server.map(self.channel, self.ledger.mapping)

    def signals_come(self, signals: Signals) -> None:
        """Have what was on its way at the save come, in both directions, or not."""
        match signals:
            case Signals.LOST:
                self.doorbell = self.guest.irq = 0
            case Signals.KEPT:
                pass
            case Signals.SPURIOUS:
                self.doorbell = self.guest.irq = 1
            case Signals.DOUBLED:
                self.doorbell = self.guest.irq = 2
            case _:
                assert_never(signals)

    def _check_restored(self) -> None:
        ledger = self.ledger
        if not self.server.registered:
            if self.channel.packets_alive != self._saved:
                raise Violation(
                    Symptom.LOST,
                    f"{self.channel.packets_alive} packets were restored, {self._saved} saved",
                )
            for number in list(ledger.in_use):
                ledger.disown(number, unsent=False)
            return
        forgotten = ledger.in_use.keys() - set(self.server.restored)
        if forgotten:
            raise Violation(Symptom.LOST, f"packets {sorted(forgotten)} were not restored")

    def _offered_anew(self) -> None:
        """FORCE_NEW_CHANNEL: the guest's channel was rescinded, and there is a new one."""
        if self.channel.connection is not Connection.ENABLED or self.server.phase != "closed":
            raise Violation(Symptom.STATUS, "a channel that is to be new was restored open")
        self.rescinded()

    def rescinded(self) -> None:
        """The guest has been told that the channel is gone, and the host knows nothing of it."""
        was_connected = self.ledger.connected
        self.ledger.abandoned()
        if was_connected:
            self.ledger.closed()
            self.ledger.torn_down = False
            self.forget()

    def check_untouched(self, frozen: Copy) -> None:
        """Check that attaching has written its three words and nothing else was written."""
        allowed = self.arena.host_words() if self.ledger.connected else set()
        if surplus := set(self.arena.words(frozen)) - allowed:
            raise Violation(
                Symptom.MEMORY, f"the restore wrote to guest memory at {sorted(surplus)[:4]}"
            )

    # The end.

    def left(self) -> str:
        """Name what is not done although everybody has come to rest; empty if all is."""
        left = self.ledger.left()
        if not left and self.guest.waits_for_room and not self.ledger.failed:
            left = "the guest still waits for room in a ring that is empty"
        if not left and self.server.again is not None:
            left = f"request {self.server.again[1].number} has not come once more"
        if not left and self.ledger.torn_down and self.server.view is None:
            left = "the guest waits for the pages of a GPADL that is not mapped"
        return left

    def check_at_rest(self) -> None:
        """Compare the books."""
        stats = self.channel.stats()
        busy = stats.held, stats.queued_wait, stats.queued_no_wait, stats.queued_completions
        if self.ledger.connected and any(busy):
            raise Violation(Symptom.LEAK, f"at rest there are {stats}")
        if (self.channel.fault is not None) is not self.ledger.failed:
            raise Violation(Symptom.STATUS, f"the channel's fault is {self.channel.fault}")
        self.arena.check(self.ledger)

    def check_disabled(self) -> None:
        """Check that nothing is left of a channel that was disabled."""
        if self.live:
            raise Violation(
                Symptom.STATUS, f"a channel that was disabled is {self.channel.connection.value}"
            )
        if left := sorted(self.ledger.in_use):
            raise Violation(Symptom.LOST, f"packets {left} did not end with the channel")
        if self.ledger.torn_down:
            raise Violation(Symptom.LOST, "the guest did not get the pages of its GPADL back")
        self.server.check_leaks(self.channel)
