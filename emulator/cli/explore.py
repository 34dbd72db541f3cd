# SPDX-License-Identifier: MIT
"""``vmbus conformance explore``: a restore at every boundary of run after run."""

from __future__ import annotations

import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, Annotated

import typer

if TYPE_CHECKING:
    from collections.abc import Callable

    from emulator.conformance.explorer import Exploration


def explore(
    seed: Annotated[int, typer.Option(min=0, help="the first run; the others count on")] = 0,
    points: Annotated[int, typer.Option(min=1, help="restore points to explore")] = 5000,
    at: Annotated[
        str,
        typer.Option(
            metavar="POINT",
            help="only this point of the run: STEP, STEP.AFTER, all (before each step), or none",
        ),
    ] = "",
    steps: Annotated[
        str,
        typer.Option(
            help="this run, in place of a drawn one; its cuts are the restores (--show prints one)"
        ),
    ] = "",
    given: Annotated[
        list[str] | None,
        typer.Option(
            "--with",
            metavar="WORD",
            help="play all runs with pipe, force-new, or SWITCH=READING (docs/kmcl.md), in place "
            "of what their seeds draw",
        ),
    ] = None,
    show: Annotated[bool, typer.Option("--show", help="print the run and play nothing")] = False,
) -> None:
    """Save and restore a channel at every boundary of run after run of the model guest.

    Nothing may be lost, doubled, reordered or stuck. A failure ends with the status 1, a command
    that reproduces it, and the shortest failing run that was found.
    """
    from emulator.cli.asking import fail
    from emulator.conformance import explorer
    from emulator.conformance.drawing import draw_run
    from emulator.conformance.steps import (
        BadRun,
        Cut,
        With,
        format_run,
        parse_run,
        setup_of,
        steps_of,
    )

    played_with = tuple(With(word) for word in given or ())
    try:
        setup_of(played_with)
        run = [*played_with, *parse_run(steps)] if steps else list(draw_run(seed, played_with))
        plain = [item for item in run if not isinstance(item, Cut)]
        if at and len(plain) < len(run):
            raise BadRun("these steps have cuts already; give --at or cuts, not both")
        if at:
            run = list(explorer.with_cut(plain, seed, at))
        if not steps_of(plain):
            raise BadRun("there is no step in --steps")
    except BadRun as error:
        fail(str(error))
    if show:
        print(format_run(run))
        return
    began = time.monotonic()
    if at or len(plain) < len(run):
        exploration = explorer.explore_one(run, None if steps else seed, at, played_with)
    else:
        with _progress(None if steps else points) as progress:
            if steps:
                exploration = explorer.explore_steps(plain, seed, progress)
            else:
                exploration = explorer.explore(seed, points, progress, played_with)
    seconds = time.monotonic() - began
    rate = exploration.points / seconds * 60 if seconds else 0
    print(
        f"{exploration.points} restore points in {exploration.runs} runs, {seconds:.1f} s: "
        f"{rate:.0f} points a minute"
    )
    if exploration.failure is None:
        print("nothing lost, nothing twice, nothing out of order, nobody left asleep")
        return
    failure = exploration.failure
    print(f"error: {failure.violation}", file=sys.stderr)
    print(f"reproduce: {failure.command}", file=sys.stderr)
    short = explorer.shrink(failure)
    print(f"shortest:  {short.command}", file=sys.stderr)
    print(f"           {short.violation}", file=sys.stderr)
    raise typer.Exit(1)


@contextmanager
def _progress(total: int | None) -> Iterator[Callable[[Exploration], None]]:
    """Show a bar on a terminal, and nothing elsewhere."""
    from rich.console import Console
    from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn

    console = Console(stderr=True)
    columns = (TextColumn("restore points"), BarColumn(), MofNCompleteColumn())
    with Progress(
        *columns, console=console, transient=True, disable=not console.is_terminal
    ) as bar:
        task = bar.add_task("", total=total)
        yield lambda exploration: bar.update(task, completed=exploration.points)
