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

Sub-channels. The primary's pause, save and start are those of its sub-channel; each has its own
stream. Where Pause waits for the guest's answers (``pause=outgoing-too``) the guest, stopped in the
middle of a step, goes on until it is over: the restore is later then than where the cut is.

At rest nobody has anything to do: no signal is on its way, nobody is scheduled. Work that is left
then is lost, or, if a signal out of nowhere would set it going, a wake-up is.
"""

from __future__ import annotations

import random
from collections.abc import Callable, Sequence
from typing import assert_never

from emulator.conformance.ledger import Symptom, Violation
from emulator.conformance.line import Line
from emulator.conformance.saving import damage
from emulator.conformance.server import Arena, Copy
from emulator.conformance.steps import Cut, Mode, Op, Run, Setup, Step, With
from emulator.conformance.walker import Walk
from emulator.kmcl import KmclError, Queue
from emulator.kmcl.inferred import PauseWaitsFor, PendingPacket, UnknownCompletion, UnrestoredPacket
from emulator.wire.ntstatus import NtStatus

REST_LIMIT = 20_000
"""Moves after which a run that does not come to rest never will."""


class Play:
    """A run; :meth:`play` plays it once."""

    def __init__(self, arenas: Sequence[Arena], setup: Setup) -> None:
        """Make a guest, and a channel that is offered and started.

        The first of ``arenas`` is for the primary, the second for its sub-channel.
        """
        self._arenas = arenas
        self._setup = setup
        self._late = False
        self._cut: Cut | None = None
        self._callbacks = 0
        self._frozen: list[Copy] | None = None
        self._walk: Walk[None] | None = None
        self._primary = self._line = Line(arenas[0], setup, self._boundary, None)
        self._lines = [self._primary]
        self._primary.channel.enable()
        self._primary.channel.start()

    def _choose_line(self, which: int) -> None:
        if which and len(self._lines) == 1:
            self._lines.append(Line(self._arenas[1], self._setup, self._boundary, self._primary))
        self._line = self._lines[which]

    @property
    def _patient(self) -> bool:
        return self._setup.inferred.pause is PauseWaitsFor.OUTGOING_TOO

    @property
    def _live(self) -> list[Line]:
        return [line for line in self._lines if line.live]

    # The run.

    def play(self, run: Run) -> list[int]:
        """Play a run to its end; returns, for each step, its points beyond the one before it.

        Raises :class:`Violation`.
        """
        points: list[int] = []
        cuts: list[Cut] = []
        try:
            for item in run:
                match item:
                    case With():
                        pass
                    case Cut():
                        cuts.append(item)
                    case Step():
                        for cut in cuts[:-1]:
                            self._save_and_restore(cut)
                        points.append(self._step(item, cuts[-1] if cuts else None))
                        cuts.clear()
                    case _:
                        assert_never(item)
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
        guest = self._line.guest
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
            case Op.STRAY:
                if self._setup.inferred.unknown is UnknownCompletion.FAULT:
                    return 0
                walk = guest.stray()
            case _:
                return self._host_step(step, cut)
        return self._guest_step(self._line, walk, cut) if self._line.ledger.connected else 0

    def _guest_step(self, line: Line, walk: Walk[None], cut: Cut | None = None) -> int:
        accesses = 0
        for _ in walk:
            accesses += 1
            if cut is not None and cut.after == accesses:
                self._walk = walk
                self._save_and_restore(cut)
                self._walk = cut = None
                if not line.ledger.connected:
                    # Its channel was rescinded: FORCE_NEW_CHANNEL.
                    return accesses
        if cut is not None:
            self._save_and_restore(cut)
        return accesses

    def _host_step(self, step: Step, cut: Cut | None) -> int:
        self._end_lateness()
        self._cut, self._callbacks, self._frozen = cut, 0, None
        self._host_does(step)
        callbacks, self._cut = self._callbacks, None
        if cut is not None:
            if self._frozen not in (None, [line.arena.copy() for line in self._live]):
                raise Violation(Symptom.MEMORY, "guest memory was written after the pause ended")
            self._save_and_restore(cut)
        return callbacks

    def _boundary(self) -> None:
        """A callback of the VSP ends; pause here if that is the cut."""
        if any(line.channel.in_a_callback for line in self._lines):
            # EvtPostStarted and the like: no pause is allowed.
            return
        self._callbacks += 1
        if self._cut is not None and self._cut.after == self._callbacks:
            self._primary.channel.pause(self._paused_in_step)

    def _paused_in_step(self) -> None:
        if any(line.server.held for line in self._lines):
            raise Violation(Symptom.STATUS, "VmbChannelPause ended while the VSP held packets")
        self._frozen = [line.arena.copy() for line in self._live]

    def _host_does(self, step: Step) -> None:
        line, args = self._line, step.args
        channel, server = line.channel, line.server
        match step.op:
            case Op.LINE:
                self._choose_line(args[0])
            case Op.OPEN:
                self._open(line, args[0] * 8)
            case Op.CLOSE:
                self._close(line)
            case Op.DOORBELL:
                if line.doorbell:
                    line.doorbell_arrives(args[0])
            case Op.SPURIOUS:
                line.doorbell_arrives(1)
            case Op.TURN:
                line.port.take_turn()
            case Op.SEND:
                for _ in range(args[0]):
                    if line.live and server.may_send:
                        server.send(channel, args[1], bool(args[2]))
            case Op.HOLD:
                server.hold = args[0]
            case Op.COMPLETE:
                server.complete(args[0])
            case Op.FAIL:
                server.fail()
            case Op.QUOTA:
                line.set_quota(args[0])
            case Op.PAUSE:
                if line.live:
                    line.paused = True
                    self._pause(line)
            case Op.START:
                if line.paused and (line is self._primary or not self._primary.paused):
                    self._start(line)
            case Op.DEFER:
                server.deferring = args[0]
            case Op.RAM:
                line.set_ram(bool(args[0]))
            case Op.GPADL:
                line.make_gpadl()
            case Op.MAP:
                if line.ledger.gpadl:
                    server.map(channel, "r" if args[0] else "w")
            case Op.TOUCH:
                server.touch()
            case Op.UNMAP:
                server.unmap(channel, for_good=True)
            case Op.TEARDOWN:
                line.tear_down()
            case (
                Op.ASK
                | Op.BATCH
                | Op.EXTERNAL
                | Op.INTERRUPT
                | Op.READ
                | Op.MASK
                | Op.UNMASK
                | Op.ANSWER
                | Op.STRAY
            ):
                raise AssertionError("a step of the guest")
            case _:
                assert_never(step.op)

    def _open(self, line: Line, offset: int) -> None:
        if line.ledger.connected:
            return
        if not line.live:
            # The VSP offers its sub-channel when it is wanted, and its primary is open.
            if not self._primary.ledger.connected:
                return
            line.new_process(hold=line.server.hold)
            line.channel.enable()
            line.paused = False
            if not self._primary.paused:
                line.channel.start()
        line.open(offset)

    def _close(self, line: Line) -> None:
        if not line.ledger.connected:
            return
        closing = self._family(line)
        was_connected = [each for each in closing if each.ledger.connected]
        for each in closing:
            each.ledger.closing()
        self._wait_for("the guest's close", closing, line.channel.port_closed)
        for each in was_connected:
            each.has_closed()
        for each in closing:
            if each is not line:
                each.check_disabled()
                each.ledger.abandoned()
        self._frozen = None

    # Pause, save, restore, start.

    def _pause(self, line: Line) -> None:
        family = self._family(line)
        self._wait_for("VmbChannelPause", family, line.channel.pause)
        for each in family:
            each.check_paused()

    def _family(self, line: Line) -> list[Line]:
        """Return the line, and, of the primary, its sub-channel."""
        return [each for each in self._live if each is line or each.primary is line]

    def _wait_for(
        self, what: str, lines: list[Line], call: Callable[[Callable[[], None]], None]
    ) -> None:
        """Make a call that ends when the VSP holds nothing, and complete what it holds by turns."""
        ends: list[int] = []
        call(lambda: ends.append(sum(len(line.server.held) for line in lines)))
        for _ in range(REST_LIMIT):
            if ends or not (self._host_moves() or self._guest_lets_it_end()):
                break
        if not ends:
            raise Violation(Symptom.STUCK, f"{what} does not end, and the VSP holds nothing")
        if ends != [0]:
            raise Violation(Symptom.STATUS, f"{what} ended while the VSP held packets: {ends}")

    def _host_moves(self) -> bool:
        waits = self._setup.inferred.pending is PendingPacket.HELD or self._patient
        for line in self._lines:
            if line.server.held:
                line.server.complete(0)
                return True
            if waits:
                # Pause waits for the memory, or for answers behind it, so it comes.
                line.set_ram(True)
            if line.port.take_turn():
                return True
        return False

    def _guest_lets_it_end(self) -> bool:
        """Have the guest go on, if a pause may wait for that."""
        if not self._patient:
            return False
        if self._walk is not None:
            walk, self._walk = self._walk, None
            for _ in walk:
                pass
            return True
        return any(line.moves() for line in self._live)

    def _start(self, line: Line) -> None:
        line.channel.start()
        for each in self._family(line):
            each.paused = False
            each.check_runs()

    def _end_lateness(self) -> None:
        if self._late:
            self._late = False
            for line in self._live:
                if line.doorbell:
                    # It comes to a channel that was not started, which has to look for itself then.
                    line.doorbell_arrives(1)
            self._start(self._primary)

    def _save_and_restore(self, cut: Cut) -> None:
        self._pause(self._primary)
        live = self._live
        if cut.sizes % 2:
            # The others forget, and are gone with the process.
            for line in live:
                line.server.unmap(line.channel, for_good=False)
        frozen = [line.arena.copy() for line in live]
        if cut.mode is Mode.ABORT:
            for line in live:
                line.channel.save_begin()
                line.channel.save_continue(random.Random(cut.sizes).randrange(2000))
                line.channel.save_end()
        streams = [line.save(cut.sizes) for line in live]
        if [line.arena.copy() for line in live] != frozen:
            raise Violation(Symptom.MEMORY, "guest memory was written during the save")
        # A channel that is offered anew has nothing to be restored twice, or wrongly.
        anew = self._setup.force_new and cut.mode in (Mode.DOUBLE, Mode.TWICE, Mode.REFUSED)
        mode = Mode.RESTORE if anew else cut.mode
        match mode:
            case Mode.RESTORE | Mode.ABORT | Mode.LATE:
                pass
            case Mode.CHECKPOINT:
                for line in live:
                    line.map_again()
                if not (self._primary.paused or self._late):
                    self._start(self._primary)
                return
            case Mode.DOUBLE:
                self._restore(live, streams, frozen)
                first, streams = streams, [line.save(cut.sizes) for line in live]
                frozen = [line.arena.copy() for line in live]
                drops = self._setup.inferred.unrestored is UnrestoredPacket.DROPPED
                if streams != first and not drops:
                    raise Violation(Symptom.BYTES, "a save after a restore differs from the first")
            case Mode.TWICE:
                self._restore_and_kill(live, streams, frozen)
            case Mode.REFUSED:
                self._refuse(frozen[0], cut.sizes)
            case _:
                assert_never(mode)
        for line in live:
            line.signals_come(cut.signals)
        self._restore(live, streams, frozen)
        if cut.mode is Mode.LATE:
            self._late = not self._primary.paused
        elif not self._primary.paused:
            self._late = False
            self._start(self._primary)

    def _restore(
        self, lines: list[Line], streams: list[list[bytes] | None], frozen: list[Copy]
    ) -> None:
        """Restore in a new process; nothing is started."""
        for line, stream, memory in zip(lines, streams, frozen, strict=True):
            if line.primary is not None and not line.primary.ledger.connected:
                # It was offered while its primary was open, and that is offered anew.
                line.rescinded()
                line.new_process(hold=line.server.hold)
            else:
                line.restore(stream, memory)

    def _restore_and_kill(
        self, lines: list[Line], streams: list[list[bytes] | None], frozen: list[Copy]
    ) -> None:
        """Restore and start, and then go back to the snapshot as if that had never been."""
        moments = [line.moment() for line in lines]
        self._restore(lines, streams, frozen)
        if not self._primary.paused:
            self._primary.channel.start()
            for line in lines:
                line.check_runs()
                line.server.complete(2)
        for line, moment in zip(lines, moments, strict=True):
            line.go_back(moment)

    def _refuse(self, frozen: Copy, seed: int) -> None:
        """Restore a damaged stream: a failure, and a channel that can only be disabled."""
        line = self._primary
        pieces = line.save(0)
        if pieces is None:
            return
        moment = line.moment()
        line.new_process(hold=line.server.hold)
        channel = line.channel
        channel.enable()
        statuses: list[NtStatus] = []
        for piece in damage(pieces, random.Random(f"damage {seed}")):
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
        line.check_untouched(frozen)
        # What was not restored this process does not know of; what was has to end with it.
        books = line.ledger
        books.in_use = {number: books.in_use[number] for number in line.server.restored}
        books.closing()
        books.torn_down = False
        self._wait_for("VmbChannelDisable", [line], channel.disable)
        line.check_disabled()
        line.go_back(moment)

    # The end.

    def _finish(self) -> None:
        """Let everybody come to rest, moving only when signalled, and compare the books."""
        self._end_lateness()
        for line in self._live:
            if line.paused:
                self._start(line)
        self._rest()
        if left := self._left():
            for line in self._live:
                line.doorbell = line.guest.irq = 1
            self._rest()
            symptom = Symptom.LOST if self._left() else Symptom.STUCK
            raise Violation(symptom, left)
        live = self._live
        for line in live:
            line.check_at_rest()
        if self._primary.channel.queue is Queue.ON:
            self._pause(self._primary)
        for line in live:
            line.ledger.closing()
        self._wait_for("VmbChannelDisable", live, self._primary.channel.disable)
        for line in live:
            line.check_disabled()

    def _left(self) -> str:
        return ", ".join(filter(None, (line.left() for line in self._live)))

    def _rest(self) -> None:
        for _ in range(REST_LIMIT):
            for line in self._live:
                line.set_ram(True)
                line.server.complete(2)
            if not any(line.moves() for line in self._live) and not any(
                line.server.held for line in self._live
            ):
                return
        raise Violation(Symptom.STUCK, "the parties signal each other for ever")
