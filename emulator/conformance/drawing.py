# SPDX-License-Identifier: MIT
"""Runs of the explorer, and the restores in them, drawn from seeds: the same on every machine."""

from __future__ import annotations

import random
from typing import Final

from emulator.conformance.steps import ARGUMENTS, Cut, Item, Mode, Op, Signals, Step, With
from emulator.kmcl.inferred import SWITCHES

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

_AREAS: Final[tuple[tuple[float, dict[Op, float]], ...]] = (
    (0.25, {Op.LINE: 5, Op.OPEN: 2, Op.PAUSE: 1, Op.START: 2}),
    (0.25, {Op.DEFER: 3, Op.DOORBELL: 1}),
    (0.25, {Op.RAM: 2, Op.EXTERNAL: 4, Op.DOORBELL: 1, Op.TURN: 1}),
    (0.3, {Op.GPADL: 5, Op.MAP: 6, Op.TOUCH: 3, Op.UNMAP: 1, Op.TEARDOWN: 3}),
    (0.25, {Op.QUOTA: 2, Op.HOLD: 2, Op.COMPLETE: 1}),
)
"""What only some runs have: how many, and how often there, beside :data:`_OFTEN`."""

_FLAGGED: Final = {"pipe": 0.08, "force-new": 0.08}
"""How many runs are played with what."""

_SWITCHED: Final = 0.1
"""How many runs are played with the other reading of a switch, each switch for itself."""

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


def draw_run(seed: int, given: tuple[With, ...] = ()) -> tuple[Item, ...]:
    """Draw a run; the same for the same seed, on every machine.

    It is played with ``given``, or, without, with what is drawn as well.
    """
    rng = random.Random(f"run {seed}")
    settings = given or tuple(_draw_settings(random.Random(f"with {seed}")))
    often = dict(_OFTEN)
    for share, ops in _AREAS:
        if rng.random() < share:
            for op, weight in ops.items():
                often[op] = often.get(op, 0) + weight
    if With("unknown=dropped") in settings:
        often[Op.STRAY] = 2
    drawn = rng.choices(list(often), list(often.values()), k=STEPS_OF_A_RUN - 1)
    steps = [Step(Op.OPEN, (rng.choice([0, 1, 250, 500, 508, 509, 510, 511]),))]
    return (*settings, *steps, *(Step(op, _draw_arguments(op, rng)) for op in drawn))


def _draw_settings(rng: random.Random) -> list[With]:
    words = [word for word, share in _FLAGGED.items() if rng.random() < share]
    for switch in SWITCHES:
        if rng.random() < _SWITCHED:
            words.append(f"{switch.name}={list(switch.kind)[1].value}")
    return [With(word) for word in words]


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
