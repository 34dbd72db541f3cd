# SPDX-License-Identifier: MIT
"""``vmbus run``, ``summary`` and ``stop``: a machine from a small file, in the foreground."""

from __future__ import annotations

import asyncio
import shlex
import signal
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

if TYPE_CHECKING:
    from emulator.lab.running import End, RunningMachine
    from emulator.machine.config import MachineConfig

Machine = Annotated[Path, typer.Argument(metavar="VM.TOML", help="the machine (docs/run.md)")]


def run(
    machine: Machine,
    snapshot: Annotated[
        str, typer.Option(help="go on from this snapshot of the machine, not from a boot")
    ] = "",
    grace: Annotated[
        float, typer.Option(min=0, help="seconds that the guest has to shut down by itself")
    ] = 20.0,
    dry_run: Annotated[bool, typer.Option(help="print QEMU's command line and end")] = False,
) -> None:
    """Run a machine in the foreground, with its console; Ctrl-] stops it.

    The status is 0 if the guest powered off or was stopped, and 1 if it crashed or could not run.
    """
    from emulator.cli.asking import fail
    from emulator.machine.store import MachineStore, StoreError

    config = _described(machine)
    try:
        store = MachineStore(config.name)
        if dry_run:
            _show_command(config)
            return
        folder = store.snapshot(snapshot) if snapshot else None
        with store.running():
            end = _run(config, store, folder, grace)
    except StoreError as error:
        fail(str(error))
    print(f"{config.name}: {end.cause}" + (f": {end.detail}" if end.detail else ""))
    from emulator.lab.running import Cause

    if end.cause is Cause.PANIC:
        raise typer.Exit(1)


def summary(
    machine: Machine,
    as_json: Annotated[bool, typer.Option("--json", help="for a program to read")] = False,
) -> None:
    """Print what a machine's file amounts to: every setting, those left out as well."""
    import msgspec

    config = _described(machine)
    data: dict[str, Any] = msgspec.to_builtins(config, enc_hook=str)
    for name in ("max_version", "max_restored_version"):
        data[name] = str(getattr(config, name))
    if as_json:
        print(msgspec.json.format(msgspec.json.encode(data)).decode())
        return
    from emulator.cli.tables import console, plain, table

    shown = table("setting", "value")
    for name, value in data.items():
        items = value if isinstance(value, list | tuple) else [value]
        texts = [_text(item) for item in items] or ["none"]
        for index, text in enumerate(texts):
            shown.add_row("" if index else name, plain(text))
    console().print(shown)


def stop(
    machine: Annotated[str, typer.Argument(help="the machine's name")],
    now: Annotated[bool, typer.Option(help="do not wait for the guest to shut down")] = False,
) -> None:
    """Stop a machine that `vmbus run` runs: the guest is asked to power off."""
    from emulator.cli.asking import fail
    from emulator.lab.running import ask
    from emulator.machine.control import ControlError
    from emulator.machine.store import MachineStore, StoreError

    try:
        asyncio.run(ask(MachineStore(machine), "stop", now=now))
    except (StoreError, ControlError) as error:
        fail(str(error))


def _described(machine: Path) -> MachineConfig:
    from emulator.cli.asking import fail
    from emulator.lab.description import DescriptionError, read_description
    from emulator.lab.images import ImageError

    try:
        return read_description(machine)
    except (DescriptionError, ImageError) as error:
        fail(str(error))


def _show_command(config: MachineConfig) -> None:
    from emulator.cli.asking import fail
    from emulator.machine.qemu import QemuError, Sockets, choose_accel, command_line, find_qemu

    try:
        line = command_line(
            find_qemu(),
            config,
            Sockets.under(Path("$RUNTIME")),
            accel=choose_accel(config.accel),
            incoming=False,
        )
    except QemuError as error:
        fail(str(error))
    print(shlex.join(line))


def _run(config: MachineConfig, store: Any, snapshot: Path | None, grace: float) -> End:
    from emulator.cli.asking import fail
    from emulator.cli.terminal import show
    from emulator.lab.running import RunningMachine
    from emulator.machine.control import ControlError
    from emulator.machine.process import ProcessDied
    from emulator.machine.qemu import QemuError, find_qemu
    from emulator.machine.snapshot import SnapshotError

    try:
        running = RunningMachine(config, store, find_qemu(), tap=show, grace=grace)
        return asyncio.run(_attended(running, config, snapshot))
    except (QemuError, SnapshotError, ControlError, ProcessDied) as error:
        fail(f"{error}\nlogs: {store.logs}")
    except OSError as error:
        fail(f"{error.filename}: {error.strerror}" if error.filename else str(error))


async def _attended(running: RunningMachine, config: MachineConfig, snapshot: Path | None) -> End:
    from emulator.cli.terminal import attached

    def say(text: str) -> None:
        print(f"{config.name}: {text}", end="\r\n", file=sys.stderr, flush=True)

    def asked() -> None:
        say("stopping; once more to end it at once")
        running.stop()

    loop = asyncio.get_running_loop()
    for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
        loop.add_signal_handler(number, asked)
    say("restoring" if snapshot else "booting")
    with attached(running.vm.console.type, asked):
        return await running.run(
            snapshot, lambda: say(f"runs, under {running.vm.accel}; Ctrl-] stops it")
        )


def _text(value: Any) -> str:
    if value is None or value == "":
        return "none"
    if isinstance(value, dict):
        return ", ".join(f"{key} {_text(item)}" for key, item in value.items() if item) or "default"
    return str(value)
