# SPDX-License-Identifier: MIT
"""One LUN at work: its unit, what is behind it, and the requests that are under way.

Here the steps of the engine become I/O. A request that could not be done at once is a
:class:`Flight` until the backend has answered. Nothing under way is ever forgotten: a reset, a
removal and the end of the channel wait until it is over, because a write that is let go of can
still reach the disk, after one that the guest makes later. What comes in meanwhile waits behind a
reset.
"""

from __future__ import annotations

import errno
import itertools
from collections import deque
from collections.abc import Callable
from typing import Final, NamedTuple

from emulator.devices.storage.backend import Backend, Done, Pieces
from emulator.devices.storage.disk import Disk
from emulator.devices.storage.dvd import Dvd
from emulator.devices.storage.options import LunOptions
from emulator.devices.storage.protocol import SrbStatus
from emulator.devices.storage.scsi import (
    BLOCK,
    CheckCondition,
    Op,
    ReservationConflict,
    ScsiStatus,
    Sense,
)
from emulator.devices.storage.steps import (
    Check,
    Compare,
    Fill,
    Flush,
    Read,
    Reply,
    Step,
    Unmap,
    Write,
    Zero,
)

_FILL_PIECE: Final = 128 * BLOCK
_CHECK_PIECE: Final = 1 << 20


class Outcome(NamedTuple):
    """How a request ended: what the SRB says of it."""

    srb_status: SrbStatus
    scsi_status: int = ScsiStatus.GOOD
    transferred: int = 0
    sense: bytes = b""


Ended = Callable[[Outcome], None]


class Flight(NamedTuple):
    """A request that the backend has."""

    cdb: bytes
    step: Step

    def __str__(self) -> str:
        name = Op(self.cdb[0]).name if self.cdb[0] in Op._value2member_map_ else self.cdb[:1].hex()
        match self.step:
            case Read() | Write() | Zero() | Fill() | Check():
                return f"{name} of {self.step.length} bytes at {self.step.offset}"
            case Compare():
                return f"{name} at {self.step.offset}"
            case Unmap() | Flush() | Reply():
                return name


def failed(sense: Sense) -> Outcome:
    """Return the outcome of a command that ends with CHECK CONDITION."""
    return Outcome(SrbStatus.ERROR, ScsiStatus.CHECK_CONDITION, 0, sense.fixed())


def first(pieces: Pieces, length: int) -> Pieces:
    """Return the first ``length`` bytes of the guest's buffer."""
    found: list[memoryview] = []
    for piece in pieces:
        if length <= 0:
            break
        found.append(piece[:length] if piece.nbytes > length else piece)
        length -= piece.nbytes
    return found


class ActiveLun:
    """A LUN that a guest can see. ``nexus`` is the name of the controller."""

    def __init__(
        self, options: LunOptions, unit: Disk | Dvd, backend: Backend | None, nexus: str
    ) -> None:
        self.options = options
        self.unit = unit
        self.backend = backend
        self._nexus = nexus
        self._flights: dict[int, Flight] = {}
        self._numbers = itertools.count()
        self._idle: deque[Callable[[], None]] = deque()
        self._behind: deque[Callable[[], None]] = deque()

    @property
    def end(self) -> int:
        """Bytes that the guest knows of a disk; 0 for a drive."""
        return self.unit.features.size if isinstance(self.unit, Disk) else 0

    @property
    def fenced(self) -> bool:
        """Whether something waits for the requests under way to end, and new ones wait for it."""
        return bool(self._idle)

    @property
    def flights(self) -> list[str]:
        """Say what is under way."""
        return [str(flight) for flight in self._flights.values()]

    def when_idle(self, then: Callable[[], None]) -> None:
        """Call ``then`` when all that is under way has ended, and before anything newer begins."""
        if not self._flights and not self._idle:
            then()
        else:
            self._idle.append(then)

    def execute(self, cdb: bytes, pieces: Pieces, data_in: bool, ended: Ended) -> None:
        """Carry a command out on the guest's buffer; ``ended`` is called once, perhaps at once.

        ``data_in``: the buffer is the guest's to be filled; otherwise what it sends. Commands that
        come while the LUN is :attr:`fenced` wait.
        """
        if self._idle:
            self._behind.append(lambda: self.execute(cdb, pieces, data_in, ended))
            return

        def data_out(most: int) -> bytes:
            return b"".join(first(pieces, most)) if not data_in else b""

        try:
            step = self.unit.execute(self._nexus, cdb, data_out)
        except CheckCondition as error:
            ended(failed(error.sense))
        except ReservationConflict:
            ended(Outcome(SrbStatus.ERROR, ScsiStatus.RESERVATION_CONFLICT))
        else:
            self.run(cdb, step, pieces, data_in, ended)

    def run(self, cdb: bytes, step: Step, pieces: Pieces, data_in: bool, ended: Ended) -> None:
        """Carry a step out."""
        room = sum(piece.nbytes for piece in pieces)
        backend = self.backend
        length = 0
        match step:
            case Reply():
                ended(_reply(step.data, pieces, room if data_in else 0))
                return
            case Read():
                length = min(step.length, room if data_in else 0)
                outcome = _moved(step.length, length)
            case Write():
                if data_in or room < step.length:
                    # Half a request is not to be written: what the guest meant is not known.
                    ended(Outcome(SrbStatus.DATA_OVERRUN, ScsiStatus.GOOD, 0))
                    return
                length = step.length
                outcome = Outcome(SrbStatus.SUCCESS, ScsiStatus.GOOD, length)
            case Flush() | Unmap() | Zero() | Fill() | Compare() | Check():
                outcome = Outcome(SrbStatus.SUCCESS, ScsiStatus.GOOD, 0 if data_in else room)
        if backend is None:
            # It waited behind a reset, and the LUN was pulled meanwhile.
            ended(Outcome(SrbStatus.INVALID_LUN))
            return
        number = next(self._numbers)
        self._flights[number] = Flight(cdb, step)

        def done(error: OSError | None) -> None:
            del self._flights[number]
            ended(outcome if error is None else _io_failed(error, step))
            if not self._flights and self._idle:
                self._fall_idle()

        _start(backend, step, first(pieces, length), done)

    def _fall_idle(self) -> None:
        while self._idle and not self._flights:
            self._idle.popleft()()
        # Those that waited come before any that comes from now on.
        behind, self._behind = self._behind, deque()
        while behind and not self._idle:
            behind.popleft()()
        self._behind.extendleft(reversed(behind))

    def begin(self, cdb: bytes, step: Read | Write, pieces: Pieces, done: Done) -> None:
        """Start a READ or WRITE that the VSP has decoded, on a buffer of its very length."""
        number = next(self._numbers)
        self._flights[number] = Flight(cdb, step)

        def over(error: OSError | None) -> None:
            del self._flights[number]
            done(error)
            if not self._flights and self._idle:
                self._fall_idle()

        assert self.backend is not None
        _start(self.backend, step, pieces, over)

    def failure(self, error: OSError, step: Step) -> Outcome:
        """Say how a request ended that the backend has failed."""
        return _io_failed(error, step)

    def close(self) -> None:
        """Let go of what is behind it; nothing is under way."""
        if self.backend is not None:
            self.backend.close()
            self.backend = None


def _start(backend: Backend, step: Step, pieces: Pieces, done: Done) -> None:
    match step:
        case Read():
            backend.read(pieces, step.offset, done)
        case Write():
            backend.write(pieces, step.offset, step.fua, done)
        case Flush():
            backend.flush(done)
        case Unmap():
            backend.unmap(step.ranges, done)
        case Zero():
            backend.zero(step.offset, step.length, step.unmap, done)
        case Fill():
            pattern = memoryview(step.block * (_FILL_PIECE // BLOCK))
            fill = [pattern] * -(-step.length // _FILL_PIECE)
            backend.write(first(fill, step.length), step.offset, False, done)
        case Compare():
            _compare(backend, step, done)
        case Check():
            scratch = memoryview(bytearray(min(step.length, _CHECK_PIECE)))
            checked = [scratch] * -(-step.length // _CHECK_PIECE)
            backend.read(first(checked, step.length), step.offset, done)
        case Reply():
            raise AssertionError("a reply needs no I/O")


class _Differs(OSError):
    """What was read is not what it was compared with."""


def _compare(backend: Backend, step: Compare, done: Done) -> None:
    found = bytearray(len(step.data))

    def read(error: OSError | None) -> None:
        done(_Differs() if error is None and found != step.data else error)

    backend.read([memoryview(found)], step.offset, read)


def _moved(wanted: int, moved: int) -> Outcome:
    status = SrbStatus.SUCCESS if moved == wanted else SrbStatus.DATA_OVERRUN
    return Outcome(status, ScsiStatus.GOOD, moved)


def _reply(data: bytes, pieces: Pieces, room: int) -> Outcome:
    position = 0
    for piece in first(pieces, min(len(data), room)):
        piece[:] = data[position : position + piece.nbytes]
        position += piece.nbytes
    return _moved(len(data), position)


def _io_failed(error: OSError, step: Step) -> Outcome:
    if isinstance(error, _Differs):
        return failed(Sense.MISCOMPARE)
    match step:
        case Read() | Check() | Compare():
            return failed(Sense.READ_ERROR)
        case _:
            no_room = error.errno in (errno.ENOSPC, errno.EDQUOT)
            return failed(Sense.SPACE_EXHAUSTED if no_room else Sense.WRITE_ERROR)
