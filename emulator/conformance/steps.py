# SPDX-License-Identifier: MIT
"""The steps of an explored run, as values and as text; :mod:`.drawing` draws them from a seed.

A run is a list of :class:`With`, :class:`Step` and :class:`Cut`. What the run is played with comes
first. A cut is where the machine is saved and restored: within the step that follows it. Any part
of a run is a run again, because a step that cannot be done (complete, with nothing held) does
nothing: that is what lets a failing run be made shorter.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from enum import Enum
from typing import Final

from emulator.kmcl.inferred import DEFAULTS, Inferred, parse_inferred


class BadRun(ValueError):
    """The text of a run, or of a point in one, that a user gave is not one."""


class Mode(Enum):
    """What is done at a restore point. All of it happens while the virtual CPU stands still."""

    RESTORE = "restore"
    """Save, end the process, restore in a new one, start."""
    DOUBLE = "double"
    """Save, restore, save again before the start, restore that. Both streams must be the same."""
    TWICE = "twice"
    """Restore, start and let the host run, kill it, and restore the same snapshot once more."""
    LATE = "late"
    """Restore, and let the guest run before the channel is started."""
    CHECKPOINT = "checkpoint"
    """Save, and go on in the same process."""
    ABORT = "abort"
    """End a save before it is complete, then save anew and restore that."""
    REFUSED = "refused"
    """Restore a damaged stream, which must fail cleanly, then the good one in another process."""


class Signals(Enum):
    """What becomes of interrupts and doorbells that were on their way at the save."""

    LOST = "lost"
    KEPT = "kept"
    SPURIOUS = "spurious"
    """Both parties are signalled, whether there is anything or not."""
    DOUBLED = "doubled"
    """Both parties are signalled twice."""


class Op(Enum):
    """What a step does."""

    OPEN = "open"
    """Guest: open on new rings, whose indices begin at 8 times the argument."""
    CLOSE = "close"
    """Guest: close."""
    ASK = "ask"
    """Guest: write requests (count, filler bytes, whether each asks for a completion)."""
    BATCH = "batch"
    """Guest: the same, published with one index write."""
    EXTERNAL = "external"
    """Guest: write a GPA-direct request for that many bytes of RAM."""
    INTERRUPT = "interrupt"
    """Guest: take the interrupt, read all there is, write what waited for room."""
    READ = "read"
    """Guest: read up to that many packets without an interrupt."""
    MASK = "mask"
    """Guest: ask for no interrupts, and be scheduled to read later."""
    UNMASK = "unmask"
    """Guest: ask for interrupts again; stay scheduled if there is something to read."""
    ANSWER = "answer"
    """Guest: complete host packets: 0 the oldest, 1 the newest, 2 all."""
    DOORBELL = "doorbell"
    """Host: the doorbell arrives, if it rang, that many times."""
    SPURIOUS = "spurious"
    """Host: a doorbell arrives that nobody rang."""
    TURN = "turn"
    """Host: a channel that stopped after its share of packets has another turn."""
    SEND = "send"
    """VSP: send packets (count, filler bytes, whether each waits for a completion)."""
    HOLD = "hold"
    """VSP: answer requests at once (0), or hold them, till EvtSuspend (1) or past it (2)."""
    COMPLETE = "complete"
    """VSP: complete held requests: 0 the oldest, 1 the newest, 2 all."""
    FAIL = "fail"
    """VSP: fail the oldest held request, which stops the queue."""
    QUOTA = "quota"
    """VSP: set the transaction quota."""
    PAUSE = "pause"
    """VSP: pause the channel, while the guest may go on."""
    START = "start"
    """VSP: start it again."""
    LINE = "line"
    """The steps from here on are of the primary channel (0) or of its sub-channel (1)."""
    DEFER = "defer"
    """VSP: defer each of the next requests to PASSIVE_LEVEL, that many."""
    RAM = "ram"
    """Provider: the memory of GPA-direct requests is not there (0: PENDING), or is again (1)."""
    STRAY = "stray"
    """Guest: complete a transaction that nobody has begun (with ``unknown=dropped`` only)."""
    GPADL = "gpadl"
    """Guest: make a GPADL of a page beside the rings, if it has none."""
    MAP = "map"
    """VSP: map that GPADL, for reading and writing (0) or for reading only (1)."""
    TOUCH = "touch"
    """VSP: read the mapped page, and write it, or be refused."""
    UNMAP = "unmap"
    """VSP: unmap it."""
    TEARDOWN = "teardown"
    """Guest: ask for the pages of the GPADL back."""


_COUNT, _FILLER, _FLAG, _WHICH = (1, 80), (0, 2500), (0, 1), (0, 2)

ARGUMENTS: Final[dict[Op, tuple[tuple[int, int], ...]]] = {
    Op.OPEN: ((0, 511),),
    Op.CLOSE: (),
    Op.ASK: (_COUNT, _FILLER, _FLAG),
    Op.BATCH: ((1, 8), _FILLER, _FLAG),
    Op.EXTERNAL: ((1, 2048),),
    Op.INTERRUPT: (),
    Op.READ: ((1, 16),),
    Op.MASK: (),
    Op.UNMASK: (),
    Op.ANSWER: (_WHICH,),
    Op.DOORBELL: ((1, 3),),
    Op.SPURIOUS: (),
    Op.TURN: (),
    Op.SEND: ((1, 16), _FILLER, _FLAG),
    Op.HOLD: (_WHICH,),
    Op.COMPLETE: (_WHICH,),
    Op.FAIL: (),
    Op.QUOTA: ((1, 1024),),
    Op.PAUSE: (),
    Op.START: (),
    Op.LINE: (_FLAG,),
    Op.DEFER: ((1, 3),),
    Op.RAM: (_FLAG,),
    Op.STRAY: (),
    Op.GPADL: (),
    Op.MAP: (_FLAG,),
    Op.TOUCH: (),
    Op.UNMAP: (),
    Op.TEARDOWN: (),
}
"""Least and greatest value of each argument."""

FLAGS: Final = ("pipe", "force-new")
"""The words of :class:`With` that are no switches."""


@dataclass(frozen=True, slots=True)
class Step:
    """Something that a party does; ``args`` as in :data:`ARGUMENTS`."""

    op: Op
    args: tuple[int, ...] = ()

    def __str__(self) -> str:
        return " ".join([self.op.value, *map(str, self.args)])


@dataclass(frozen=True, slots=True)
class Cut:
    """Save and restore within the next step.

    ``after`` counts from 0, before the step. In a step of the guest, N is after its Nth access to a
    control page; in one of the host, at the end of the Nth callback to the VSP. A step with fewer
    is cut at its end. ``sizes`` is the seed of the save's buffer sizes; with 0 each buffer is as
    small as can be, which gives a buffer a chunk.
    """

    after: int
    mode: Mode = Mode.RESTORE
    signals: Signals = Signals.LOST
    sizes: int = 0

    def __str__(self) -> str:
        return f"cut {self.after} {self.mode.value} {self.signals.value} {self.sizes}"


@dataclass(frozen=True, slots=True)
class With:
    """What a whole run is played with: ``pipe``, ``force-new``, or a switch and its reading."""

    word: str

    def __str__(self) -> str:
        return f"with {self.word}"


Item = With | Step | Cut
Run = Sequence[Item]


@dataclass(frozen=True, slots=True)
class Setup:
    """What the :class:`With` items of a run come to."""

    pipe: bool = False
    """VMBUS_CHANNEL_INIT_FLAG_IS_PIPE."""
    force_new: bool = False
    """VMBUS_SERVER_CHANNEL_INIT_FLAG_FORCE_NEW_CHANNEL."""
    inferred: Inferred = DEFAULTS


def setup_of(run: Run) -> Setup:
    """Gather the settings of a run; raises :class:`BadRun` for a word that is none."""
    words = [item.word for item in run if isinstance(item, With)]
    try:
        inferred = parse_inferred(word for word in words if word not in FLAGS)
    except ValueError as error:
        raise BadRun(f"{error}; or {' or '.join(FLAGS)}") from None
    return Setup("pipe" in words, "force-new" in words, inferred)


def steps_of(run: Run) -> list[Step]:
    """Return the steps of a run alone."""
    return [item for item in run if isinstance(item, Step)]


def format_run(run: Run) -> str:
    """Write a run as :func:`parse_run` reads it."""
    return "; ".join(map(str, run))


def parse_run(text: str) -> list[Item]:
    """Read a run: steps and cuts with ``;`` between them; raises :class:`BadRun`."""
    run = [_parse_step(part.split()) for part in text.split(";") if part.strip()]
    setup_of(run)
    return run


def _parse_step(words: list[str]) -> Item:
    text = " ".join(words)
    name, *rest = words
    if name == "with":
        if len(rest) != 1:
            raise BadRun(f"{text!r}: give one word, such as pipe or pause=outgoing-too")
        return With(rest[0])
    if name == "cut":
        if len(rest) != 4:
            raise BadRun(
                f"{text!r}: a cut has four arguments: accesses or callbacks, mode, signals, seed"
            )
        try:
            after, sizes = _number(rest[0], text), _number(rest[3], text)
            return Cut(after, Mode(rest[1]), Signals(rest[2]), sizes)
        except BadRun:
            raise
        except ValueError as error:
            modes, kinds = (", ".join(one.value for one in kind) for kind in (Mode, Signals))
            raise BadRun(f"{text!r}: {error}; modes: {modes}; signals: {kinds}") from error
    try:
        op = Op(name)
    except ValueError:
        known = ", ".join(op.value for op in Op)
        raise BadRun(
            f"{text!r}: there is no step {name!r}; the steps are: with, cut, {known}"
        ) from None
    limits = ARGUMENTS[op]
    if len(rest) != len(limits):
        raise BadRun(f"{text!r}: {name} has {len(limits)} arguments, here are {len(rest)}")
    args = tuple(_number(word, text) for word in rest)
    for arg, (least, most) in zip(args, limits, strict=True):
        if not least <= arg <= most:
            raise BadRun(f"{text!r}: {arg} is not between {least} and {most}")
    return Step(op, args)


def _number(word: str, text: str) -> int:
    if not word.isdecimal():
        raise BadRun(f"{text!r}: {word!r} is not a number")
    return int(word)
