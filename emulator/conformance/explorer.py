# SPDX-License-Identifier: MIT
"""Save and restore a channel at every boundary of run after run, and make a failing run short.

:func:`explore` draws runs from seeds, plays each without a restore to learn its boundaries, then
once for every boundary with a restore there, and once with a restore before each of its steps.
:func:`shrink` takes parts and arguments out of a failing run as long as it fails.
What has to hold is in :mod:`~emulator.conformance.ledger` and :mod:`~emulator.conformance.play`.
"""

from __future__ import annotations

import shlex
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Final

from emulator.conformance.drawing import draw_cut, draw_run
from emulator.conformance.ledger import Violation
from emulator.conformance.play import Play
from emulator.conformance.server import Arena
from emulator.conformance.steps import (
    ARGUMENTS,
    BadRun,
    Cut,
    Item,
    Mode,
    Run,
    Signals,
    Step,
    With,
    format_run,
    setup_of,
    steps_of,
)

COMMAND: Final = "vmbus conformance explore"
EVERYWHERE: Final = "all"
"""The name of the point that is a restore before each step."""

SHRINK_LIMIT: Final = 4000
"""Plays that making a run shorter may take: some seconds."""


@dataclass(frozen=True)
class Failure:
    """A run that broke a rule."""

    seed: int | None
    """None for a run that was given by its steps."""
    at: str
    """The restore point, ``STEP.AFTER`` or ``all``; empty for a run without one."""
    run: tuple[Item, ...]
    violation: Violation
    given: tuple[With, ...] = ()
    """What the run was to be played with, in place of what its seed draws."""

    @property
    def command(self) -> str:
        """A command that plays it again."""
        if self.seed is None:
            return f"{COMMAND} --steps {shlex.quote(format_run(self.run))}"
        given = "".join(f" --with {item.word}" for item in self.given)
        return f"{COMMAND} --seed {self.seed} --at {self.at or 'none'}{given}"


@dataclass
class Exploration:
    """What was explored."""

    runs: int = 0
    points: int = 0
    failure: Failure | None = None


def with_cut(run: Run, seed: int, at: str) -> tuple[Item, ...]:
    """Put the restore of the point ``at`` into a run; raises :class:`BadRun` for no such step."""
    settings = tuple(item for item in run if isinstance(item, With))
    steps = steps_of(run)
    if at == "none":
        return tuple(run)
    if at == EVERYWHERE:
        return settings + tuple(
            item for number, step in enumerate(steps) for item in (draw_cut(seed, number, 0), step)
        )
    number, after = _parse_point(at)
    if number >= len(steps):
        raise BadRun(f"point {at}: the run has steps 0 to {len(steps) - 1}")
    return (*settings, *steps[:number], draw_cut(seed, number, after), *steps[number:])


def _parse_point(at: str) -> tuple[int, int]:
    number, _, after = at.partition(".")
    if not (number.isdecimal() and (after or "0").isdecimal()):
        raise BadRun(
            f"point {at!r}: give STEP or STEP.AFTER, such as 12.3, or {EVERYWHERE}, or none"
        )
    return int(number), int(after or "0")


def arenas() -> list[Arena]:
    """Make the memory of a primary and of its sub-channel; one pair serves run after run."""
    return [Arena(), Arena()]


def play(run: Run, memory: Sequence[Arena] = ()) -> list[int]:
    """Play a run with the cuts that are in it; raises :class:`Violation`.

    Returns, for each step, how many points there are in it beside the one before it.
    """
    return Play(memory or arenas(), setup_of(run)).play(run)


def points_of(found: Sequence[int]) -> Iterator[str]:
    """Name the restore points of a run, from what :func:`play` returned for it."""
    for number, count in enumerate(found):
        for after in range(count + 1):
            yield f"{number}.{after}"
    # Last: what one restore does not show. A failure with one of them is easier to understand.
    yield EVERYWHERE


def explore_run(
    plain: Run,
    cut_seed: int,
    memory: Sequence[Arena],
    exploration: Exploration,
    limit: int,
    progress: Callable[[Exploration], None],
) -> tuple[str, tuple[Item, ...], Violation] | None:
    """Restore at each point of one run, until one fails or there are ``limit`` in all."""
    exploration.runs += 1
    at = ""
    run: tuple[Item, ...] = tuple(plain)
    try:
        found = play(run, memory)
        for at in points_of(found):
            if exploration.points >= limit:
                break
            run = with_cut(plain, cut_seed, at)
            play(run, memory)
            exploration.points += 1
            progress(exploration)
    except Violation as violation:
        return at, run, violation
    return None


def _nothing(_: Exploration) -> None:
    pass


def explore(
    seed: int,
    points: int,
    progress: Callable[[Exploration], None] = _nothing,
    given: tuple[With, ...] = (),
) -> Exploration:
    """Explore runs from ``seed`` on until ``points`` restores have gone well, or one has not.

    They are played with ``given``, or, without, each with what its seed draws.
    """
    memory = arenas()
    exploration = Exploration()
    while exploration.points < points:
        failed = explore_run(draw_run(seed, given), seed, memory, exploration, points, progress)
        if failed is not None:
            exploration.failure = Failure(seed, *failed, given)
            break
        seed += 1
    return exploration


def explore_steps(
    plain: Run, seed: int, progress: Callable[[Exploration], None] = _nothing
) -> Exploration:
    """Explore every point of one run that was given by its steps; ``seed`` draws the restores."""
    exploration = Exploration()
    failed = explore_run(plain, seed, arenas(), exploration, 1 << 62, progress)
    if failed is not None:
        _, run, violation = failed
        exploration.failure = Failure(None, "", run, violation)
    return exploration


def explore_one(run: Run, seed: int | None, at: str, given: tuple[With, ...] = ()) -> Exploration:
    """Play one run as it is; ``seed`` (None: it was given by its steps) and ``at`` name it."""
    exploration = Exploration(runs=1)
    try:
        play(run)
        exploration.points = sum(isinstance(item, Cut) for item in run)
    except Violation as violation:
        exploration.failure = Failure(seed, at, tuple(run), violation, given)
    return exploration


# Making a failing run short.


class _Shrinker:
    """Tries smaller runs, and keeps those that fail, with whatever symptom.

    One bug has many: what is out of order in a long run is merely lost in a short one.
    """

    def __init__(self, failure: Failure) -> None:
        self.best = list(failure.run)
        self.violation = failure.violation
        self._memory = arenas()
        self._tries = 0

    def fails(self, run: list[Item]) -> bool:
        """Play a smaller run; keep it if it fails."""
        if self._tries >= SHRINK_LIMIT:
            return False
        self._tries += 1
        try:
            play(run, self._memory)
        except Violation as violation:
            self.best, self.violation = run, violation
            return True
        return False

    def drop(self) -> bool:
        """Leave out stretches of steps, long ones first."""
        before = len(self.best)
        size = max(1, len(self.best) // 2)
        while size:
            # From the end: what is left out there changes nothing of what is before it.
            for start in range(len(self.best) - size, -size, -size):
                first = max(start, 0)
                self.fails(self.best[:first] + self.best[start + size :])
            size //= 2
        return len(self.best) < before

    def drop_pairs(self) -> bool:
        """Leave out two steps that make up for one another, such as a filler and its reader."""
        for first in range(len(self.best)):
            for second in range(first + 1, len(self.best)):
                kept = [*self.best[:first], *self.best[first + 1 : second]]
                if self.fails(kept + self.best[second + 1 :]):
                    return True
        return False

    def simplify(self) -> bool:
        """Make each argument as small, and each restore as plain, as it may be."""
        changed = False
        for index in range(len(self.best)):
            for simpler in _simpler(self.best[index]):
                if self.fails([*self.best[:index], simpler, *self.best[index + 1 :]]):
                    changed = True
                    break
        return changed


def _simpler(item: Item) -> Iterator[Item]:
    """Return simpler items, the simplest first."""
    match item:
        case With():
            # It is left out, or it matters.
            pass
        case Cut():
            if item.sizes:
                yield replace(item, sizes=0)
            if item.mode is not Mode.RESTORE:
                yield replace(item, mode=Mode.RESTORE)
            if item.signals is not Signals.LOST:
                yield replace(item, signals=Signals.LOST)
            for after in range(item.after):
                yield replace(item, after=after)
        case Step():
            for index, (arg, (least, _)) in enumerate(
                zip(item.args, ARGUMENTS[item.op], strict=True)
            ):
                for smaller in dict.fromkeys((least, least + (arg - least) // 2, arg - 1)):
                    if least <= smaller < arg:
                        args = (*item.args[:index], smaller, *item.args[index + 1 :])
                        yield replace(item, args=args)


def shrink(failure: Failure) -> Failure:
    """Return the shortest failing run that was found; the same every time."""
    shrinker = _Shrinker(failure)
    while shrinker.drop() or shrinker.simplify() or shrinker.drop_pairs():
        pass
    return Failure(None, "", tuple(shrinker.best), shrinker.violation)
