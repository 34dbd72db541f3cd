# SPDX-License-Identifier: MIT
"""The ``vmbus`` command: commands, progress, tables. Heavy imports wait for the command."""

from __future__ import annotations

import asyncio
import contextlib
import shlex
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, NoReturn

import typer

from emulator.cli.conformance import app as conformance
from emulator.cli.guest import app as guest
from emulator.cli.inspect import inspect
from emulator.cli.ps import ps
from emulator.cli.run import run, stop, summary
from emulator.cli.serve import serve
from emulator.cli.snapshot import app as snapshot
from emulator.cli.state import app as state
from emulator.cli.trace import trace
from emulator.machine.config import Accel

if TYPE_CHECKING:
    from emulator.lab.demo import Report

app = typer.Typer(
    help="An open VMBus host: Hyper-V's paravirtual bus for QEMU guests.",
    no_args_is_help=True,
    pretty_exceptions_enable=False,
)


def main() -> None:
    """Run the command line; a user's mistake ends with one clear line and a status of 1."""
    app()


@app.callback()
def _root() -> None:
    """Make every command a sub-command, even while there is only one."""


@app.command()
def demo(
    smp: Annotated[int, typer.Option(min=1, max=64, help="virtual CPUs")] = 1,
    rounds: Annotated[int, typer.Option(min=1, help="restores from the same snapshot")] = 2,
    memory: Annotated[int, typer.Option(min=128, help="guest RAM in MiB")] = 512,
    accel: Annotated[Accel, typer.Option(help="accelerator")] = Accel.AUTO,
    max_version: Annotated[
        str, typer.Option(help="newest VMBus version that the guest may speak, such as 4.0")
    ] = "",
    keep: Annotated[bool, typer.Option(help="leave snapshot and logs behind")] = False,
    folder: Annotated[
        Path | None, typer.Option(help="where snapshot and logs go (a new folder)")
    ] = None,
    dry_run: Annotated[bool, typer.Option(help="print QEMU's command line and end")] = False,
) -> None:
    """Save a guest in mid-conversation, kill everything, restore, account for each packet."""
    from emulator.lab.demo import PROBE, DemoError
    from emulator.lab.images import ImageError, find_image
    from emulator.machine.config import MachineConfig, version_named
    from emulator.machine.control import ControlError
    from emulator.machine.process import ProcessDied
    from emulator.machine.qemu import QemuError, Sockets, choose_accel, command_line, find_qemu
    from emulator.machine.snapshot import SnapshotError

    try:
        qemu, image = find_qemu(), find_image()
        config = MachineConfig(
            name="demo",
            kernel=image.kernel,
            initramfs=image.initramfs,
            smp=smp,
            memory_mib=memory,
            accel=accel,
            append="quiet loglevel=4",
            devices=(PROBE,),
            max_version=version_named(max_version),
        )
        if dry_run:
            sockets = Sockets.under(Path("$RUNTIME"))
            line = command_line(qemu, config, sockets, accel=choose_accel(accel), incoming=False)
            typer.echo(shlex.join(line))
            return
        choose_accel(accel)
        where = _folder(folder)
        with _logs_named(where):
            report = _run_demo(config, qemu, where, rounds)
    except (
        QemuError,
        ImageError,
        SnapshotError,
        ProcessDied,
        ControlError,
        DemoError,
        ValueError,
    ) as error:
        _fail(str(error))
    except OSError as error:
        _fail(f"{error.filename}: {error.strerror}" if error.filename else str(error))
    _print_report(report)
    if keep or folder:
        typer.echo(f"snapshot and logs: {where}")
    else:
        import shutil

        shutil.rmtree(where, ignore_errors=True)
    if not report.good:
        raise typer.Exit(1)


@app.command()
def doctor(
    as_json: Annotated[bool, typer.Option("--json", help="for a program to read")] = False,
) -> None:
    """Name what this machine lacks to run our virtual machines, and how to fix it.

    The status is 0 if machines can run under TCG, whether or not under KVM too, and 1 if none can.
    """
    from emulator.cli import diagnosis as shown
    from emulator.lab.doctor import diagnose

    found = diagnose()
    if as_json:
        typer.echo(shown.as_json(found))
    else:
        shown.show(found)
    if found.tcg:
        raise typer.Exit(1)


app.command()(ps)
app.command()(inspect)
app.command()(serve)
app.command()(run)
app.command()(summary)
app.command()(stop)
app.add_typer(guest, name="guest")
app.add_typer(snapshot, name="snapshot")
app.add_typer(conformance, name="conformance")
app.add_typer(state, name="state")
app.command()(trace)


@contextlib.contextmanager
def _logs_named(where: Path) -> Iterator[None]:
    """Keep the logs of a run that failed, and say where they are."""
    try:
        yield
    except BaseException:
        typer.echo(f"logs: {where}", err=True)
        raise


def _folder(folder: Path | None) -> Path:
    if folder is None:
        return Path(tempfile.mkdtemp(prefix="vmbus-demo-"))
    folder.mkdir(parents=True)
    return folder


def _run_demo(config: Any, qemu: Path, where: Path, rounds: int) -> Report:
    from emulator.lab.demo import run_demo

    def say(text: str) -> None:
        print(f"  {text}", flush=True)

    return asyncio.run(run_demo(config, qemu=qemu, folder=where, rounds=rounds, say=say))


def _fail(text: str) -> NoReturn:
    typer.echo(f"error: {text}", err=True)
    raise typer.Exit(1)


def _print_report(report: Report) -> None:
    from rich import box
    from rich.console import Console
    from rich.table import Table

    # Not highlighted and never wrapped: the lines are read by programs as well.
    console = Console(highlight=False, soft_wrap=True)
    for number, found in enumerate(report.rounds, 1):
        title = f"restore {number} of {len(report.rounds)}: packets in flight"
        table = Table(title=title, title_justify="left", box=box.SIMPLE_HEAD)
        table.collapse_padding = True
        table.pad_edge = False
        table.add_column("kind", no_wrap=True)
        for column in ("saved", "restored", "once", "lost", "twice", "disorder"):
            table.add_column(column, justify="right", no_wrap=True)
        for row in found.rows:
            table.add_row(
                row["kind"],
                str(report.at_save[row["kind"]]),
                str(found.restored[row["kind"]]),
                *(str(row[key]) for key in ("once", "lost", "duplicated", "disorder")),
            )
        console.print(table)
        console.print(
            f"  restored in {found.restore_seconds:.2f} s; conversation in all: "
            f"{found.requests} guest requests, {found.completions} host transactions"
        )
        for problem in found.problems:
            console.print(f"  [bold]ledgers differ[/bold]: {problem}")
    console.print(
        f"guest {report.guest}; booted in {report.boot_seconds:.2f} s, saved in "
        f"{report.save_seconds:.2f} s ({report.snapshot_bytes / 2**20:.0f} MiB); "
        f"backend's peak memory {report.backend_peak_kib / 1024:.0f} MiB"
    )
    verdict = "nothing lost, nothing twice" if report.good else "THE LEDGERS DO NOT AGREE"
    console.print(f"[bold]{verdict}[/bold]")
    if not report.good:
        print("error: packets were lost, doubled or disordered", file=sys.stderr)
