# SPDX-License-Identifier: MIT
"""``vmbus conformance``: does our KMCL endpoint do what the documents say?"""

from __future__ import annotations

import asyncio
import contextlib
import tempfile
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


Junit = Annotated[Path | None, typer.Option(help="write JUnit XML")]
Json = Annotated[Path | None, typer.Option("--json", help="write JSON")]
Markdown = Annotated[Path | None, typer.Option(help="write a page such as docs/conformance.md")]
RecordedRun = Annotated[
    Path | None, typer.Option(help="a kept run end to end, to stand in the page beside the other")
]


@app.callback()
def _all(
    context: typer.Context,
    junit: Junit = None,
    as_json: Json = None,
    markdown: Markdown = None,
    recorded: RecordedRun = None,
) -> None:
    """Run all scenarios in one process, unless there is a command."""
    if context.invoked_subcommand is None:
        _run((), junit, as_json, markdown, recorded)


@app.command()
def run(
    numbers: Annotated[
        list[str] | None,
        typer.Argument(help="which: 12 40, and end to end R3 too; all if none is given"),
    ] = None,
    junit: Junit = None,
    as_json: Json = None,
    markdown: Markdown = None,
    recorded: RecordedRun = None,
    inferred: Annotated[
        list[str] | None,
        typer.Option(
            "--with",
            metavar="SWITCH=READING",
            help="have the endpoint do the other thing where no document decides (docs/kmcl.md); "
            "a scenario that notices records what it sees",
        ),
    ] = None,
    end_to_end: Annotated[
        bool,
        typer.Option(
            "--end-to-end", help="with a stock Linux guest, over snapshots and new processes"
        ),
    ] = False,
    quick: Annotated[
        bool, typer.Option("--quick", help="end to end: the reduced set of every test run")
    ] = False,
    record: Annotated[
        Path | None, typer.Option(help="end to end: keep the run in this file, for --recorded")
    ] = None,
    machine: Annotated[
        Path | None,
        typer.Option(
            metavar="VM.TOML",
            help="end to end: this machine, not the Linux test guest (docs/probe.md, section 8)",
        ),
    ] = None,
    keep: Annotated[
        Path | None, typer.Option(help="end to end: leave snapshots and logs in this new folder")
    ] = None,
) -> None:
    """Run scenarios by number. The status is 1 if one fails."""
    if end_to_end:
        if markdown or recorded or inferred:
            _fail("--markdown, --recorded and --with are for runs in one process")
        if quick and numbers:
            _fail("--quick is a set of its own: give numbers or --quick")
        _end_to_end(numbers or (), quick, junit, as_json, record, machine, keep)
        return
    if quick or record or machine or keep:
        _fail("--quick, --record, --machine and --keep are for --end-to-end")
    _run(_in_process(numbers or ()), junit, as_json, markdown, recorded, inferred or ())


def _in_process(numbers: Sequence[str]) -> list[int]:
    from emulator.conformance import suite

    known = {str(number): number for number in suite.load()}
    if unknown := [number for number in numbers if number not in known]:
        machine = " (R0 to R7 need a machine: --end-to-end)" if unknown[0][:1] == "R" else ""
        _fail(
            f"there is no scenario {', '.join(unknown)}; "
            f"they are 1 to {max(known.values())}{machine}"
        )
    return [known[number] for number in numbers]


def _run(
    numbers: Sequence[int],
    junit: Path | None,
    as_json: Path | None,
    markdown: Path | None,
    recorded: Path | None = None,
    inferred: Sequence[str] = (),
) -> None:
    from emulator.conformance import report, switches
    from emulator.lab.conformance.cases import MACHINE

    if recorded and not markdown:
        _fail("--recorded is for --markdown")
    try:
        kept = report.decode_recorded(recorded.read_bytes()) if recorded else None
        results = switches.run_with(switches.settings(inferred), numbers)
    except OSError as error:
        _fail(f"{error.filename}: {error.strerror}")
    except ValueError as error:
        _fail(str(error))
    page = ""
    if markdown:
        page = report.as_markdown(results, kept, tuple(MACHINE.values()) if kept else ())
    _write(markdown, page)
    _report(results, junit, as_json)


def _end_to_end(
    keys: Sequence[str],
    quick: bool,
    junit: Path | None,
    as_json: Path | None,
    record: Path | None,
    described: Path | None,
    keep: Path | None,
) -> None:
    from emulator.conformance import report
    from emulator.lab.conformance import run as guest
    from emulator.lab.conformance.bench import linux_guest
    from emulator.lab.description import DescriptionError, read_description
    from emulator.lab.images import ImageError, find_image
    from emulator.machine.qemu import QemuError, find_qemu

    if unknown := guest.unknown(keys):
        _fail(f"there is no scenario {', '.join(unknown)}; they are 1 to 71 and R0 to R7")
    if record and (keys or quick or described):
        _fail("--record is of a run of all scenarios with the Linux test guest")
    try:
        qemu, image = find_qemu(), find_image()
        machine = linux_guest(image)
        if described is not None:
            machine = read_description(described)
            if [device.name for device in machine.devices] != ["probe"]:
                _fail(f"{described}: it must have one device, a probe by the name probe")
        with contextlib.ExitStack() as stack:
            if keep is None:
                folder = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="vmbus-")))
            else:
                folder = keep
                folder.mkdir(parents=True)
            results = asyncio.run(
                guest.run(
                    guest.quick() if quick else keys,
                    qemu=qemu,
                    machine=machine,
                    folder=folder,
                    linux=described is None,
                    say=lambda text: typer.echo(f"  {text}", err=True),
                )
            )
    except (DescriptionError, ImageError, QemuError) as error:
        _fail(str(error))
    except OSError as error:
        _fail(f"{error.filename}: {error.strerror}")
    if record:
        _write(
            record,
            report.as_recorded(guest.recorded(results, qemu, machine, f"Linux {image.release}")),
        )
    _report(results, junit, as_json)


def _report(results: Sequence[Result], junit: Path | None, as_json: Path | None) -> None:
    from emulator.conformance import report

    _show(results)
    for path, text in ((junit, report.as_junit), (as_json, report.as_json)):
        _write(path, text(results) if path else "")
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
                    result.scenario.key,
                    escape(result.scenario.title),
                    basis(result.scenario),
                    verdict if result.verdict.good else f"[bold]{verdict}[/bold]",
                    escape(result.observed),
                )
        console.print(table)


app.command()(explore)
