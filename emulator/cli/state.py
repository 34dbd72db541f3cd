# SPDX-License-Identifier: MIT
"""``vmbus state show``: what a snapshot holds of the VMBus host, in words."""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

if TYPE_CHECKING:
    from emulator.machine.hoststate import HostState
    from emulator.machine.savedstate import ChannelSummary

app = typer.Typer(help="Look into the saved state of a VMBus host.", no_args_is_help=True)


@app.callback()
def _root() -> None:
    """Keep ``show`` a command of its own."""


@app.command()
def show(
    path: Annotated[
        Path,
        typer.Argument(help="a snapshot, a migration stream, or a file of serve --state"),
    ],
    as_json: Annotated[bool, typer.Option("--json", help="all of it, for a program")] = False,
) -> None:
    """Print connection, channels, GPADLs, messages under way and packets in use."""
    from emulator.machine import savedstate
    from emulator.machine.snapshot import SnapshotError

    try:
        data = savedstate.read_state(path)
        state = savedstate.decode_state(data)
    except SnapshotError as error:
        typer.echo(f"error: {error}", err=True)
        raise typer.Exit(1) from None
    if as_json:
        print(json.dumps(savedstate.as_builtins(state), indent=1))
        return
    _show(state, len(data), savedstate.summaries(state))


def _show(state: HostState, size: int, channels: dict[str, dict[str, ChannelSummary]]) -> None:
    from emulator.cli.tables import console, plain, table

    out = console()
    out.print(f"VM {plain(state.vm)}: {size} bytes of state, version {state.version}")
    contact = state.bus.contact
    if contact is None:
        out.print("guest: not connected")
    else:
        out.print(
            f"guest: VMBus {contact.version >> 16}.{contact.version & 0xFFFF}, "
            f"{contact.verdict.value}; messages to VP {contact.vp}, SINT {contact.sint}; "
            f"offers {'requested' if state.bus.offers_requested else 'not requested'}"
        )
    if state.posts or state.deferred:
        out.print(
            f"messages: {len(state.posts)} not in the guest's slot yet, "
            f"{len(state.deferred)} of the guest not heard yet"
        )
    ids = {key: number for number, key in enumerate(state.bus.ids, 1)}
    shown = table(">id", "instance", ">sub", "state", ">GPADLs", title="channels on the bus")
    for channel in state.bus.channels:
        number = ids.get(channel.key, 0)
        shown.add_row(
            str(number),
            str(channel.key.instance),
            str(channel.key.subchannel_index),
            channel.state.value,
            str(sum(gpadl.channel_id == number for gpadl in state.bus.gpadls)),
        )
    out.print(shown)
    for device in state.devices:
        title = f"{device.name} ({device.kind}): {len(device.own)} bytes of its own"
        shown = table("channel", ">bytes", "packet", ">transaction", ">payload", title=title)
        for role, saved in channels[device.name].items():
            rows = [
                (
                    each.what,
                    "" if each.transaction_id is None else str(each.transaction_id),
                    "" if each.payload is None else str(each.payload),
                )
                for each in saved.in_use
            ]
            if saved.error:
                rows = [(plain(f"cannot be read: {saved.error}"), "", "")]
            for index, row in enumerate(rows or [("nothing in use", "", "")]):
                shown.add_row(*((role, str(saved.size)) if not index else ("", "")), *row)
            for fault in saved.faults:
                shown.add_row("", "", plain(f"fault: {fault}"))
        out.print(shown)
