# SPDX-License-Identifier: MIT
"""``vmbus snapshot``: named snapshots of the machines that ``vmbus run`` runs."""

from __future__ import annotations

import asyncio
from pathlib import Path
from typing import Annotated, Any

import typer

app = typer.Typer(help="Save and restore machines by name.", no_args_is_help=True)

Machine = Annotated[str, typer.Argument(help="the machine's name")]
Name = Annotated[str, typer.Argument(help="the snapshot's name")]


@app.command()
def save(
    machine: Machine,
    name: Name,
    stop: Annotated[bool, typer.Option(help="end the machine once it is saved")] = False,
) -> None:
    """Save a running machine; it goes on afterwards, and also if it cannot be saved."""
    from emulator.cli.asking import fail
    from emulator.cli.tables import size
    from emulator.lab.running import ask
    from emulator.machine.control import ControlError
    from emulator.machine.store import MachineStore, StoreError

    try:
        done: dict[str, Any] = asyncio.run(ask(MachineStore(machine), "save", name=name, stop=stop))
    except (StoreError, ControlError) as error:
        fail(str(error))
    print(f"saved {machine} as {name}: {size(done['bytes'])} in {done['folder']}")


@app.command()
def restore(
    machine: Annotated[Path, typer.Argument(metavar="VM.TOML", help="the machine (docs/run.md)")],
    name: Name,
) -> None:
    """Run a machine from a snapshot, as `vmbus run --snapshot NAME` does."""
    from emulator.cli.run import run

    run(machine, snapshot=name)


@app.command("list")
def list_(
    machine: Annotated[str, typer.Argument(help="one machine only")] = "",
    as_json: Annotated[bool, typer.Option("--json", help="for a program to read")] = False,
) -> None:
    """List the snapshots of one machine, or of all."""
    from emulator.cli.asking import fail
    from emulator.machine.store import MachineStore, StoreError, machines

    try:
        stores = [MachineStore(each) for each in ([machine] if machine else machines())]
    except StoreError as error:
        fail(str(error))
    rows = [(store.name, kept) for store in stores for kept in store.snapshots()]
    if as_json:
        import json

        print(
            json.dumps(
                [
                    {
                        "machine": of,
                        "name": kept.name,
                        "created": kept.manifest.created if kept.manifest else None,
                        "bytes": kept.size,
                        "problem": kept.problem,
                    }
                    for of, kept in rows
                ],
                indent=1,
            )
        )
        return
    if not rows:
        import sys

        print("there is no snapshot", file=sys.stderr)
        return
    from emulator.cli.tables import console, plain, size, table

    shown = table("machine", "snapshot", "created", ">size", "accel", "devices")
    for of, kept in rows:
        if kept.manifest is None:
            shown.add_row(of, plain(kept.name), plain(kept.problem))
            continue
        devices = ", ".join(device.name for device in kept.manifest.machine.devices)
        shown.add_row(
            of,
            plain(kept.name),
            kept.manifest.created,
            size(kept.size),
            kept.manifest.machine.accel,
            plain(devices),
        )
    console().print(shown)


@app.command()
def rm(machine: Machine, names: Annotated[list[str], typer.Argument(help="snapshots")]) -> None:
    """Remove snapshots."""
    from emulator.cli.asking import fail
    from emulator.machine.store import MachineStore, StoreError

    try:
        store = MachineStore(machine)
        for name in names:
            store.remove(name)
    except StoreError as error:
        fail(str(error))
