# SPDX-License-Identifier: MIT
"""``vmbus serve``: the VMBus backend as a program, in the manner of vhost-user's."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer


def serve(
    socket_path: Annotated[
        Path | None, typer.Option(help="listen for QEMU at this UNIX socket")
    ] = None,
    fd: Annotated[
        int | None, typer.Option(help="a UNIX socket: one that listens, or QEMU's connection")
    ] = None,
    config: Annotated[
        Path | None, typer.Option(help="JSON or TOML: one VM, or several (docs/serve.md)")
    ] = None,
    vm: Annotated[str, typer.Option(help="name of the VM; GUIDs follow from it")] = "",
    device: Annotated[
        list[str] | None, typer.Option(metavar="KIND[:NAME]", help="a device; can be repeated")
    ] = None,
    state: Annotated[
        Path | None, typer.Option(help="kept here at SIGTERM, taken from here at the start")
    ] = None,
    trace: Annotated[
        Path | None, typer.Option(help="write a trace here, from the first message on")
    ] = None,
    trace_packets: Annotated[
        bool, typer.Option(help="the trace has the packets of all channels as well")
    ] = False,
    control_path: Annotated[
        Path | None, typer.Option(help="listen for commands here, not in the registry's folder")
    ] = None,
    control_fd: Annotated[
        int | None, typer.Option(help="a listening UNIX socket for commands")
    ] = None,
    print_capabilities: Annotated[
        bool, typer.Option(help="print what this program can do, as JSON, and end")
    ] = False,
) -> None:
    """Serve the VMBus of one or more machines to QEMU, in the foreground, until SIGTERM."""
    from emulator.cli.asking import fail
    from emulator.machine.program import Options, UsageError, capabilities, run

    if print_capabilities:
        print(capabilities())
        return
    if trace_packets and trace is None and config is None:
        fail("--trace-packets: give --trace as well")
    options = Options(
        config=config,
        vm=vm,
        devices=tuple(device or ()),
        socket_path=socket_path,
        fd=fd,
        control_path=control_path,
        control_fd=control_fd,
        state=state,
        trace=trace,
        trace_packets=trace_packets,
    )
    try:
        status = run(options)
    except UsageError as error:
        fail(str(error))
    except OSError as error:
        fail(f"{error.filename}: {error.strerror}" if error.filename else str(error))
    raise typer.Exit(status)
