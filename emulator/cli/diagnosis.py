# SPDX-License-Identifier: MIT
"""How ``vmbus doctor`` is shown: a table for a person, a line for a check in a pipe, or JSON."""

from __future__ import annotations

import dataclasses
import json
from typing import TYPE_CHECKING, Final

from rich import box
from rich.console import Console
from rich.markup import escape
from rich.table import Table

from emulator.lab.doctor import Check, Diagnosis, State

if TYPE_CHECKING:
    from collections.abc import Iterator

_STYLES: Final = {State.OK: "green", State.NOTE: "yellow", State.MISSING: "bold red"}


def as_json(diagnosis: Diagnosis) -> str:
    """Return the diagnosis for a program: ``checks``, and ``can_run`` with yes and because."""
    return json.dumps(
        {
            "checks": [dataclasses.asdict(check) for check in diagnosis.checks],
            "can_run": {
                name.lower().replace(" ", "-"): {"yes": not reason, "because": reason}
                for name, reason in _verdicts(diagnosis)
            },
        },
        indent=1,
    )


def show(diagnosis: Diagnosis, console: Console | None = None) -> None:
    """Print the diagnosis, in a table if somebody looks."""
    console = console or Console(highlight=False)
    if console.is_terminal:
        console.print(_table(diagnosis))
    else:
        for check in diagnosis.checks:
            print(_line(check), file=console.file)
    for line in summary(diagnosis):
        console.print(line, markup=False, soft_wrap=True)


def summary(diagnosis: Diagnosis) -> list[str]:
    """Say what this machine can run, and why not."""
    return [
        "this machine can run: "
        + "; ".join(
            f"{name} no, because {reason}" if reason else f"{name} yes"
            for name, reason in _verdicts(diagnosis)
        )
    ]


def _verdicts(diagnosis: Diagnosis) -> Iterator[tuple[str, str]]:
    yield "TCG", diagnosis.tcg
    yield "KVM", diagnosis.kvm
    yield "vmbus demo", diagnosis.demo


def _line(check: Check) -> str:
    fix = f" -> {check.fix}" if check.fix else ""
    return f"{check.state.value:7}  {check.subject.value}: {check.name}: {check.found}{fix}"


def _table(diagnosis: Diagnosis) -> Table:
    table = Table(box=box.SIMPLE_HEAD, pad_edge=False)
    table.collapse_padding = True
    table.add_column("check", no_wrap=True)
    table.add_column("")
    table.add_column("found", overflow="fold")
    table.add_column("how to fix", overflow="fold")
    subject = None
    for check in diagnosis.checks:
        if check.subject is not subject:
            subject = check.subject
            table.add_row(f"[bold]{subject.value}[/bold]")
        table.add_row(
            f"  {escape(check.name)}",
            f"[{_STYLES[check.state]}]{check.state.value}[/]",
            escape(check.found),
            escape(check.fix),
        )
    return table
