# SPDX-License-Identifier: MIT
"""One run of the explorer, played from its first step to rest, with the cuts that are in it.

Everything is deterministic: there is one thread, signals are flags, and what is random comes from
the seeds in the run. A run is played anew for each restore point. That costs a few milliseconds,
and it is the only way to stop the guest's generators at an access and go on from there.

Where a machine can be saved. The guest's virtual CPU can stand still anywhere, so there is a point
before and after each of its accesses to a control page. The host cannot: a backend is told to stop
between two callbacks of its loop, pauses its channels, and lets the save begin when they have
drained. What a host does in one step is therefore whole in every saved machine. What *can* fall
into the middle of it is the Pause, because a VSP may call VmbChannelPause in a process callback or
a completion routine; so the points within a host's step are at the end of each callback, the pause
begins there, and the save is taken when the step is over. From the end of the pause to the start
in the new process nothing may be written to guest memory, but the words that attaching writes.

At rest nobody has anything to do: no signal is on its way, nobody is scheduled. Work that is left
then is lost, or, if a signal out of nowhere would set it going, a wake-up is.
"""

from __future__ import annotations

import random
from collections.abc import Callable
from typing import Any, assert_never

from emulator.conformance.ledger import Ledger, Symptom, Violation
from emulator.conformance.rig import Port
from emulator.conformance.saving import damage, restore, save
from emulator.conformance.server import Arena, Server
from emulator.conformance.steps import Cut, Mode, Op, Run, Signals, Step
from emulator.conformance.walker import Guest, Walk
from emulator.kmcl import KmclError, Queue, ServerChannel
from emulator.kmcl import Run as KmclRun
from emulator.wire.ntstatus import NtStatus

REST_LIMIT = 20_000
"""Moves after which a run that does not come to rest never will."""


class Play:
    """A run; :meth:`play` plays it once."""

    def __init__(self, arena: Arena) -> None:
        """Make a guest, and a channel that is offered and started."""
        arena.reset()
        self._arena = arena
        self._ledger = Ledger(ram=bytearray(arena.ram))
        self._guest = Guest(self._ledger, self._ring_doorbell, arena.ram)
        self._doorbell = False
        self._quota = 1024
        self._vsp_paused = False
        self._late = False
        self._cut: Cut | None = None
        self._callbacks = 0
        self._frozen: tuple[bytes, bytes] | None = None
        self._new_process(hold=0)
        self._channel.enable()
        self._channel.start()

    # Processes.

    def _new_process(self, *, hold: int) -> None:
        connected = self._ledger.connected
        self._port = Port(self._interrupt, ram=self._arena.ram)
        self._server = Server(self._ledger, self._boundary, hold=hold, restored_open=connected)
        self._channel = ServerChannel(self._port)
        self._server.configure(self._channel)
        self._channel.set_transaction_quota(self._quota)
        if connected:
            self._port.at_offer = lambda channel: channel.port_restored(*self._arena.host_ends())

    def _interrupt(self) -> None:
        self._guest.irq = True

    def _ring_doorbell(self) -> None:
        self._doorbell = True

    # The run.

    def play(self, run: Run) -> list[int]:
        """Play a run to its end; returns, for each step, its points beyond the one before it.

        Raises :class:`Violation`.
        """
        points: list[int] = []
        cuts: list[Cut] = []
        try:
            for item in run:
                if isinstance(item, Cut):
                    cuts.append(item)
                    continue
                for cut in cuts[:-1]:
                    self._save_and_restore(cut)
                points.append(self._step(item, cuts[-1] if cuts else None))
                cuts.clear()
            for cut in cuts:
                self._save_and_restore(cut)
            self._finish()
        except Violation:
            raise
        except Exception as error:
            raise Violation(Symptom.CRASH, f"{type(error).__name__}: {error}") from error
        return points

    def _step(self, step: Step, cut: Cut | None) -> int:
        if cut is not None and not cut.after:
            self._save_and_restore(cut)
            cut = None
        guest = self._guest
        walk: Walk[None] | None = None
        match step.op:
            case Op.ASK:
                count, filler, wants = step.args
                walk = guest.ask(count, filler, bool(wants))
            case Op.BATCH:
                count, filler, wants = step.args
                walk = guest.batch(count, filler, bool(wants))
            case Op.EXTERNAL:
                walk = guest.external(*step.args)
            case Op.INTERRUPT:
                walk = guest.interrupt()
            case Op.READ:
                walk = guest.read(*step.args)
            case Op.MASK:
                walk = guest.mask()
            case Op.UNMASK:
                walk = guest.unmask()
            case Op.ANSWER:
                walk = guest.answer(*step.args)
            case _:
                return self._host_step(step, cut)
        return self._guest_step(walk, cut) if self._ledger.connected else 0

    def _guest_step(self, walk: Walk[None], cut: Cut | None = None) -> int:
        accesses = 0
        for _ in walk:
            accesses += 1
            if cut is not None and cut.after == accesses:
                self._save_and_restore(cut)
                cut = None
        if cut is not None:
            self._save_and_restore(cut)
        return accesses

    def _host_step(self, step: Step, cut: Cut | None) -> int:
        self._end_lateness()
        self._cut, self._callbacks, self._frozen = cut, 0, None
        self._host_does(step)
        callbacks, self._cut = self._callbacks, None
        if cut is not None:
            if self._frozen not in (None, self._arena.copy()):
                raise Violation(Symptom.MEMORY, "guest memory was written after the pause ended")
            self._save_and_restore(cut)
        return callbacks

    def _boundary(self) -> None:
        """A callback of the VSP ends; pause here if that is the cut."""
        if self._channel.in_a_callback:
            # EvtPostStarted and the like: no pause is allowed.
            return
        self._callbacks += 1
        if self._cut is not None and self._cut.after == self._callbacks:
            self._channel.pause(self._paused_in_step)

    def _paused_in_step(self) -> None:
        if self._server.held:
            raise Violation(Symptom.STATUS, "VmbChannelPause ended while the VSP held packets")
        self._frozen = self._arena.copy()

    def _host_does(self, step: Step) -> None:
        channel, server, args = self._channel, self._server, step.args
        match step.op:
            case Op.OPEN:
                self._open(args[0] * 8)
            case Op.CLOSE:
                self._close()
            case Op.DOORBELL:
                if self._doorbell:
                    self._doorbell_arrives(args[0])
            case Op.SPURIOUS:
                self._doorbell_arrives(1)
            case Op.TURN:
                self._port.take_turn()
            case Op.SEND:
                for _ in range(args[0]):
                    if server.may_send:
                        server.send(channel, args[1], bool(args[2]))
            case Op.HOLD:
                server.hold = args[0]
            case Op.COMPLETE:
                server.complete(args[0])
            case Op.FAIL:
                server.fail()
            case Op.QUOTA:
                self._quota = args[0]
                channel.set_transaction_quota(self._quota)
            case Op.PAUSE:
                self._vsp_paused = True
                self._pause()
            case Op.START:
                if self._vsp_paused:
                    self._vsp_paused = False
                    self._start()
            case (
                Op.ASK
                | Op.BATCH
                | Op.EXTERNAL
                | Op.INTERRUPT
                | Op.READ
                | Op.MASK
                | Op.UNMASK
                | Op.ANSWER
            ):
                raise AssertionError("a step of the guest")
            case _:
                assert_never(step.op)

    def _doorbell_arrives(self, times: int) -> None:
        self._doorbell = False
        stands_still = self._channel.queue is Queue.OFF
        before = self._arena.copy() if stands_still else None
        for _ in range(times):
            self._channel.port_interrupt()
        if stands_still and self._arena.copy() != before:
            raise Violation(Symptom.MEMORY, "guest memory was written while the channel is paused")

    def _open(self, offset: int) -> None:
        if self._ledger.connected:
            return
        self._guest.open(*self._arena.rings(), offset)
        self._ledger.opens()
        status = self._channel.port_opened(*self._arena.host_ends())
        if status is not NtStatus.SUCCESS:
            raise Violation(Symptom.STATUS, f"the open ended with {status.name}")
        self._check_runs()

    def _close(self) -> None:
        if not self._ledger.connected:
            return
        self._ledger.closing()
        self._wait_for("the guest's close", self._channel.port_closed)
        if self._server.phase != "closed":
            raise Violation(Symptom.CALLBACK, "EvtClosed did not run")
        self._guest.closed()
        self._doorbell = False
        self._arena.swap()
        self._frozen = None

    # Pause, save, restore, start.

    def _pause(self) -> None:
        self._wait_for("VmbChannelPause", self._channel.pause)
        if self._server.phase not in ("closed", "opened", "suspended"):
            raise Violation(Symptom.CALLBACK, "EvtSuspend did not run")

    def _wait_for(self, what: str, call: Callable[[Callable[[], None]], None]) -> None:
        """Make a call that ends when the VSP holds nothing, and complete what it holds by turns."""
        ends: list[int] = []
        call(lambda: ends.append(len(self._server.held)))
        while not ends:
            if self._server.held:
                self._server.complete(0)
            elif not self._port.take_turn():
                raise Violation(Symptom.STUCK, f"{what} does not end, and the VSP holds nothing")
        if ends != [0]:
            raise Violation(Symptom.STATUS, f"{what} ended while the VSP held packets: {ends}")

    def _start(self) -> None:
        self._channel.start()
        self._check_runs()

    def _check_runs(self) -> None:
        # A cut can have paused it within the callbacks of the start.
        wanted = self._ledger.connected and self._channel.run is KmclRun.STARTED
        if wanted and self._server.phase != "running":
            raise Violation(
                Symptom.CALLBACK, f"the channel was started and the VSP is {self._server.phase}"
            )

    def _end_lateness(self) -> None:
        if self._late:
            self._late = False
            if self._doorbell:
                # It comes to a channel that was not started, which has to look for itself then.
                self._doorbell_arrives(1)
            self._start()

    def _save_and_restore(self, cut: Cut) -> None:
        self._pause()
        frozen = self._arena.copy()
        if cut.mode is Mode.ABORT:
            self._channel.save_begin()
            self._channel.save_continue(random.Random(cut.sizes).randrange(2000))
            self._channel.save_end()
        pieces = save(self._channel, cut.sizes)
        if self._arena.copy() != frozen:
            raise Violation(Symptom.MEMORY, "guest memory was written during the save")
        match cut.mode:
            case Mode.RESTORE | Mode.ABORT | Mode.LATE:
                pass
            case Mode.CHECKPOINT:
                if not (self._vsp_paused or self._late):
                    self._start()
                return
            case Mode.DOUBLE:
                self._restore(pieces, frozen)
                again = save(self._channel, cut.sizes)
                if again != pieces:
                    raise Violation(Symptom.BYTES, "a save after a restore differs from the first")
            case Mode.TWICE:
                self._restore_and_kill(pieces, frozen)
            case Mode.REFUSED:
                self._refuse(frozen, cut.sizes)
            case _:
                assert_never(cut.mode)
        match cut.signals:
            case Signals.LOST:
                self._doorbell = self._guest.irq = False
            case Signals.KEPT:
                pass
            case Signals.SPURIOUS:
                self._doorbell = self._guest.irq = True
            case _:
                assert_never(cut.signals)
        self._restore(pieces, frozen)
        if cut.mode is Mode.LATE:
            self._late = not self._vsp_paused
        elif not self._vsp_paused:
            self._late = False
            self._start()

    def _restore(self, pieces: list[bytes], frozen: tuple[bytes, bytes]) -> None:
        """Restore in a new process; nothing is started."""
        self._new_process(hold=self._server.hold)
        self._channel.enable()
        restore(self._channel, pieces)
        forgotten = self._ledger.in_use.keys() - set(self._server.restored)
        if forgotten:
            raise Violation(Symptom.LOST, f"packets {sorted(forgotten)} were not restored")
        self._check_untouched(frozen)

    def _check_untouched(self, frozen: tuple[bytes, bytes]) -> None:
        allowed = self._arena.host_words() if self._ledger.connected else set()
        if surplus := set(self._arena.words(frozen)) - allowed:
            raise Violation(
                Symptom.MEMORY, f"the restore wrote to guest memory at {sorted(surplus)[:4]}"
            )

    def _restore_and_kill(self, pieces: list[bytes], frozen: tuple[bytes, bytes]) -> None:
        """Restore and start, and then go back to the snapshot as if that had never been."""
        ledger, signals = self._ledger.snapshot(), (self._doorbell, self._guest.irq)
        self._restore(pieces, frozen)
        if not self._vsp_paused:
            self._start()
            self._server.complete(2)
        self._go_back(frozen, ledger, signals)

    def _refuse(self, frozen: tuple[bytes, bytes], seed: int) -> None:
        """Restore a damaged stream: a failure, and a channel that can only be disabled."""
        ledger, signals = self._ledger.snapshot(), (self._doorbell, self._guest.irq)
        pieces = damage(save(self._channel, 0), random.Random(f"damage {seed}"))
        self._new_process(hold=self._server.hold)
        channel = self._channel
        channel.enable()
        statuses: list[NtStatus] = []
        for piece in pieces:
            statuses.append(channel.restore_from_buffer(piece))
            if statuses[-1] is not NtStatus.MORE_PROCESSING_REQUIRED:
                break
        if NtStatus.SUCCESS in statuses:
            raise Violation(Symptom.STATUS, "a damaged stream was restored")
        try:
            channel.start()
        except KmclError:
            pass
        else:
            raise Violation(Symptom.STATUS, "a channel whose restore failed could be started")
        self._check_untouched(frozen)
        # What was not restored this process does not know of; what was has to end with it.
        restored = self._server.restored
        self._ledger.in_use = {number: self._ledger.in_use[number] for number in restored}
        self._ledger.closing()
        self._disable()
        if left := sorted(self._ledger.in_use):
            raise Violation(Symptom.LOST, f"packets {left} did not end with the channel")
        self._server.check_leaks(channel)
        self._go_back(frozen, ledger, signals)

    def _go_back(
        self, frozen: tuple[bytes, bytes], ledger: dict[str, Any], signals: tuple[bool, bool]
    ) -> None:
        self._arena.put_back(frozen)
        self._ledger.put_back(ledger)
        self._doorbell, self._guest.irq = signals

    def _disable(self) -> None:
        self._wait_for("VmbChannelDisable", self._channel.disable)

    # The end.

    def _finish(self) -> None:
        """Let everybody come to rest, moving only when signalled, and compare the books."""
        self._end_lateness()
        if self._vsp_paused:
            self._vsp_paused = False
            self._start()
        self._rest()
        if left := self._left():
            self._doorbell = self._guest.irq = True
            self._rest()
            symptom = Symptom.LOST if self._left() else Symptom.STUCK
            raise Violation(symptom, left)
        stats = self._channel.stats()
        busy = stats.held, stats.queued_wait, stats.queued_no_wait, stats.queued_completions
        if self._ledger.connected and any(busy):
            raise Violation(Symptom.LEAK, f"at rest there are {stats}")
        if (self._channel.fault is not None) is not self._ledger.failed:
            raise Violation(Symptom.STATUS, f"the channel's fault is {self._channel.fault}")
        self._arena.check(self._ledger)
        if self._channel.queue is Queue.ON:
            self._pause()
        self._ledger.closing()
        self._disable()
        if self._ledger.in_use:
            raise Violation(
                Symptom.LOST, f"the routines of {sorted(self._ledger.in_use)} did not run"
            )
        self._server.check_leaks(self._channel)

    def _left(self) -> str:
        left = self._ledger.left()
        if not left and self._guest.waits_for_room and not self._ledger.failed:
            left = "the guest still waits for room in a ring that is empty"
        return left

    def _rest(self) -> None:
        for _ in range(REST_LIMIT):
            self._server.complete(2)
            if self._doorbell:
                self._doorbell_arrives(1)
            elif self._port.take_turn():
                pass
            elif self._ledger.connected and (self._guest.irq or self._guest.scheduled):
                self._guest_step(self._guest.interrupt())
            elif self._guest.owes:
                self._guest_step(self._guest.answer(2))
            elif not self._server.held:
                return
        raise Violation(Symptom.STUCK, "the parties signal each other for ever")
