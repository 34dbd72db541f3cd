# SPDX-License-Identifier: MIT
"""The steps of an explored run, as values, as text and drawn from a seed.

A run is a list of :class:`Step` and :class:`Cut`. A cut is where the machine is saved and restored:
within the step that follows it. Any part of a run is a run again, because a step that cannot be
done (complete, with nothing held) does nothing: that is what lets a failing run be made shorter.
"""

from __future__ import annotations

import random
from collections.abc import Sequence
from dataclasses import dataclass
from enum import Enum
from typing import Final


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
}
"""Least and greatest value of each argument."""

_OFTEN: Final[dict[Op, float]] = {
    Op.OPEN: 0.8,
    Op.CLOSE: 0.3,
    Op.ASK: 4,
    Op.BATCH: 1,
    Op.EXTERNAL: 1,
    Op.INTERRUPT: 4,
    Op.READ: 1,
    Op.MASK: 0.4,
    Op.UNMASK: 0.6,
    Op.ANSWER: 2,
    Op.DOORBELL: 4,
    Op.SPURIOUS: 0.3,
    Op.TURN: 0.4,
    Op.SEND: 4,
    Op.HOLD: 1.2,
    Op.COMPLETE: 2,
    Op.FAIL: 0.6,
    Op.QUOTA: 1,
    Op.PAUSE: 0.5,
    Op.START: 0.6,
}
"""How often each is drawn, relative to the others."""

_MODES: Final[dict[Mode, float]] = {
    Mode.RESTORE: 40,
    Mode.DOUBLE: 12,
    Mode.TWICE: 12,
    Mode.LATE: 16,
    Mode.CHECKPOINT: 8,
    Mode.ABORT: 4,
    Mode.REFUSED: 8,
}

STEPS_OF_A_RUN: Final = 24
"""Steps of a drawn run, the opening counted."""


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


Run = Sequence[Step | Cut]


def draw_run(seed: int) -> tuple[Step, ...]:
    """Draw a run; the same for the same seed, on every machine."""
    rng = random.Random(f"run {seed}")
    steps = [Step(Op.OPEN, (rng.choice([0, 1, 250, 500, 508, 509, 510, 511]),))]
    ops = rng.choices(list(_OFTEN), list(_OFTEN.values()), k=STEPS_OF_A_RUN - 1)
    return (*steps, *(Step(op, _draw_arguments(op, rng)) for op in ops))


def _draw_arguments(op: Op, rng: random.Random) -> tuple[int, ...]:
    match op:
        case Op.ASK | Op.SEND:
            count = rng.choice([1, 1, 2, 3, 6])
            filler = rng.choice([0, 1, 8, 40, 200, 900, 2500])
            if op is Op.ASK and not filler:
                # Now and then more than the host reads in one go.
                count = rng.choice([1, 2, 5, 5, 5, 70])
            return (count, filler, int(rng.random() < 0.6))
        case Op.BATCH:
            return (rng.randint(2, 8), rng.choice([0, 8, 40, 300]), int(rng.random() < 0.6))
        case Op.EXTERNAL:
            return (rng.choice([1, 512, 2048]),)
        case Op.QUOTA:
            return (rng.choice([1, 2, 5, 1024]),)
        case _:
            return tuple(rng.randint(least, most) for least, most in ARGUMENTS[op])


def draw_cut(seed: int, step: int, after: int) -> Cut:
    """Draw how the machine is saved and restored at a point of a drawn run."""
    rng = random.Random(f"cut {seed} {step} {after}")
    (mode,) = rng.choices(list(_MODES), list(_MODES.values()))
    return Cut(after, mode, rng.choice(list(Signals)), rng.choice([0, rng.randint(1, 10**6)]))


def format_run(run: Run) -> str:
    """Write a run as :func:`parse_run` reads it."""
    return "; ".join(map(str, run))


def parse_run(text: str) -> list[Step | Cut]:
    """Read a run: steps and cuts with ``;`` between them; raises :class:`BadRun`."""
    return [_parse_step(part.split()) for part in text.split(";") if part.strip()]


def _parse_step(words: list[str]) -> Step | Cut:
    text = " ".join(words)
    name, *rest = words
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
        raise BadRun(f"{text!r}: there is no step {name!r}; the steps are: cut, {known}") from None
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
