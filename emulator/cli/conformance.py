# SPDX-License-Identifier: MIT
"""``vmbus conformance``: does our KMCL endpoint do what the documents say?"""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, NoReturn

import typer

from emulator.cli.explore import explore

if TYPE_CHECKING:
    from collections.abc import Sequence

    from emulator.conformance.suite import Result

app = typer.Typer(
    help="Check the KMCL endpoint against its documents; without a command: run all scenarios.",
    invoke_without_command=True,
)


@app.callback()
def _all(
    context: typer.Context,
    junit: Annotated[Path | None, typer.Option(help="write JUnit XML")] = None,
    as_json: Annotated[Path | None, typer.Option("--json", help="write JSON")] = None,
    markdown: Annotated[Path | None, typer.Option(help="write docs/conformance.md")] = None,
) -> None:
    """Run all scenarios, unless there is a command."""
    if context.invoked_subcommand is None:
        _run((), junit, as_json, markdown)


@app.command()
def run(
    numbers: Annotated[list[int] | None, typer.Argument(help="which; all if none is given")] = None,
    junit: Annotated[Path | None, typer.Option(help="write JUnit XML")] = None,
    as_json: Annotated[Path | None, typer.Option("--json", help="write JSON")] = None,
    markdown: Annotated[Path | None, typer.Option(help="write a page of Markdown")] = None,
    inferred: Annotated[
        list[str] | None,
        typer.Option(
            "--with",
            metavar="SWITCH=READING",
            help="have the endpoint do the other thing where no document decides (docs/kmcl.md); "
            "a scenario that notices records what it sees",
        ),
    ] = None,
) -> None:
    """Run scenarios by number. The status is 1 if one fails."""
    _run(numbers or (), junit, as_json, markdown, inferred or ())


def _run(
    numbers: Sequence[int],
    junit: Path | None,
    as_json: Path | None,
    markdown: Path | None,
    inferred: Sequence[str] = (),
) -> None:
    from emulator.conformance import report, suite, switches

    suite.load()
    unknown = [str(number) for number in numbers if number not in suite.SCENARIOS]
    if unknown:
        _fail(f"there is no scenario {', '.join(unknown)}; they are 1 to {max(suite.SCENARIOS)}")
    try:
        results = switches.run_with(switches.settings(inferred), numbers)
    except ValueError as error:
        _fail(str(error))
    _show(results)
    for path, text in ((junit, report.as_junit), (as_json, report.as_json)):
        _write(path, text(results) if path else "")
    _write(markdown, report.as_markdown(results) if markdown else "")
    typer.echo(report.summary(results))
    if not all(result.verdict.good for result in results):
        raise typer.Exit(1)


def _write(path: Path | None, text: str) -> None:
    if path is None:
        return
    try:
        path.write_text(text)
    except OSError as error:
        _fail(f"{path}: {error.strerror}")


def _fail(text: str) -> NoReturn:
    typer.echo(f"error: {text}", err=True)
    raise typer.Exit(1)


def _show(results: Sequence[Result]) -> None:
    from rich import box
    from rich.console import Console
    from rich.markup import escape
    from rich.table import Table

    from emulator.conformance.report import basis

    console = Console(highlight=False)
    for section in dict.fromkeys(result.scenario.section for result in results):
        table = Table(box=box.SIMPLE, show_header=False, pad_edge=False, title=section.value)
        table.title_justify = "left"
        table.add_column(justify="right", no_wrap=True)
        table.add_column(ratio=3)
        table.add_column(no_wrap=True)
        table.add_column(no_wrap=True)
        table.add_column(ratio=3)
        for result in results:
            if result.scenario.section is section:
                verdict = result.verdict.value
                table.add_row(
                    str(result.scenario.number),
                    escape(result.scenario.title),
                    basis(result),
                    verdict if result.verdict.good else f"[bold]{verdict}[/bold]",
                    escape(result.observed),
                )
        console.print(table)


app.command()(explore)
